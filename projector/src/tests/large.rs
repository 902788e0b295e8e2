//! Accounts whose snapshot stands in pieces: what is written of them, and that crashes and losses change
//! none of it.

use std::collections::BTreeSet;

use seatbelt_ledger::{
    account::Account,
    snapshot::{AccountSnapshot, FoundSnapshot, Written, pieces::PiecesHead},
};

use super::*;
use crate::{
    snapshots::{FLUSH_EVERY, FLUSH_EVERY_MAX, pause_after},
    store::{Kept, Revision, SnapshotStore as _},
};

/// More open reservations than one value takes.
const MANY: u64 = 9_000;
/// Enough for some pieces.
const SOME: u64 = 1_500;
const COMMIT: u64 = 150;

/// Account `a` with so many open reservations, and then some commits that end one each.
fn story(open: u64, after: u64) -> Vec<Commit> {
    let mut lists = vec![vec![opened("a"), opened("b"), capped("a", 100_000)]];
    let holds = |from: u64| {
        (from..from + COMMIT)
            .map(|number| reserved("a", number, 1))
            .collect()
    };
    lists.extend((0..open / COMMIT).map(|list| holds(list * COMMIT)));
    lists.extend((0..after).map(|number| vec![settled("a", 7 * number, 1)]));
    let lists: Vec<&[Body]> = lists.iter().map(Vec::as_slice).collect();
    commits(&lists)
}

fn split(story: &[Commit], open: u64) -> (Vec<Commit>, &[Commit]) {
    let (before, after) = story.split_at(usize::try_from(open / COMMIT).unwrap() + 1);
    (before.to_vec(), after)
}

impl World {
    /// The snapshot of `a`, whole; outside any fuse.
    async fn large(&self) -> Account {
        let any = (Revision(u64::MAX), Position(0));
        let bucket = self.snapshots.copy();
        let found = FoundSnapshot::read(&bucket, &account("a"), any)
            .await
            .unwrap();
        found.snapshot.unwrap().unwrap().state
    }

    fn truth(&self) -> Account {
        let mut state = PartitionState::new(PARTITION);
        for commit in &self.commits {
            state.accept(&commit.encode()).unwrap();
        }
        state.account(&account("a")).unwrap().clone()
    }

    fn head(&self) -> PiecesHead {
        PiecesHead::decode(&self.snapshots.peek("account.a").unwrap()).unwrap()
    }

    fn reader(&self) -> SnapshotReader {
        let snapshots = Arc::new(self.snapshots.clone());
        SnapshotReader::new(snapshots, Partitions::try_from(1).unwrap())
    }
}

#[tokio::test]
async fn an_account_of_thousands_of_reservations_stands_in_pieces() {
    let story = story(MANY, 1);
    let (before, after) = split(&story, MANY);
    let mut world = World::of(before);
    world.catch_up("p").await;
    assert_eq!(world.large().await, world.truth());
    let at = START_MS + 1000;
    let read = world.reader().standing(account("a"), None, at).await;
    let read = read.unwrap().unwrap().standing;
    assert_eq!((read.open, read.caps[0].held), (MANY, MANY));
    let small = world.reader().standing(account("b"), None, at).await;
    assert!(small.unwrap().is_some());
    // the next start takes the pieces for what they are
    let standing = world.head();
    let writes = world.snapshots.writes().len();
    world.append(after).await;
    world.catch_up("p").await;
    assert_eq!(world.large().await, world.truth());
    let writes = world.snapshots.writes().split_off(writes);
    let pieces: BTreeSet<_> = writes
        .iter()
        .filter(|key| key.starts_with("account.a."))
        .collect();
    assert!(pieces.len() <= 4, "one hold ended: {pieces:?}");
    assert!(standing.pieces.all().count() > 30);
}

