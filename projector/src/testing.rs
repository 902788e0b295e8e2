//! Commits for tests, written as lists of events: genesis comes first by itself.

use seatbelt_ledger::partition::PartitionState;
use seatbelt_schemas::{
    cap::CapSpec,
    commit::{ChainHash, Commit},
    event::{
        AccountOpened, Asked, Event, EventBody, Genesis, OnShort, OnUnknown, Report, Reserved,
        Settled, StoredEvent, Timings, UsageSource,
    },
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ReservationId},
    meter::{Amounts, Meter},
    position::{Epoch, Partition, Position},
    scope::{Scope, Scopes},
    usage::Usage,
    window::Window,
};

/// Time of the first commit; each next one is 10 ms later.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// An event without its place.
pub(crate) type Body = (AccountId, EventBody);

/// The commits of partition 00, the first one opened by genesis.
pub(crate) fn commits(lists: &[&[Body]]) -> Vec<Commit> {
    commits_of(Partition(0), lists)
}

pub(crate) fn commits_of(partition: Partition, lists: &[&[Body]]) -> Vec<Commit> {
    let genesis = Genesis {
        ledger: LedgerId::new("ledger-1").unwrap(),
        partition: partition.0,
        partitions: 1,
    };
    let genesis = (AccountId::system(), genesis.into());
    let (mut position, mut prev) = (Position(0), ChainHash::default());
    let mut state = PartitionState::new(partition);
    let mut commits = Vec::new();
    for (index, list) in lists.iter().enumerate() {
        let at_ms = START_MS + index as u64 * 10;
        let first_position = position.next();
        let first = (index == 0).then_some(&genesis);
        let events = first.into_iter().chain(*list).map(|(account, body)| {
            position = position.next();
            let event = Event {
                position,
                at_ms,
                account: account.clone(),
                cause: CommandId::from_parts(at_ms, u128::from(position.0)),
                actor: Actor::system("test"),
                body: with_evidence(&state, account, body, at_ms),
            };
            state.apply(&event);
            StoredEvent::new(event)
        });
        let commit = Commit {
            partition,
            epoch: Epoch(1),
            first_position,
            prev,
            at_ms,
            events: events.collect(),
            unknown: None,
        };
        prev = ChainHash::of(&commit.encode());
        commits.push(commit);
    }
    commits
}

/// A reserve carries what it met, as the writer's do.
fn with_evidence(
    state: &PartitionState,
    account: &AccountId,
    body: &EventBody,
    at_ms: u64,
) -> EventBody {
    match (body.clone(), state.account(account)) {
        (EventBody::Reserved(mut data), Some(known)) => {
            let caps = known.matching(&data.scopes).map(|cap| cap.evidence(at_ms));
            data.caps = caps.collect();
            data.into()
        }
        (body, _) => body,
    }
}

fn account(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

pub(crate) fn opened(id: &str) -> Body {
    (account(id), AccountOpened::default().into())
}

/// A balance of tokens on the account.
pub(crate) fn capped(id: &str, limit: u64) -> Body {
    let spec = CapSpec {
        cap: CapId::new("cap").unwrap(),
        scope: Scope::Account,
        meter: Meter::Tokens,
        window: Window::Balance,
        limit,
        hard: true,
        thresholds: Vec::new(),
    };
    (account(id), spec.into())
}

fn scopes() -> Scopes {
    Scopes {
        key: KeyId::new("key").unwrap(),
        team: None,
        model: None,
        run: None,
        end_user: None,
    }
}

pub(crate) fn reservation(number: u64) -> ReservationId {
    ReservationId::from_parts(START_MS, u128::from(number))
}

pub(crate) fn reserved(id: &str, number: u64, tokens: u64) -> Body {
    let asked = Asked {
        input_tokens: 0,
        output_tokens: tokens,
        tool_calls: 0,
        deadline_ms: START_MS + 60_000,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
    };
    let reserved = Reserved {
        uncovered: false,
        reservation: reservation(number),
        scopes: scopes().into(),
        asked,
        hold: Amounts::request(0, tokens, None),
        price: None,
        multiplier_ppm: None,
        budget: None,
        within: None,
        caps: Vec::new(),
        attempt: None,
    };
    (account(id), reserved.into())
}

pub(crate) fn settled(id: &str, number: u64, tokens: u64) -> Body {
    let report = Report {
        usage: Usage {
            output_tokens: tokens,
            ..Usage::default()
        },
        upstream: "mock".to_owned(),
        source: UsageSource::Upstream,
        finish: None,
        timings: Timings::default(),
    };
    let settled = Settled {
        reservation: reservation(number),
        scopes: scopes().into(),
        report,
        model: None,
        charge: Amounts::request(0, tokens, None),
        price: None,
        multiplier_ppm: None,
        reserved_at_ms: START_MS,
        late: false,
        attempt: None,
    };
    (account(id), settled.into())
}
