//! Whether requests that cost would be let through, and what else an operator has to know of: put together
//! from all that watches.

use std::{sync::Arc, time::Duration};

use seatbelt_bus::{Nats, ServerTime, StoreLook};
use seatbelt_gateway::{Cause, Readiness, Reason};
use seatbelt_ledger::{api::Ledger as _, cluster::ClusterLedger};
use seatbelt_projector::{
    Health,
    health::{Component, Stalled},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Bus, BusError, RoleError, parts::Running, store, vital};

/// How often the readiness that `/health/ready` shows is looked at.
const READY_EVERY: Duration = Duration::from_millis(250);
/// A look that comes so much later than it should says that this process stood still.
const FROZEN_AFTER: Duration = Duration::from_secs(1);

/// Watches until the gateway is gone, so that it is honest to the end; `projects` where this process has the
/// projector, which tells how it gets on itself.
pub(super) async fn start(
    bus: &Bus,
    ledger: &Arc<ClusterLedger>,
    time: &Arc<ServerTime>,
    health: &Health,
    projects: bool,
    running: &mut Running,
) -> Result<watch::Receiver<Readiness>, RoleError> {
    if !projects {
        let store = seatbelt_bus::snapshot_bucket(&bus.nats, &bus.names, bus.replicas).await;
        let store = Arc::new(store.map_err(BusError::from)?);
        let (partitions, stop) = (bus.meta.partitions, CancellationToken::new());
        let watched =
            seatbelt_projector::watch::watch(store, partitions, health.clone(), stop.clone());
        running.add("projections", stop, async move {
            watched.await;
            Ok(())
        });
    }
    let look = StoreLook::start(&bus.nats, &bus.names, bus.replicas, &bus.process).await;
    let watched = store::Watch {
        look: look.map_err(BusError::from)?,
        data_dir: bus.data_dir.clone(),
        ledger: Arc::clone(ledger),
        revive: Arc::clone(&bus.revive),
    };
    let (told_store, store) = watch::channel(store::StoreState::default());
    let (told_vital, vital) = watch::channel(Vec::new());
    let known = Found {
        nats: bus.nats.clone(),
        ledger: Arc::clone(ledger),
        time: Arc::clone(time),
        server: bus.server_trouble.subscribe(),
        store,
        vital,
        health: health.clone(),
    };
    let (sender, receiver) = watch::channel(known.readiness(&known.health.stalled()));
    let (stop, vitals) = (CancellationToken::new(), bus.vitals());
    running.add("readiness", stop.clone(), async move {
        let all = futures::future::join3(
            show(known, sender, &stop),
            store::watch(watched, told_store, stop.clone()),
            vital::watch(vitals, told_vital, stop.clone()),
        );
        // large, and there is one of it
        Box::pin(all).await;
        Ok(())
    });
    Ok(receiver)
}

/// What the parts that watch have found.
struct Found {
    nats: Nats,
    ledger: Arc<ClusterLedger>,
    time: Arc<ServerTime>,
    /// Why the embedded server is not up.
    server: watch::Receiver<Option<String>>,
    store: watch::Receiver<store::StoreState>,
    /// What is wrong with META and the usage events.
    vital: watch::Receiver<Vec<String>>,
    health: Health,
}

async fn show(known: Found, sender: watch::Sender<Readiness>, stop: &CancellationToken) {
    let mut told = Vec::new();
    while !stop.is_cancelled() {
        let stalled = known.health.stalled();
        tell(&mut told, &stalled);
        sender.send_replace(known.readiness(&stalled));
        let looked_at = tokio::time::Instant::now();
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(READY_EVERY) => {}
        }
        if let Some(gap) = stood_still(looked_at.elapsed()) {
            warn!(
                ?gap,
                "this process stood still: it was stopped, or had no time of the machine"
            );
            known.health.stood_still(gap);
        }
    }
}

/// How long this process stood still, where the pause between two looks took so long.
fn stood_still(pause: Duration) -> Option<Duration> {
    let gap = pause.saturating_sub(READY_EVERY);
    (gap >= FROZEN_AFTER).then_some(gap)
}

/// Logs projections that have come to stand still, and those that get on again, each once.
fn tell(told: &mut Vec<(String, Component)>, stalled: &[Stalled]) {
    let name = |one: &Stalled| (one.partition.to_string(), one.component);
    for one in stalled.iter().filter(|one| !told.contains(&name(one))) {
        warn!(reason = %one, "a projection stands still");
    }
    let now: Vec<_> = stalled.iter().map(name).collect();
    for (partition, component) in told.iter().filter(|one| !now.contains(one)) {
        let component = component.as_str();
        info!(partition, component, "a projection gets on again");
    }
    *told = now;
}

impl Found {
    fn readiness(&self, stalled: &[Stalled]) -> Readiness {
        let server = self.server.borrow().clone();
        let away = server.or_else(|| {
            let is_away = !self.nats.is_connected();
            is_away.then(|| "nats is not reached".to_owned())
        });
        let away = away.map(|text| Reason {
            cause: Cause::Nats,
            text,
        });
        let unserved = self.ledger.unserved().into_iter();
        let unserved = unserved.map(|(partition, reason)| Reason {
            cause: Cause::Partition,
            text: format!("partition {partition} is not served: {reason}"),
        });
        let store = self.store.borrow();
        let reasons = away.into_iter().chain(store.reasons.clone());
        let reasons: Vec<Reason> = reasons.chain(unserved).collect();
        let mut warnings = store.warnings.clone();
        warnings.extend(self.vital.borrow().iter().cloned());
        warnings.extend(self.time.warning());
        // a journal in doubt is a reason already, in the same words
        let known = |one: &&Stalled| {
            let mut unserved = reasons.iter().filter(|one| one.cause == Cause::Partition);
            unserved.any(|reason| reason.text.ends_with(&one.reason))
        };
        let others = stalled.iter().filter(|one| !known(one));
        warnings.extend(others.map(Stalled::to_string));
        let offsets = self.ledger.clock_offsets_ms().into_iter();
        let count = |component| {
            stalled
                .iter()
                .filter(|one| one.component == component)
                .count()
        };
        Readiness {
            reasons,
            warnings,
            room: store.room,
            clock_offsets_ms: offsets
                .map(|(partition, offset_ms)| (partition.to_string(), offset_ms))
                .collect(),
            stalled: Component::ALL
                .map(|one| (one.as_str(), count(one)))
                .to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pause_that_is_far_too_long_says_that_the_process_stood_still() {
        assert_eq!(stood_still(READY_EVERY), None);
        assert_eq!(stood_still(READY_EVERY * 3), None);
        let long = READY_EVERY + Duration::from_secs(20);
        assert_eq!(stood_still(long), Some(Duration::from_secs(20)));
    }
}
