//! NATS, ready for a ledger: the embedded server or an existing one, proved durable, with the
//! ledger's facts and everything its parts share.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use seatbelt_ledger::nats::{
    self, Nats, NatsJournal, OpenError, Witnesses, connect,
    durability::{self, DurabilityError, Proof},
    provision::{GenesisError, Layout, Meta},
    store_look::{PAYLOAD_BYTES_MIN, payload_max},
};
use seatbelt_schemas::{names::Names, neuron::signature::NeuronSecret, position::Partition};
use thiserror::Error;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use crate::{
    config::{Config, Durability},
    nats_server::{NatsServer, NatsServerError, NatsServerOptions, find_nats_server},
};

/// How long an existing server may take to be there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// How long a monitoring port may take to answer.
const MONITOR_MAX: Duration = Duration::from_secs(5);

/// How often in a row the embedded server may end right after it came up before this process ends with it.
const SHORT_LIVES_MAX: u32 = 5;
const SHORT_LIFE: Duration = Duration::from_millis(500);

/// Why there is no ledger on NATS.
#[derive(Debug, Error)]
pub enum BusError {
    /// The embedded server does not come up.
    #[error("the embedded nats-server does not start")]
    Server(#[source] NatsServerError),
    /// The embedded server does not stay up.
    #[error(
        "nats-server ended by itself {times} times, each right after it came up: see its log in nats.data_dir"
    )]
    EndsAgain {
        /// How often.
        times: u32,
    },
    /// Raise the server's bound.
    #[error(
        "{servers} takes messages of at most {found} bytes, and a commit may have {needed}: set max_payload in the server's configuration to 1MB"
    )]
    Payload {
        /// The servers, without credentials.
        servers: String,
        /// What they take.
        found: usize,
        /// What they must take.
        needed: usize,
    },
    /// The server cannot be used.
    #[error(transparent)]
    Connect(#[from] nats::ConnectError),
    /// What an acknowledgement promises is not proved.
    #[error(transparent)]
    Durability(#[from] DurabilityError),
    /// What nats.monitor_url says cannot be read.
    #[error("cannot read nats.monitor_url {url}")]
    Monitor {
        /// The address.
        url: String,
        /// Why.
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
    Provision(#[from] nats::ProvisionError),
    /// A stream or bucket does not answer.
    #[error(transparent)]
    Store(#[from] seatbelt_ledger::store::StoreError),
}

/// A connection with a ledger behind it, and the server where it is ours.
pub(super) struct Bus {
    server: Option<NatsServer>,
    /// Where people find it, without credentials.
    pub(super) url: String,
    pub(super) nats: Nats,
    pub(super) names: Names,
    pub(super) replicas: u8,
    pub(super) meta: Meta,
    /// The process, by a name for people.
    pub(super) process: String,
    /// The folder of the embedded server.
    pub(super) data_dir: Option<PathBuf>,
    /// Told when the embedded server has to be started again to go on.
    pub(super) revive: Arc<Notify>,
}

impl Bus {
    pub(super) async fn open(config: &Config) -> Result<Self, BusError> {
        let from = &config.nats;
        let server = match &from.url {
            Some(_) => None,
            None => Some(embedded(config).await?),
        };
        let url = match (&server, &from.url) {
            (Some(server), _) => server.url(),
            (None, Some(url)) => url.expose().to_owned(),
            (None, None) => unreachable!("without a url the server is embedded"),
        };
        let process = process_name();
        let nats = connect(&url, &process, CONNECT_PATIENCE).await?;
        takes_whole_commits(&nats)?;
        prove(config, &nats).await?;
        let layout = Layout {
            partitions: from.partitions,
            replicas: from.replicas,
        };
        let meta = nats::provision::provision(&nats, &from.names, layout).await?;
        info!(ledger = %meta.ledger, nats = nats.servers(), "ledger found");
        let shown = match &server {
            Some(server) => server.host_url(),
            None => format!("nats://{}", nats.servers()),
        };
        let data_dir = server.is_some().then(|| from.data_dir.clone());
        Ok(Self {
            server,
            data_dir,
            revive: Arc::default(),
            url: shown,
            nats,
            names: from.names.clone(),
            replicas: from.replicas,
            meta,
            process,
        })
    }

    /// The journals of all partitions, in order; without those in doubt, which nothing may be derived
    /// from until an operator has restored or adopted them and started this process again.
    pub(super) async fn journals(&self) -> Result<Vec<(Partition, NatsJournal)>, BusError> {
        let mut journals = Vec::new();
        for partition in self.meta.partitions.iter() {
            let witnesses = Witnesses::new(&self.nats, &self.names, partition, &self.meta.ledger);
            match witnesses.open(self.replicas, None).await {
                Ok(journal) => journals.push((partition, journal)),
                Err(OpenError::Doubt(doubt)) => {
                    error!(%partition, %doubt, "partition is not projected");
                }
                Err(other) => return Err(other.into()),
            }
        }
        Ok(journals)
    }

    /// By which neurons know the gateways of this ledger.
    pub(super) async fn neuron_secret(&self) -> Result<NeuronSecret, BusError> {
        Ok(nats::neuron_secret(&self.nats, &self.names, self.replicas).await?)
    }

    /// Keeps the embedded server up; resolves where it does not stay so, and never for an existing one.
    /// A new server goes on with what the last one left: everything acknowledged was on the disk before.
    pub(super) async fn ended(&mut self) -> BusError {
        let Some(server) = &mut self.server else {
            return std::future::pending().await;
        };
        let (mut up_since, mut short_lives) = (Instant::now(), 0);
        loop {
            tokio::select! {
                status = server.ended() => {
                    let status = status.map(|status| status.to_string());
                    error!(status, "nats-server ended by itself: it is started again");
                    short_lives = match up_since.elapsed() < SHORT_LIFE {
                        true => short_lives + 1,
                        false => 0,
                    };
                }
                () = self.revive.notified() => {}
            }
            if short_lives >= SHORT_LIVES_MAX {
                let times = short_lives;
                return BusError::EndsAgain { times };
            }
            if let Err(error) = server.restart().await {
                return BusError::Server(error);
            }
            up_since = Instant::now();
            warn!("nats-server is up again");
        }
    }

    /// Lets what was sent leave, and the embedded server end in order.
    pub(super) async fn close(self) {
        self.nats.flush().await;
        drop(self.nats);
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// A server that takes less would stop a partition at its first commit of full size.
fn takes_whole_commits(nats: &Nats) -> Result<(), BusError> {
    let (found, needed) = (payload_max(nats), PAYLOAD_BYTES_MIN);
    if found >= needed {
        return Ok(());
    }
    let servers = nats.servers().to_owned();
    Err(BusError::Payload {
        servers,
        found,
        needed,
    })
}

async fn embedded(config: &Config) -> Result<NatsServer, BusError> {
    let from = &config.nats;
    let binary = match &from.server {
        Some(path) => path.clone(),
        None => find_nats_server().map_err(BusError::Server)?,
    };
    let journals = from.partitions.iter();
    let options = NatsServerOptions {
        port: from.port,
        sync_always: from.durability == Durability::Fsync,
        protected_streams: journals
            .map(|partition| from.names.journal_stream(partition))
            .collect(),
        ..NatsServerOptions::new(binary, from.data_dir.clone())
    };
    NatsServer::start(options).await.map_err(BusError::Server)
}

async fn prove(config: &Config, nats: &Nats) -> Result<(), BusError> {
    let from = &config.nats;
    let wanted = match from.durability {
        Durability::Fsync => durability::Durability::Fsync,
        Durability::Relaxed => durability::Durability::Relaxed,
    };
    let monitor = match &from.monitor_url {
        Some(url) => vec![read_monitor(url).await?],
        None => Vec::new(),
    };
    match durability::prove(nats, wanted, from.replicas, &monitor).await? {
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
