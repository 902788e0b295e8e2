//! What is derived from the journal: snapshots for reading, and the public feed.
//!
//! Each partition is followed in order and every commit is checked before anything is made of it; a
//! gap or a broken chain halts that partition with a [`Halt`] that names the place, and leaves the
//! others running. One that halted is tried again, ever less often; [`Health`] says which ones stand still.
//! Everything here can be thrown away and rebuilt. Nothing here decides about spend, and what NATS is the bus
//! alone knows.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// what is derived, and from what
pub mod chain;
pub mod feed;
pub mod snapshots;

// where it is kept, and who reads it
pub mod reader;
pub mod store;
pub mod watch;

// what neurons reported, settled where nobody else does
pub mod reconcile;

// who keeps a partition's projections, and how they get on
mod follow;
pub mod health;
mod keep;
mod seat;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use seatbelt_ledger::journal::Journal;
use seatbelt_schemas::{chain::in_one_line, names::Names, position::Partition};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use self::{chain::Halt, health::Health, reader::SnapshotReader};
use self::{
    feed::{walk, writer::FeedWriter},
    keep::Shared,
    seat::SEAT_PATIENCE,
    snapshots::MARK_EVERY,
    store::{FeedStore, SnapshotStore},
};

/// What a projector is made of.
pub struct ProjectorParts<J> {
    /// Names of subjects and keys.
    pub names: Names,
    /// This projector, unique among all that run.
    pub projector: String,
    /// The journals that it follows.
    pub journals: Vec<(Partition, Arc<J>)>,
    /// Where snapshots are kept.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Where the feed is kept.
    pub feed: Arc<dyn FeedStore>,
}

/// Why a projector ended with something left undone.
#[derive(Debug, Error)]
pub enum ProjectorError {
    /// Partitions stand still until an operator acts; the first of them is told here, each was
    /// logged when it happened.
    #[error("{count} of the partitions could not be projected")]
    Halted {
        /// How many.
        count: usize,
        #[source]
        first: Halt,
    },
    /// A projection crashed: a defect of this program.
    #[error("a projection crashed")]
    Crashed(#[source] tokio::task::JoinError),
}

/// Opens a partition's journal, each time before it is begun to be followed; why not, for people.
pub type Opening<J> = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<J>, String>> + Send + Sync>;

/// A projector that is to be run.
pub struct Projector<J> {
    parts: ProjectorParts<J>,
    openings: BTreeMap<Partition, Opening<J>>,
    health: Health,
    pace: Pace,
    walks: bool,
}

impl<J: Journal> Projector<J> {
    /// Of these parts.
    pub fn new(parts: ProjectorParts<J>) -> Self {
        Self {
            parts,
            openings: BTreeMap::new(),
            health: Health::default(),
            pace: Pace::default(),
            walks: false,
        }
    }

    /// Follows a partition whose journal is opened anew each time: it may not be fit to be followed now.
    #[must_use]
    pub fn opened_by(mut self, partition: Partition, opening: Opening<J>) -> Self {
        self.openings.insert(partition, opening);
        self
    }

    /// Tells there how each partition gets on.
    #[must_use]
    pub fn telling(self, health: Health) -> Self {
        Self { health, ..self }
    }

    /// Looks through the feed as it goes, whether all of it can be read.
    #[must_use]
    pub fn walking(self) -> Self {
        Self {
            walks: true,
            ..self
        }
    }

    /// Has the store for itself: whoever still has a seat is of an earlier run that did not end in order,
    /// and is not waited for. Should there be another projector after all, the seat changes hands once
    /// more than it had to.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.pace.seat_patience = Duration::ZERO;
        self
    }

    /// With so many events between two marks of a partition's history: few in tests, so that short stories
    /// meet some.
    #[must_use]
    pub fn marking(mut self, mark_every: u64) -> Self {
        self.pace.mark_every = mark_every;
        self
    }

    /// Projects until `shutdown`, then writes what is left and gives its seats up. A partition that halts
    /// ends nothing else, not even where it is the only one: the error is told at the end, unless it could
    /// be followed again by then. Returns early only if a projection crashed.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ProjectorError> {
        let Self {
            parts,
            mut openings,
            health,
            pace,
            walks,
        } = self;
        for (partition, journal) in parts.journals {
            let open = move || -> BoxFuture<'static, Result<Arc<J>, String>> {
                let journal = Arc::clone(&journal);
                Box::pin(async move { Ok(journal) })
            };
            openings.entry(partition).or_insert_with(|| Arc::new(open));
        }
        let walking = walks.then(|| walk::walk(Arc::clone(&parts.feed), health.clone()));
        let shared = Shared {
            writer: Arc::new(FeedWriter::new(parts.feed)),
            names: parts.names,
            projector: parts.projector,
            snapshots: parts.snapshots,
            health,
            pace,
        };
        let projecting = project_all(Arc::new(shared), openings, shutdown);
        match walking {
            None => projecting.await,
            Some(walking) => tokio::select! {
                biased;
                ended = projecting => ended,
                never = walking => match never {},
            },
        }
    }
}

/// As [`Projector::run`], with nothing special.
pub async fn run<J: Journal>(
    parts: ProjectorParts<J>,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    Projector::new(parts).run(shutdown).await
}

/// As [`run`], with so many events between two marks of a partition's history.
pub async fn run_marking<J: Journal>(
    parts: ProjectorParts<J>,
    mark_every: u64,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    Projector::new(parts)
        .marking(mark_every)
        .run(shutdown)
        .await
}

/// How long, and how often.
pub(crate) struct Pace {
    /// How long the holder of a seat is waited for.
    pub(crate) seat_patience: Duration,
    /// Events between two marks of a partition's history.
    pub(crate) mark_every: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            seat_patience: SEAT_PATIENCE,
            mark_every: MARK_EVERY,
        }
    }
}

async fn project_all<J: Journal>(
    shared: Arc<Shared>,
    openings: BTreeMap<Partition, Opening<J>>,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    let shutdown = shutdown.child_token();
    let mut tasks = JoinSet::new();
    for (partition, opening) in openings {
        let task = Arc::clone(&shared).project(partition, opening, shutdown.clone());
        tasks.spawn(task);
    }
    let (mut halts, mut crash) = (Vec::new(), None);
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(halt)) => halts.push(halt),
            Err(join) => {
                error!(error = in_one_line(&join), "a projection crashed");
                shutdown.cancel();
                crash = Some(join);
            }
        }
    }
    if let Some(join) = crash {
        return Err(ProjectorError::Crashed(join));
    }
    shutdown.cancelled().await;
    let count = halts.len();
    match halts.into_iter().next() {
        Some(first) => Err(ProjectorError::Halted { count, first }),
        None => Ok(()),
    }
}
