//! Runs with a budget of their own: opened out of their key's, spent by requests that name them,
//! closed with the rest given back.

use seatbelt_ledger::{api::Ack, writer::Request};
use seatbelt_schemas::{
    amount::AMOUNT_MAX,
    budget::Budget,
    cap::CAPS_OF_RUNS_MAX,
    command::{Change, CommandError},
    event::{EventBody, OnShort, OnUnknown},
    ids::KeyId,
    meter::{Amounts, Meter},
    window::Window,
};

use crate::story::{Ask, Call, GRACE_MS, Story, ask, cap_id, opens, spec, within};

const ALL: &[&str] = &["all account tokens balance 100"];
/// The key's own cap and its account's.
const BOTH: &[&str] = &[
    "all account tokens balance 100",
    "mine key:k tokens balance 80",
];

#[track_caller]
fn is_invalid(story: &Story, call: &Call, remedy: &str) {
    match story.error(call) {
        CommandError::Invalid { detail } => {
            assert!(
                detail.contains(remedy),
                "{detail:?} does not say {remedy:?}"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// A grant's caps by id, each with limit, spent and held.
fn caps_of(story: &Story, call: &Call) -> Vec<(String, u64, u64, u64)> {
    let caps = story.grant(call).caps.into_iter();
    caps.map(|cap| (cap.cap.to_string(), cap.limit, cap.spent, cap.held))
        .collect()
}

// --- opening ---

#[test]
fn a_run_is_opened_out_of_its_keys_budget_and_no_further() {
    let mut story = Story::new(BOTH);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.then(&["opened r with tokens 50"]);
    assert_eq!(
        (story.stands("all"), story.stands("mine")),
        ((0, 50), (0, 50))
    );
    assert_eq!(
        caps_of(&story, &run),
        [
            ("all".to_owned(), 100, 0, 50),
            ("mine".to_owned(), 80, 0, 50),
            ("run:r:tokens".to_owned(), 50, 0, 0),
        ]
    );
    story.reserve(&ask(0, 31));
    story.reserve(&opens("s", "tokens 31"));
    story.reserve(&ask(0, 30));
    story.then(&[
        "refused held by mine",
        "refused held by mine",
        "reserved 0+30",
    ]);
}

#[test]
fn a_budget_takes_its_meters_alone_and_is_neither_a_request_nor_concurrency() {
    let mut story = Story::new(&[
        "tokens account tokens balance 100",
        "input account input_tokens balance 0",
        "output account output_tokens balance 10",
        "requests account requests balance 2",
        "one key:k concurrency balance 1",
        "money account cost balance 5",
    ]);
    let whole = story.reserve(&opens("r", "requests 2 tokens 70 output_tokens 10 cost 5"));
    story.then(&["opened r with requests 2 tokens 70 output_tokens 10 cost 5"]);
    for (cap, held) in [
        ("tokens", 70),
        ("input", 0),
        ("output", 10),
        ("requests", 2),
        ("one", 0),
        ("money", 5),
    ] {
        assert_eq!(story.stands(cap), (0, held), "{cap}");
    }
    story.release(&whole);
    story.reserve(&opens("s", "cost 6"));
    story.then(&["released", "refused spent by money"]);
}

#[test]
fn a_budget_that_does_not_fit_is_refused_with_evidence_or_waits() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 81"));
    let refused = story.events().pop().unwrap();
    let EventBody::Refused(data) = &refused.event.body else {
        panic!("{refused:?}");
    };
    assert_eq!(data.budget, opens("r", "tokens 81").budget);
    assert_eq!((data.cap.as_str(), data.caps.len()), ("mine", 2));
    let open = story.reserve(&ask(0, 50));
    let waits = story.reserve(&Ask {
        wait_ms: 2000,
        ..opens("r", "tokens 50")
    });
    story.then(&["refused spent by mine", "reserved 0+50"]);
    assert!(story.answer(&waits).is_none());
    story.settle(&open, 0, 30);
    story.then(&["settled 0+30", "opened r with tokens 50"]);
    assert_eq!(story.stands("mine"), (30, 50));
}

#[test]
fn a_malformed_opening_is_refused_with_its_remedy_and_changes_nothing() {
    let mut story = Story::new(ALL);
    let run = opens("r", "tokens 50");
    for (ask, remedy) in [
        (
            Ask {
                run: None,
                ..run.clone()
            },
            "name the run",
        ),
        (
            Ask {
                input: 1,
                ..run.clone()
            },
            "no request",
        ),
        (
            Ask {
                output: 1,
                ..run.clone()
            },
            "no request",
        ),
        (
            Ask {
                model: Some("m"),
                ..run.clone()
            },
            "no request",
        ),
        (
            Ask {
                end_user: Some("u"),
                ..run.clone()
            },
            "no request",
        ),
        (
            Ask {
                on_short: OnShort::Clamp,
                ..run
            },
            "on_short refuse",
        ),
    ] {
        let call = story.reserve(&ask);
        is_invalid(&story, &call, remedy);
    }
    story.then(&[]);
    assert_eq!(story.stands("all"), (0, 0));
}

#[test]
fn a_run_is_open_only_once() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    let again = story.reserve(&opens("r", "tokens 1"));
    is_invalid(&story, &again, "release it first");
    is_invalid(&story, &again, &run.reservation().to_string());
    story.release(&run);
    story.reserve(&opens("r", "tokens 60"));
    story.then(&[
        "opened r with tokens 50",
        "released",
        "opened r with tokens 60",
    ]);
    assert_eq!(story.stands("run:r:tokens"), (0, 0));
}

#[test]
fn a_run_whose_name_is_in_use_is_not_opened() {
    let mut story = Story::new(ALL);
    let before = story.reserve(&within("r", 0, 10));
    let early = story.reserve(&opens("r", "tokens 50"));
    is_invalid(&story, &early, "let them end first");
    story.settle(&before, 0, 10);
    let run = story.reserve(&opens("r", "tokens 50"));
    let open = story.reserve(&within("r", 0, 10));
    story.release(&run);
    let late = story.reserve(&opens("r", "tokens 50"));
    is_invalid(&story, &late, "let them end first");
    story.release(&open);
    story.reserve(&opens("r", "tokens 50"));
    assert_eq!(story.stands("all"), (10, 50));
}

#[test]
fn a_run_is_not_opened_beyond_the_bounds_of_caps() {
    let mut story = Story::new(ALL);
    for number in 0..7 {
        story.cap(&format!("c{number} run:r tokens rolling:60 100"));
    }
    let call = story.reserve(&opens("r", "tokens 5 cost 5"));
    is_invalid(&story, &call, "more than 8 caps");
    story.reserve(&opens("r", "tokens 5"));
    story.skip();
    let call = story.change(Change::SetCap(spec("c8 run:r tokens rolling:60 100")));
    is_invalid(&story, &call, "8 caps already");
    story.then(&[]);
}

/// A name for the run of a number.
fn name(number: usize) -> &'static str {
    format!("r{number}").leak()
}

#[test]
fn runs_leave_operators_their_share_of_the_accounts_caps() {
    let mut story = Story::new(&[]);
    let five = "requests 1 tokens 1 input_tokens 1 output_tokens 1 cost 1";
    let runs: Vec<Call> = (0..CAPS_OF_RUNS_MAX / 5)
        .map(|number| story.reserve(&opens(name(number), five)))
        .collect();
    assert_eq!(story.account().caps().len(), CAPS_OF_RUNS_MAX);
    story.skip();
    let one_more = story.reserve(&opens("r", "tokens 1"));
    let open = runs.len() as u64;
    assert_eq!(story.error(&one_more), CommandError::TooManyRuns { open });
    story.then(&[]);
    story.cap("new account tokens balance 10000");
    story.release(&runs[0]);
    story.skip();
    story.reserve(&opens("r", "tokens 1"));
    story.then(&["opened r with tokens 1"]);
}

/// Runs that have all that they may have are in no operator's way, who may have filled the account up to then.
#[test]
fn operators_have_their_caps_beside_those_of_runs() {
    let mut story = Story::new(&[]);
    for number in 0..CAPS_OF_RUNS_MAX + 10 {
        story.cap(&format!(
            "c{number} run:x{} tokens rolling:60 100",
            number / 8
        ));
    }
    let five = "requests 1 tokens 1 input_tokens 1 output_tokens 1 cost 1";
    for number in 0..CAPS_OF_RUNS_MAX / 5 {
        story.reserve(&opens(name(number), five));
    }
    assert_eq!(story.account().caps().len(), 2 * CAPS_OF_RUNS_MAX + 10);
    story.skip();
    let one_more = story.reserve(&opens("r", "tokens 1"));
    assert!(matches!(
        story.error(&one_more),
        CommandError::TooManyRuns { .. }
    ));
    story.then(&[]);
    story.cap("new account tokens balance 10000");
}

/// Where no hard cap refuses them: their closes would take what others hold out of the caps.
#[test]
fn budgets_hold_no_more_together_than_can_be_counted() {
    let mut story = Story::new(&[]);
    story.reserve(&opens("r", "tokens 2500"));
    let most = format!("tokens {AMOUNT_MAX}");
    for number in 0..4 {
        let huge = story.reserve(&opens(name(number), &most));
        is_invalid(&story, &huge, "give a smaller budget");
    }
    let rest = story.reserve(&opens("s", &format!("tokens {}", AMOUNT_MAX - 2500)));
    story.cap("late account tokens balance 3000");
    assert_eq!(story.stands("late"), (0, AMOUNT_MAX));
    story.release(&rest);
    assert_eq!(story.stands("late"), (0, 2500));
}

#[test]
fn a_refusal_tells_what_runs_hold_of_its_cap() {
    let mut story = Story::new(BOTH);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.reserve(&within("r", 0, 20));
    story.reserve(&ask(0, 10));
    let first = story.reserve(&ask(0, 21));
    assert_eq!(story.refusal(&first).held_by_runs, 50, "of 60");
    story.spend(&within("r", 0, 5), 0, 5);
    let second = story.reserve(&ask(0, 21));
    assert_eq!(story.refusal(&second).held_by_runs, 45);
    story.release(&run);
    let third = story.reserve(&ask(0, 46));
    let refusal = story.refusal(&third);
    assert_eq!((refusal.held_by_runs, refusal.cap.held), (0, 30));
}

// --- requests in the run ---

#[test]
fn a_request_in_the_run_takes_from_the_run_and_nothing_more_from_the_key() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&ask(0, 30));
    let call = story.reserve(&within("r", 10, 20));
    story.then(&["opened r with tokens 50", "reserved 0+30", "reserved 10+20"]);
    assert_eq!(story.stands("mine"), (0, 80));
    assert_eq!(story.stands("run:r:tokens"), (0, 30));
    assert_eq!(
        caps_of(&story, &call),
        [("run:r:tokens".to_owned(), 50, 0, 30)],
        "a caller hears of the caps that limit it"
    );
    let EventBody::Reserved(data) = story.events().pop().unwrap().event.body else {
        panic!("no hold");
    };
    let evidence: Vec<&str> = data.caps.iter().map(|cap| cap.cap.as_str()).collect();
    assert_eq!(evidence, ["all", "mine", "run:r:tokens"]);
    story.settle(&call, 10, 5);
    assert_eq!(story.stands("run:r:tokens"), (15, 0));
    assert_eq!(
        story.stands("mine"),
        (15, 65),
        "spent and held together stay"
    );
    assert_eq!(story.stands("all"), (15, 65));
}

