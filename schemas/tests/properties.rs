//! Laws of the wire: what is written reads back the same, and no bytes whatever make a reader panic.
#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use proptest::{collection::vec, option, prelude::*, sample::select};
use seatbelt_schemas::{
    amount::AMOUNT_MAX,
    budget::Budget,
    cap::{CapEvidence, CapSpec},
    command::{
        Admin, AdminOutcome, CommandError, Read, Release, Reserve, ReserveOutcome, Resize,
        Resolution, Settle, Standing,
    },
    commit::{ChainHash, Commit},
    event::{
        AccountOpened, Adjusted, Asked, CapRemoved, Credited, Event, EventBody, Expired, Genesis,
        KeyIssued, KeyRevoked, OnShort, OnUnknown, Overrun, RefusalReason, Refused, Released,
        Report, Reserved, Resized, Settled, StoredEvent, ThresholdCrossed, Timings, UsageSource,
        WriterStarted,
    },
    ids::{
        AccountId, Actor, CapId, CommandId, EndUserId, KeyId, LedgerId, ModelId, NeuronId,
        ReservationId, RunId, TeamId,
    },
    meter::{Amounts, Meter},
    neuron::NeuronRecord,
    position::{Epoch, Partition, Position},
    price::{LongContext, Price, Rates},
    scope::{Scope, Scopes},
    usage::{NeuronOutcome, NeuronUsage, Usage, UsageEvent},
    window::{Period, Window},
    wire,
};

macro_rules! ids {
    ($($name:ident: $type:ident = $pattern:literal;)*) => {
        $(fn $name() -> impl Strategy<Value = $type> {
            $pattern.prop_map(|text| $type::new(text).unwrap())
        })*
    };
}

ids! {
    account: AccountId = "[A-Za-z0-9_-]{1,64}";
    key: KeyId = "[A-Za-z0-9_-]{1,64}";
    team: TeamId = "[A-Za-z0-9_-]{1,64}";
    run: RunId = "[A-Za-z0-9_-]{1,64}";
    neuron: NeuronId = "[A-Za-z0-9_-]{1,64}";
    ledger: LedgerId = "[A-Za-z0-9_-]{1,64}";
    cap: CapId = "\\PC{1,60}";
    model: ModelId = "\\PC{1,60}";
    end_user: EndUserId = "\\PC{1,60}";
    actor: Actor = "\\PC{1,60}";
}

fn command_id() -> impl Strategy<Value = CommandId> {
    (0..1u64 << 48, any::<u128>()).prop_map(|(at_ms, random)| CommandId::from_parts(at_ms, random))
}

fn reservation() -> impl Strategy<Value = ReservationId> {
    command_id().prop_map(ReservationId::from)
}

fn window() -> impl Strategy<Value = Window> {
    use Period::{Day, Hour, Month, Week};
    prop_oneof![
        Just(Window::Balance),
        any::<u64>().prop_map(|seconds| Window::Rolling { seconds }),
        select(vec![Hour, Day, Week, Month]).prop_map(|period| Window::Calendar { period }),
    ]
}

fn meter() -> impl Strategy<Value = Meter> {
    use Meter::{Concurrency, Cost, InputTokens, OutputTokens, Requests, Tokens};
    select(vec![
        Requests,
        Tokens,
        InputTokens,
        OutputTokens,
        Cost,
        Concurrency,
    ])
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::Account),
        team().prop_map(Scope::Team),
        key().prop_map(Scope::Key),
        model().prop_map(Scope::Model),
        run().prop_map(Scope::Run),
        end_user().prop_map(Scope::EndUser),
    ]
}

prop_compose! {
    fn cap_spec()(cap in cap(), scope in scope(), meter in meter(), window in window(),
        limit in any::<u64>(), hard in any::<bool>(), thresholds in vec(any::<u8>(), 0..5)) -> CapSpec {
        CapSpec { cap, scope, meter, window, limit, hard, thresholds }
    }
}

prop_compose! {
    fn amounts()(counts in any::<[u64; 4]>(), cost in any::<Option<u64>>()) -> Amounts {
        let [requests, tokens, input_tokens, output_tokens] = counts;
        Amounts { requests, tokens, input_tokens, output_tokens, cost }
    }
}

