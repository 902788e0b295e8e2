//! The bucket of snapshots, as the ledger asks for it. What the values mean is the projector's.

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use seatbelt_bus::Bucket;
use seatbelt_schemas::ids::AccountId;

use crate::store::{Kept, Revision, SnapshotStore, StoreError, WriteError};

impl SnapshotStore for Bucket {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>> {
        self.read(key).boxed()
    }

    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>> {
        self.write(key, expected, value).boxed()
    }

    fn accounts(&self) -> BoxFuture<'_, Result<Vec<AccountId>, StoreError>> {
        self.accounts().boxed()
    }
}
