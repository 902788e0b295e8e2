//! A ledger of two partitions and two epochs that meets every kind of event: its ids and its clock are
//! fixed, so one version writes the same bytes each time.

use std::collections::BTreeMap;

use bytes::Bytes;
use seatbelt_ledger::{
    api::{Ack, Admin, Release, Reserve, Resize, Settle},
    journal::{Sequence, Stored},
    outcomes::HOT_MAX,
    resume::Resume,
    writer::{Caller, Request, Writer, WriterConfig},
};
use seatbelt_schemas::{
    budget::Budget,
    cap::CapSpec,
    command::Change,
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, EndUserId, KeyId, LedgerId, ModelId, RunId, TeamId},
    meter::Meter,
    position::{Partition, Partitions},
    price::{LongContext, Price, Rates},
    scope::Scope,
    usage::Usage,
    window::{Period, Window},
};

const BEGAN_MS: u64 = 1_760_000_000_000;
const MINUTE_MS: u64 = 60_000;

/// Somebody who listens and is not asked what they hear: the journal tells.
struct Listener;

impl Caller for Listener {
    fn is_gone(&self) -> bool {
        false
    }
}

/// Both partitions' journals.
pub(crate) fn journals() -> BTreeMap<Partition, Vec<Bytes>> {
    let partitions = Partitions::try_from(2).unwrap();
    let of = |partition| {
        let accounts: Vec<AccountId> = ["acct-cap", "bob", "carol"]
            .into_iter()
            .map(|name| AccountId::new(name).unwrap())
            .filter(|account| partitions.of(account) == partition)
            .collect();
        assert!(!accounts.is_empty(), "every partition has accounts");
        let mut story = Story::begin(partition, partitions);
        story.prices();
        for account in &accounts {
            story.open(account);
            story.live(account);
        }
        story.take_over();
        for account in &accounts {
            story.live_on(account);
        }
        (partition, story.journal)
    };
    partitions.iter().map(of).collect()
}

struct Story {
    config: WriterConfig,
    writer: Writer<Listener>,
    journal: Vec<Bytes>,
    now_ms: u64,
    ids: u64,
}

impl Story {
    fn begin(partition: Partition, partitions: Partitions) -> Self {
        let config = WriterConfig {
            partition,
            partitions,
            ledger: LedgerId::new("golden").unwrap(),
            writer: "golden".to_owned(),
            expiry_grace_ms: 1_000,
            single_refusals_per_second: 1,
            accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
            settle_linger_ms: 0,
            commit_events_max: seatbelt_schemas::commit::COMMIT_EVENTS_MAX,
        };
        let empty = Resume::from_start(partition, HOT_MAX).finish();
        let mut story = Self {
            writer: Writer::start(config.clone(), empty, BEGAN_MS),
            config,
            journal: Vec::new(),
            now_ms: BEGAN_MS,
            ids: 0,
        };
        story.write();
        story
    }

    /// Another writer goes on from the journal.
    fn take_over(&mut self) {
        self.now_ms += 1_000;
        let mut resume = Resume::from_start(self.config.partition, HOT_MAX);
        for (payload, number) in self.journal.iter().cloned().zip(1..) {
            let sequence = Sequence(number);
            let stored = Stored { sequence, payload };
            let commit = resume.check(&stored).unwrap();
            resume.take(&stored, &commit).unwrap();
        }
        self.writer = Writer::start(self.config.clone(), resume.finish(), self.now_ms);
        self.write();
    }

    /// All that was decided, as one commit.
    fn write(&mut self) {
        while let Some((_, payload)) = self.writer.take_append() {
            self.journal.push(payload);
            let _ = self
                .writer
                .appended(Ok(Sequence(self.journal.len() as u64)));
        }
        self.writer.answers().for_each(drop);
    }

    fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.writer.tick(self.now_ms);
        self.write();
    }

    fn id(&mut self) -> CommandId {
        self.ids += 1;
        let partition = u128::from(self.config.partition.0) + 1;
        CommandId::from_parts(
            self.now_ms,
            (1 << 79) | partition << 64 | u128::from(self.ids),
        )
    }

    /// Submits without a commit of its own.
    fn submit(&mut self, request: Request) {
        self.writer.submit(self.now_ms, request, Listener);
    }

    fn send(&mut self, request: Request) {
        self.submit(request);
        self.write();
        self.wait(7);
    }

    fn change(&mut self, account: &AccountId, change: Change) {
        let command = Admin {
            id: self.id(),
            account: account.clone(),
            actor: Actor::operator("golden"),
            change,
        };
        self.send(Request::Admin(command));
    }

    fn prices(&mut self) {
        let long = LongContext {
            above_input_tokens: 500,
            rates: Rates::flat(2_000_000, 6_000_000),
        };
        let rates = Rates {
            input: 1_000_000,
            cached_input: 100_000,
            cache_write: 1_250_000,
            output: 3_000_000,
            reasoning: 3_500_000,
            cache_write_long: None,
        };
        for (model, rates, long_context) in [
            ("small", Rates::flat(150_000, 600_000), None),
            ("large", rates, Some(long)),
            ("small", Rates::flat(200_001, 800_003), None),
        ] {
            let price = Price {
                long_context,
                ..Price::of(ModelId::new(model).unwrap(), rates)
            };
            self.change(&AccountId::system(), Change::SetPrice(price));
        }
    }

    fn open(&mut self, account: &AccountId) {
        self.change(account, Change::OpenAccount);
        for (key, team) in [("k1", Some("team")), ("k2", None), ("k3", None)] {
            let issued = KeyIssued {
                key: KeyId::new(key).unwrap(),
                team: team.map(|team| TeamId::new(team).unwrap()),
                secret_sha256: None,
            };
            self.change(account, Change::IssueKey(issued));
        }
        for spec in caps() {
            self.change(account, Change::SetCap(spec));
        }
    }

    fn reserve(&mut self, account: &AccountId, key: &str, tokens: (u64, u64)) -> Reserve {
        Reserve {
            team: None,
            id: self.id(),
            account: account.clone(),
            key: KeyId::new(key).unwrap(),
            model: Some(ModelId::new("small").unwrap()),
            run: None,
            end_user: None,
            input_tokens: tokens.0,
            output_tokens: tokens.1,
            tool_calls: 0,
            deadline_ms: self.now_ms + MINUTE_MS,
            wait_ms: 0,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
            budget: None,
            within: None,
        }
    }

    fn take(&mut self, reserve: Reserve) -> CommandId {
        let id = reserve.id;
        self.send(Request::Reserve(reserve));
        id
    }

    fn settle(&mut self, account: &AccountId, id: CommandId, tokens: (u64, u64)) {
        let usage = Usage {
            input_tokens: tokens.0,
            cached_input_tokens: tokens.0 / 3,
            cache_write_tokens: tokens.0 / 5,
            output_tokens: tokens.1,
            reasoning_tokens: tokens.1 / 4,
            ..Usage::default()
        };
        self.report(account, id, usage, UsageSource::Upstream);
    }

    fn report(
        &mut self,
        account: &AccountId,
        reservation: CommandId,
        usage: Usage,
        source: UsageSource,
    ) {
        let report = Report {
            usage,
            upstream: "up".to_owned(),
            source,
            finish: Some("stop".to_owned()),
            timings: Timings {
                first_byte_ms: 3,
                total_ms: 11,
            },
        };
        let command = Settle {
            id: self.id(),
            account: account.clone(),
            reservation: reservation.into(),
            report,
            actor: Actor::key(&KeyId::new("k1").unwrap()),
        };
        self.send(Request::Settle(command, Ack::Durable));
    }

    fn resize(&mut self, account: &AccountId, reservation: CommandId, output_tokens: u64) {
        let command = Resize {
            id: self.id(),
            account: account.clone(),
            reservation: reservation.into(),
            input_tokens: 10,
            output_tokens,
            actor: Actor::key(&KeyId::new("k1").unwrap()),
        };
        self.send(Request::Resize(command));
    }

    fn release(&mut self, account: &AccountId, reservation: CommandId) {
        let command = Release {
            id: self.id(),
            account: account.clone(),
            reservation: reservation.into(),
            reason: "the client left".to_owned(),
            actor: Actor::system("gateway"),
        };
        self.send(Request::Release(command));
    }

    /// Holds and their ends.
    fn live(&mut self, account: &AccountId) {
        let mut first = self.reserve(account, "k1", (20, 30));
        first.end_user = Some(EndUserId::new("eve").unwrap());
        first.run = Some(RunId::new("label").unwrap());
        let first = self.take(first);
        self.resize(account, first, 50);
        self.resize(account, first, 40);
        self.settle(account, first, (20, 70));
        let second = self.reserve(account, "k1", (30, 30));
        let second = self.take(second);
        self.release(account, second);
        for (source, model) in [
            (UsageSource::Counted, "small"),
            (UsageSource::Hold, "large"),
            (UsageSource::Neuron, "small"),
        ] {
            let mut reserve = self.reserve(account, "k2", (25, 15));
            reserve.model = Some(ModelId::new(model).unwrap());
            let id = self.take(reserve);
            let usage = Usage {
                input_tokens: 25,
                output_tokens: 5,
                ..Usage::default()
            };
            self.report(account, id, usage, source);
        }
        self.short(account);
        self.run(account);
    }

    /// What does not fit: clamped, refused for each reason, and refused many times in a second.
    fn short(&mut self, account: &AccountId) {
        let mut clamped = self.reserve(account, "k2", (10, 900));
        clamped.on_short = OnShort::Clamp;
        let clamped = self.take(clamped);
        self.settle(account, clamped, (10, 20));
        let unsatisfiable = self.reserve(account, "k2", (10, 1_200));
        self.take(unsatisfiable);
        let mut unpriced = self.reserve(account, "k1", (1, 1));
        unpriced.model = Some(ModelId::new("nobody-knows").unwrap());
        self.take(unpriced);
        let holding = self.reserve(account, "k3", (50, 50));
        let holding = self.take(holding);
        let mut held = self.reserve(account, "k3", (50, 50));
        held.wait_ms = 200;
        self.take(held);
        self.wait(300);
        self.settle(account, holding, (50, 45));
        for _ in 0..5 {
            let spent = self.reserve(account, "k3", (50, 50));
            self.submit(Request::Reserve(spent));
        }
        self.write();
        self.wait(2_000);
    }

    /// A run with a budget, its requests, and its end by hand; another that ends by its deadline.
    fn run(&mut self, account: &AccountId) {
        for (run, closes) in [("r1", true), ("r2", false)] {
            let mut opening = self.reserve(account, "k2", (0, 0));
            opening.model = None;
            opening.run = Some(RunId::new(run).unwrap());
            opening.budget =
                Some(Budget::new([(Meter::Tokens, 120), (Meter::Cost, 400_000)]).unwrap());
            let opening = self.take(opening);
            let mut inside = self.reserve(account, "k2", (20, 20));
            inside.run = Some(RunId::new(run).unwrap());
            let inside = self.take(inside);
            self.settle(account, inside, (20, 90));
            if closes {
                self.release(account, opening);
            }
        }
    }

    /// The second epoch: expiries and what comes late, corrections, and the end of keys and caps.
    fn live_on(&mut self, account: &AccountId) {
        let lost = self.reserve(account, "k1", (5, 15));
        let lost = self.take(lost);
        let mut free = self.reserve(account, "k1", (5, 5));
        free.on_unknown = OnUnknown::Release;
        let free = self.take(free);
        let forgotten = self.reserve(account, "k1", (3, 3));
        self.take(forgotten);
        self.wait(MINUTE_MS + 2_000);
        self.settle(account, lost, (5, 10));
        self.settle(account, free, (5, 9));
        let cap = |cap: &str| CapId::new(cap).unwrap();
        let reason = Some("paid".to_owned());
        let (balance, amount) = (cap("balance"), 1_000);
        self.change(
            account,
            Change::Credit {
                cap: balance,
                amount,
                reason,
            },
        );
        for delta in [-25, 60] {
            let reason = "a mistake".to_owned();
            let cap = cap("balance");
            self.change(account, Change::Adjust { cap, delta, reason });
        }
        let mut lowered = caps().swap_remove(0);
        lowered.limit = 150;
        self.change(account, Change::SetCap(lowered));
        self.change(account, Change::RemoveCap { cap: cap("soft") });
        let reason = Some("leaked".to_owned());
        let key = KeyId::new("k3").unwrap();
        self.change(account, Change::RevokeKey { key, reason });
        let open = self.reserve(account, "k2", (2, 4));
        self.take(open);
    }
}

