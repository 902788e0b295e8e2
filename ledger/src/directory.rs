//! Which accounts a partition has, and after which position each has nothing: what tells a snapshot that
//! was lost from an account that never was, and a stale one from a current one.
//!
//! Per partition up to 256 shards and a root that names each by its hash; the partition record names the
//! root by its own. Shards and root have two slots each. Whatever the record names is never written over:
//! what is new goes into the other slot, and counts once the record names it. So a crash anywhere leaves
//! the directory that the record means, and what was lost, torn or put back no longer has its hash.
//!
//! It is written when a mark of the partition's history is stepped, and is current up to that mark at
//! least: a reader takes what is newer from the journal. An account is known by the first 64 bits of its
//! hash. Should two ever be one, both have the later position, and a good snapshot is folded again: never
//! the other way round.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use seatbelt_schemas::{
    event::{Event, EventBody},
    ids::AccountId,
    names::Names,
    position::{Partition, Position},
    wire,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    snapshot::SNAPSHOT_BYTES_MAX,
    store::{SnapshotStore, StoreError, WriteError},
};

/// Version of the root.
const ROOT_VERSION: u8 = 1;
/// Shards on their way to or from the store at once.
const SHARDS_IN_FLIGHT_MAX: usize = 16;
/// Bytes of an account and of a position.
const HALF: usize = 8;
const ENTRY: usize = 2 * HALF;
/// How many accounts a shard takes; 256 times as many make a partition.
const SHARD_ACCOUNTS_MAX: usize = SNAPSHOT_BYTES_MAX / ENTRY;

const _: () = assert!(
    SHARD_ACCOUNTS_MAX * 256 >= 16_000_000,
    "a partition takes 16 million accounts"
);

/// An account, as the directory knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry(u64);

impl Entry {
    /// Where an account stands.
    pub fn of(account: &AccountId) -> Self {
        let hash = Sha256::digest(account.as_str().as_bytes());
        Self(number(&hash[..HALF]))
    }

    fn shard(self) -> u8 {
        self.0.to_be_bytes()[0]
    }
}

/// The last positions of accounts.
pub type LastPositions = HashMap<Entry, Position>;

/// Notes where an event left its account. What only a newer build can read leaves no account behind.
pub fn note(last: &mut LastPositions, event: &Event) {
    if !event.account.is_system() && !matches!(event.body, EventBody::Unknown { .. }) {
        last.insert(Entry::of(&event.account), event.position);
    }
}

/// A value by its slot and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryRef {
    /// Which of its two keys.
    pub slot: u8,
    /// SHA-256 of what stands there.
    pub digest: ByteBuf,
}

impl DirectoryRef {
    fn of(slot: u8, value: &[u8]) -> Self {
        let digest = ByteBuf::from(Sha256::digest(value).to_vec());
        Self { slot, digest }
    }
}

/// The slot that `named` does not use.
fn other_slot(named: Option<&DirectoryRef>) -> u8 {
    u8::from(named.is_some_and(|named| named.slot == 0))
}

/// Why the directory cannot be asked.
#[derive(Debug, Error)]
pub enum DirectoryError {
    /// It is not what the record names: only the journal knows.
    #[error("the directory of accounts is lost: {key} is not what the record names")]
    Lost {
        /// What is not.
        key: String,
    },
    /// Try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Somebody else writes.
    #[error("somebody else writes the directory")]
    Moved,
}

impl From<WriteError> for DirectoryError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Moved => Self::Moved,
            WriteError::Unreachable(error) => Self::Store(error),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    v: u8,
    shards: BTreeMap<u8, DirectoryRef>,
}

/// The directory that one record names. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Directory {
    partition: Partition,
    named: Option<DirectoryRef>,
    root: Arc<Root>,
}

impl Directory {
    /// One without accounts.
    pub fn empty(partition: Partition) -> Self {
        Self {
            partition,
            named: None,
            root: Arc::default(),
        }
    }

