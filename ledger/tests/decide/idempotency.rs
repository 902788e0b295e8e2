//! The same id has the same outcome, for every command, also after a restart; the same id with
//! another content is a conflict.

use seatbelt_ledger::{
    api::Ack,
    journal::{Journal, Sequence, memory::MemoryJournal},
    lookup,
    outcomes::{Fingerprint, HOT_MAX, Outcomes, Recall},
    writer::Request,
};
use seatbelt_schemas::{
    command::{Change, CommandError},
    event::{AccountOpened, Event},
    ids::{Actor, CommandId},
    position::Position,
};

use crate::story::{Ask, START_MS, Story, account, ask, cap_id, spec, tell};

const ALL: &[&str] = &["all account tokens balance 100"];

/// Sends a command, again, again after a restart, and with another content.
#[track_caller]
fn same_outcome(story: &mut Story, id: CommandId, request: &Request, other: Request) {
    let first = story.send(id, request.clone());
    let answer = story.answer(&first).cloned().expect("answered");
    assert!(answer.is_ok(), "{answer:?}");
    let events = story.events().len();
    let again = story.send(id, request.clone());
    assert_eq!(story.answer(&again), Some(&answer));
    assert_eq!(story.events().len(), events, "nothing new is written");
    story.restart();
    let later = story.send(id, request.clone());
    assert_eq!(story.answer(&later), Some(&answer));
    let conflict = story.send(id, other);
    assert_eq!(story.error(&conflict), CommandError::Conflict { id });
    assert_eq!(
        story.events().len(),
        events + 1,
        "only the new writer's start"
    );
}

#[test]
fn a_reserve_is_granted_once() {
    let mut story = Story::new(ALL);
    let command = story.command(&ask(10, 20));
    let mut other = command.clone();
    other.output_tokens += 1;
    same_outcome(
        &mut story,
        command.id,
        &Request::Reserve(command),
        Request::Reserve(other),
    );
    assert_eq!(story.stands("all"), (0, 30));
}

#[test]
fn a_refusal_stays_a_refusal_when_there_is_room_again() {
    let mut story = Story::new(ALL);
    let open = story.reserve(&ask(10, 80));
    let command = story.command(&ask(10, 20));
    let mut other = command.clone();
    other.input_tokens -= 1;
    let request = Request::Reserve(command.clone());
    same_outcome(&mut story, command.id, &request, Request::Reserve(other));
    story.release(&open);
    let again = story.send(command.id, request);
    story.refusal(&again);
}

#[test]
fn a_refusal_stays_a_refusal_after_the_deadline_of_the_request() {
    let mut story = Story::new(ALL);
    let command = story.command(&Ask {
        life_ms: 5000,
        ..ask(10, 200)
    });
    let first = story.send(command.id, Request::Reserve(command.clone()));
    let refusal = story.refusal(&first);
    story.at(60_000);
    let again = story.send(command.id, Request::Reserve(command));
    assert_eq!(story.refusal(&again), refusal);
}

#[test]
fn a_settle_is_charged_once() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 20));
    let command = story.settle_command(&call, 10, 40);
    let mut other = command.clone();
    other.report.usage.output_tokens -= 1;
    let ack = Ack::Durable;
    same_outcome(
        &mut story,
        command.id,
        &Request::Settle(command.clone(), ack),
        Request::Settle(other, ack),
    );
    let taken = story.send(command.id, Request::Settle(command, Ack::Taken));
    assert!(matches!(story.answer(&taken), Some(Ok(_))));
    assert_eq!(story.stands("all"), (50, 0));
}

#[test]
fn a_release_and_a_resize_happen_once() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 20));
    let command = story.resize_command(&call, 10, 30);
    let mut other = command.clone();
    other.output_tokens += 1;
    same_outcome(
        &mut story,
        command.id,
        &Request::Resize(command),
        Request::Resize(other),
    );
    assert_eq!(story.stands("all"), (0, 40));
    let command = story.release_command(&call);
    let mut other = command.clone();
    other.reason = "another".to_owned();
    same_outcome(
        &mut story,
        command.id,
        &Request::Release(command),
        Request::Release(other),
    );
    assert_eq!(story.stands("all"), (0, 0));
}

#[test]
fn an_operators_change_happens_once() {
    let mut story = Story::new(ALL);
    let credit = |amount| Change::Credit {
        cap: cap_id("all"),
        amount,
        reason: None,
    };
    let adjust = |delta| Change::Adjust {
        cap: cap_id("all"),
        delta,
        reason: "test".to_owned(),
    };
    let set = |limit| Change::SetCap(spec(&format!("new account tokens balance {limit}")));
    for (change, other) in [
        (credit(5), credit(6)),
        (adjust(5), adjust(6)),
        (set(5), set(6)),
    ] {
        let command = story.admin_command(change);
        let mut different = command.clone();
        different.change = other;
        same_outcome(
            &mut story,
            command.id,
            &Request::Admin(command),
            Request::Admin(different),
        );
    }
    assert_eq!(story.account().cap(&cap_id("all")).unwrap().limit(), 105);
    assert_eq!(story.stands("all"), (5, 0));
}