/// Every scope, meter and window.
fn caps() -> Vec<CapSpec> {
    use {Meter::*, Scope::Account, Window::Balance};
    let key = |key: &str| Scope::Key(KeyId::new(key).unwrap());
    let calendar = |period| Window::Calendar { period };
    let minute = Window::Rolling { seconds: 60 };
    let small = Scope::Model(ModelId::new("small").unwrap());
    let team = Scope::Team(TeamId::new("team").unwrap());
    let label = Scope::Run(RunId::new("label").unwrap());
    let eve = Scope::EndUser(EndUserId::new("eve").unwrap());
    vec![
        hard("balance", Account, Tokens, Balance, 2_000),
        hard("money", Account, Cost, Balance, 9_000_000),
        hard("hour", team, InputTokens, calendar(Period::Hour), 5_000),
        hard("day", small, OutputTokens, calendar(Period::Day), 4_000),
        hard("week", label, Tokens, calendar(Period::Week), 3_000),
        hard("month", eve, Cost, calendar(Period::Month), 8_000_000),
        hard("minute", key("k1"), Requests, minute, 50),
        hard("rolling", key("k2"), Tokens, minute, 700),
        hard("at-once", key("k2"), Concurrency, Balance, 3),
        hard("little", key("k3"), Tokens, Balance, 120),
        CapSpec {
            hard: false,
            ..hard("soft", Account, OutputTokens, Balance, 100)
        },
    ]
}

fn hard(cap: &str, scope: Scope, meter: Meter, window: Window, limit: u64) -> CapSpec {
    CapSpec {
        cap: CapId::new(cap).unwrap(),
        scope,
        meter,
        window,
        limit,
        hard: true,
        thresholds: vec![50, 90],
    }
}
