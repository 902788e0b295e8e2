//! Caps: what refuses, what waits, what is told; every meter and scope; several at once; clamping.

use seatbelt_ledger::decide::follows::THRESHOLDS_PER_DECISION_MAX;
use seatbelt_schemas::{
    command::{Change, CommandError},
    event::{EventBody, OnShort, RefusalReason},
    ids::KeyId,
    meter::Meter,
};

use crate::story::{Ask, METERS, START_MS, Story, ask, cap_id, spec};

#[test]
fn a_spent_balance_refuses_without_a_time() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.spend(&ask(10, 80), 10, 70);
    let call = story.reserve(&ask(10, 20));
    story.then(&[
        "reserved 10+80",
        "settled 10+70",
        "crossed 50% of all",
        "crossed 80% of all",
        "refused spent by all",
    ]);
    let refusal = story.refusal(&call);
    assert_eq!(
        (refusal.reason, refusal.resets_at_ms),
        (RefusalReason::Spent, None)
    );
    assert_eq!(
        (
            refusal.requested,
            refusal.cap.limit,
            refusal.cap.spent,
            refusal.cap.held
        ),
        (30, 100, 80, 0)
    );
}

#[test]
fn a_balance_below_the_request_refuses_as_spent_at_once() {
    let mut story = Story::new(&["all account tokens balance 10"]);
    story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(10, 1000)
    });
    story.then(&["refused spent by all"]);
}

#[test]
fn the_last_token_fits_and_one_more_does_not() {
    let mut story = Story::new(&["all account tokens balance 30"]);
    story.reserve(&ask(10, 21));
    story.reserve(&ask(10, 20));
    story.reserve(&ask(0, 1));
    story.then(&[
        "refused spent by all",
        "reserved 10+20",
        "refused held by all",
    ]);
}

#[test]
fn a_rolling_window_tells_when_enough_has_aged_out() {
    let mut story = Story::new(&["minute account tokens rolling:60 100"]);
    story.spend(&ask(10, 40), 10, 40);
    story.at(5000);
    story.spend(&ask(10, 40), 10, 40);
    story.skip();
    story.reserve(&ask(10, 20)); // the first 50 leave with their slot, one second after the minute
    story.reserve(&ask(10, 50)); // needs the second 50 too
    story.then(&[
        "refused spent by minute until 61000",
        "refused spent by minute until 66000",
    ]);
}

#[test]
fn what_is_above_the_limit_never_fits_a_window() {
    let mut story = Story::new(&[
        "minute account tokens rolling:60 100",
        "day account tokens day 1000",
    ]);
    story.reserve(&ask(100, 1));
    story.reserve(&ask(1000, 1));
    // one window on: a minute, a day
    story.then(&[
        "refused unsatisfiable by minute until 60000",
        "refused unsatisfiable by day until 86400000",
    ]);
}

#[test]
fn what_is_only_held_waits_and_is_refused_as_held_at_last() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.reserve(&ask(10, 70));
    let call = story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(10, 20)
    });
    story.then(&["reserved 10+70"]);
    assert!(story.answer(&call).is_none());
    story.at(1999);
    assert!(story.answer(&call).is_none());
    story.at(2000);
    story.then(&["refused held by all"]);
    assert_eq!(story.refusal(&call).cap.held, 80);
}

#[track_caller]
fn refuses(caps: &[&str], model: Option<&'static str>, line: &str) {
    let mut story = Story::new(caps);
    story.price("priced", 1, 1);
    story.spend(
        &Ask {
            key: "l",
            model: Some("priced"),
            ..ask(1, 1)
        },
        1,
        1,
    );
    story.skip();
    story.reserve(&Ask {
        model,
        ..ask(10, 20)
    });
    story.then(&[line]);
}

#[test]
fn of_several_caps_the_one_that_time_cures_last_is_told() {
    let (balance, hour) = ("b account tokens balance 20", "h account tokens hour 31");
    let (minute, too_small) = (
        "m account tokens rolling:60 31",
        "u account tokens rolling:60 29",
    );
    let money = "c account cost balance 1000";
    refuses(&[hour, minute], None, "refused spent by h until 3600000");
    refuses(&[minute, hour, balance], None, "refused spent by b");
    refuses(
        &[hour, too_small],
        None,
        "refused unsatisfiable by u until 60000",
    );
    refuses(&[too_small, balance], None, "refused spent by b");
    refuses(&[balance, too_small, money], None, "refused unpriced by c");
    refuses(
        &[money, minute],
        Some("priced"),
        "refused spent by m until 61000",
    );
}

