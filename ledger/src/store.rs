//! Where snapshots are kept: a bucket of bytes by key with compare-and-swap on every write, behind a
//! trait, so that whoever uses it is tested without a server. What the values mean is in
//! [`snapshot`](crate::snapshot).

pub mod memory;

use bytes::Bytes;
use futures::future::BoxFuture;
use seatbelt_schemas::ids::AccountId;
use thiserror::Error;

/// The bucket does not answer now: try again.
#[derive(Debug, Error)]
#[error("cannot {action}")]
pub struct StoreError {
    /// What was attempted, and on what.
    pub action: String,
    /// What went wrong.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why nothing is known to be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The key is not at the expected revision: somebody else wrote, or an earlier try landed after
    /// all. Read again, then decide.
    #[error("somebody else wrote first")]
    Moved,
    /// It may or may not have been written.
    #[error(transparent)]
    Unreachable(#[from] StoreError),
}

/// Version of one key's value; zero stands for "never written".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A key as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Its value; none where there is none, or none any more.
    pub value: Option<Bytes>,
    /// Its version: what the next write expects.
    pub revision: Revision,
}

/// The bucket of snapshots.
pub trait SnapshotStore: Send + Sync + 'static {
    /// The value of a key.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>>;

    /// Writes if the key still has the `expected` version.
    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>>;

    /// The accounts, of all partitions, that have something under the key of their snapshot.
    fn accounts(&self) -> BoxFuture<'_, Result<Vec<AccountId>, StoreError>>;
}
