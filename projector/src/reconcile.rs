//! What neurons report against what the ledger holds: a reservation whose request has ended and that
//! nobody settled (its gateway died, or could not reach the ledger) is settled from the neuron's own
//! usage event; one that expired meanwhile is corrected to the truth.
//!
//! Each partition by itself (`lanes`): one whose ledger does not answer keeps no other waiting. Only
//! through the ledger, with a command id that follows from the reservation: doing it again, or
//! twice at once, changes nothing. Where it stands on the stream of usage events is kept under
//! [`RECONCILE_KEY`], and only saves work. Reservations of other upstreams have no usage events and
//! end by their deadlines.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream, FuturesUnordered},
};
use seatbelt_ledger::{
    api::{Ack, CommandError, Ledger, Settle},
    snapshot::{AccountSnapshot, PartitionRecord},
};
use seatbelt_schemas::{
    chain::in_one_line,
    event::{Report, Timings, UsageSource},
    ids::{Actor, CommandId, ReservationId},
    names::Names,
    position::{Partition, Partitions},
    usage::{NeuronOutcome, UsageEvent},
    wire,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    follow::{Patience, now_ms},
    store::{Revision, SnapshotStore, StoreError, UsageStore, WriteError},
};

/// How long after its usage event was received a reservation is left to its gateway.
pub const RECONCILE_GRACE: Duration = Duration::from_secs(30);
/// Key of the snapshot bucket under which the place on the usage stream is kept.
pub const RECONCILE_KEY: &str = "reconcile.usage";
/// How often the place is written at most.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// How long the last place may take to be written.
const MARK_LAST_MAX: Duration = Duration::from_secs(2);
/// Longest sleep where nothing is due.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Tells the ids of these settles from those of others for the same reservation.
const COMMAND_MARK: u128 = 0x5345_5454_4c45;

mod lanes;

use lanes::{Lanes, Work};

/// What reconciling is made of.
pub struct Reconcile {
    /// Usage events.
    pub usage: Arc<dyn UsageStore>,
    /// Where snapshots are kept.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// How many partitions the ledger has.
    pub partitions: Partitions,
    /// The ledger, to settle what is open.
    pub ledger: Arc<dyn Ledger>,
    /// How long a reservation is left to its gateway; [`RECONCILE_GRACE`].
    pub grace: Duration,
}

/// Where it stands, MessagePack with named fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    v: u8,
    sequence: u64,
}

/// Reconciles until `shutdown`. Two at once do each other no harm.
pub async fn reconcile(parts: Reconcile, shutdown: CancellationToken) {
    let mut patience = Patience::default();
    let kept = loop {
        match parts.kept().await {
            Ok(kept) => break kept,
            Err(error) => warn!(error = in_one_line(&error), "reconciling waits"),
        }
        patience.pause(&shutdown).await;
        if shutdown.is_cancelled() {
            return;
        }
    };
    let mut running = Running {
        lanes: Lanes::new(parts.partitions, kept.sequence, parts.grace),
        reader: parts.read(kept.sequence, Duration::ZERO),
        jobs: FuturesUnordered::new(),
        patience,
        marks: Marks::new(kept),
        parts: &parts,
    };
    running.run(&shutdown).await;
    running.finish().await;
}

/// The mark as it is kept.
#[derive(Debug, Clone, Copy)]
struct KeptMark {
    sequence: u64,
    revision: Revision,
}

/// What is written of the place on the stream.
#[derive(Debug)]
struct Marks {
    kept: KeptMark,
    /// The stream was made anew: a mark that is further is none of this stream.
    anew: bool,
    writing: bool,
    next_at: Instant,
}

impl Marks {
    fn new(kept: KeptMark) -> Self {
        Self {
            kept,
            anew: false,
            writing: false,
            next_at: Instant::now() + MARK_EVERY,
        }
    }

    /// Whether a write of `place` would bring anything. Another process may go through the same
    /// events and be further.
    fn wants(&self, place: u64) -> bool {
        let further = place > self.kept.sequence || (self.anew && place != self.kept.sequence);
        further && !self.writing
    }
}

/// What the reader comes upon.
enum Step {
    /// It stands on the stream; `anew` where the stream is not the one that it knew.
    Open {
        anew: bool,
    },
    Event(u64, Arc<UsageEvent>),
}

/// What is waited for, beside the reader.
enum Done {
    Attempt(usize, Result<(), Failure>),
    Mark(u64, Result<Revision, WriteError>),
    Reread(Result<KeptMark, StoreError>),
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Reconciling, as it goes on.
struct Running<'a> {
    parts: &'a Reconcile,
    lanes: Lanes,
    reader: BoxStream<'a, Result<Step, StoreError>>,
    jobs: FuturesUnordered<BoxFuture<'a, Done>>,
    /// Of the reader.
    patience: Patience,
    marks: Marks,
}