    /// The one that a record names.
    pub async fn open(
        store: &dyn SnapshotStore,
        partition: Partition,
        named: Option<&DirectoryRef>,
    ) -> Result<Self, DirectoryError> {
        let Some(named) = named else {
            return Ok(Self::empty(partition));
        };
        let key = Names::snapshot_directory_key(partition, named.slot);
        let value = named_value(store, &key, named).await?;
        let root: Root = wire::decode_whole("directory", &value)
            .ok()
            .filter(|root: &Root| root.v == ROOT_VERSION)
            .ok_or(DirectoryError::Lost { key })?;
        Ok(Self {
            partition,
            named: Some(named.clone()),
            root: Arc::new(root),
        })
    }

    /// What a record says of it.
    pub fn named(&self) -> Option<&DirectoryRef> {
        self.named.as_ref()
    }

    /// Reads every shard: whether all of it is there.
    pub async fn verify(&self, store: &dyn SnapshotStore) -> Result<(), DirectoryError> {
        stream::iter(self.root.shards.keys().copied())
            .map(|shard| self.shard(store, shard))
            .buffer_unordered(SHARDS_IN_FLIGHT_MAX)
            .try_for_each(async |_| Ok(()))
            .await
    }

    /// The last positions of all accounts as of the directory's writing.
    pub async fn all(&self, store: &dyn SnapshotStore) -> Result<LastPositions, DirectoryError> {
        let shards = stream::iter(self.root.shards.keys().copied())
            .map(|shard| self.shard(store, shard))
            .buffer_unordered(SHARDS_IN_FLIGHT_MAX);
        shards
            .try_fold(LastPositions::new(), async |mut all, shard| {
                let (entries, _) = shard.as_chunks::<ENTRY>();
                let entries = entries.iter().map(|entry| entry.split_at(HALF));
                all.extend(entries.map(|(of, last)| (Entry(number(of)), Position(number(last)))));
                Ok(all)
            })
            .await
    }

    /// The last position of an account as of the directory's writing; `None` where there was no account.
    pub async fn last(
        &self,
        store: &dyn SnapshotStore,
        account: Entry,
    ) -> Result<Option<Position>, DirectoryError> {
        let shard = self.shard(store, account.shard()).await?;
        let (entries, _) = shard.as_chunks::<ENTRY>();
        let found = entries.binary_search_by_key(&account.0, |entry| number(&entry[..HALF]));
        Ok(found.ok().map(|at| Position(number(&entries[at][HALF..]))))
    }

