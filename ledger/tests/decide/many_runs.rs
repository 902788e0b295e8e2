//! Laws of runs over random stories: the books of plain sums agree with the evidence of every
//! decision and with the state at the end, and nothing that happens in a run leads a cap up.

use proptest::{collection::vec, prelude::*, sample::Index};
use seatbelt_schemas::{
    command::Change,
    event::{KeyIssued, OnShort, OnUnknown},
    ids::{KeyId, TeamId},
};

use crate::{
    oracle::Books,
    story::{Ask, Call, Story, account, ask, cap_id, opens, spec, within},
};

/// Whom a request is of, and how it asks.
#[derive(Debug, Clone, Copy)]
struct Who {
    run: Option<&'static str>,
    key: &'static str,
    clamps: bool,
    releases: bool,
    waits: bool,
    /// The run must be open.
    strict: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Open(Who, &'static str, u64),
    Nest(&'static str, &'static str, u64, bool),
    Ask(Who, u64, u64),
    Settle(Index, u64),
    Resize(Index, u64),
    Release(Index),
    Pass(u64),
    Set(&'static str, u64),
    Remove(&'static str),
    Team(Option<&'static str>),
    Restart,
}

/// Every window, a soft cap, caps of both keys, of a run, and in meters that budgets may leave out.
const CAPS: &[&str] = &[
    "all account tokens balance",
    "mine key:k tokens rolling:60",
    "other key:l tokens balance",
    "ours team:t tokens hour",
    "count account requests rolling:600",
    "watch key:k output_tokens balance",
    "label run:r tokens rolling:60",
    "two account concurrency balance",
];

fn cap(words: &str, limit: u64) -> String {
    let soft = if words.starts_with("watch") {
        " soft"
    } else {
        ""
    };
    let limit = if words.starts_with("two") {
        3 + limit % 4
    } else {
        limit
    };
    format!("{words} {limit}{soft}")
}

fn who() -> impl Strategy<Value = Who> {
    let run = prop_oneof![
        3 => Just(Some("r")),
        2 => Just(Some("s")),
        1 => Just(Some("u")),
        1 => Just(None),
    ];
    let key = prop_oneof![3 => Just("k"), 1 => Just("l")];
    (run, key, any::<[bool; 4]>()).prop_map(|(run, key, [clamps, releases, waits, strict])| Who {
        run,
        key,
        clamps,
        releases,
        waits,
        strict,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let budget = prop_oneof![
        4 => Just("tokens"),
        1 => Just("output_tokens"),
        1 => Just("requests"),
    ];
    let words = || proptest::sample::select(CAPS);
    let team = prop_oneof![Just(Some("t")), Just(Some("u")), Just(None)];
    prop_oneof![
        3 => (who(), budget, 1..80u64).prop_map(|(who, meter, amount)| Step::Open(who, meter, amount)),
        3 => (inner(), 1..40u64, any::<bool>())
            .prop_map(|((run, outer), amount, by_other)| Step::Nest(run, outer, amount, by_other)),
        8 => (who(), 1..15u64, 0..30u64).prop_map(|(who, input, output)| Step::Ask(who, input, output)),
        5 => (any::<Index>(), 0..50u64).prop_map(|(which, output)| Step::Settle(which, output)),
        2 => (any::<Index>(), 0..50u64).prop_map(|(which, output)| Step::Resize(which, output)),
        3 => any::<Index>().prop_map(Step::Release),
        3 => (1..40_000u64).prop_map(Step::Pass),
        2 => (words(), 20..250u64).prop_map(|(words, limit)| Step::Set(words, limit)),
        1 => words().prop_map(Step::Remove),
        1 => team.prop_map(Step::Team),
        1 => Just(Step::Restart),
    ]
}

/// A run and the one that it is opened within, which may not be open.
fn inner() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![3 => Just(("s", "r")), 2 => Just(("u", "s")), 1 => Just(("r", "u"))]
}

fn asks(who: Who, ask: &Ask) -> Ask {
    Ask {
        key: who.key,
        run: who.run,
        within: who.run.filter(|_| who.strict),
        on_short: if who.clamps {
            OnShort::Clamp
        } else {
            OnShort::Refuse
        },
        on_unknown: if who.releases {
            OnUnknown::Release
        } else {
            OnUnknown::ChargeHold
        },
        wait_ms: if who.waits { 5000 } else { 0 },
        life_ms: 30_000,
        ..ask.clone()
    }
}

fn play(story: &mut Story, calls: &mut Vec<Call>, step: &Step) {
    let picked = |which: &Index| (!calls.is_empty()).then(|| which.get(calls).clone());
    match step {
        Step::Open(who, meter, amount) => {
            let budget = opens("r", &format!("{meter} {amount}"));
            let asked = Ask {
                on_short: OnShort::Refuse,
                within: None,
                life_ms: 120_000,
                ..asks(*who, &budget)
            };
            calls.push(story.reserve(&asked));
        }
        Step::Nest(run, outer, amount, in_two) => {
            let more = if *in_two { " requests 3" } else { "" };
            let asked = Ask {
                within: Some(outer),
                life_ms: 60_000,
                ..opens(run, &format!("tokens {amount}{more}"))
            };
            calls.push(story.reserve(&asked));
        }
        Step::Ask(who, input, output) => {
            calls.push(story.reserve(&asks(*who, &ask(*input, *output))));
        }
        Step::Settle(which, output) => {
            picked(which).map(|call| story.settle(&call, 5, *output));
        }
        Step::Resize(which, output) => {
            picked(which).map(|call| story.resize(&call, 5, *output));
        }
        Step::Release(which) => {
            picked(which).map(|call| story.release(&call));
        }
        Step::Pass(ms) => {
            let now_ms = story.now_ms - crate::story::START_MS;
            story.at(now_ms + ms);
        }
        Step::Set(words, limit) => {
            story.change(Change::SetCap(spec(&cap(words, *limit))));
        }
        Step::Remove(words) => {
            let id = words.split(' ').next().unwrap();
            story.change(Change::RemoveCap { cap: cap_id(id) });
        }
        Step::Team(team) => {
            story.change(Change::IssueKey(KeyIssued {
                key: KeyId::new("k").unwrap(),
                team: team.map(|team| TeamId::new(team).unwrap()),
                secret_sha256: None,
            }));
        }
        Step::Restart => story.restart(),
    }
}

/// The state says of every cap what the books say.
fn agrees(story: &Story, books: &Books) {
    let known = story.account().caps();
    assert_eq!(known.len(), books.caps().count());
    let at_ms = story.now_ms.max(story.last_ms());
    for cap in known {
        let (spent, held) = books.stands(&account(), &cap.spec.cap, at_ms, None);
        let limit = books.limit(&account(), &cap.spec.cap);
        let stands = (i128::from(cap.spent(at_ms)), cap.held, cap.limit());
        assert_eq!(stands, (spent, held, limit), "{}", cap.spec.cap);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn runs_keep_the_books(steps in vec(step(), 10..60)) {
        let caps: Vec<String> = CAPS[..5].iter().map(|words| cap(words, 120)).collect();
        let caps: Vec<&str> = caps.iter().map(String::as_str).collect();
        let mut story = Story::new(&caps);
        // most stories begin in a run
        let mut calls = vec![story.reserve(&opens("r", "tokens 60")), story.reserve(&within("r", 5, 10))];
        for step in &steps {
            play(&mut story, &mut calls, step);
        }
        let books = Books::read(&story.journal).map_err(TestCaseError::fail)?;
        agrees(&story, &books);
        // in the end nothing stays held
        story.at(10_000_000);
        let books = Books::read(&story.journal).map_err(TestCaseError::fail)?;
        agrees(&story, &books);
        prop_assert_eq!(books.open(), 0);
        prop_assert!(story.account().runs().is_empty());
        prop_assert!(story.account().caps().iter().all(|cap| cap.held == 0));
    }
}
