//! The projector as a whole, against stores in memory: what it writes, and that crashes, faults and
//! second projectors change none of it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use seatbelt_ledger::{
    account::Account,
    api::Snapshots as _,
    journal::{Journal as _, Sequence, memory::MemoryJournal},
    partition::PartitionState,
    snapshot::{AccountSnapshot, PartitionRecord, RECORD_VERSION},
};
use seatbelt_schemas::{
    commit::Commit,
    event::StoredEvent,
    ids::{AccountId, LedgerId},
    names::Names,
    position::{Partition, Partitions, Position},
    wire,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Halt, ProjectorError, ProjectorParts, SnapshotReader,
    feed::message::{EventSource, FeedMessage},
    run,
    store::memory::{Fuse, MemoryFeed, MemorySnapshots, StoreFault},
    testing::{Body, START_MS, capped, commits, commits_of, opened, reserved, settled},
};

mod crashes;
mod feed;
mod halts;
mod large;
mod lost;
mod older;

const PARTITION: Partition = Partition(0);
/// Longest that any of these tests waits for something to become so.
const PATIENCE: Duration = Duration::from_secs(20);

/// A journal and the stores that outlive every projector of it.
#[derive(Clone)]
struct World {
    journal: MemoryJournal,
    commits: Vec<Commit>,
    fuse: Fuse,
    snapshots: MemorySnapshots,
    feed: MemoryFeed,
}

impl World {
    fn of(commits: Vec<Commit>) -> Self {
        let fuse = Fuse::default();
        Self {
            journal: MemoryJournal::with_commits(commits.iter().map(Commit::encode)),
            commits,
            snapshots: MemorySnapshots::on(&fuse),
            feed: MemoryFeed::on(&fuse),
            fuse,
        }
    }

    fn parts(&self, projector: &str) -> ProjectorParts<MemoryJournal> {
        ProjectorParts {
            names: Names::default(),
            projector: projector.to_owned(),
            journals: vec![(PARTITION, Arc::new(self.journal.clone()))],
            snapshots: Arc::new(self.snapshots.clone()),
            feed: Arc::new(self.feed.clone()),
        }
    }

    fn start(&self, projector: &str) -> Running {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(self.parts(projector), stop.clone()));
        Running { stop, task }
    }

    async fn append(&mut self, commits: &[Commit]) {
        for commit in commits {
            let end = self.journal.end().await.unwrap();
            self.journal.append(end, commit.encode()).await.unwrap();
            self.commits.push(commit.clone());
        }
    }

    fn record(&self) -> Option<PartitionRecord> {
        let value = self.snapshots.peek("partition.00")?;
        PartitionRecord::decode(&value).ok()
    }

    fn snapshot(&self, account: &AccountId) -> Option<AccountSnapshot> {
        let value = self.snapshots.peek(&format!("account.{account}"))?;
        Some(AccountSnapshot::decode(&value).unwrap())
    }

    fn is_current(&self) -> bool {
        let projected = self.record().map_or(0, |record| record.sequence);
        projected == self.commits.len() as u64
            && self.feed.messages().len() >= expected_feed(&self.commits).len()
    }

    async fn until_current(&self) {
        until(|| self.is_current()).await;
    }

    /// Runs a projector until all is current, then stops it.
    async fn catch_up(&self, projector: &str) {
        let running = self.start(projector);
        self.until_current().await;
        running.end().await.unwrap();
    }

    #[track_caller]
    fn check(&self, hint: &str) {
        assert_eq!(self.feed.messages(), expected_feed(&self.commits), "{hint}");
        let mut state = PartitionState::new(PARTITION);
        for commit in &self.commits {
            state.accept(&commit.encode()).unwrap();
        }
        let record = self.record().unwrap();
        assert_eq!(record.head, *state.head(), "{hint}");
        let open = state
            .accounts()
            .filter(|(_, account)| !account.open().is_empty());
        let open: BTreeSet<_> = open.map(|(id, _)| id.clone()).collect();
        let named = record.open.unwrap_or_default().into_iter().collect();
        assert_eq!(open, named, "{hint}");
        for (account, expected) in state.accounts() {
            let snapshot = self.snapshot(account).unwrap();
            assert_eq!(snapshot.state, *expected, "{hint}: {account}");
            assert!(snapshot.position <= record.head.position);
        }
    }
}

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), ProjectorError>>,
}

