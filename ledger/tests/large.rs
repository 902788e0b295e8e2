//! One account with very many reservations: its snapshot stands in pieces, a takeover reads those and the
//! journal's end, and whatever is lost of them is found and put right from the journal.
#![allow(clippy::unwrap_used)]
#![expect(clippy::print_stdout, reason = "how long a takeover took")]

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use seatbelt_ledger::{
    account::Account,
    api::{Ack, CommandError, Ledger, Read, ReserveOutcome, Standing},
    decide::validate::{KEYS_PER_ACCOUNT_MAX, OPEN_PER_ACCOUNT_MAX, room_for_change},
    directory::{self, Directory, LastPositions},
    host::{HostConfig, LedgerHost},
    journal::memory::MemoryJournal,
    partition::PartitionState,
    snapshot::{
        AccountOutline, AccountSnapshot, FoundSnapshot, History, Mark, PartitionRecord,
        RECORD_VERSION, Unusable, Written, pieces::PiecesHead,
    },
    store::{Kept, Revision, SnapshotStore, StoreError, WriteError, memory::MemorySnapshots},
    testing::{Payer, balance, command_id, one_partition},
};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    commit::Commit,
    event::{Event, KeyIssued},
    ids::{AccountId, Actor, KeyId},
    names::Names,
    position::{Partition, Position},
    scope::Scope,
};
use tokio::sync::Mutex;

const P: Partition = Partition(0);
/// More than one value takes.
const MANY: u64 = 20_000;
/// Enough to be cut into pieces.
const SOME: u64 = 1_500;

fn payer() -> Payer {
    Payer::new("large", "key")
}

fn account() -> AccountId {
    payer().account
}

/// A journal and its snapshots.
#[derive(Clone)]
struct World {
    journal: MemoryJournal,
    snapshots: MemorySnapshots,
}

impl World {
    /// An account with so many open reservations of one token each.
    async fn holding(open: u64) -> Self {
        let world = Self {
            journal: MemoryJournal::new(),
            snapshots: MemorySnapshots::default(),
        };
        let host = world.host().await;
        let cap = CapSpec {
            thresholds: Vec::new(),
            ..balance("cap", Scope::Account, 1_000_000)
        };
        for change in payer().changes(cap) {
            host.admin(payer().admin(change)).await.unwrap();
        }
        reserve(&host, open).await;
        host.stop().await;
        world
    }

    async fn host(&self) -> Arc<LedgerHost> {
        self.host_of(self.journal.clone()).await
    }

    async fn host_of(&self, journal: MemoryJournal) -> Arc<LedgerHost> {
        let config = HostConfig {
            expiry_grace_ms: 0,
            ..one_partition("test")
        };
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(self.snapshots.clone());
        let host = LedgerHost::start_from(&config, vec![journal], Some(&snapshots));
        host.ready().await.unwrap();
        host
    }

    /// The journal's state, as a projector folds it.
    fn state(&self) -> PartitionState {
        let mut state = PartitionState::new(P);
        for payload in self.journal.commits() {
            state.accept(&payload).unwrap();
        }
        state
    }

    fn truth(&self) -> Account {
        self.state().account(&account()).unwrap().clone()
    }

    async fn found(&self) -> FoundSnapshot {
        let nothing = (Revision(u64::MAX), Position(0));
        let found = FoundSnapshot::read(&self.snapshots, &account(), nothing).await;
        found.unwrap()
    }

    /// Writes the account's snapshot, the directory, and then the record.
    async fn project(&self) {
        let state = self.state();
        let FoundSnapshot { kept, head, .. } = self.found().await;
        let (position, at_ms, of) = (state.position(), state.at_ms(), account());
        let known = state.account(&of).unwrap();
        let written = Written::of(&of, position, at_ms, known, head.as_ref());
        let written = written.write(&self.snapshots, &of, kept.revision).await;
        written.unwrap();
        self.record(&state).await;
    }

