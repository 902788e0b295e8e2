//! Snapshots: the state of each account as folded from the journal, for reading.
//!
//! Accounts that changed are written together, at most every [`FLUSH_EVERY`], and only then the
//! partition record, which vouches for all of them. An account is loaded at its first event, so a
//! start costs the journal's tail and not the number of accounts. A snapshot that is missing, cannot
//! be read, or is not what the journal's decisions say they met, is folded again from the journal,
//! loudly.
//!
//! Which accounts there are, and how far each one's snapshot must reach, says the directory: it is
//! written when a mark of the history is stepped; what came after the mark is read from the journal at
//! the start. Where it is lost, all is projected again from the journal's beginning. Snapshots of accounts
//! that nobody uses are looked through by `sweep`.

mod fold;
mod sweep;
mod write;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future::join, stream};
use seatbelt_ledger::{
    account::Account,
    directory::{self, Directory, DirectoryError, DirectoryRef, Entry, LastPositions},
    journal::{Journal, ReadError, Sequence, Stored},
    recovery::{
        newer::{self, Newer},
        open::open_accounts,
    },
    snapshot::{
        AccountSnapshot, FoundSnapshot, History, MARK_EVERY_EVENTS, OPEN_ACCOUNTS_MAX,
        PartitionRecord, RECORD_VERSION, Written, agrees, pieces,
    },
};
use seatbelt_schemas::{
    chain::in_one_line,
    commit::Commit,
    event::{Event, EventBody},
    ids::AccountId,
    names::Names,
    position::Position,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use self::sweep::Sweep;
use crate::{
    Health,
    chain::{self, Halt, Tail},
    follow::{Complaint, Stop, now_ms, pause},
    health::Component,
    seat::{Seat, first},
    store::{Revision, SnapshotStore, StoreError, WriteError},
};

/// Accounts that changed are written at most this often.
pub const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// Large accounts make it rarer, down to this: how much later a reader may see what changed.
pub const FLUSH_EVERY_MAX: Duration = Duration::from_secs(1);
/// How much of accounts in pieces is looked through in a second, changed or not.
const LARGE_BYTES_PER_SECOND: u32 = 16 * 1024 * 1024;
/// The partition record of an idle partition is written this often, so that readers can tell a quiet
/// journal from a dead projector.
pub const RECORD_REFRESH_EVERY: Duration = Duration::from_secs(1);
/// Account snapshots on their way to or from the store at once.
pub const SNAPSHOTS_IN_FLIGHT_MAX: usize = 64;
/// Accounts kept in memory; past this, those that are written are let go and loaded again at their
/// next event.
pub const ACCOUNTS_IN_MEMORY_MAX: usize = 100_000;

/// How many events lie between two marks; few in this crate's own tests, so that all of them meet some.
pub(crate) const MARK_EVERY: u64 = if cfg!(test) { 3 } else { MARK_EVERY_EVENTS };

/// How long to let be after writing so many bytes of accounts in pieces: each time, all of them are
/// encoded and hashed to see which pieces changed.
pub(crate) fn pause_after(bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let pause = Duration::from_secs(1) * bytes / LARGE_BYTES_PER_SECOND;
    pause.clamp(FLUSH_EVERY, FLUSH_EVERY_MAX)
}

/// One account in memory.
struct Folded {
    state: Account,
    /// Events up to here were in the snapshot that this began with.
    loaded_at: Position,
    revision: Revision,
    /// The head that stands in the store at that revision, where the snapshot is in pieces.
    head: Option<pieces::PiecesHead>,
}

/// The snapshots of one partition.
pub(crate) struct Snapshots<J> {
    journal: Arc<J>,
    store: Arc<dyn SnapshotStore>,
    projector: String,
    tail: Tail,
    revision: Revision,
    checked_at_ms: u64,
    history: History,
    /// Accounts with open reservations; whether it is known of all accounts.
    open: (BTreeSet<AccountId>, bool),
    /// Accounts that were folded again because an event did not agree with them: where the journal
    /// itself is at odds, that is the audit's to say, once.
    refolded: HashSet<AccountId>,
    accounts: HashMap<AccountId, Folded>,
    dirty: BTreeSet<AccountId>,
    listed: Listed,
    flushed_at: Instant,
    /// How long after that the next record is written at the earliest, and accounts in pieces with it.
    pause: Duration,
    /// When accounts that are no trouble were written last, and whether one has changed since.
    small: (Instant, bool),
    recorded: Sequence,
    recorded_position: Position,
    mark_every: u64,
    sweep: Sweep,
    health: Health,
}

/// The directory of accounts, with what is newer than it.
enum Listed {
    /// Not read yet; what the record names.
    Named(Option<DirectoryRef>),
    /// As it stands in the store.
    Read {
        directory: Directory,
        /// What it has not got yet.
        newer: LastPositions,
        /// Whether a mark was stepped since it was written.
        is_due: bool,
    },
}

/// Which of the accounts that changed are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    /// Those whose snapshot is one value.
    Small,
}