/// No reservation stands in the piece, so nothing but its turn brings it back.
#[tokio::test]
async fn a_piece_that_was_lost_comes_back_in_its_turn() {
    let story = story(SOME, 40);
    let (before, after) = split(&story, SOME);
    let mut world = World::of(before);
    let running = world.start("p");
    world.until_current().await;
    let last = world.head().pieces.open.last().unwrap().number;
    let lost = world.snapshots.peek(&format!("account.a.{last}")).unwrap();
    world.snapshots.forget(&format!("account.a.{last}"));
    let stands = |world: &World| {
        let pieces = world.head().pieces;
        let mut pieces = pieces.all();
        let value = |number: u32| world.snapshots.peek(&format!("account.a.{number}"));
        pieces.any(|piece| value(piece.number).as_ref() == Some(&lost))
    };
    for commit in after {
        if stands(&world) {
            break;
        }
        world.append(std::slice::from_ref(commit)).await;
        world.until_current().await;
    }
    assert_eq!(world.large().await, world.truth());
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_lost_piece_is_folded_again_at_the_next_start() {
    let story = story(SOME, 1);
    let (before, after) = split(&story, SOME);
    let world = World::of(before);
    world.catch_up("p").await;
    for piece in world.head().pieces.all() {
        let mut world = World {
            snapshots: world.snapshots.copy(),
            feed: MemoryFeed::default(),
            journal: MemoryJournal::with_commits(world.commits.iter().map(Commit::encode)),
            ..world.clone()
        };
        world
            .snapshots
            .forget(&format!("account.a.{}", piece.number));
        world.append(after).await;
        world.catch_up("p").await;
        assert_eq!(world.large().await, world.truth(), "{}", piece.number);
    }
}

/// Nobody uses the account: from the journal at the start, and from memory while the projector runs.
#[tokio::test(start_paused = true)]
async fn a_lost_piece_of_an_account_at_rest_is_written_again() {
    let story = story(SOME, 1);
    let world = World::of(story);
    world.catch_up("p").await;
    let truth = world.truth();
    let until_whole = async || {
        let (any, of) = ((Revision(u64::MAX), Position(0)), account("a"));
        let waited = async {
            loop {
                let found = FoundSnapshot::read(&world.snapshots, &of, any)
                    .await
                    .unwrap();
                if let Ok(Some(whole)) = found.snapshot {
                    return assert_eq!(whole.state, truth);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waited).await;
        waited.expect("it stays lost");
    };
    let lose = || {
        let head = world.head();
        let piece = head.pieces.all().last().unwrap();
        let key = format!("account.a.{}", piece.number);
        world.snapshots.forget(&key);
    };
    lose();
    let running = world.start("p");
    until_whole().await;
    lose();
    until_whole().await;
    running.end().await.unwrap();
}

/// At whatever operation a projector dies, the snapshot before it or the new one is whole.
#[tokio::test]
async fn a_projector_that_dies_anywhere_leaves_a_whole_snapshot() {
    let story = story(SOME, 2);
    let (before, after) = split(&story, SOME);
    for operations in (0..60).step_by(2) {
        let mut world = World::of(before.clone());
        world.catch_up("p").await;
        let old = world.truth();
        world.append(after).await;
        world.fuse.set(Some(operations));
        let running = world.start("p");
        tokio::select! {
            () = world.fuse.burnt() => {}
            () = world.until_current() => {}
        }
        running.kill().await;
        world.fuse.set(None);
        let found = world.large().await;
        assert!(
            found == old || found.version() > old.version(),
            "{operations}"
        );
        world.catch_up("p").await;
        assert_eq!(world.large().await, world.truth(), "{operations}");
    }
}

/// A writer that folded the account again wrote it first: the projector takes its seat anew.
#[tokio::test]
async fn a_snapshot_put_right_by_a_writer_is_gone_on_from() {
    let story = story(SOME, 2);
    let (before, after) = split(&story, SOME);
    let mut world = World::of(before);
    let running = world.start("p");
    world.until_current().await;
    let Kept { revision, .. } = world.snapshots.read("account.a").await.unwrap();
    let (of, state, head) = (account("a"), world.truth(), world.head());
    let written = Written::of(&of, head.position, head.at_ms, &state, None);
    let written = written.write(&world.snapshots, &of, revision).await;
    written.unwrap();
    world.append(after).await;
    world.until_current().await;
    assert_eq!(world.large().await, world.truth());
    running.end().await.unwrap();
}

/// So large that it is looked through only some times a second.
const HUGE: u64 = 24_000;

/// Whoever asks for another account of the partition sees what it has just spent.
#[tokio::test(start_paused = true)]
async fn a_large_account_keeps_the_snapshots_of_no_other_waiting() {
    let mut lists = vec![vec![opened("a"), opened("b"), capped("a", 100_000)]];
    lists.extend((0..HUGE / COMMIT).map(|list| {
        let numbers = list * COMMIT..(list + 1) * COMMIT;
        numbers.map(|number| reserved("a", number, 1)).collect()
    }));
    lists.extend(
        (0..6).map(|number| vec![settled("a", 7 * number, 1), reserved("b", HUGE + number, 1)]),
    );
    let lists: Vec<&[Body]> = lists.iter().map(Vec::as_slice).collect();
    let story = commits(&lists);
    let (before, after) = split(&story, HUGE);
    let mut world = World::of(before);
    let running = world.start("p");
    world.until_current().await;
    for (open, commit) in (1..).zip(after) {
        world.append(std::slice::from_ref(commit)).await;
        let appended = tokio::time::Instant::now();
        let shown = || {
            let kept = world.snapshots.peek("account.b").unwrap();
            AccountSnapshot::decode(&kept).unwrap().state.open().len()
        };
        while shown() < open {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let waited = appended.elapsed();
        assert!(waited <= FLUSH_EVERY * 3 / 2, "{waited:?}");
    }
    world.until_current().await;
    assert_eq!(world.large().await, world.truth());
    running.end().await.unwrap();
}

#[test]
fn large_accounts_are_looked_through_seldom_and_never_too_seldom() {
    let megabytes = |count: usize| pause_after(count * 1024 * 1024);
    assert_eq!(megabytes(0), FLUSH_EVERY);
    assert_eq!(megabytes(1), FLUSH_EVERY);
    assert_eq!(megabytes(4), Duration::from_millis(250));
    assert_eq!(megabytes(100), FLUSH_EVERY_MAX);
    assert_eq!(megabytes(100_000), FLUSH_EVERY_MAX);
}