    async fn record(&self, state: &PartitionState) {
        let commits = self.journal.commits();
        let commits = commits.iter();
        let events = commits.flat_map(|payload| Commit::decode(payload).unwrap().events);
        let (mut last, mut newest) = (LastPositions::new(), None);
        for stored in events {
            directory::note(&mut last, &stored.event);
            newest = newest.max(Some(stored.event.cause));
        }
        let mark = Mark {
            sequence: self.journal.commits().len() as u64,
            position: state.position(),
            newest,
        };
        let directory = Directory::empty(P).step(&self.snapshots, &last).await;
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
            open: Some(vec![account()]),
            directory: directory.unwrap().named().cloned(),
        };
        let key = Names::snapshot_partition_key(P);
        self.snapshots.overwrite(&key, record.encode());
    }

    fn head(&self) -> PiecesHead {
        let key = Names::snapshot_account_key(&account());
        PiecesHead::decode(&self.snapshots.peek(&key).unwrap()).unwrap()
    }

    /// Everything that stands for the account, its head first.
    fn keys(&self) -> Vec<String> {
        let head = self.head();
        let pieces = head.pieces.all();
        let pieces = pieces.map(|piece| Names::snapshot_piece_key(&account(), piece.number));
        let head = Names::snapshot_account_key(&account());
        std::iter::once(head).chain(pieces).collect()
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

    fn copy(&self) -> Self {
        Self {
            journal: MemoryJournal::with_commits(self.journal.commits()),
            snapshots: self.snapshots.copy(),
        }
    }
}

/// Reserves one token so many times.
async fn reserve(host: &LedgerHost, count: u64) {
    for batch in 0..count.div_ceil(200) {
        let size = (count - batch * 200).min(200);
        let outcomes = join_all((0..size).map(|_| host.reserve(payer().reserve(1)))).await;
        for outcome in outcomes {
            assert!(matches!(outcome, Ok(ReserveOutcome::Reserved(_))));
        }
    }
}

async fn standing(host: &LedgerHost) -> Result<Standing, CommandError> {
    let (account, key) = (account(), None);
    host.read(Read {
        account,
        key,
        run: None,
        reservation: None,
    })
    .await
}

#[tokio::test]
async fn a_takeover_of_20_000_open_reservations_reads_their_pieces_and_the_end() {
    let world = World::holding(MANY).await;
    world.project().await;
    let host = world.host().await;
    reserve(&host, 1).await;
    host.stop().await;
    let pieces = world.head().pieces.all().count() as u64;
    // writer started, reserved
    let journal = world.without_beginning(3);
    let (reads, began) = (world.snapshots.reads(), Instant::now());
    let host = world.host_of(journal).await;
    let known = standing(&host).await.unwrap();
    println!("{pieces} pieces, serves after {:?}", began.elapsed());
    assert_eq!((known.open, known.caps[0].held), (MANY + 1, MANY + 1));
    let reads = world.snapshots.reads() - reads;
    // the record, the directory and the head besides
    assert!(reads <= pieces + 8, "{reads} reads for {pieces} pieces");
    host.stop().await;
}

/// Nothing has happened since the record: the account is loaded when it is first used.
#[tokio::test]
async fn a_first_use_reads_the_pieces_once() {
    let world = World::holding(SOME).await;
    world.project().await;
    let pieces = world.head().pieces.all().count() as u64;
    let reads = world.snapshots.reads();
    let host = world.host_of(world.without_beginning(1)).await;
    reserve(&host, 1).await;
    assert_eq!(standing(&host).await.unwrap().open, SOME + 1);
    let reads = world.snapshots.reads() - reads;
    assert!(reads <= pieces + 8, "{reads} reads for {pieces} pieces");
    host.stop().await;
}

#[tokio::test]
async fn what_callers_are_told_is_read_without_reservations() {
    let world = World::holding(SOME).await;
    world.project().await;
    let reads = world.snapshots.reads();
    let terms = AccountOutline::read(&world.snapshots, &account()).await;
    let terms = terms.unwrap().unwrap();
    let (at_ms, truth) = (terms.at_ms, world.truth());
    assert_eq!((terms.open, terms.account), (SOME, account()));
    let key = payer().key;
    let standings = |state: &Account| state.standings(Some(&key), None, at_ms).collect::<Vec<_>>();
    assert_eq!(standings(&terms.state), standings(&truth));
    // the head, one piece of keys, one of caps
    assert_eq!(world.snapshots.reads() - reads, 3);
}

