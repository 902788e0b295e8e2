//! What a commit in flight may come to, what a denial rests on, and what is told at the end.

use super::*;

fn lost() -> AppendError {
    AppendError::Unknown {
        expected: Sequence(0),
        source: "lost".into(),
    }
}

#[test]
fn an_append_that_nobody_knows_of_is_made_again_with_the_same_bytes() {
    let mut desk = Desk::new(100);
    desk.reserve(10, 0);
    let first = desk.writer.take_append().unwrap();
    assert!(matches!(desk.writer.appended(Err(lost())), Next::Retry));
    desk.reserve(10, 0);
    assert_eq!(desk.writer.take_append(), None, "one at a time");
    assert_eq!(desk.writer.in_flight(), Some(first));
    assert!(desk.answers().is_empty());
}

#[test]
fn what_stands_in_the_place_of_an_append_tells_what_became_of_it() {
    for (found, wanted) in [
        (None, Some(StepDown::Truncated)),
        (Some(Bytes::from_static(b"other")), Some(StepDown::Fenced)),
        (Some(Bytes::new()), None),
    ] {
        let mut desk = Desk::new(100);
        desk.reserve(10, 0);
        let (expected, payload) = desk.writer.take_append().unwrap();
        let refused = AppendError::WrongSequence { expected };
        let Next::ReadBack(at) = desk.writer.appended(Err(refused)) else {
            panic!("it has to be read");
        };
        assert_eq!(at, expected.next());
        let own = found.as_ref().is_some_and(Bytes::is_empty);
        let found = if own { Some(payload) } else { found };
        let next = desk.writer.read_back(found.as_ref());
        let answers = desk.answers();
        assert_eq!(answers.len(), 1);
        match (next, wanted) {
            (Next::Continue, None) => drop(grant(answers[0].1.clone())),
            (Next::StepDown(reason), Some(wanted)) => {
                assert_eq!(reason, wanted);
                is_unavailable(&answers[0].1);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_writer_that_is_over_tells_all_who_wait() {
    let mut desk = Desk::new(100);
    desk.granted(100);
    desk.reserve(10, 5_000);
    desk.reserve(1_000, 0);
    let stranger = Payer::new("stranger", "key").reserve(1);
    desk.send(Request::Reserve(stranger));
    desk.writer.step_down(StepDown::Fenced);
    let answers = desk.answers();
    assert_eq!(answers.len(), 3, "{answers:?}");
    answers
        .iter()
        .for_each(|(_, answer)| is_unavailable(answer));
    assert_eq!(desk.writer.take_append(), None);
}

/// Asks for what is not there; the number of who does.
fn denied(desk: &mut Desk) -> u32 {
    let change = Change::Credit {
        cap: balance("none", Scope::Account, 1).cap,
        amount: 1,
        reason: None,
    };
    desk.send(Request::Admin(desk.payer.admin(change)))
}

fn look(desk: &mut Desk, end: Sequence) -> Next {
    desk.writer.fetched(desk.now_ms, Fetched::End(end))
}

#[test]
fn one_look_that_began_after_them_serves_all_who_are_denied() {
    let mut desk = Desk::new(100);
    let first = denied(&mut desk);
    let second = denied(&mut desk);
    assert!(desk.answers().is_empty(), "nobody has looked");
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    let third = denied(&mut desk);
    assert_eq!(desk.writer.take_fetch(), None, "one look at a time");
    let tail = desk.writer.tail();
    assert!(matches!(look(&mut desk, tail), Next::Continue));
    let told: Vec<_> = desk.answers().into_iter().map(|(ear, _)| ear).collect();
    assert_eq!(told, [first, second]);
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    assert!(matches!(look(&mut desk, tail), Next::Continue));
    assert_eq!(desk.answers()[0].0, third);
}

#[test]
fn a_denial_waits_for_the_append_that_the_look_met() {
    let mut desk = Desk::new(100);
    desk.reserve(10, 0);
    let (expected, _) = desk.writer.take_append().unwrap();
    let asked = denied(&mut desk);
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    assert!(matches!(look(&mut desk, expected.next()), Next::Continue));
    assert!(desk.answers().is_empty(), "whose commit is it?");
    assert!(matches!(
        desk.writer.appended(Ok(expected.next())),
        Next::Continue
    ));
    let answers = desk.answers();
    assert_eq!(answers.len(), 2);
    let denied = answers.iter().find(|(ear, _)| *ear == asked);
    assert!(matches!(
        denied,
        Some((_, Err(CommandError::UnknownCap { .. })))
    ));
}

#[test]
fn a_journal_that_went_on_without_it_ends_a_writer() {
    let mut desk = Desk::new(100);
    denied(&mut desk);
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    let beyond = desk.writer.tail().next();
    let next = look(&mut desk, beyond);
    assert!(matches!(next, Next::StepDown(StepDown::Fenced)));
    is_unavailable(&desk.answer());
}

#[test]
fn nothing_is_denied_where_the_journal_is_shorter_or_cannot_be_looked_at() {
    let mut desk = Desk::new(100);
    denied(&mut desk);
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    assert!(matches!(look(&mut desk, Sequence(0)), Next::Continue));
    is_unavailable(&desk.answer());
    denied(&mut desk);
    assert_eq!(desk.writer.take_fetch(), Some(Fetch::End));
    let failed = Fetched::Failed {
        fetch: Fetch::End,
        detail: "cut off".to_owned(),
    };
    assert!(matches!(
        desk.writer.fetched(desk.now_ms, failed),
        Next::Continue
    ));
    is_unavailable(&desk.answer());
}

#[test]
fn an_account_of_another_partition_is_sent_there() {
    let two = Partitions::try_from(2).unwrap();
    let mut desk = Desk::with(100, |config| config.partitions = two);
    let elsewhere = (0..64)
        .map(|number| AccountId::new(format!("other{number}")).unwrap())
        .find(|account| two.of(account) != Partition(0));
    let read = Read {
        account: elsewhere.unwrap(),
        key: None,
        run: None,
        reservation: None,
    };
    desk.send(Request::Read(read));
    let answer = desk.answer();
    assert!(matches!(answer, Err(CommandError::WrongPartition { .. })));
}