#[test]
fn a_run_ends_at_its_budget_while_its_key_has_more() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.spend(&within("r", 10, 30), 10, 30);
    story.reserve(&within("r", 0, 11));
    story.reserve(&within("r", 0, 10));
    story.reserve(&within("r", 0, 10));
    story.then(&[
        "opened r with tokens 50",
        "reserved 10+30",
        "settled 10+30",
        "crossed 50% of run:r:tokens",
        "crossed 80% of run:r:tokens",
        "refused spent by run:r:tokens",
        "reserved 0+10",
        "refused held by run:r:tokens",
    ]);
    story.spend(&ask(0, 50), 0, 50);
    assert_eq!(story.stands("all"), (90, 10));
}

#[test]
fn a_request_in_the_run_is_clamped_by_the_run_alone() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&ask(0, 50));
    let call = story.reserve(&Ask {
        on_short: OnShort::Clamp,
        ..within("r", 10, 90)
    });
    assert!(story.grant(&call).clamped);
    story.then(&["opened r with tokens 50", "reserved 0+50", "reserved 10+40"]);
    assert_eq!(story.stands("all"), (0, 100));
}

#[test]
fn a_request_in_the_run_is_resized_within_the_run() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&ask(0, 50));
    let call = story.reserve(&within("r", 10, 10));
    story.resize(&call, 10, 40);
    let short = story.resize(&call, 10, 41);
    assert_eq!(
        story.error(&short),
        CommandError::Short {
            cap: cap_id("run:r:tokens"),
            meter: Meter::Tokens,
            available: 0,
            requested: 1,
        }
    );
    assert_eq!(
        (story.stands("all"), story.stands("run:r:tokens")),
        ((0, 100), (0, 50))
    );
    story.resize(&call, 1, 1);
    assert_eq!(
        (story.stands("all"), story.stands("run:r:tokens")),
        ((0, 100), (0, 2))
    );
}

