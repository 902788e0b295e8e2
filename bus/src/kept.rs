//! A key of a bucket as it is stored, and why it could not be read or written.

use bytes::Bytes;
use thiserror::Error;

/// The bucket does not answer now: try again.
#[derive(Debug, Error)]
#[error("cannot {action}")]
pub struct StoreError {
    /// What was attempted, and on what.
    pub action: String,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    pub(crate) fn of_stream(
        verb: &str,
        stream: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            action: format!("{verb} stream {stream}"),
            source: source.into(),
        }
    }
}

/// Why nothing is known to be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The key is not at the expected revision: somebody else wrote, or an earlier try landed after
    /// all. Read again, then decide.
    #[error("somebody else wrote first")]
    Moved,
    /// It may or may not have been written.
    #[error(transparent)]
    Unreachable(#[from] StoreError),
}

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
