//! NATS, ready for a ledger: the embedded server or an existing one, proved durable, with the
//! ledger's facts and everything its parts share.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use seatbelt_bus::{
    Durability, Nats, NatsRole,
    durability::{self, DurabilityError, Proof},
    provision::{self, GenesisError, Layout, Meta, meta_of},
    store_look::{PayloadTooSmall, takes_whole_commits},
    vital::Vitals,
};
use seatbelt_ledger::nats::{self, OpenError, Sighting, Witnesses};
use seatbelt_schemas::chain::in_one_line;
use seatbelt_schemas::{
    ids::LedgerId,
    names::Names,
    neuron::signature::NeuronSecret,
    position::{Partition, Partitions},
};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tracing::{error, info, warn};

use crate::{
    audit::{AuditError, checkpoint::Checkpoint},
    config::{self, Config},
    login::{DialError, Dialler},
    nats_server::{
        LedgerOf, NatsServer, NatsServerError, NatsServerOptions, find_nats_server, nats_server_at,
    },
};

use super::Role;

/// How long an existing server may take to be there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// How long a monitoring port may take to answer.
const MONITOR_MAX: Duration = Duration::from_secs(5);

/// First and longest pause before the embedded server is started again that did not come up, or did not
/// stay so.
const RESTART_PAUSE: Duration = Duration::from_millis(250);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// One that ends sooner did not stay up.
const SHORT_LIFE: Duration = Duration::from_secs(2);

