//! How an account is loaded when it is first used: from its snapshot, where that is what the record and the
//! directory vouch for, or from the journal, which puts the snapshot right.

use futures::{StreamExt, future::join};
use seatbelt_schemas::{
    commit::ChainHash, ids::AccountId, names::Names, position::Position, wire::WireError,
};
use tracing::{error, info, warn};

use super::{Base, LoadError, Loaded, RETRY, RecoveryError, RecoverySource, newer};
use crate::{
    account::Account,
    directory::{DirectoryError, Entry},
    journal::{Journal, Sequence, strays},
    partition::{Head, PartitionState},
    snapshot::{AccountSnapshot, FoundSnapshot, PartitionRecord, RECORD_VERSION, Written},
    store::{Kept, SnapshotStore, WriteError},
};

/// How often a bucket that went back in time is asked again before the journal is read instead: the
/// projector brings it up to date within seconds.
const WENT_BACK_TRIES: u32 = 20;
/// How often a directory is read again that is not what the record names.
const FLUX_TRIES: u32 = 2;

/// What a look at the bucket gives.
enum Look {
    Found(Option<Loaded>),
    Lost(String),
    /// The directory was written anew twice while it was read, or it is lost.
    Flux(String),
    WentBack,
}

impl<J: Journal> RecoverySource<J> {
    /// An account that no event since `base` touches, as it stands; `None` where there is none. A
    /// snapshot that cannot be used is told of, folded again from the journal, and put right.
    pub async fn load(
        &self,
        account: &AccountId,
        base: &Base,
    ) -> Result<Option<Loaded>, LoadError> {
        let Some(store) = &self.snapshots else {
            return Ok(None);
        };
        let (mut tries, mut kept) = (0, Kept::default());
        let reason = loop {
            match self.look(&**store, account, base, &mut kept).await? {
                Look::Found(state) => return Ok(state),
                Look::Lost(reason) => break reason,
                Look::Flux(reason) if tries == FLUX_TRIES => break reason,
                Look::WentBack if tries == WENT_BACK_TRIES => {
                    break "the bucket went back in time".to_owned();
                }
                Look::WentBack | Look::Flux(_) => tokio::time::sleep(RETRY).await,
            }
            tries += 1;
        };
        let partition = self.partition;
        error!(%partition, %account, reason, "snapshot lost: folding the account again from the journal");
        let (state, until) = self.fold(account, base.sequence).await?;
        self.put_right(account, &kept, &state, &until).await;
        let position = until.position;
        Ok((state.version() > 0).then_some(Loaded { state, position }))
    }

    /// Reads an account's snapshot, and whether the bucket still is what it was at `base`: one that
    /// lost its end has lost the record's end too, and the connection that both reads share ends with
    /// the server that lost it.
    async fn look(
        &self,
        store: &dyn SnapshotStore,
        account: &AccountId,
        base: &Base,
        found: &mut Kept,
    ) -> Result<Look, LoadError> {
        let record = Names::snapshot_partition_key(self.partition);
        let vouched = (base.revision, base.position);
        let (read, record) = join(
            FoundSnapshot::read(store, account, vouched),
            store.read(&record),
        )
        .await;
        let FoundSnapshot { kept, snapshot, .. } = read?;
        *found = kept;
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(unusable) => return Ok(Look::Lost(unusable.to_string())),
        };
        let left = base.known.left(account);
        if snapshot.as_ref().map_or(0, |found| found.state.version()) < left {
            let lost = format!("it is older than version {left}, which was in memory");
            return Ok(Look::Lost(lost));
        }
        if snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.position >= base.position)
        {
            return Ok(Look::Found(snapshot.map(Loaded::from)));
        }
        let Some(record) = vouching(&record?, base)? else {
            return Ok(Look::WentBack);
        };
        let last = match self.last_known(store, account, base, &record).await {
            Ok(last) => last,
            Err(DirectoryError::Store(error)) => return Err(error.into()),
            Err(lost) => return Ok(Look::Flux(lost.to_string())),
        };
        Ok(
            match AccountSnapshot::held_to(snapshot, last, base.position) {
                Ok(snapshot) => Look::Found(snapshot.map(Loaded::from)),
                Err(unusable) => Look::Lost(unusable.to_string()),
            },
        )
    }

    /// The last event of an account that has none after `base`: so any later directory has it as well.
    async fn last_known(
        &self,
        store: &dyn SnapshotStore,
        account: &AccountId,
        base: &Base,
        record: &PartitionRecord,
    ) -> Result<Option<Position>, DirectoryError> {
        let entry = Entry::of(account);
        if let Some(last) = base.known.last.get(&entry) {
            return Ok(Some(*last));
        }
        let named = record.directory.as_ref();
        let directory = base.known.directory(store, self.partition, named).await?;
        directory.last(store, entry).await
    }

    /// One account, from the journal's beginning up to a commit, and how far that is.
    async fn fold(&self, account: &AccountId, to: Sequence) -> Result<(Account, Head), LoadError> {
        let mut chain = PartitionState::new(self.partition);
        let (mut state, mut stepped) = (Account::default(), Sequence(0));
        let mut commits = self.journal.replay(Sequence(0), to);
        while let Some(stored) = commits.next().await {
            let stored = stored?;
            let at = stored.sequence;
            if at <= stepped {
                continue;
            }
            let commit = match chain.check(&stored.payload) {
                Ok(commit) => commit,
                Err(source) => {
                    let last = strays::step_over(&*self.journal, chain.head(), &stored).await?;
                    stepped = last.ok_or(RecoveryError::Chain { at, source })?;
                    continue;
                }
            };
            newer::knows_frame_of(&commit).map_err(RecoveryError::from)?;
            for stored in &commit.events {
                chain.pass(&stored.event);
                if stored.event.account == *account {
                    newer::knows(stored).map_err(RecoveryError::from)?;
                    state.apply(&stored.event);
                }
            }
            chain.committed(commit.epoch, ChainHash::of(&stored.payload));
        }
        Ok((state, chain.head().clone()))
    }

    /// Puts a state that was folded again where its snapshot was lost, unless somebody else wrote. It stands
    /// for as far as it was folded and no further: a writer that was overtaken does not know what its
    /// successor did to the account since.
    async fn put_right(&self, account: &AccountId, kept: &Kept, state: &Account, until: &Head) {
        let (Some(store), true) = (&self.snapshots, state.version() > 0) else {
            return;
        };
        // nothing that stands there is of use: all of it is written anew
        let written = Written::of(account, until.position, until.at_ms, state, None);
        match written.write(&**store, account, kept.revision).await {
            Ok(_) => info!(%account, "snapshot written again"),
            Err(WriteError::Moved) => info!(%account, "snapshot was written again by another"),
            Err(error) => warn!(%account, %error, "snapshot not written again"),
        }
    }
}

/// The record, if it vouches for what it did at `base`.
fn vouching(kept: &Kept, base: &Base) -> Result<Option<PartitionRecord>, LoadError> {
    let record = kept
        .value
        .as_ref()
        .map(|value| PartitionRecord::decode(value));
    match record {
        Some(Err(WireError::Version { found, .. })) if found < RECORD_VERSION => Ok(None),
        Some(Err(newer @ (WireError::Version { .. } | WireError::Unknown { .. }))) => {
            Err(LoadError::Newer(newer))
        }
        Some(Ok(record)) if record.head.position >= base.position => Ok(Some(record)),
        _ => Ok(None),
    }
}
