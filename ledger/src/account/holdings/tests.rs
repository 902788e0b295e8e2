#![allow(clippy::unwrap_used)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, sample::Index};
use seatbelt_schemas::{
    cap::CapSpec,
    event::{
        Asked, Event, EventBody, Expired, KeyIssued, OnShort, OnUnknown, Released, Report,
        Reserved, Resized, Settled, Timings, UsageSource,
    },
    ids::{AccountId, Actor, CapId, CommandId},
    position::Position,
    usage::Usage,
    window::Window,
};

use super::*;
use crate::account::Account;

const AT_MS: u64 = 1_780_000_000_000;

#[derive(Debug, Clone, Copy)]
struct Who {
    key: u8,
    team: Option<u8>,
    model: Option<u8>,
    run: Option<u8>,
    end_user: Option<u8>,
}

#[derive(Debug, Clone)]
enum Step {
    Reserve(Who, u64, Option<u64>),
    Open(Who, u8, u64),
    Resize(Index, u64),
    Settle(Index, u64),
    Release(Index),
    Expire(Index),
    Cap(u8, u8),
    Store,
}

fn who() -> impl Strategy<Value = Who> {
    let some = || proptest::option::of(0..2_u8);
    (0..2_u8, some(), some(), some(), some()).prop_map(|(key, team, model, run, end_user)| Who {
        key,
        team,
        model,
        run,
        end_user,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let which = any::<Index>;
    prop_oneof![
        6 => (who(), 0..100_u64, proptest::option::of(0..9_u64)).prop_map(|(who, tokens, cost)| Step::Reserve(who, tokens, cost)),
        3 => (who(), 1..32_u8, 1..300_u64).prop_map(|(who, meters, amount)| Step::Open(who, meters, amount)),
        2 => (which(), 0..200_u64).prop_map(|(which, tokens)| Step::Resize(which, tokens)),
        3 => (which(), 0..300_u64).prop_map(|(which, tokens)| Step::Settle(which, tokens)),
        2 => which().prop_map(Step::Release),
        2 => which().prop_map(Step::Expire),
        3 => (0..12_u8, 0..6_u8).prop_map(|(scope, meter)| Step::Cap(scope, meter)),
        1 => Just(Step::Store),
    ]
}

fn scopes(who: Who) -> Scopes {
    let name = |number: u8| format!("n{number}");
    Scopes {
        key: KeyId::new(name(who.key)).unwrap(),
        team: who.team.map(|id| TeamId::new(name(id)).unwrap()),
        model: who.model.map(|id| ModelId::new(name(id)).unwrap()),
        run: who.run.map(|id| RunId::new(name(id)).unwrap()),
        end_user: who.end_user.map(|id| EndUserId::new(name(id)).unwrap()),
    }
}

fn every_scope() -> Vec<Scope> {
    let mut all = vec![Scope::Account];
    for name in ["n0", "n1"] {
        all.extend([
            Scope::Team(TeamId::new(name).unwrap()),
            Scope::Key(KeyId::new(name).unwrap()),
            Scope::Model(ModelId::new(name).unwrap()),
            Scope::Run(RunId::new(name).unwrap()),
            Scope::EndUser(EndUserId::new(name).unwrap()),
        ]);
    }
    all
}

/// An account with what its next reservation is numbered by.
#[derive(Default)]
struct World {
    account: Account,
    numbered: u128,
}

impl World {
    fn apply(&mut self, body: impl Into<EventBody>) {
        self.account.apply(&Event {
            position: Position(1),
            at_ms: AT_MS,
            account: AccountId::new("acct").unwrap(),
            cause: CommandId::from_parts(AT_MS, 1),
            actor: Actor::operator("test"),
            body: body.into(),
        });
    }

    fn reserve(&mut self, scopes: Scopes, hold: Amounts, budget: Option<Budget>) -> ReservationId {
        self.numbered += 1;
        let reservation = ReservationId::from_parts(AT_MS, self.numbered);
        let asked = Asked {
            input_tokens: hold.input_tokens,
            output_tokens: hold.output_tokens,
            tool_calls: 0,
            deadline_ms: AT_MS + 60_000,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
        };
        self.apply(Reserved {
            uncovered: false,
            reservation,
            scopes: scopes.into(),
            asked,
            hold,
            price: None,
            budget,
            within: None,
            caps: Vec::new(),
            multiplier_ppm: None,
            attempt: None,
        });
        reservation
    }

    fn release(&mut self, reservation: ReservationId) {
        let key = KeyId::new("n0").unwrap();
        self.apply(Released {
            reservation,
            key,
            reason: String::new(),
            replaced_by: None,
        });
    }

    /// Opens a run as the ledger decides it: for a key and its team, where nothing of it is open.
    fn open(&mut self, who: Who, given: u8, amount: u64) {
        let payer = scopes(Who {
            model: None,
            end_user: None,
            run: who.run.or(Some(0)),
            ..who
        });
        if !self.account.has_open_of(payer.run.as_ref().unwrap()) {
            let meters = (0..).zip(Budget::METERS);
            let meters = meters.filter(|(bit, _)| given >> bit & 1 == 1);
            let budget = Budget::new(meters.map(|(_, meter)| (meter, amount))).unwrap();
            self.reserve(payer, budget.hold(), Some(budget));
        }
    }

    fn set(&mut self, scope: &Scope, meter: Meter, id: String) {
        self.apply(CapSpec {
            cap: CapId::new(id).unwrap(),
            scope: scope.clone(),
            meter,
            window: Window::Balance,
            limit: 1_000,
            hard: true,
            thresholds: Vec::new(),
        });
    }

    fn settle(&mut self, reservation: ReservationId, tokens: u64) {
        let budget = self.account.runs().values();
        if budget.into_iter().any(|run| run.reservation == reservation) {
            return; // refused: a budget is no request
        }
        let usage = Usage {
            output_tokens: tokens,
            ..Usage::default()
        };
        self.apply(Settled {
            reservation,
            scopes: scopes(NOBODY).into(),
            report: Report {
                usage,
                upstream: "test".to_owned(),
                source: UsageSource::Upstream,
                finish: None,
                timings: Timings::default(),
            },
            model: None,
            charge: Amounts::request(0, tokens, Some(tokens)),
            price: None,
            reserved_at_ms: AT_MS,
            late: false,
            multiplier_ppm: None,
            attempt: None,
        });
    }

    fn resize(&mut self, reservation: ReservationId, tokens: u64) {
        let mut budgets = self.account.runs().values();
        if !budgets.any(|run| run.reservation == reservation) {
            self.apply(Resized {
                uncovered: false,
                reservation,
                key: KeyId::new("n0").unwrap(),
                hold: Amounts::request(1, tokens, None),
                caps: Vec::new(),
            });
        }
    }

    fn expire(&mut self, reservation: ReservationId) {
        let held = self.account.open().get(&reservation);
        self.apply(Expired {
            reservation,
            key: KeyId::new("n0").unwrap(),
            policy: OnUnknown::ChargeHold,
            charge: held.map_or(Amounts::zero(), |open| open.hold),
            reserved_at_ms: AT_MS,
        });
    }

    fn play(&mut self, step: &Step) {
        let numbered = usize::try_from(self.numbered).unwrap();
        let id = |which: &Index| {
            let number = which.index(numbered.max(1)) as u128 + 1;
            ReservationId::from_parts(AT_MS, number)
        };
        match step {
            Step::Reserve(who, tokens, cost) => {
                self.reserve(scopes(*who), Amounts::request(1, *tokens, *cost), None);
            }
            Step::Open(who, meters, amount) => self.open(*who, *meters, *amount),
            Step::Resize(which, tokens) => self.resize(id(which), *tokens),
            Step::Settle(which, tokens) => self.settle(id(which), *tokens),
            Step::Release(which) => self.release(id(which)),
            Step::Expire(which) => self.expire(id(which)),
            Step::Cap(scope, meter) => {
                let all = every_scope();
                let scope = &all[usize::from(*scope) % all.len()];
                let meter = METERS[usize::from(*meter)];
                self.set(scope, meter, format!("cap-{scope}-{meter}"));
            }
            Step::Store => {
                let bytes = rmp_serde::to_vec_named(&self.account).unwrap();
                let read: Account = rmp_serde::from_slice(&bytes).unwrap();
                assert_eq!(read, self.account);
                self.account = read;
            }
        }
    }
}

const NOBODY: Who = Who {
    key: 0,
    team: None,
    model: None,
    run: None,
    end_user: None,
};

/// What open reservations hold under a cap, by a look at each: requests each by itself, those of an
/// open run by the run where it covers the cap.
fn plain(account: &Account, scope: &Scope, meter: Meter) -> u64 {
    let covers = |run: &Run| run.budget.amount(meter).is_some() && run.payer.matches(scope);
    let held = account.open().iter().map(|(id, open)| {
        let amount = match account.run_of(&open.scopes) {
            Some(run) if run.reservation == *id => match &open.scopes.run {
                Some(name) if covers(run) => left(account.caps(), name).spent_in(meter),
                _ => None,
            },
            Some(run) if covers(run) => None,
            _ if open.scopes.matches(scope) => open.hold.held_in(meter),
            _ => None,
        };
        amount.unwrap_or(0)
    });
    held.fold(0, u64::saturating_add)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// After every event, in every scope and meter: the sum kept is the sum of what is open, and what
    /// is made anew from the account is what was kept.
    #[test]
    fn what_is_kept_is_the_plain_sum(steps in vec(step(), 1..60)) {
        let (mut world, all) = (World::default(), every_scope());
        for step in &steps {
            world.play(step);
            let account = &world.account;
            for scope in &all {
                for meter in METERS {
                    let (kept, sum) = (account.held_in(scope, meter), plain(account, scope, meter));
                    prop_assert_eq!(kept, sum, "{} of {} after {:?}", meter, scope, step);
                }
            }
            for cap in account.caps() {
                let kept = account.held_in(&cap.spec.scope, cap.spec.meter);
                prop_assert_eq!(cap.held, kept, "cap {}", cap.spec.cap);
            }
            let anew = Holdings::of(&account.open, &account.runs, &account.caps);
            prop_assert_eq!(&anew, &*account.holdings);
        }
    }

    /// Nothing is left of what ended.
    #[test]
    fn what_ended_leaves_nothing(steps in vec(step(), 1..60)) {
        let mut world = World::default();
        steps.iter().for_each(|step| world.play(step));
        let open: Vec<_> = world.account.open().keys().copied().collect();
        open.into_iter().for_each(|id| world.release(id));
        prop_assert_eq!(&*world.account.holdings, &Holdings::default());
    }
}

#[test]
fn more_than_any_number_is_held_as_the_largest() {
    let mut world = World::default();
    let hold = Amounts::request(0, u64::MAX, None);
    let held = [(); 3].map(|()| world.reserve(scopes(NOBODY), hold, None));
    let at = |world: &World| world.account.held_in(&Scope::Account, Meter::Tokens);
    assert_eq!(at(&world), u64::MAX);
    world.release(held[0]);
    assert_eq!(at(&world), u64::MAX);
    world.release(held[1]);
    world.release(held[2]);
    assert_eq!(at(&world), 0);
}

/// How long it takes at best to open a run of two meters, close it, and set a cap, so many times.
fn runs_and_caps(open: u128) -> Duration {
    let mut world = World::default();
    for number in 0..open {
        let mut whose = scopes(NOBODY);
        whose.end_user = Some(EndUserId::new(format!("user-{}", number % 5_000)).unwrap());
        world.reserve(whose, Amounts::request(1, 1, None), None);
    }
    let user = |number| Scope::EndUser(EndUserId::new(format!("user-{number}")).unwrap());
    let rounds = (0..5_u8).map(|round| {
        let from = Instant::now();
        for number in 0..20_u8 {
            let opener = Who {
                run: Some(0),
                ..NOBODY
            };
            world.open(opener, 3, 5);
            let budget = ReservationId::from_parts(AT_MS, world.numbered);
            black_box(world.account.open().contains_key(&budget));
            world.release(budget);
            world.set(&user(number), Meter::Tokens, format!("{round}-{number}"));
        }
        from.elapsed()
    });
    rounds.min().unwrap()
}

/// How long it takes at best to tell how two keys stand, so many times, in an account of so many others with
/// three caps and a run each.
fn reads(others: u32) -> Duration {
    let mut world = World::default();
    let key = |id: String| KeyId::new(id).unwrap();
    for number in 0..others {
        let other = key(format!("other-{number}"));
        world.apply(KeyIssued {
            key: other.clone(),
            team: None,
            secret_sha256: None,
        });
        for cap in 0..3 {
            let id = format!("{number}-{cap}");
            world.set(&Scope::Key(other.clone()), Meter::Tokens, id);
        }
        let payer = Scopes {
            key: other,
            run: Some(RunId::new(format!("run-{number}")).unwrap()),
            ..scopes(NOBODY)
        };
        let budget = Budget::new([(Meter::Tokens, 1)]).unwrap();
        world.reserve(payer, budget.hold(), Some(budget));
    }
    world.set(&Scope::Account, Meter::Tokens, "all".to_owned());
    let asked = [
        key("nobody".to_owned()),
        key(format!("other-{}", others / 2)),
    ];
    let account = &world.account;
    let rounds = (0..5).map(|_| {
        let from = Instant::now();
        for _ in 0..50 {
            for (key, caps) in asked.iter().zip([1, 5]) {
                let standings = account.standings(Some(key), None, AT_MS);
                assert_eq!(black_box(standings.count()), caps);
            }
            assert_eq!(account.live_keys(), u64::from(others));
        }
        from.elapsed()
    });
    rounds.min().unwrap()
}

/// Whoever asks how a key stands takes the writer from all others meanwhile.
#[test]
fn what_others_have_does_not_make_it_dear_to_ask_how_a_key_stands() {
    let (few, many) = (reads(3), reads(1_500));
    let dear = few * 10 + Duration::from_millis(1);
    assert!(many < dear, "{many:?} beside many, {few:?} beside few");
}

/// Whoever opens a run or sets a cap in a full account takes the writer from all others meanwhile.
#[test]
fn what_is_open_does_not_make_runs_and_caps_dear() {
    let (few, many) = (runs_and_caps(100), runs_and_caps(40_000));
    let dear = few * 10 + Duration::from_millis(1);
    assert!(many < dear, "{many:?} with many open, {few:?} with few");
}