impl Running<'_> {
    async fn run(&mut self, stop: &CancellationToken) {
        loop {
            self.begin_what_is_due();
            let wake_at = self.wake_at();
            tokio::select! {
                () = stop.cancelled() => return,
                Some(done) = self.jobs.next() => self.done(done),
                step = self.reader.next(), if self.lanes.wants() => self.step(step),
                () = tokio::time::sleep_until(wake_at) => {}
            }
        }
    }

    fn begin_what_is_due(&mut self) {
        let (now, parts) = (Instant::now(), self.parts);
        while let Some((lane, work)) = self.lanes.next_due(now) {
            let attempt = async move { Done::Attempt(lane, parts.attempt(&work).await) };
            self.jobs.push(attempt.boxed());
        }
        if let Some(to) = self.lanes.turn() {
            self.reader = parts.read(to, Duration::ZERO);
        }
        let place = self.lanes.mark();
        if now >= self.marks.next_at && self.marks.wants(place) {
            self.marks.writing = true;
            let revision = self.marks.kept.revision;
            let mark = async move { Done::Mark(place, parts.mark(revision, place).await) };
            self.jobs.push(mark.boxed());
        }
    }

    fn wake_at(&self) -> Instant {
        let mark = self.marks.wants(self.lanes.mark());
        let mark = mark.then_some(self.marks.next_at);
        let due = [self.lanes.wake_at(), mark].into_iter().flatten().min();
        due.unwrap_or_else(|| Instant::now() + SLEEP_MAX)
    }

    fn step(&mut self, step: Option<Result<Step, StoreError>>) {
        match step {
            Some(Ok(Step::Open { anew })) => {
                self.patience.renew();
                if anew {
                    warn!("the usage stream was made anew: reading it from its start");
                    self.lanes.begin_anew();
                    self.marks.anew = true;
                }
            }
            Some(Ok(Step::Event(sequence, event))) => {
                let work = self.parts.work(event);
                self.lanes.take_in(sequence, work, Instant::now());
            }
            Some(Err(error)) => {
                warn!(error = in_one_line(&error), "reconciling waits");
                self.read_again();
            }
            None => self.read_again(),
        }
    }

    fn read_again(&mut self) {
        let pause = self.patience.next();
        self.reader = self.parts.read(self.lanes.at(), pause);
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Attempt(lane, Ok(())) => self.lanes.done(lane),
            Done::Attempt(lane, Err(failure)) => {
                // told ever less often while it lasts: the pauses grow
                let error = in_one_line(&*failure);
                warn!(partition = lane, error, "usage events of a partition wait");
                self.lanes.failed(lane, Instant::now());
            }
            Done::Mark(sequence, Ok(revision)) => {
                self.marks.anew = false;
                self.marked(Ok(KeptMark { sequence, revision }));
            }
            Done::Mark(_, Err(WriteError::Unreachable(error))) => self.marked(Err(error)),
            // another one goes through the same events
            Done::Mark(_, Err(WriteError::Moved)) => {
                let parts = self.parts;
                let reread = async move { Done::Reread(parts.kept().await) };
                self.jobs.push(reread.boxed());
            }
            Done::Reread(kept) => self.marked(kept),
        }
    }

    fn marked(&mut self, kept: Result<KeptMark, StoreError>) {
        self.marks.writing = false;
        self.marks.next_at = Instant::now() + MARK_EVERY;
        match kept {
            Ok(kept) => self.marks.kept = kept,
            Err(error) => debug!(error = in_one_line(&error), "the mark was not kept"),
        }
    }

    /// Keeps the last place; what is being settled is left to whoever comes next.
    async fn finish(self) {
        let place = self.lanes.mark();
        if !self.marks.wants(place) {
            return;
        }
        let mark = self.parts.mark(self.marks.kept.revision, place);
        match tokio::time::timeout(MARK_LAST_MAX, mark).await {
            Ok(Ok(_)) => {}
            failed => debug!(?failed, "the place of reconciling was not kept"),
        }
    }
}

