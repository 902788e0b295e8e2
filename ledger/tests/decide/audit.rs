//! The audit finds what does not hold in a journal, and names the place.

use std::sync::Arc;

use bytes::Bytes;
use seatbelt_ledger::audit::{EXPIRY_GRACE_MS_MAX, EXPIRY_LATE_MS_MAX};
use seatbelt_schemas::{
    budget::Budget,
    command::Change,
    commit::{ChainHash, Commit},
    event::{Event, EventBody, StoredEvent},
    ids::{AccountId, CommandId},
    meter::Meter,
    position::{Epoch, Partition, Partitions, Position},
    wire,
};

use crate::story::{Ask, Story, account, ask, cap_id, opens, prove, within};

/// Every way a reservation can go, over several commits.
fn journal() -> Vec<Bytes> {
    let mut story = Story::new(&[
        "all account tokens balance 100",
        "minute key:k tokens rolling:60 200",
    ]);
    story.price("m", 2, 3);
    story.spend(
        &Ask {
            model: Some("m"),
            ..ask(10, 20)
        },
        10,
        30,
    );
    let call = story.reserve(&ask(10, 20));
    story.resize(&call, 10, 10);
    story.release(&call);
    story.reserve(&ask(10, 200));
    let late = story.reserve(&Ask {
        life_ms: 1000,
        ..ask(10, 10)
    });
    story.restart();
    story.at(5000);
    story.settle(&late, 10, 5);
    let run = story.reserve(&opens("r", "tokens 20 requests 3"));
    story.spend(&within("r", 0, 10), 0, 5);
    story.reserve(&opens("s", "tokens 90"));
    story.release(&run);
    story.journal.clone()
}

pub(crate) fn commits(journal: &[Bytes]) -> Vec<Commit> {
    journal
        .iter()
        .map(|payload| Commit::decode(payload).unwrap())
        .collect()
}

/// Writes commits anew, each chained to the one before, as a forger with the whole journal would.
pub(crate) fn chained(commits: Vec<Commit>) -> Vec<Bytes> {
    let mut prev = ChainHash::default();
    let payloads = commits.into_iter().map(|commit| {
        let payload = Commit { prev, ..commit }.encode();
        prev = ChainHash::of(&payload);
        payload
    });
    payloads.collect()
}

/// Moves commits so many positions back.
pub(crate) fn renumber(commits: &mut [Commit], by: u64) {
    for commit in commits {
        commit.first_position.0 -= by;
        for stored in &mut commit.events {
            let position = Position(stored.event.position.0 - by);
            *stored = StoredEvent::new(Event {
                position,
                ..stored.event.clone()
            });
        }
    }
}

/// The first event that `pick` finds is changed and the whole chain recomputed. Returns its position.
fn forged(
    pick: impl Fn(&EventBody) -> bool,
    change: impl Fn(&mut Event),
) -> (Position, Vec<Bytes>) {
    let mut commits = commits(&journal());
    let events = commits.iter_mut().flat_map(|commit| &mut commit.events);
    let stored = events
        .into_iter()
        .find(|stored| pick(&stored.event.body))
        .expect("there is one");
    let mut event = stored.event.clone();
    change(&mut event);
    let position = event.position;
    *stored = StoredEvent::new(event);
    (position, chained(commits))
}

#[track_caller]
fn found(journal: &[Bytes], place: &str) -> String {
    let error = prove(journal).expect_err("it must be found");
    assert!(error.contains(place), "{error:?} does not name {place:?}");
    error
}

#[track_caller]
fn forgery_is_found(pick: impl Fn(&EventBody) -> bool, change: impl Fn(&mut Event)) {
    let (position, journal) = forged(pick, change);
    found(&journal, &format!("position {position},"));
}

