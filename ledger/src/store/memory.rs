//! A bucket of snapshots in memory, with the same promises as the real one. Faults are scripted per
//! write: what the caller is told and what really happened can differ, as with a server. A [`Fuse`]
//! makes everything on it stop answering at a chosen operation, for crashes between any two steps.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use seatbelt_schemas::{ids::AccountId, names::Names};
use tokio::sync::watch;

use super::{Kept, Revision, SnapshotStore, StoreError, WriteError};

/// What befalls one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreFault {
    /// It goes well.
    None,
    /// It is not written, and the caller is told nothing.
    Lost,
    /// It is written, and the caller is told nothing.
    Unacknowledged,
    /// Only the first message of several is written, and the caller is told nothing.
    HalfWay,
}

/// Burns down by one at each operation of the stores that share it; once burnt, no operation is
/// answered any more, and the last one may or may not have been done.
#[derive(Debug, Clone)]
pub struct Fuse(Arc<(Mutex<Option<u32>>, watch::Sender<bool>)>);

impl Default for Fuse {
    fn default() -> Self {
        Self(Arc::new((Mutex::default(), watch::Sender::new(false))))
    }
}

impl Fuse {
    /// Lets `operations` more be answered. `None`: all.
    pub fn set(&self, operations: Option<u32>) {
        *lock(&self.0.0) = operations;
        self.0.1.send_replace(false);
    }

    /// Waits until an operation is not answered.
    pub async fn burnt(&self) {
        let mut burnt = self.0.1.subscribe();
        // the sender lives in self, so waiting cannot fail
        let _ = burnt.wait_for(|burnt| *burnt).await;
    }

    /// One operation: done, and answered only while the fuse lasts. An odd end leaves the last
    /// operation undone.
    pub async fn step<T>(&self, operation: impl FnOnce() -> T) -> T {
        tokio::task::yield_now().await;
        let left = {
            let mut left = lock(&self.0.0);
            let now = *left;
            *left = now.map(|now| now.saturating_sub(1));
            now
        };
        match left {
            Some(0) => self.hang().await,
            Some(1) => {
                drop(operation());
                self.hang().await
            }
            _ => {
                let done = operation();
                tokio::task::yield_now().await;
                done
            }
        }
    }

    async fn hang<T>(&self) -> T {
        self.0.1.send_replace(true);
        std::future::pending().await
    }
}

fn unreachable(action: &str) -> StoreError {
    StoreError {
        action: action.to_owned(),
        source: "scripted fault".into(),
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // no code panics while it holds the lock half way through a change
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Bucket {
    values: BTreeMap<String, Kept>,
    revision: u64,
    writes: Vec<String>,
    reads: u64,
    faults: VecDeque<StoreFault>,
}

/// Snapshots in memory. Clones share one bucket.
#[derive(Debug, Clone, Default)]
pub struct MemorySnapshots(Arc<Mutex<Bucket>>, Fuse);

impl MemorySnapshots {
    /// An empty bucket on a fuse.
    pub fn on(fuse: &Fuse) -> Self {
        Self(Arc::default(), fuse.clone())
    }

    /// The value of a key, outside any fuse.
    pub fn peek(&self, key: &str) -> Option<Bytes> {
        lock(&self.0).values.get(key)?.value.clone()
    }

    /// Scripts what befalls the next writes.
    pub fn script(&self, faults: impl IntoIterator<Item = StoreFault>) {
        lock(&self.0).faults.extend(faults);
    }

    /// From here on all goes well.
    pub fn clear_script(&self) {
        lock(&self.0).faults.clear();
    }

    /// Keys in the order in which they were written.
    pub fn writes(&self) -> Vec<String> {
        lock(&self.0).writes.clone()
    }

    /// How many values were read.
    pub fn reads(&self) -> u64 {
        lock(&self.0).reads
    }

    /// Throws one value away.
    pub fn forget(&self, key: &str) {
        lock(&self.0).values.remove(key);
    }

    /// Makes a key what it was once, as a server does that lost the end of its file: no new revision.
    pub fn put_back(&self, key: &str, value: Option<Bytes>) {
        let mut bucket = lock(&self.0);
        match (value, bucket.values.get_mut(key)) {
            (Some(value), Some(kept)) => kept.value = Some(value),
            _ => drop(bucket.values.remove(key)),
        }
    }

    /// Makes a key what it is in an older copy, revision and all: what was written over may be there again
    /// after a purge, once the server was killed.
    pub fn go_back(&self, key: &str, to: &Self) {
        let then = lock(&to.0).values.get(key).cloned();
        let mut bucket = lock(&self.0);
        match then {
            Some(kept) => drop(bucket.values.insert(key.to_owned(), kept)),
            None => drop(bucket.values.remove(key)),
        }
    }

    /// Another bucket with the same values.
    #[must_use]
    pub fn copy(&self) -> Self {
        let bucket = lock(&self.0);
        let copy = Bucket {
            values: bucket.values.clone(),
            revision: bucket.revision,
            ..Bucket::default()
        };
        Self(Arc::new(Mutex::new(copy)), Fuse::default())
    }

    /// Puts a value, whatever is there.
    pub fn overwrite(&self, key: &str, value: Bytes) {
        let mut bucket = lock(&self.0);
        bucket.put(key, value);
    }
}

impl Bucket {
    fn put(&mut self, key: &str, value: Bytes) -> Revision {
        self.revision += 1;
        let revision = Revision(self.revision);
        let kept = Kept {
            value: Some(value),
            revision,
        };
        self.values.insert(key.to_owned(), kept);
        self.writes.push(key.to_owned());
        revision
    }

    fn write(
        &mut self,
        key: &str,
        expected: Revision,
        value: Bytes,
    ) -> Result<Revision, WriteError> {
        let fault = self.faults.pop_front().unwrap_or(StoreFault::None);
        if fault == StoreFault::Lost {
            return Err(unreachable("write").into());
        }
        let found = self
            .values
            .get(key)
            .map_or(Revision(0), |kept| kept.revision);
        if found != expected {
            return Err(WriteError::Moved);
        }
        let revision = self.put(key, value);
        match fault {
            StoreFault::None => Ok(revision),
            _ => Err(unreachable("write").into()),
        }
    }
}

impl SnapshotStore for MemorySnapshots {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>> {
        let read = || {
            let mut bucket = lock(&self.0);
            bucket.reads += 1;
            Ok(bucket.values.get(key).cloned().unwrap_or_default())
        };
        self.1.step(read).boxed()
    }

    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>> {
        let write = move || lock(&self.0).write(key, expected, value);
        self.1.step(write).boxed()
    }

    fn accounts(&self) -> BoxFuture<'_, Result<Vec<AccountId>, StoreError>> {
        let list = || {
            let bucket = lock(&self.0);
            let keys = bucket.values.keys();
            Ok(keys
                .filter_map(|key| Names::snapshot_head_account(key))
                .collect())
        };
        self.1.step(list).boxed()
    }
}
