//! What can be said to the ledger: accounts, caps of every scope, meter and window, prices, runs.

use seatbelt_ledger::api::Reserve;
use seatbelt_schemas::{
    budget::Budget,
    cap::CapSpec,
    command::Change,
    event::{KeyIssued, OnShort, OnUnknown},
    ids::{AccountId, CapId, CommandId, EndUserId, KeyId, ModelId, RunId, TeamId},
    meter::Meter,
    price::{Price, Rates},
    scope::Scope,
    window::{Period, Window},
};

use crate::{chance::Chance, medium::Medium};

/// Accounts of the random payers.
pub(crate) const ACCOUNTS: [&str; 3] = ["a", "b", "c"];

pub(crate) fn account(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

/// Two models that cost, one of them much; all others are free.
pub(crate) fn prices() -> [Change; 2] {
    let price = |model: &str, input, output| {
        let rates = Rates {
            cached_input: input / 2,
            ..Rates::flat(input, output)
        };
        Change::SetPrice(Price::of(ModelId::new(model).unwrap(), rates))
    };
    [
        price("priced", 1_000_000, 3_000_000),
        price("dear", 7_000_000, 19_000_000),
    ]
}

pub(crate) fn keys() -> [Change; 2] {
    [("k1", Some("t1")), ("k2", None)].map(|(key, team)| {
        Change::IssueKey(KeyIssued {
            key: KeyId::new(key).unwrap(),
            team: team.map(|team| TeamId::new(team).unwrap()),
            secret_sha256: None,
        })
    })
}

pub(crate) fn cap(cap: &str, scope: Scope, meter: Meter, window: Window, limit: u64) -> CapSpec {
    CapSpec {
        cap: CapId::new(cap).unwrap(),
        scope,
        meter,
        window,
        limit,
        hard: cap != "watch",
        thresholds: vec![50, 100],
    }
}

/// Every cap that there can be, with limits that differ from time to time.
pub(crate) fn caps(chance: &Chance) -> Vec<CapSpec> {
    use Window::{Balance, Rolling};
    let key = |key: &str| Scope::Key(KeyId::new(key).unwrap());
    let hour = Window::Calendar {
        period: Period::Hour,
    };
    let day = Window::Calendar {
        period: Period::Day,
    };
    let second = Rolling { seconds: 10 };
    let minute = Rolling { seconds: 60 };
    let team = Scope::Team(TeamId::new("t1").unwrap());
    let model = Scope::Model(ModelId::new("priced").unwrap());
    let user = Scope::EndUser(EndUserId::new("u1").unwrap());
    vec![
        cap(
            "total",
            Scope::Account,
            Meter::Tokens,
            Balance,
            200 + chance.below(600),
        ),
        cap(
            "minute",
            key("k1"),
            Meter::Tokens,
            minute,
            40 + chance.below(90),
        ),
        cap("two", key("k2"), Meter::Concurrency, Balance, 2),
        cap(
            "count",
            key("k2"),
            Meter::Requests,
            minute,
            3 + chance.below(8),
        ),
        cap(
            "money",
            Scope::Account,
            Meter::Cost,
            Balance,
            500_000 + chance.below(900_000),
        ),
        cap("watch", Scope::Account, Meter::OutputTokens, Balance, 100),
        cap("team", team, Meter::Tokens, hour, 80 + chance.below(200)),
        cap(
            "model",
            model,
            Meter::OutputTokens,
            second,
            50 + chance.below(80),
        ),
        cap("user", user, Meter::InputTokens, day, 30 + chance.below(80)),
    ]
}

pub(crate) fn change(chance: &Chance) -> Change {
    let mut caps = caps(chance);
    let which = usize::try_from(chance.below(caps.len() as u64)).unwrap();
    let spec = caps.swap_remove(which);
    let cap = CapId::new("total").unwrap();
    match chance.below(6) {
        0 => Change::Credit {
            cap,
            amount: chance.below(200),
            reason: None,
        },
        1 => Change::Adjust {
            cap,
            delta: i64::try_from(chance.below(60)).unwrap() - 30,
            reason: "sim".to_owned(),
        },
        2 => Change::RemoveCap { cap: spec.cap },
        _ => Change::SetCap(spec),
    }
}

pub(crate) fn reserve(id: CommandId, account: &AccountId, medium: &Medium) -> Reserve {
    let chance = &medium.chance;
    let some = |odds, one: &str| (!chance.one_in(odds)).then(|| one.to_owned());
    let model = *chance.pick(&["priced", "priced", "dear", "free"]);
    let run = *chance.pick(&["r1", "r2"]);
    let end_user = *chance.pick(&["u1", "u2"]);
    let (run, end_user) = (some(3, run), some(2, end_user));
    Reserve {
        team: None,
        id,
        account: account.clone(),
        key: KeyId::new(*chance.pick(&["k1", "k2"])).unwrap(),
        model: Some(ModelId::new(model).unwrap()),
        run: run.map(|run| RunId::new(run).unwrap()),
        end_user: end_user.map(|user| EndUserId::new(user).unwrap()),
        input_tokens: 1 + chance.below(20),
        output_tokens: 1 + chance.below(40),
        tool_calls: 0,
        deadline_ms: medium.now_ms() + 500 + chance.below(8_000),
        wait_ms: chance.below(3_000),
        on_short: *chance.pick(&[OnShort::Refuse, OnShort::Refuse, OnShort::Clamp]),
        on_unknown: *chance.pick(&[
            OnUnknown::ChargeHold,
            OnUnknown::ChargeHold,
            OnUnknown::Release,
        ]),
        budget: None,
        within: None,
    }
}

/// Sets a budget aside for a run; mostly one that fits.
pub(crate) fn open_run(id: CommandId, account: &AccountId, medium: &Medium) -> Reserve {
    let chance = &medium.chance;
    let mut amounts = vec![(Meter::Tokens, 20 + chance.below(100))];
    if chance.one_in(3) {
        amounts.push((Meter::Cost, 20_000 + chance.below(200_000)));
    }
    if chance.one_in(3) {
        amounts.push((Meter::Requests, 1 + chance.below(4)));
    }
    let request = reserve(id, account, medium);
    Reserve {
        run: Some(RunId::new(*chance.pick(&["r1", "r2"])).unwrap()),
        model: None,
        end_user: None,
        input_tokens: 0,
        output_tokens: 0,
        on_short: OnShort::Refuse,
        budget: Some(Budget::new(amounts).unwrap()),
        ..request
    }
}