#[test]
fn meters_without_a_budget_and_narrower_scopes_limit_as_ever() {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "count account requests balance 1",
        "model model:m tokens balance 5",
        "user end_user:u tokens balance 5",
        "label run:r tokens rolling:60 20",
    ]);
    story.reserve(&opens("r", "tokens 50"));
    story.skip();
    story.reserve(&Ask {
        model: Some("m"),
        ..within("r", 0, 6)
    });
    story.reserve(&Ask {
        end_user: Some("u"),
        ..within("r", 0, 6)
    });
    story.reserve(&within("r", 0, 21));
    let open = story.reserve(&within("r", 0, 20));
    story.reserve(&within("r", 0, 0));
    story.then(&[
        "refused spent by model",
        "refused spent by user",
        "refused unsatisfiable by label until 60000",
        "reserved 0+20",
        "refused held by count",
    ]);
    assert_eq!(
        (story.stands("label"), story.stands("count")),
        ((0, 20), (0, 1))
    );
    story.settle(&open, 0, 20);
    assert_eq!(
        (story.stands("label"), story.stands("count")),
        ((20, 0), (1, 0))
    );
}

#[test]
fn another_keys_request_in_the_run_is_held_by_its_own_key_too() {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "mine key:k tokens balance 80",
        "other key:l tokens balance 10",
    ]);
    story.reserve(&opens("r", "tokens 50"));
    let other = |output| Ask {
        key: "l",
        ..within("r", 0, output)
    };
    story.reserve(&other(11));
    let call = story.reserve(&other(10));
    story.then(&[
        "opened r with tokens 50",
        "refused spent by other",
        "reserved 0+10",
    ]);
    assert_eq!(
        (story.stands("all"), story.stands("other")),
        ((0, 50), (0, 10))
    );
    story.settle(&call, 0, 10);
    assert_eq!(
        (story.stands("all"), story.stands("other")),
        ((10, 40), (10, 0))
    );
    assert_eq!(
        story.stands("mine"),
        (0, 40),
        "what another key pays, this one need not"
    );
}

