#![expect(
    clippy::print_stdout,
    reason = "the figures that the decision record has"
)]

use seatbelt_schemas::{
    budget::Budget,
    cap::CapSpec,
    event::{
        AccountOpened, Asked, Attempt, Event, EventBody, KeyIssued, OnShort, OnUnknown, Reserved,
    },
    ids::{Actor, CapId, CommandId, EndUserId, KeyId, ModelId, TeamId},
    meter::{Amounts, Meter},
    scope::{Scope, Scopes},
    window::Window,
};

use super::*;
use crate::account::{Cap, Key, RUN_DEPTH_MAX};

const AT_MS: u64 = 1_700_000_000_000;

fn account() -> AccountId {
    AccountId::new("large").unwrap()
}

fn scopes() -> Scopes {
    Scopes {
        key: KeyId::new("key").unwrap(),
        team: None,
        model: Some(ModelId::new("gpt-4o-mini").unwrap()),
        run: None,
        end_user: None,
    }
}

fn apply(state: &mut Account, body: impl Into<EventBody>) {
    state.apply(&Event {
        position: Position(u64::from(state.version()) + 1),
        at_ms: AT_MS,
        account: account(),
        cause: CommandId::from_parts(AT_MS, 1),
        actor: Actor::system("test"),
        body: body.into(),
    });
}

fn reserve(state: &mut Account, number: u64) {
    let asked = Asked {
        input_tokens: 1_200,
        output_tokens: 4_096,
        tool_calls: 0,
        deadline_ms: AT_MS + 60_000,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
    };
    let id = ReservationId::from_parts(AT_MS + number, u128::from(number) << 40);
    let reserved = Reserved {
        uncovered: false,
        reservation: id,
        scopes: scopes().into(),
        asked,
        hold: Amounts::request(1_200, 4_096, Some(31_000_000)),
        price: Some(1),
        multiplier_ppm: None,
        budget: None,
        within: None,
        caps: Vec::new(),
        attempt: None,
    };
    apply(state, reserved);
}

/// An account with one key, one cap, and so many open reservations.
fn holding(open: u64) -> Account {
    let mut state = Account::default();
    apply(&mut state, AccountOpened::default());
    let key = KeyIssued {
        key: KeyId::new("key").unwrap(),
        team: None,
        secret_sha256: None,
    };
    apply(&mut state, key);
    apply(&mut state, cap("all", Scope::Account, Window::Balance));
    (0..open).for_each(|number| reserve(&mut state, number));
    state
}

fn cap(id: &str, scope: Scope, window: Window) -> CapSpec {
    CapSpec {
        cap: CapId::new(id).unwrap(),
        scope,
        meter: Meter::Tokens,
        window,
        limit: 1 << 60,
        hard: true,
        thresholds: Vec::new(),
    }
}

fn written(state: &Account, standing: Option<&PiecesHead>) -> Written {
    let position = Position(u64::from(state.version()));
    Written::of(&account(), position, AT_MS, state, standing)
}

#[test]
fn a_small_account_stands_in_one_value_as_ever() {
    let state = holding(1_000);
    let written = written(&state, None);
    let position = Position(u64::from(state.version()));
    let as_ever = AccountSnapshot::encode(&account(), position, AT_MS, &state);
    assert_eq!((written.value, written.pieces.len()), (as_ever, 0));
}

#[test]
fn a_piece_has_its_bounds_and_there_are_few() {
    let written = written(&holding(20_000), None);
    let sizes: Vec<usize> = written
        .pieces
        .iter()
        .map(|(_, piece)| piece.len())
        .collect();
    assert!(
        sizes
            .iter()
            .all(|size| *size < PIECE_BYTES_MAX + CAP_BYTES_MAX)
    );
    assert!(sizes.len() <= written.size / PIECE_BYTES_MIN + KINDS);
    assert!(sizes.len() >= 50, "{}: they are cut by id", sizes.len());
}

/// Ids that differ in their last bits are picked as often as others: else pieces end by their size alone,
/// and one entry less moves all that follow.
#[test]
fn neighbours_are_picked_as_others_are() {
    let ids = (0..64_000u128).map(|number| ReservationId::from_parts(AT_MS, number));
    let picked = ids.filter(|id| is_picked(&id.bits().to_be_bytes())).count();
    assert!((800..1_200).contains(&picked), "{picked} of 64,000");
    let ids = (0..64_000).map(|number| format!("key-{number}"));
    let picked = ids.filter(|id| is_picked(id.as_bytes())).count();
    assert!((800..1_200).contains(&picked), "{picked} of 64,000");
}

