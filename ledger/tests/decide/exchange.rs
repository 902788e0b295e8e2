//! A hold in the place of another one of the same request: both or neither, and nobody in between.

use seatbelt_ledger::{
    journal::{Journal, Sequence, memory::MemoryJournal},
    lookup,
    outcomes::{Fingerprint, HOT_MAX, Outcomes, Recall},
    writer::Request,
};
use seatbelt_schemas::{
    command::CommandError,
    commit::Commit,
    event::{Attempt, EventBody},
    ids::ReservationId,
};

use crate::story::{Ask, Story, ask, opens, within};

const ALL: &[&str] = &["all account tokens balance 100"];

fn dear(input: u64, output: u64) -> Ask {
    Ask {
        model: Some("dear"),
        ..ask(input, output)
    }
}

/// The attempts that events name, in order: of holds, and of what was settled.
fn attempts(story: &Story) -> Vec<Option<Attempt>> {
    let events = story.events();
    let named = events.iter().filter_map(|stored| match &stored.event.body {
        EventBody::Reserved(data) => Some(data.attempt),
        EventBody::Settled(data) => Some(data.attempt),
        _ => None,
    });
    named.collect()
}

#[test]
fn another_attempt_takes_the_place_of_one_that_used_nothing() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 80));
    story.grant(&first);
    let second = story.exchange(&first, &dear(10, 85));
    assert_eq!(story.grant(&second).hold.tokens, 95);
    let third = story.exchange(&second, &ask(10, 20));
    story.grant(&third);
    assert_eq!(story.stands("all"), (0, 30));
    story.settle(&third, 10, 5);
    story.then(&[
        "reserved 10+80",
        "released",
        "reserved 10+85",
        "released",
        "reserved 10+20",
        "settled 10+5",
    ]);
    let of = first.reservation();
    let nth = |n| Some(Attempt { of, n });
    assert_eq!(attempts(&story), [None, nth(2), nth(3), nth(3)]);
    // what made room and what took it are one commit, for a crash may come between two
    let last = story
        .journal()
        .iter()
        .map(|payload| Commit::decode(payload).unwrap());
    let pairs = last.filter(|commit| commit.events.len() == 2);
    assert_eq!(pairs.count(), 2);
}

#[test]
fn one_that_does_not_fit_changes_nothing_and_says_what_is_short() {
    let mut story = Story::new(&["all account cost balance 1000"]);
    story.price("cheap", 1, 1);
    story.price("dear", 10, 10);
    let cheap = |input, output| Ask {
        model: Some("cheap"),
        ..ask(input, output)
    };
    let others = story.reserve(&cheap(100, 100));
    story.grant(&others);
    let first = story.reserve(&cheap(50, 50));
    story.grant(&first);
    story.skip();
    let dearer = story.exchange(&first, &dear(50, 50));
    let CommandError::Short {
        available,
        requested,
        ..
    } = story.error(&dearer)
    else {
        panic!("{:?}", story.error(&dearer));
    };
    assert_eq!((available, requested), (800, 1000));
    let unpriced = story.exchange(&first, &ask(1, 1));
    assert!(matches!(
        story.error(&unpriced),
        CommandError::Invalid { .. }
    ));
    story.then(&[]);
    assert_eq!(story.stands("all"), (0, 300));
    // its own room counts for it: 700 would not be enough without what the first gives back
    let fitting = story.exchange(&first, &dear(40, 40));
    story.grant(&fitting);
    assert_eq!(story.stands("all"), (0, 1000));
}

/// Whoever waits for room does not get it in between; what is left over afterwards they do.
#[test]
fn nobody_takes_the_room_in_between() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 80));
    story.grant(&first);
    let waits = |input, output| Ask {
        wait_ms: 5_000,
        ..ask(input, output)
    };
    let large = story.reserve(&waits(10, 40));
    let second = story.exchange(&first, &ask(10, 70));
    story.grant(&second);
    assert!(story.answer(&large).is_none());
    assert_eq!(story.stands("all"), (0, 80));
    let third = story.exchange(&second, &ask(10, 30));
    story.grant(&third);
    story.grant(&large);
    assert_eq!(story.stands("all"), (0, 90));
}

#[test]
fn it_is_carried_out_once() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 20));
    let command = story.exchange_command(&first, &ask(10, 30));
    let (id, request) = (command.reserve.id, Request::Exchange(command.clone()));
    let done = story.send(id, request.clone());
    let grant = story.grant(&done);
    let events = story.events().len();
    let again = story.send(id, request.clone());
    assert_eq!(story.grant(&again), grant);
    assert_eq!(story.events().len(), events);
    story.restart();
    let later = story.send(id, request.clone());
    assert_eq!(story.grant(&later), grant);
    let plain = story.send(id, Request::Reserve(command.reserve.clone()));
    assert_eq!(story.error(&plain), CommandError::Conflict { id });
    let mut other = command;
    other.reserve.output_tokens += 1;
    let other = story.send(id, Request::Exchange(other));
    assert_eq!(story.error(&other), CommandError::Conflict { id });
    story.settle(&done, 10, 1);
    let late = story.send(id, request);
    let reservation = ReservationId::from(id);
    assert!(matches!(
        story.error(&late),
        CommandError::AlreadyResolved { reservation: of, .. } if of == reservation
    ));
}