#[test]
fn a_request_of_another_run_or_of_none_is_not_in_the_run() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 90"));
    story.reserve(&within("s", 0, 11));
    story.reserve(&ask(0, 11));
    story.then(&[
        "opened r with tokens 90",
        "refused held by all",
        "refused held by all",
    ]);
}

// --- overruns, expiry, late settles ---

#[test]
fn an_overrun_in_the_run_is_charged_in_full_and_uncovers_nobody() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    let first = story.reserve(&within("r", 0, 25));
    let second = story.reserve(&within("r", 0, 25));
    story.reserve(&ask(0, 50));
    story.skip();
    story.settle(&first, 0, 45);
    story.then(&[
        "settled 0+45",
        "overrun 0+20",
        "crossed 50% of run:r:tokens",
        "crossed 80% of run:r:tokens",
    ]);
    assert_eq!(story.stands("run:r:tokens"), (45, 25));
    assert_eq!(
        story.stands("all"),
        (45, 75),
        "the second's hold is still held, the excess shows"
    );
    story.settle(&second, 0, 25);
    assert_eq!(
        (story.stands("run:r:tokens"), story.stands("all")),
        ((70, 0), (70, 50))
    );
    story.reserve(&within("r", 0, 1));
    story.then(&[
        "settled 0+25",
        "crossed 50% of all",
        "crossed 100% of run:r:tokens",
        "refused spent by run:r:tokens",
    ]);
}

