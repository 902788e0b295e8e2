//! A settle shares the commit of what comes next, and waits for it no longer than its linger.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_ledger::{
    api::{Ack, Admin, Reserve, Settle},
    journal::Sequence,
    outcomes::HOT_MAX,
    resume::Resumed,
    writer::{Caller, Request, Writer, WriterConfig},
};
use seatbelt_schemas::{
    command::Change,
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CommandId, KeyId, LedgerId},
    position::{Partition, Partitions},
    usage::Usage,
};

const START_MS: u64 = 1_700_000_000_000;
const LINGER_MS: u64 = 3;

struct Nobody;

impl Caller for Nobody {
    fn is_gone(&self) -> bool {
        false
    }
}

struct Desk {
    writer: Writer<Nobody>,
    appended: u64,
    ids: u64,
}

impl Desk {
    /// A writer with one key, everything so far durable.
    fn open() -> Self {
        let config = WriterConfig {
            partition: Partition(0),
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("linger").unwrap(),
            writer: "linger".to_owned(),
            expiry_grace_ms: 0,
            single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
            accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
            settle_linger_ms: LINGER_MS,
            commit_events_max: seatbelt_schemas::commit::COMMIT_EVENTS_MAX,
        };
        let resumed = Resumed::empty(Partition(0), HOT_MAX);
        let writer = Writer::start(config, resumed, START_MS);
        let mut desk = Self {
            writer,
            appended: 0,
            ids: 0,
        };
        let key = KeyIssued {
            key: KeyId::new("key").unwrap(),
            team: None,
            secret_sha256: None,
        };
        for change in [Change::OpenAccount, Change::IssueKey(key)] {
            let (id, actor) = (desk.id(), Actor::operator("test"));
            desk.writer.submit(
                START_MS,
                Request::Admin(Admin {
                    id,
                    account: account(),
                    actor,
                    change,
                }),
                Nobody,
            );
        }
        desk.append();
        desk
    }

    fn id(&mut self) -> CommandId {
        self.ids += 1;
        CommandId::from_parts(START_MS, (1 << 79) | u128::from(self.ids))
    }

    fn reserve(&mut self) -> CommandId {
        let id = self.id();
        let command = Reserve {
            team: None,
            id,
            account: account(),
            key: KeyId::new("key").unwrap(),
            model: None,
            run: None,
            end_user: None,
            input_tokens: 1,
            output_tokens: 1,
            tool_calls: 0,
            deadline_ms: START_MS + 60_000,
            wait_ms: 0,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
            budget: None,
            within: None,
        };
        self.writer
            .submit(START_MS, Request::Reserve(command), Nobody);
        id
    }

    fn settle(&mut self, reserved: CommandId, ack: Ack) {
        let (usage, timings) = (Usage::default(), Timings::default());
        let report = Report {
            usage,
            upstream: "test".to_owned(),
            source: UsageSource::Upstream,
            finish: None,
            timings,
        };
        let (id, actor) = (self.id(), Actor::operator("test"));
        let command = Settle {
            id,
            account: account(),
            reservation: reserved.into(),
            report,
            actor,
        };
        self.writer
            .submit(START_MS, Request::Settle(command, ack), Nobody);
    }

    /// Appends all that may be appended now; says how many commits that were.
    fn append(&mut self) -> u64 {
        let before = self.appended;
        while self.writer.take_append().is_some() {
            self.appended += 1;
            self.writer.appended(Ok(Sequence(self.appended)));
        }
        self.appended - before
    }

    fn answers(&mut self) -> usize {
        self.writer
            .answers()
            .inspect(|(_, answer)| assert!(answer.is_ok(), "{answer:?}"))
            .count()
    }
}

fn account() -> AccountId {
    AccountId::new("acct").unwrap()
}

#[test]
fn a_settle_is_taken_at_once_and_shares_the_commit_of_the_next_reserve() {
    let mut desk = Desk::open();
    let first = desk.reserve();
    assert_eq!(desk.append(), 1);
    desk.answers();
    desk.settle(first, Ack::Taken);
    assert_eq!(desk.answers(), 1, "taken");
    assert_eq!(desk.append(), 0, "it waits for company");
    desk.reserve();
    assert_eq!(desk.append(), 1, "one commit for both");
    assert_eq!(desk.writer.durable(), desk.writer.state().position());
}

#[test]
fn a_settle_alone_is_durable_once_its_linger_is_over() {
    for clock_ms in [START_MS + LINGER_MS, START_MS - 60_000] {
        let mut desk = Desk::open();
        let first = desk.reserve();
        desk.append();
        desk.answers();
        desk.settle(first, Ack::Durable);
        assert_eq!(desk.append(), 0);
        assert_eq!(desk.writer.next_wake_ms(), Some(START_MS + LINGER_MS));
        desk.writer.tick(clock_ms);
        assert_eq!(
            (desk.append(), desk.answers()),
            (1, 1),
            "also where the clock goes back"
        );
    }
}

#[test]
fn a_settle_behind_a_decision_that_cannot_wait_does_not_make_it_wait() {
    let mut desk = Desk::open();
    let first = desk.reserve();
    desk.append();
    desk.reserve();
    desk.settle(first, Ack::Taken);
    assert_eq!(desk.append(), 1);
}

#[test]
fn a_planned_end_waits_for_nothing() {
    let mut desk = Desk::open();
    let first = desk.reserve();
    desk.append();
    desk.settle(first, Ack::Taken);
    desk.writer.hurry(START_MS);
    assert_eq!(desk.append(), 1);
}