#[test]
fn a_shortage_that_waiting_does_not_cure_is_told_before_one_that_it_does() {
    let mut story = Story::new(&[
        "busy account tokens balance 100",
        "done key:k requests balance 0",
    ]);
    story.reserve(&Ask {
        key: "l",
        ..ask(50, 50)
    });
    story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(10, 20)
    });
    story.then(&["reserved 50+50", "refused spent by done"]);
}

#[test]
fn soft_caps_never_refuse_and_still_tell() {
    let mut story = Story::new(&[
        "watch account tokens balance 10 soft",
        "money account cost balance 0 soft",
    ]);
    story.spend(&ask(10, 20), 10, 20);
    story.then(&[
        "reserved 10+20",
        "settled 10+20",
        "crossed 50% of watch",
        "crossed 80% of watch",
        "crossed 100% of watch",
    ]);
    assert_eq!(story.stands("watch"), (30, 0));
}

/// One request of 10 + 20 tokens at 2 and 3 nano-USD, and what is spent of each meter after 10 + 5.
#[test]
fn every_meter_counts_its_own() {
    let counts = |meter| match meter {
        Meter::Requests => (1, 1),
        Meter::Tokens => (30, 15),
        Meter::InputTokens => (10, 10),
        Meter::OutputTokens => (20, 5),
        Meter::Cost => (80, 35),
        Meter::Concurrency => (1, 0),
    };
    for meter in METERS {
        let (held, spent) = counts(meter);
        let mut story = Story::new(&[&format!("m account {meter} balance {held}")]);
        story.price("priced", 2, 3);
        let priced = Ask {
            model: Some("priced"),
            ..ask(10, 20)
        };
        let call = story.reserve(&priced);
        assert_eq!(story.stands("m"), (0, held), "{meter}");
        let more = story.reserve(&priced);
        assert_eq!(story.refusal(&more).reason, RefusalReason::Held, "{meter}");
        story.settle(&call, 10, 5);
        assert_eq!(story.stands("m"), (spent, 0), "{meter}");
        let again = story.reserve(&priced);
        match meter {
            Meter::Concurrency => drop(story.grant(&again)),
            _ => assert_eq!(
                story.refusal(&again).reason,
                RefusalReason::Spent,
                "{meter}"
            ),
        }
    }
}

#[test]
fn every_scope_holds_those_that_it_names_and_nobody_else() {
    let other = Ask {
        key: "l",
        model: Some("n"),
        run: Some("s"),
        end_user: Some("v"),
        ..ask(10, 20)
    };
    let named = Ask {
        key: "k",
        model: Some("m"),
        run: Some("r"),
        end_user: Some("u"),
        ..other
    };
    for scope in ["team:t", "key:k", "model:m", "run:r", "end_user:u"] {
        let mut story = Story::new(&[&format!("one {scope} tokens balance 30")]);
        let (first, second) = (story.reserve(&named), story.reserve(&named));
        story.grant(&first);
        assert_eq!(
            story.refusal(&second).cap.scope,
            spec(&format!("one {scope} tokens balance 30")).scope
        );
        let outside = story.reserve(&other);
        assert!(story.grant(&outside).caps.is_empty(), "{scope}");
        let none = story.reserve(&Ask {
            key: "l",
            ..ask(10, 20)
        });
        story.grant(&none);
    }
    let mut story = Story::new(&["one account tokens balance 30"]);
    let (first, second) = (story.reserve(&named), story.reserve(&other));
    story.grant(&first);
    story.refusal(&second);
}

#[test]
fn all_matching_caps_are_taken_and_told_in_one_event() {
    let caps = [
        "a account tokens balance 100",
        "t team:t requests day 10",
        "k key:k cost balance 1000",
        "x key:l tokens balance 0",
        "m model:m concurrency balance 5",
    ];
    let mut story = Story::new(&caps);
    story.price("m", 2, 3);
    let call = story.reserve(&Ask {
        model: Some("m"),
        ..ask(10, 20)
    });
    let held: Vec<_> = ["a", "t", "k", "x", "m"]
        .map(|cap| story.stands(cap).1)
        .into();
    assert_eq!(held, [30, 1, 80, 0, 1]);
    let events = story.events();
    let EventBody::Reserved(data) = &events.last().unwrap().event.body else {
        panic!("not reserved")
    };
    let evidence: Vec<_> = data
        .caps
        .iter()
        .map(|cap| (cap.cap.as_str(), cap.spent, cap.held))
        .collect();
    assert_eq!(
        evidence,
        [("a", 0, 0), ("t", 0, 0), ("k", 0, 0), ("m", 0, 0)]
    );
    let after: Vec<_> = story
        .grant(&call)
        .caps
        .iter()
        .map(|cap| (cap.held, cap.available()))
        .collect();
    assert_eq!(after, [(30, 70), (1, 9), (80, 920), (1, 4)]);
}