#[test]
fn a_request_that_expires_in_the_run_is_charged_to_it() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&Ask {
        life_ms: 1000,
        ..within("r", 0, 20)
    });
    story.reserve(&Ask {
        life_ms: 1000,
        on_unknown: OnUnknown::Release,
        ..within("r", 0, 30)
    });
    story.at(1000 + GRACE_MS);
    assert_eq!(
        (story.stands("run:r:tokens"), story.stands("all")),
        ((20, 0), (20, 30))
    );
}

#[test]
fn what_a_late_settle_gives_back_goes_to_the_key_and_not_to_the_run() {
    let mut story = Story::new(&["all account tokens rolling:60 100"]);
    story.reserve(&opens("r", "tokens 50"));
    let late = story.reserve(&Ask {
        life_ms: 1000,
        ..within("r", 0, 40)
    });
    story.at(1000 + GRACE_MS);
    assert_eq!(
        (story.stands("run:r:tokens"), story.stands("all")),
        ((40, 0), (40, 10))
    );
    // by now the charge has left the window and others have taken its room
    story.at(100_000);
    story.reserve(&ask(0, 90));
    assert_eq!(story.stands("all"), (0, 100));
    story.settle(&late, 0, 15);
    assert_eq!(story.stands("all"), (0, 100), "nothing is held anew");
    assert_eq!(story.stands("run:r:tokens"), (15, 0));
    assert_eq!(
        story
            .account()
            .cap(&cap_id("run:r:tokens"))
            .unwrap()
            .limit(),
        25
    );
}

#[test]
fn a_late_settle_above_its_charge_takes_from_what_the_run_has_left() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    let late = story.reserve(&Ask {
        life_ms: 1000,
        on_unknown: OnUnknown::Release,
        ..within("r", 0, 40)
    });
    story.at(1000 + GRACE_MS);
    assert_eq!(
        (story.stands("run:r:tokens"), story.stands("all")),
        ((0, 0), (0, 50))
    );
    story.settle(&late, 0, 30);
    assert_eq!(
        (story.stands("run:r:tokens"), story.stands("all")),
        ((30, 0), (30, 20))
    );
}

#[test]
fn a_late_settle_from_before_the_run_was_opened_anew_is_not_the_new_runs() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    let late = story.reserve(&Ask {
        life_ms: 1000,
        ..within("r", 0, 40)
    });
    story.at(1000 + GRACE_MS);
    story.release(&run);
    story.reserve(&opens("r", "tokens 20"));
    assert_eq!(story.stands("all"), (40, 20));
    story.settle(&late, 0, 10);
    assert_eq!(
        (story.stands("run:r:tokens"), story.stands("all")),
        ((0, 0), (10, 20))
    );
}

// --- closing ---

#[test]
fn closing_a_run_gives_the_rest_back_and_takes_its_caps_away() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.spend(&within("r", 0, 20), 0, 20);
    story.release(&run);
    story.then(&[
        "opened r with tokens 50",
        "reserved 0+20",
        "settled 0+20",
        "released",
    ]);
    assert_eq!(story.stands("all"), (20, 0));
    assert!(story.account().cap(&cap_id("run:r:tokens")).is_none());
    assert!(story.account().runs().is_empty());
    let again = story.release(&run);
    assert!(matches!(
        story.error(&again),
        CommandError::AlreadyResolved { .. }
    ));
}