#[test]
fn an_honest_journal_is_proved() {
    let journal = journal();
    let summary = prove(&journal).unwrap();
    assert_eq!((summary.open, summary.unknown, summary.accounts), (0, 0, 1));
    assert_eq!(summary.commits, journal.len() as u64);
    assert_eq!(
        chained(commits(&journal)),
        journal,
        "the forger's tools change nothing by themselves"
    );
}

#[test]
fn one_flipped_bit_anywhere_is_found_at_its_commit_or_the_next() {
    let journal = journal();
    let at = journal.len() / 2;
    for byte in 0..journal[at].len() {
        let mut bad = journal.clone();
        let mut payload = bad[at].to_vec();
        payload[byte] ^= 1;
        bad[at] = payload.into();
        let error = prove(&bad).expect_err("it must be found");
        let places = [at + 1, at + 2].map(|sequence| format!("sequence {sequence}"));
        assert!(
            places.iter().any(|place| error.starts_with(place)),
            "byte {byte}: {error}"
        );
    }
}

#[test]
fn a_removed_a_repeated_and_a_swapped_commit_are_found() {
    let journal = journal();
    for at in 0..journal.len() - 1 {
        let mut without = journal.clone();
        without.remove(at);
        found(&without, &format!("sequence {}", at + 1));
        let mut twice = journal.clone();
        twice.insert(at, journal[at].clone());
        found(&twice, &format!("sequence {}", at + 2));
        let mut swapped = journal.clone();
        swapped.swap(at, at + 1);
        found(&swapped, &format!("sequence {}", at + 1));
    }
}

#[test]
fn a_commit_removed_and_the_rest_renumbered_is_found() {
    let mut commits = commits(&journal());
    let settle = |commit: &Commit| matches!(commit.events[0].event.body, EventBody::Reserved(_));
    let at = commits.iter().position(settle).unwrap();
    let removed = commits.remove(at).events.len() as u64;
    renumber(&mut commits[at..], removed);
    found(&chained(commits), &format!("sequence {}, position", at + 1));
}

/// Credits every so often from some time on, each a commit of its own.
pub(crate) fn credit(story: &mut Story, times: u64, from_ms: u64, every_ms: u64) {
    for time in 0..times {
        story.at(from_ms + time * every_ms);
        let (cap, amount, reason) = (cap_id("all"), 1, None);
        story.change(Change::Credit {
            cap,
            amount,
            reason,
        });
    }
}

#[test]
fn a_command_that_was_carried_out_twice_is_found() {
    let mut story = Story::new(&["all account tokens balance 100"]);
    credit(&mut story, 2, 1000, 1000);
    let honest = story.journal.clone();
    prove(&honest).unwrap();
    let mut commits = commits(&honest);
    let credited = commits
        .iter_mut()
        .flat_map(|commit| &mut commit.events)
        .filter(|stored| matches!(stored.event.body, EventBody::Credited(_)));
    let [first, second] = credited.collect::<Vec<_>>().try_into().unwrap();
    let cause = first.event.cause;
    let mut event = second.event.clone();
    event.cause = cause;
    let position = event.position;
    *second = StoredEvent::new(event);
    let error = found(&chained(commits), &format!("position {position},"));
    assert!(error.contains("a second time"), "{error}");
}

/// The reservation has ended, so the state alone would take its id again.
#[test]
fn a_reservation_id_that_is_taken_again_is_found() {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    story.spend(&ask(1, 1), 1, 1);
    story.spend(&ask(1, 1), 1, 1);
    let mut commits = commits(&story.journal);
    let mut taken = None;
    let mut last = Position(0);
    for stored in commits.iter_mut().flat_map(|commit| &mut commit.events) {
        let mut event = stored.event.clone();
        match (&mut event.body, taken) {
            (EventBody::Reserved(data), None) => taken = Some(data.reservation),
            (EventBody::Reserved(data), Some(first)) => {
                data.reservation = first;
                event.cause = first.into();
                last = event.position;
            }
            (EventBody::Settled(data), Some(first)) => data.reservation = first,
            _ => {}
        }
        *stored = StoredEvent::new(event);
    }
    let error = found(&chained(commits), &format!("position {last},"));
    assert!(error.contains("a second time"), "{error}");
}