#[test]
fn a_refusal_takes_nothing_anywhere() {
    let mut story = Story::new(&[
        "wide account tokens balance 100",
        "narrow key:k tokens balance 10",
    ]);
    story.reserve(&ask(10, 20));
    assert_eq!(
        (story.stands("wide"), story.stands("narrow")),
        ((0, 0), (0, 0))
    );
    assert!(story.account().open().is_empty());
}

fn clamped(input: u64, output: u64) -> Ask {
    Ask {
        on_short: OnShort::Clamp,
        ..ask(input, output)
    }
}

#[test]
fn clamping_lowers_the_output_to_what_fits_and_says_so() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.reserve(&ask(10, 50));
    let call = story.reserve(&clamped(10, 1000));
    story.then(&["reserved 10+50", "reserved 10+30"]);
    let grant = story.grant(&call);
    assert!(grant.clamped);
    assert_eq!(grant.hold.output_tokens, 30);
    let whole = Story::new(&["all account tokens balance 100"]).whole_under_clamp();
    assert!(!whole);
}

impl Story {
    fn whole_under_clamp(mut self) -> bool {
        let call = self.reserve(&clamped(10, 20));
        self.grant(&call).clamped
    }
}

#[test]
fn clamping_leaves_at_least_one_output_token() {
    let mut story = Story::new(&["all account tokens balance 11"]);
    story.reserve(&clamped(11, 20));
    story.reserve(&clamped(10, 20));
    story.reserve(&clamped(5, 0));
    story.then(&[
        "refused spent by all",
        "reserved 10+1",
        "refused held by all",
    ]);
}

#[test]
fn clamping_keeps_to_the_tightest_of_several_caps() {
    let caps = [
        "t account tokens balance 100",
        "o key:k output_tokens balance 60",
        "c account cost balance 100",
        "r account requests balance 5",
    ];
    let mut story = Story::new(&caps);
    story.price("m", 2, 3);
    story.skip();
    story.reserve(&Ask {
        model: Some("m"),
        ..clamped(10, 200)
    });
    story.then(&["reserved 10+26 for 98"]); // 20 for the input, 26 * 3 of the 80 left
    story.cap("c account cost balance 200");
    story.cap("r account requests balance 1");
    story.skip();
    story.reserve(&Ask {
        model: Some("m"),
        ..clamped(1, 1)
    });
    story.then(&["refused held by r"]);
}

#[test]
fn an_unpriced_model_is_refused_under_a_cap_of_money_only() {
    let mut story = Story::new(&["money key:k cost balance 1000"]);
    story.reserve(&Ask {
        model: Some("m"),
        ..ask(10, 20)
    });
    story.reserve(&ask(10, 20));
    story.reserve(&clamped(10, 20));
    story.reserve(&Ask {
        key: "l",
        model: Some("m"),
        ..ask(10, 20)
    });
    story.then(&[
        "refused unpriced by money",
        "refused unpriced by money",
        "refused unpriced by money",
        "reserved 10+20",
    ]);
    story.price("m", 1, 1);
    story.skip();
    story.reserve(&Ask {
        model: Some("m"),
        ..ask(10, 20)
    });
    story.then(&["reserved 10+20 for 30"]);
}

#[test]
fn a_request_is_charged_at_the_price_it_was_reserved_under() {
    let mut story = Story::new(&["money account cost balance 1000"]);
    story.price("m", 1, 1);
    story.skip();
    let priced = Ask {
        model: Some("m"),
        ..ask(10, 20)
    };
    let old = story.reserve(&priced);
    story.price("m", 5, 5);
    let new = story.reserve(&priced);
    story.settle(&old, 10, 5);
    story.settle(&new, 10, 5);
    story.then(&[
        "reserved 10+20 for 30",
        "price_set",
        "reserved 10+20 for 150",
        "settled 10+5 for 15",
        "settled 10+5 for 75",
    ]);
    story.price("m", 5, 5);
    story.then(&[]);
}

