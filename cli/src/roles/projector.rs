//! The projector role: both projections of every partition, and reconciling.

use std::sync::Arc;

use futures::FutureExt;
use seatbelt_ledger::{api::Ledger, nats::NatsJournal};
use seatbelt_projector::{
    Health, Opening, Projector, ProjectorParts,
    reconcile::{RECONCILE_GRACE, Reconcile, reconcile},
    store::NatsUsage,
};
use seatbelt_schemas::position::Partition;
use tokio_util::sync::CancellationToken;

use super::{Bus, BusError, RoleError, parts::Running};
use seatbelt_schemas::chain::in_one_line;

/// Starts the projector, which tells there how each partition gets on.
pub(super) async fn start(
    bus: &Bus,
    health: &Health,
    running: &mut Running,
) -> Result<(), RoleError> {
    let store = seatbelt_bus::snapshot_bucket(&bus.projector, &bus.names, bus.replicas).await;
    let feed = seatbelt_bus::FeedStream::open(&bus.projector, &bus.names, bus.replicas).await;
    let parts = ProjectorParts::<NatsJournal> {
        names: bus.names.clone(),
        projector: bus.process.clone(),
        journals: Vec::new(),
        snapshots: Arc::new(store.map_err(BusError::from)?),
        feed: Arc::new(feed.map_err(BusError::from)?),
    };
    bus.check_journals().await?;
    let mut projector = Projector::new(parts).telling(health.clone()).walking();
    for partition in bus.meta.partitions.iter() {
        projector = projector.opened_by(partition, opening(bus, partition));
    }
    if bus.data_dir.is_some() {
        projector = projector.alone();
    }
    let stop = CancellationToken::new();
    running.add("projector", stop.clone(), async move {
        projector.run(stop).await.map_err(RoleError::Projector)
    });
    Ok(())
}

/// Nothing may be derived from a journal in doubt, until an operator has restored or adopted it.
fn opening(bus: &Bus, partition: Partition) -> Opening<NatsJournal> {
    let (witnesses, replicas) = (
        Arc::new(bus.witnesses(&bus.projector, partition)),
        bus.replicas,
    );
    Arc::new(move || {
        let witnesses = Arc::clone(&witnesses);
        async move {
            let opened = witnesses.open(replicas, None).await;
            opened.map(Arc::new).map_err(|error| in_one_line(&error))
        }
        .boxed()
    })
}

/// Settles from usage events what a dead gateway left open: the projector's, wherever it runs.
pub(super) async fn start_reconcile(
    bus: &Bus,
    ledger: Arc<dyn Ledger>,
    running: &mut Running,
) -> Result<(), RoleError> {
    let store = seatbelt_bus::snapshot_bucket(&bus.projector, &bus.names, bus.replicas).await;
    let parts = Reconcile {
        usage: Arc::new(NatsUsage {
            nats: bus.projector.clone(),
            names: bus.names.clone(),
        }),
        snapshots: Arc::new(store.map_err(BusError::from)?),
        partitions: bus.meta.partitions,
        ledger,
        grace: RECONCILE_GRACE,
    };
    let stop = CancellationToken::new();
    running.add("reconcile", stop.clone(), async move {
        reconcile(parts, stop).await;
        Ok(())
    });
    Ok(())
}
