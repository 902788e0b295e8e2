//! Where projections are kept: the ledger's bucket of snapshots, with compare-and-swap, and a stream
//! with compare-and-append for the feed. What is stored lives behind traits, so that every projection
//! is tested without a server.
//!
//! Both say [`WriteError::Moved`] where another projector was there first; nothing here decides
//! what to do about it.

#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod nats;

pub use nats::NatsUsage;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream::BoxStream};

use crate::feed::message::FeedMessage;

pub use seatbelt_ledger::store::{Kept, Revision, SnapshotStore, StoreError, WriteError};
use seatbelt_schemas::usage::UsageEvent;

/// Number of a message on the feed's stream; zero stands before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedSequence(pub u64);

/// A message's place on the feed and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEntry {
    pub sequence: FeedSequence,
    /// Its `Nats-Msg-Id`, which is its `ce-id`.
    pub id: String,
}

/// A place on the feed's stream, known by the message that stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedPlace {
    /// Its number.
    pub sequence: FeedSequence,
    /// Id of its message; `None` where it holds none, or one without an id.
    pub id: Option<String>,
}

/// How the feed's stream ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FeedEnd {
    /// The last place.
    pub sequence: FeedSequence,
    /// Places up to it that hold no message any more, other than by a limit of the stream.
    pub removed: u64,
    /// Whether an operator limits what the stream holds: what it dropped is not missing.
    pub trimmed: bool,
}

/// The stream of the feed.
pub trait FeedStore: Send + Sync + 'static {
    /// How the stream ends; made anew where it is gone.
    fn end(&self) -> BoxFuture<'_, Result<FeedEnd, StoreError>>;

    /// The message at one place; `None` where there is none (any more).
    fn entry(&self, at: FeedSequence) -> BoxFuture<'_, Result<Option<FeedEntry>, StoreError>>;

    /// The payload of the message at one place; `None` where there is none, or where no payloads are kept.
    fn payload(&self, _at: FeedSequence) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// Messages after `after` up to and including `to`, in order; places that hold none are left
    /// out.
    fn entries(
        &self,
        after: FeedSequence,
        to: FeedSequence,
    ) -> BoxStream<'_, Result<FeedEntry, StoreError>>;

    /// Appends the messages in order if the stream ends at `after`, by number and by id, and gives the
    /// new end. Each message is conditional on the one before it, so that what lands is always a prefix, also
    /// when the caller goes away half way through.
    fn append<'a>(
        &'a self,
        after: &'a FeedPlace,
        messages: &'a [FeedMessage],
    ) -> BoxFuture<'a, Result<FeedSequence, WriteError>>;
}

/// The stream of usage events.
pub trait UsageStore: Send + Sync + 'static {
    /// The last place on the stream.
    fn end(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Usage events after `after`, and then each new one as it lands; an error is the last item.
    fn follow(&self, after: u64) -> BoxStream<'_, Result<(u64, UsageEvent), StoreError>>;
}