enum NotKept {
    Stop(Stop),
    Store(StoreError),
    /// The directory is lost: nothing vouches for any snapshot.
    Directory(String),
    /// A later release wrote what a snapshot of this one would leave out.
    Newer(Newer),
}

impl From<Newer> for NotKept {
    fn from(newer: Newer) -> Self {
        Self::Newer(newer)
    }
}

impl From<DirectoryError> for NotKept {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::Store(error) => Self::Store(error),
            DirectoryError::Moved => Self::Stop(Stop::Fenced),
            DirectoryError::Lost { .. } => Self::Directory(error.to_string()),
        }
    }
}

impl From<Halt> for NotKept {
    fn from(halt: Halt) -> Self {
        Self::Stop(Stop::Halted(halt))
    }
}

impl From<StoreError> for NotKept {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<WriteError> for NotKept {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Moved => Self::Stop(Stop::Fenced),
            WriteError::Unreachable(error) => Self::Store(error),
        }
    }
}

impl<J: Journal> Snapshots<J> {
    pub(crate) fn new(
        journal: Arc<J>,
        store: Arc<dyn SnapshotStore>,
        projector: String,
        seat: Seat,
    ) -> Self {
        let Seat { record, revision } = seat;
        let sequence = Sequence(record.sequence);
        Self {
            journal,
            store,
            projector,
            recorded_position: record.head.position,
            tail: Tail {
                sequence,
                head: record.head,
            },
            revision,
            checked_at_ms: record.checked_at_ms,
            history: record.history,
            open: match record.open {
                Some(open) => (open.into_iter().collect(), true),
                None => (BTreeSet::new(), false),
            },
            refolded: HashSet::new(),
            accounts: HashMap::new(),
            dirty: BTreeSet::new(),
            listed: Listed::Named(record.directory),
            flushed_at: Instant::now(),
            pause: FLUSH_EVERY,
            small: (Instant::now(), false),
            recorded: sequence,
            mark_every: MARK_EVERY,
            sweep: Sweep::default(),
            health: Health::default(),
        }
    }

    /// Tells there how it gets on.
    pub(crate) fn telling(self, health: &Health) -> Self {
        let health = health.clone();
        Self { health, ..self }
    }

    /// The same with so many events between two marks.
    pub(crate) fn marking(self, mark_every: u64) -> Self {
        Self { mark_every, ..self }
    }

    /// Projects until `stop`, or until it must not go on.
    pub(crate) async fn run(mut self, stop: &CancellationToken) -> Result<(), Stop> {
        let mut complaint = Complaint::default();
        while !stop.is_cancelled() {
            match self.follow(stop).await {
                Ok(()) => {}
                Err(NotKept::Stop(Stop::Fenced)) => return Err(Stop::Fenced),
                Err(NotKept::Stop(halted)) => {
                    // what was good is worth keeping before the partition stands still
                    self.leave().await?;
                    return Err(halted);
                }
                Err(NotKept::Directory(reason)) => self.start_again(&reason),
                Err(NotKept::Newer(newer)) => return self.leave_to_newer(&newer, stop).await,
                Err(NotKept::Store(error)) => {
                    let (partition, error) = (self.tail.partition(), in_one_line(&error));
                    if complaint.is_due(Instant::now()) {
                        warn!(%partition, error, "snapshots wait");
                    }
                    self.health.waits(partition, Component::Snapshots, error);
                    // it may come back with less than it had
                    self.sweep = Sweep::default();
                    pause(stop).await;
                }
            }
        }
        self.leave().await
    }

