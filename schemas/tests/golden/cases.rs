//! What the golden files say: for each kind the least that it can carry, and everything it can.

use seatbelt_schemas::{
    budget::Budget,
    cap::{CapEvidence, CapSpec, THRESHOLDS_DEFAULT},
    commit::{ChainHash, Commit},
    event::{
        AccountOpened, Adjusted, Adopted, Asked, Attempt, CapRemoved, Credited, Event, EventBody,
        Expired, Genesis, KeyIssued, KeyRevoked, OnShort, OnUnknown, Overrun, RefusalReason,
        Refused, Released, Report, Reserved, Resized, Settled, StoredEvent, ThresholdCrossed,
        Timings, UsageSource, WriterStarted,
    },
    ids::{
        AccountId, Actor, CapId, CommandId, EndUserId, KeyId, LedgerId, ModelId, NeuronId,
        ReservationId, RunId, TeamId,
    },
    meter::{Amounts, Meter},
    position::{Epoch, Partition, Position},
    price::{LongContext, Price, Rates},
    scope::{Scope, Scopes},
    skipped::{Skipped, Stray},
    usage::{NeuronOutcome, NeuronUsage, Usage, UsageEvent},
    window::{Period, Window},
};
use serde_json::json;

/// 2026-11-20T12:00:00Z.
const AT_MS: u64 = 1_795_176_000_000;

/// One golden file by its name, and what it holds.
pub(crate) type Case<T> = (String, T);

pub(crate) fn events() -> Vec<Case<Event>> {
    let all = basic()
        .into_iter()
        .map(|body| (body.kind().to_owned(), body));
    let full = full()
        .into_iter()
        .map(|body| (format!("{}-full", body.kind()), body));
    all.chain(full)
        .zip(1..)
        .map(|((name, body), number)| (name, event(number, body)))
        .collect()
}

pub(crate) fn commits() -> Vec<Case<Commit>> {
    let basic = basic();
    let first = commit(0, 1, ChainHash::default(), &basic[..2]);
    let second = commit(7, 3, ChainHash::of(&first.encode()), &full()[4..8]);
    vec![
        ("commit".to_owned(), first),
        ("commit-full".to_owned(), second),
    ]
}

pub(crate) fn usage_events() -> Vec<Case<UsageEvent>> {
    let basic = UsageEvent {
        v: UsageEvent::VERSION,
        reservation: "req-1".to_owned(),
        account: None,
        key: None,
        model: None,
        neuron: NeuronId::new("neuron-1").unwrap(),
        device: "cpu".to_owned(),
        usage: NeuronUsage::default(),
        outcome: NeuronOutcome::Rejected,
        queued_ms: 0,
        prefill_ms: 0,
        decode_ms: 0,
        at_ms: AT_MS,
    };
    let full = UsageEvent {
        reservation: reservation(7).to_string(),
        account: Some(AccountId::new("acct-1").unwrap()),
        key: Some(key()),
        model: Some(model()),
        device: "cuda".to_owned(),
        usage: NeuronUsage {
            input_tokens: 1200,
            cached_input_tokens: 1000,
            output_tokens: 345,
        },
        outcome: NeuronOutcome::Completed,
        queued_ms: 3,
        prefill_ms: 45,
        decode_ms: 678,
        ..basic.clone()
    };
    vec![
        ("usage_event".to_owned(), basic),
        ("usage_event-full".to_owned(), full),
    ]
}

fn event(number: u64, body: EventBody) -> Event {
    let system = matches!(
        body,
        EventBody::Genesis(_) | EventBody::WriterStarted(_) | EventBody::PriceSet(_)
    );
    Event {
        position: Position(number),
        at_ms: AT_MS + number,
        account: if system {
            AccountId::system()
        } else {
            AccountId::new("acct-1").unwrap()
        },
        cause: CommandId::from_parts(AT_MS, u128::from(number)),
        actor: if system {
            Actor::system("writer")
        } else {
            Actor::key(&key())
        },
        body,
    }
}

fn commit(partition: u8, first: u64, prev: ChainHash, bodies: &[EventBody]) -> Commit {
    let events = bodies
        .iter()
        .zip(first..)
        .map(|(body, number)| StoredEvent::new(event(number, body.clone())));
    let events: Vec<StoredEvent> = events.collect();
    Commit {
        partition: Partition(partition),
        epoch: Epoch(first),
        first_position: Position(first),
        prev,
        at_ms: AT_MS + first + bodies.len() as u64,
        events,
        unknown: None,
    }
}