#[tokio::test]
async fn an_account_that_shrinks_stands_in_one_value_again() {
    let world = World::holding(SOME).await;
    world.project().await;
    let host = world.host().await;
    let open: Vec<_> = world.truth().open().keys().copied().collect();
    for id in open {
        let end = payer().settle(id, 1);
        host.settle(end, Ack::Taken).await.unwrap();
    }
    host.stop().await;
    world.project().await;
    let key = Names::snapshot_account_key(&account());
    let whole = AccountSnapshot::decode(&world.snapshots.peek(&key).unwrap()).unwrap();
    assert_eq!(whole.state, world.truth());
}

/// What befalls a value of the bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    None,
    Purged,
    Stale,
    Torn,
}

const HARMS: [Harm; 4] = [Harm::None, Harm::Purged, Harm::Stale, Harm::Torn];

/// A bucket, and what stood in it some time ago.
struct Aged {
    world: World,
    /// The account as it was then.
    before: Account,
    old: HashMap<String, Bytes>,
}

impl Aged {
    async fn new() -> Self {
        let world = World::holding(SOME).await;
        world.project().await;
        let keys = world.keys().into_iter();
        let old = keys.map(|key| (key.clone(), world.snapshots.peek(&key).unwrap()));
        let old: HashMap<String, Bytes> = old.collect();
        let before = world.truth();
        // twice: the second takes the numbers that the first has left
        for round in 0..2 {
            let host = world.host().await;
            for id in before.open().keys().skip(round).step_by(100) {
                let end = payer().settle(*id, 1);
                host.settle(end, Ack::Durable).await.unwrap();
            }
            reserve(&host, 20).await;
            host.stop().await;
            world.project().await;
        }
        let stands_again = |key: &String| {
            let now = world.snapshots.peek(key);
            old.get(key).is_some_and(|old| Some(old) != now.as_ref())
        };
        assert!(world.keys().iter().skip(1).any(stands_again));
        Self { world, before, old }
    }

    fn harm(&self, bucket: &MemorySnapshots, key: &str, harm: Harm) {
        let value = bucket.peek(key).unwrap();
        match harm {
            Harm::None => {}
            Harm::Purged => bucket.forget(key),
            // at the revision it had then, as after the loss of what was not synced
            Harm::Stale => bucket.put_back(key, self.old.get(key).cloned()),
            Harm::Torn => bucket.put_back(key, Some(value.slice(..value.len() / 2))),
        }
    }
}

/// Every way in which a head and four of its pieces can be lost, by themselves and together: what is
/// found is the truth, or told to be lost.
#[tokio::test]
async fn any_combination_of_lost_stale_and_torn_pieces_is_told() {
    let aged = Aged::new().await;
    let (keys, state) = (aged.world.keys(), aged.world.state());
    let (aged_keys, other_keys): (Vec<_>, Vec<_>) = keys[1..]
        .iter()
        .partition(|key| aged.old.contains_key(*key));
    assert!(aged_keys.len() >= 3, "{aged_keys:?}");
    let pieces = aged_keys.into_iter().take(3).chain(other_keys);
    let chosen: Vec<_> = keys[..1].iter().chain(pieces).take(5).collect();
    let (truth, position) = (aged.world.truth(), state.position());
    let mut lost = 0;
    for number in 0..HARMS.len().pow(5) {
        let bucket = aged.world.snapshots.copy();
        let harm_of = |nth: u32| HARMS[number / HARMS.len().pow(nth) % HARMS.len()];
        for (key, nth) in chosen.iter().zip(0..) {
            aged.harm(&bucket, key, harm_of(nth));
        }
        let vouched = (Revision(u64::MAX), position);
        let found = FoundSnapshot::read(&bucket, &account(), vouched)
            .await
            .unwrap();
        let held = found.snapshot;
        let held = held.and_then(|held| AccountSnapshot::held_to(held, Some(position), position));
        match held {
            Ok(found) => assert_eq!(found.unwrap().state, truth, "{number}"),
            Err(_) => lost += 1,
        }
    }
    assert!(lost > 900, "{lost} of 1,024");
}

