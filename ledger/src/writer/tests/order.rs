//! Admission and what is carried out: once however often it is asked for, in order, in time, and no more in
//! memory than there should be.

use super::*;
use crate::writer::EXPIRE_PER_TICK_MAX;

#[test]
fn a_command_that_is_sent_again_is_answered_as_it_was() {
    let mut desk = Desk::new(100);
    let command = desk.payer.reserve(10);
    desk.send(Request::Reserve(command.clone()));
    let first = grant(desk.answer());
    desk.send(Request::Reserve(command.clone()));
    let again = grant(desk.answer());
    assert_eq!((first.position, first.hold), (again.position, again.hold));
    let forged = Reserve {
        output_tokens: 11,
        ..command
    };
    desk.send(Request::Reserve(forged));
    assert!(matches!(desk.answer(), Err(CommandError::Conflict { .. })));
    assert_eq!(desk.stands(), (0, 10));
}

#[test]
fn a_reserve_that_is_sent_again_while_it_waits_has_one_hold_and_two_answers() {
    let mut desk = Desk::new(100);
    let held = desk.granted(100);
    let command = Reserve {
        wait_ms: 5_000,
        ..desk.payer.reserve(40)
    };
    desk.send(Request::Reserve(command.clone()));
    desk.send(Request::Reserve(command));
    desk.land();
    assert!(desk.answers().is_empty());
    let release = desk.payer.release(held);
    desk.send(Request::Release(release));
    desk.land();
    let answers = desk.answers();
    assert_eq!(answers.len(), 3, "{answers:?}");
    assert_eq!(desk.stands(), (0, 40));
}

#[test]
fn an_id_that_waits_is_no_other_commands() {
    let mut desk = Desk::new(100);
    let held = desk.granted(100);
    let (waits, _) = desk.reserve(40, 5_000);
    let mut release = desk.payer.release(held);
    release.id = waits.into();
    desk.send(Request::Release(release));
    assert!(matches!(desk.answer(), Err(CommandError::Conflict { .. })));
}

#[test]
fn whoever_waits_is_let_in_in_order_and_turned_away_in_time() {
    let mut desk = Desk::new(100);
    let held = desk.granted(100);
    let (_, first) = desk.reserve(70, 5_000);
    let (_, second) = desk.reserve(20, 5_000);
    let (_, third) = desk.reserve(20, 1_000);
    desk.tick(999);
    assert!(desk.answers().is_empty());
    desk.tick(1);
    desk.land();
    let answers = desk.answers();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].0, third, "its patience is over");
    let release = desk.payer.release(held);
    desk.send(Request::Release(release));
    desk.land();
    let told: Vec<_> = desk.answers().into_iter().map(|(ear, _)| ear).collect();
    assert_eq!(told[1..], [first, second]);
    assert_eq!(desk.stands(), (0, 90));
}

#[test]
fn whoever_waits_at_a_handover_is_told_to_ask_the_next_host() {
    let mut desk = Desk::new(100);
    desk.granted(70);
    let (_, first) = desk.reserve(40, 5_000);
    let (_, second) = desk.reserve(50, 5_000);
    desk.land();
    assert!(desk.answers().is_empty());
    desk.writer.hand_over();
    let answers = desk.answers();
    let told: Vec<_> = answers.iter().map(|(ear, _)| *ear).collect();
    assert_eq!(told, [first, second]);
    answers
        .iter()
        .for_each(|(_, answer)| is_unavailable(answer));
    // what would wait is told so at once, and what fits is decided
    desk.reserve(40, 5_000);
    is_unavailable(&desk.answer());
    desk.granted(30);
    assert_eq!(desk.stands(), (0, 100));
    assert!(
        desk.writer
            .next_wake_ms()
            .is_some_and(|at_ms| at_ms > desk.now_ms + 5_000)
    );
}

#[test]
fn patience_is_a_span_of_time_whatever_the_clock_is_set_to() {
    let mut desk = Desk::new(100);
    desk.granted(100);
    desk.reserve(70, 1_000);
    desk.now_ms -= 3_600_000;
    desk.writer.clock_was_set(-3_600_000);
    desk.tick(999);
    assert!(desk.answers().is_empty());
    desk.tick(1);
    let refused = desk.answer();
    assert!(matches!(
        refused,
        Ok(Reply::Reserve(ReserveOutcome::Refused(_)))
    ));
}

#[test]
fn a_hold_is_charged_once_its_deadline_and_the_grace_are_over() {
    let mut desk = Desk::new(100);
    desk.granted(10);
    let due_ms = desk.writer.next_wake_ms().unwrap();
    desk.tick(due_ms - desk.now_ms - 1);
    assert_eq!(desk.stands(), (0, 10));
    desk.tick(1);
    assert_eq!(desk.stands(), (10, 0));
    assert_eq!(desk.writer.next_wake_ms(), None);
}

