//! What clients' own keys of requests were used for first, for the gateway: the bucket behind its trait.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use seatbelt_bus::{
    self as nats,
    kept::{Revision, WriteError},
};
use seatbelt_gateway::{FirstUseFailure, FirstUseStore};
use seatbelt_schemas::first_use::FirstUse;

use super::bus::Bus;

struct Kept(nats::FirstUses);

/// The bucket, whether it is there or not: a server that was not provisioned anew serves all other requests.
pub(super) fn first_uses(bus: &Bus) -> Arc<dyn FirstUseStore> {
    Arc::new(Kept(nats::FirstUses::at(&bus.nats, &bus.names)))
}

impl FirstUseStore for Kept {
    fn find(
        &self,
        name: String,
    ) -> BoxFuture<'static, Result<(Option<FirstUse>, u64), FirstUseFailure>> {
        let kept = self.0.clone();
        async move {
            let (first, Revision(revision)) = kept.find(&name).await?;
            Ok((first, revision))
        }
        .boxed()
    }

    fn write(
        &self,
        name: String,
        revision: u64,
        first: FirstUse,
    ) -> BoxFuture<'static, Result<Option<u64>, FirstUseFailure>> {
        let kept = self.0.clone();
        async move {
            match kept.write(&name, Revision(revision), &first).await {
                Ok(Revision(written)) => Ok(Some(written)),
                Err(WriteError::Moved) => Ok(None),
                Err(WriteError::Unreachable(error)) => Err(error.into()),
            }
        }
        .boxed()
    }

    fn take_back(&self, revision: u64) -> BoxFuture<'static, Result<(), FirstUseFailure>> {
        let kept = self.0.clone();
        async move { Ok(kept.take_back(Revision(revision)).await?) }.boxed()
    }
}
