//! Starts a writer from snapshots and the journal's end: only the end is read, what a snapshot says is
//! checked, and whatever is lost or at odds is found and put right from the journal.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures::stream::BoxStream;
use seatbelt_ledger::{
    account::Account,
    api::{Ack, Admin, CommandError, Ledger, Read, Reserve, ReserveOutcome, Settle, Standing},
    directory::{self, Directory, LastPositions},
    host::{HostConfig, LedgerHost, now_ms},
    journal::{AppendError, Journal, ReadError, Sequence, Stored, memory::MemoryJournal},
    lookup,
    partition::PartitionState,
    snapshot::{
        AccountSnapshot, History, Mark, PartitionRecord, RECORD_VERSION, SNAPSHOT_VERSION, TooLarge,
    },
    store::{SnapshotStore, memory::MemorySnapshots},
    testing::{Payer, balance, command_id, one_partition},
    writer::WriterConfig,
};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    commit::{ChainHash, Commit},
    event::{Event, EventBody, StoredEvent, WriterStarted},
    ids::{AccountId, Actor, CapId, CommandId},
    names::Names,
    position::{Partition, Position},
    scope::Scope,
    wire,
};

const P: Partition = Partition(0);

fn account(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

fn key_of(name: &str) -> String {
    Names::snapshot_account_key(&account(name))
}

fn payer(name: &str) -> Payer {
    Payer::new(name, "key")
}

/// A journal, its snapshots, and one writer after another.
struct World {
    journal: MemoryJournal,
    snapshots: MemorySnapshots,
}

impl World {
    /// Accounts `a` and `b`, with 100 tokens each; `a` has spent 30.
    async fn new() -> Self {
        let world = Self {
            journal: MemoryJournal::new(),
            snapshots: MemorySnapshots::default(),
        };
        let host = world.host().await;
        for name in ["a", "b"] {
            open(&host, name).await;
        }
        spend(&host, "a", 30).await;
        host.stop().await;
        world
    }

    async fn host(&self) -> Arc<LedgerHost> {
        let host = self.host_of(self.journal.clone());
        host.ready().await.unwrap();
        host
    }

    fn host_of(&self, journal: MemoryJournal) -> Arc<LedgerHost> {
        self.host_with(journal, WriterConfig::ACCOUNTS_MAX_DEFAULT)
    }

    fn host_with(&self, journal: MemoryJournal, accounts_max: usize) -> Arc<LedgerHost> {
        let config = HostConfig {
            expiry_grace_ms: 0,
            accounts_max,
            ..one_partition("test")
        };
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(self.snapshots.clone());
        LedgerHost::start_from(&config, vec![journal], Some(&snapshots))
    }

    /// The journal's state, as a projector folds it.
    fn state(&self) -> PartitionState {
        let mut state = PartitionState::new(P);
        for payload in self.journal.commits() {
            state.accept(&payload).unwrap();
        }
        state
    }

    /// Writes all snapshots, the directory, and then the record; no command before it stays hot at a
    /// start.
    async fn project(&self) {
        let state = self.state();
        for (account, known) in state.accounts() {
            self.put(account, known);
        }
        let events = self.journal.commits();
        let events = events
            .iter()
            .flat_map(|payload| Commit::decode(payload).unwrap().events);
        let newest = events.map(|stored| stored.event.cause).max();
        let mark = Mark {
            sequence: self.journal.commits().len() as u64,
            position: state.position(),
            newest,
        };
        let mut last = LastPositions::new();
        for payload in self.journal.commits() {
            for stored in Commit::decode(&payload).unwrap().events {
                directory::note(&mut last, &stored.event);
            }
        }
        let directory = Directory::empty(P).step(&self.snapshots, &last).await;
        let is_open = |(account, known): (&AccountId, &Account)| {
            (!known.open().is_empty()).then(|| account.clone())
        };
        let record = PartitionRecord {
            v: RECORD_VERSION,
            projector: None,
            sequence: mark.sequence,
            head: state.head().clone(),
            checked_at_ms: 0,
            history: History {
                newest,
                older: mark,
                newer: mark,
            },
            open: Some(state.accounts().filter_map(is_open).collect()),
            directory: directory.unwrap().named().cloned(),
        };
        let key = Names::snapshot_partition_key(P);
        self.snapshots.overwrite(&key, record.encode());
    }

    fn put(&self, account: &AccountId, known: &Account) {
        let state = self.state();
        let value = AccountSnapshot::kept(account, state.position(), state.at_ms(), known);
        self.snapshots
            .overwrite(&Names::snapshot_account_key(account), value);
    }

    /// The journal with its first commits unreadable.
    fn without_beginning(&self, good: usize) -> MemoryJournal {
        let mut commits = self.journal.commits();
        let damaged = commits.len() - good;
        for commit in &mut commits[..damaged] {
            *commit = Bytes::from_static(b"not read");
        }
        MemoryJournal::with_commits(commits)
    }

    /// The journal as a writer of a later release went on with it: its last event, once more, is of a kind that
    /// this release does not know.
    fn and_one_of_a_later_release(&self) -> MemoryJournal {
        self.and_later(as_unknown)
    }

    /// As a later release went on with it, whose settle this is.
    fn and_later(&self, later: fn(&Bytes) -> Bytes) -> MemoryJournal {
        let mut commits = self.journal.commits();
        let last = Commit::decode(commits.last().unwrap()).unwrap();
        let settled = last.events.last().unwrap().event.clone();
        let started = EventBody::WriterStarted(WriterStarted {
            epoch: last.epoch,
            writer: "later".to_owned(),
            version: "9.9.9".to_owned(),
            adopted: None,
            skipped: None,
        });
        let system = Event {
            account: AccountId::system(),
            body: started,
            ..settled.clone()
        };
        for event in [system, settled] {
            let before = Commit::decode(commits.last().unwrap()).unwrap();
            let position = Position(before.last_position().0 + 1);
            let event = StoredEvent::new(Event { position, ..event });
            let event = StoredEvent::read(later(&event.bytes)).unwrap();
            let commit = Commit {
                first_position: position,
                prev: ChainHash::of(commits.last().unwrap()),
                events: vec![event],
                ..before
            };
            commits.push(commit.encode());
        }
        MemoryJournal::with_commits(commits)
    }

    /// Whatever has become of the snapshot of `a`: a new writer knows what it has spent, and the
    /// snapshot is whole again.
    async fn is_put_right(&self) {
        let host = self.host().await;
        assert_eq!(spent(&host, "a").await, 30);
        assert_eq!(spent(&host, "b").await, 0);
        host.stop().await;
        let kept = self.snapshots.peek(&key_of("a")).unwrap();
        let kept = AccountSnapshot::decode(&kept).unwrap();
        assert_eq!(Some(&kept.state), self.state().account(&account("a")));
    }
}

async fn open(host: &LedgerHost, name: &str) {
    let cap = CapSpec {
        thresholds: Vec::new(),
        ..balance("cap", Scope::Account, 100)
    };
    for change in payer(name).changes(cap) {
        admin(host, name, change).await.unwrap();
    }
}

async fn admin(host: &LedgerHost, name: &str, change: Change) -> Result<(), CommandError> {
    host.admin(payer(name).admin(change)).await.map(drop)
}

async fn spend(host: &LedgerHost, name: &str, tokens: u64) -> (Reserve, Settle) {
    let command = payer(name).reserve(tokens);
    let outcome = host.reserve(command.clone()).await.unwrap();
    assert!(matches!(outcome, ReserveOutcome::Reserved(_)));
    let end = payer(name).settle(command.id.into(), tokens);
    host.settle(end.clone(), Ack::Durable).await.unwrap();
    (command, end)
}

async fn standing(host: &LedgerHost, name: &str) -> Result<Standing, CommandError> {
    let account = account(name);
    host.read(Read {
        account,
        key: None,
        run: None,
        reservation: None,
    })
    .await
}

async fn spent(host: &LedgerHost, name: &str) -> u64 {
    standing(host, name).await.unwrap().caps[0].spent
}

#[tokio::test]
async fn only_the_end_of_the_journal_is_read() {
    let world = World::new().await;
    world.project().await;
    let host = world.host().await;
    spend(&host, "b", 7).await;
    host.stop().await;
    // writer started, reserved, settled
    let host = world.host_of(world.without_beginning(4));
    host.ready().await.unwrap();
    assert_eq!((spent(&host, "a").await, spent(&host, "b").await), (30, 7));
    spend(&host, "a", 70).await;
    let over = host.reserve(payer("a").reserve(1)).await.unwrap();
    assert!(matches!(over, ReserveOutcome::Refused(_)), "{over:?}");
    host.stop().await;
}

#[tokio::test]
async fn an_account_that_does_not_exist_is_not_made_by_asking_for_it() {
    let world = World::new().await;
    world.project().await;
    let host = world.host().await;
    let unknown = standing(&host, "nobody").await;
    assert!(
        matches!(unknown, Err(CommandError::UnknownAccount { .. })),
        "{unknown:?}"
    );
    open(&host, "nobody").await;
    assert_eq!(spent(&host, "nobody").await, 0);
    admin(&host, "a", Change::OpenAccount).await.unwrap();
    assert_eq!(spent(&host, "a").await, 30);
    host.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_was_changed_is_put_right_from_the_journal() {
    let world = World::new().await;
    world.project().await;
    let key = key_of("a");
    let mut snapshot = AccountSnapshot::decode(&world.snapshots.peek(&key).unwrap()).unwrap();
    snapshot.state = world.state().account(&account("b")).unwrap().clone();
    world
        .snapshots
        .overwrite(&key, wire::encode(&snapshot).into());
    world.is_put_right().await;
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_is_put_right_from_the_journal() {
    let world = World::new().await;
    world.project().await;
    let key = key_of("a");
    world
        .snapshots
        .overwrite(&key, Bytes::from_static(b"rotten"));
    world.is_put_right().await;
}

#[tokio::test]
async fn an_old_snapshot_that_was_put_back_is_put_right_from_the_journal() {
    let world = World::new().await;
    let mut early = PartitionState::new(P);
    let mut old = None;
    for payload in world.journal.commits() {
        early.accept(&payload).unwrap();
        let known = early.account(&account("a"));
        if old.is_none()
            && let Some(known) = known.filter(|known| !known.caps().is_empty())
        {
            let (position, at_ms) = (early.position(), early.at_ms());
            old = Some(AccountSnapshot::kept(&account("a"), position, at_ms, known));
        }
    }
    world.project().await;
    world.snapshots.overwrite(&key_of("a"), old.unwrap());
    world.is_put_right().await;
}

#[tokio::test]
async fn a_snapshot_of_another_account_is_put_right_from_the_journal() {
    let world = World::new().await;
    world.project().await;
    let other = world.snapshots.peek(&key_of("b")).unwrap();
    world.snapshots.overwrite(&key_of("a"), other);
    world.is_put_right().await;
}

/// The projector had the account wrong all along: its digest fits, but not what the journal met.
#[tokio::test]
async fn an_account_at_odds_with_the_journals_end_is_not_used() {
    let world = World::new().await;
    world.project().await;
    let host = world.host().await;
    spend(&host, "a", 5).await;
    host.stop().await;
    let key = key_of("a");
    let snapshot = AccountSnapshot::decode(&world.snapshots.peek(&key).unwrap()).unwrap();
    let wrong = world.state().account(&account("b")).unwrap().clone();
    let value = AccountSnapshot::kept(&account("a"), snapshot.position, snapshot.at_ms, &wrong);
    world.snapshots.overwrite(&key, value);
    let host = world.host().await;
    assert_eq!(spent(&host, "a").await, 35);
    host.stop().await;
}

/// As after restoring the journal alone from a backup.
#[tokio::test]
async fn a_journal_that_is_not_the_one_its_record_saw_stops_the_partition() {
    let world = World::new().await;
    let other = World::new().await;
    let host = other.host().await;
    spend(&host, "b", 50).await;
    host.stop().await;
    other.project().await;
    let before = world.journal.commits();
    let world = World {
        journal: world.journal.clone(),
        snapshots: other.snapshots.clone(),
    };
    let host = world.host_of(world.journal.clone());
    let refused = host.ready().await.unwrap_err().to_string();
    assert!(refused.contains("adopt-journal"), "{refused}");
    host.stop().await;
    assert_eq!(world.journal.commits(), before, "nothing was appended");
    let host = other.host().await;
    assert_eq!(spent(&host, "b").await, 50);
    host.stop().await;
}

/// Both are lost at once: what the record vouches for is of no use, and what it saw still counts.
#[tokio::test]
async fn a_shorter_journal_stops_the_partition_though_its_directory_is_lost_too() {
    let aged = Aged::new().await;
    let directory = aged.keys("directory.");
    assert!(!directory.is_empty());
    for key in directory {
        aged.harm(&key, Harm::Torn);
    }
    let mut commits = aged.world.journal.commits();
    commits.truncate(commits.len() / 2);
    let host = aged.world.host_of(MemoryJournal::with_commits(commits));
    let refused = host.ready().await.unwrap_err().to_string();
    assert!(refused.contains("adopt-journal"), "{refused}");
    host.stop().await;
}

#[tokio::test]
async fn a_damaged_end_stops_the_partition_whatever_the_snapshots_say() {
    let world = World::new().await;
    world.project().await;
    let mut commits = world.journal.commits();
    commits.push(Bytes::from_static(b"rotten"));
    let host = world.host_of(MemoryJournal::with_commits(commits));
    let refused = host.ready().await.unwrap_err().to_string();
    assert!(refused.contains("audit verify"), "{refused}");
}

#[tokio::test]
async fn a_hold_whose_deadline_passes_ends_though_nobody_uses_its_account() {
    ends_unused(|_| ()).await;
}

/// There were more than a record names.
#[tokio::test]
async fn a_hold_of_an_account_that_the_record_does_not_name_ends_too() {
    ends_unused(|record| record.open = None).await;
}

async fn ends_unused(change: impl FnOnce(&mut PartitionRecord)) {
    let world = World::new().await;
    let host = world.host().await;
    let mut command = payer("b").reserve(9);
    command.deadline_ms = now_ms() + 1_000;
    host.reserve(command).await.unwrap();
    host.stop().await;
    world.project().await;
    let key = Names::snapshot_partition_key(P);
    let mut record = PartitionRecord::decode(&world.snapshots.peek(&key).unwrap()).unwrap();
    change(&mut record);
    world.snapshots.overwrite(&key, record.encode());
    let host = world.host().await;
    let before = world.journal.end().await.unwrap();
    let mut commits = world.journal.follow(Sequence(before.0.saturating_sub(1)));
    let expired = async {
        use futures::StreamExt;
        while let Some(stored) = commits.next().await {
            let commit = Commit::decode(&stored.unwrap().payload).unwrap();
            let is_expired = |body: &EventBody| matches!(body, EventBody::Expired(_));
            if commit
                .events
                .iter()
                .any(|stored| is_expired(&stored.event.body))
            {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), expired)
        .await
        .expect("the hold expires");
    assert_eq!(spent(&host, "b").await, 9);
    host.stop().await;
}

#[tokio::test]
async fn commands_older_than_what_stays_hot_keep_their_outcome() {
    let world = World::new().await;
    let host = world.host().await;
    let (first, end) = spend(&host, "a", 10).await;
    let over = payer("a").reserve(90);
    let refused = host.reserve(over.clone()).await.unwrap();
    let held = payer("a").reserve(1);
    let grant = host.reserve(held.clone()).await.unwrap();
    let credit = Admin {
        id: command_id(),
        account: account("b"),
        actor: Actor::operator("test"),
        change: Change::Credit {
            cap: CapId::new("cap").unwrap(),
            amount: 11,
            reason: None,
        },
    };
    let credited = host.admin(credit.clone()).await.unwrap();
    let settled = host.settle(end.clone(), Ack::Durable).await.unwrap();
    host.stop().await;
    world.project().await;

    let host = world.host().await;
    assert_eq!(host.reserve(over).await.unwrap(), refused);
    assert_eq!(
        host.settle(end.clone(), Ack::Durable).await.unwrap(),
        settled
    );
    assert_eq!(host.admin(credit.clone()).await.unwrap(), credited);
    let again = host.reserve(held).await.unwrap();
    let (ReserveOutcome::Reserved(again), ReserveOutcome::Reserved(grant)) = (again, grant) else {
        panic!("both are grants");
    };
    assert_eq!((again.position, again.hold), (grant.position, grant.hold));
    let ended = host.reserve(first.clone()).await.unwrap_err();
    let position = settled.position;
    let reservation = first.id.into();
    assert_eq!(
        ended,
        CommandError::AlreadyResolved {
            reservation,
            position
        }
    );
    let mut other = payer("a").settle(reservation, 3);
    assert_eq!(
        host.settle(other.clone(), Ack::Durable).await.unwrap_err(),
        CommandError::AlreadyResolved {
            reservation,
            position
        }
    );
    other.id = end.id;
    assert_eq!(
        host.settle(other, Ack::Durable).await.unwrap_err(),
        CommandError::Conflict { id: end.id }
    );
    assert_eq!(spent(&host, "a").await, 40);
    assert_eq!(standing(&host, "b").await.unwrap().caps[0].limit, 111);
    host.stop().await;
}

#[tokio::test]
async fn a_command_that_was_never_carried_out_is_turned_away_when_it_is_too_old() {
    let world = World::new().await;
    world.project().await;
    let host = world.host().await;
    let mut late = payer("a").reserve(1);
    late.id = CommandId::from_parts(now_ms() - 30_000, 7);
    let outcome = host.reserve(late.clone()).await.unwrap();
    assert!(matches!(outcome, ReserveOutcome::Reserved(_)));
    late.id = CommandId::from_parts(now_ms() - 3_700_000, 7);
    let refused = host.reserve(late).await.unwrap_err();
    assert!(matches!(refused, CommandError::Invalid { .. }));
    assert!(refused.to_string().contains("use a new id"), "{refused}");
    host.stop().await;
}

/// A journal that counts the stretches of it that are read.
struct Counted {
    journal: MemoryJournal,
    reads: Arc<AtomicUsize>,
}

impl Journal for Counted {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        self.journal.append(expected, payload).await
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        self.journal.end().await
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        self.journal.get(sequence).await
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.journal.replay(after, to)
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.journal.follow(after)
    }
}

#[tokio::test]
async fn one_caller_whose_clock_was_ahead_makes_nobody_elses_commands_old() {
    let world = World::new().await;
    let host = world.host().await;
    let ahead = Reserve {
        id: CommandId::from_parts(now_ms() + 55_000, 7),
        ..payer("a").reserve(1)
    };
    let first = host.reserve(ahead.clone()).await.unwrap();
    host.stop().await;
    world.project().await;
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Counted {
        journal: world.journal.clone(),
        reads: Arc::clone(&reads),
    };
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(world.snapshots.clone());
    let host = LedgerHost::start_from(&one_partition("next"), vec![counted], Some(&snapshots));
    host.ready().await.unwrap();
    spend(&host, "b", 1).await;
    let before = reads.load(Ordering::Relaxed);
    for _ in 0..20 {
        spend(&host, "b", 1).await;
    }
    assert_eq!(reads.load(Ordering::Relaxed), before, "each was looked up");
    assert_eq!(host.reserve(ahead.clone()).await.unwrap(), first);
    let other = Reserve {
        output_tokens: 2,
        ..ahead
    };
    let refused = host.reserve(other).await.unwrap_err();
    assert!(matches!(refused, CommandError::Conflict { .. }));
    host.stop().await;
}

#[tokio::test]
async fn a_trace_tells_the_whole_story_of_a_command_and_no_other() {
    let world = World::new().await;
    let host = world.host().await;
    let mut traced = Vec::new();
    for tokens in 1..20 {
        traced.push(spend(&host, "b", tokens % 3).await);
    }
    host.stop().await;
    let end = world.journal.end().await.unwrap();
    for (command, end_command) in traced {
        let trace = lookup::trace(&world.journal, command.id, end)
            .await
            .unwrap();
        let kinds: Vec<_> = trace.events.iter().map(|event| event.body.kind()).collect();
        assert_eq!(kinds, ["reserved", "settled"]);
        assert_eq!(trace.events[1].cause, end_command.id);
    }
    let never = lookup::trace(&world.journal, command_id(), end)
        .await
        .unwrap();
    assert_eq!(never.events, []);
    let empty = MemoryJournal::new();
    let never = lookup::trace(&empty, command_id(), Sequence(0))
        .await
        .unwrap();
    assert_eq!(never.events, []);
}

/// One account fits memory. Whoever leaves it comes back as it was; who has changed since the last
/// snapshot stays.
#[tokio::test]
async fn accounts_outgrow_memory() {
    let world = World::new().await;
    world.project().await;
    come_and_go(&world).await;
}

/// The first writer of a ledger begins with all accounts, and lets go of them as any other does.
#[tokio::test]
async fn accounts_outgrow_the_memory_of_the_first_writer_too() {
    come_and_go(&World::new().await).await;
}

async fn come_and_go(world: &World) {
    let host = world.host_with(world.journal.clone(), 1);
    host.ready().await.unwrap();
    for round in 1..=3 {
        spend(&host, "a", 1).await;
        spend(&host, "b", 2).await;
        if round == 2 {
            world.project().await;
        }
        let reads = world.snapshots.reads();
        let loaded_again = async {
            while round == 2 && world.snapshots.reads() < reads + 6 {
                assert_eq!(spent(&host, "a").await, 32);
                assert_eq!(spent(&host, "b").await, 4);
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), loaded_again)
            .await
            .expect("accounts leave memory and come back");
    }
    assert_eq!((spent(&host, "a").await, spent(&host, "b").await), (33, 6));
    host.stop().await;
}

/// What befalls a value of the bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    None,
    Purged,
    Stale,
    Torn,
    TooLarge,
}

const HARMS: [Harm; 5] = [
    Harm::None,
    Harm::Purged,
    Harm::Stale,
    Harm::Torn,
    Harm::TooLarge,
];

/// Three accounts with a past: what each had spent when an old bucket was copied, and has spent since.
const SPENT: [(&str, u64, u64); 3] = [("a", 10, 30), ("b", 20, 20), ("c", 5, 40)];

/// A bucket, and what stood in it some time ago.
struct Aged {
    world: World,
    old: HashMap<String, Bytes>,
}

impl Aged {
    async fn new() -> Self {
        let world = World {
            journal: MemoryJournal::new(),
            snapshots: MemorySnapshots::default(),
        };
        let host = world.host().await;
        for (name, first, _) in SPENT {
            open(&host, name).await;
            spend(&host, name, first).await;
        }
        host.stop().await;
        world.project().await;
        let keys = world.snapshots.writes().into_iter();
        let old = keys.filter_map(|key| Some((key.clone(), world.snapshots.peek(&key)?)));
        let old = old.collect();
        let host = world.host().await;
        for (name, _, second) in SPENT {
            spend(&host, name, second).await;
        }
        host.stop().await;
        world.project().await;
        Self { world, old }
    }

    /// Keys as they stand now.
    fn keys(&self, prefix: &str) -> Vec<String> {
        let mut keys = self.world.snapshots.writes();
        keys.sort();
        keys.dedup();
        keys.retain(|key| key.starts_with(prefix));
        keys
    }

    fn harm(&self, key: &str, harm: Harm) {
        let bucket = &self.world.snapshots;
        let value = bucket.peek(key).unwrap();
        match harm {
            Harm::None => {}
            Harm::Purged => bucket.forget(key),
            // at the revision it had then, as after the loss of what was not synced
            Harm::Stale => bucket.put_back(key, self.old.get(key).cloned()),
            Harm::Torn => bucket.put_back(key, Some(value.slice(..value.len() / 2))),
            Harm::TooLarge => {
                let large = TooLarge {
                    v: SNAPSHOT_VERSION,
                    account: account(key.strip_prefix("account.").unwrap_or("a")),
                    position: self.world.state().position(),
                    at_ms: 0,
                    too_large: 2_000_000,
                };
                bucket.put_back(key, Some(wire::encode(&large).into()));
            }
        }
    }

    /// Whatever befell the bucket: every account is what the journal says, and no cap gives more.
    async fn is_true(&self, hint: &str) {
        let host = self.world.host().await;
        for (name, first, second) in SPENT {
            assert_eq!(spent(&host, name).await, first + second, "{name} {hint}");
            let over = payer(name).reserve(101 - first - second);
            let over = host.reserve(over).await.unwrap();
            assert!(matches!(over, ReserveOutcome::Refused(_)), "{name} {hint}");
        }
        let unknown = standing(&host, "nobody").await;
        assert!(unknown.is_err(), "{hint}: {unknown:?}");
        host.stop().await;
    }
}

/// Every way in which three snapshots can be lost, by themselves and together.
#[tokio::test]
async fn any_subset_of_snapshots_may_be_lost_stale_torn_or_too_large() {
    let aged = Aged::new().await;
    let good = aged.world.snapshots.copy();
    for number in 0..HARMS.len().pow(3) {
        let base = HARMS.len();
        let harms = [number % base, number / base % base, number / base / base];
        let harms = harms.map(|harm| HARMS[harm]);
        let snapshots = good.copy();
        let world = World {
            journal: MemoryJournal::with_commits(aged.world.journal.commits()),
            snapshots,
        };
        let aged = Aged {
            world,
            old: aged.old.clone(),
        };
        for ((name, ..), harm) in SPENT.iter().zip(harms) {
            aged.harm(&key_of(name), harm);
        }
        aged.is_true(&format!("{harms:?}")).await;
    }
}

#[tokio::test]
async fn a_directory_that_is_lost_stale_or_torn_costs_a_start_and_no_account() {
    let aged = Aged::new().await;
    let good = aged.world.snapshots.copy();
    for key in aged.keys("directory.") {
        for harm in [Harm::Purged, Harm::Stale, Harm::Torn] {
            let world = World {
                journal: MemoryJournal::with_commits(aged.world.journal.commits()),
                snapshots: good.copy(),
            };
            let aged = Aged {
                world,
                old: aged.old.clone(),
            };
            aged.harm(&key, harm);
            aged.harm(&key_of("a"), Harm::Purged);
            aged.is_true(&format!("{key} {harm:?}")).await;
        }
    }
}

/// The bucket comes back as it was, with its record, and the journal has gone on.
#[tokio::test]
async fn a_bucket_that_is_old_as_a_whole_is_brought_up_to_date_by_the_journal() {
    let aged = Aged::new().await;
    for key in aged.keys("") {
        aged.harm(&key, Harm::Stale);
    }
    aged.is_true("all old").await;
}

impl World {
    /// The partition record as another version of the ledger would have written it.
    fn record_is_of(&self, v: u8) {
        let key = Names::snapshot_partition_key(P);
        let record = PartitionRecord::decode(&self.snapshots.peek(&key).unwrap());
        let other = PartitionRecord {
            v,
            ..record.unwrap()
        };
        self.snapshots.put_back(&key, Some(other.encode()));
    }
}

/// Versions that this one cannot read are not read half: the journal says what there is.
#[tokio::test]
async fn a_start_from_a_record_of_another_version_reads_the_whole_journal() {
    let world = World::new().await;
    world.project().await;
    for v in [RECORD_VERSION - 1, RECORD_VERSION + 1] {
        let world = World {
            journal: MemoryJournal::with_commits(world.journal.commits()),
            snapshots: world.snapshots.copy(),
        };
        world.record_is_of(v);
        world.snapshots.forget(&key_of("a"));
        let host = world.host().await;
        assert_eq!((spent(&host, "a").await, spent(&host, "b").await), (30, 0));
        host.stop().await;
    }
}

/// A projector of a newer release came before this gateway was upgraded: it says so, and does not fold the
/// journal for each account.
#[tokio::test]
async fn a_running_writer_that_meets_a_newer_record_says_that_it_must_be_upgraded() {
    let world = World::new().await;
    world.project().await;
    let early = world.snapshots.peek(&key_of("a"));
    let host = world.host().await;
    spend(&host, "b", 1).await;
    host.stop().await;
    world.project().await;
    // nothing has happened to the account since, so this does, if somebody vouches for it
    world.snapshots.put_back(&key_of("a"), early);
    let good = world.snapshots.peek(&Names::snapshot_partition_key(P));
    // the journal's beginning is not there to be folded
    let host = world.host_of(world.without_beginning(1));
    host.ready().await.unwrap();
    world.record_is_of(RECORD_VERSION + 1);
    let told = standing(&host, "a").await.unwrap_err();
    assert!(matches!(told, CommandError::Unavailable { .. }), "{told:?}");
    assert!(told.to_string().contains("upgrade"), "{told}");
    let later = good.as_ref().map(later_record);
    world
        .snapshots
        .put_back(&Names::snapshot_partition_key(P), later);
    let told = standing(&host, "a").await.unwrap_err().to_string();
    assert!(told.contains("`head.rebates`"), "{told}");
    world
        .snapshots
        .put_back(&Names::snapshot_partition_key(P), good);
    assert_eq!(spent(&host, "a").await, 30);
    host.stop().await;
}

/// The same bytes with another kind, where they are a settle's.
fn as_unknown(event: &Bytes) -> Bytes {
    let (kind, unknown) = (b"settled", b"untried");
    let at = event.windows(kind.len()).position(|bytes| bytes == kind);
    let mut bytes = event.to_vec();
    if let Some(at) = at {
        bytes[at..at + kind.len()].copy_from_slice(unknown);
    }
    bytes.into()
}

/// What a later release wrote counts: left out, what is spent would be less than it is.
#[tokio::test]
async fn a_writer_does_not_start_on_an_event_that_it_does_not_know() {
    let world = World::new().await;
    let later = world.and_one_of_a_later_release();
    for from_snapshots in [false, true] {
        if from_snapshots {
            world.project().await;
        }
        let host = world.host_of(later.clone());
        let told = host.ready().await.unwrap_err().to_string();
        let (own, kind) = (env!("CARGO_PKG_VERSION"), "untried");
        for part in [
            own,
            kind,
            "start release 9.9.9, which wrote it, or a later one",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        host.stop().await;
    }
    let commits = later.commits().len();
    assert_eq!(
        commits,
        world.journal.commits().len() + 2,
        "nothing is written"
    );
}

/// The same bytes with a field more, where they are a settle's.
fn with_field(event: &Bytes) -> Bytes {
    let mut value: rmpv::Value = wire::decode("event", event).unwrap();
    let rmpv::Value::Map(fields) = &mut value else {
        panic!("{value}");
    };
    for (name, data) in fields {
        if let (Some("data"), rmpv::Value::Map(data)) = (name.as_str(), data)
            && data.iter().any(|(name, _)| name.as_str() == Some("usage"))
        {
            data.push(("rebate".into(), 7.into()));
        }
    }
    wire::encode(&value).into()
}

/// A field decides as a kind does: an older release that left `within` out of a run decided by other limits.
#[tokio::test]
async fn a_writer_does_not_start_on_a_field_that_it_does_not_know() {
    let world = World::new().await;
    let later = world.and_later(with_field);
    for from_snapshots in [false, true] {
        if from_snapshots {
            world.project().await;
        }
        let host = world.host_of(later.clone());
        let told = host.ready().await.unwrap_err().to_string();
        for part in [
            env!("CARGO_PKG_VERSION"),
            "\"settled\" with the field `data.rebate`",
            "start release 9.9.9, which wrote it, or a later one (docs/upgrade.md)",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        host.stop().await;
    }
    let commits = later.commits().len();
    assert_eq!(
        commits,
        world.journal.commits().len() + 2,
        "nothing is written"
    );
}

/// What is derived is not half understood either: what a later projector keeps of an account beyond what this
/// release does is folded again from the journal, or is waited for.
#[tokio::test]
async fn a_snapshot_with_a_field_that_is_not_known_is_not_used() {
    let world = World::new().await;
    world.project().await;
    let key = key_of("a");
    let kept = world.snapshots.peek(&key).unwrap();
    let mut value: rmpv::Value = wire::decode("snapshot", &kept).unwrap();
    if let rmpv::Value::Map(fields) = &mut value {
        fields.push(("rebates".into(), rmpv::Value::Array(vec![1.into()])));
    }
    let later = Bytes::from(wire::encode(&value));
    let told = AccountSnapshot::decode(&later).unwrap_err().to_string();
    assert!(told.contains("its field `rebates`"), "{told}");
    world.snapshots.put_back(&key, Some(later));
    world.is_put_right().await;
}

/// The record with a field that this release does not know, deep inside.
fn later_record(record: &Bytes) -> Bytes {
    let mut value: rmpv::Value = wire::decode("record", record).unwrap();
    let rmpv::Value::Map(fields) = &mut value else {
        panic!("{value}");
    };
    let mut fields = fields.iter_mut();
    let head = fields.find(|(name, _)| name.as_str() == Some("head"));
    if let Some((_, rmpv::Value::Map(head))) = head {
        head.push(("rebates".into(), 1.into()));
    }
    wire::encode(&value).into()
}

#[tokio::test]
async fn a_start_from_a_record_with_a_field_that_is_not_known_reads_the_whole_journal() {
    let world = World::new().await;
    world.project().await;
    let key = Names::snapshot_partition_key(P);
    let later = later_record(&world.snapshots.peek(&key).unwrap());
    let told = PartitionRecord::decode(&later).unwrap_err().to_string();
    assert!(told.contains("its field `head.rebates`"), "{told}");
    world.snapshots.put_back(&key, Some(later));
    world.snapshots.forget(&key_of("a"));
    let host = world.host().await;
    assert_eq!((spent(&host, "a").await, spent(&host, "b").await), (30, 0));
    host.stop().await;
}

/// It puts a lost snapshot right as far as it knows the journal. What it does not know must not be lost to
/// whoever comes next.
#[tokio::test]
async fn an_overtaken_writer_hides_nothing_that_its_successor_wrote() {
    let world = World::new().await;
    world.project().await;
    let overtaken = world.host().await;
    let successor = world.host().await;
    spend(&successor, "a", 40).await;
    successor.stop().await;
    world.project().await;
    world.snapshots.forget(&key_of("a"));
    assert_eq!(spent(&overtaken, "a").await, 30, "it knows no better");
    let next = world.host().await;
    assert_eq!(spent(&next, "a").await, 70);
    next.stop().await;
}
