//! The waiting queue: nobody is refused for holds that resolve in time, and whoever came first among
//! those who compete for a cap is served first.

use proptest::prelude::*;
use seatbelt_ledger::writer::{Request, waiting::WAITERS_PER_ACCOUNT_MAX};
use seatbelt_schemas::{command::Change, event::RefusalReason, ids::KeyId};

use crate::story::{Ask, Call, START_MS, Story, ask, looks_during};

const ALL: &[&str] = &["all account tokens balance 100"];

fn patient(input: u64, output: u64) -> Ask {
    Ask {
        wait_ms: 60_000,
        ..ask(input, output)
    }
}

#[derive(Debug, PartialEq)]
struct End {
    served: usize,
    refused: usize,
    spent: u64,
}

fn is_open(story: &Story, call: &Call) -> bool {
    story.account().open().contains_key(&call.reservation())
}

fn in_sequence(limit: u64, requests: usize, ask: &Ask, used: u64) -> End {
    let mut story = Story::new(&[&format!("all account tokens balance {limit}")]);
    let mut served = 0;
    for _ in 0..requests {
        let call = story.reserve(ask);
        if is_open(&story, &call) {
            served += 1;
            story.settle(&call, ask.input, used);
        }
    }
    let (spent, _) = story.stands("all");
    End {
        served,
        refused: requests - served,
        spent,
    }
}

fn at_once(limit: u64, requests: usize, ask: &Ask, used: u64) -> End {
    let mut story = Story::new(&[&format!("all account tokens balance {limit}")]);
    let calls: Vec<Call> = (0..requests).map(|_| story.reserve(ask)).collect();
    let mut served = 0;
    while let Some(call) = calls.iter().find(|call| is_open(&story, call)) {
        served += 1;
        story.settle(call, ask.input, used);
    }
    let refused = calls
        .iter()
        .filter(|call| story.answer(call).is_some())
        .count()
        - served;
    let (spent, held) = story.stands("all");
    assert_eq!(held, 0);
    End {
        served,
        refused,
        spent,
    }
}

#[test]
fn twenty_at_once_end_as_twenty_in_sequence() {
    let end = at_once(100, 20, &patient(10, 20), 5);
    assert_eq!(
        end,
        End {
            served: 5,
            refused: 15,
            spent: 75
        }
    );
    assert_eq!(end, in_sequence(100, 20, &patient(10, 20), 5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn any_number_at_once_end_as_in_sequence(
        limit in 1..300u64, requests in 1..30usize, input in 0..20u64, output in 1..40u64, share in 0..=100u64,
    ) {
        let (ask, used) = (patient(input, output), output * share / 100);
        prop_assert_eq!(at_once(limit, requests, &ask, used), in_sequence(limit, requests, &ask, used));
    }
}

#[test]
fn competitors_are_served_in_the_order_they_came() {
    let mut story = Story::new(&["two key:k concurrency balance 1"]);
    let calls: Vec<Call> = (0..5).map(|_| story.reserve(&patient(1, 1))).collect();
    for (index, call) in calls.iter().enumerate() {
        let open: Vec<bool> = calls.iter().map(|call| is_open(&story, call)).collect();
        let first: Vec<bool> = (0..5).map(|other| other == index).collect();
        assert_eq!(open, first);
        story.settle(call, 1, 1);
    }
}

#[test]
fn a_small_request_does_not_overtake_a_large_one_at_the_same_cap() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&patient(10, 50));
    let large = story.reserve(&patient(10, 70));
    let small = story.reserve(&patient(10, 10));
    assert!(
        story.answer(&small).is_none(),
        "it would fit, and stands behind"
    );
    story.settle(&first, 10, 0);
    story.grant(&large);
    assert!(story.answer(&small).is_none());
    story.settle(&large, 10, 60);
    story.grant(&small);
}

