//! Where snapshots are kept: a bucket of bytes by key with compare-and-swap on every write, behind a
//! trait, so that whoever uses it is tested without a server. What the values mean is in
//! [`snapshot`](crate::snapshot).

#[cfg(any(test, feature = "testing"))]
pub mod memory;

use bytes::Bytes;
use futures::future::BoxFuture;
pub use seatbelt_bus::kept::{Kept, Revision, StoreError, WriteError};
use seatbelt_schemas::ids::AccountId;

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