#[test]
fn an_account_that_is_not_in_its_own_partition_is_found() {
    let home = |count: u8| Partitions::try_from(count).unwrap().of(&account());
    let count = (2..10).find(|count| home(*count) != Partition(0)).unwrap();
    let genesis = |body: &EventBody| matches!(body, EventBody::Genesis(_));
    let (_, journal) = forged(genesis, |event| {
        if let EventBody::Genesis(data) = &mut event.body {
            data.partitions = count;
        }
    });
    let error = found(&journal, "`account_opened`");
    assert!(error.contains("opens an account of partition"), "{error}");
}

#[test]
fn an_expiry_that_was_never_written_is_found() {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    story.reserve(&Ask {
        life_ms: 1000,
        ..ask(1, 1)
    });
    story.at(10_000);
    let late_ms = 10_000 + EXPIRY_GRACE_MS_MAX;
    credit(&mut story, 14, late_ms, EXPIRY_LATE_MS_MAX / 6);
    prove(&story.journal).unwrap();
    let mut commits = commits(&story.journal);
    let expired = |commit: &Commit| matches!(commit.events[0].event.body, EventBody::Expired(_));
    let at = commits.iter().position(expired).unwrap();
    let removed = commits.remove(at).events.len() as u64;
    renumber(&mut commits[at..], removed);
    let error = found(&chained(commits), "`credited`");
    assert!(error.contains("was due to end"), "{error}");
}

#[test]
fn a_lower_charge_is_found() {
    let settled = |body: &EventBody| matches!(body, EventBody::Settled(_));
    forgery_is_found(settled, |event| {
        let EventBody::Settled(data) = &mut event.body else {
            return;
        };
        data.charge.tokens -= 1;
    });
    forgery_is_found(settled, |event| {
        let EventBody::Settled(data) = &mut event.body else {
            return;
        };
        data.charge.cost = None;
    });
    forgery_is_found(settled, |event| {
        let EventBody::Settled(data) = &mut event.body else {
            return;
        };
        data.reserved_at_ms -= 60_000;
    });
}

#[test]
fn another_policy_at_expiry_is_found() {
    forgery_is_found(
        |body| matches!(body, EventBody::Expired(_)),
        |event| {
            let EventBody::Expired(data) = &mut event.body else {
                return;
            };
            data.charge = seatbelt_schemas::meter::Amounts::zero();
        },
    );
}

#[test]
fn false_evidence_is_found() {
    forgery_is_found(
        |body| matches!(body, EventBody::Refused(_)),
        |event| {
            let EventBody::Refused(data) = &mut event.body else {
                return;
            };
            data.caps[0].spent += 1;
        },
    );
    forgery_is_found(
        |body| matches!(body, EventBody::Reserved(_)),
        |event| {
            let EventBody::Reserved(data) = &mut event.body else {
                return;
            };
            data.caps[0].limit += 1;
        },
    );
}

#[test]
fn a_hold_above_the_cap_is_found() {
    forgery_is_found(
        |body| matches!(body, EventBody::Reserved(_)),
        |event| {
            let EventBody::Reserved(data) = &mut event.body else {
                return;
            };
            data.asked.output_tokens = 91;
            data.hold = seatbelt_schemas::meter::Amounts::request(10, 91, Some(293));
        },
    );
}

#[test]
fn a_refusal_that_was_none_is_found() {
    forgery_is_found(
        |body| matches!(body, EventBody::Refused(_)),
        |event| {
            let EventBody::Refused(data) = &mut event.body else {
                return;
            };
            data.asked.output_tokens = 1;
            data.want = seatbelt_schemas::meter::Amounts::request(10, 1, None);
        },
    );
}