/// Each piece in each way, and all of them: a new writer knows what is held, and the snapshot is whole
/// again.
#[tokio::test]
async fn a_lost_piece_is_put_right_from_the_journal() {
    let aged = Aged::new().await;
    let keys = aged.world.keys();
    let held = aged.world.truth().open().len() as u64;
    let cases = keys.iter().map(std::slice::from_ref).chain([&keys[..]]);
    for (keys, harm) in cases.zip(HARMS[1..].iter().cycle()) {
        let world = aged.world.copy();
        for key in keys {
            aged.harm(&world.snapshots, key, *harm);
        }
        let host = world.host().await;
        let known = standing(&host).await.unwrap();
        assert_eq!((known.open, known.caps[0].held), (held, held), "{keys:?}");
        host.stop().await;
        let found = world.found().await.snapshot.unwrap().unwrap();
        assert_eq!(found.state, world.truth(), "{keys:?} {harm:?}");
    }
}

/// A bucket in which the account is written anew twice, just before a piece of it is read, so many times.
struct Overtaken {
    bucket: MemorySnapshots,
    states: [Account; 2],
    left: AtomicU32,
    one_at_a_time: Mutex<()>,
}

impl Overtaken {
    async fn overtake(&self) {
        let _alone = self.one_at_a_time.lock().await;
        let (any, of) = ((Revision(u64::MAX), Position(0)), account());
        for state in &self.states {
            let FoundSnapshot { kept, head, .. } =
                FoundSnapshot::read(&self.bucket, &of, any).await.unwrap();
            let written = Written::of(&of, Position(9), 1, state, head.as_ref());
            let written = written.write(&self.bucket, &of, kept.revision).await;
            written.unwrap();
        }
    }
}