    /// Leaves the snapshots to a projector of the release that wrote what this one does not know. The feed,
    /// which passes it on as it is, goes on meanwhile.
    async fn leave_to_newer(self, newer: &Newer, stop: &CancellationToken) -> Result<(), Stop> {
        let (partition, reason) = (self.tail.partition(), in_one_line(newer));
        error!(%partition, reason, "snapshots stand still: this projector would leave out what it does not know");
        let health = self.health.clone();
        self.leave().await?;
        health.waits(partition, Component::Snapshots, reason);
        stop.cancelled().await;
        Ok(())
    }

    /// Lets go of everything: the journal is projected again from its beginning.
    fn start_again(&mut self, reason: &str) {
        let partition = self.tail.partition();
        error!(%partition, reason, "snapshots cannot be trusted: projecting again from the journal's start");
        let record = first(partition);
        self.recorded_position = record.head.position;
        self.recorded = Sequence(record.sequence);
        self.checked_at_ms = 0;
        self.tail = Tail::start(partition);
        self.history = record.history;
        self.open = (BTreeSet::new(), true);
        self.listed = Listed::Named(None);
        self.accounts.clear();
        self.dirty.clear();
        self.sweep = Sweep::default();
    }

    /// Reads the directory, all of it, and from the journal what is newer.
    async fn list(&mut self) -> Result<(), NotKept> {
        let Listed::Named(named) = &self.listed else {
            return Ok(());
        };
        let (partition, mark) = (self.tail.partition(), self.history.newer.sequence);
        if !self.open.1 {
            // there were too many to name; there may be few now
            let open = open_accounts(&*self.journal, self.tail.sequence).await;
            self.open = (open.map_err(|error| self.unread(error))?, true);
        }
        if named.is_none() && mark > 0 {
            return Err(NotKept::Directory(
                "the record names no directory".to_owned(),
            ));
        }
        let directory = Directory::open(&*self.store, partition, named.as_ref()).await?;
        directory.verify(&*self.store).await?;
        let mut newer = LastPositions::new();
        let mut commits = self.journal.replay(Sequence(mark), self.tail.sequence);
        while let Some(stored) = commits.next().await {
            let stored = stored.map_err(|error| self.unread(error))?;
            if self.tail.head.skipped.contains(&stored.sequence.0) {
                continue;
            }
            // what cannot be read is the writers' and the audit's to tell: it is before the record
            if let Ok(commit) = Commit::decode(&stored.payload) {
                let events = commit.events.iter();
                events.for_each(|stored| directory::note(&mut newer, &stored.event));
            }
        }
        drop(commits);
        self.listed = Listed::Read {
            directory,
            newer,
            is_due: false,
        };
        Ok(())
    }

    /// The last event of an account up to the tail; `None` where it has none.
    async fn last(&self, account: &AccountId) -> Result<Option<Position>, NotKept> {
        let Listed::Read {
            directory, newer, ..
        } = &self.listed
        else {
            unreachable!("the directory is read before any commit is taken");
        };
        let entry = Entry::of(account);
        match newer.get(&entry) {
            Some(last) => Ok(Some(*last)),
            None => Ok(directory.last(&*self.store, entry).await?),
        }
    }

    /// Writes the directory where a mark was stepped; the next record names it.
    async fn write_directory(&mut self) -> Result<(), NotKept> {
        if !matches!(self.listed, Listed::Read { is_due: true, .. }) {
            return Ok(());
        }
        // what this record does not name, another projector's may
        self.check_seat().await?;
        let Listed::Read {
            directory,
            newer,
            is_due,
        } = &mut self.listed
        else {
            return Ok(());
        };
        *directory = directory.step(&*self.store, newer).await?;
        newer.clear();
        *is_due = false;
        Ok(())
    }