#[test]
fn another_budget_or_none_is_found() {
    let more = Budget::new([(Meter::Tokens, 25), (Meter::Requests, 3)]).unwrap();
    let less = Budget::new([(Meter::Tokens, 20)]).unwrap();
    for budget in [Some(more), Some(less), None] {
        forgery_is_found(
            |body| matches!(body, EventBody::Reserved(data) if data.budget.is_some()),
            |event| {
                let EventBody::Reserved(data) = &mut event.body else {
                    return;
                };
                data.budget = budget;
            },
        );
        forgery_is_found(
            |body| matches!(body, EventBody::Refused(data) if data.budget.is_some()),
            |event| {
                let EventBody::Refused(data) = &mut event.body else {
                    return;
                };
                data.budget = budget;
            },
        );
    }
}

#[test]
fn a_larger_budget_that_would_have_fitted_is_found_at_the_next_decision() {
    let (position, journal) = forged(
        |body| matches!(body, EventBody::Reserved(data) if data.budget.is_some()),
        |event| {
            let EventBody::Reserved(data) = &mut event.body else {
                return;
            };
            let more = Budget::new([(Meter::Tokens, 25), (Meter::Requests, 3)]).unwrap();
            (data.budget, data.hold) = (Some(more), more.hold());
        },
    );
    found(&journal, &format!("position {}", position.0 + 1));
}

#[test]
fn a_request_in_a_run_that_no_longer_is_in_it_is_found() {
    forgery_is_found(
        |body| matches!(body, EventBody::Reserved(data) if data.budget.is_none() && data.scopes.run.is_some()),
        |event| {
            let EventBody::Reserved(data) = &mut event.body else {
                return;
            };
            Arc::make_mut(&mut data.scopes).run = None;
        },
    );
}

#[test]
fn a_missing_overrun_is_found_where_it_belongs() {
    let (position, journal) = forged(
        |body| matches!(body, EventBody::Overrun(_)),
        |event| {
            event.body = unknown();
        },
    );
    found(&journal, &format!("position {}", position.0 + 1));
}

#[test]
fn an_overrun_of_another_account_or_command_is_found() {
    let overrun = |body: &EventBody| matches!(body, EventBody::Overrun(_));
    forgery_is_found(overrun, |event| {
        event.account = AccountId::new("mallory").unwrap();
    });
    forgery_is_found(overrun, |event| {
        event.cause = CommandId::from_parts(1, 1);
    });
}

#[test]
fn a_threshold_that_was_not_crossed_is_found() {
    let crossed = |body: &EventBody| matches!(body, EventBody::ThresholdCrossed(_));
    forgery_is_found(crossed, |event| {
        let EventBody::ThresholdCrossed(data) = &mut event.body else {
            return;
        };
        data.spent += 1;
    });
}

/// An event that decides nothing: a kind of a later build.
pub(crate) fn unknown() -> EventBody {
    let known = Event::decode(&seatbelt_schemas::wire::encode(&serde_json::json!({
        "v": 1, "position": 1, "at_ms": 0, "account": "a", "kind": "of_a_later_build",
        "cause": "00000000000000000000000000", "actor": "test", "data": {},
    })));
    known.unwrap().body
}

/// The same journal with one more commit at its end.
fn and_then(change: impl Fn(&[Commit], Commit) -> Commit) -> (Vec<Bytes>, usize) {
    let (journal, before) = (journal(), commits(&journal()));
    let more = and_then_to(&journal, |blank| change(&before, blank.clone()));
    let count = more.len();
    (more, count)
}

/// A journal with one more commit at its end.
pub(crate) fn and_then_to(journal: &[Bytes], change: impl FnOnce(&Commit) -> Commit) -> Vec<Bytes> {
    let mut commits = commits(journal);
    let last = commits.last().unwrap().clone();
    let mut event = last.events[0].event.clone();
    event.position = last.last_position().next();
    event.at_ms = last.at_ms;
    let blank = Commit {
        first_position: event.position,
        events: vec![StoredEvent::new(event)],
        ..last
    };
    commits.push(change(&blank));
    chained(commits)
}

