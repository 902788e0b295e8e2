//! The roles, each started and stopped in one place.
//!
//! Started in the order in which they rely on each other: NATS, projector, ledger writers, what the
//! configuration declares, neuron, gateway. Stopped the other way round, each within its own drain
//! time: the projector sees the writers' last commits. A part that ends by itself ends the process,
//! with its reason.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use seatbelt_gateway::{Cause, Gateway, GatewayError, Parts, Readiness, Reason, system_clock};
use seatbelt_ledger::{
    api::{Ledger, Neurons},
    cluster::{ClusterConfig, ClusterLedger},
    host::{HostConfig, clock::HostClock},
    nats::{self, Nats, StoreLook},
};
use seatbelt_neuron::NeuronError;
use seatbelt_projector::{
    ProjectorError, SnapshotReader,
    reconcile::{RECONCILE_GRACE, Reconcile, reconcile},
    store::NatsUsage,
};
use seatbelt_schemas::command::CommandError;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    config::{Config, Key, Neuron},
    declared::{self, DeclareError},
};

mod bus;
mod gateway;
mod neuron;
mod parts;
mod ready;
mod remote;
mod store;

use bus::Bus;
pub use bus::BusError;
use parts::Running;
pub use ready::Ready;
use remote::Remote;

/// How long our own neuron may take to be seen once it is registered.
const NEURON_SEEN_MAX: Duration = Duration::from_secs(10);
/// How long the parts may take to end once the embedded server is gone for good.
const STOP_WITHOUT_STORE_MAX: Duration = Duration::from_secs(3);
/// How often the readiness that `/health/ready` shows is looked at.
const READY_EVERY: Duration = Duration::from_millis(250);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything that is configured, with an embedded server unless `nats.url` is given.
    All,
    /// The gateway and the ledger's writers.
    Gateway,
    /// The projector.
    Projector,
    /// The neuron.
    Neuron,
}

