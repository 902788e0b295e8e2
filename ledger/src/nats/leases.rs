//! Leases in their bucket, and what is written there as it is written.

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seatbelt_bus::{Bucket, Nats, ProvisionError, cursor::Cursor, lease_bucket};
use seatbelt_schemas::names::Names;
use tracing::warn;

use crate::{
    lease::{LeaseChange, LeaseStore},
    store::{Kept, Revision, StoreError, WriteError},
};

/// Leases, kept in a bucket.
#[derive(Debug, Clone)]
pub struct LeaseBucket {
    nats: Nats,
    bucket: Bucket,
}

impl LeaseBucket {
    /// Opens the bucket, made if missing with `replicas` copies.
    pub async fn open(nats: &Nats, names: &Names, replicas: u8) -> Result<Self, ProvisionError> {
        Ok(Self {
            nats: nats.clone(),
            bucket: lease_bucket(nats, names, replicas).await?,
        })
    }

    async fn next(&self, cursor: &mut Cursor) -> Result<LeaseChange, StoreError> {
        let item = match cursor.next().await {
            Ok(item) => item,
            Err(source) => {
                // where the bucket is gone and nobody holds a lease, nobody else makes it again
                if let Err(error) = self.bucket.mend().await {
                    warn!(%error, "the bucket of leases is not made again yet");
                }
                let action = "watch leases".to_owned();
                return Err(StoreError { action, source });
            }
        };
        let message = item.message.message;
        let prefix = self.bucket.subject_prefix();
        let key = message.subject.strip_prefix(&prefix).unwrap_or_default();
        Ok(LeaseChange {
            key: key.to_owned(),
            revision: Revision(item.sequence),
            value: message.payload,
        })
    }
}

impl LeaseStore for LeaseBucket {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>> {
        self.bucket.read(key).boxed()
    }

    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>> {
        self.bucket.write(key, expected, value).boxed()
    }

    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
    ) -> BoxFuture<'a, Result<(), WriteError>> {
        self.bucket.delete(key, expected).boxed()
    }

    fn watch(&self) -> BoxStream<'static, Result<LeaseChange, StoreError>> {
        let cursor = Cursor::after(self.nats.clone(), self.bucket.stream(), 0);
        stream::unfold((self.clone(), cursor), |(store, mut cursor)| async move {
            let change = store.next(&mut cursor).await;
            Some((change, (store, cursor)))
        })
        .boxed()
    }
}