fn key() -> KeyId {
    KeyId::new("key-1").unwrap()
}

fn model() -> ModelId {
    ModelId::new("vendor/model-1:latest").unwrap()
}

fn cap(text: &str) -> CapId {
    CapId::new(text).unwrap()
}

fn reservation(number: u64) -> ReservationId {
    ReservationId::from_parts(AT_MS, u128::from(number))
}

fn key_alone() -> Scopes {
    Scopes {
        key: key(),
        team: None,
        model: None,
        run: None,
        end_user: None,
    }
}

fn all_scopes() -> Scopes {
    Scopes {
        key: key(),
        team: Some(TeamId::new("team-1").unwrap()),
        model: Some(model()),
        run: Some(RunId::new("run-1").unwrap()),
        end_user: Some(EndUserId::new("Zoë <zoe@example.org>").unwrap()),
    }
}

fn asked() -> Asked {
    Asked {
        input_tokens: 10,
        output_tokens: 20,
        tool_calls: 0,
        deadline_ms: AT_MS + 60_000,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
    }
}

fn asked_in_full() -> Asked {
    Asked {
        on_short: OnShort::Clamp,
        on_unknown: OnUnknown::Release,
        ..asked()
    }
}

fn hold() -> Amounts {
    Amounts::request(10, 20, None)
}

fn priced(cost: u64) -> Amounts {
    Amounts::request(10, 20, Some(cost))
}

fn evidence() -> Vec<CapEvidence> {
    vec![CapEvidence {
        cap: cap("key/key-1/tokens/balance"),
        limit: 100,
        spent: 60,
        held: 0,
    }]
}

fn evidence_in_full() -> Vec<CapEvidence> {
    let money = CapEvidence {
        cap: cap("money"),
        limit: 1 << 62,
        spent: 25_000_000_000,
        held: 4_294_967_296,
    };
    evidence().into_iter().chain([money]).collect()
}

fn report() -> Report {
    Report {
        usage: Usage {
            input_tokens: 10,
            output_tokens: 5,
            ..Usage::default()
        },
        upstream: "mock".to_owned(),
        source: UsageSource::Upstream,
        finish: None,
        timings: Timings::default(),
    }
}

fn report_in_full() -> Report {
    Report {
        usage: Usage {
            input_tokens: 1200,
            cached_input_tokens: 1000,
            cache_write_tokens: 100,
            output_tokens: 345,
            reasoning_tokens: 300,
            ..Usage::default()
        },
        upstream: "neuron-1".to_owned(),
        source: UsageSource::Neuron,
        finish: Some("stop".to_owned()),
        timings: Timings {
            first_byte_ms: 120,
            total_ms: 3456,
        },
    }
}

fn settled() -> Settled {
    Settled {
        reservation: reservation(1),
        scopes: key_alone().into(),
        report: report(),
        model: None,
        charge: Amounts::request(10, 5, None),
        price: None,
        multiplier_ppm: None,
        reserved_at_ms: AT_MS,
        late: false,
        attempt: None,
    }
}

/// Read, not built: what a later build adds is absent here.
fn refused() -> Refused {
    let least = json!({
        "reservation": reservation(1),
        "scopes": key_alone(),
        "asked": asked(),
        "want": hold(),
        "reason": RefusalReason::Spent,
        "cap": "key/key-1/tokens/balance",
        "caps": evidence(),
    });
    serde_json::from_value(least).unwrap()
}

fn cap_set() -> CapSpec {
    CapSpec {
        cap: cap("account/tokens/balance"),
        scope: Scope::Account,
        meter: Meter::Tokens,
        window: Window::Balance,
        limit: 100,
        hard: true,
        thresholds: THRESHOLDS_DEFAULT.to_vec(),
    }
}

/// The least that each kind carries, in the order of the contract.
fn basic() -> Vec<EventBody> {
    [
        basic_ledger_and_keys(),
        basic_caps_and_prices(),
        basic_reserves(),
        basic_ends(),
    ]
    .concat()
}

fn basic_ledger_and_keys() -> Vec<EventBody> {
    vec![
        Genesis {
            ledger: LedgerId::new("ledger-1").unwrap(),
            partition: 0,
            partitions: 4,
        }
        .into(),
        WriterStarted {
            epoch: Epoch(1),
            writer: "host-1".to_owned(),
            version: "0.1.0".to_owned(),
            adopted: None,
            skipped: None,
        }
        .into(),
        AccountOpened::default().into(),
        KeyIssued {
            key: key(),
            team: None,
            secret_sha256: None,
        }
        .into(),
        KeyRevoked {
            key: key(),
            reason: None,
        }
        .into(),
    ]
}

