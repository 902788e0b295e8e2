//! The one writer of the feed's stream in a process: appends each event exactly once, in order,
//! whoever else appends and however often anybody crashes.
//!
//! The stream itself says what is on it: an append is conditional on the stream's end, and after any
//! doubt the ids between the last known end and the new one are read before anything is tried again.
//! `Nats-Msg-Id` is a second belt that nothing here relies on.

use std::{collections::HashMap, sync::Arc};

use futures::TryStreamExt;
use seatbelt_schemas::position::Position;
use thiserror::Error;
use tokio::sync::Mutex;

use super::message::{FeedMessage, Source, parse_id};
use crate::store::{FeedSequence, FeedStore, StoreError, WriteError};

/// Most messages appended in one go; other partitions wait their turn meanwhile.
pub const FEED_BATCH_MAX: usize = 256;
/// How often in a row an append is tried again because somebody else appended, before it counts as
/// not possible now.
pub const FEED_ATTEMPTS_MAX: usize = 32;

/// Why messages are not known to be on the feed.
#[derive(Debug, Error)]
pub enum FeedError {
    /// Events before these are missing on the feed, which lost its end or was made anew: publish
    /// from there on.
    #[error("the feed ends at position {} of its source, before the events at hand", .0.position)]
    Behind(Published),
    /// Not now: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The last message of one source on the feed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Published {
    /// Its position.
    pub position: Position,
    /// Its place on the stream.
    pub sequence: FeedSequence,
}

/// What is on the stream up to `end`, for the sources that were asked for.
#[derive(Default)]
struct Known {
    end: FeedSequence,
    sources: HashMap<String, Published>,
}

/// Shared by all partitions of a process, so that they do not race each other for the stream's end.
pub struct FeedWriter {
    store: Arc<dyn FeedStore>,
    known: Mutex<Known>,
}

impl FeedWriter {
    /// A writer that has yet to look at the stream.
    pub fn new(store: Arc<dyn FeedStore>) -> Self {
        Self {
            store,
            known: Mutex::default(),
        }
    }

    /// What is on the stream of `source`. `hint` is where a message of it once stood: if it still
    /// does, only what follows is read, else everything.
    pub async fn published(
        &self,
        source: &Source,
        hint: Published,
    ) -> Result<Published, StoreError> {
        let mut known = self.known.lock().await;
        if let Some(published) = known.sources.get(&source.to_string()) {
            return Ok(*published);
        }
        self.catch_up(&mut known).await?;
        let from = self.still_there(source, hint).await?;
        let mut found = Known {
            end: from.sequence,
            sources: HashMap::from([(source.to_string(), from)]),
        };
        self.read_up_to(&mut found, known.end).await?;
        known.sources.extend(found.sources);
        Ok(known.of(source).unwrap_or_default())
    }

    /// Appends what is not there yet of `messages`, which are of `source` and in order.
    pub async fn publish(
        &self,
        source: &Source,
        hint: Published,
        messages: &[FeedMessage],
    ) -> Result<Published, FeedError> {
        let mut standstill = 0;
        let mut before = self.published(source, hint).await?;
        while standstill < FEED_ATTEMPTS_MAX {
            let done = messages.partition_point(|message| message.position <= before.position);
            let Some(next) = messages.get(done) else {
                return Ok(before);
            };
            if next.position != before.position.next() {
                return Err(FeedError::Behind(before));
            }
            let batch = &messages[done..];
            self.append(source, &batch[..batch.len().min(FEED_BATCH_MAX)])
                .await?;
            let now = self.published(source, hint).await?;
            standstill = if now > before { 0 } else { standstill + 1 };
            before = now;
        }
        Err(FeedError::Store(StoreError {
            action: format!("append to the feed for {source}"),
            source: "others append without a pause".into(),
        }))
    }

    /// One attempt. If the caller goes away half way through, the next one is told that the stream
    /// has moved, and reads what landed.
    async fn append(&self, source: &Source, messages: &[FeedMessage]) -> Result<(), StoreError> {
        let mut known = self.known.lock().await;
        match self.store.append(known.end, messages).await {
            Ok(end) => {
                known.end = end;
                let position = messages.last().map_or(Position(0), |last| last.position);
                known.note(&source.to_string(), position, end);
                Ok(())
            }
            Err(WriteError::Moved) => self.catch_up(&mut known).await,
            Err(WriteError::Unreachable(error)) => Err(error),
        }
    }

    /// Reads what others, or earlier tries of this process, appended since the last known end.
    async fn catch_up(&self, known: &mut Known) -> Result<(), StoreError> {
        let end = self.store.end().await?;
        if end < known.end {
            // made anew, or it lost its end with the server: nothing known still holds
            *known = Known::default();
        }
        if known.sources.is_empty() {
            known.end = end;
            return Ok(());
        }
        self.read_up_to(known, end).await
    }

    async fn read_up_to(&self, known: &mut Known, end: FeedSequence) -> Result<(), StoreError> {
        let mut entries = self.store.entries(known.end, end);
        while let Some(entry) = entries.try_next().await? {
            if let Some((source, position)) = parse_id(&entry.id) {
                known.note(source, position, entry.sequence);
            }
        }
        known.end = end;
        Ok(())
    }

    async fn still_there(&self, source: &Source, hint: Published) -> Result<Published, StoreError> {
        let there = match hint.sequence {
            FeedSequence(0) => None,
            sequence => self.store.entry(sequence).await?,
        };
        let holds = there.is_some_and(|entry| entry.id == source.id(hint.position));
        Ok(if holds { hint } else { Published::default() })
    }
}

impl Known {
    fn of(&self, source: &Source) -> Option<Published> {
        self.sources.get(&source.to_string()).copied()
    }

    /// Notes a message, if its source is one that was asked for.
    fn note(&mut self, source: &str, position: Position, sequence: FeedSequence) {
        if let Some(known) = self.sources.get_mut(source) {
            *known = Published { position, sequence }.max(*known);
        }
    }
}
