//! The bucket of requests that clients may repeat: what each of their keys was used for first.
//!
//! A first use is written where nobody wrote before, and another one over it only where that one is known to have
//! come to nothing. One that came to nothing at once is taken out again. It grows old in a day. It cannot be made again: where the bucket is lost, a request that is
//! repeated is a new one.

use std::time::Duration;

use seatbelt_schemas::{first_use::FirstUse, names::Names, wire};
use thiserror::Error;

use super::{Bucket, Nats};
use crate::kept::{Revision, StoreError, WriteError};

/// How long a request may be repeated.
pub(crate) const FIRST_USE_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// Most of them, of all accounts together: some 300 MB.
pub(crate) const FIRST_USES_MAX: i64 = 1 << 20;

/// Why it is not known what a key was used for.
#[derive(Debug, Error)]
pub enum FirstUseError {
    /// It was written by a later release, or by something else: use another key.
    #[error("what is kept of the first use under {name} cannot be read")]
    Unreadable { name: String },
    /// The bucket does not answer, is full, or is not there: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The first uses.
#[derive(Debug, Clone)]
pub struct FirstUses {
    bucket: Bucket,
}

impl FirstUses {
    /// The bucket, which is made with the ledger's other streams and by nobody that serves, whether it is there
    /// or not: most requests do without.
    pub fn at(nats: &Nats, names: &Names) -> Self {
        let bucket = Bucket::at(nats, &names.first_use_bucket());
        Self { bucket }
    }

    /// What a key was used for first, where it was and nobody took that out, and the revision that the next write
    /// expects.
    pub async fn find(&self, name: &str) -> Result<(Option<FirstUse>, Revision), FirstUseError> {
        let kept = self.bucket.read(name).await?;
        let Some(bytes) = kept.value else {
            return Ok((None, kept.revision));
        };
        let read = wire::decode::<FirstUse>("first use", &bytes).ok();
        let read = read.filter(|first| first.v == FirstUse::VERSION);
        let first = read.ok_or_else(|| FirstUseError::Unreadable {
            name: name.to_owned(),
        })?;
        Ok((Some(first), kept.revision))
    }

    /// Writes a first use, where the key is at the `expected` revision, and gives the new one; once this is done,
    /// it lasts.
    pub async fn write(
        &self,
        name: &str,
        expected: Revision,
        first: &FirstUse,
    ) -> Result<Revision, WriteError> {
        let value = wire::encode(first).into();
        self.bucket.write(name, expected, value).await
    }

    /// Takes out what was written at a revision, as if it never had been; not what somebody wrote over it. Nothing of
    /// it takes room any more.
    pub async fn take_back(&self, written: Revision) -> Result<(), StoreError> {
        self.bucket.take_back(written).await
    }
}