#[test]
fn a_closed_runs_name_is_a_plain_label_again() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.release(&run);
    story.spend(&within("r", 0, 80), 0, 80);
    assert_eq!(story.stands("all"), (80, 0));
}

#[test]
fn requests_that_are_open_when_their_run_closes_hold_by_themselves() {
    let mut story = Story::new(BOTH);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.spend(&within("r", 0, 5), 0, 5);
    let first = story.reserve(&within("r", 0, 10));
    let second = story.reserve(&within("r", 0, 20));
    assert_eq!(story.stands("mine"), (5, 45));
    story.release(&run);
    assert_eq!(
        (story.stands("mine"), story.stands("all")),
        ((5, 30), (5, 30))
    );
    story.settle(&first, 0, 3);
    story.release(&second);
    assert_eq!(
        (story.stands("mine"), story.stands("all")),
        ((8, 0), (8, 0))
    );
}

#[test]
fn a_run_closes_at_its_deadline_with_the_rest_given_back_whatever_the_policy() {
    for on_unknown in [OnUnknown::ChargeHold, OnUnknown::Release] {
        let mut story = Story::new(ALL);
        let run = story.reserve(&Ask {
            life_ms: 5000,
            on_unknown,
            ..opens("r", "tokens 50")
        });
        let call = story.reserve(&within("r", 0, 20));
        story.at(5000 + GRACE_MS);
        story.then(&[
            "opened r with tokens 50",
            "reserved 0+20",
            "expired charging 0+0",
        ]);
        let EventBody::Expired(data) = story.events().pop().unwrap().event.body else {
            panic!("not expired");
        };
        let given_back = (Amounts::zero(), OnUnknown::Release);
        assert_eq!((data.charge, data.policy), given_back);
        assert_eq!(story.stands("all"), (0, 20));
        let late = story.settle(&run, 0, 0);
        assert!(matches!(
            story.error(&late),
            CommandError::AlreadyResolved { .. }
        ));
        story.settle(&call, 0, 20);
        assert_eq!(story.stands("all"), (20, 0));
    }
}

#[test]
fn a_budget_is_neither_settled_nor_resized() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    let settle = story.settle(&run, 0, 20);
    is_invalid(&story, &settle, "release it to close the run");
    let resize = story.resize(&run, 0, 20);
    is_invalid(&story, &resize, "release it to close the run");
    story.then(&["opened r with tokens 50"]);
}

#[test]
fn a_revoked_keys_run_takes_no_new_requests_of_it_and_its_open_ones_end() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    let call = story.reserve(&within("r", 0, 20));
    let key = KeyId::new("k").unwrap();
    story.change(Change::RevokeKey {
        key: key.clone(),
        reason: None,
    });
    let refused = story.reserve(&within("r", 0, 1));
    assert_eq!(story.error(&refused), CommandError::KeyRevoked { key });
    story.settle(&call, 0, 20);
    assert_eq!(story.stands("all"), (20, 30));
    story.release(&run);
    assert_eq!(story.stands("all"), (20, 0));
}

// --- caps that change meanwhile ---

#[test]
fn a_cap_set_while_a_run_is_open_holds_the_runs_rest_and_not_its_requests() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.spend(&within("r", 0, 5), 0, 5);
    let call = story.reserve(&within("r", 0, 20));
    story.cap("new key:k tokens balance 200");
    story.cap("count key:k requests balance 200");
    story.cap("at_once account concurrency balance 200");
    story.cap("label run:r tokens rolling:60 200");
    assert_eq!(story.stands("new"), (0, 45));
    assert_eq!(
        (story.stands("count"), story.stands("at_once")),
        ((0, 1), (0, 1))
    );
    assert_eq!(story.stands("label"), (0, 20));
    story.settle(&call, 0, 20);
    assert_eq!(story.stands("new"), (20, 25));
    assert_eq!(
        (story.stands("count"), story.stands("at_once")),
        ((1, 0), (0, 0))
    );
    story.release(&run);
    assert_eq!(
        (story.stands("new"), story.stands("label")),
        ((20, 0), (20, 0))
    );
}

