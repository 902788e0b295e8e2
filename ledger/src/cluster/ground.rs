//! What the ledger of a process stands on, behind a trait: the journals, how they are opened and what is
//! put on record of them, the snapshots, and the way to the other processes.

use std::{fmt::Debug, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use seatbelt_schemas::{commit::ChainHash, position::Partition};
use thiserror::Error;

use crate::{
    journal::{Journal, Sequence},
    remote::post::Post,
    store::SnapshotStore,
};

/// A commit that a writer met on its journal: what a later look has to find again.
pub type Met = (Sequence, ChainHash);

/// A journal that cannot be opened; nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unopened {
    /// Nobody answered: the same may go well a moment later.
    #[error("{0}")]
    Unanswered(String),
    /// It is not what it was, or not as it must be: somebody has to see to it.
    #[error("{0}")]
    Doubted(String),
}

/// What a process stands on. Clones share it.
pub trait Ground: Clone + Debug + Send + Sync + 'static {
    /// A partition's journal.
    type Journal: Journal + Clone;
    /// The way to the other processes.
    type Post: Post + Clone;

    /// Opens a journal to append to it, if it is what anybody saw it be; `own` is what a writer of this
    /// process met on it.
    fn open(
        &self,
        partition: Partition,
        own: Option<Met>,
    ) -> BoxFuture<'_, Result<Self::Journal, Unopened>>;

    /// Puts on record how far a journal is known to go.
    fn note<'a>(
        &'a self,
        partition: Partition,
        journal: &'a Self::Journal,
        last: Met,
    ) -> BoxFuture<'a, Result<(), Unopened>>;

    /// Looks whether somebody has found since that a journal is not what it was. What cannot be asked speaks
    /// against no journal.
    fn look<'a>(
        &'a self,
        _partition: Partition,
        _journal: &'a Self::Journal,
    ) -> BoxFuture<'a, Result<(), Unopened>> {
        std::future::ready(Ok(())).boxed()
    }

    /// Where snapshots are kept.
    fn snapshots(&self) -> Arc<dyn SnapshotStore>;

    /// The way to the other processes.
    fn post(&self) -> &Self::Post;

    /// A reign is over that nobody here wanted to end, and why: for whoever watches.
    fn reign_ended(&self, _partition: Partition, _reason: &str) {}
}
