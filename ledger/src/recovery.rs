//! Reads what a writer needs to take a partition over: the partition record and the journal's end,
//! with the accounts that the end touches; or the whole journal, where there is no record or it
//! disagrees with the journal.

pub mod end;
mod load;
mod lost;
pub mod newer;
pub mod open;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, future::join, stream};
use seatbelt_schemas::{
    ids::AccountId,
    names::Names,
    position::{Partition, Position},
    wire::WireError,
};
use thiserror::Error;
use tracing::{error, warn};

use crate::{
    account::Account,
    directory::{Directory, DirectoryError, DirectoryRef, Entry, LastPositions},
    journal::{Journal, ReadError, Sequence, Stored, strays},
    partition::ChainError,
    resume::{Disagreement, Resume, ResumeError, Resumed},
    snapshot::{AccountSnapshot, FoundSnapshot, PartitionRecord, Unusable},
    store::{Kept, Revision, SnapshotStore, StoreError},
};

/// Pause between tries to read a journal or a snapshot that cannot be reached.
const RETRY: Duration = Duration::from_millis(250);
/// Snapshots on their way from the store at once.
const SNAPSHOTS_IN_FLIGHT_MAX: usize = 64;

/// Why a partition cannot be served: its journal is damaged. Nothing was changed.
#[derive(Debug, Error)]
pub enum RecoveryError {
    /// A commit does not continue the journal.
    #[error(
        "the journal cannot be continued at sequence {at}: run `seatbelt audit verify`; a message that is no commit can be skipped with `seatbelt ledger skip-message`"
    )]
    Chain {
        at: Sequence,
        /// What does not fit.
        #[source]
        source: ChainError,
    },
    /// A commit is missing.
    #[error("the journal cannot be read: run `seatbelt audit verify`")]
    Damaged(#[source] ReadError),
    /// It is not the journal that it was.
    #[error(transparent)]
    Changed(#[from] end::Changed),
    /// A later release wrote what this one would leave out of what is spent.
    #[error(transparent)]
    Newer(#[from] newer::Newer),
}

/// Why an account could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// Not now: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal could not be read.
    #[error("cannot fold the account from the journal")]
    Journal(#[from] ReadError),
    /// The journal is damaged.
    #[error(transparent)]
    Damaged(#[from] RecoveryError),
    /// Snapshots by then come from a newer release: nothing is known of what they leave out, and folding
    /// the journal for each account would bring it to its knees.
    #[error("this writer is older than the projector, upgrade it: {0}")]
    Newer(WireError),
}

/// What stops a partition from being taken up.
enum Hindrance {
    Again(Box<dyn std::error::Error + Send + Sync>),
    Unusable(String),
    Stop(RecoveryError),
}

impl From<ReadError> for Hindrance {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unreachable { .. } => Self::Again(error.into()),
            ReadError::Gap { .. } => Self::Stop(RecoveryError::Damaged(error)),
        }
    }
}

impl From<StoreError> for Hindrance {
    fn from(error: StoreError) -> Self {
        Self::Again(error.into())
    }
}

impl From<DirectoryError> for Hindrance {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::Store(error) => error.into(),
            lost => Self::Unusable(lost.to_string()),
        }
    }
}

impl From<Disagreement> for Hindrance {
    fn from(disagreement: Disagreement) -> Self {
        if let Disagreement::Anchor { at } = disagreement {
            return Self::Stop(end::Changed::Replaced { at }.into());
        }
        Self::Unusable(disagreement.to_string())
    }
}

/// A partition's journal and snapshots, as the writer that takes it over reads them.
pub struct RecoverySource<J> {
    pub journal: Arc<J>,
    /// The snapshots; without any, every start reads the whole journal.
    pub snapshots: Option<Arc<dyn SnapshotStore>>,
    pub partition: Partition,
    /// Commands whose outcome stays in memory.
    pub hot_max: usize,
}

impl<J> Clone for RecoverySource<J> {
    fn clone(&self) -> Self {
        Self {
            journal: Arc::clone(&self.journal),
            snapshots: self.snapshots.clone(),
            partition: self.partition,
            hot_max: self.hot_max,
        }
    }
}

/// A partition record, as far as it matters to the accounts that it vouches for.
#[derive(Debug, Clone, Default)]
pub struct Base {
    revision: Revision,
    position: Position,
    sequence: Sequence,
    known: Arc<Vouched>,
}

/// What is known of accounts that are not in memory: how far the snapshot of each must reach.
#[derive(Debug, Default)]
struct Vouched {
    /// The last events that the start met between the directory's mark and the record's end.
    last: LastPositions,
    /// Messages on the journal that are no commits.
    skipped: Vec<u64>,
    /// Versions of accounts that were in memory and left it. No more than there are accounts.
    left: Mutex<HashMap<Entry, u32>>,
    /// The directory that was asked last.
    directory: Mutex<Option<Directory>>,
}

impl Vouched {
    fn left(&self, account: &AccountId) -> u32 {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.get(&Entry::of(account)).copied().unwrap_or(0)
    }

