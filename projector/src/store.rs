//! Where projections are kept: a bucket with compare-and-swap for snapshots, a stream with
//! compare-and-append for the feed. What is stored lives behind these traits, so that every
//! projection is tested without a server.
//!
//! Both say [`WriteError::Moved`] where another projector was there first; nothing here decides
//! what to do about it.

pub mod memory;
mod nats;

pub use nats::NatsUsage;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::feed::message::FeedMessage;

pub use seatbelt_ledger::nats::{StoreError, WriteError};
use seatbelt_schemas::usage::UsageEvent;

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
}

/// Number of a message on the feed's stream; zero stands before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FeedSequence(pub u64);

/// A message's place on the feed and its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedEntry {
    /// Its place.
    pub sequence: FeedSequence,
    /// Its `Nats-Msg-Id`, which is its `ce-id`.
    pub id: String,
}

/// The stream of the feed.
pub trait FeedStore: Send + Sync + 'static {
    /// The last place on the stream.
    fn end(&self) -> BoxFuture<'_, Result<FeedSequence, StoreError>>;

    /// The message at one place; `None` where there is none (any more).
    fn entry(&self, at: FeedSequence) -> BoxFuture<'_, Result<Option<FeedEntry>, StoreError>>;

    /// Messages after `after` up to and including `to`, in order; places that hold none are left
    /// out.
    fn entries(
        &self,
        after: FeedSequence,
        to: FeedSequence,
    ) -> BoxStream<'_, Result<FeedEntry, StoreError>>;

    /// Appends the messages in order if the stream ends at `expected`, and gives the new end. Each
    /// message is conditional on the one before it, so that what lands is always a prefix, also
    /// when the caller goes away half way through.
    fn append<'a>(
        &'a self,
        expected: FeedSequence,
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