#[test]
fn a_cap_removed_and_set_again_while_a_run_is_open_still_gets_its_rest_back() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    let call = story.reserve(&within("r", 0, 20));
    story.change(Change::RemoveCap { cap: cap_id("all") });
    story.settle(&call, 0, 20);
    story.reserve(&within("r", 0, 10));
    story.cap(ALL[0]);
    assert_eq!(story.stands("all"), (0, 30));
    story.release(&run);
    assert_eq!(story.stands("all"), (0, 10));
}

#[test]
fn the_caps_of_an_open_run_are_not_an_operators_to_change() {
    let mut story = Story::new(ALL);
    let set = story.change(Change::SetCap(spec(
        "run:r:tokens account tokens balance 9",
    )));
    is_invalid(&story, &set, "another id");
    let run = story.reserve(&opens("r", "tokens 50"));
    let cap = cap_id("run:r:tokens");
    let (amount, delta, reason) = (5, 5, "why".to_owned());
    for change in [
        Change::SetCap(spec("run:r:tokens run:r tokens balance 9")),
        Change::RemoveCap { cap: cap.clone() },
        Change::Credit {
            cap: cap.clone(),
            amount,
            reason: None,
        },
        Change::Adjust { cap, delta, reason },
    ] {
        let call = story.change(change.clone());
        match change {
            Change::SetCap(_) => is_invalid(&story, &call, "another id"),
            _ => is_invalid(
                &story,
                &call,
                &format!("release reservation {}", run.reservation()),
            ),
        }
    }
    story.then(&["opened r with tokens 50"]);
}

#[test]
fn spend_in_a_run_ages_by_its_request_and_a_runs_hold_never() {
    let mut story = Story::new(&["minute account tokens rolling:60 100"]);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.at(30_000);
    story.spend(&within("r", 0, 20), 0, 20);
    story.at(90_999);
    assert_eq!(story.stands("minute"), (20, 30));
    story.at(91_000);
    assert_eq!(story.stands("minute"), (0, 30));
    // a request that outlives the window
    let call = story.reserve(&within("r", 0, 30));
    story.at(300_000);
    assert_eq!(story.stands("minute"), (0, 30));
    story.settle(&call, 0, 30);
    assert_eq!(
        (story.stands("minute"), story.stands("run:r:tokens")),
        ((0, 0), (50, 0))
    );
    story.release(&run);
    assert_eq!(story.stands("minute"), (0, 0));
}

// --- waiting ---

#[test]
fn requests_that_wait_in_a_run_are_woken_by_its_settles() {
    let mut story = Story::new(ALL);
    story.reserve(&opens("r", "tokens 50"));
    let first = story.reserve(&within("r", 0, 40));
    let waits = story.reserve(&Ask {
        wait_ms: 2000,
        ..within("r", 0, 30)
    });
    story.skip();
    assert!(story.answer(&waits).is_none());
    story.settle(&first, 0, 10);
    story.then(&["settled 0+10", "reserved 0+30"]);
}

#[test]
fn the_end_of_a_run_wakes_those_who_wait_for_its_room() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 80"));
    story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(0, 90)
    });
    let inside = story.reserve(&Ask {
        wait_ms: 2000,
        ..within("r", 0, 10)
    });
    story.then(&["opened r with tokens 80", "reserved 0+10"]);
    story.settle(&inside, 0, 10);
    story.release(&run);
    story.then(&["settled 0+10", "released", "reserved 0+90"]);
}

#[test]
fn a_request_in_a_run_does_not_stand_behind_those_who_wait_for_the_key() {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "one account concurrency balance 3",
    ]);
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(0, 60)
    });
    story.skip();
    story.reserve(&Ask {
        wait_ms: 2000,
        ..within("r", 0, 50)
    });
    story.then(&["reserved 0+50"]);
}

#[test]
fn a_waiter_that_shares_a_cap_with_a_run_it_is_not_in_keeps_its_turn() {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "one account requests balance 1",
    ]);
    let open = story.reserve(&ask(0, 60));
    story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(0, 60)
    });
    // needs nothing of the requests that the first in line waits for, but of its tokens
    story.reserve(&Ask {
        wait_ms: 2000,
        ..opens("r", "tokens 40")
    });
    story.skip();
    story.release(&open);
    story.then(&["released", "reserved 0+60", "opened r with tokens 40"]);
}