#[test]
fn thresholds_are_told_once_per_window_also_after_a_restart() {
    let mut story = Story::new(&["day account tokens day 100"]);
    let day_ms = 12 * 3_600_000; // the story starts at noon
    story.spend(&ask(10, 50), 10, 45);
    story.then(&["reserved 10+50", "settled 10+45", "crossed 50% of day"]);
    story.restart();
    story.skip();
    story.spend(&ask(10, 5), 10, 5);
    story.then(&["reserved 10+5", "settled 10+5"]);
    story.spend(&ask(10, 5), 10, 5);
    story.then(&["reserved 10+5", "settled 10+5", "crossed 80% of day"]);
    story.at(day_ms);
    story.spend(&ask(10, 50), 10, 45);
    story.then(&["reserved 10+50", "settled 10+45", "crossed 50% of day"]);
}

/// Eight caps in each of three scopes, all reached by one settle: more thresholds than one commit is
/// sure to hold.
#[test]
fn thresholds_that_one_decision_cannot_hold_are_told_by_the_next() {
    let names: Vec<String> = ["account", "team:t", "key:k"]
        .iter()
        .flat_map(|scope| {
            (0..8).map(move |n| format!("{scope}-{n} {scope} tokens balance 100 soft"))
        })
        .collect();
    let mut story = Story::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
    story.spend(&ask(10, 90), 10, 90);
    let crossed = |story: &mut Story| {
        let events = story.events().into_iter();
        events
            .filter(|event| event.event.body.kind() == "threshold_crossed")
            .count()
    };
    assert_eq!(crossed(&mut story), THRESHOLDS_PER_DECISION_MAX);
    story.spend(&ask(1, 1), 1, 1);
    assert_eq!(crossed(&mut story), 24 * 3);
    story.spend(&ask(1, 1), 1, 1);
    assert_eq!(crossed(&mut story), 24 * 3);
}

#[test]
fn credits_raise_a_balance_and_arm_its_thresholds_again() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.spend(&ask(10, 50), 10, 45);
    story.skip();
    let credit = |cap: &str, amount| Change::Credit {
        cap: cap_id(cap),
        amount,
        reason: None,
    };
    story.change(credit("all", 100));
    story.then(&["credited"]);
    assert_eq!(story.account().cap(&cap_id("all")).unwrap().limit(), 200);
    story.spend(&ask(10, 80), 10, 70);
    story.then(&["reserved 10+80", "settled 10+70", "crossed 50% of all"]);
    story.cap("minute key:l tokens rolling:60 10");
    let (window, unknown) = (
        story.change(credit("minute", 1)),
        story.change(credit("none", 1)),
    );
    assert!(matches!(story.error(&window), CommandError::Invalid { .. }));
    assert!(matches!(
        story.error(&unknown),
        CommandError::UnknownCap { .. }
    ));
}

fn adjust(story: &mut Story, cap: &str, delta: i64) {
    let reason = "by hand".to_owned();
    story.change(Change::Adjust {
        cap: cap_id(cap),
        delta,
        reason,
    });
}

#[test]
fn an_adjustment_changes_what_is_spent_and_tells_thresholds() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    adjust(&mut story, "all", 60);
    story.then(&["adjusted", "crossed 50% of all"]);
    adjust(&mut story, "all", -20);
    assert_eq!(story.stands("all"), (40, 0));
    adjust(&mut story, "all", 20);
    story.then(&["adjusted", "adjusted", "crossed 50% of all"]);
    adjust(&mut story, "all", -1000);
    assert_eq!(story.stands("all"), (0, 0));
}

#[test]
fn an_adjustment_downwards_reaches_what_was_spent_before_in_the_window() {
    let mut story = Story::new(&[
        "minute account tokens rolling:60 100",
        "day account tokens day 100",
    ]);
    story.spend(&ask(10, 40), 10, 40);
    story.at(10_000);
    story.spend(&ask(10, 20), 10, 20);
    story.at(20_000);
    for cap in ["minute", "day"] {
        adjust(&mut story, cap, -40);
        assert_eq!(story.stands(cap), (40, 0), "{cap}");
    }
    story.at(61_000); // the first spend has aged out, and of the second nothing was left
    assert_eq!(story.stands("minute"), (0, 0));
}