impl SnapshotStore for Overtaken {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>> {
        async move {
            let is_piece = key.matches('.').count() == 2;
            let fewer = |left: u32| left.checked_sub(1);
            if is_piece && self.left.fetch_update(Relaxed, Relaxed, fewer).is_ok() {
                self.overtake().await;
            }
            SnapshotStore::read(&self.bucket, key).await
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        _: &'a str,
        _: Revision,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>> {
        unreachable!("it is only read")
    }

    fn accounts(&self) -> BoxFuture<'_, Result<Vec<AccountId>, StoreError>> {
        unreachable!("it is not listed")
    }
}

/// A newer head stands when a piece is found to be another: it is read instead.
#[tokio::test]
async fn a_snapshot_that_is_written_anew_while_it_is_read_is_read_again() {
    let aged = Aged::new().await;
    let (any, of) = ((Revision(u64::MAX), Position(0)), account());
    for times in [1, 3] {
        let store = Overtaken {
            bucket: aged.world.snapshots.copy(),
            states: [aged.before.clone(), aged.world.truth()],
            left: AtomicU32::new(times),
            one_at_a_time: Mutex::default(),
        };
        let found = FoundSnapshot::read(&store, &of, any).await.unwrap();
        let state = found.snapshot.unwrap().unwrap().state;
        assert_eq!(state, store.states[1], "overtaken {times} times");
    }
}

#[tokio::test]
async fn a_head_of_another_account_is_not_taken() {
    let world = World::holding(SOME).await;
    world.project().await;
    let other = AccountId::new("other").unwrap();
    let head = world
        .snapshots
        .peek(&Names::snapshot_account_key(&account()));
    let key = Names::snapshot_account_key(&other);
    world.snapshots.overwrite(&key, head.unwrap());
    let any = (Revision(u64::MAX), Position(0));
    let found = FoundSnapshot::read(&world.snapshots, &other, any)
        .await
        .unwrap();
    assert!(matches!(found.snapshot, Err(Unusable::Account { .. })));
}

/// Neither heard of what the other wrote: the second changes nothing.
#[tokio::test]
async fn a_snapshot_that_somebody_else_has_written_meanwhile_stays() {
    let aged = Aged::new().await;
    let (bucket, of, position) = (
        &aged.world.snapshots,
        account(),
        aged.world.state().position(),
    );
    let FoundSnapshot { kept, head, .. } = aged.world.found().await;
    let host = aged.world.host().await;
    reserve(&host, 30).await;
    host.stop().await;
    let first = aged.world.truth();
    let written = |state| Written::of(&of, position, 1, state, head.as_ref());
    let one = written(&first).write(bucket, &of, kept.revision).await;
    one.unwrap();
    let other = written(&aged.before)
        .write(bucket, &of, kept.revision)
        .await;
    assert!(matches!(other, Err(WriteError::Moved)), "{other:?}");
    let found = aged.world.found().await.snapshot.unwrap().unwrap();
    assert_eq!(found.state, first);
}

/// A writer that dies at any write of a snapshot leaves the one before it or the new one.
#[tokio::test]
async fn a_snapshot_that_is_cut_short_leaves_the_one_before() {
    use seatbelt_ledger::store::memory::StoreFault;
    let world = World::holding(SOME).await;
    world.project().await;
    let before = world.truth();
    let host = world.host().await;
    reserve(&host, 300).await;
    host.stop().await;
    let (state, after) = (world.state(), world.truth());
    let (mut old, mut new) = (0, 0);
    for dies_at in 0..20 {
        let world = world.copy();
        let FoundSnapshot { kept, head, .. } = world.found().await;
        let (of, known) = (account(), state.account(&account()).unwrap());
        let written = Written::of(&of, state.position(), state.at_ms(), known, head.as_ref());
        let faults =
            std::iter::repeat_n(StoreFault::None, dies_at).chain([StoreFault::Unacknowledged]);
        world.snapshots.script(faults);
        let done = written.write(&world.snapshots, &of, kept.revision).await;
        let found = world.found().await.snapshot.unwrap().unwrap().state;
        match done {
            Ok(_) => assert_eq!(found, after),
            Err(_) if found == before => old += 1,
            Err(_) => {
                assert_eq!(found, after);
                new += 1;
            }
        }
    }
    assert!(old > 1 && new == 1, "{old} before, {new} after");
}

/// As many as its snapshot is sure to hold, and no more until one ends.
#[tokio::test]
async fn an_account_takes_so_many_open_reservations_and_no_more() {
    let world = World::holding(OPEN_PER_ACCOUNT_MAX as u64).await;
    world.project().await;
    let host = world.host().await;
    let full = host.reserve(payer().reserve(1)).await.unwrap_err();
    assert!(matches!(full, CommandError::Unavailable { .. }), "{full:?}");
    assert!(full.to_string().contains("let some end first"), "{full}");
    let first = *world.truth().open().keys().next().unwrap();
    let end = payer().settle(first, 1);
    host.settle(end, Ack::Durable).await.unwrap();
    reserve(&host, 1).await;
    host.stop().await;
    world.project().await;
    let found = world.found().await.snapshot.unwrap().unwrap();
    assert_eq!(found.state, world.truth());
}

/// Keys are bounded too; issuing one again is no other key.
#[test]
fn an_account_takes_so_many_keys_and_no_more() {
    let key = |number: usize| KeyIssued {
        key: KeyId::new(format!("key-{number:06}")).unwrap(),
        team: None,
        secret_sha256: None,
    };
    let mut state = Account::default();
    for number in 0..KEYS_PER_ACCOUNT_MAX {
        let last = Change::IssueKey(key(number));
        assert_eq!(room_for_change(&state, &last), Ok(()));
        state.apply(&Event {
            position: Position(1),
            at_ms: 1,
            account: account(),
            cause: command_id(),
            actor: Actor::operator("test"),
            body: key(number).into(),
        });
    }
    let again = Change::IssueKey(key(7));
    assert_eq!(room_for_change(&state, &again), Ok(()));
    let more = Change::IssueKey(key(KEYS_PER_ACCOUNT_MAX));
    let refused = room_for_change(&state, &more).unwrap_err().to_string();
    assert!(refused.contains("another account"), "{refused}");
}
