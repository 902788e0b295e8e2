use serde_json::json;

use super::*;
use crate::faults::ask::{Ask, How, Leave};

fn terms() -> Vec<Terms> {
    let key = |id: &str, limit, short| Terms {
        id: id.to_owned(),
        limit,
        span: Span::Balance,
        at_once: None,
        short,
    };
    let within = |id: &str, span| Terms {
        span,
        ..key(id, 150, true)
    };
    vec![
        key("key-wide", 1_000_000, false),
        key("key-tight", 150, true),
        within("key-rolling", Span::Rolling(60_000)),
        within("key-daily", Span::Day),
    ]
}

/// Ten requests of 15 tokens, the fifth of which nobody heard of, told as they should be.
struct Story {
    events: Vec<Value>,
    witness: Witness,
}

fn reserved(key: &str, id: &str, hold: u64) -> Value {
    let data = json!({"reservation": id, "scopes": {"key": key}, "hold": {"tokens": hold}});
    json!({"kind": "reserved", "data": data})
}

fn settled(key: &str, id: &str, tokens: u64) -> Value {
    let data = json!({
        "reservation": id, "scopes": {"key": key}, "charge": {"tokens": tokens}, "source": "upstream",
    });
    json!({"kind": "settled", "data": data})
}

fn sent(number: u64, fate: Fate, reservation: &str) -> Sent {
    let ask = Ask {
        number,
        key: 0,
        how: How::Whole,
        input: 10,
        output: 5,
        delay_ms: 0,
        leave: Leave::Never,
    };
    Sent {
        ask,
        fate,
        reservation: (!reservation.is_empty()).then(|| reservation.to_owned()),
        from_ms: 0,
        to_ms: 10,
    }
}

impl Story {
    fn told() -> Self {
        let (mut events, mut told, mut served) = (Vec::new(), Vec::new(), HashMap::new());
        for number in 0..10 {
            let id = format!("res-{number}");
            events.push(reserved("key-wide", &id, 100));
            events.push(settled("key-wide", &id, 15));
            told.push(if number == 5 {
                sent(number, Fate::Broken, "")
            } else {
                sent(number, Fate::Acknowledged(15), &id)
            });
            let outcome = Outcome::Reported(15);
            served.insert(number, Served { hits: 1, outcome });
        }
        let witness = Witness {
            sent: told,
            served,
            exact: true,
        };
        Self { events, witness }
    }

    fn judged(self, plant: Option<Plant>) -> Counts {
        let mut journal = Journal::new(&terms(), plant);
        self.events.iter().for_each(|event| journal.accept(event));
        judge(&journal, self.witness)
    }
}

#[test]
fn a_true_story_has_no_fault() {
    let counts = Story::told().judged(None);
    assert!(counts.kept(), "{counts:?}");
    assert_eq!(counts.acknowledged, 9);
}

#[test]
fn every_planted_fault_is_seen() {
    for plant in Plant::all() {
        let counts = Story::told().judged(Some(plant));
        assert!(!counts.kept(), "{plant:?}: {counts:?}");
        let seen = match plant {
            Plant::Answer | Plant::SettleLost => counts.lost,
            Plant::SettleTwice => counts.doubled,
            Plant::OverCap => counts.over,
            Plant::Refusal => counts.phantom,
        };
        assert!(seen > 0, "{plant:?}: {counts:?}");
    }
}

#[track_caller]
fn spoiled(spoil: impl FnOnce(&mut Story), count: fn(&Counts) -> u64) {
    let mut story = Story::told();
    spoil(&mut story);
    let counts = story.judged(None);
    assert!(count(&counts) > 0, "{counts:?}");
}

#[test]
fn an_answer_charged_below_what_was_served_is_lost() {
    spoiled(
        |story| story.events[1] = settled("key-wide", "res-0", 14),
        |counts| counts.lost,
    );
}

#[test]
fn an_answer_that_was_given_back_is_lost() {
    let released = json!({"reservation": "res-0", "key": "key-wide", "reason": "test"});
    let released = json!({"kind": "released", "data": released});
    spoiled(|story| story.events[1] = released, |counts| counts.lost);
}

#[test]
fn work_without_a_reservation_is_lost() {
    spoiled(
        |story| drop(story.events.drain(10..12)),
        |counts| counts.lost,
    );
}

#[test]
fn a_charge_above_what_was_served_is_doubled() {
    spoiled(
        |story| story.events[11] = settled("key-wide", "res-5", 16),
        |counts| counts.doubled,
    );
}

