//! The feed and the usage events on a NATS server: thin covers over the ledger's streams.

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use seatbelt_bus::{FeedStream, Nats};
use seatbelt_schemas::{names::Names, usage::UsageEvent};

use super::{
    FeedEnd, FeedEntry, FeedPlace, FeedSequence, FeedStore, StoreError, UsageStore, WriteError,
};
use crate::feed::{message::FeedMessage, writer::FEED_BATCH_MAX};

const _: () = assert!(
    FEED_BATCH_MAX <= seatbelt_bus::feed::FEED_APPEND_MAX,
    "a batch fits one append"
);

fn entry(entry: seatbelt_bus::FeedEntry) -> FeedEntry {
    FeedEntry {
        sequence: FeedSequence(entry.sequence),
        id: entry.id,
    }
}

impl FeedStore for FeedStream {
    fn end(&self) -> BoxFuture<'_, Result<FeedEnd, StoreError>> {
        async move {
            let state = self.state().await?;
            Ok(FeedEnd {
                sequence: FeedSequence(state.end),
                removed: state.removed,
                trimmed: state.trimmed,
            })
        }
        .boxed()
    }

    fn entry(&self, at: FeedSequence) -> BoxFuture<'_, Result<Option<FeedEntry>, StoreError>> {
        async move { Ok(self.entry(at.0).await?.map(entry)) }.boxed()
    }

    fn payload(&self, at: FeedSequence) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        self.payload(at.0).boxed()
    }

    fn entries(
        &self,
        after: FeedSequence,
        to: FeedSequence,
    ) -> BoxStream<'_, Result<FeedEntry, StoreError>> {
        self.entries(after.0, to.0)
            .map(|found| found.map(entry))
            .boxed()
    }

    fn append<'a>(
        &'a self,
        after: &'a FeedPlace,
        messages: &'a [FeedMessage],
    ) -> BoxFuture<'a, Result<FeedSequence, WriteError>> {
        async move {
            let borrow = |message: &'a FeedMessage| seatbelt_bus::FeedMessage {
                subject: &message.subject,
                headers: &message.headers,
                payload: message.payload.clone(),
            };
            let messages: Vec<_> = messages.iter().map(borrow).collect();
            let (expected, before) = (after.sequence.0, after.id.as_deref());
            let end = self.append_after(expected, before, &messages).await?;
            Ok(FeedSequence(end))
        }
        .boxed()
    }
}

/// The stream of usage events on a server.
#[derive(Debug, Clone)]
pub struct NatsUsage {
    /// The connection.
    pub nats: Nats,
    /// Names of the ledger.
    pub names: Names,
}

impl UsageStore for NatsUsage {
    fn end(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        seatbelt_bus::usage_end(&self.nats, &self.names).boxed()
    }

    fn follow(&self, after: u64) -> BoxStream<'_, Result<(u64, UsageEvent), StoreError>> {
        seatbelt_bus::follow_usage(&self.nats, &self.names, after)
    }
}