    /// The directory that a record names; its root is read once.
    async fn directory(
        &self,
        store: &dyn SnapshotStore,
        partition: Partition,
        named: Option<&DirectoryRef>,
    ) -> Result<Directory, DirectoryError> {
        let at_hand = || {
            let directory = self.directory.lock();
            directory.unwrap_or_else(PoisonError::into_inner)
        };
        let known = at_hand().clone();
        if let Some(known) = known.filter(|known| known.named() == named) {
            return Ok(known);
        }
        let opened = Directory::open(store, partition, named).await?;
        *at_hand() = Some(opened.clone());
        Ok(opened)
    }
}

impl Base {
    /// The one of the two that vouches for more.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        if (other.position, other.revision) > (self.position, self.revision) {
            other
        } else {
            self
        }
    }

    /// Up to where it vouches.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Messages on the journal that are no commits, by their sequences.
    pub fn skipped(&self) -> &[u64] {
        &self.known.skipped
    }

    /// Notes that accounts leave memory with these versions: none comes back older.
    pub fn leave(&self, accounts: &[(AccountId, u32)]) {
        let left = self.known.left.lock();
        let mut left = left.unwrap_or_else(PoisonError::into_inner);
        left.extend(
            accounts
                .iter()
                .map(|(of, version)| (Entry::of(of), *version)),
        );
    }
}

/// An account as it was loaded.
#[derive(Debug)]
pub struct Loaded {
    pub state: Account,
    /// Every event of the account up to here is in it, and none after.
    pub position: Position,
}

impl From<AccountSnapshot> for Loaded {
    fn from(snapshot: AccountSnapshot) -> Self {
        Self {
            position: snapshot.position,
            state: snapshot.state,
        }
    }
}