prop_compose! {
    fn evidence()(cap in cap(), (limit, spent, held) in any::<(u64, u64, u64)>()) -> CapEvidence {
        CapEvidence { cap, limit, spent, held }
    }
}

prop_compose! {
    fn scopes()(key in key(), team in option::of(team()), model in option::of(model()),
        run in option::of(run()), end_user in option::of(end_user())) -> Scopes {
        Scopes { key, team, model, run, end_user }
    }
}

prop_compose! {
    fn asked()((input_tokens, output_tokens, deadline_ms, tool_calls) in any::<(u64, u64, u64, u64)>(),
        (clamps, releases) in any::<(bool, bool)>()) -> Asked {
        let on_short = if clamps { OnShort::Clamp } else { OnShort::Refuse };
        let on_unknown = if releases { OnUnknown::Release } else { OnUnknown::ChargeHold };
        Asked { input_tokens, output_tokens, tool_calls, deadline_ms, on_short, on_unknown }
    }
}

prop_compose! {
    fn usage()(counts in any::<[u64; 5]>(), (cache_write_long_tokens, tool_calls) in any::<(u64, u64)>()) -> Usage {
        let [input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens] = counts;
        Usage {
            input_tokens, cached_input_tokens, cache_write_tokens, cache_write_long_tokens, output_tokens,
            reasoning_tokens, tool_calls,
        }
    }
}

prop_compose! {
    fn report()(usage in usage(), upstream in ".{0,40}", finish in any::<Option<String>>(),
        source in select(vec![UsageSource::Neuron, UsageSource::Upstream, UsageSource::Counted, UsageSource::Hold]),
        (first_byte_ms, total_ms) in any::<(u64, u64)>()) -> Report {
        Report { usage, upstream, source, finish, timings: Timings { first_byte_ms, total_ms } }
    }
}

fn rates() -> impl Strategy<Value = Rates> {
    any::<([u64; 5], Option<u64>)>().prop_map(
        |([input, cached_input, cache_write, output, reasoning], cache_write_long)| Rates {
            input,
            cached_input,
            cache_write,
            output,
            reasoning,
            cache_write_long,
        },
    )
}

prop_compose! {
    fn price()(model in model(), version in any::<u32>(), rates in rates(),
        long in option::of((any::<u64>(), self::rates())), tiers in vec((any::<u64>(), self::rates()), 0..3),
        (multiplier_ppm, fee_per_request, fee_per_tool_call) in any::<(Option<u64>, Option<u64>, Option<u64>)>()) -> Price {
        let tier = |(above_input_tokens, rates)| LongContext { above_input_tokens, rates };
        let (long_context, tiers) = (long.map(tier), tiers.into_iter().map(tier).collect());
        Price { model, version, rates, long_context, tiers, multiplier_ppm, fee_per_request, fee_per_tool_call }
    }
}

fn budget() -> impl Strategy<Value = Budget> {
    let amount = (select(Budget::METERS.to_vec()), 1..=AMOUNT_MAX);
    vec(amount, 1..5).prop_map(|amounts| Budget::new(amounts).unwrap())
}

prop_compose! {
    fn reserved()(reservation in reservation(), scopes in scopes(), asked in asked(), hold in amounts(),
        (price, multiplier_ppm) in any::<(Option<u32>, Option<u64>)>(), budget in option::of(budget()), within in option::of(run()), caps in vec(evidence(), 0..5)) -> Reserved {
        Reserved { reservation, scopes: scopes.into(), asked, hold, price, multiplier_ppm, budget, within, caps, attempt: None, uncovered: false, }
    }
}

prop_compose! {
    fn refused()(reserved in reserved(), cap in cap(), resets_at_ms in any::<Option<u64>>(), count in any::<u64>(),
        reason in select(vec![RefusalReason::Spent, RefusalReason::Unsatisfiable, RefusalReason::Held, RefusalReason::Unpriced]),
    ) -> Refused {
        let Reserved { reservation, scopes, asked, hold: want, price, multiplier_ppm, budget, within, caps, .. } = reserved;
        let fields = serde_json::json!({
            "reservation": reservation, "scopes": scopes, "asked": asked, "want": want, "price": price, "budget": budget, "within": within,
            "multiplier_ppm": multiplier_ppm,
            "reason": reason, "cap": cap, "resets_at_ms": resets_at_ms, "caps": caps, "count": count,
            "decided_at_ms": resets_at_ms,
            "terms": resets_at_ms.map(|at_ms| serde_json::json!({
                "scope": {"kind": "account"}, "meter": "tokens", "window": {"kind": "balance"}, "resets_at_ms": at_ms,
            })),
        });
        serde_json::from_value(fields).unwrap()
    }
}