impl Running {
    async fn end(self) -> Result<(), ProjectorError> {
        self.stop.cancel();
        self.task.await.unwrap()
    }

    /// As kill -9: nothing more is written.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited)
        .await
        .expect("it never became so");
}

fn expected_feed(commits: &[Commit]) -> Vec<FeedMessage> {
    let source = EventSource {
        ledger: LedgerId::new("ledger-1").unwrap(),
        partition: PARTITION,
    };
    let events = commits.iter().flat_map(|commit| &commit.events);
    events
        .map(|stored| FeedMessage::new(&Names::default(), &source, stored))
        .collect()
}

fn account(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

fn short_story() -> Vec<Commit> {
    commits(&[
        &[opened("a"), capped("a", 100)],
        &[reserved("a", 1, 30), opened("b")],
        &[settled("a", 1, 12), reserved("a", 2, 20)],
    ])
}

#[tokio::test]
async fn each_event_becomes_one_message_and_each_account_one_snapshot() {
    let world = World::of(short_story());
    world.catch_up("p").await;
    world.check("");
    let subjects: Vec<_> = world
        .feed
        .messages()
        .into_iter()
        .map(|message| message.subject)
        .collect();
    assert_eq!(
        subjects,
        [
            "seatbelt.spend.v1._.genesis",
            "seatbelt.spend.v1.a.account_opened",
            "seatbelt.spend.v1.a.cap_set",
            "seatbelt.spend.v1.a.reserved",
            "seatbelt.spend.v1.b.account_opened",
            "seatbelt.spend.v1.a.settled",
            "seatbelt.spend.v1.a.reserved",
        ]
    );
    let snapshot = world.snapshot(&account("a")).unwrap();
    let cap = &snapshot.state.caps()[0];
    assert_eq!((cap.spent(START_MS), cap.held), (12, 20));
}

#[tokio::test]
async fn what_lands_later_is_projected_as_it_lands() {
    let story = short_story();
    let mut world = World::of(story[..1].to_vec());
    let running = world.start("p");
    world.until_current().await;
    world.append(&story[1..]).await;
    world.until_current().await;
    running.end().await.unwrap();
    world.check("");
}

#[tokio::test]
async fn a_snapshot_is_written_before_the_record_that_vouches_for_it() {
    let world = World::of(short_story());
    world.catch_up("p").await;
    let writes = world.snapshots.writes();
    let place = |key: &str| writes.iter().position(|write| write == key).unwrap();
    let vouched = writes
        .iter()
        .rposition(|write| write == "partition.00")
        .unwrap();
    assert!(place("account.a") < vouched && place("account.b") < vouched);
}

#[tokio::test]
async fn accounts_that_change_often_are_written_seldom() {
    let mut lists = vec![vec![opened("a"), capped("a", 10_000)]];
    lists.extend((0..500).map(|number| vec![reserved("a", number, 1), settled("a", number, 1)]));
    let lists: Vec<&[Body]> = lists.iter().map(Vec::as_slice).collect();
    let world = World::of(commits(&lists));
    world.catch_up("p").await;
    world.check("");
    let writes = world.snapshots.writes();
    let written = writes.iter().filter(|key| *key == "account.a").count();
    assert!(written < 100, "{written} writes for 1000 events");
}

#[tokio::test]
async fn a_reader_sees_what_is_spent_and_how_fresh_it_is() {
    let world = World::of(short_story());
    world.catch_up("p").await;
    let reader = SnapshotReader::new(
        Arc::new(world.snapshots.clone()),
        Partitions::try_from(1).unwrap(),
    );
    let checked = world.record().unwrap().checked_at_ms;
    assert!(
        checked > START_MS + 20,
        "the end of the journal was checked"
    );
    let seen = reader
        .standing(account("a"), None, checked + 7)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen.age_ms, 7);
    assert_eq!(seen.standing.position, Position(7));
    assert_eq!(seen.standing.open, 1);
    let cap = &seen.standing.caps[0];
    assert_eq!((cap.spent, cap.held, cap.available()), (12, 20, 68));
    assert!(
        reader
            .standing(account("x"), None, checked)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_quiet_partition_stays_fresh() {
    let world = World::of(short_story());
    let running = world.start("p");
    world.until_current().await;
    let first = world.record().unwrap().checked_at_ms;
    until(|| world.record().unwrap().checked_at_ms > first + 500).await;
    assert!(!running.task.is_finished());
    running.end().await.unwrap();
}

#[tokio::test]
async fn derived_data_that_is_thrown_away_is_rebuilt_the_same() {
    let world = World::of(short_story());
    world.catch_up("p").await;
    world.feed.wipe();
    world.catch_up("p").await;
    world.check("feed wiped");
    for key in ["partition.00", "account.a", "account.b", "feed.00"] {
        world.snapshots.forget(key);
    }
    world.catch_up("p").await;
    world.check("snapshots forgotten");
    world
        .snapshots
        .overwrite("partition.00", Bytes::from_static(b"?"));
    world
        .snapshots
        .overwrite("feed.00", Bytes::from_static(b"?"));
    world.catch_up("p").await;
    world.check("records overwritten");
}

#[tokio::test]
async fn a_lost_snapshot_is_folded_again_from_the_journal() {
    for damage in [None, Some(Bytes::from_static(b"?"))] {
        let story = short_story();
        let mut world = World::of(story[..2].to_vec());
        world.catch_up("p").await;
        match damage {
            None => world.snapshots.forget("account.a"),
            Some(bytes) => world.snapshots.overwrite("account.a", bytes),
        }
        world.append(&story[2..]).await;
        world.catch_up("p").await;
        world.check("snapshot lost");
    }
}

/// A snapshot of some time ago, put back as by a server that lost the end of its file.
#[tokio::test]
async fn a_stale_snapshot_is_folded_again_from_the_journal() {
    let story = short_story();
    let mut world = World::of(story[..1].to_vec());
    world.catch_up("p").await;
    let old = world.snapshots.peek("account.a");
    world.append(&story[1..2]).await;
    world.catch_up("p").await;
    world.snapshots.put_back("account.a", old);
    world.append(&story[2..]).await;
    world.catch_up("p").await;
    world.check("snapshot stale");
}

/// An account is nothing new because its snapshot is gone.
#[tokio::test]
async fn an_account_is_known_of_when_its_snapshot_is_lost_before_it_is_opened_again() {
    let lists: [&[Body]; 4] = [
        &[opened("a"), capped("a", 100)],
        &[reserved("a", 1, 30), settled("a", 1, 30)],
        &[opened("b"), opened("c"), opened("d")],
        &[capped("a", 200)],
    ];
    let mut world = World::of(commits(&lists));
    let last = world.commits.split_off(3);
    world.journal = MemoryJournal::with_commits(world.commits.iter().map(Commit::encode));
    world.catch_up("p").await;
    world.snapshots.forget("account.a");
    world.append(&last).await;
    world.catch_up("p").await;
    world.check("snapshot lost");
}

/// Nothing vouches for any snapshot then: a start writes all of them again.
#[tokio::test]
async fn without_its_directory_all_is_projected_again() {
    let story = short_story();
    let mut world = World::of(story[..2].to_vec());
    world.catch_up("p").await;
    world.append(&story[2..]).await;
    world.catch_up("p").await;
    let directory = world.record().unwrap().directory;
    let root = Names::snapshot_directory_key(PARTITION, directory.expect("marks were made").slot);
    let good = world.snapshots.copy();
    for damage in [None, Some(Bytes::from_static(b"?"))] {
        let world = World {
            snapshots: good.copy(),
            ..world.clone()
        };
        world.snapshots.put_back(&root, damage);
        world.snapshots.forget("account.b");
        let running = world.start("p");
        until(|| world.is_current() && world.snapshot(&account("b")).is_some()).await;
        running.end().await.unwrap();
        world.check("directory lost");
    }
}

/// Neither an older nor a newer release's record is understood half.
#[tokio::test]
async fn a_record_of_another_version_is_projected_again_from_the_start() {
    for v in [RECORD_VERSION - 1, RECORD_VERSION + 1] {
        let world = World::of(short_story());
        world.catch_up("p").await;
        let record = world.record().unwrap();
        let other = PartitionRecord { v, ..record };
        world.snapshots.overwrite("partition.00", other.encode());
        world.snapshots.forget("account.b");
        world.catch_up("p").await;
        world.check("another version");
    }
}

/// Its digest fits its content, but the content is not what the journal's decisions met.
#[tokio::test]
async fn a_snapshot_at_odds_with_the_journal_is_folded_again() {
    let story = short_story();
    let mut world = World::of(story[..2].to_vec());
    world.catch_up("p").await;
    let was = world.snapshot(&account("a")).unwrap();
    let wrong = AccountSnapshot::kept(&was.account, was.position, was.at_ms, &Account::default());
    world.snapshots.overwrite("account.a", wrong);
    world.append(&story[2..]).await;
    world.catch_up("p").await;
    world.check("snapshot at odds");
}

#[tokio::test]
async fn faults_of_the_stores_are_waited_out() {
    let world = World::of(short_story());
    world.feed.script([
        StoreFault::Lost,
        StoreFault::HalfWay,
        StoreFault::Unacknowledged,
    ]);
    world.snapshots.script([
        StoreFault::None,
        StoreFault::Lost,
        StoreFault::Unacknowledged,
        StoreFault::Lost,
    ]);
    world.catch_up("p").await;
    world.check("");
}

#[tokio::test]
async fn a_second_projector_waits_and_takes_over_from_a_dead_one() {
    let story = short_story();
    let mut world = World::of(story[..1].to_vec());
    let first = world.start("first");
    until(|| {
        world
            .record()
            .is_some_and(|record| record.projector.is_some())
    })
    .await;
    let second = world.start("second");
    world.until_current().await;
    assert_eq!(world.record().unwrap().projector.as_deref(), Some("first"));
    first.kill().await;
    world.append(&story[1..]).await;
    world.until_current().await;
    assert_eq!(world.record().unwrap().projector.as_deref(), Some("second"));
    second.end().await.unwrap();
    world.check("");
}

#[tokio::test]
async fn a_projector_that_stops_hands_over_at_once() {
    let world = World::of(short_story());
    world.catch_up("first").await;
    assert_eq!(world.record().unwrap().projector, None);
}

#[tokio::test]
async fn a_fenced_projector_writes_nothing_more_and_waits_for_its_turn() {
    let story = short_story();
    let mut world = World::of(story[..2].to_vec());
    let running = world.start("first");
    world.until_current().await;
    // another one takes the seat behind its back
    let mut stolen = world.record().unwrap();
    stolen.projector = Some("thief".to_owned());
    world.snapshots.overwrite("partition.00", stolen.encode());
    let before = world.snapshots.writes().len();
    world.append(&story[2..]).await;
    // the thief never writes again, so the first takes the seat back, and only then writes
    world.until_current().await;
    let after = world.snapshots.writes().split_off(before);
    let taken = after.iter().position(|key| key == "partition.00").unwrap();
    let written = after.iter().filter(|key| *key == "account.a").count();
    assert!(written >= 1, "{after:?}");
    assert!(
        after[..taken]
            .iter()
            .filter(|key| *key == "account.a")
            .count()
            <= 1,
        "{after:?}"
    );
    running.end().await.unwrap();
    world.check("");
}

#[test]
fn an_account_snapshot_reads_back_as_it_was_written() {
    let state = Account::default();
    let bytes = AccountSnapshot::encode(&account("a"), Position(3), 5, &state);
    let snapshot = AccountSnapshot::decode(&bytes).unwrap();
    assert_eq!(
        (snapshot.position, snapshot.at_ms, snapshot.state),
        (Position(3), 5, state)
    );
    assert!(AccountSnapshot::decode(&bytes[1..]).is_err());
}