#[test]
fn a_settle_waits_for_company_no_longer_than_it_may() {
    let mut desk = Desk::with(100, |config| config.settle_linger_ms = 3);
    let held = desk.granted(10);
    let settle = desk.payer.settle(held, 4);
    desk.send(Request::Settle(settle, Ack::Taken));
    assert_eq!(desk.answers().len(), 1, "it is taken");
    assert_eq!(desk.writer.take_append(), None, "it waits for company");
    desk.tick(3);
    assert!(desk.writer.take_append().is_some());
}

#[test]
fn a_stop_waits_for_no_company() {
    let mut desk = Desk::with(100, |config| config.settle_linger_ms = 3_000);
    let held = desk.granted(10);
    let settle = desk.payer.settle(held, 4);
    desk.send(Request::Settle(settle, Ack::Taken));
    desk.writer.hurry(desk.now_ms);
    assert!(desk.writer.take_append().is_some());
}

#[test]
fn a_settle_above_its_hold_is_one_decision_with_its_overrun() {
    let mut desk = Desk::with(100, |config| config.commit_events_max = 1);
    let held = desk.granted(10);
    let before = desk.journal.len();
    let settle = desk.payer.settle(held, 60);
    desk.send(Request::Settle(settle, Ack::Durable));
    assert!(desk.writer.pending() >= 2, "the settle and its overrun");
    desk.land();
    assert_eq!(desk.journal.len(), before + 1, "in one commit");
    assert_eq!(desk.stands(), (60, 0));
}

#[test]
fn a_resize_takes_what_there_is_and_no_more() {
    let mut desk = Desk::new(100);
    let held = desk.granted(10);
    let resize = |output_tokens| Resize {
        id: command_id(),
        account: AccountId::new("acct").unwrap(),
        reservation: held,
        input_tokens: 0,
        output_tokens,
        actor: Actor::operator("test"),
    };
    desk.send(Request::Resize(resize(100)));
    assert!(matches!(desk.answer(), Ok(Reply::Resolution(_))));
    desk.send(Request::Resize(resize(101)));
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    let end = Fetched::End(desk.writer.tail());
    assert!(matches!(
        desk.writer.fetched(desk.now_ms, end),
        Next::Continue
    ));
    assert!(matches!(desk.answer(), Err(CommandError::Short { .. })));
    assert_eq!(desk.stands(), (0, 100));
}

#[test]
fn a_hold_that_nobody_is_there_to_receive_is_given_back() {
    let mut desk = Desk::new(100);
    let held = desk.granted(10);
    let account = desk.payer.account.clone();
    desk.writer.undelivered(desk.now_ms, &account, held);
    assert_eq!(desk.stands(), (0, 0));
    desk.writer.undelivered(desk.now_ms, &account, held);
    assert_eq!(desk.stands(), (0, 0), "once");
}

#[test]
fn a_change_that_changes_nothing_has_no_place_on_the_journal() {
    let mut desk = Desk::new(100);
    let same = Change::SetCap(balance("cap", Scope::Account, 100));
    desk.send(Request::Admin(desk.payer.admin(same)));
    assert_eq!(desk.writer.pending(), 0);
    assert_eq!(
        desk.answer(),
        Ok(Reply::Admin(AdminOutcome { position: None }))
    );
    let other = desk
        .payer
        .admin(Change::SetCap(balance("cap", Scope::Account, 90)));
    desk.send(Request::Admin(other.clone()));
    let first = desk.answer();
    desk.send(Request::Admin(other));
    assert_eq!(desk.answer(), first, "the same command again");
}

#[test]
fn a_read_shows_what_is_decided_and_is_told_once_that_lasts() {
    let mut desk = Desk::new(100);
    desk.reserve(30, 0);
    let read = Read {
        account: desk.payer.account.clone(),
        key: None,
        run: None,
        reservation: None,
    };
    desk.send(Request::Read(read));
    assert!(desk.answers().is_empty());
    desk.land();
    let answers = desk.answers();
    let Ok(Reply::Standing(standing)) = &answers[1].1 else {
        panic!("{answers:?}");
    };
    assert_eq!((standing.open, standing.caps[0].held), (1, 30));
    assert!(standing.position > Position(0));
}

/// One answer is one message. What does not fit is said to be there, and is the last in order.
#[test]
fn a_read_has_its_bounds_and_says_that_there_is_more() {
    let mut desk = Desk::new(100);
    let set = |desk: &mut Desk, user: usize| {
        let user = EndUserId::new(format!("{user:0>256}")).unwrap();
        let cap = balance(user.as_str(), Scope::EndUser(user.clone()), 7);
        let admin = desk.payer.admin(Change::SetCap(cap));
        desk.send(Request::Admin(admin));
        desk.answer().unwrap();
    };
    (1..STANDING_CAPS_MAX).for_each(|user| set(&mut desk, user));
    let read = |desk: &mut Desk, key| {
        let account = desk.payer.account.clone();
        desk.send(Request::Read(Read {
            account,
            key,
            run: None,
            reservation: None,
        }));
        match desk.answer() {
            Ok(Reply::Standing(standing)) => standing,
            other => panic!("{other:?}"),
        }
    };
    let all = read(&mut desk, None);
    assert_eq!((all.caps.len(), all.more), (STANDING_CAPS_MAX, false));
    set(&mut desk, 0);
    let some = read(&mut desk, None);
    assert_eq!((some.caps.len(), some.more), (STANDING_CAPS_MAX, true));
    assert_eq!(some.caps[0].scope, Scope::Account);
    let size = seatbelt_schemas::wire::encode(&some).len();
    assert!(size < 1_000_000, "{size} bytes");
    let key = desk.payer.key.clone();
    let of_key = read(&mut desk, Some(key));
    assert_eq!((of_key.caps.len(), of_key.more), (1, false));
}