fn basic_caps_and_prices() -> Vec<EventBody> {
    vec![
        cap_set().into(),
        CapRemoved {
            cap: cap("account/tokens/balance"),
        }
        .into(),
        Credited {
            cap: cap("account/tokens/balance"),
            amount: 50,
            reason: None,
        }
        .into(),
        Adjusted {
            cap: cap("account/tokens/balance"),
            delta: 1,
            reason: "audit".to_owned(),
        }
        .into(),
        Price {
            version: 1,
            ..Price::of(model(), Rates::flat(150_000, 600_000))
        }
        .into(),
    ]
}

fn basic_reserves() -> Vec<EventBody> {
    vec![
        Reserved {
            uncovered: false,
            reservation: reservation(1),
            scopes: key_alone().into(),
            asked: asked(),
            hold: hold(),
            price: None,
            multiplier_ppm: None,
            budget: None,
            within: None,
            caps: Vec::new(),
            attempt: None,
        }
        .into(),
        Resized {
            uncovered: false,
            reservation: reservation(1),
            key: key(),
            hold: hold(),
            caps: Vec::new(),
        }
        .into(),
        refused().into(),
    ]
}

fn basic_ends() -> Vec<EventBody> {
    vec![
        settled().into(),
        Released {
            reservation: reservation(1),
            key: key(),
            reason: "upstream unreachable".to_owned(),
            replaced_by: None,
        }
        .into(),
        Expired {
            reservation: reservation(1),
            key: key(),
            policy: OnUnknown::ChargeHold,
            charge: hold(),
            reserved_at_ms: AT_MS,
        }
        .into(),
        Overrun {
            reservation: reservation(1),
            key: key(),
            above: Amounts::default(),
        }
        .into(),
        ThresholdCrossed {
            cap: cap("account/tokens/balance"),
            percent: 50,
            limit: 100,
            spent: 50,
        }
        .into(),
    ]
}

/// Every field of each kind, with values as wide as they can be.
fn full() -> Vec<EventBody> {
    [
        full_ledger_and_keys(),
        full_caps_and_prices(),
        full_reserves(),
        full_ends(),
    ]
    .concat()
}

fn full_ledger_and_keys() -> Vec<EventBody> {
    vec![
        Genesis {
            ledger: LedgerId::new("01JD3W0000000000000000000L").unwrap(),
            partition: 99,
            partitions: 100,
        }
        .into(),
        WriterStarted {
            epoch: Epoch(u64::from(u32::MAX) + 1),
            writer: "höst-1 pid 4711".to_owned(),
            version: "1.0.0-rc.1+build".to_owned(),
            adopted: None,
            skipped: None,
        }
        .into(),
        AccountOpened::default().into(),
        KeyIssued {
            key: key(),
            team: Some(TeamId::new("team-1").unwrap()),
            secret_sha256: Some("ab".repeat(32)),
        }
        .into(),
        KeyRevoked {
            key: key(),
            reason: Some("leaked".to_owned()),
        }
        .into(),
    ]
}

fn full_caps_and_prices() -> Vec<EventBody> {
    let rates = |base: u64| Rates {
        input: base,
        cached_input: base + 1,
        cache_write: base + 2,
        output: base + 3,
        reasoning: base + 4,
        cache_write_long: None,
    };
    vec![
        CapSpec {
            scope: Scope::EndUser(EndUserId::new("Zoë").unwrap()),
            meter: Meter::Concurrency,
            window: Window::Rolling { seconds: 3600 },
            limit: 1 << 62,
            hard: false,
            thresholds: vec![1, 90, 100, 200],
            ..cap_set()
        }
        .into(),
        CapRemoved {
            cap: cap("a cap, named by a person: 50 % off"),
        }
        .into(),
        Credited {
            cap: cap("account/tokens/balance"),
            amount: 1 << 62,
            reason: Some("invoice 2026-11".to_owned()),
        }
        .into(),
        Adjusted {
            cap: cap("account/tokens/balance"),
            delta: -(1 << 62),
            reason: "double charge of 2026-11-19".to_owned(),
        }
        .into(),
        Price {
            version: u32::MAX,
            long_context: Some(LongContext {
                above_input_tokens: 200_000,
                rates: rates(2_000_000_000),
            }),
            ..Price::of(model(), rates(1_000_000_000))
        }
        .into(),
    ]
}

