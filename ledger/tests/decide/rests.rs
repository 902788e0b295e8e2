//! An answer rests on what was decided before it, and is given once that lasts: whoever was told may act
//! on it, and a writer that dies takes nothing back. Only a settle is told that it is taken.

use seatbelt_ledger::{
    api::{Ack, Read},
    writer::{Reply, Request, replies::RESTING_MAX},
};
use seatbelt_schemas::{
    command::{Change, CommandError, ReserveOutcome},
    ids::{AccountId, KeyId},
};

use crate::story::{Ask, Call, Story, account, ask, cap_id};

const ALL: &[&str] = &["all account tokens balance 100"];

/// A journal that stalls behind a decision of this account.
fn undecided(caps: &[&str]) -> (Story, Call) {
    let mut story = Story::new(caps);
    let held = story.reserve(&ask(10, 10));
    story.journal_stalls();
    story.reserve(&ask(1, 0));
    (story, held)
}

fn read(story: &mut Story) -> Call {
    let id = story.command(&ask(0, 0)).id;
    let query = Read {
        account: account(),
        key: None,
        run: None,
        reservation: None,
    };
    story.send(id, Request::Read(query))
}

/// Each was answered by nobody until what it rests on lasted.
#[track_caller]
fn rest(story: &mut Story, calls: &[Call]) {
    for (number, call) in calls.iter().enumerate() {
        assert_eq!(story.answer(call), None, "call {number} rests");
    }
    story.journal_flows();
    for (number, call) in calls.iter().enumerate() {
        assert!(story.answer(call).is_some(), "call {number} is answered");
    }
}

#[test]
fn an_error_of_the_state_rests_on_the_state() {
    let (mut story, held) = undecided(ALL);
    let unknown = story.command(&ask(1, 0)).id;
    let mut elsewhere = story.command(&ask(1, 0));
    elsewhere.account = AccountId::new("nobody").unwrap();
    let mut foreign = story.settle_command(&held, 1, 1);
    foreign.reservation = unknown.into();
    let mut other = story.command(&ask(1, 0));
    let first = story.send(other.id, Request::Reserve(other.clone()));
    other.output_tokens += 1;
    let no_key = Ask {
        key: "nobody",
        ..ask(1, 0)
    };
    let calls = [
        story.send(elsewhere.id, Request::Reserve(elsewhere)),
        story.reserve(&no_key),
        story.send(foreign.id, Request::Settle(foreign, Ack::Taken)),
        story.resize(&held, 1000, 1000),
        story.send(other.id, Request::Reserve(other)),
        story.change(Change::RemoveCap {
            cap: cap_id("none"),
        }),
    ];
    rest(&mut story, &calls);
    story.grant(&first);
    assert!(matches!(
        story.error(&calls[0]),
        CommandError::UnknownAccount { .. }
    ));
    assert!(matches!(
        story.error(&calls[1]),
        CommandError::UnknownKey { .. }
    ));
    assert!(matches!(
        story.error(&calls[2]),
        CommandError::UnknownReservation { .. }
    ));
    assert!(matches!(story.error(&calls[3]), CommandError::Short { .. }));
    assert!(matches!(
        story.error(&calls[4]),
        CommandError::Conflict { .. }
    ));
    assert!(
        matches!(story.answer(&calls[5]), Some(Ok(_))),
        "nothing to change"
    );
}

#[test]
fn already_resolved_rests_on_the_end_that_it_tells_of() {
    let mut story = Story::new(ALL);
    let reserve = story.command(&ask(10, 10));
    let held = story.send(reserve.id, Request::Reserve(reserve.clone()));
    story.journal_stalls();
    let settle = story.settle_command(&held, 1, 1);
    let taken = story.send(settle.id, Request::Settle(settle, Ack::Taken));
    assert!(
        matches!(story.answer(&taken), Some(Ok(Reply::Resolution(_)))),
        "a settle is taken at once"
    );
    let late = story.settle_command(&held, 2, 2);
    let calls = [
        story.release(&held),
        story.send(late.id, Request::Settle(late, Ack::Taken)),
        story.send(reserve.id, Request::Reserve(reserve)),
    ];
    rest(&mut story, &calls);
    for call in &calls {
        let error = story.error(call);
        assert!(
            matches!(error, CommandError::AlreadyResolved { .. }),
            "{error}"
        );
    }
}

