//! A journal that remembers the last commit its writer met on it: what a later look at the same
//! journal has to find again. Everything else passes through.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;
use seatbelt_schemas::commit::ChainHash;

use super::{AppendError, Journal, ReadError, Sequence, Stored};

/// A journal under a writer's eyes. Clones share what was seen.
#[derive(Debug, Clone)]
pub struct Seen<J> {
    journal: J,
    last: Arc<Mutex<Option<(Sequence, Bytes)>>>,
}

impl<J> Seen<J> {
    /// Begins to watch.
    pub fn new(journal: J) -> Self {
        Self {
            journal,
            last: Arc::default(),
        }
    }

    /// The journal itself.
    pub fn inner(&self) -> &J {
        &self.journal
    }

    /// The last commit that was acknowledged or read back, by its place and hash.
    pub fn last(&self) -> Option<(Sequence, ChainHash)> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref()
            .map(|(at, payload)| (*at, ChainHash::of(payload)))
    }

    fn note(&self, at: Sequence, payload: Bytes) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(seen, _)| *seen < at) {
            *last = Some((at, payload));
        }
    }
}

impl<J: Journal> Journal for Seen<J> {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        let landed = self.journal.append(expected, payload.clone()).await?;
        self.note(landed, payload);
        Ok(landed)
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        self.journal.end().await
    }

    async fn server_ms(&self) -> Result<Option<u64>, ReadError> {
        self.journal.server_ms().await
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        let found = self.journal.get(sequence).await?;
        if let Some(stored) = &found {
            self.note(sequence, stored.payload.clone());
        }
        Ok(found)
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.journal.replay(after, to)
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.journal.follow(after)
    }
}