fn full_reserves() -> Vec<EventBody> {
    vec![
        Reserved {
            uncovered: false,
            reservation: reservation(2),
            scopes: all_scopes().into(),
            asked: asked_in_full(),
            hold: priced(25_000_000_000),
            price: Some(3),
            multiplier_ppm: None,
            budget: None,
            within: None,
            caps: evidence_in_full(),
            attempt: None,
        }
        .into(),
        Resized {
            uncovered: false,
            reservation: reservation(2),
            key: key(),
            hold: priced(26_000_000_000),
            caps: evidence_in_full(),
        }
        .into(),
        Refused {
            scopes: all_scopes().into(),
            asked: asked_in_full(),
            want: priced(25_000_000_000),
            price: Some(3),
            reason: RefusalReason::Held,
            resets_at_ms: Some(AT_MS + 3_600_000),
            caps: evidence_in_full(),
            count: 70_000,
            ..refused()
        }
        .into(),
    ]
}

fn full_ends() -> Vec<EventBody> {
    vec![
        Settled {
            scopes: all_scopes().into(),
            report: report_in_full(),
            model: Some(model()),
            charge: Amounts::request(1200, 345, Some(1_234_567)),
            price: Some(3),
            late: true,
            ..settled()
        }
        .into(),
        Released {
            reservation: reservation(2),
            key: key(),
            reason: "the caller left before the answer".to_owned(),
            replaced_by: None,
        }
        .into(),
        Expired {
            reservation: reservation(2),
            key: key(),
            policy: OnUnknown::Release,
            charge: Amounts {
                cost: Some(0),
                ..Amounts::zero()
            },
            reserved_at_ms: AT_MS,
        }
        .into(),
        Overrun {
            reservation: reservation(2),
            key: key(),
            above: Amounts {
                requests: 0,
                tokens: 7,
                input_tokens: 0,
                output_tokens: 7,
                cost: Some(4200),
            },
        }
        .into(),
        ThresholdCrossed {
            cap: cap("month"),
            percent: 200,
            limit: 0,
            spent: u64::MAX,
        }
        .into(),
    ]
}

/// Windows, scopes and meters that the files above leave out, one `cap_set` each.
pub(crate) fn every_cap() -> Vec<Case<Event>> {
    use Period::{Day, Hour, Month, Week};
    let id = "id-1";
    let scopes = [
        Scope::Team(TeamId::new(id).unwrap()),
        Scope::Key(KeyId::new(id).unwrap()),
        Scope::Model(ModelId::new(id).unwrap()),
        Scope::Run(RunId::new(id).unwrap()),
    ];
    let meters = [
        Meter::Requests,
        Meter::InputTokens,
        Meter::OutputTokens,
        Meter::Cost,
    ];
    let periods = [Hour, Day, Week, Month];
    let parts = scopes.into_iter().zip(meters).zip(periods);
    parts
        .zip(100..)
        .map(|(((scope, meter), period), number)| {
            let name = format!("cap_set-{}", scope.kind());
            let window = Window::Calendar { period };
            let spec = CapSpec {
                scope,
                meter,
                window,
                ..cap_set()
            };
            (name, event(number, spec.into()))
        })
        .collect()
}

/// Refusals that were written as one, later than the last of them was decided.
pub(crate) fn refused_merged() -> Case<Event> {
    let mut fields = serde_json::to_value(refused()).unwrap();
    fields["count"] = json!(250);
    fields["decided_at_ms"] = json!(AT_MS + 100);
    let refused: Refused = serde_json::from_value(fields).unwrap();
    ("refused-merged".to_owned(), event(104, refused.into()))
}

/// A refusal that says what its cap was, besides the numbers.
pub(crate) fn refused_terms() -> Case<Event> {
    let mut fields = serde_json::to_value(refused()).unwrap();
    fields["terms"] = json!({
        "scope": Scope::Key(key()),
        "meter": Meter::Tokens,
        "window": Window::Rolling { seconds: 3600 },
        "resets_at_ms": AT_MS + 3_600_000,
    });
    let refused: Refused = serde_json::from_value(fields).unwrap();
    ("refused-terms".to_owned(), event(105, refused.into()))
}