/// One reservation more, one less, one changed: the pieces they stand in, the cap's, and the one whose
/// turn it is.
#[test]
fn only_what_changed_is_written() {
    let mut state = holding(20_000);
    let first = written(&state, None);
    let mut standing = first.head.unwrap();
    for (number, nth) in (20_000..20_050).zip((0..).step_by(300)) {
        reserve(&mut state, number);
        let id = *state.open().keys().nth(nth).unwrap();
        let released = seatbelt_schemas::event::Released {
            reservation: id,
            key: scopes().key,
            reason: String::new(),
            replaced_by: None,
        };
        apply(&mut state, released);
        let began = std::time::Instant::now();
        let next = written(&state, Some(&standing));
        let bytes: usize = next.pieces.iter().map(|(_, piece)| piece.len()).sum();
        let (head, pieces, took) = (next.value.len(), next.pieces.len(), began.elapsed());
        println!("{} in all: {head} + {bytes} bytes in {took:?}", next.size);
        assert!(pieces <= 6, "{pieces} pieces");
        let named: HashSet<u32> = standing.pieces.all().map(|piece| piece.number).collect();
        let over = next
            .pieces
            .iter()
            .find(|(number, _)| named.contains(number));
        assert!(over.is_none(), "what is named is not written over");
        standing = next.head.unwrap();
        assert!(standing.pieces.all().count() > standing.turn as usize);
    }
    let most = standing.pieces.all().map(|piece| piece.number).max();
    assert!(most.unwrap() as usize <= 2 * standing.pieces.all().count());
}

#[test]
fn every_piece_is_written_anew_in_its_turn() {
    let state = holding(3_000);
    let mut standing = written(&state, None).head.unwrap();
    let pieces = standing.pieces.all().count();
    let mut renewed = HashSet::new();
    for _ in 0..pieces {
        let next = written(&state, Some(&standing));
        let [(_, piece)] = &next.pieces[..] else {
            panic!("nothing else changed");
        };
        renewed.insert(piece.clone());
        standing = next.head.unwrap();
    }
    assert_eq!(renewed.len(), pieces);
}

#[test]
fn what_outgrows_all_bounds_is_told_and_not_cut() {
    let (account, state) = (account(), holding(3_000));
    let within = |most| Written::in_pieces(&account, (Position(1), AT_MS), &state, None, most);
    let cut = within(PIECES_MAX);
    let outgrown = within(cut.pieces.len() - 1);
    assert!(outgrown.pieces.is_empty() && outgrown.head.is_none());
    let told: TooLarge = wire::decode("stand-in", &outgrown.value).unwrap();
    assert_eq!(told.too_large, cut.size as u64);
}

fn name(letters: usize) -> String {
    "n".repeat(letters)
}

fn widest_scopes() -> Scopes {
    Scopes {
        key: KeyId::new(name(64)).unwrap(),
        team: Some(TeamId::new(name(64)).unwrap()),
        model: Some(ModelId::new(name(256)).unwrap()),
        run: Some(RunId::new(name(64)).unwrap()),
        end_user: Some(EndUserId::new(name(256)).unwrap()),
    }
}

fn widest_amounts() -> Amounts {
    Amounts {
        requests: u64::MAX,
        tokens: u64::MAX,
        input_tokens: u64::MAX,
        output_tokens: u64::MAX,
        cost: Some(u64::MAX),
    }
}

fn widest_open() -> Reservation {
    Reservation {
        scopes: widest_scopes().into(),
        asked: Asked {
            input_tokens: u64::MAX,
            output_tokens: u64::MAX,
            tool_calls: 0,
            deadline_ms: u64::MAX,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
        },
        hold: widest_amounts(),
        price: Some(u32::MAX),
        multiplier_ppm: None,
        at_ms: u64::MAX,
        attempt: Some(Attempt {
            of: ReservationId::from_parts(u64::MAX >> 16, u128::MAX >> 48),
            n: u32::MAX,
        }),
    }
}

/// A cap whose counter has all its slots, and that has announced every threshold there can be.
fn widest_cap() -> Cap {
    let window = Window::Rolling {
        seconds: 31_622_400,
    };
    let mut state = holding(0);
    let mut spec = cap(
        "x",
        Scope::EndUser(EndUserId::new(name(256)).unwrap()),
        window,
    );
    spec.cap = CapId::new(name(256)).unwrap();
    spec.hard = false;
    spec.thresholds = vec![252, 253, 254, 255];
    apply(&mut state, spec);
    let mut widest = state.caps().last().unwrap().clone();
    let slot_ms = 31_622_400_000 / 60;
    let now_ms = 500 * slot_ms;
    for back in (0..63).rev() {
        let at_ms = now_ms - back * slot_ms;
        widest.counter.add(window, at_ms, now_ms, u64::MAX / 64);
    }
    (widest.credits, widest.held, widest.since) = (u64::MAX, u64::MAX, u32::MAX);
    widest.spec.limit = u64::MAX;
    widest.announced = (1..=255).map(|percent| (percent, u64::MAX)).collect();
    widest
}