prop_compose! {
    fn settled()(reservation in reservation(), scopes in scopes(), report in report(), model in option::of(model()),
        charge in amounts(), (price, multiplier_ppm) in any::<(Option<u32>, Option<u64>)>(), reserved_at_ms in any::<u64>(), late in any::<bool>()) -> Settled {
        Settled { reservation, scopes: scopes.into(), report, model, charge, price, multiplier_ppm, reserved_at_ms, late, attempt: None, }
    }
}

prop_compose! {
    fn expired()(reservation in reservation(), key in key(), releases in any::<bool>(), charge in amounts(),
        reserved_at_ms in any::<u64>()) -> Expired {
        let policy = if releases { OnUnknown::Release } else { OnUnknown::ChargeHold };
        Expired { reservation, key, policy, charge, reserved_at_ms }
    }
}

/// What a later build might write: nested, with every type that JSON has.
fn unknown() -> impl Strategy<Value = EventBody> {
    let leaf = prop_oneof![
        Just(rmpv::Value::Nil),
        any::<bool>().prop_map(rmpv::Value::from),
        any::<i64>().prop_map(rmpv::Value::from),
        any::<u64>().prop_map(rmpv::Value::from),
        any::<String>().prop_map(rmpv::Value::from),
        vec(any::<u8>(), 0..20).prop_map(rmpv::Value::Binary),
    ];
    let data = leaf.prop_recursive(4, 32, 6, |inner| {
        let map = vec((".{0,8}".prop_map(rmpv::Value::from), inner.clone()), 0..6);
        prop_oneof![
            vec(inner, 0..6).prop_map(rmpv::Value::Array),
            map.prop_map(rmpv::Value::Map)
        ]
    });
    ("later_[a-z]{1,10}", data).prop_map(|(kind, data)| EventBody::Unknown { kind, data })
}

fn body() -> impl Strategy<Value = EventBody> {
    prop_oneof![of_system(), of_operators(), of_requests()]
}

fn of_system() -> impl Strategy<Value = EventBody> {
    let text = || any::<String>();
    prop_oneof![
        (ledger(), any::<u8>(), any::<u8>()).prop_map(|(ledger, partition, partitions)| Genesis {
            ledger,
            partition,
            partitions
        }
        .into()),
        (any::<u64>(), text(), text()).prop_map(|(epoch, writer, version)| {
            let epoch = Epoch(epoch);
            WriterStarted {
                epoch,
                writer,
                version,
                adopted: None,
                skipped: None,
            }
            .into()
        }),
        price().prop_map(EventBody::from),
        unknown(),
    ]
}

fn of_operators() -> impl Strategy<Value = EventBody> {
    let text = || any::<String>();
    prop_oneof![
        any::<Option<u64>>().prop_map(|multiplier_ppm| AccountOpened { multiplier_ppm }.into()),
        (key(), option::of(team()), any::<Option<String>>()).prop_map(
            |(key, team, secret_sha256)| KeyIssued {
                key,
                team,
                secret_sha256
            }
            .into()
        ),
        (key(), any::<Option<String>>())
            .prop_map(|(key, reason)| KeyRevoked { key, reason }.into()),
        cap_spec().prop_map(EventBody::from),
        cap().prop_map(|cap| CapRemoved { cap }.into()),
        (cap(), any::<u64>(), any::<Option<String>>()).prop_map(|(cap, amount, reason)| Credited {
            cap,
            amount,
            reason
        }
        .into()),
        (cap(), any::<i64>(), text()).prop_map(|(cap, delta, reason)| Adjusted {
            cap,
            delta,
            reason
        }
        .into()),
    ]
}