/// Why there is no ledger on NATS.
#[derive(Debug, Error)]
pub enum BusError {
    /// Name a checkpoint of this ledger, or none.
    #[error("cannot go by nats.checkpoint")]
    Checkpoint(#[source] Box<AuditError>),
    /// The server keeps another ledger than the checkpoint saw.
    #[error(
        "nats.checkpoint {} is of ledger {seen}, but the server keeps ledger {found}: restore the right one; where META was lost, `seatbelt ledger rebuild-meta` makes it again from the journals",
        .path.display()
    )]
    OtherLedger {
        /// The file.
        path: PathBuf,
        /// The ledger that it saw.
        seen: LedgerId,
        /// The ledger that is there.
        found: LedgerId,
    },
    /// The embedded server does not come up.
    #[error("the embedded nats-server does not start")]
    Server(#[source] NatsServerError),
    /// The server does not take whole commits.
    #[error(transparent)]
    Payload(#[from] PayloadTooSmall),
    /// The server cannot be used.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// What an acknowledgement promises is not proved.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
    /// What nats.monitor_url says cannot be read.
    #[error("cannot read nats.monitor_url {url}")]
    Monitor {
        /// The address.
        url: String,
        #[source]
        source: reqwest::Error,
    },
    /// The ledger's own facts, streams and buckets.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// A journal cannot be opened.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// A stream or bucket cannot be used.
    #[error(transparent)]
    Provision(#[from] seatbelt_bus::ProvisionError),
    /// A stream or bucket does not answer.
    #[error(transparent)]
    Store(#[from] seatbelt_ledger::store::StoreError),
}

/// A connection with a ledger behind it, and the server where it is ours.
pub(super) struct Bus {
    server: Option<NatsServer>,
    /// Where people find it, without credentials.
    pub(super) url: String,
    /// As the gateway; as the one role of a process that has no gateway.
    pub(super) nats: Nats,
    /// As the projector, where this process is one.
    pub(super) projector: Nats,
    /// As the neuron, where this process is one.
    pub(super) neuron: Nats,
    pub(super) names: Names,
    pub(super) replicas: u8,
    pub(super) meta: Meta,
    /// The process, by a name for people.
    pub(super) process: String,
    /// The folder of the embedded server.
    pub(super) data_dir: Option<PathBuf>,
    /// Told when the embedded server has to be started again to go on.
    pub(super) revive: Arc<Notify>,
    /// Why the embedded server is not up now.
    pub(super) server_trouble: watch::Sender<Option<String>>,
    /// What the file of nats.checkpoint saw of each journal.
    pub(super) checkpoint: Seen,
}

impl Bus {
    pub(super) async fn open(config: &Config, role: Role) -> Result<Self, BusError> {
        let from = &config.nats;
        let server = match &from.url {
            Some(_) => None,
            None => Some(embedded(config).await?),
        };
        let process = process_name();
        let mut dialler = Dialler::new(from, server.as_ref(), &process, CONNECT_PATIENCE);
        let first = match role {
            Role::All | Role::Gateway => NatsRole::Gateway,
            Role::Projector => NatsRole::Projector,
            Role::Neuron => NatsRole::Neuron,
        };
        let (meta, checkpoint) = find_ledger(config, &mut dialler, first).await?;
        let nats = dialler.of(first).await?;
        let (projector, neuron) = match (role, &config.neuron) {
            (Role::All, Some(_)) => (
                dialler.of(NatsRole::Projector).await?,
                dialler.of(NatsRole::Neuron).await?,
            ),
            (Role::All, None) => (dialler.of(NatsRole::Projector).await?, nats.clone()),
            _ => (nats.clone(), nats.clone()),
        };
        drop(dialler);
        let shown = match &server {
            Some(server) => server.host_url(),
            None => format!("nats://{}", nats.servers()),
        };
        let data_dir = server.is_some().then(|| from.data_dir.clone());
        Ok(Self {
            server,
            data_dir,
            revive: Arc::default(),
            server_trouble: watch::Sender::default(),
            checkpoint,
            url: shown,
            nats,
            projector,
            neuron,
            names: from.names.clone(),
            replicas: from.replicas,
            meta,
            process,
        })
    }

    /// Makes sure that the journals of all partitions can be used, but for those in doubt: nothing may be
    /// derived from these until an operator has restored or adopted them.
    pub(super) async fn check_journals(&self) -> Result<(), BusError> {
        for partition in self.meta.partitions.iter() {
            match self
                .witnesses(&self.projector, partition)
                .open(self.replicas, None)
                .await
            {
                Ok(_) | Err(OpenError::Doubt(_)) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    /// Who has seen something of a journal.
    pub(super) fn witnesses(&self, nats: &Nats, partition: Partition) -> Witnesses {
        let checkpoint = self.checkpoint.get(&partition).copied();
        Witnesses::new(nats, &self.names, partition, &self.meta.ledger).and_checkpoint(checkpoint)
    }

    /// What no start may find missing.
    pub(super) fn vitals(&self) -> Vitals {
        Vitals::new(&self.nats, &self.names, self.replicas, &self.meta)
    }

    /// By which neurons know the gateways of this ledger.
    pub(super) async fn neuron_secret(&self) -> Result<NeuronSecret, BusError> {
        Ok(seatbelt_bus::neuron_secret(&self.nats, &self.names).await?)
    }

    /// Keeps the embedded server up for as long as this process lives; there is nothing to do for an existing
    /// one. A new server goes on with what the last one left: everything acknowledged was on the disk before.
    /// One that does not come up, as on a full disk, is tried again: what ails it may be cured.
    pub(super) async fn keep_up(&mut self) -> Infallible {
        let Some(server) = &mut self.server else {
            return std::future::pending().await;
        };
        let mut restarts = Restarts::default();
        loop {
            let up_since = Instant::now();
            tokio::select! {
                status = server.ended() => {
                    let status = status.map(|status| status.to_string());
                    error!(status, "nats-server ended by itself: it is started again");
                    restarts.lived(up_since.elapsed());
                }
                () = self.revive.notified() => {}
            }
            loop {
                self.server_trouble.send_if_modified(|told| {
                    let first = told.is_none();
                    told.get_or_insert_with(|| "nats-server is being started again".to_owned());
                    first
                });
                tokio::time::sleep(restarts.pause()).await;
                let Err(failure) = server.restart().await else {
                    break;
                };
                let reason = in_one_line(&failure);
                error!(reason, "nats-server does not come up: it is tried again");
                // the log has the server's own last words
                let reason = reason.lines().next().unwrap_or_default();
                let told = format!("nats-server does not come up and is tried again: {reason}");
                self.server_trouble.send_replace(Some(told));
                restarts.failed();
            }
            self.server_trouble.send_replace(None);
            warn!("nats-server is up again");
        }
    }

    /// Lets what was sent leave, and the embedded server end in order.
    pub(super) async fn close(self) {
        let all = [self.neuron, self.projector, self.nats];
        // together: each waits some seconds for a server that is gone
        futures::future::join_all(all.iter().map(Nats::flush)).await;
        drop(all);
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// What a checkpoint away from the server saw of each journal.
type Seen = BTreeMap<Partition, Sighting>;

/// The ledger's facts and what the checkpoint saw of its journals. Makes what is missing, where this process
/// may; `first` is who it is otherwise.
async fn find_ledger(
    config: &Config,
    dialler: &mut Dialler<'_>,
    first: NatsRole,
) -> Result<(Meta, Seen), BusError> {
    let from = &config.nats;
    let provisions = dialler.provisions();
    let nats = match provisions {
        true => dialler.of(NatsRole::Provisioning).await?,
        false => dialler.of(first).await?,
    };
    takes_whole_commits(&nats)?;
    prove(config, &nats).await?;
    // nobody else appends to a journal, or may ask how it is kept
    if first == NatsRole::Gateway {
        durability::check_copies(&nats, &from.names, from.partitions, from.replicas).await?;
    }
    let meta = match provisions {
        true => make_facts(from, &nats).await?,
        false => meta_of(&nats, &from.names, from.partitions).await?,
    };
    info!(ledger = %meta.ledger, nats = nats.servers(), "ledger found");
    let seen = match &from.checkpoint {
        Some(path) => checkpoint_of(path, &meta)?,
        None => Seen::new(),
    };
    if provisions {
        begin_journals(from, &nats, &meta, &seen).await?;
    }
    Ok((meta, seen))
}

/// Makes what is missing on the server, and gives the ledger's facts.
pub(crate) async fn provision(from: &config::NatsConfig, nats: &Nats) -> Result<Meta, BusError> {
    let meta = make_facts(from, nats).await?;
    let seen = match &from.checkpoint {
        Some(path) => checkpoint_of(path, &meta)?,
        None => Seen::new(),
    };
    begin_journals(from, nats, &meta, &seen).await?;
    Ok(meta)
}

async fn make_facts(from: &config::NatsConfig, nats: &Nats) -> Result<Meta, GenesisError> {
    let layout = Layout {
        partitions: from.partitions,
        replicas: from.replicas,
    };
    provision::provision(nats, &from.names, layout).await
}

async fn begin_journals(
    from: &config::NatsConfig,
    nats: &Nats,
    meta: &Meta,
    seen: &Seen,
) -> Result<(), GenesisError> {
    nats::begin_journals(nats, &from.names, meta, from.replicas, seen).await
}

/// What a checkpoint saw of each journal of this ledger.
fn checkpoint_of(path: &Path, meta: &Meta) -> Result<Seen, BusError> {
    let read = Checkpoint::read(path);
    let checkpoint = read.map_err(|error| BusError::Checkpoint(Box::new(error)))?;
    if *checkpoint.ledger() != meta.ledger {
        return Err(BusError::OtherLedger {
            path: path.to_owned(),
            seen: checkpoint.ledger().clone(),
            found: meta.ledger.clone(),
        });
    }
    Ok(checkpoint.known())
}

/// How long to wait before the server is started again: not at all, unless it failed before.
#[derive(Default)]
struct Restarts(Option<Duration>);

impl Restarts {
    fn lived(&mut self, life: Duration) {
        match life < SHORT_LIFE {
            true => self.failed(),
            false => self.0 = None,
        }
    }

    fn failed(&mut self) {
        let longer = self.0.map_or(RESTART_PAUSE, |pause| pause * 2);
        self.0 = Some(longer.min(RESTART_PAUSE_MAX));
    }

    fn pause(&self) -> Duration {
        self.0.unwrap_or_default()
    }
}

async fn embedded(config: &Config) -> Result<NatsServer, BusError> {
    let options =
        embedded_options(&config.nats, config.nats.partitions).map_err(BusError::Server)?;
    NatsServer::start(options).await.map_err(BusError::Server)
}

/// The server of a ledger that has none outside.
pub(crate) fn embedded_options(
    from: &config::NatsConfig,
    partitions: Partitions,
) -> Result<NatsServerOptions, NatsServerError> {
    let binary = match &from.server {
        Some(path) => nats_server_at(path)?,
        None => find_nats_server()?,
    };
    let journals = partitions.iter();
    Ok(NatsServerOptions {
        port: from.port,
        sync_always: from.durability == Durability::Fsync,
        memory_bytes: from.server_memory_bytes,
        protected_streams: journals
            .map(|partition| from.names.journal_stream(partition))
            .collect(),
        ledger: Some(LedgerOf {
            names: from.names.clone(),
            partitions,
        }),
        ..NatsServerOptions::new(binary, from.data_dir.clone())
    })
}

async fn prove(config: &Config, nats: &Nats) -> Result<(), BusError> {
    let from = &config.nats;
    let monitor = match &from.monitor_url {
        Some(url) => vec![read_monitor(url).await?],
        None => Vec::new(),
    };
    match durability::prove(nats, from.durability, from.replicas, &monitor).await? {
        Proof::Synced => info!("durable: the server syncs before it acknowledges"),
        Proof::Replicated(copies) => info!(copies, "durable: acknowledged by a majority"),
        Proof::Relaxed => {
            warn!("nats.durability is \"relaxed\": a power failure may lose what was acknowledged");
        }
    }
    Ok(())
}

async fn read_monitor(base: &str) -> Result<String, BusError> {
    let url = format!("{}/varz", base.trim_end_matches('/'));
    let read = async {
        // whoever comes first in the process installs it; the provider is the same
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(MONITOR_MAX)
            .build()?;
        let answer = client.get(&url).send().await?.error_for_status()?;
        answer.text().await
    };
    read.await
        .map_err(|source: reqwest::Error| BusError::Monitor {
            url: base.to_owned(),
            source: source.without_url(),
        })
}

/// A name for people that no other process has: leases are held under it.
fn process_name() -> String {
    let mut random = [0; 4];
    getrandom::fill(&mut random).expect("the system gives random bytes");
    format!("seatbelt-{}-{}", std::process::id(), hex::encode(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_stay_up_is_started_again_ever_later() {
        let mut restarts = Restarts::default();
        let mut pauses = Vec::new();
        for life_s in [100, 0, 0, 1, 0, 0, 0, 0, 100] {
            restarts.lived(Duration::from_secs(life_s));
            pauses.push(restarts.pause().as_millis());
        }
        let grow = [0, 250, 500, 1000, 2000, 4000, 8000, 10_000, 0];
        assert_eq!(pauses, grow);
    }
}