/// Why a role did not start, or did not go on.
#[derive(Debug, Error)]
pub enum RoleError {
    /// Set `nats.url`, or run `seatbelt up`.
    #[error(
        "nats.url is missing: one role alone needs the NATS of the others; set it, or run `seatbelt up` for all roles in one process"
    )]
    NeedsUrl,
    /// Add a `[neuron]` section.
    #[error("there is no [neuron] in the configuration: add it with at least one model")]
    NoNeuron,
    /// Run `make setup`, or say where the library is.
    #[error(
        "no ONNX Runtime library found (looked at {looked}): run `make setup`, or set neuron.onnxruntime"
    )]
    NoLibrary {
        /// The places looked at.
        looked: String,
    },
    /// Another process has the port, or the address is not this machine's.
    #[error("cannot listen on {address} ({setting})")]
    Listen {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// NATS is not there, not durable, or not as the ledger relies on.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// A partition cannot be served.
    #[error("the ledger does not come up")]
    Ledger(#[source] CommandError),
    /// What the configuration declares cannot be made true.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The neuron.
    #[error("the neuron does not start")]
    Neuron(#[source] NeuronError),
    /// The gateway.
    #[error("the gateway does not serve")]
    Gateway(#[source] GatewayError),
    /// The projector.
    #[error("the projector stopped")]
    Projector(#[source] ProjectorError),
    /// A part is over that should run.
    #[error("{part} ended by itself: see the log above")]
    Ended {
        /// Which one.
        part: &'static str,
    },
    /// A defect of this program.
    #[error("{part} crashed")]
    Crashed {
        /// Which one.
        part: &'static str,
        /// How.
        #[source]
        source: tokio::task::JoinError,
    },
}

/// Runs a role until `stop`, then drains it. `announce` is called once, when it serves.
pub async fn run(
    role: Role,
    config: &Config,
    stop: CancellationToken,
    announce: impl FnOnce(&Ready),
) -> Result<(), RoleError> {
    if role != Role::All && config.nats.url.is_none() {
        return Err(RoleError::NeedsUrl);
    }
    let neuron = config.neuron.as_ref();
    if role == Role::Neuron && neuron.is_none() {
        return Err(RoleError::NoNeuron);
    }
    let mut bus = Bus::open(config).await?;
    let mut running = Running::new();
    let started = tokio::select! {
        started = start(role, config, &bus, &mut running) => started,
        // told to stop while starting: nothing is served yet
        () = stop.cancelled() => Err(None),
    };
    let outcome = match started {
        Ok(ready) => {
            announce(&ready);
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                part = running.any_ended() => Err(RoleError::Ended { part }),
                error = bus.ended() => {
                    // without a store nothing can be ended in order
                    let _ = tokio::time::timeout(STOP_WITHOUT_STORE_MAX, running.stop()).await;
                    return Err(error.into());
                }
            }
        }
        Err(None) => Ok(()),
        Err(Some(error)) => Err(error),
    };
    let stopped = running.stop().await;
    bus.close().await;
    stopped.and(outcome)
}

/// Starts what the role has; the error is `None` only for a caller that gave up.
async fn start(
    role: Role,
    config: &Config,
    bus: &Bus,
    running: &mut Running,
) -> Result<Ready, Option<RoleError>> {
    let started = async {
        let mut ready = Ready {
            nats: bus.url.clone(),
            ..Ready::default()
        };
        if matches!(role, Role::All | Role::Projector) {
            start_projector(bus, running).await?;
        }
        let listeners = match role {
            Role::All | Role::Gateway => Some(gateway::Listeners::bind(config).await?),
            Role::Projector | Role::Neuron => None,
        };
        let ledger = match listeners {
            Some(_) => Some(start_ledger(config, bus, running).await?),
            None => None,
        };
        match (&ledger, role) {
            (Some(ledger), Role::All) => {
                let ledger: Arc<dyn Ledger> = Arc::<ClusterLedger>::clone(ledger);
                start_reconcile(bus, ledger, running).await?;
            }
            (None, Role::Projector) => {
                start_reconcile(bus, Arc::new(Remote::new(bus)), running).await?;
            }
            _ => {}
        }
        if matches!(role, Role::All | Role::Neuron)
            && let Some(neuron) = &config.neuron
        {
            ready.neuron = Some(start_neuron(config, neuron, bus, running).await?);
        }
        if let (Some(listeners), Some(ledger)) = (listeners, ledger) {
            gateway::warn_of_unlimited(config);
            let gateway = gateway::url(&listeners.clients);
            ready.metrics = Some(gateway::url(&listeners.metrics));
            ready.example = ready::example(config, &gateway);
            ready.gateway = Some(gateway);
            let readiness = start_readiness(bus, &ledger, running).await?;
            let now = readiness.borrow().clone();
            ready.reasons = now.texts().into_iter().map(str::to_owned).collect();
            let parts = GatewayParts {
                listeners,
                ledger,
                neuron: ready.neuron.clone(),
                ready: readiness,
            };
            start_gateway(config, bus, parts, running).await?;
        }
        Ok(ready)
    };
    started.await.map_err(Some)
}

async fn start_projector(bus: &Bus, running: &mut Running) -> Result<(), RoleError> {
    let store = nats::snapshot_bucket(&bus.nats, &bus.names, bus.replicas).await;
    let feed = nats::FeedStream::open(&bus.nats, &bus.names, bus.replicas).await;
    let journals = bus.journals().await?.into_iter();
    let parts = seatbelt_projector::Parts {
        names: bus.names.clone(),
        projector: bus.process.clone(),
        journals: journals
            .map(|(partition, journal)| (partition, Arc::new(journal)))
            .collect(),
        snapshots: Arc::new(store.map_err(BusError::from)?),
        feed: Arc::new(feed.map_err(BusError::from)?),
    };
    let stop = CancellationToken::new();
    let has_store_for_itself = bus.data_dir.is_some();
    running.add("projector", stop.clone(), async move {
        let projected = if has_store_for_itself {
            seatbelt_projector::run_alone(parts, stop).await
        } else {
            seatbelt_projector::run(parts, stop).await
        };
        projected.map_err(RoleError::Projector)
    });
    Ok(())
}

/// Settles from usage events what a dead gateway left open: the projector's, wherever it runs.
async fn start_reconcile(
    bus: &Bus,
    ledger: Arc<dyn Ledger>,
    running: &mut Running,
) -> Result<(), RoleError> {
    let store = nats::snapshot_bucket(&bus.nats, &bus.names, bus.replicas).await;
    let parts = Reconcile {
        usage: Arc::new(NatsUsage {
            nats: bus.nats.clone(),
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

/// Takes part in the ledger, and makes true what the configuration declares.
async fn start_ledger(
    config: &Config,
    bus: &Bus,
    running: &mut Running,
) -> Result<Arc<ClusterLedger>, RoleError> {
    let host = HostConfig {
        partitions: bus.meta.partitions,
        ledger: bus.meta.ledger.clone(),
        writer: bus.process.clone(),
        expiry_grace_ms: u64::try_from(config.ledger.expiry_grace.as_millis()).unwrap_or(u64::MAX),
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
        clock: HostClock::machine().within(config.ledger.clock_skew_max),
    };
    let cluster = ClusterConfig {
        host,
        names: bus.names.clone(),
        replicas: bus.replicas,
    };
    let ledger = ClusterLedger::start(&bus.nats, cluster).await;
    let ledger = ledger.map_err(BusError::from)?;
    let (stop, writers) = (CancellationToken::new(), Arc::clone(&ledger));
    running.add("ledger", stop.clone(), async move {
        stop.cancelled().await;
        writers.stop().await;
        Ok(())
    });
    let troubled = ledger.ready().await;
    for (partition, reason) in &troubled {
        error!(%partition, reason, "partition is not served: its accounts get 503 until its journal is restored or adopted");
    }
    declared::prices(&*ledger, config.prices()).await?;
    let partitions = bus.meta.partitions;
    let served = |key: &&Key| {
        !troubled
            .iter()
            .any(|(troubled, _)| *troubled == partitions.of(&key.account))
    };
    let keys: Vec<Key> = config.keys.iter().filter(served).cloned().collect();
    let declaring: Arc<dyn Ledger> = Arc::<ClusterLedger>::clone(&ledger);
    declared::keys(declaring, &keys).await?;
    Ok(ledger)
}

async fn start_neuron(
    config: &Config,
    neuron: &Neuron,
    bus: &Bus,
    running: &mut Running,
) -> Result<String, RoleError> {
    let told = neuron::config(config, neuron, bus.neuron_secret().await?)?;
    let (client, names) = (bus.nats.client().clone(), bus.names.clone());
    let stop = CancellationToken::new();
    let started = seatbelt_neuron::start(told, Some(client), names, stop.clone()).await;
    let started = started.map_err(RoleError::Neuron)?;
    let own = format!("http://{}", started.local_addr());
    let url = neuron.url.clone().unwrap_or(own);
    running.add("neuron", stop, async move {
        started.join().await;
        Ok(())
    });
    Ok(url)
}

/// What the gateway is started with.
struct GatewayParts {
    listeners: gateway::Listeners,
    ledger: Arc<ClusterLedger>,
    /// The neuron of this process.
    neuron: Option<String>,
    ready: watch::Receiver<Readiness>,
}

async fn start_gateway(
    config: &Config,
    bus: &Bus,
    with: GatewayParts,
    running: &mut Running,
) -> Result<(), RoleError> {
    let store = nats::snapshot_bucket(&bus.nats, &bus.names, bus.replicas).await;
    let usage = nats::NatsUsageEvents::start(&bus.nats, &bus.names).await;
    let neurons = nats::watch_neurons(&bus.nats, &bus.names, bus.replicas).await;
    let neurons = neurons.map_err(BusError::from)?;
    if let Some(url) = &with.neuron {
        seen(neurons.clone(), url).await;
    }
    let stop = CancellationToken::new();
    let parts = Parts {
        ledger: Arc::<ClusterLedger>::clone(&with.ledger),
        snapshots: Arc::new(SnapshotReader::new(
            Arc::new(store.map_err(BusError::from)?),
            bus.meta.partitions,
        )),
        usage: Arc::new(usage.map_err(BusError::from)?),
        neurons,
        neuron_secret: bus.neuron_secret().await?,
        clock: system_clock(),
        ready: with.ready,
    };
    let gateway = Gateway::new(gateway::config(config), parts).map_err(RoleError::Gateway)?;
    running.add("gateway", stop.clone(), async move {
        let listeners = with.listeners;
        let served = gateway.serve(listeners.clients, listeners.metrics, stop);
        served.await.map_err(RoleError::Gateway)
    });
    Ok(())
}

/// Waits until the gateway knows the neuron of its own process, so that "ready" holds for both.
async fn seen(mut neurons: Neurons, url: &str) {
    let known = neurons.wait_for(|records| records.iter().any(|record| record.url == url));
    if tokio::time::timeout(NEURON_SEEN_MAX, known).await.is_err() {
        warn!(url, "the neuron of this process is not seen yet");
    }
}

/// Watches whether requests that cost would be let through. Stopped after the gateway, so that it is
/// honest to the end.
async fn start_readiness(
    bus: &Bus,
    ledger: &Arc<ClusterLedger>,
    running: &mut Running,
) -> Result<watch::Receiver<Readiness>, RoleError> {
    let look = StoreLook::start(&bus.nats, &bus.names, bus.replicas, &bus.process).await;
    let watched = store::Watch {
        look: look.map_err(BusError::from)?,
        data_dir: bus.data_dir.clone(),
        ledger: Arc::clone(ledger),
        revive: Arc::clone(&bus.revive),
    };
    let (nats, ledger, stop) = (
        bus.nats.clone(),
        Arc::clone(ledger),
        CancellationToken::new(),
    );
    let (told, store) = watch::channel(store::StoreState::default());
    let (sender, receiver) = watch::channel(readiness(&nats, &ledger, &store.borrow()));
    running.add("readiness", stop.clone(), async move {
        let show = async {
            while !stop.is_cancelled() {
                let now = readiness(&nats, &ledger, &store.borrow());
                sender.send_replace(now);
                tokio::time::sleep(READY_EVERY).await;
            }
        };
        futures::future::join(show, store::watch(watched, told, stop.clone())).await;
        Ok(())
    });
    Ok(receiver)
}

fn readiness(nats: &Nats, ledger: &ClusterLedger, store: &store::StoreState) -> Readiness {
    let away = (!nats.is_connected()).then(|| Reason {
        cause: Cause::Nats,
        text: "nats is not reached".to_owned(),
    });
    let unserved = ledger.unserved().into_iter();
    let unserved = unserved.map(|(partition, reason)| Reason {
        cause: Cause::Partition,
        text: format!("partition {partition} is not served: {reason}"),
    });
    let reasons = away.into_iter().chain(store.reasons.clone());
    let offsets = ledger.clock_offsets_ms().into_iter();
    Readiness {
        reasons: reasons.chain(unserved).collect(),
        warnings: store.warnings.clone(),
        room: store.room,
        clock_offsets_ms: offsets
            .map(|(partition, offset_ms)| (partition.to_string(), offset_ms))
            .collect(),
    }
}
