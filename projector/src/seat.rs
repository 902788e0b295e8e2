//! Who keeps a partition's projections: the projector named in the partition record.
//!
//! The seat only avoids duels. What keeps two projectors from harming each other is that every write
//! is conditional on what the writer last saw; no clock of another machine is believed.

use std::time::Duration;

use seatbelt_ledger::snapshot::{History, PartitionRecord, RECORD_VERSION};
use seatbelt_schemas::{chain::in_one_line, names::Names, position::Partition};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    Health,
    chain::Tail,
    follow::{Complaint, pause},
    snapshots::RECORD_REFRESH_EVERY,
    store::{Revision, SnapshotStore, StoreError, WriteError},
};

/// How long a partition record may stay unchanged before another projector takes the seat.
pub(crate) const SEAT_PATIENCE: Duration = Duration::from_millis(2500);

const _: () = assert!(
    SEAT_PATIENCE.as_millis() >= 2 * RECORD_REFRESH_EVERY.as_millis(),
    "one late refresh must not cost the seat"
);

/// The right to write, for as long as the record stays at `revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) record: PartitionRecord,
    pub(crate) revision: Revision,
}

/// Who asks for which seat.
pub(crate) struct Asks<'a> {
    pub(crate) partition: Partition,
    pub(crate) projector: &'a str,
    /// How long a record of another may stay unchanged; [`SEAT_PATIENCE`], unless there is no other.
    pub(crate) patience: Duration,
}

/// Waits until this projector has the seat; `None` once `stop` is called.
pub(crate) async fn take(
    store: &dyn SnapshotStore,
    asks: &Asks<'_>,
    health: &Health,
    stop: &CancellationToken,
) -> Option<Seat> {
    let partition = asks.partition;
    let mut seen = (None, Instant::now());
    let mut complaint = Complaint::default();
    while !stop.is_cancelled() {
        match attempt(store, asks, &mut seen).await {
            Ok(Some(seat)) => {
                let position = seat.record.head.position;
                info!(%partition, %position, "keeps the projections");
                return Some(seat);
            }
            Ok(None) => health.lets_go(partition),
            Err(error) => {
                if !health.is_halted(partition) {
                    health.both_wait(partition, &in_one_line(&error));
                }
                if complaint.is_due(Instant::now()) {
                    warn!(%partition, error = in_one_line(&error), "projector waits");
                }
            }
        }
        pause(stop).await;
    }
    None
}

async fn attempt(
    store: &dyn SnapshotStore,
    asks: &Asks<'_>,
    seen: &mut (Option<Revision>, Instant),
) -> Result<Option<Seat>, StoreError> {
    let Asks {
        partition,
        projector,
        patience,
    } = *asks;
    let kept = store
        .read(&Names::snapshot_partition_key(partition))
        .await?;
    let revision = kept.revision;
    let found = kept.value.and_then(|value| readable(partition, &value));
    let holder = found
        .as_ref()
        .and_then(|record| record.projector.as_deref());
    if seen.0 != Some(revision) {
        *seen = (Some(revision), Instant::now());
    }
    let free = holder.is_none_or(|holder| holder == projector);
    if !free && seen.1.elapsed() < patience {
        return Ok(None);
    }
    let mut record = found.unwrap_or_else(|| first(partition));
    record.projector = Some(projector.to_owned());
    let key = Names::snapshot_partition_key(partition);
    match store.write(&key, revision, record.encode()).await {
        Ok(revision) => Ok(Some(Seat { record, revision })),
        Err(WriteError::Moved) => Ok(None),
        Err(WriteError::Unreachable(error)) => Err(error),
    }
}

/// The record of a partition that nobody has projected yet.
pub(crate) fn first(partition: Partition) -> PartitionRecord {
    let Tail { sequence, head } = Tail::start(partition);
    PartitionRecord {
        v: RECORD_VERSION,
        projector: None,
        sequence: sequence.0,
        head,
        checked_at_ms: 0,
        history: History::default(),
        open: Some(Vec::new()),
        directory: None,
    }
}

/// The record, unless it cannot be read: then all is projected again from the journal's start.
fn readable(partition: Partition, value: &[u8]) -> Option<PartitionRecord> {
    match PartitionRecord::decode(value) {
        Ok(record) if record.head.partition == partition => Some(record),
        Ok(record) => {
            let found = record.head.partition;
            warn!(%partition, %found, "partition record of another partition: projecting again from the start");
            None
        }
        Err(error) => {
            warn!(%partition, %error, "partition record unreadable: projecting again from the start");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemorySnapshots;

    const P: Partition = Partition(0);

    /// How long it takes to get the seat of a projector that was killed.
    async fn takes(patience: Duration) -> Duration {
        let store = MemorySnapshots::default();
        let mut record = first(P);
        record.projector = Some("killed".to_owned());
        store.overwrite(&Names::snapshot_partition_key(P), record.encode());
        let asks = Asks {
            partition: P,
            projector: "next",
            patience,
        };
        let begun = Instant::now();
        let seat = take(&store, &asks, &Health::default(), &CancellationToken::new()).await;
        assert_eq!(seat.unwrap().record.projector.as_deref(), Some("next"));
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_seat_of_one_that_was_killed_is_taken_once_it_stays_unchanged() {
        assert!(takes(SEAT_PATIENCE).await >= SEAT_PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_alone_takes_the_seat_of_an_earlier_run_at_once() {
        assert!(takes(Duration::ZERO).await < Duration::from_millis(100));
    }
}