#[test]
fn refusals_beyond_a_rate_are_counted_and_written_within_a_second() {
    let mut desk = Desk::with(100, |config| config.single_refusals_per_second = 1);
    for _ in 0..5 {
        desk.reserve(1_000, 0);
    }
    assert_eq!(desk.writer.pending(), 1, "one is an event of its own");
    desk.land();
    assert_eq!(desk.answers().len(), 5);
    desk.tick(1_000);
    assert_eq!(desk.writer.pending(), 1, "the other four are one");
}

#[test]
fn an_account_leaves_memory_when_nothing_is_open_and_comes_back_as_it_was() {
    let mut desk = Desk::with(100, |config| config.accounts_max = 0);
    let account = desk.payer.account.clone();
    let held = desk.granted(10);
    let crowd = desk.writer.crowd();
    assert!(
        crowd.iter().all(|(other, _)| *other != account),
        "something is open in it"
    );
    let release = desk.payer.release(held);
    desk.send(Request::Release(release));
    desk.answer().unwrap();
    let crowd = desk.writer.crowd();
    let idle: Vec<_> = crowd.into_iter().filter(|(of, _)| *of == account).collect();
    let older = [(account.clone(), idle[0].1 - 1)];
    desk.writer.let_go(&older);
    assert!(
        desk.writer.state().account(&account).is_some(),
        "it is newer"
    );
    let state = desk.writer.state().account(&account).cloned().unwrap();
    desk.writer.let_go(&idle);
    assert!(desk.writer.state().account(&account).is_none());
    let (_, asked) = desk.reserve(5, 0);
    assert_eq!(
        desk.writer.take_fetch(),
        Some(Fetch::Account(account.clone()))
    );
    let loaded = crate::recovery::Loaded {
        state,
        position: desk.writer.durable(),
    };
    let fetched = Fetched::Account(account, Some(loaded));
    assert!(matches!(
        desk.writer.fetched(desk.now_ms, fetched),
        Next::Continue
    ));
    desk.land();
    assert_eq!(desk.answers()[0].0, asked);
    assert_eq!(desk.stands(), (0, 5));
}

/// As after a kill of the only process: all that an account held is overdue when it comes into memory.
#[test]
fn what_ended_while_an_account_was_away_is_written_piece_by_piece() {
    const HELD: usize = 3 * EXPIRE_PER_TICK_MAX;
    let mut desk = Desk::new(10 * HELD as u64);
    let account = desk.payer.account.clone();
    for _ in 0..HELD {
        desk.granted(1);
    }
    let state = desk.writer.state().account(&account).cloned().unwrap();
    desk.writer.state.page();
    desk.writer.state.move_out(&account);
    desk.writer.deadlines.clear();
    desk.now_ms += 24 * 3_600 * 1_000;
    let (_, asked) = desk.reserve(1, 0);
    assert_eq!(
        desk.writer.take_fetch(),
        Some(Fetch::Account(account.clone()))
    );
    let loaded = crate::recovery::Loaded {
        state,
        position: desk.writer.durable(),
    };
    let fetched = Fetched::Account(account, Some(loaded));
    let next = desk.writer.fetched(desk.now_ms, fetched);
    assert!(matches!(next, Next::Continue));
    for pieces in 1..=3 {
        let pending = desk.writer.pending();
        let most = EXPIRE_PER_TICK_MAX + 1;
        assert!(pending <= most, "{pending} decisions in piece {pieces}");
        desk.land();
        desk.tick(1);
    }
    assert_eq!(desk.answers()[0].0, asked, "it was not kept waiting");
    desk.land();
    assert!(
        desk.writer
            .state()
            .account(&desk.payer.account)
            .unwrap()
            .open()
            .len()
            <= 1
    );
}

#[test]
fn a_clamped_reserve_takes_what_there_is() {
    let mut desk = Desk::new(100);
    let command = Reserve {
        on_short: OnShort::Clamp,
        ..desk.payer.reserve(1_000)
    };
    desk.send(Request::Reserve(command));
    let granted = grant(desk.answer());
    assert!(granted.clamped);
    assert_eq!(granted.hold.output_tokens, 100);
}