/// A writer that keeps nothing of it any more asks the journal, which has two events of the command.
#[tokio::test]
async fn what_became_of_an_old_one_is_found_in_the_journal() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 20));
    let command = story.exchange_command(&first, &ask(10, 30));
    let id = command.reserve.id;
    let done = story.send(id, Request::Exchange(command.clone()));
    story.grant(&done);
    story.settle(&done, 10, 1);
    let journal = MemoryJournal::with_commits(story.journal().to_vec());
    let end = journal.end().await.unwrap();
    assert_eq!(end, Sequence(story.journal().len() as u64));
    let trace = lookup::trace(&journal, id, end).await.unwrap();
    let mut outcomes = Outcomes::after(Some(id), HOT_MAX);
    outcomes.recollect(&trace);
    let known = outcomes.recall(id, Fingerprint::of_exchange(&command));
    assert!(matches!(known, Recall::Same(_)), "{known:?}");
    assert!(outcomes.ended(id.into()).is_some());
    // and where the one that made room ended
    let made_room = lookup::trace(&journal, first.id, end).await.unwrap();
    outcomes.recollect(&made_room);
    assert!(outcomes.ended(first.reservation()).is_some());
}

#[test]
fn what_is_not_open_is_not_exchanged() {
    let mut story = Story::new(ALL);
    let first = story.reserve(&ask(10, 20));
    let budget = story.reserve(&opens("r", "tokens 30"));
    story.grant(&budget);
    let of_another = Ask {
        key: "l",
        ..ask(1, 1)
    };
    let of_another = story.exchange(&first, &of_another);
    assert!(matches!(
        story.error(&of_another),
        CommandError::Invalid { .. }
    ));
    let of_run = story.exchange(&budget, &ask(1, 1));
    assert!(matches!(story.error(&of_run), CommandError::Invalid { .. }));
    let with_budget = story.exchange(&first, &opens("s", "tokens 1"));
    assert!(matches!(
        story.error(&with_budget),
        CommandError::Invalid { .. }
    ));
    story.release(&first);
    let ended = story.exchange(&first, &ask(1, 1));
    assert!(matches!(
        story.error(&ended),
        CommandError::AlreadyResolved { .. }
    ));
    let mut never = story.exchange_command(&first, &ask(1, 1));
    never.release = never.reserve.id.into();
    let own = story.send(never.reserve.id, Request::Exchange(never.clone()));
    assert!(matches!(story.error(&own), CommandError::Invalid { .. }));
    never.release = ReservationId::from_parts(story.now_ms, 77);
    let never = story.send(never.reserve.id, Request::Exchange(never));
    assert!(matches!(
        story.error(&never),
        CommandError::UnknownReservation { .. }
    ));
    // of another account, and so of another partition as well, it is as unknown
    let mut elsewhere = story.exchange_command(&budget, &ask(1, 1));
    elsewhere.reserve.account = seatbelt_schemas::ids::AccountId::new("other").unwrap();
    let elsewhere = story.send(elsewhere.reserve.id, Request::Exchange(elsewhere));
    assert!(matches!(
        story.error(&elsewhere),
        CommandError::UnknownAccount { .. }
    ));
}

/// A run's share in its payer's caps follows, whether it fits or not.
#[test]
fn within_a_run_it_takes_of_the_runs_budget() {
    let mut story = Story::new(ALL);
    let run = story.reserve(&opens("r", "tokens 50"));
    story.grant(&run);
    let first = story.reserve(&within("r", 10, 30));
    story.grant(&first);
    let stood = story.account().clone();
    let dearer = story.exchange(&first, &within("r", 10, 45));
    assert!(matches!(story.error(&dearer), CommandError::Short { .. }));
    assert_eq!(*story.account(), stood, "as if it had not been looked at");
    let fitting = story.exchange(&first, &within("r", 10, 40));
    story.grant(&fitting);
    assert_eq!(story.stands("all"), (0, 50));
    assert_eq!(story.stands("run:r:tokens"), (0, 50));
    // out of the run, its share is the run's again
    let out = story.exchange(&fitting, &ask(10, 40));
    story.grant(&out);
    assert_eq!(story.stands("all"), (0, 100));
}
