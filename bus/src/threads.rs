//! The bucket of responses that upstreams keep, each bound to who may go on with it.
//!
//! A binding is written once and never changed, and grows old with what it binds. It cannot be made again: where
//! the bucket is lost, nobody goes on with what came before, and nobody gets what is another's.

use std::time::Duration;

use seatbelt_schemas::{names::Names, thread::Thread, wire};
use thiserror::Error;

use super::{Bucket, Nats, ProvisionError};
use crate::kept::{Revision, StoreError, WriteError};

/// How long upstreams keep a response.
pub(crate) const THREAD_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Why a response is not known to be bound, or to whom.
#[derive(Debug, Error)]
pub enum ThreadError {
    /// It cannot be bound: nobody may go on with it.
    #[error("a response with the id {id} cannot be bound: {why}")]
    Unbound {
        /// The id, as far as it is shown.
        id: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The bucket does not answer: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The bindings.
#[derive(Debug, Clone)]
pub struct Threads {
    bucket: Bucket,
}

impl Threads {
    /// Opens the bucket, which is made with the ledger's other streams and by nobody that serves.
    pub async fn open(nats: &Nats, names: &Names) -> Result<Self, ProvisionError> {
        let bucket = Bucket::open_existing(nats, &names.thread_bucket()).await?;
        Ok(Self { bucket })
    }

    /// Binds a response; once this is done, it lasts. The same binding may be written again.
    pub async fn bind(&self, id: &str, thread: &Thread) -> Result<(), ThreadError> {
        let unbound = |why| ThreadError::Unbound {
            id: id.chars().take(80).collect(),
            why,
        };
        let key = Thread::key(id).ok_or_else(|| unbound("it is none that can be a key"))?;
        let value = wire::encode(thread).into();
        match self.bucket.write(key, Revision(0), value).await {
            Ok(_) => Ok(()),
            Err(WriteError::Moved) if self.find(id).await?.as_ref() == Some(thread) => Ok(()),
            Err(WriteError::Moved) => Err(unbound("it is bound already")),
            Err(WriteError::Unreachable(error)) => Err(error.into()),
        }
    }

    /// To what a response is bound; nothing where it is to nothing that can be read.
    pub async fn find(&self, id: &str) -> Result<Option<Thread>, ThreadError> {
        let Some(key) = Thread::key(id) else {
            return Ok(None);
        };
        let Some(bytes) = self.bucket.read(key).await?.value else {
            return Ok(None);
        };
        let read = wire::decode::<Thread>("thread", &bytes).ok();
        Ok(read.filter(|thread| thread.v == Thread::VERSION))
    }
}
