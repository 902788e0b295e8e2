//! Whose the responses are that upstreams keep, for the gateway: the bucket behind its trait.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use seatbelt_bus as nats;
use seatbelt_gateway::{ThreadFailure, ThreadStore};
use seatbelt_schemas::thread::Thread;

use super::bus::{Bus, BusError};
use crate::config::Config;

struct Kept(nats::Threads);

/// The bucket, where an upstream keeps responses.
pub(super) async fn threads(
    config: &Config,
    bus: &Bus,
) -> Result<Option<Arc<dyn ThreadStore>>, BusError> {
    if !config.upstreams.iter().any(|upstream| upstream.threads) {
        return Ok(None);
    }
    let threads = nats::Threads::open(&bus.nats, &bus.names).await?;
    Ok(Some(Arc::new(Kept(threads))))
}

impl ThreadStore for Kept {
    fn find(&self, id: String) -> BoxFuture<'static, Result<Option<Thread>, ThreadFailure>> {
        let threads = self.0.clone();
        async move { Ok(threads.find(&id).await?) }.boxed()
    }

    fn bind(&self, id: String, thread: Thread) -> BoxFuture<'static, Result<(), ThreadFailure>> {
        let threads = self.0.clone();
        async move { Ok(threads.bind(&id, &thread).await?) }.boxed()
    }
}