#[test]
fn a_small_request_is_not_held_up_at_a_cap_it_does_not_share() {
    let mut story = Story::new(&[
        "mine key:k tokens balance 100",
        "total account tokens balance 1000",
    ]);
    story.reserve(&patient(10, 50));
    let large = story.reserve(&patient(10, 70));
    let other = story.reserve(&Ask {
        key: "l",
        ..patient(10, 10)
    });
    assert!(story.answer(&large).is_none());
    story.grant(&other);
}

#[test]
fn a_waiter_whose_caller_left_is_dropped_and_holds_up_nobody() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&patient(10, 50));
    let large = story.reserve(&patient(10, 70));
    let small = story.reserve(&patient(10, 10));
    large.leaves();
    story.notice_leaving();
    story.grant(&small);
    story.settle(&first, 10, 0);
    story.then(&["reserved 10+50", "reserved 10+10", "settled 10+0"]);
    assert!(story.answer(&large).is_none());
}

#[test]
fn a_waiter_gives_up_after_its_own_patience() {
    let mut story = Story::new(ALL);
    story.reserve(&ask(10, 80));
    let short = story.reserve(&Ask {
        wait_ms: 500,
        ..ask(10, 20)
    });
    let long = story.reserve(&Ask {
        wait_ms: 2000,
        ..ask(10, 20)
    });
    story.at(1000);
    assert_eq!(story.refusal(&short).reason, RefusalReason::Held);
    assert_eq!(story.refusal(&short).at_ms, START_MS + 500);
    assert!(story.answer(&long).is_none());
    story.at(2000);
    assert_eq!(story.refusal(&long).reason, RefusalReason::Held);
    assert_eq!(story.refusal(&long).resets_at_ms, None);
}

#[test]
fn a_waiter_is_refused_as_spent_once_holds_have_become_spend() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&patient(10, 80));
    let waiter = story.reserve(&patient(10, 20));
    story.settle(&first, 10, 80);
    assert_eq!(story.refusal(&waiter).reason, RefusalReason::Spent);
}

#[test]
fn every_end_of_a_hold_lets_the_next_one_in() {
    type End = fn(&mut Story, &Call);
    let ends: [End; 5] = [
        |story, call| drop(story.settle(call, 0, 0)),
        |story, call| drop(story.release(call)),
        |story, call| drop(story.resize(call, 1, 1)),
        |story, _| story.at(31_000),
        |story, _| story.cap("all account tokens balance 200"),
    ];
    for end in ends {
        let mut story = Story::new(ALL);
        let short_lived = Ask {
            life_ms: 30_000,
            on_unknown: seatbelt_schemas::event::OnUnknown::Release,
            ..ask(10, 80)
        };
        let first = story.reserve(&short_lived);
        let waiter = story.reserve(&patient(10, 20));
        assert!(story.answer(&waiter).is_none());
        end(&mut story, &first);
        story.grant(&waiter);
    }
}

#[test]
fn a_rolling_window_that_ages_lets_a_waiter_in() {
    let mut story = Story::new(&["minute account tokens rolling:60 100"]);
    story.spend(&ask(10, 40), 10, 40);
    story.at(10_000);
    story.reserve(&ask(10, 30));
    let waiter = story.reserve(&patient(10, 20));
    assert!(story.answer(&waiter).is_none());
    assert_eq!(story.next_wake_ms(), Some(START_MS + 61_000));
    story.at(60_999);
    assert!(story.answer(&waiter).is_none());
    story.at(61_000);
    story.grant(&waiter);
}

#[test]
fn a_revoked_key_waits_no_longer() {
    let mut story = Story::new(ALL);
    story.reserve(&Ask {
        key: "l",
        ..ask(10, 80)
    });
    let waiter = story.reserve(&patient(10, 20));
    story.change(Change::RevokeKey {
        key: KeyId::new("k").unwrap(),
        reason: None,
    });
    story.error(&waiter);
}

