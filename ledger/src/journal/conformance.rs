//! What every [`Journal`] must do, as one suite: the same cases run against the journal in memory
//! and against a real NATS server.
//!
//! Each case takes two handles on one fresh, empty journal, as two processes would have. A case
//! fails by panicking, for it only ever runs in tests.

use std::{fmt::Debug, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, future::join};
use tokio::time::timeout;

use super::{AppendError, Journal, Sequence, Stored};

/// How long any single step may take before the case fails.
const STEP_MAX: Duration = Duration::from_secs(20);
/// Largest payload tried: as large as a commit may be.
const PAYLOAD_MAX: usize = seatbelt_schemas::commit::COMMIT_BYTES_MAX;
/// Sequences raced for.
const RACES: u64 = 50;
/// Commits read back at once: more than one batch of any reader.
const MANY: u64 = 700;

/// Runs every case; `make` gives two handles on one fresh journal.
///
/// # Panics
/// Where the journal does not conform.
pub async fn suite<J: Journal>(make: impl AsyncFn() -> [J; 2]) {
    an_empty_journal_ends_at_zero(make().await).await;
    an_append_lands_at_the_end(make().await).await;
    an_append_elsewhere_changes_nothing(make().await).await;
    zero_is_a_place_too(make().await).await;
    bytes_come_back_identical(make().await).await;
    one_writer_wins_each_sequence(make().await).await;
    replay_is_in_order_without_gaps(make().await).await;
    follow_sees_what_lands_later(make().await).await;
    two_followers_see_the_same(make().await).await;
}

async fn step<T>(what: &str, work: impl Future<Output = T>) -> T {
    let done = timeout(STEP_MAX, work).await;
    done.unwrap_or_else(|_| panic!("{what} took longer than {STEP_MAX:?}"))
}