#[test]
fn a_lowered_cap_only_shrinks_until_it_is_below_again() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    let (first, second) = (story.reserve(&ask(10, 20)), story.reserve(&ask(10, 20)));
    story.cap("all account tokens balance 40");
    assert_eq!(story.stands("all"), (0, 60));
    story.skip();
    story.reserve(&ask(0, 1));
    story.settle(&first, 10, 5);
    story.reserve(&ask(0, 1));
    story.settle(&second, 10, 5);
    story.reserve(&ask(5, 5));
    story.then(&[
        "refused held by all",
        "settled 10+5",
        "refused held by all",
        "settled 10+5",
        "crossed 50% of all",
        "reserved 5+5",
    ]);
}

#[test]
fn a_cap_set_later_counts_open_holds_and_what_they_become() {
    let mut story = Story::new(&[]);
    story.spend(&ask(10, 20), 10, 20);
    let call = story.reserve(&ask(10, 20));
    story.cap("all account tokens balance 40");
    story.cap("other key:l tokens balance 40");
    assert_eq!(
        (story.stands("all"), story.stands("other")),
        ((0, 30), (0, 0))
    );
    story.skip();
    story.reserve(&ask(5, 6));
    story.settle(&call, 10, 5);
    story.then(&["refused held by all", "settled 10+5"]);
    assert_eq!(story.stands("all"), (15, 0));
}

#[test]
fn a_cap_with_another_window_is_another_cap_and_begins_anew() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.spend(&ask(10, 20), 10, 20);
    story.cap("all account tokens balance 50");
    assert_eq!(story.stands("all"), (30, 0));
    story.cap("all account tokens rolling:60 50");
    assert_eq!(story.stands("all"), (0, 0));
}

#[test]
fn a_removed_cap_holds_nobody_any_more() {
    let mut story = Story::new(&["all account tokens balance 30"]);
    let call = story.reserve(&ask(10, 20));
    story.change(Change::RemoveCap { cap: cap_id("all") });
    let free = story.reserve(&ask(1000, 1000));
    story.grant(&free);
    story.settle(&call, 10, 20);
    let again = story.change(Change::RemoveCap { cap: cap_id("all") });
    assert!(matches!(story.answer(&again), Some(Ok(_))));
}

#[test]
fn a_revoked_key_reserves_nothing_and_its_holds_run_to_their_end() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    let open = story.reserve(&ask(10, 20));
    let key = KeyId::new("k").unwrap();
    story.change(Change::RevokeKey {
        key: key.clone(),
        reason: None,
    });
    story.skip();
    let refused = story.reserve(&ask(1, 1));
    assert_eq!(story.error(&refused), CommandError::KeyRevoked { key });
    story.settle(&open, 10, 5);
    story.then(&["settled 10+5"]);
    assert_eq!(story.stands("all"), (15, 0));
    let unknown = story.reserve(&Ask {
        key: "nobody",
        ..ask(1, 1)
    });
    assert!(matches!(
        story.error(&unknown),
        CommandError::UnknownKey { .. }
    ));
}

#[test]
fn evidence_is_what_stood_before_the_decision() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    story.spend(&ask(10, 20), 10, 5);
    story.reserve(&ask(10, 20));
    story.reserve(&ask(10, 80));
    let events = story.events();
    let EventBody::Refused(data) = &events.last().unwrap().event.body else {
        panic!("not refused")
    };
    let cap = &data.caps[0];
    assert_eq!((cap.limit, cap.spent, cap.held), (100, 15, 30));
    assert_eq!(events.last().unwrap().event.at_ms, START_MS);
}

/// A sum that stopped at the end of its range would give back more than it took.
#[test]
fn what_an_account_holds_stays_countable() {
    let mut story = Story::new(&["all account cost balance 100 soft"]);
    story.price("m", 0, 1_000_000_000);
    let dear = Ask {
        model: Some("m"),
        ..ask(0, 4_000_000_000)
    };
    let small = Ask {
        output: 1,
        ..dear.clone()
    };
    let (first, second) = (story.reserve(&dear), story.reserve(&small));
    let held = story.stands("all").1;
    assert_eq!(held, 4_000_000_001_000_000_000);
    let more = (0..5).map(|_| story.reserve(&dear)).collect::<Vec<_>>();
    let grown = story.resize(&second, 0, 4_000_000_000);
    let exchanged = story.exchange(&second, &dear);
    for call in more.iter().chain([&grown, &exchanged]) {
        let error = story.error(call);
        assert!(matches!(error, CommandError::Invalid { .. }), "{error}");
    }
    assert_eq!(story.stands("all").1, held);
    let other = story.exchange(&first, &dear);
    story.grant(&other);
    story.release(&other);
    assert_eq!(story.stands("all").1, 1_000_000_000);
}