#[test]
fn the_same_command_sent_while_it_waits_gets_the_same_answer() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 80));
    let command = story.command(&patient(10, 20));
    let once = story.send(command.id, Request::Reserve(command.clone()));
    let twice = story.send(command.id, Request::Reserve(command));
    story.settle(&first, 10, 5);
    assert_eq!(story.grant(&once), story.grant(&twice));
    story.then(&["reserved 10+80", "settled 10+5", "reserved 10+20"]);
}

#[test]
fn a_full_queue_answers_at_once() {
    let mut story = Story::new(ALL);
    story.reserve(&ask(10, 80));
    let waiters: Vec<Call> = (0..WAITERS_PER_ACCOUNT_MAX)
        .map(|_| story.reserve(&patient(10, 20)))
        .collect();
    assert!(waiters.iter().all(|call| story.answer(call).is_none()));
    let more = story.reserve(&patient(10, 20));
    assert_eq!(story.refusal(&more).reason, RefusalReason::Held);
}

#[test]
fn nobody_waits_past_the_deadline_of_the_request() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 80));
    let waiter = story.reserve(&Ask {
        life_ms: 5000,
        ..patient(10, 20)
    });
    story.at(10_000);
    assert_eq!(story.refusal(&waiter).reason, RefusalReason::Held);
    story.settle(&first, 10, 5);
    assert_eq!(story.stands("all"), (15, 0));
}

#[test]
fn what_a_command_costs_does_not_grow_with_those_who_wait() {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "mine key:l tokens balance 100",
    ]);
    let first = story.reserve(&ask(10, 80));
    (0..1000).for_each(|_| drop(story.reserve(&patient(10, 20))));
    let looks = looks_during(|| drop(story.reserve(&patient(10, 20))));
    assert_eq!(
        looks, 0,
        "a further one is decided against lines, not waiters"
    );
    let looks = looks_during(|| drop(story.settle(&first, 0, 0)));
    assert_eq!(looks, 4, "three fit now, the fourth holds up the others");
}

#[test]
fn a_waiter_is_not_looked_at_for_what_happens_at_other_caps() {
    let mut story = Story::new(&["k key:k tokens balance 100", "l key:l tokens balance 100"]);
    let other = Ask {
        key: "l",
        ..ask(10, 80)
    };
    let other = story.reserve(&other);
    story.reserve(&ask(10, 80));
    story.reserve(&patient(10, 20));
    let looks = looks_during(|| drop(story.settle(&other, 0, 0)));
    assert_eq!(looks, 0);
}

#[test]
fn a_long_line_moves_on_in_pieces_and_comes_to_its_end() {
    let mut story = Story::new(&["all account concurrency balance 1"]);
    let calls: Vec<Call> = (0..300).map(|_| story.reserve(&patient(1, 1))).collect();
    let open = |story: &Story| calls.iter().filter(|call| is_open(story, call)).count();
    let looks = looks_during(|| story.cap("all account concurrency balance 1000"));
    assert!(looks <= 64, "{looks} looks kept everybody else waiting");
    assert!(open(&story) < 300);
    // whoever comes now stands behind those who are still to be looked at
    let late = story.reserve(&patient(1, 1));
    assert!(story.answer(&late).is_none());
    assert!(
        story
            .next_wake_ms()
            .is_some_and(|at_ms| at_ms <= story.now_ms)
    );
    story.at(1);
    assert_eq!(open(&story), 300);
    story.grant(&late);
}

#[test]
fn patience_is_a_span_of_time_whatever_the_clock_says() {
    for step_ms in [-3_600_000, 3_600_000] {
        let mut story = Story::new(ALL);
        story.reserve(&Ask {
            life_ms: 7_200_000,
            ..ask(10, 80)
        });
        let waiter = story.reserve(&Ask {
            wait_ms: 2_000,
            life_ms: 7_200_000,
            ..ask(10, 20)
        });
        story.pass(500);
        story.set_clock(step_ms);
        story.pass(1_499);
        assert!(story.answer(&waiter).is_none(), "{step_ms}");
        story.pass(1);
        assert_eq!(story.refusal(&waiter).reason, RefusalReason::Held);
    }
}
