//! The feed in memory, with the same promises as the real one; faults are scripted per append, and a
//! [`Fuse`] is shared with the snapshots.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
pub use seatbelt_ledger::store::memory::{Fuse, MemorySnapshots, StoreFault};

use super::{FeedEnd, FeedEntry, FeedPlace, FeedSequence, FeedStore, StoreError, WriteError};
use crate::feed::message::FeedMessage;

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
struct Stream {
    /// By place; `None` where the message was removed.
    messages: Vec<Option<FeedMessage>>,
    faults: VecDeque<StoreFault>,
    payloads_read: u64,
    /// Places whose messages are there and cannot be read.
    hidden: std::ops::Range<u64>,
}

impl Stream {
    fn end(&self) -> FeedSequence {
        FeedSequence(self.messages.len() as u64)
    }

    fn append(
        &mut self,
        after: &FeedPlace,
        messages: &[FeedMessage],
    ) -> Result<FeedSequence, WriteError> {
        let fault = self.faults.pop_front().unwrap_or(StoreFault::None);
        let ends_so = self.end() == after.sequence
            && (after.id.is_none() || self.id_at(after.sequence.0) == after.id);
        if !ends_so {
            return Err(WriteError::Moved);
        }
        let landed = match fault {
            StoreFault::Lost => 0,
            StoreFault::HalfWay => messages.len().min(1),
            StoreFault::None | StoreFault::Unacknowledged => messages.len(),
        };
        self.messages
            .extend(messages[..landed].iter().cloned().map(Some));
        match fault {
            StoreFault::None => Ok(self.end()),
            _ => Err(unreachable("append").into()),
        }
    }

    fn entry(&self, at: u64) -> Option<FeedEntry> {
        let index = usize::try_from(at.checked_sub(1)?).ok()?;
        if self.hidden.contains(&at) {
            return None;
        }
        let id = self.messages.get(index)?.as_ref()?.id.clone();
        let sequence = FeedSequence(at);
        Some(FeedEntry { sequence, id })
    }

    fn id_at(&self, at: u64) -> Option<String> {
        self.entry(at).map(|entry| entry.id)
    }
}

/// The feed in memory. Clones share one stream.
#[derive(Debug, Clone, Default)]
pub struct MemoryFeed(Arc<Mutex<Stream>>, Fuse);

impl MemoryFeed {
    /// An empty stream on a fuse.
    pub fn on(fuse: &Fuse) -> Self {
        Self(Arc::default(), fuse.clone())
    }

    /// Scripts what befalls the next appends.
    pub fn script(&self, faults: impl IntoIterator<Item = StoreFault>) {
        lock(&self.0).faults.extend(faults);
    }

    /// All messages, in order.
    pub fn messages(&self) -> Vec<FeedMessage> {
        let stream = lock(&self.0);
        stream.messages.iter().flatten().cloned().collect()
    }

    /// How often somebody asked what a message says.
    pub fn payloads_read(&self) -> u64 {
        lock(&self.0).payloads_read
    }

    /// Loses all but the first `keep` messages, as a server does that dies before it has synced.
    pub fn cut(&self, keep: usize) {
        lock(&self.0).messages.truncate(keep);
    }

    /// Removes messages from their places, as an operator may; no place is used again.
    pub fn remove(&self, places: std::ops::Range<usize>) {
        let mut stream = lock(&self.0);
        for place in places {
            stream.messages[place] = None;
        }
    }

    /// Keeps what stands at some places from being read, as a damaged file does.
    pub fn hide(&self, places: std::ops::Range<u64>) {
        lock(&self.0).hidden = places;
    }

    /// Appends a message whatever stands before it, as another projector does.
    pub fn put(&self, message: FeedMessage) {
        lock(&self.0).messages.push(Some(message));
    }

    /// Throws all messages away, as when the stream is made anew.
    pub fn wipe(&self) {
        lock(&self.0).messages.clear();
    }
}

impl FeedStore for MemoryFeed {
    fn end(&self) -> BoxFuture<'_, Result<FeedEnd, StoreError>> {
        let end = || {
            let stream = lock(&self.0);
            let removed = stream
                .messages
                .iter()
                .filter(|place| place.is_none())
                .count();
            Ok(FeedEnd {
                sequence: stream.end(),
                removed: removed as u64,
                trimmed: false,
            })
        };
        self.1.step(end).boxed()
    }

    fn entry(&self, at: FeedSequence) -> BoxFuture<'_, Result<Option<FeedEntry>, StoreError>> {
        self.1.step(move || Ok(lock(&self.0).entry(at.0))).boxed()
    }

    fn payload(&self, at: FeedSequence) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        let payload = move || {
            let mut stream = lock(&self.0);
            stream.payloads_read += 1;
            let index = usize::try_from(at.0).ok().and_then(|at| at.checked_sub(1));
            let place = index.and_then(|index| stream.messages.get(index));
            Ok(place.and_then(|message| Some(message.as_ref()?.payload.clone())))
        };
        self.1.step(payload).boxed()
    }

    fn entries(
        &self,
        after: FeedSequence,
        to: FeedSequence,
    ) -> BoxStream<'_, Result<FeedEntry, StoreError>> {
        let stream = lock(&self.0);
        let entries: Vec<_> = (after.0 + 1..=to.0)
            .filter_map(|at| stream.entry(at))
            .collect();
        stream::iter(entries.into_iter().map(Ok)).boxed()
    }

    fn append<'a>(
        &'a self,
        after: &'a FeedPlace,
        messages: &'a [FeedMessage],
    ) -> BoxFuture<'a, Result<FeedSequence, WriteError>> {
        self.1
            .step(move || lock(&self.0).append(after, messages))
            .boxed()
    }
}