    fn unread(&self, error: ReadError) -> NotKept {
        let partition = self.tail.partition();
        match error {
            ReadError::Gap { at } => Halt::Gap { partition, at }.into(),
            ReadError::Unreachable { source, .. } => self.unreachable(source),
        }
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), NotKept> {
        self.check_end().await?;
        self.list().await?;
        let journal = Arc::clone(&self.journal);
        let mut commits = journal.follow(self.tail.sequence);
        loop {
            let pause = if self.is_behind() || self.sweep.is_due() {
                self.pause
            } else {
                RECORD_REFRESH_EVERY
            };
            let flush_at = self.flushed_at + pause;
            let small_at = self.small_at().filter(|small_at| *small_at < flush_at);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(flush_at) => {
                    self.flush().await?;
                    self.sweep().await?;
                }
                () = tokio::time::sleep_until(small_at.unwrap_or(flush_at)), if small_at.is_some() => {
                    self.write_accounts(Which::Small).await?;
                }
                next = commits.next() => match next {
                    Some(stored) => self.take(stored).await?,
                    None => return Err(self.unreachable("it ended".into())),
                },
            }
        }
    }

    /// When accounts that changed and are no trouble are written: who is large keeps nobody else waiting.
    /// A snapshot may be ahead of the record, which vouches for no more than there is.
    fn small_at(&self) -> Option<Instant> {
        let (written_at, changed) = self.small;
        changed.then(|| written_at + FLUSH_EVERY)
    }

    /// Whether something was taken from the journal that no record vouches for yet.
    fn is_behind(&self) -> bool {
        self.recorded != self.tail.sequence
    }

    fn unreachable(&self, source: Box<dyn std::error::Error + Send + Sync>) -> NotKept {
        let (partition, at) = (self.tail.partition(), self.tail.sequence);
        NotKept::Store(StoreError {
            action: format!("follow the journal of partition {partition} after sequence {at}"),
            source,
        })
    }

    fn not_stepped(&self, trouble: chain::NotStepped) -> NotKept {
        match trouble {
            chain::NotStepped::Halt(halt) => halt.into(),
            chain::NotStepped::Unread(error) => self.unread(error),
        }
    }

    async fn take(&mut self, stored: Result<Stored, ReadError>) -> Result<(), NotKept> {
        let partition = self.tail.partition();
        let stored = match stored {
            Ok(stored) => stored,
            Err(ReadError::Gap { at }) => return Err(Halt::Gap { partition, at }.into()),
            Err(ReadError::Unreachable { source, .. }) => return Err(self.unreachable(source)),
        };
        if stored.sequence <= self.tail.sequence {
            return Ok(()); // stepped over already
        }
        let commit = match self.tail.check(&stored) {
            Ok(commit) => commit,
            Err(halt) => {
                let journal = Arc::clone(&self.journal);
                let stepped = self.tail.step_over(&*journal, &stored, halt).await;
                return stepped.map_err(|trouble| self.not_stepped(trouble));
            }
        };
        newer::knows_all_of(&commit, None)?;
        self.load(&commit).await?;
        self.tail.step(&commit, &stored.payload);
        let mut odd = BTreeSet::new();
        for stored in &commit.events {
            self.history.note(&stored.event);
            self.apply(&stored.event, &mut odd);
        }
        let (sequence, position) = (self.tail.sequence.0, self.tail.head.position);
        let stepped = self.history.step(sequence, position, self.mark_every);
        if let Listed::Read { newer, is_due, .. } = &mut self.listed {
            let events = commit.events.iter();
            events.for_each(|stored| directory::note(newer, &stored.event));
            *is_due |= stepped;
        }
        for account in odd {
            self.refold(account).await?;
        }
        Ok(())
    }

    /// Folds an event into its account; an account that the event does not agree with is noted as odd
    /// and left alone.
    fn apply(&mut self, event: &Event, odd: &mut BTreeSet<AccountId>) {
        let Some(folded) = self.accounts.get_mut(&event.account) else {
            return; // the partition's own, or nothing this build knows of an account it never saw
        };
        if event.position <= folded.loaded_at || odd.contains(&event.account) {
            return;
        }
        if !agrees(&folded.state, event) && self.refolded.insert(event.account.clone()) {
            odd.insert(event.account.clone());
            return;
        }
        let was_open = !folded.state.open().is_empty();
        folded.state.apply(event);
        self.small.1 |= folded.head.is_none();
        let is_open = !folded.state.open().is_empty();
        self.dirty.insert(event.account.clone());
        match (was_open, is_open) {
            (false, true) => self.open.0.insert(event.account.clone()),
            (true, false) => self.open.0.remove(&event.account),
            _ => false,
        };
    }

    /// Notes whether an account has open reservations, as it is in memory: where its snapshot was
    /// ahead of the record, so is this.
    fn note_open(&mut self, account: &AccountId, state: &Account) {
        if state.open().is_empty() {
            self.open.0.remove(account);
        } else {
            self.open.0.insert(account.clone());
        }
    }

    /// Takes an account anew from the journal, up to the tail.
    async fn refold(&mut self, account: AccountId) -> Result<(), NotKept> {
        let (partition, position) = (self.tail.partition(), self.tail.head.position);
        error!(%partition, %account, %position, "snapshot disagrees with the journal: folding the account again");
        let state = self.fold_again(&account).await?;
        self.note_open(&account, &state);
        if let Some(folded) = self.accounts.get_mut(&account) {
            folded.state = state;
            folded.loaded_at = position;
        }
        self.dirty.insert(account);
        Ok(())
    }

    /// Makes sure that every account of a commit is in memory, as it was before it.
    async fn load(&mut self, commit: &Commit) -> Result<(), NotKept> {
        let mut missing: Vec<AccountId> = Vec::new();
        for stored in &commit.events {
            let event = &stored.event;
            let known =
                self.accounts.contains_key(&event.account) || missing.contains(&event.account);
            if known || event.account.is_system() || matches!(event.body, EventBody::Unknown { .. })
            {
                continue;
            }
            missing.push(event.account.clone());
        }
        let loaded: Vec<(AccountId, Folded)> = stream::iter(missing)
            .map(|account| self.load_one(account))
            .buffer_unordered(SNAPSHOTS_IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        for (account, folded) in loaded {
            self.note_open(&account, &folded.state);
            self.accounts.insert(account, folded);
        }
        Ok(())
    }

    /// One account from its snapshot; from the journal where the snapshot does not reach the account's
    /// last event.
    async fn load_one(&self, account: AccountId) -> Result<(AccountId, Folded), NotKept> {
        let (vouched, tail) = (
            (self.revision, self.recorded_position),
            self.tail.head.position,
        );
        let read = FoundSnapshot::read(&*self.store, &account, vouched);
        let (read, last) = join(read, self.last(&account)).await;
        let FoundSnapshot {
            kept,
            head,
            snapshot,
        } = read?;
        let last = last?;
        let found = snapshot.and_then(|found| AccountSnapshot::held_to(found, last, tail));
        let (state, loaded_at) = match found {
            Ok(Some(snapshot)) => (snapshot.state, snapshot.position),
            // whatever stands there is of no use to an account that only begins
            Ok(None) => (Account::default(), Position(0)),
            Err(_) if last.is_none() => (Account::default(), Position(0)),
            Err(unusable) => {
                let (partition, position) = (self.tail.partition(), tail);
                let reason = unusable.to_string();
                error!(%partition, %account, %position, reason, "snapshot lost: folding the account again from the journal");
                (self.fold_again(&account).await?, position)
            }
        };
        let revision = kept.revision;
        let folded = Folded {
            state,
            loaded_at,
            revision,
            head,
        };
        Ok((account, folded))
    }
}