impl Reconcile {
    /// Reads the stream after a place, after a pause.
    fn read(&self, after: u64, pause: Duration) -> BoxStream<'_, Result<Step, StoreError>> {
        let opened = async move {
            tokio::time::sleep(pause).await;
            let anew = self.usage.end().await? < after;
            let events = self.usage.follow(if anew { 0 } else { after });
            let events = events.map_ok(|(sequence, event)| Step::Event(sequence, Arc::new(event)));
            Ok(stream::iter([Ok(Step::Open { anew })]).chain(events))
        };
        stream::once(opened).try_flatten().boxed()
    }

    async fn kept(&self) -> Result<KeptMark, StoreError> {
        let kept = self.snapshots.read(RECONCILE_KEY).await?;
        let mark = kept
            .value
            .map(|value| wire::decode::<Mark>("reconcile mark", &value));
        let sequence = match mark {
            Some(Ok(mark)) => mark.sequence,
            Some(Err(error)) => {
                warn!(%error, "reconcile mark unreadable: going through all usage events");
                0
            }
            None => 0,
        };
        let revision = kept.revision;
        Ok(KeptMark { sequence, revision })
    }

    async fn mark(&self, revision: Revision, sequence: u64) -> Result<Revision, WriteError> {
        let value = Bytes::from(wire::encode(&Mark { v: 1, sequence }));
        self.snapshots.write(RECONCILE_KEY, revision, value).await
    }

    /// What there is to do about an event, and in which partition; nothing for a request without a
    /// reservation.
    fn work(&self, event: Arc<UsageEvent>) -> Option<(Partition, Work)> {
        let reservation = event.reservation.parse::<ReservationId>().ok()?;
        let account = event.account.clone()?;
        let work = Work {
            reservation,
            account,
            event,
            received_ms: now_ms(),
        };
        Some((self.partitions.of(&work.account), work))
    }

    /// Makes certain that the reservation of one usage event has ended.
    async fn attempt(&self, work: &Work) -> Result<(), Failure> {
        let Work {
            reservation,
            account,
            event,
            ..
        } = work;
        let reservation = *reservation;
        if self.has_ended(work).await {
            return Ok(());
        }
        let settle = Settle {
            id: command_id(reservation),
            account: account.clone(),
            reservation,
            report: report(event),
            actor: Actor::system("reconcile"),
        };
        match self.ledger.settle(settle, Ack::Durable).await {
            Ok(resolution) => {
                let position = resolution.position;
                info!(%reservation, %account, %position, "settled from the neuron's usage event what nobody had settled");
            }
            Err(error @ CommandError::Unavailable { .. }) => return Err(error.into()),
            Err(CommandError::AlreadyResolved { position, .. }) => {
                debug!(%reservation, %position, "settled meanwhile");
            }
            Err(error) => {
                error!(%reservation, %account, %error, "usage that the ledger does not take");
            }
        }
        Ok(())
    }

    /// Whether a snapshot that is young enough to know says that nothing is left to do. Where there is
    /// none, or none can be read, nothing is known: the ledger itself is asked.
    async fn has_ended(&self, work: &Work) -> bool {
        let partition = Names::snapshot_partition_key(self.partitions.of(&work.account));
        let vouched = self.snapshot(&partition).await;
        let checked_ms = vouched
            .and_then(|value| PartitionRecord::decode(&value).ok())
            .map_or(0, |record| record.checked_at_ms);
        // it was reserved before it was used, and used before we heard of it, whatever the clocks say
        let at_ms = work.event.at_ms.max(work.reservation.at_ms());
        if checked_ms < at_ms.max(work.received_ms) {
            return false;
        }
        let account = Names::snapshot_account_key(&work.account);
        let Some(value) = self.snapshot(&account).await else {
            return false;
        };
        AccountSnapshot::decode(&value).is_ok_and(|snapshot| {
            let state = &snapshot.state;
            !state.open().contains_key(&work.reservation)
                && !state.expired().contains_key(&work.reservation)
        })
    }

    async fn snapshot(&self, key: &str) -> Option<Bytes> {
        match self.snapshots.read(key).await {
            Ok(kept) => kept.value,
            Err(error) => {
                debug!(key, error = in_one_line(&error), "asking the ledger");
                None
            }
        }
    }
}

/// The same for the same reservation, always.
fn command_id(reservation: ReservationId) -> CommandId {
    let random = reservation.bits() & ((1 << 80) - 1);
    CommandId::from_parts(reservation.at_ms(), random ^ COMMAND_MARK)
}

fn report(event: &UsageEvent) -> Report {
    let first_byte_ms = event.queued_ms.saturating_add(event.prefill_ms);
    let finish = match event.outcome {
        NeuronOutcome::Completed => "completed",
        NeuronOutcome::Aborted => "aborted",
        NeuronOutcome::Expired => "expired",
        NeuronOutcome::Rejected => "rejected",
        NeuronOutcome::Failed => "failed",
    };
    Report {
        usage: event.usage.into(),
        upstream: event.neuron.to_string(),
        source: UsageSource::Neuron,
        finish: Some(finish.to_owned()),
        timings: Timings {
            first_byte_ms,
            total_ms: first_byte_ms.saturating_add(event.decode_ms),
        },
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod troubled;
