//! The journal of one partition: an append-only sequence of commits, fenced by its own length.
//!
//! [`Sequence`] counts messages of the stream; it is never a [`Position`](seatbelt_schemas::position::Position),
//! which counts events. Both implementations pass one conformance suite.

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod export;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
pub mod seen;
pub mod strays;

use std::{fmt, future::Future};

use bytes::Bytes;
use futures::stream::BoxStream;
use thiserror::Error;

/// Number of a commit on the journal's stream: 1, 2, 3, ... Zero stands before the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The one after this.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an append has no plain success, by what the writer does next.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The journal's end is not the expected one: read what stands at `expected + 1`. It is either
    /// this very commit (an earlier try that landed) or another writer's, and then step down.
    #[error("the journal does not end at sequence {expected}")]
    WrongSequence {
        /// The end that the append was conditional on.
        expected: Sequence,
    },
    /// Nobody knows whether it landed (timeout, reconnect): append the same bytes again at the same
    /// place until the answer is definite.
    #[error("the outcome of an append after sequence {expected} is not known")]
    Unknown {
        /// The end that the append was conditional on.
        expected: Sequence,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The journal refuses every append (frozen after an I/O error, out of space, no permission):
    /// nothing was written; the partition is read-only until an operator acts.
    #[error("the journal refuses appends: {detail}")]
    Refused {
        /// The server's reason.
        detail: String,
    },
}

/// Why the journal could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Not now: try again.
    #[error("cannot read the journal at sequence {at}")]
    Unreachable {
        at: Sequence,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A commit that must be there is not: the journal is damaged.
    #[error(
        "the journal has no readable commit at sequence {at} although it goes on: what the server keeps of it is damaged; restore it, or have the server cut it there as docs/recovery.md says and then go on with `seatbelt ledger adopt-journal`"
    )]
    Gap { at: Sequence },
}

/// A commit's stored bytes and their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub sequence: Sequence,
    /// Its bytes, as stored.
    pub payload: Bytes,
}

/// One partition's journal.
pub trait Journal: Send + Sync + 'static {
    /// Appends `payload` if and only if the journal ends at `expected`. Success means durable to the
    /// level the journal was opened with.
    fn append(
        &self,
        expected: Sequence,
        payload: Bytes,
    ) -> impl Future<Output = Result<Sequence, AppendError>> + Send;

    /// The journal's end, read from the authority (never from a follower that may lag).
    fn end(&self) -> impl Future<Output = Result<Sequence, ReadError>> + Send;

    /// What the clock of the authority shows, unix ms; `None` where it has none of its own.
    fn server_ms(&self) -> impl Future<Output = Result<Option<u64>, ReadError>> + Send {
        async { Ok(None) }
    }

    /// The commit at `sequence`, from the authority; `None` past the end.
    fn get(
        &self,
        sequence: Sequence,
    ) -> impl Future<Output = Result<Option<Stored>, ReadError>> + Send;

    /// Commits after `after` up to and including `to`, in order, without gaps; ends there.
    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>>;

    /// Commits after `after` in order, without gaps, and then each new one as it lands; never ends
    /// by itself. Reconnects by itself where it can, else yields an error and ends.
    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>>;
}