fn widest_run() -> Run {
    let meters = Budget::METERS.map(|meter| (meter, seatbelt_schemas::amount::AMOUNT_MAX));
    Run {
        reservation: ReservationId::from_parts((1 << 48) - 1, 0),
        payer: Scopes {
            model: None,
            run: None,
            end_user: None,
            ..widest_scopes()
        },
        budget: Budget::new(meters).unwrap(),
        within: vec![RunId::new("r".repeat(64)).unwrap(); RUN_DEPTH_MAX - 1],
    }
}

#[test]
fn the_widest_entries_are_within_what_the_bounds_are_made_of() {
    #[track_caller]
    fn check(entry: &impl Serialize, most: usize) {
        let bytes = wire::encode(entry).len();
        assert!(bytes <= most, "{bytes} above {most}");
    }
    let id = ReservationId::from_parts((1 << 48) - 1, (1 << 80) - 1);
    let open = widest_open();
    check(&Entry { id: &id, of: &open }, OPEN_BYTES_MAX);
    let expired = ExpiredReservation {
        reservation: open,
        charge: widest_amounts(),
        expired_at_ms: u64::MAX,
        version: u32::MAX,
    };
    let of = &expired;
    check(&Entry { id: &id, of }, EXPIRED_BYTES_MAX);
    check(&widest_cap(), CAP_BYTES_MAX);
    let run = widest_run();
    let id = &RunId::new(name(64)).unwrap();
    check(&Entry { id, of: &run }, RUN_BYTES_MAX);
    let key = Key {
        key: KeyId::new(name(64)).unwrap(),
        team: Some(TeamId::new(name(64)).unwrap()),
        secret_sha256: Some("f".repeat(64)),
        revoked: true,
    };
    check(&key, KEY_BYTES_MAX);
    let piece = PieceRef {
        number: u32::MAX,
        digest: ByteBuf::from(vec![255; 32]),
    };
    check(&piece, PIECE_REF_BYTES_MAX);
}

/// Where one value ends, of 1,032,192 bytes: `cargo test -p seatbelt-ledger one_value -- --nocapture`
#[test]
fn what_fits_one_value_is_known() {
    let bytes =
        |state: &Account| AccountSnapshot::encode(&account(), Position(1), AT_MS, state).len();
    let fits = |what: &str, empty: usize, with_1000: usize, expected: std::ops::Range<usize>| {
        let each = (with_1000 - empty) / 1000;
        let most = (SNAPSHOT_BYTES_MAX - empty) / each;
        println!("{what}: {each} bytes each, one value takes {most}");
        assert!(expected.contains(&most), "{what}: {most}");
    };
    let none = holding(0);
    fits("open", bytes(&none), bytes(&holding(1_000)), 4_000..5_500);
    let mut expired = holding(1_000);
    let ids: Vec<_> = expired.open().keys().copied().collect();
    for reservation in ids {
        let body = seatbelt_schemas::event::Expired {
            reservation,
            key: scopes().key,
            policy: OnUnknown::ChargeHold,
            charge: Amounts::request(1_200, 4_096, Some(31_000_000)),
            reserved_at_ms: AT_MS,
        };
        apply(&mut expired, body);
    }
    fits("expired", bytes(&none), bytes(&expired), 2_500..4_000);
    let with_caps = |window| {
        let mut state = holding(0);
        for number in 0..1_000 {
            let key = Scope::Key(KeyId::new(format!("key-{number}")).unwrap());
            let id = format!("key/key-{number}/tokens/balance");
            apply(&mut state, cap(&id, key, window));
        }
        state
    };
    let balances = with_caps(Window::Balance);
    fits("balance caps", bytes(&none), bytes(&balances), 4_000..8_000);
    let window = Window::Rolling { seconds: 86_400 };
    let mut slotted = widest_cap();
    slotted.announced = Vec::new();
    let slots = wire::encode(&slotted.counter).len();
    let rolling = bytes(&with_caps(window)) + 1_000 * slots;
    fits("caps with 60 slots", bytes(&none), rolling, 800..1_200);
    let mut keys = holding(0);
    for number in 0..1_000 {
        let issued = KeyIssued {
            key: KeyId::new(format!("key-{number:08}")).unwrap(),
            team: Some(TeamId::new("team-a").unwrap()),
            secret_sha256: Some("0".repeat(64)),
        };
        apply(&mut keys, issued);
    }
    fits("keys", bytes(&none), bytes(&keys), 5_000..9_000);
    let run = wire::encode(&widest_run()).len();
    println!("runs: up to {run} bytes each, and a cap for each meter");
}