// --- idempotency, counting, restarts ---

#[test]
fn the_same_opening_has_the_same_outcome_and_another_budget_is_a_conflict() {
    let mut story = Story::new(ALL);
    let command = story.command(&opens("r", "tokens 50"));
    let first = story.send(command.id, Request::Reserve(command.clone()));
    let again = story.send(command.id, Request::Reserve(command.clone()));
    assert_eq!(story.grant(&first).position, story.grant(&again).position);
    for budget in [None, Some(Budget::new([(Meter::Tokens, 51)]).unwrap())] {
        let other = seatbelt_ledger::api::Reserve {
            budget,
            ..command.clone()
        };
        let other = story.send(command.id, Request::Reserve(other));
        assert_eq!(
            story.error(&other),
            CommandError::Conflict { id: command.id }
        );
    }
    story.restart();
    story.skip();
    let after = story.send(command.id, Request::Reserve(command));
    assert_eq!(story.grant(&first).position, story.grant(&after).position);
    let release = story.release_command(&first);
    for _ in 0..2 {
        story.send(release.id, Request::Release(release.clone()));
    }
    story.then(&["released"]);
}

#[test]
fn hammering_refusals_of_a_budget_are_counted_and_decide_again() {
    let mut story = Story::new(ALL);
    for _ in 0..300 {
        let call = story.reserve(&opens("r", "tokens 101"));
        assert_eq!(story.refusal(&call).requested, 101);
    }
    story.at(2000);
    let counted = story.events().pop().unwrap().event.body;
    let EventBody::Refused(data) = counted else {
        panic!("{counted:?}");
    };
    assert_eq!((data.count, data.want.tokens), (300 - 256, 101));
}

#[test]
fn a_run_survives_the_writer_that_opened_it() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&Ask {
        life_ms: 5000,
        ..opens("r", "tokens 50")
    });
    let call = story.reserve(&within("r", 0, 20));
    story.restart();
    story.settle(&call, 0, 15);
    assert_eq!(
        (story.stands("all"), story.stands("run:r:tokens")),
        ((15, 35), (15, 0))
    );
    let settle = story.settle_command(&run, 0, 1);
    let refused = story.send(settle.id, Request::Settle(settle, Ack::Durable));
    is_invalid(&story, &refused, "release it");
    story.at(5000 + GRACE_MS);
    assert_eq!(story.stands("all"), (15, 0));
}

#[test]
fn an_account_with_an_open_run_reads_back_from_its_snapshot_and_an_old_one_has_none() {
    let mut story = Story::new(ALL);
    let bytes = |story: &Story| seatbelt_schemas::wire::encode(story.account());
    let names = |bytes: &[u8]| {
        let value: serde_json::Value = seatbelt_schemas::wire::decode("account", bytes).unwrap();
        value.as_object().unwrap().contains_key("runs")
    };
    assert!(!names(&bytes(&story)), "without runs it is what it was");
    story.reserve(&opens("r", "tokens 50"));
    story.reserve(&within("r", 0, 20));
    let stored = bytes(&story);
    assert!(names(&stored));
    let read: seatbelt_ledger::account::Account =
        seatbelt_schemas::wire::decode("account", &stored).unwrap();
    assert_eq!(read, *story.account());
}

#[test]
fn a_runs_caps_are_among_the_standings_of_the_key_that_opened_it() {
    let mut story = Story::new(BOTH);
    story.reserve(&opens("r", "tokens 50"));
    let standings = |key: &str| {
        let key = KeyId::new(key).unwrap();
        let caps = story.account().standings(Some(&key), None, story.now_ms);
        let caps: Vec<_> = caps.collect();
        let ids: Vec<String> = caps.iter().map(|cap| cap.cap.to_string()).collect();
        assert!(caps.iter().all(|cap| cap.window == Window::Balance));
        ids
    };
    assert_eq!(standings("k"), ["all", "mine", "run:r:tokens"]);
    assert_eq!(standings("l"), ["all"]);
}