impl<J: Journal> RecoverySource<J> {
    /// Takes the partition up. Waits for a journal or a bucket that cannot be reached; ends with an
    /// error only where what stands in the journal is wrong. Snapshots that cannot be used, or that
    /// disagree with the journal, are told of and not used.
    pub async fn recover(&self) -> Result<(Resumed, Base), RecoveryError> {
        let mut with_snapshots = true;
        loop {
            match self.attempt(with_snapshots).await {
                Ok(recovered) => return Ok(recovered),
                Err(Hindrance::Stop(error)) => return Err(error),
                Err(Hindrance::Unusable(reason)) => {
                    let partition = self.partition;
                    error!(%partition, reason, "snapshots cannot be used: reading the whole journal instead");
                    with_snapshots = false;
                }
                Err(Hindrance::Again(error)) => {
                    warn!(partition = %self.partition, %error, "partition cannot be read, trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn attempt(&self, with_snapshots: bool) -> Result<(Resumed, Base), Hindrance> {
        let (mut resume, mut base, directory) = match self.record(with_snapshots).await? {
            None => {
                let resume = Resume::from_start(self.partition, self.hot_max);
                (resume, Base::default(), Directory::empty(self.partition))
            }
            Some((record, base)) => {
                let directory = self.directory_of(&record).await?;
                (Resume::from_record(record, self.hot_max), base, directory)
            }
        };
        // before the end: a record that is made meanwhile sees more
        let saw = match with_snapshots {
            true => base.sequence,
            false => self.seen_by_the_record().await?,
        };
        let end = self.journal.end().await?;
        end::reaches(end, saw).map_err(Hindrance::Stop)?;
        let mut commits = self.journal.replay(resume.tail(), end);
        while resume.tail() < end {
            let Some(stored) = commits.next().await else {
                let at = resume.tail().next();
                return Err(ReadError::Gap { at }.into());
            };
            let stored = stored?;
            if stored.sequence > resume.tail() {
                self.take(&mut resume, &stored, &base, &directory).await?;
            }
        }
        if base.sequence == Sequence(0) && with_snapshots && self.snapshots.is_some() {
            self.told_lost(&resume, end);
        }
        base.known = Arc::new(Vouched {
            last: resume.take_last(),
            skipped: resume.head().skipped.clone(),
            left: Mutex::default(),
            directory: Mutex::new(Some(directory)),
        });
        Ok((resume.finish(), base))
    }

    /// The directory that a record names.
    async fn directory_of(&self, record: &PartitionRecord) -> Result<Directory, DirectoryError> {
        let named = record.directory.as_ref();
        match &self.snapshots {
            Some(store) => Directory::open(&**store, self.partition, named).await,
            None => Ok(Directory::empty(self.partition)),
        }
    }

    /// The partition record, if there is one that can be used.
    async fn record(&self, wanted: bool) -> Result<Option<(PartitionRecord, Base)>, Hindrance> {
        let Some(store) = self.snapshots.as_ref().filter(|_| wanted) else {
            return Ok(None);
        };
        let key = Names::snapshot_partition_key(self.partition);
        let Kept { value, revision } = store.read(&key).await?;
        let Some(value) = value else {
            return Ok(None);
        };
        let record = PartitionRecord::decode(&value)
            .map_err(|error| Hindrance::Unusable(error.to_string()))?;
        if record.head.partition != self.partition {
            let detail = format!("its record is of partition {}", record.head.partition);
            return Err(Hindrance::Unusable(detail));
        }
        if record.sequence == 0 {
            return Ok(None);
        }
        if record.directory.is_none() && record.history.newer.sequence > 0 {
            let detail = "its record names no directory of accounts";
            return Err(Hindrance::Unusable(detail.to_owned()));
        }
        let base = Base {
            revision,
            position: record.head.position,
            sequence: Sequence(record.sequence),
            known: Arc::default(),
        };
        Ok(Some((record, base)))
    }

    /// How far a record saw the journal go that nothing else is taken from: what it vouches for is lost, and
    /// the journal may be so too.
    async fn seen_by_the_record(&self) -> Result<Sequence, Hindrance> {
        let Some(store) = &self.snapshots else {
            return Ok(Sequence(0));
        };
        let key = Names::snapshot_partition_key(self.partition);
        let value = store.read(&key).await?.value;
        let record = value.and_then(|value| PartitionRecord::decode(&value).ok());
        let record = record.filter(|record| record.head.partition == self.partition);
        Ok(Sequence(record.map_or(0, |record| record.sequence)))
    }

    async fn take(
        &self,
        resume: &mut Resume,
        stored: &Stored,
        base: &Base,
        directory: &Directory,
    ) -> Result<(), Hindrance> {
        let at = stored.sequence;
        if resume.skips(at) {
            resume.step_over(at);
            return Ok(());
        }
        let commit = match resume.check(stored) {
            Ok(commit) => commit,
            Err(ResumeError::Disagrees(disagreement)) => return Err(disagreement.into()),
            Err(ResumeError::Chain(source)) => {
                let last = strays::step_over(&*self.journal, resume.head(), stored).await?;
                let stop = Hindrance::Stop(RecoveryError::Chain { at, source });
                resume.step_over(last.ok_or(stop)?);
                return Ok(());
            }
        };
        newer::knows_all_of(&commit, resume.written_by())
            .map_err(|newer| Hindrance::Stop(newer.into()))?;
        let missing = resume.missing(stored, &commit);
        let missing: Vec<_> = missing
            .into_iter()
            .map(|account| (resume.last(&account), account))
            .collect();
        let mut loaded = stream::iter(missing)
            .map(async |(last, account)| {
                let (kept, last) = join(
                    self.snapshot(&account, base),
                    self.last_of(&account, last, directory),
                )
                .await;
                let (kept, last) = (kept?, last?);
                let held_to = |kept| AccountSnapshot::held_to(kept, last, base.position);
                Ok::<_, Hindrance>((account, kept.and_then(held_to)))
            })
            .buffer_unordered(SNAPSHOTS_IN_FLIGHT_MAX);
        while let Some((account, found)) = loaded.try_next().await? {
            let snapshot = found.map_err(|unusable| {
                Hindrance::Unusable(format!("the snapshot of account {account}: {unusable}"))
            })?;
            resume.move_in(account, snapshot);
        }
        drop(loaded);
        resume.take(stored, &commit)?;
        Ok(())
    }

    /// The last event of an account up to the record: as the commits before it had it, or the directory.
    async fn last_of(
        &self,
        account: &AccountId,
        met: Option<Position>,
        directory: &Directory,
    ) -> Result<Option<Position>, DirectoryError> {
        match (&self.snapshots, met) {
            (Some(store), None) => directory.last(&**store, Entry::of(account)).await,
            (_, met) => Ok(met),
        }
    }

    /// What the bucket has of an account.
    async fn snapshot(
        &self,
        account: &AccountId,
        base: &Base,
    ) -> Result<Result<Option<AccountSnapshot>, Unusable>, StoreError> {
        let Some(store) = &self.snapshots else {
            return Ok(Ok(None));
        };
        let vouched = (base.revision, base.position);
        Ok(FoundSnapshot::read(&**store, account, vouched)
            .await?
            .snapshot)
    }

    /// Which of these accounts have, in snapshots that the bucket vouches for by now, the versions
    /// given; and what it vouches for. `None` where that is less than at `base`.
    pub async fn current(
        &self,
        accounts: Vec<(AccountId, u32)>,
        base: &Base,
    ) -> Option<(Base, Vec<(AccountId, u32)>)> {
        let (_, mut now) = self.record(true).await.ok()??;
        now.known = Arc::clone(&base.known);
        if now.position < base.position {
            return None;
        }
        let current = stream::iter(accounts)
            .map(async |(account, version)| {
                let found = self.snapshot(&account, &now).await.ok()?.ok()??;
                let same = found.position <= now.position && found.state.version() == version;
                same.then_some((account, version))
            })
            .buffer_unordered(SNAPSHOTS_IN_FLIGHT_MAX)
            .filter_map(async |current| current);
        let current = current.collect().await;
        Some((now, current))
    }
}
