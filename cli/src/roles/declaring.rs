//! What the configuration declares, made true at the start, and again in a partition whose journal could not be
//! gone on from: it may have been put back from before it was declared. Nothing else makes it declared again:
//! another gateway may have a newer configuration, and what is declared last is in force (ADR 0045).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use seatbelt_bus::ServerTime;
use seatbelt_gateway::Clock;
use seatbelt_ledger::{api::Ledger, cluster::ClusterLedger};
use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::position::{Partition, Partitions};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Bus, RoleError, parts::Running};
use crate::{
    config::Config,
    declared::{self, DeclareError},
};

/// How often it is looked whether a partition is back.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long declaring again may take before it is given up until the next look.
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Waits until all partitions are served that can be, and declares; those in trouble hear of it later.
pub(super) async fn start(
    config: &Config,
    bus: &Bus,
    ledger: &Arc<ClusterLedger>,
    time: &Arc<ServerTime>,
    running: &mut Running,
) -> Result<watch::Receiver<BTreeSet<Partition>>, RoleError> {
    let troubled = ledger.ready().await;
    for (partition, reason) in &troubled {
        error!(%partition, reason, "partition is not served: its accounts get 503 until its journal is restored or adopted");
    }
    let away: BTreeSet<Partition> = troubled
        .into_iter()
        .map(|(partition, _)| partition)
        .collect();
    let declared = Declared {
        config: config.clone(),
        ledger: Arc::clone(ledger),
        time: Arc::clone(time),
        partitions: bus.meta.partitions,
    };
    let served = |partition| !away.contains(&partition);
    declared.declare(served).await?;
    let (stop, owed) = (CancellationToken::new(), Owed::of(away));
    let told = owed.0.subscribe();
    running.add("declarations", stop.clone(), async move {
        let watched = declared.watch(&owed);
        stop.run_until_cancelled(watched).await;
        Ok(())
    });
    Ok(told)
}

struct Declared {
    config: Config,
    ledger: Arc<ClusterLedger>,
    time: Arc<ServerTime>,
    partitions: Partitions,
}

impl Declared {
    /// Makes true what is declared in some partitions. Prices are every partition's.
    async fn declare(&self, in_these: impl Fn(Partition) -> bool) -> Result<(), DeclareError> {
        let time = Arc::clone(&self.time);
        let clock: Clock = Arc::new(move || time.now_ms());
        let ledger: Arc<dyn Ledger> = Arc::<ClusterLedger>::clone(&self.ledger);
        declared::prices(Arc::clone(&ledger), &clock, self.config.prices()).await?;
        let Config {
            keys,
            retired_keys,
            accounts,
            ..
        } = &self.config;
        let mut accounts = declared::by_account(keys, retired_keys, accounts);
        accounts.retain(|account, _| in_these(self.partitions.of(account)));
        declared::keys(ledger, &clock, accounts).await
    }

    async fn watch(&self, owed: &Owed) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let unserved = self.ledger.unserved().into_iter();
            let unserved = unserved.map(|(partition, _)| partition).collect();
            let back = owed.back(&unserved, &self.ledger.troubled());
            if back.is_empty() {
                continue;
            }
            let again = self.declare(|partition| back.contains(&partition));
            let failure = match tokio::time::timeout(AGAIN_MAX, again).await {
                Ok(Ok(())) => {
                    info!(partitions = ?back, "partitions are back: what is declared is true there again");
                    owed.is_over(&back);
                    continue;
                }
                Ok(Err(error)) => in_one_line(&error),
                Err(_) => "no answer in time".to_owned(),
            };
            warn!(
                failure,
                "what is declared is not true yet in partitions that came back: tried again"
            );
        }
    }
}

/// Which partitions have yet to hear what is declared: no request is let into these.
struct Owed(watch::Sender<BTreeSet<Partition>>);

impl Owed {
    /// These never heard it.
    fn of(away: BTreeSet<Partition>) -> Self {
        Self(watch::Sender::new(away))
    }

    /// The partitions that are served and have yet to hear; `troubled` are those whose journals could not be gone
    /// on from.
    fn back(
        &self,
        unserved: &BTreeSet<Partition>,
        troubled: &BTreeSet<Partition>,
    ) -> BTreeSet<Partition> {
        self.0.send_if_modified(|owed| {
            let before = owed.len();
            owed.extend(troubled);
            owed.len() > before
        });
        self.0.borrow().difference(unserved).copied().collect()
    }

    fn is_over(&self, back: &BTreeSet<Partition>) {
        self.0
            .send_modify(|owed| owed.retain(|partition| !back.contains(partition)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(1);

    #[test]
    fn who_never_heard_or_could_not_be_gone_on_from_hears_once_when_it_is_back() {
        let (none, away) = (BTreeSet::new(), BTreeSet::from([P]));
        let owed = Owed::of(away.clone());
        assert_eq!(owed.back(&away, &none), none, "not yet back");
        assert_eq!(owed.back(&none, &none), away);
        assert_eq!(owed.back(&none, &none), away, "until it has heard");
        owed.is_over(&away);
        assert_eq!(owed.back(&none, &none), none);
        // its journal is in doubt
        assert_eq!(owed.back(&away, &away), none);
        assert!(owed.0.borrow().contains(&P), "before it is served again");
        assert_eq!(owed.back(&none, &none), away);
        owed.is_over(&away);
    }

    /// Another gateway may have declared something newer meanwhile, or before.
    #[test]
    fn an_outage_however_long_makes_nobody_declare_again() {
        let (none, away) = (BTreeSet::new(), BTreeSet::from([P]));
        let owed = Owed::of(none.clone());
        for _ in 0..100 {
            assert_eq!(owed.back(&away, &none), none);
        }
        assert_eq!(owed.back(&none, &none), none);
    }
}
