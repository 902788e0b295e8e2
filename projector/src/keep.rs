//! One partition, for as long as this projector may keep it, again and again: the seat is taken, its journal
//! followed by both projections, and whatever ends them is answered.
//!
//! A partition that halted is tried again, ever less often: an operator may have skipped what stood there, or
//! put the journal back. Nothing here waits longer than [`LEAVE_MAX`] for a store once it is to end.

use std::{sync::Arc, time::Duration};

use futures::future::join;
use seatbelt_ledger::journal::Journal;
use seatbelt_schemas::{chain::in_one_line, names::Names, position::Partition};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    Health, Opening, Pace,
    chain::Halt,
    feed::{Feed, writer::FeedWriter},
    follow::{Complaint, Stop, pause},
    seat::{self, Asks, SEAT_PATIENCE, Seat},
    snapshots::Snapshots,
    store::SnapshotStore,
};

/// First and longest pause before a partition that halted is tried again.
const HALT_PAUSE: Duration = Duration::from_millis(500);
const HALT_PAUSE_MAX: Duration = Duration::from_secs(5);
/// One that went on for so long in between has halted anew.
const HALT_OVER: Duration = Duration::from_secs(60);
/// How long the projections of a partition may take to write what they have, once they are to end.
const LEAVE_MAX: Duration = Duration::from_secs(5);

/// What the partitions of one projector share.
pub(crate) struct Shared {
    pub(crate) names: Names,
    pub(crate) projector: String,
    pub(crate) snapshots: Arc<dyn SnapshotStore>,
    pub(crate) writer: Arc<FeedWriter>,
    pub(crate) health: Health,
    pub(crate) pace: Pace,
}

impl Shared {
    pub(crate) async fn project<J: Journal>(
        self: Arc<Self>,
        partition: Partition,
        opening: Opening<J>,
        stop: CancellationToken,
    ) -> Result<(), Halt> {
        let mut seat_patience = self.pace.seat_patience;
        let mut halts = Halts::default();
        let ended = loop {
            let asks = Asks {
                partition,
                projector: &self.projector,
                patience: seat_patience,
            };
            let Some(journal) = self.open(partition, &opening, &stop).await else {
                break halts.last();
            };
            let Some(seat) = seat::take(&*self.snapshots, &asks, &self.health, &stop).await else {
                break halts.last();
            };
            let begun = Instant::now();
            match self.keep(partition, journal, seat, &stop).await {
                Ok(()) if self.health.is_halted(partition) => break halts.last(),
                Ok(()) => break Ok(()),
                Err(Stop::Fenced) => {
                    info!(%partition, "another projector has the seat");
                    self.health.lets_go(partition);
                    seat_patience = SEAT_PATIENCE;
                    pause(&stop).await;
                }
                Err(Stop::Halted(halt)) => {
                    let reason = in_one_line(&halt);
                    self.health.halted(partition, &reason);
                    let sequence = halt.sequence();
                    if halts.met(halt, begun.elapsed()) {
                        error!(%partition, %sequence, error = reason, "partition halted");
                    }
                    halts.pause(&stop).await;
                }
            }
        };
        self.health.lets_go(partition);
        ended
    }

    /// The journal, once it is fit to be followed; `None` once `stop` is called.
    async fn open<J: Journal>(
        &self,
        partition: Partition,
        opening: &Opening<J>,
        stop: &CancellationToken,
    ) -> Option<Arc<J>> {
        let (mut complaint, mut wait) = (Complaint::default(), HALT_PAUSE);
        while !stop.is_cancelled() {
            let opened = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                opened = opening() => opened,
            };
            let reason = match opened {
                Ok(journal) => return Some(journal),
                Err(reason) => reason,
            };
            self.health.halted(partition, &reason);
            if complaint.is_due(Instant::now()) {
                error!(%partition, reason, "partition is not projected");
            }
            wait = sleep(wait, stop).await;
        }
        None
    }

    /// Both projections, until `stop`, or until one must not go on. They are not waited for without end: what
    /// they had in hand is a prefix, or is written again.
    async fn keep<J: Journal>(
        &self,
        partition: Partition,
        journal: Arc<J>,
        seat: Seat,
        stop: &CancellationToken,
    ) -> Result<(), Stop> {
        self.health.begins(partition);
        let feed = Feed::new(
            self.names.clone(),
            partition,
            Arc::clone(&journal),
            Arc::clone(&self.snapshots),
            Arc::clone(&self.writer),
        );
        let snapshots = Snapshots::new(
            journal,
            Arc::clone(&self.snapshots),
            self.projector.clone(),
            seat,
        )
        .marking(self.pace.mark_every);
        let both = stop.child_token();
        let (one, other) = (
            ending(&both, snapshots.telling(&self.health).run(&both)),
            ending(&both, feed.telling(&self.health).run(&both)),
        );
        let late = async {
            both.cancelled().await;
            tokio::time::sleep(LEAVE_MAX).await;
        };
        tokio::select! {
            ended = join(one, other) => first_stop(ended),
            () = late => {
                warn!(%partition, "the store does not answer: what was to be written last is left to the next start");
                match stop.is_cancelled() {
                    true => Ok(()),
                    false => Err(Stop::Fenced),
                }
            }
        }
    }
}

/// How often a partition halted, and where it did last.
struct Halts {
    last: Option<Halt>,
    pause: Duration,
    complaint: Complaint,
}

impl Default for Halts {
    fn default() -> Self {
        Self {
            last: None,
            pause: HALT_PAUSE,
            complaint: Complaint::default(),
        }
    }
}

impl Halts {
    /// It halted after it went on for so long; whether to tell.
    fn met(&mut self, halt: Halt, after: Duration) -> bool {
        let elsewhere = self.last.as_ref().map(Halt::sequence) != Some(halt.sequence());
        if elsewhere || after >= HALT_OVER {
            *self = Self::default();
        }
        self.last = Some(halt);
        self.complaint.is_due(Instant::now())
    }

    async fn pause(&mut self, stop: &CancellationToken) {
        self.pause = sleep(self.pause, stop).await;
    }

    fn last(self) -> Result<(), Halt> {
        self.last.map_or(Ok(()), Err)
    }
}

/// Sleeps, or until `stop`; gives how long to sleep the next time.
async fn sleep(pause: Duration, stop: &CancellationToken) -> Duration {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
    }
    (pause * 2).min(HALT_PAUSE_MAX)
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

/// A halt is worth more than a lost seat: it is what has to be told.
fn first_stop(ended: (Result<(), Stop>, Result<(), Stop>)) -> Result<(), Stop> {
    match ended {
        (Err(Stop::Halted(halt)), _) | (_, Err(Stop::Halted(halt))) => Err(Stop::Halted(halt)),
        (Err(fenced), _) | (_, Err(fenced)) => Err(fenced),
        (Ok(()), Ok(())) => Ok(()),
    }
}
