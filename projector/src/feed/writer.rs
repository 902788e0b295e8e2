//! The one writer of the feed's stream in a process: appends each event in order, whoever else
//! appends, however often anybody crashes, and whatever the stream loses.
//!
//! The stream itself says what is on it. It is not synced and may lose its end, or be made anew, while
//! others append: a place is therefore known by the id of its message and never by its number alone.
//! An append is conditional on number and id of the stream's end, and after any doubt the ids between
//! the last known end and the new one are read before anything is tried again. Where a known place
//! holds another message, or more places than before hold none, nothing known is believed any more:
//! the stream is read again, and what is missing is published again. `Nats-Msg-Id` is a second belt
//! that nothing here relies on.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use seatbelt_schemas::position::Position;
use thiserror::Error;
use tokio::{sync::Mutex, time::Instant};
use tracing::warn;

pub use super::standing::Published;
use super::{
    message::{EventSource, FeedMessage, parse_id},
    standing::Standing,
};
use crate::store::{
    FeedEnd, FeedEntry, FeedPlace, FeedSequence, FeedStore, StoreError, WriteError,
};

/// Most messages appended in one go; other partitions wait their turn meanwhile.
pub const FEED_BATCH_MAX: usize = 256;
/// How often in a row an append is tried again because somebody else appended, before it counts as
/// not possible now.
pub const FEED_ATTEMPTS_MAX: usize = 32;
/// How often a quiet feed is looked at: what it lost is published again this soon.
pub const FEED_CHECK_EVERY: Duration = Duration::from_secs(1);
/// Most sources noted while the whole stream is read: more than a ledger has partitions.
const SOURCES_MAX: usize = 1024;

/// Why messages are not known to be on the feed.
#[derive(Debug, Error)]
pub enum FeedError {
    /// Events before these are missing on the feed, which lost messages or was made anew: publish
    /// from there on.
    #[error("the feed holds its source up to position {} only, before the events at hand", .0.position)]
    Behind(Published),
    /// Not now: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is on the stream up to `end`.
#[derive(Default)]
struct OnStream {
    end: FeedPlace,
    /// Places up to `end` that hold no message.
    removed: u64,
    /// Whether the stream was read from its start, so that a source that is not here is not on it.
    whole: bool,
    /// An append may have landed without an answer.
    in_doubt: bool,
    checked_at: Option<Instant>,
    sources: HashMap<String, Standing>,
}

/// Shared by all partitions of a process, so that they do not race each other for the stream's end.
pub struct FeedWriter {
    store: Arc<dyn FeedStore>,
    known: Mutex<OnStream>,
}

impl FeedWriter {
    /// A writer that has yet to look at the stream.
    pub fn new(store: Arc<dyn FeedStore>) -> Self {
        Self {
            store,
            known: Mutex::default(),
        }
    }

    /// What is on the stream of `source`. `hint` is what was there once: if the stream still holds
    /// it, only what follows is read, else everything.
    pub async fn published(
        &self,
        source: &EventSource,
        hint: Published,
    ) -> Result<Published, StoreError> {
        let mut known = self.known.lock().await;
        self.learn(&mut known, source, hint).await?;
        Ok(known.of(source).published())
    }

    /// The bytes of the source's last message, if it can still be had.
    pub async fn last_event(
        &self,
        source: &EventSource,
        published: Published,
    ) -> Result<Option<Bytes>, StoreError> {
        let there = self.id_at(published.sequence).await?;
        if there != Some(source.id(published.last)) {
            return Ok(None);
        }
        self.store.payload(published.sequence).await
    }

    /// As [`Self::published`], after a look at the stream if the last one is [`FEED_CHECK_EVERY`]
    /// ago: it may have lost messages that nobody appends after.
    pub async fn check(
        &self,
        source: &EventSource,
        hint: Published,
    ) -> Result<Published, StoreError> {
        let mut known = self.known.lock().await;
        let fresh = |at: Instant| at.elapsed() < FEED_CHECK_EVERY;
        if !known.checked_at.is_some_and(fresh) {
            self.catch_up(&mut known).await?;
        }
        self.learn(&mut known, source, hint).await?;
        Ok(known.of(source).published())
    }