/// A writer that began on an operator's word.
pub(crate) fn adopted() -> Case<Event> {
    let started = WriterStarted {
        epoch: Epoch(7),
        writer: "host-1".to_owned(),
        version: "0.1.0".to_owned(),
        adopted: Some(Adopted {
            end: 41,
            reason: "the journal ends at sequence 41".to_owned(),
            by: "operator:ada".to_owned(),
        }),
        skipped: None,
    };
    (
        "writer_started-adopted".to_owned(),
        event(107, started.into()),
    )
}

/// A writer that began behind messages that an operator had skipped.
pub(crate) fn skipped() -> Case<Event> {
    let started = WriterStarted {
        epoch: Epoch(8),
        writer: "host-1".to_owned(),
        version: "0.1.0".to_owned(),
        adopted: None,
        skipped: Some(Skipped {
            messages: vec![Stray::of(42, b"hello"), Stray::of(43, b"")],
            reason: "the messages at 42 and 43 are no commits".to_owned(),
            by: "operator:ada".to_owned(),
        }),
    };
    (
        "writer_started-skipped".to_owned(),
        event(108, started.into()),
    )
}

/// A price that says all it can, and a settlement with tokens that stay in a cache for an hour.
pub(crate) fn priced_in_full() -> Vec<Case<Event>> {
    let rates = |base: u64| Rates {
        cache_write_long: Some(base * 2),
        ..Rates::flat(base, base * 4)
    };
    let tier = |above_input_tokens, base| LongContext {
        above_input_tokens,
        rates: rates(base),
    };
    let price = Price {
        version: 2,
        long_context: Some(tier(128_000, 2_000_000)),
        tiers: vec![tier(256_000, 3_000_000), tier(1_000_000, 2_500_000)],
        multiplier_ppm: Some(1_100_000),
        fee_per_request: Some(5_000_000),
        ..Price::of(model(), rates(1_000_000))
    };
    let report = Report {
        usage: Usage {
            input_tokens: 100,
            cache_write_tokens: 90,
            cache_write_long_tokens: 60,
            output_tokens: 5,
            ..Usage::default()
        },
        ..report()
    };
    let settled = Settled {
        report,
        ..settled()
    };
    vec![
        ("price_set-terms".to_owned(), event(108, price.into())),
        ("settled-long_write".to_owned(), event(109, settled.into())),
    ]
}

/// A price with a fee for each call of the provider's tools, a hold of such a request, and its settlement.
pub(crate) fn tool_calls() -> Vec<Case<Event>> {
    let price = Price {
        version: 3,
        fee_per_tool_call: Some(10_000_000),
        ..Price::of(model(), Rates::flat(1_000_000, 4_000_000))
    };
    let reserved = Reserved {
        reservation: reservation(110),
        scopes: key_alone().into(),
        asked: Asked {
            tool_calls: 5,
            ..asked()
        },
        hold: priced(50_000_090),
        price: Some(3),
        multiplier_ppm: None,
        budget: None,
        within: None,
        attempt: None,
        uncovered: false,
        caps: evidence(),
    };
    let refused = Refused {
        asked: reserved.asked,
        want: reserved.hold,
        price: Some(3),
        ..refused()
    };
    let mut report = report();
    report.usage.tool_calls = 2;
    let settled = Settled {
        report,
        charge: Amounts::request(10, 5, Some(20_000_030)),
        price: Some(3),
        ..settled()
    };
    vec![
        ("price_set-tool_call".to_owned(), event(110, price.into())),
        ("refused-tool_calls".to_owned(), event(113, refused.into())),
        (
            "reserved-tool_calls".to_owned(),
            event(111, reserved.into()),
        ),
        ("settled-tool_calls".to_owned(), event(112, settled.into())),
    ]
}

/// An account that pays a tenth more, a hold and a refusal of it, and its settlement.
pub(crate) fn multiplied() -> Vec<Case<Event>> {
    let multiplier_ppm = Some(1_100_000);
    let opened = AccountOpened { multiplier_ppm };
    let reserved = Reserved {
        uncovered: false,
        reservation: reservation(114),
        scopes: key_alone().into(),
        asked: asked(),
        hold: priced(99),
        price: Some(3),
        multiplier_ppm,
        budget: None,
        within: None,
        caps: evidence(),
        attempt: None,
    };
    let refused = Refused {
        want: reserved.hold,
        price: Some(3),
        multiplier_ppm,
        ..refused()
    };
    let settled = Settled {
        charge: Amounts::request(10, 5, Some(33)),
        price: Some(3),
        multiplier_ppm,
        ..settled()
    };
    vec![
        (
            "account_opened-multiplier".to_owned(),
            event(114, opened.into()),
        ),
        (
            "reserved-multiplier".to_owned(),
            event(115, reserved.into()),
        ),
        ("refused-multiplier".to_owned(), event(116, refused.into())),
        ("settled-multiplier".to_owned(), event(117, settled.into())),
    ]
}

