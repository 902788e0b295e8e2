//! What is derived from the journal: snapshots for reading, and the public feed.
//!
//! Each partition is followed in order and every commit is checked before anything is made of it; a
//! gap or a broken chain halts that partition with a [`Halt`] that names the place, and leaves the
//! others running. Everything here can be thrown away and rebuilt. Nothing here decides about spend,
//! and JetStream is known to the ledger alone.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod chain;
pub mod feed;
pub mod reader;
pub mod reconcile;
pub mod snapshots;
pub mod store;

mod follow;
mod seat;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use futures::future::join;
use seatbelt_ledger::journal::Journal;
use seatbelt_schemas::{names::Names, position::Partition};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

pub use self::{chain::Halt, reader::SnapshotReader};
use self::{
    feed::{Feed, writer::FeedWriter},
    follow::{Stop, pause, with_sources},
    seat::{Asks, SEAT_PATIENCE},
    snapshots::{MARK_EVERY, Snapshots},
    store::{FeedStore, SnapshotStore},
};

/// What a projector is made of.
pub struct Parts<J> {
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
        /// The first.
        #[source]
        first: Halt,
    },
    /// A projection crashed: a defect of this program.
    #[error("a projection crashed")]
    Crashed(#[source] tokio::task::JoinError),
}

/// Projects until `shutdown`, then writes what is left and gives its seats up. A partition that halts
/// ends nothing else, not even where it is the only one: the error is told at the end. Returns early
/// only if a projection crashed.
pub async fn run<J: Journal>(
    parts: Parts<J>,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    let pace = Pace::default();
    project_all(parts, pace, shutdown).await
}

/// As [`run`], for a process that has the store for itself: whoever still has a seat is of an earlier run
/// that did not end in order, and is not waited for. Should there be another projector after all, the
/// seat changes hands once more than it had to.
pub async fn run_alone<J: Journal>(
    parts: Parts<J>,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    let pace = Pace {
        seat_patience: Duration::ZERO,
        ..Pace::default()
    };
    project_all(parts, pace, shutdown).await
}

/// As [`run`], with so many events between two marks of a partition's history: few in tests, so that short
/// stories meet some.
pub async fn run_marking<J: Journal>(
    parts: Parts<J>,
    mark_every: u64,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    let pace = Pace {
        mark_every,
        ..Pace::default()
    };
    project_all(parts, pace, shutdown).await
}

/// How long, and how often.
struct Pace {
    /// How long the holder of a seat is waited for.
    seat_patience: Duration,
    /// Events between two marks of a partition's history.
    mark_every: u64,
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
    parts: Parts<J>,
    pace: Pace,
    shutdown: CancellationToken,
) -> Result<(), ProjectorError> {
    let shared = Arc::new(Shared {
        writer: Arc::new(FeedWriter::new(parts.feed)),
        names: parts.names,
        projector: parts.projector,
        seat_patience: pace.seat_patience,
        snapshots: parts.snapshots,
        mark_every: pace.mark_every,
    });
    let shutdown = shutdown.child_token();
    let mut tasks = JoinSet::new();
    for (partition, journal) in parts.journals {
        let task = Arc::clone(&shared).project(partition, journal, shutdown.clone());
        tasks.spawn(task);
    }
    let (mut halts, mut crash) = (Vec::new(), None);
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(halt)) => halts.push(halt),
            Err(join) => {
                error!(error = with_sources(&join), "a projection crashed");
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

/// What the partitions of one projector share.
struct Shared {
    names: Names,
    projector: String,
    /// How long the seat of another is left to it.
    seat_patience: Duration,
    snapshots: Arc<dyn SnapshotStore>,
    writer: Arc<FeedWriter>,
    mark_every: u64,
}

impl Shared {
    /// One partition, for as long as this projector may keep it, again and again.
    async fn project<J: Journal>(
        self: Arc<Self>,
        partition: Partition,
        journal: Arc<J>,
        stop: CancellationToken,
    ) -> Result<(), Halt> {
        let mut seat_patience = self.seat_patience;
        loop {
            let asks = Asks {
                partition,
                projector: &self.projector,
                patience: seat_patience,
            };
            let Some(seat) = seat::take(&*self.snapshots, &asks, &stop).await else {
                return Ok(());
            };
            let feed = Feed::new(
                self.names.clone(),
                partition,
                Arc::clone(&journal),
                Arc::clone(&self.snapshots),
                Arc::clone(&self.writer),
            );
            let snapshots = Snapshots::new(
                Arc::clone(&journal),
                Arc::clone(&self.snapshots),
                self.projector.clone(),
                seat,
            )
            .marking(self.mark_every);
            let both = stop.child_token();
            let (one, other) = (
                ending(&both, snapshots.run(&both)),
                ending(&both, feed.run(&both)),
            );
            match first_stop(join(one, other).await) {
                Ok(()) => return Ok(()),
                Err(Stop::Fenced) => {
                    info!(%partition, "another projector has the seat");
                    seat_patience = SEAT_PATIENCE;
                    pause(&stop).await;
                }
                Err(Stop::Halted(halt)) => {
                    error!(%partition, sequence = %halt.sequence(), error = with_sources(&halt), "partition halted");
                    return Err(halt);
                }
            }
        }
    }
}

/// Runs one projection of a partition; when it ends, the other ends too, each writing what it has.
async fn ending(
    both: &CancellationToken,
    projection: impl Future<Output = Result<(), Stop>>,
) -> Result<(), Stop> {
    let ended = projection.await;
    both.cancel();
    ended
}

/// A halt is worth more than a lost seat: it is final.
fn first_stop(ended: (Result<(), Stop>, Result<(), Stop>)) -> Result<(), Stop> {
    match ended {
        (Err(Stop::Halted(halt)), _) | (_, Err(Stop::Halted(halt))) => Err(Stop::Halted(halt)),
        (Err(fenced), _) | (_, Err(fenced)) => Err(fenced),
        (Ok(()), Ok(())) => Ok(()),
    }
}