fn of_requests() -> impl Strategy<Value = EventBody> {
    let text = || any::<String>();
    prop_oneof![
        reserved().prop_map(EventBody::from),
        refused().prop_map(EventBody::from),
        settled().prop_map(EventBody::from),
        expired().prop_map(EventBody::from),
        (reservation(), key(), amounts(), vec(evidence(), 0..5)).prop_map(
            |(reservation, key, hold, caps)| Resized {
                reservation,
                key,
                hold,
                uncovered: false,
                caps
            }
            .into()
        ),
        (reservation(), key(), text()).prop_map(|(reservation, key, reason)| Released {
            reservation,
            key,
            reason,
            replaced_by: None,
        }
        .into()),
        (reservation(), key(), amounts()).prop_map(|(reservation, key, above)| Overrun {
            reservation,
            key,
            above
        }
        .into()),
        (cap(), any::<u8>(), any::<u64>(), any::<u64>()).prop_map(
            |(cap, percent, limit, spent)| ThresholdCrossed {
                cap,
                percent,
                limit,
                spent
            }
            .into()
        ),
    ]
}

prop_compose! {
    fn event()(position in any::<u64>(), at_ms in any::<u64>(), account in account(), cause in command_id(),
        actor in actor(), body in body()) -> Event {
        Event { position: Position(position), at_ms, account, cause, actor, body }
    }
}

prop_compose! {
    fn commit()(partition in any::<u8>(), epoch in any::<u64>(), first in 1..u64::MAX - 1000, prev in any::<[u8; 32]>(),
        start_ms in 0..1u64 << 60, events in vec((event(), 0..1u64 << 40), 1..12)) -> Commit {
        let mut at_ms = start_ms;
        let events = events.into_iter().zip(first..).map(|((event, step), position)| {
            at_ms += step;
            StoredEvent::new(Event { position: Position(position), at_ms, ..event })
        });
        let events: Vec<StoredEvent> = events.collect();
        let (partition, epoch, first_position) = (Partition(partition), Epoch(epoch), Position(first));
        Commit { partition, epoch, first_position, prev: ChainHash(prev), at_ms, events, unknown: None }
    }
}

prop_compose! {
    fn usage_event()(reservation in ".{1,40}", account in option::of(account()), key in option::of(key()),
        model in option::of(model()), neuron in neuron(), device in "cpu|cuda", counts in any::<[u64; 7]>(),
        outcome in select(vec![NeuronOutcome::Completed, NeuronOutcome::Aborted, NeuronOutcome::Expired, NeuronOutcome::Rejected, NeuronOutcome::Failed]),
    ) -> UsageEvent {
        let [input_tokens, cached_input_tokens, output_tokens, queued_ms, prefill_ms, decode_ms, at_ms] = counts;
        let usage = NeuronUsage { input_tokens, cached_input_tokens, output_tokens };
        let v = UsageEvent::VERSION;
        UsageEvent { v, reservation, account, key, model, neuron, device, usage, outcome, queued_ms, prefill_ms, decode_ms, at_ms }
    }
}