/// A run opened with its own budget, and one that was refused it.
pub(crate) fn budgets() -> Vec<Case<Event>> {
    let amounts = Budget::METERS
        .into_iter()
        .zip([40, 30_000, 20_000, 10_000, 1 << 62]);
    let budget = Budget::new(amounts).unwrap();
    let scopes = Scopes {
        run: Some(RunId::new("run-1").unwrap()),
        ..key_alone()
    };
    let asked = Asked {
        input_tokens: 0,
        output_tokens: 0,
        ..asked()
    };
    let reserved = Reserved {
        uncovered: false,
        reservation: reservation(105),
        scopes: scopes.clone().into(),
        asked,
        hold: budget.hold(),
        price: None,
        multiplier_ppm: None,
        budget: Some(budget),
        within: None,
        caps: evidence(),
        attempt: None,
    };
    let refused = Refused {
        scopes: scopes.into(),
        asked,
        want: budget.hold(),
        budget: Some(budget),
        ..refused()
    };
    vec![
        ("reserved-budget".to_owned(), event(105, reserved.into())),
        ("refused-budget".to_owned(), event(106, refused.into())),
    ]
}

/// The same taken out of another run.
pub(crate) fn nested_budgets() -> Vec<Case<Event>> {
    let within = Some(RunId::new("run-0").unwrap());
    let nested = |(name, event): Case<Event>| {
        let body = match event.body {
            EventBody::Reserved(mut data) => {
                data.within.clone_from(&within);
                data.into()
            }
            EventBody::Refused(mut data) => {
                data.within.clone_from(&within);
                data.into()
            }
            other => other,
        };
        (format!("{name}-within"), Event { body, ..event })
    };
    budgets().into_iter().map(nested).collect()
}

/// A hold that made room for another attempt, that one, and its settlement.
pub(crate) fn exchanged() -> Vec<Case<Event>> {
    let attempt = Some(Attempt {
        of: reservation(112),
        n: 2,
    });
    let released = Released {
        reservation: reservation(112),
        key: key(),
        reason: "another attempt took its place".to_owned(),
        replaced_by: Some(reservation(113)),
    };
    let reserved = Reserved {
        uncovered: false,
        reservation: reservation(113),
        scopes: key_alone().into(),
        asked: asked(),
        hold: Amounts::request(10, 20, None),
        price: None,
        multiplier_ppm: None,
        budget: None,
        within: None,
        attempt,
        caps: evidence(),
    };
    let settled = Settled {
        reservation: reservation(113),
        attempt,
        ..settled()
    };
    vec![
        ("released-exchanged".to_owned(), event(112, released.into())),
        ("reserved-attempt".to_owned(), event(113, reserved.into())),
        ("settled-attempt".to_owned(), event(114, settled.into())),
    ]
}

/// A run's requests under a cap that was lowered below what the run holds there.
pub(crate) fn uncovered() -> Vec<Case<Event>> {
    let scopes = Scopes {
        run: Some(RunId::new("run-1").unwrap()),
        ..key_alone()
    };
    let reserved = Reserved {
        reservation: reservation(115),
        scopes: scopes.clone().into(),
        asked: asked(),
        hold: Amounts::request(10, 20, None),
        price: None,
        multiplier_ppm: None,
        budget: None,
        within: None,
        attempt: None,
        uncovered: true,
        caps: evidence(),
    };
    let resized = Resized {
        reservation: reservation(115),
        key: key(),
        hold: Amounts::request(10, 30, None),
        uncovered: true,
        caps: evidence(),
    };
    let refused = Refused {
        scopes: scopes.into(),
        uncovered: true,
        ..refused()
    };
    vec![
        ("reserved-uncovered".to_owned(), event(115, reserved.into())),
        ("resized-uncovered".to_owned(), event(116, resized.into())),
        ("refused-uncovered".to_owned(), event(117, refused.into())),
    ]
}