#[test]
fn an_id_serves_one_command_only() {
    let mut story = Story::new(ALL);
    let call = story.reserve(&ask(10, 20));
    let mut settle = story.settle_command(&call, 10, 5);
    settle.id = call.id;
    let conflict = story.send(call.id, Request::Settle(settle, Ack::Durable));
    assert_eq!(
        story.error(&conflict),
        CommandError::Conflict { id: call.id }
    );
}

#[test]
fn a_reserve_sent_again_after_its_end_is_told_where_it_ended() {
    let mut story = Story::new(ALL);
    let command = story.command(&ask(10, 20));
    let call = story.send(command.id, Request::Reserve(command.clone()));
    story.settle(&call, 10, 5);
    let position = story.events().last().unwrap().event.position;
    let again = story.send(command.id, Request::Reserve(command));
    let reservation = call.reservation();
    assert_eq!(
        story.error(&again),
        CommandError::AlreadyResolved {
            reservation,
            position
        }
    );
}

#[test]
fn how_long_a_caller_waits_is_not_part_of_what_it_asks() {
    let mut story = Story::new(ALL);
    let mut command = story.command(&ask(10, 20));
    let first = story.send(command.id, Request::Reserve(command.clone()));
    command.wait_ms = 1234;
    let again = story.send(command.id, Request::Reserve(command));
    assert_eq!(story.grant(&first), story.grant(&again));
}

fn change_of_id(at_ms: u64, number: usize) -> Event {
    Event {
        position: Position(1),
        at_ms: START_MS,
        account: account(),
        cause: CommandId::from_parts(at_ms, number as u128),
        actor: Actor::operator("story"),
        body: AccountOpened::default().into(),
    }
}

/// As many commands in one moment as stay hot: none that comes after them is taken for an old one, a
/// late one is known at least until it has been answered, and none of them is ever taken for new.
#[test]
fn a_burst_makes_no_new_command_old_and_no_old_one_new() {
    let mut outcomes = Outcomes::default();
    let fingerprint = Fingerprint::of_event(&change_of_id(START_MS, 0)).unwrap();
    for number in 0..=HOT_MAX {
        outcomes.apply(&change_of_id(START_MS, number));
    }
    let recall = |id| matches!(outcomes.recall(id, fingerprint), Recall::New);
    assert!(recall(CommandId::from_parts(START_MS + 1, 0)));
    assert!(!recall(CommandId::from_parts(START_MS, 0)));
    assert!(!recall(CommandId::from_parts(START_MS, 1)));

    let waited = change_of_id(START_MS - 60_000, 0);
    outcomes.apply(&waited);
    assert!(matches!(
        outcomes.recall(waited.cause, fingerprint),
        Recall::Same(_)
    ));
}

/// A caller's clock is ahead, and the reservation ends near the time in its id or far from it: the
/// search of the journal tells the same as a look at every event.
#[tokio::test]
async fn an_old_command_is_found_wherever_the_rest_of_its_story_stands() {
    for ahead_ms in [0, 900, 1_100, 5_000, 12_000, 59_000] {
        for life_ms in [0, 400, 4_500, 6_000, 20_000, 90_000] {
            let mut story = Story::new(ALL);
            let mut command = story.command(&Ask {
                life_ms: 200_000,
                ..ask(10, 20)
            });
            command.id = CommandId::from_parts(START_MS + ahead_ms, 7);
            let call = story.send(command.id, Request::Reserve(command.clone()));
            for step in 1..=10 {
                story.at(life_ms * step / 10);
                story.spend(&ask(1, 1), 1, 1);
            }
            story.settle(&call, 10, 5);
            story.spend(&ask(1, 1), 1, 1);
            let found = traced(&story, command.id).await;
            assert_eq!(
                found,
                ["reserved 10+20", "settled 10+5"],
                "{ahead_ms} {life_ms}"
            );
        }
    }
}

/// What the journal tells of a command.
async fn traced(story: &Story, id: CommandId) -> Vec<String> {
    let journal = MemoryJournal::new();
    let mut end = Sequence(0);
    for payload in story.journal() {
        end = journal.append(end, payload.clone()).await.unwrap();
    }
    let trace = lookup::trace(&journal, id, end).await.unwrap();
    trace.events.iter().map(tell).collect()
}