proptest! {
    #[test]
    fn an_event_reads_back_as_it_was_written(event in event()) {
        let bytes = event.encode();
        let stored = StoredEvent::read(bytes.clone()).unwrap();
        prop_assert_eq!(&stored.event, &event);
        prop_assert_eq!(stored.event.encode(), bytes);
        let json = stored.to_json().unwrap();
        prop_assert_eq!(json["position"].as_u64(), Some(event.position.0));
        prop_assert_eq!(json["kind"].as_str(), Some(event.body.kind()));
    }

    #[test]
    fn what_is_written_is_what_rmp_serde_writes_and_reads(event in event()) {
        let body = wire::encode(&event.body);
        prop_assert_eq!(&body, &rmp_serde::to_vec_named(&event.body).unwrap());
        let bytes = event.encode();
        prop_assert_eq!(rmp_serde::from_slice::<Event>(&bytes).unwrap(), event);
        // the envelope ends with its data
        prop_assert_eq!(&bytes[bytes.len() - body.len()..], &body[..]);
    }

    #[test]
    fn numbers_of_every_width_are_written_as_rmp_serde_writes_them(
        (unsigned, signed, shift) in any::<(u64, i64, u8)>(), text in ".{0,300}", blob in vec(any::<u8>(), 0..300),
        list in vec(any::<Option<bool>>(), 0..20),
    ) {
        let shift = u32::from(shift) % 64;
        let value = (unsigned >> shift, signed >> shift, text, serde_bytes::ByteBuf::from(blob));
        macro_rules! same {
            ($value:expr) => {
                let bytes = wire::encode($value);
                prop_assert_eq!(&bytes, &rmp_serde::to_vec_named($value).unwrap());
            };
        }
        same!(&value.0);
        same!(&value.1);
        same!(&value.2);
        same!(&value.3);
        same!(&list);
        prop_assert_eq!(wire::decode::<u64>("number", &wire::encode(&value.0)).unwrap(), value.0);
        prop_assert_eq!(wire::decode::<i64>("number", &wire::encode(&value.1)).unwrap(), value.1);
        prop_assert_eq!(wire::decode::<String>("text", &wire::encode(&value.2)).unwrap(), value.2);
        prop_assert_eq!(wire::decode::<Vec<Option<bool>>>("list", &wire::encode(&list)).unwrap(), list);
    }

    #[test]
    fn a_commit_reads_back_as_it_was_written(commit in commit()) {
        let bytes = commit.encode();
        prop_assume!(bytes.len() <= seatbelt_schemas::commit::COMMIT_BYTES_MAX);
        let read = Commit::decode(&bytes).unwrap();
        prop_assert_eq!(&read, &commit);
        prop_assert_eq!(read.encode(), bytes);
    }

    #[test]
    fn a_usage_event_reads_back_as_it_was_written(event in usage_event()) {
        prop_assert_eq!(UsageEvent::decode(&event.encode()).unwrap(), event);
    }
}

/// Reads as every shape there is; what matters is that this returns, and reads only what rmp-serde reads.
fn read_as_everything(bytes: &[u8]) {
    fn read<T: serde::de::DeserializeOwned + Debug + PartialEq>(bytes: &[u8]) {
        if let Ok(found) = wire::decode::<T>("anything", bytes) {
            assert_eq!(rmp_serde::from_slice::<T>(bytes).unwrap(), found);
        }
    }
    read::<Event>(bytes);
    if let Ok(stored) = StoredEvent::read(bytes.to_vec().into()) {
        drop(stored.to_json());
    }
    drop(Event::decode(bytes));
    drop(Commit::decode(bytes));
    drop(UsageEvent::decode(bytes));
    read::<Reserve>(bytes);
    read::<Resize>(bytes);
    read::<Settle>(bytes);
    read::<Release>(bytes);
    read::<Read>(bytes);
    read::<Admin>(bytes);
    read::<Result<ReserveOutcome, CommandError>>(bytes);
    read::<Result<Resolution, CommandError>>(bytes);
    read::<Result<AdminOutcome, CommandError>>(bytes);
    read::<Result<Standing, CommandError>>(bytes);
    read::<NeuronRecord>(bytes);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..300)) {
        read_as_everything(&bytes);
    }

    #[test]
    fn no_damage_to_good_bytes_makes_a_reader_panic(
        commit in commit(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<prop::sample::Index>(),
    ) {
        let event = commit.events[0].bytes.to_vec();
        for good in [commit.encode().to_vec(), event] {
            let mut bad = good.clone();
            bad[at.index(good.len())] = with;
            read_as_everything(&bad);
            bad.truncate(cut.index(good.len()));
            read_as_everything(&bad);
        }
    }
}

#[test]
fn deep_nesting_and_false_lengths_are_errors() {
    let head = b"\x82\xa4kind\xa5later\xa4data";
    let deep = [head.as_slice(), &[0x91; 100_000], &[0xc0]].concat();
    for lie in [0xdd, 0xdf, 0xc6, 0xdb, 0xc9] {
        let false_length = [head.as_slice(), &[lie, 0xff, 0xff, 0xff, 0xff, 0x01]].concat();
        assert!(Event::decode(&false_length).is_err());
        read_as_everything(&false_length);
        read_as_everything(&false_length[head.len()..]);
    }
    assert!(Event::decode(&deep).is_err());
    read_as_everything(&deep);
    read_as_everything(&deep[head.len()..]);
}
