//! What the configuration declares, made true at the start, and again in a partition that comes back: its
//! journal may have been put back from before it was declared.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use seatbelt_bus::ServerTime;
use seatbelt_gateway::Clock;
use seatbelt_ledger::{api::Ledger, cluster::ClusterLedger};
use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::position::{Partition, Partitions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Bus, RoleError, parts::Running};
use crate::{
    config::Config,
    declared::{self, DeclareError},
};

/// How often it is looked whether a partition is back.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a partition must have been away: what is shorter is a writer that changes, and no journal is put
/// back behind it.
const AWAY_MIN: Duration = Duration::from_secs(10);
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
    let (stop, mut absence) = (CancellationToken::new(), Absence::of(&away));
    running.add("declarations", stop.clone(), async move {
        let watched = declared.watch(&mut absence);
        stop.run_until_cancelled(watched).await;
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

    async fn watch(&self, absence: &mut Absence) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let unserved = self.ledger.unserved().into_iter();
            let unserved = unserved.map(|(partition, _)| partition).collect();
            let back = absence.back(&unserved, Instant::now());
            if back.is_empty() {
                continue;
            }
            let again = self.declare(|partition| back.contains(&partition));
            let failure = match tokio::time::timeout(AGAIN_MAX, again).await {
                Ok(Ok(())) => {
                    info!(partitions = ?back, "partitions are back: what is declared is true there again");
                    absence.is_over(&back);
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

/// Since when partitions are away, and which of them have yet to hear what is declared.
struct Absence {
    since: BTreeMap<Partition, Instant>,
    owed: BTreeSet<Partition>,
}

impl Absence {
    /// These never heard it.
    fn of(away: &BTreeSet<Partition>) -> Self {
        Self {
            since: BTreeMap::new(),
            owed: away.clone(),
        }
    }

    /// The partitions that are served again and have yet to hear.
    fn back(&mut self, unserved: &BTreeSet<Partition>, now: Instant) -> BTreeSet<Partition> {
        for partition in unserved {
            let since = *self.since.entry(*partition).or_insert(now);
            if now.saturating_duration_since(since) >= AWAY_MIN {
                self.owed.insert(*partition);
            }
        }
        self.since
            .retain(|partition, _| unserved.contains(partition));
        self.owed.difference(unserved).copied().collect()
    }

    fn is_over(&mut self, back: &BTreeSet<Partition>) {
        self.owed.retain(|partition| !back.contains(partition));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(1);

    #[test]
    fn who_never_heard_or_was_away_for_long_hears_once_when_it_is_back() {
        let (none, away) = (BTreeSet::new(), BTreeSet::from([P]));
        let (begun, after) = (Instant::now(), |s| Instant::now() + Duration::from_secs(s));
        let mut absence = Absence::of(&away);
        assert_eq!(absence.back(&away, begun), none, "not yet back");
        assert_eq!(absence.back(&none, after(1)), away);
        assert_eq!(absence.back(&none, after(2)), away, "until it has heard");
        absence.is_over(&away);
        assert_eq!(absence.back(&none, after(3)), none);
        // a writer that changes
        assert_eq!(absence.back(&away, after(4)), none);
        assert_eq!(absence.back(&none, after(6)), none);
        // an outage
        assert_eq!(absence.back(&away, after(10)), none);
        assert_eq!(absence.back(&away, after(25)), none);
        assert_eq!(absence.back(&none, after(26)), away);
    }
}
