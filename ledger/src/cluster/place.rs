//! Where a partition's writer is, as this process knows, and whoever waits for that to change.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::host::PartitionHandle;

/// Where a partition's writer is.
#[derive(Debug, Clone, Default)]
pub(super) enum WriterPlace {
    /// In another process, or nowhere yet.
    #[default]
    Elsewhere,
    Here(PartitionHandle),
    /// It should be here, and its journal cannot be served: the reason.
    Unserved(String),
}

impl WriterPlace {
    /// Whether this writer is meant.
    pub(super) fn is(&self, handle: &PartitionHandle) -> bool {
        matches!(self, Self::Here(here) if here.is(handle))
    }
}

/// The place as it changes. Whoever waits wakes in the order of waiting, as behind a `watch` nobody would.
#[derive(Debug, Default)]
pub(super) struct Places {
    place: Mutex<WriterPlace>,
    moved: Notify,
}

impl Places {
    pub(super) fn now(&self) -> WriterPlace {
        self.place().clone()
    }

    pub(super) fn set(&self, place: WriterPlace) {
        *self.place() = place;
        self.moved.notify_waiters();
    }

    /// Waits until the place is one that is wanted.
    pub(super) async fn until(&self, wanted: impl Fn(&WriterPlace) -> bool) -> WriterPlace {
        loop {
            // before the look, so that no change falls between
            let moved = self.moved.notified();
            let now = self.now();
            if wanted(&now) {
                return now;
            }
            moved.await;
        }
    }

    fn place(&self) -> MutexGuard<'_, WriterPlace> {
        // no code panics while it holds the lock half way through a change
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
