//! Looks from outside how the projections of a ledger get on, for a process that runs none: by what they write.
//!
//! The record of a partition is written every second, used or not; the feed's mark whenever something was
//! published. Of the reason nothing is known here but that nobody writes.

use std::{sync::Arc, time::Duration};

use seatbelt_ledger::snapshot::PartitionRecord;
use seatbelt_schemas::{
    chain::in_one_line,
    names::Names,
    position::{Partition, Partitions, Position},
    wire,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Health,
    feed::FeedMark,
    health::Component,
    store::{Revision, SnapshotStore, StoreError},
};

/// How often each partition is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Why, as far as it can be known from outside.
const NOBODY: &str = "nobody has written them for a while: start a projector (`seatbelt projector`), or see the log of the one that runs";

/// Tells there how each partition gets on, until `stop`.
pub async fn watch(
    store: Arc<dyn SnapshotStore>,
    partitions: Partitions,
    health: Health,
    stop: CancellationToken,
) {
    let mut seen: Vec<_> = partitions.iter().map(Seen::of).collect();
    while !stop.is_cancelled() {
        let looks = seen.iter_mut().map(|seen| seen.look(&*store, &health));
        let looked = futures::future::join_all(looks);
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = looked => {}
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// What was there at the last look.
struct Seen {
    partition: Partition,
    record: Option<Revision>,
    mark: Option<Revision>,
}

impl Seen {
    fn of(partition: Partition) -> Self {
        Self {
            partition,
            record: None,
            mark: None,
        }
    }

    async fn look(&mut self, store: &dyn SnapshotStore, health: &Health) {
        let partition = self.partition;
        health.begins(partition);
        match self.read(store).await {
            Ok(moves) => {
                for (component, moves) in moves {
                    match moves {
                        true => health.works(partition, component),
                        false => health.waits(partition, component, NOBODY.to_owned()),
                    }
                }
            }
            Err(error) => health.both_wait(partition, &in_one_line(&error)),
        }
    }

    /// Whether each was written since the last look, or has nothing to write.
    async fn read(
        &mut self,
        store: &dyn SnapshotStore,
    ) -> Result<[(Component, bool); 2], StoreError> {
        let record = store
            .read(&Names::snapshot_partition_key(self.partition))
            .await?;
        let mark = store.read(&FeedMark::key(self.partition)).await?;
        let recorded = record
            .value
            .and_then(|value| PartitionRecord::decode(&value).ok());
        let recorded = recorded.map_or(Position(0), |record| record.head.position);
        let marked = mark
            .value
            .and_then(|value| wire::decode::<FeedMark>("feed mark", &value).ok());
        let marked = marked.map_or(Position(0), |mark| mark.published_position);
        let moves = |last: &mut Option<Revision>, now| last.replace(now) != Some(now);
        let snapshots = moves(&mut self.record, record.revision);
        let feed = moves(&mut self.mark, mark.revision) || (snapshots && marked >= recorded);
        Ok([(Component::Feed, feed), (Component::Snapshots, snapshots)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{health::STALLED_AFTER, seat::first, store::memory::MemorySnapshots};

    const P: Partition = Partition(0);

    async fn write(store: &MemorySnapshots, position: u64) {
        let mut record = first(P);
        record.head.position = Position(position);
        store.overwrite(&Names::snapshot_partition_key(P), record.encode());
        tokio::time::sleep(LOOK_EVERY).await;
    }

    fn stalled(health: &Health) -> Vec<Component> {
        let stalled = health.stalled();
        stalled.iter().map(|stalled| stalled.component).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn projections_that_nobody_writes_are_told_and_an_idle_one_is_not() {
        let (store, health) = (MemorySnapshots::default(), Health::default());
        let stop = CancellationToken::new();
        let partitions = Partitions::try_from(1).unwrap();
        let watched = watch(
            Arc::new(store.clone()),
            partitions,
            health.clone(),
            stop.clone(),
        );
        let task = tokio::spawn(watched);
        for _ in 0..5 {
            write(&store, 0).await;
        }
        assert_eq!(
            stalled(&health),
            [],
            "nothing happens, and the record is written"
        );
        for position in 1..6 {
            write(&store, position).await;
        }
        assert_eq!(stalled(&health), [Component::Feed], "the feed falls behind");
        tokio::time::sleep(STALLED_AFTER + 2 * LOOK_EVERY).await;
        assert_eq!(stalled(&health), Component::ALL);
        assert!(
            health.stalled()[1]
                .to_string()
                .contains("start a projector")
        );
        stop.cancel();
        task.await.unwrap();
    }
}