    /// Appends what is not there yet of `messages`, which are of `source` and in order.
    pub async fn publish(
        &self,
        source: &EventSource,
        hint: Published,
        messages: &[FeedMessage],
    ) -> Result<Published, FeedError> {
        let (mut standstill, mut before) = (0, None);
        while standstill < FEED_ATTEMPTS_MAX {
            let mut known = self.known.lock().await;
            self.learn(&mut known, source, hint).await?;
            let standing = known.of(source);
            let now = standing.published();
            let missing = missing(standing, messages);
            let Some(next) = missing.first() else {
                return Ok(now);
            };
            if next.position > now.position.next() {
                return Err(FeedError::Behind(now));
            }
            standstill = if before == Some(now.position) {
                standstill + 1
            } else {
                0
            };
            before = Some(now.position);
            self.append(&mut known, source, missing).await?;
        }
        Err(FeedError::Store(StoreError {
            action: format!("append to the feed for {source}"),
            source: "others append without a pause, or the server still knows ids of messages that it lost".into(),
        }))
    }

    /// One attempt, under the lock that what is missing was found out under. If the caller goes away
    /// half way through, the doubt stays and the next one reads what landed.
    async fn append(
        &self,
        known: &mut OnStream,
        source: &EventSource,
        messages: &[FeedMessage],
    ) -> Result<(), StoreError> {
        known.in_doubt = true;
        match self.store.append(&known.end, messages).await {
            Ok(end) => {
                known.landed(source, messages, end);
                known.in_doubt = false;
                Ok(())
            }
            Err(WriteError::Moved) => self.catch_up(known).await.map(drop),
            Err(WriteError::Unreachable(error)) => Err(error),
        }
    }

    /// Makes sure that `source` is known.
    async fn learn(
        &self,
        known: &mut OnStream,
        source: &EventSource,
        hint: Published,
    ) -> Result<(), StoreError> {
        if known.in_doubt {
            self.catch_up(known).await?;
        }
        if known.whole || known.sources.contains_key(&source.to_string()) {
            return Ok(());
        }
        let end = self.catch_up(known).await?;
        let mut found = if self.still_there(source, hint, end).await? {
            OnStream::after(source, hint)
        } else {
            OnStream::from_the_start()
        };
        self.read_up_to(&mut found, end).await?;
        if found.whole {
            found.checked_at = known.checked_at;
            *known = found;
        } else {
            known.sources.extend(found.sources);
        }
        Ok(())
    }

    /// Reads what others, or earlier tries of this process, appended since the last known end.
    async fn catch_up(&self, known: &mut OnStream) -> Result<FeedEnd, StoreError> {
        let end = self.store.end().await?;
        if !self.still_holds(known, end).await? {
            warn!(
                end = end.sequence.0,
                known = known.end.sequence.0,
                "the feed lost messages: reading it again"
            );
            *known = OnStream::default();
        }
        if known.sources.is_empty() && !known.whole {
            known.end = FeedPlace {
                sequence: end.sequence,
                id: self.id_at(end.sequence).await?,
            };
            known.removed = end.removed;
        } else {
            self.read_up_to(known, end).await?;
        }
        known.in_doubt = false;
        known.checked_at = Some(Instant::now());
        Ok(end)
    }

    /// Whether the stream that ends at `end` is the one that is known, and lost nothing since.
    async fn still_holds(&self, known: &OnStream, end: FeedEnd) -> Result<bool, StoreError> {
        if end.sequence < known.end.sequence || end.removed > known.removed {
            return Ok(known.end.sequence == FeedSequence(0) && known.sources.is_empty());
        }
        match &known.end.id {
            None => Ok(true),
            id => Ok(self.id_at(known.end.sequence).await? == *id),
        }
    }