fn ok<T, E: Debug>(what: &str, outcome: Result<T, E>) -> T {
    outcome.unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

fn payload(number: u64) -> Bytes {
    Bytes::from(format!("commit {number}"))
}

async fn append<J: Journal>(journal: &J, after: u64, bytes: Bytes) -> Sequence {
    let outcome = step("append", journal.append(Sequence(after), bytes)).await;
    ok("append", outcome)
}

async fn fill<J: Journal>(journal: &J, from: u64, to: u64) {
    for number in from..=to {
        let landed = append(journal, number - 1, payload(number)).await;
        assert_eq!(landed, Sequence(number));
    }
}

async fn end<J: Journal>(journal: &J) -> u64 {
    ok("end", step("end", journal.end()).await).0
}

async fn get<J: Journal>(journal: &J, at: u64) -> Option<Stored> {
    ok("get", step("get", journal.get(Sequence(at))).await)
}

async fn replay<J: Journal>(journal: &J, after: u64, to: u64) -> Vec<Stored> {
    let commits = journal.replay(Sequence(after), Sequence(to)).try_collect();
    ok("replay", step("replay", commits).await)
}

#[track_caller]
fn check_run(commits: &[Stored], first: u64, last: u64) {
    let found: Vec<u64> = commits.iter().map(|commit| commit.sequence.0).collect();
    assert_eq!(found, (first..=last).collect::<Vec<_>>());
    for commit in commits {
        assert_eq!(commit.payload, payload(commit.sequence.0));
    }
}

async fn an_empty_journal_ends_at_zero<J: Journal>([journal, _]: [J; 2]) {
    assert_eq!(end(&journal).await, 0);
    assert_eq!(get(&journal, 1).await, None);
    assert_eq!(replay(&journal, 0, 0).await, []);
}

async fn an_append_lands_at_the_end<J: Journal>([journal, other]: [J; 2]) {
    fill(&journal, 1, 3).await;
    assert_eq!(end(&journal).await, 3);
    assert_eq!(end(&other).await, 3);
    let second = get(&other, 2).await.map(|commit| commit.payload);
    assert_eq!(second, Some(payload(2)));
    assert_eq!(get(&journal, 4).await, None);
}

async fn check_refused_place<J: Journal>(journal: &J, after: u64) {
    let outcome = step("append", journal.append(Sequence(after), payload(9))).await;
    match outcome {
        Err(AppendError::WrongSequence { expected }) => assert_eq!(expected, Sequence(after)),
        other => panic!("append after {after} must be at the wrong place, was {other:?}"),
    }
}

async fn an_append_elsewhere_changes_nothing<J: Journal>([journal, other]: [J; 2]) {
    check_refused_place(&journal, 1).await;
    fill(&journal, 1, 2).await;
    for after in [1, 3, 1_000_000] {
        check_refused_place(&other, after).await;
    }
    assert_eq!(end(&journal).await, 2);
    check_run(&replay(&journal, 0, 2).await, 1, 2);
    // and the refusals did not block the place
    fill(&other, 3, 3).await;
}

async fn zero_is_a_place_too<J: Journal>([journal, _]: [J; 2]) {
    fill(&journal, 1, 1).await;
    check_refused_place(&journal, 0).await;
    assert_eq!(end(&journal).await, 1);
}

async fn bytes_come_back_identical<J: Journal>([journal, other]: [J; 2]) {
    let pattern = |size: usize| -> Bytes { (0..=255).cycle().take(size).collect() };
    let sizes = [1, 255, 4096, PAYLOAD_MAX];
    for (after, size) in (0..).zip(sizes) {
        append(&journal, after, pattern(size)).await;
    }
    let back = replay(&other, 0, 4).await;
    for (at, size) in (1..).zip(sizes) {
        let got = get(&other, at).await.map(|commit| commit.payload);
        assert_eq!(got, Some(pattern(size)), "get of {size} bytes");
    }
    let replayed: Vec<_> = back.into_iter().map(|commit| commit.payload).collect();
    assert_eq!(replayed, sizes.map(pattern));
}

async fn one_writer_wins_each_sequence<J: Journal>([one, two]: [J; 2]) {
    for after in 0..RACES {
        let (a, b) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
        let race = join(
            one.append(Sequence(after), a.clone()),
            two.append(Sequence(after), b.clone()),
        );
        let winner = match step("race", race).await {
            (Ok(at), Err(AppendError::WrongSequence { .. })) => (at, a),
            (Err(AppendError::WrongSequence { .. }), Ok(at)) => (at, b),
            other => panic!("exactly one of two appends after {after} wins, was {other:?}"),
        };
        assert_eq!(winner.0, Sequence(after + 1));
        let there = get(&one, after + 1).await.map(|commit| commit.payload);
        assert_eq!(there, Some(winner.1));
    }
    assert_eq!(end(&two).await, RACES);
}

async fn replay_is_in_order_without_gaps<J: Journal>([journal, other]: [J; 2]) {
    fill(&journal, 1, MANY).await;
    check_run(&replay(&other, 0, MANY).await, 1, MANY);
    check_run(&replay(&other, 0, 1).await, 1, 1);
    check_run(&replay(&other, 150, 160).await, 151, 160);
    check_run(&replay(&other, MANY - 1, MANY).await, MANY, MANY);
    assert_eq!(replay(&other, 7, 7).await, []);
    assert_eq!(replay(&other, 8, 7).await, []);
}

async fn follow_sees_what_lands_later<J: Journal>([journal, other]: [J; 2]) {
    fill(&journal, 1, 3).await;
    let mut follower = other.follow(Sequence(1));
    for number in 2..=3 {
        check_next(follower.next(), number).await;
    }
    for number in 4..=40 {
        fill(&journal, number, number).await;
        check_next(follower.next(), number).await;
    }
    // from the very end: nothing old comes
    let mut late = other.follow(Sequence(40));
    fill(&journal, 41, 41).await;
    check_next(late.next(), 41).await;
}

async fn check_next<E: Debug>(next: impl Future<Output = Option<Result<Stored, E>>>, number: u64) {
    let found = step("follow", next).await.expect("a follower never ends");
    check_run(&[ok("follow", found)], number, number);
}

async fn two_followers_see_the_same<J: Journal>([journal, other]: [J; 2]) {
    let read = async |from: &J| -> Vec<Stored> {
        let last = |commit: &Stored| commit.sequence.0 == MANY;
        let mut seen = Vec::new();
        let mut follower = from.follow(Sequence(0));
        while !seen.last().is_some_and(last) {
            let next = follower.next().await.expect("a follower never ends");
            seen.push(ok("follow", next));
        }
        seen
    };
    let all = async { futures::join!(read(&journal), read(&other), fill(&journal, 1, MANY)) };
    let (one, two, ()) = step("followers", all).await;
    check_run(&one, 1, MANY);
    check_run(&two, 1, MANY);
}