fn with_body(commit: &Commit, body: EventBody) -> Commit {
    let event = Event {
        body,
        ..commit.events[0].event.clone()
    };
    Commit {
        events: vec![StoredEvent::new(event)],
        ..commit.clone()
    }
}

#[test]
fn a_reservation_that_ends_twice_is_found() {
    type Pick = fn(&EventBody) -> bool;
    let ends: [Pick; 3] = [
        |body| matches!(body, EventBody::Settled(_)),
        |body| matches!(body, EventBody::Released(_)),
        |body| matches!(body, EventBody::Expired(_)),
    ];
    for pick in ends {
        let (journal, sequence) = and_then(|commits, blank| {
            let mut events = commits.iter().flat_map(|commit| &commit.events);
            let end = events.find(|stored| pick(&stored.event.body)).unwrap();
            with_body(&blank, end.event.body.clone())
        });
        found(&journal, &format!("sequence {sequence}, position"));
    }
}

#[test]
fn a_commit_of_a_reign_that_never_began_is_found() {
    let (journal, sequence) = and_then(|_, blank| {
        let commit = with_body(&blank, unknown());
        Commit {
            epoch: Epoch(commit.epoch.0 + 1),
            ..commit
        }
    });
    found(&journal, &format!("sequence {sequence}"));
}

#[test]
fn an_event_from_before_the_last_commit_is_found() {
    let (journal, sequence) = and_then(|_, blank| {
        let mut commit = with_body(&blank, unknown());
        let stored = &mut commit.events[0];
        stored.event.at_ms -= 1;
        *stored = StoredEvent::new(stored.event.clone());
        commit
    });
    let error = found(&journal, &format!("sequence {sequence}"));
    assert!(error.contains("time goes backwards"), "{error}");
}

#[test]
fn an_event_that_cannot_be_read_is_found_behind_those_that_can() {
    let (journal, sequence) = and_then(|_, blank| {
        let mut commit = with_body(&blank, unknown());
        let mut rotten = commit.events[0].clone();
        rotten.bytes = Bytes::from_static(b"not an event");
        commit.events.push(rotten);
        commit
    });
    let error = found(&journal, &format!("sequence {sequence}"));
    let last = commits(&journal[..journal.len() - 1]).pop().unwrap();
    let place = last.last_position().next();
    assert!(
        error.contains(&format!("what follows position {place} ")),
        "{error}"
    );
}

#[test]
fn a_field_that_is_not_known_is_not_proved_and_says_so() {
    let with_field = |bytes: &Bytes| {
        let mut value: rmpv::Value = wire::decode("event", bytes).unwrap();
        if let rmpv::Value::Map(fields) = &mut value {
            fields.push(("later".into(), 1.into()));
        }
        StoredEvent::read(wire::encode(&value).into()).unwrap()
    };
    let (journal, sequence) = and_then(|commits, blank| {
        let mut commit = with_body(&blank, commits[1].events[0].event.body.clone());
        commit.events[0] = with_field(&commit.events[0].bytes);
        commit
    });
    let error = found(&journal, &format!("sequence {sequence}"));
    assert!(error.contains("the field `later`"), "{error}");
    assert!(error.contains("docs/upgrade.md"), "{error}");
}

#[test]
fn another_partitions_commit_is_found() {
    let (journal, sequence) = and_then(|_, blank| Commit {
        partition: seatbelt_schemas::position::Partition(1),
        ..blank
    });
    found(&journal, &format!("sequence {sequence}"));
}

#[test]
fn a_second_genesis_is_found() {
    let (journal, sequence) =
        and_then(|commits, blank| with_body(&blank, commits[0].events[0].event.body.clone()));
    found(&journal, &format!("sequence {sequence}"));
}