    async fn read_up_to(&self, known: &mut OnStream, end: FeedEnd) -> Result<(), StoreError> {
        let mut place = known.end.clone();
        let mut entries = self.store.entries(place.sequence, end.sequence);
        while let Some(entry) = entries.try_next().await? {
            if let Some((source, position)) = parse_id(&entry.id) {
                known.note(source, position, entry.sequence, end.trimmed);
            }
            place = FeedPlace {
                sequence: entry.sequence,
                id: id_of(entry),
            };
        }
        if place.sequence != end.sequence {
            // the last places hold no message: none can be asked for by its id
            place = FeedPlace {
                sequence: end.sequence,
                id: None,
            };
        }
        known.end = place;
        known.removed = end.removed;
        Ok(())
    }

    /// Whether the source's last message stands where it stood, and no message was lost since.
    async fn still_there(
        &self,
        source: &EventSource,
        hint: Published,
        end: FeedEnd,
    ) -> Result<bool, StoreError> {
        let known = hint.sequence > FeedSequence(0) && hint.sequence <= end.sequence;
        if !known || end.removed > hint.removed {
            return Ok(false);
        }
        let there = self.id_at(hint.sequence).await?;
        Ok(there.map_or(end.trimmed, |id| id == source.id(hint.last)))
    }

    async fn id_at(&self, at: FeedSequence) -> Result<Option<String>, StoreError> {
        if at == FeedSequence(0) {
            return Ok(None);
        }
        Ok(self.store.entry(at).await?.and_then(id_of))
    }
}

/// The id of a message; one that somebody else published may have none.
fn id_of(entry: FeedEntry) -> Option<String> {
    Some(entry.id).filter(|id| !id.is_empty())
}

/// The first run of messages that are not on the feed, at most a batch.
fn missing<'a>(standing: &Standing, messages: &'a [FeedMessage]) -> &'a [FeedMessage] {
    let has = |message: &FeedMessage| standing.has(message.position);
    let from = messages.iter().position(|message| !has(message));
    let rest = &messages[from.unwrap_or(messages.len())..];
    let length = rest.iter().position(has).unwrap_or(rest.len());
    &rest[..length.min(FEED_BATCH_MAX)]
}

impl OnStream {
    /// From the stream's start on: whatever source there is will be noted.
    fn from_the_start() -> Self {
        Self {
            whole: true,
            ..Self::default()
        }
    }

    /// From one source's last message on.
    fn after(source: &EventSource, published: Published) -> Self {
        Self {
            end: FeedPlace {
                sequence: published.sequence,
                id: Some(source.id(published.last)),
            },
            sources: HashMap::from([(source.to_string(), Standing::at(published))]),
            ..Self::default()
        }
    }

    fn of(&mut self, source: &EventSource) -> &Standing {
        let removed = self.removed;
        let standing = self.sources.entry(source.to_string()).or_default();
        standing.saw_removed(removed);
        standing
    }

    /// Notes a message of another's append, if its source is one that is looked at.
    fn note(&mut self, source: &str, position: Position, sequence: FeedSequence, trimmed: bool) {
        if self.whole && self.sources.len() < SOURCES_MAX && !self.sources.contains_key(source) {
            let mut standing = Standing::default();
            if trimmed {
                standing.begin_at(position);
            }
            self.sources.insert(source.to_owned(), standing);
        }
        if let Some(standing) = self.sources.get_mut(source) {
            standing.note(position, sequence);
        }
    }

    /// Notes an own append that was acknowledged.
    fn landed(&mut self, source: &EventSource, messages: &[FeedMessage], end: FeedSequence) {
        let standing = self.sources.entry(source.to_string()).or_default();
        let first = end.0 - messages.len() as u64;
        for (sequence, message) in (first + 1..).zip(messages) {
            standing.note(message.position, FeedSequence(sequence));
        }
        self.end = FeedPlace {
            sequence: end,
            id: messages.last().map(|last| last.id.clone()),
        };
    }
}
