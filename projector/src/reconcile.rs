//! What neurons report against what the ledger holds: a reservation whose request has ended and that
//! nobody settled (its gateway died, or could not reach the ledger) is settled from the neuron's own
//! usage event; one that expired meanwhile is corrected to the truth.
//!
//! Only through the ledger, with a command id that follows from the reservation: doing it again, or
//! twice at once, changes nothing. Where it stands on the stream of usage events is kept under
//! [`RECONCILE_KEY`], and only saves work. Reservations of other upstreams have no usage events and
//! end by their deadlines.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use seatbelt_ledger::{
    api::{Ack, CommandError, Ledger, Settle},
    snapshot::{AccountSnapshot, PartitionRecord},
};
use seatbelt_schemas::{
    event::{Report, Timings, UsageSource},
    ids::{AccountId, Actor, CommandId, ReservationId},
    names::Names,
    position::Partitions,
    usage::{Outcome, UsageEvent},
    wire,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    follow::{now_ms, pause, with_sources},
    store::{Revision, SnapshotStore, StoreError, UsageStore, WriteError},
};

/// How long after its usage event a reservation is left to its gateway.
pub const RECONCILE_GRACE: Duration = Duration::from_secs(30);
/// Key of the snapshot bucket under which the place on the usage stream is kept.
pub const RECONCILE_KEY: &str = "reconcile.usage";
/// How often the place is written at most.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// Tells the ids of these settles from those of others for the same reservation.
const COMMAND_MARK: u128 = 0x5345_5454_4c45;

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
    let mut place = Place::default();
    while !shutdown.is_cancelled() {
        if let Err(error) = parts.follow(&mut place, &shutdown).await {
            warn!(error = with_sources(&error), "reconciling waits");
            pause(&shutdown).await;
        }
    }
    if let Err(error) = parts.mark(&mut place).await {
        debug!(
            error = with_sources(&error),
            "the place of reconciling was not kept"
        );
    }
}

/// How far the usage stream was gone through, and what is written about it.
struct Place {
    sequence: u64,
    revision: Revision,
    written: u64,
    written_at: Instant,
}

impl Default for Place {
    fn default() -> Self {
        Self {
            sequence: 0,
            revision: Revision(0),
            written: 0,
            written_at: Instant::now(),
        }
    }
}

impl Reconcile {
    async fn follow(&self, place: &mut Place, stop: &CancellationToken) -> Result<(), StoreError> {
        self.resume(place).await?;
        let mut events = self.events(place.sequence).await?;
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(place.written_at + MARK_EVERY), if place.written != place.sequence => {
                    self.mark(place).await?;
                    continue;
                }
                next = events.next() => next,
            };
            let Some(item) = next else { return Ok(()) };
            let (sequence, event) = item?;
            if !self.reconcile(&event, stop).await {
                return Ok(());
            }
            place.sequence = sequence;
        }
    }

    async fn events(
        &self,
        after: u64,
    ) -> Result<BoxStream<'_, Result<(u64, UsageEvent), StoreError>>, StoreError> {
        let end = self.usage.end().await?;
        if end < after {
            warn!(
                end,
                after, "the usage stream was made anew: reading it from its start"
            );
            return Ok(self.usage.follow(0));
        }
        Ok(self.usage.follow(after))
    }

    async fn resume(&self, place: &mut Place) -> Result<(), StoreError> {
        let kept = self.snapshots.read(RECONCILE_KEY).await?;
        place.revision = kept.revision;
        let mark = kept
            .value
            .map(|value| wire::decode::<Mark>("reconcile mark", &value));
        match mark {
            Some(Ok(mark)) => place.sequence = place.sequence.max(mark.sequence),
            Some(Err(error)) => {
                warn!(%error, "reconcile mark unreadable: going through all usage events");
            }
            None => {}
        }
        place.written = place.sequence;
        Ok(())
    }

    async fn mark(&self, place: &mut Place) -> Result<(), StoreError> {
        place.written_at = Instant::now();
        let mark = Mark {
            v: 1,
            sequence: place.sequence,
        };
        let value = Bytes::from(wire::encode(&mark));
        match self
            .snapshots
            .write(RECONCILE_KEY, place.revision, value)
            .await
        {
            Ok(revision) => {
                place.revision = revision;
                place.written = place.sequence;
                Ok(())
            }
            // another one goes through the same events: on from whoever is further
            Err(WriteError::Moved) => self.resume(place).await,
            Err(WriteError::Unreachable(error)) => Err(error),
        }
    }

    /// One usage event, until it is certain that its reservation has ended; false where `stop` came
    /// first.
    async fn reconcile(&self, event: &UsageEvent, stop: &CancellationToken) -> bool {
        let named = event.reservation.parse::<ReservationId>();
        let (Ok(reservation), Some(account)) = (named, &event.account) else {
            return true; // a request without a reservation
        };
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(self.left_to_gateway(event)) => {}
        }
        while !stop.is_cancelled() {
            match self.attempt(reservation, account, event).await {
                Ok(()) => return true,
                Err(error) => {
                    warn!(%reservation, error = with_sources(&*error), "reservation not reconciled yet");
                    pause(stop).await;
                }
            }
        }
        false
    }

    /// Never longer than the grace, whatever the neuron's clock says.
    fn left_to_gateway(&self, event: &UsageEvent) -> Duration {
        let ended_ago = Duration::from_millis(now_ms().saturating_sub(event.at_ms));
        self.grace.saturating_sub(ended_ago)
    }

    async fn attempt(
        &self,
        reservation: ReservationId,
        account: &AccountId,
        event: &UsageEvent,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.has_ended(reservation, account, event).await? {
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

    /// Whether a snapshot that is young enough to know says that nothing is left to do.
    async fn has_ended(
        &self,
        reservation: ReservationId,
        account: &AccountId,
        event: &UsageEvent,
    ) -> Result<bool, StoreError> {
        let partition = Names::snapshot_partition_key(self.partitions.of(account));
        let vouched = self.snapshots.read(&partition).await?.value;
        let checked_ms = vouched
            .and_then(|value| PartitionRecord::decode(&value).ok())
            .map_or(0, |record| record.checked_at_ms);
        if checked_ms < event.at_ms {
            return Ok(false); // the ledger itself knows
        }
        let snapshot = self
            .snapshots
            .read(&Names::snapshot_account_key(account))
            .await?;
        let decoded = snapshot.value.map(|value| AccountSnapshot::decode(&value));
        Ok(match decoded {
            Some(Ok(snapshot)) => {
                let state = &snapshot.state;
                !state.open().contains_key(&reservation)
                    && !state.expired().contains_key(&reservation)
            }
            Some(Err(_)) => false,
            None => true,
        })
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
        Outcome::Completed => "completed",
        Outcome::Aborted => "aborted",
        Outcome::Expired => "expired",
        Outcome::Rejected => "rejected",
        Outcome::Failed => "failed",
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