    /// Writes what changed. The result counts once a record names it.
    pub async fn step(
        &self,
        store: &dyn SnapshotStore,
        changes: &LastPositions,
    ) -> Result<Self, DirectoryError> {
        let shards: BTreeSet<u8> = changes.keys().map(|account| account.shard()).collect();
        let written: Vec<(u8, DirectoryRef)> = stream::iter(shards)
            .map(|shard| self.step_shard(store, shard, changes))
            .buffer_unordered(SHARDS_IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        let mut root = Root::clone(&self.root);
        root.v = ROOT_VERSION;
        root.shards.extend(written);
        let slot = other_slot(self.named());
        let value = Bytes::from(wire::encode(&root));
        let named = DirectoryRef::of(slot, &value);
        let key = Names::snapshot_directory_key(self.partition, slot);
        put(store, &key, value).await?;
        Ok(Self {
            partition: self.partition,
            named: Some(named),
            root: Arc::new(root),
        })
    }

    async fn step_shard(
        &self,
        store: &dyn SnapshotStore,
        shard: u8,
        changes: &LastPositions,
    ) -> Result<(u8, DirectoryRef), DirectoryError> {
        let before = self.shard(store, shard).await?;
        let slot = other_slot(self.root.shards.get(&shard));
        let key = Names::snapshot_directory_shard_key(self.partition, shard, slot);
        let value = merged(&before, shard, changes);
        if value.len() > SNAPSHOT_BYTES_MAX {
            let source = format!(
                "the partition has more than {SHARD_ACCOUNTS_MAX} accounts in it: use more partitions"
            );
            return Err(StoreError {
                action: format!("write {key}"),
                source: source.into(),
            }
            .into());
        }
        let named = DirectoryRef::of(slot, &value);
        put(store, &key, value).await?;
        Ok((shard, named))
    }

    async fn shard(&self, store: &dyn SnapshotStore, shard: u8) -> Result<Bytes, DirectoryError> {
        let Some(named) = self.root.shards.get(&shard) else {
            return Ok(Bytes::new());
        };
        let key = Names::snapshot_directory_shard_key(self.partition, shard, named.slot);
        named_value(store, &key, named).await
    }
}

/// A shard with what changed in it, in order.
fn merged(before: &[u8], shard: u8, changes: &LastPositions) -> Bytes {
    let (entries, _) = before.as_chunks::<ENTRY>();
    let mut all: BTreeMap<u64, u64> = entries
        .iter()
        .map(|entry| (number(&entry[..HALF]), number(&entry[HALF..])))
        .collect();
    for (account, position) in changes.iter().filter(|(of, _)| of.shard() == shard) {
        let last = all.entry(account.0).or_default();
        *last = position.0.max(*last);
    }
    let bytes = all.into_iter();
    let bytes = bytes.flat_map(|(account, last)| [account.to_be_bytes(), last.to_be_bytes()]);
    bytes.flatten().collect()
}

fn number(bytes: &[u8]) -> u64 {
    let bytes = bytes.try_into().expect("half an entry has eight bytes");
    u64::from_be_bytes(bytes)
}

async fn named_value(
    store: &dyn SnapshotStore,
    key: &str,
    named: &DirectoryRef,
) -> Result<Bytes, DirectoryError> {
    let kept = store.read(key).await?;
    kept.value
        .filter(|value| Sha256::digest(value).as_slice() == named.digest.as_slice())
        .ok_or_else(|| DirectoryError::Lost {
            key: key.to_owned(),
        })
}

/// Writes into a slot that no record names, whatever a writer that died left there.
async fn put(store: &dyn SnapshotStore, key: &str, value: Bytes) -> Result<(), DirectoryError> {
    let revision = store.read(key).await?.revision;
    store.write(key, revision, value).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::{MemorySnapshots, StoreFault};

    const P: Partition = Partition(3);

    fn account(number: u64) -> AccountId {
        AccountId::new(format!("account-{number}")).unwrap()
    }

    fn changes(of: impl Iterator<Item = (u64, u64)>) -> LastPositions {
        of.map(|(number, last)| (Entry::of(&account(number)), Position(last)))
            .collect()
    }

    async fn last(store: &MemorySnapshots, directory: &Directory, number: u64) -> Option<u64> {
        let last = directory.last(store, Entry::of(&account(number))).await;
        last.unwrap().map(|last| last.0)
    }

    #[tokio::test]
    async fn every_account_is_found_with_its_last_position() {
        let store = MemorySnapshots::default();
        let first = changes((0..3_000).map(|number| (number, number + 1)));
        let directory = Directory::empty(P).step(&store, &first).await.unwrap();
        let second = changes((0..9).map(|number| (number, 5_000 + number)));
        let directory = directory.step(&store, &second).await.unwrap();
        let named = directory.named().cloned();
        let directory = Directory::open(&store, P, named.as_ref()).await.unwrap();
        directory.verify(&store).await.unwrap();
        for number in 0..3_000 {
            let expected = if number < 9 { 5_000 } else { 1 } + number;
            assert_eq!(last(&store, &directory, number).await, Some(expected));
        }
        assert_eq!(last(&store, &directory, 3_000).await, None);
        let mut expected = first;
        expected.extend(second);
        assert_eq!(directory.all(&store).await.unwrap(), expected);
    }

    /// Whatever a step leaves behind when it dies, what the record names is whole.
    #[tokio::test]
    async fn a_step_that_dies_anywhere_changes_nothing_that_is_named() {
        let store = MemorySnapshots::default();
        let first = changes((0..50).map(|number| (number, 1)));
        let mut directory = Directory::empty(P).step(&store, &first).await.unwrap();
        let mut good = 1;
        for dies_at in 0..60 {
            let changed = changes((0..50).map(|number| (number, 2 + dies_at)));
            let writes = usize::try_from(dies_at).unwrap();
            let faults =
                std::iter::repeat_n(StoreFault::None, writes).chain([StoreFault::Unacknowledged]);
            store.script(faults);
            if let Ok(stepped) = directory.step(&store, &changed).await {
                (directory, good) = (stepped, 2 + dies_at);
            }
            store.clear_script();
            let named = directory.named().cloned();
            let found = Directory::open(&store, P, named.as_ref()).await.unwrap();
            found.verify(&store).await.unwrap();
            assert_eq!(last(&store, &found, 7).await, Some(good));
        }
    }
}
