//! The ledger of a process as it stands on NATS.

use std::{collections::BTreeMap, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use seatbelt_bus::{Bucket, Nats, ProvisionError, snapshot_bucket};
use seatbelt_schemas::{chain::in_one_line, names::Names, position::Partition};

use super::{LeaseBucket, NatsJournal, OpenError, Sighting, Witnesses};
use crate::{
    cluster::{
        ClusterLedger, ClusterPart,
        ground::{Ground, Met, Unopened},
        owed::Owed,
    },
    host::{HostConfig, bounds::Bounds},
    lease::Leases,
    store::SnapshotStore,
};

/// What the ledger of this process is made from.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// What its writers share. `host.writer` must be unique among all processes.
    pub host: HostConfig,
    /// Names of streams and subjects.
    pub names: Names,
    /// Copies of every stream.
    pub replicas: u8,
    /// What a checkpoint that is kept away from the server saw of each journal.
    pub checkpoint: BTreeMap<Partition, Sighting>,
    /// What this process has yet to declare.
    pub owed: Owed,
}

impl ClusterLedger {
    /// Begins to take part: every partition that nobody hosts will be hosted here.
    pub async fn start(nats: &Nats, config: ClusterConfig) -> Result<Arc<Self>, ProvisionError> {
        let (names, replicas) = (&config.names, config.replicas);
        let snapshots = snapshot_bucket(nats, names, replicas).await?;
        let leases = LeaseBucket::open(nats, names, replicas).await?;
        let leases = Leases::start(Arc::new(leases), &config.host.writer);
        let part = ClusterPart {
            host: config.host.clone(),
            names: names.clone(),
            bounds: Bounds::default(),
            owed: config.owed.clone(),
        };
        let ground = NatsGround {
            nats: nats.clone(),
            config: Arc::new(config),
            snapshots,
        };
        Ok(Self::take_part(&ground, &leases, &part))
    }
}

/// Journals, snapshots and requests on one NATS.
#[derive(Debug, Clone)]
struct NatsGround {
    nats: Nats,
    config: Arc<ClusterConfig>,
    snapshots: Bucket,
}

impl NatsGround {
    fn witnesses(&self, partition: Partition) -> Witnesses {
        let ClusterConfig {
            names,
            host,
            checkpoint,
            ..
        } = &*self.config;
        Witnesses::new(&self.nats, names, partition, &host.ledger)
            .and_checkpoint(checkpoint.get(&partition).copied())
    }
}

fn unopened(error: &OpenError) -> Unopened {
    match error.passes() {
        true => Unopened::Unanswered(in_one_line(error)),
        false => Unopened::Doubted(in_one_line(error)),
    }
}

impl Ground for NatsGround {
    type Journal = NatsJournal;
    type Post = Nats;

    fn open(
        &self,
        partition: Partition,
        own: Option<Met>,
    ) -> BoxFuture<'_, Result<NatsJournal, Unopened>> {
        async move {
            let by = "this process";
            let own = own.map(|(at, hash)| Sighting { by, at, hash });
            let opened = self
                .witnesses(partition)
                .open(self.config.replicas, own)
                .await;
            opened.map_err(|error| unopened(&error))
        }
        .boxed()
    }

    fn note<'a>(
        &'a self,
        partition: Partition,
        journal: &'a NatsJournal,
        last: Met,
    ) -> BoxFuture<'a, Result<(), Unopened>> {
        async move {
            let noted = self.witnesses(partition).note(journal, last).await;
            noted.map_err(|error| unopened(&error))
        }
        .boxed()
    }

    fn look<'a>(
        &'a self,
        partition: Partition,
        journal: &'a NatsJournal,
    ) -> BoxFuture<'a, Result<(), Unopened>> {
        async move {
            let heard = self.witnesses(partition).hear(journal).await;
            heard.map_err(|error| unopened(&error))
        }
        .boxed()
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.snapshots.clone())
    }

    fn post(&self) -> &Nats {
        &self.nats
    }
}