#[test]
fn one_request_served_twice_is_doubled() {
    spoiled(
        |story| story.witness.served.get_mut(&3).unwrap().hits = 2,
        |counts| counts.doubled,
    );
}

#[test]
fn a_reservation_that_nobody_asked_for_is_doubled() {
    spoiled(
        |story| {
            story.events.push(reserved("key-wide", "res-x", 1));
            story.events.push(settled("key-wide", "res-x", 1));
        },
        |counts| counts.doubled,
    );
}

#[test]
fn two_holds_that_do_not_fit_together_are_over_the_cap() {
    spoiled(
        |story| {
            story.events.push(reserved("key-tight", "res-a", 100));
            story.events.push(reserved("key-tight", "res-b", 51));
        },
        |counts| counts.over,
    );
}

fn refused(reason: &str, spent: u64, held: u64) -> Value {
    let data = json!({
        "reservation": "res-r", "scopes": {"key": "key-tight"}, "want": {"tokens": 100},
        "reason": reason, "cap": "cap", "terms": {"meter": "tokens"},
        "caps": [{"cap": "cap", "limit": 150, "spent": spent, "held": held}],
    });
    json!({"kind": "refused", "data": data})
}

#[test]
fn a_refusal_whose_evidence_leaves_room_is_a_phantom() {
    let phantom = |counts: &Counts| counts.phantom;
    spoiled(|story| story.events.push(refused("held", 0, 50)), phantom);
    // what is held alone is no reason to call it spent, nor is spend that is not there
    spoiled(|story| story.events.push(refused("spent", 0, 100)), phantom);
    spoiled(|story| story.events.push(refused("spent", 60, 0)), phantom);
    let mut story = Story::told();
    story.events.push(refused("held", 0, 51));
    assert!(story.judged(None).kept());
}

fn at(at_ms: u64, mut event: Value) -> Value {
    event["at_ms"] = at_ms.into();
    event
}

/// Two requests of 100 tokens on a key whose limit is 150 within its span.
#[track_caller]
fn two_within(key: &str, first_ms: u64, second_ms: u64, over: u64) {
    let mut story = Story::told();
    for (id, at_ms) in [("res-a", first_ms), ("res-b", second_ms)] {
        story.events.push(at(at_ms, reserved(key, id, 100)));
        story.events.push(at(at_ms + 5, settled(key, id, 100)));
    }
    assert_eq!(
        story.judged(None).over,
        over,
        "{key} at {first_ms} and {second_ms}"
    );
}

#[test]
fn what_is_spent_within_a_span_counts_there_and_nowhere_else() {
    const DAY_MS: u64 = 86_400_000;
    two_within("key-rolling", 1_000, 60_999, 1);
    two_within("key-rolling", 1_000, 61_000, 0);
    two_within("key-daily", 1_000, DAY_MS - 1, 1);
    two_within("key-daily", DAY_MS - 1, DAY_MS, 0);
    two_within("key-tight", 1_000, 9 * DAY_MS, 1);
}

#[test]
fn a_refusal_may_rest_on_a_slot_that_has_not_left_as_a_whole() {
    let phantoms = |at_ms: u64| {
        let mut story = Story::told();
        story
            .events
            .push(at(1_000, reserved("key-rolling", "res-a", 100)));
        story
            .events
            .push(at(1_001, settled("key-rolling", "res-a", 100)));
        let mut refused = refused("spent", 100, 0);
        refused["data"]["scopes"]["key"] = "key-rolling".into();
        refused["data"]["decided_at_ms"] = at_ms.into();
        // it is written later than it was decided
        story.events.push(at(at_ms + 90_000, refused));
        story.judged(None).phantom
    };
    assert_eq!(phantoms(61_999), 0);
    assert_eq!(phantoms(62_000), 1);
}

#[test]
fn an_event_whose_time_is_not_the_true_one_is_over_the_cap() {
    let moved = |first_ms: u64| {
        let mut story = Story::told();
        for sent in &mut story.witness.sent {
            (sent.from_ms, sent.to_ms) = (43_200_000, 43_200_010);
        }
        for event in &mut story.events {
            event["at_ms"] = 43_200_005.into();
        }
        story.events[0]["at_ms"] = first_ms.into();
        story.judged(None)
    };
    assert!(moved(43_200_005).kept());
    assert_eq!(moved(43_190_000).over, 1);
    assert_eq!(moved(43_210_000).over, 1);
}
