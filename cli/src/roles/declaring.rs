//! What the configuration declares, made true at the start, and again in a partition whose journal could not be
//! gone on from: it may have been put back from before it was declared. Nothing else makes it declared again:
//! another gateway may have a newer configuration, and what is declared last is in force (ADR 0045).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use seatbelt_bus::ServerTime;
use seatbelt_gateway::Clock;
use seatbelt_ledger::{
    api::Ledger,
    cluster::{ClusterLedger, owed::Debt},
};
use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::position::{Partition, Partitions};
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
) -> Result<(), RoleError> {
    let troubled = ledger.ready().await;
    for (partition, reason) in &troubled {
        error!(%partition, reason, "partition is not served: its accounts get 503 until its journal is restored or adopted");
    }
    let declared = Declared {
        config: config.clone(),
        ledger: Arc::clone(ledger),
        time: Arc::clone(time),
        partitions: bus.meta.partitions,
    };
    let away: BTreeSet<Partition> = troubled
        .into_iter()
        .map(|(partition, _)| partition)
        .collect();
    let owed = ledger.owed().now().without(&away);
    declared
        .declare(|partition| !away.contains(&partition))
        .await?;
    ledger.owed().settle(&owed);
    let stop = CancellationToken::new();
    running.add("declarations", stop.clone(), async move {
        stop.run_until_cancelled(declared.watch()).await;
        Ok(())
    });
    Ok(())
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

    async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let back = self.back();
            if back.is_empty() {
                continue;
            }
            let partitions = back.partitions();
            let again = self.declare(|partition| partitions.contains(&partition));
            let failure = match tokio::time::timeout(AGAIN_MAX, again).await {
                Ok(Ok(())) => {
                    info!(
                        ?partitions,
                        "partitions are back: what is declared is true there again"
                    );
                    self.ledger.owed().settle(&back);
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

    /// What is owed to partitions that are served again.
    fn back(&self) -> Debt {
        let unserved = self.ledger.unserved().into_iter();
        let unserved = unserved.map(|(partition, _)| partition).collect();
        self.ledger.owed().now().without(&unserved)
    }
}