#[test]
fn a_hold_that_is_told_again_rests_on_the_caps_that_it_shows() {
    let mut story = Story::new(ALL);
    let command = story.command(&ask(10, 10));
    story.send(command.id, Request::Reserve(command.clone()));
    story.journal_stalls();
    story.reserve(&ask(30, 0));
    let again = story.send(command.id, Request::Reserve(command));
    rest(&mut story, std::slice::from_ref(&again));
    assert_eq!(story.grant(&again).caps[0].held, 50);
}

#[test]
fn a_read_rests_on_what_it_shows() {
    let (mut story, _) = undecided(ALL);
    let call = read(&mut story);
    rest(&mut story, &[call]);
}

#[test]
fn a_counted_refusal_rests_on_what_it_was_short_of() {
    let mut story = Story::new(ALL);
    story.reserve(&ask(90, 0));
    for _ in 0..256 {
        story.reserve(&ask(90, 0));
    }
    story.journal_stalls();
    story.reserve(&ask(1, 0));
    let counted = story.reserve(&ask(90, 0));
    rest(&mut story, std::slice::from_ref(&counted));
    assert!(matches!(
        story.answer(&counted),
        Some(Ok(Reply::Reserve(ReserveOutcome::Refused(_))))
    ));
}

#[test]
fn what_rests_on_nothing_is_answered_at_once() {
    let mut story = Story::new(ALL);
    let call = read(&mut story);
    assert!(story.answer(&call).is_some(), "all of it lasts");
    story.journal_stalls();
    story.reserve(&ask(1, 0));
    let malformed = story.reserve(&ask(u64::MAX, 0));
    assert!(matches!(
        story.error(&malformed),
        CommandError::Invalid { .. }
    ));
}

#[test]
fn a_writer_that_steps_down_tells_nothing_of_its_state() {
    let (mut story, held) = undecided(ALL);
    let calls = [read(&mut story), story.resize(&held, 1000, 1000)];
    story.steps_down();
    for call in &calls {
        let error = story.error(call);
        assert!(matches!(error, CommandError::Unavailable { .. }), "{error}");
    }
}

#[test]
fn answers_that_rest_are_bounded() {
    let (mut story, _) = undecided(ALL);
    let calls: Vec<Call> = (0..=RESTING_MAX).map(|_| read(&mut story)).collect();
    let last = calls.last().unwrap();
    assert!(matches!(
        story.error(last),
        CommandError::Unavailable { .. }
    ));
    story.journal_flows();
    assert!(matches!(
        story.answer(&calls[0]),
        Some(Ok(Reply::Standing(_)))
    ));
}

#[test]
fn an_id_that_waits_as_a_reserve_is_no_other_command() {
    let mut story = Story::new(ALL);
    let held = story.reserve(&ask(60, 0));
    let patient = Ask {
        wait_ms: 60_000,
        ..ask(60, 0)
    };
    let command = story.command(&patient);
    let waits = story.send(command.id, Request::Reserve(command.clone()));
    let id = command.id;
    let mut resize = story.resize_command(&held, 61, 0);
    resize.id = id;
    let mut settle = story.settle_command(&held, 1, 0);
    settle.id = id;
    let mut release = story.release_command(&held);
    release.id = id;
    let mut change = story.admin_command(Change::RevokeKey {
        key: KeyId::new("l").unwrap(),
        reason: None,
    });
    change.id = id;
    for request in [
        Request::Resize(resize),
        Request::Settle(settle, Ack::Taken),
        Request::Release(release),
        Request::Admin(change),
    ] {
        let call = story.send(id, request);
        assert_eq!(story.error(&call), CommandError::Conflict { id });
    }
    assert_eq!(story.answer(&waits), None);
    story.settle(&held, 1, 0);
    story.grant(&waits);
    assert_eq!(story.stands("all"), (1, 60));
}

#[test]
fn nobody_is_granted_a_hold_at_its_own_deadline() {
    for (after_ms, granted) in [(999, true), (1000, false), (1001, false)] {
        let mut story = Story::new(ALL);
        let held = story.reserve(&ask(60, 0));
        let waits = story.reserve(&Ask {
            wait_ms: 60_000,
            life_ms: 1000,
            ..ask(60, 0)
        });
        // the writer is busy meanwhile: room comes before it looks at its clock
        story.now_ms += after_ms;
        story.settle(&held, 1, 0);
        if granted {
            story.grant(&waits);
        } else {
            let error = story.error(&waits);
            assert!(matches!(error, CommandError::Invalid { .. }), "{error}");
            assert_eq!(story.stands("all"), (1, 0));
        }
    }
}
