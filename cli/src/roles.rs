//! The roles, each started and stopped in one place.
//!
//! Started in the order in which they rely on each other: NATS, projector, ledger writers, what the
//! configuration declares, neuron, gateway. Stopped the other way round, each within its own drain
//! time: the projector sees the writers' last commits. A part that ends by itself ends the process,
//! with its reason.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use seatbelt_bus::ServerTime;
use seatbelt_gateway::{Gateway, GatewayError, Parts, Readiness};
use seatbelt_ledger::{
    api::{Ledger, Neurons},
    cluster::{ClusterLedger, owed::Owed},
    host::{HostConfig, clock::HostClock},
    nats::ClusterConfig,
};
use seatbelt_neuron::{NeuronConfig, NeuronError};
use seatbelt_projector::{Health, ProjectorError, SnapshotReader};
use seatbelt_schemas::command::CommandError;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{config::Config, declared::DeclareError};

mod bus;
mod declaring;
mod first_uses;
mod gateway;
mod models;
mod parts;
mod projector;
mod readiness;
mod ready;
mod remote;
mod store;
mod threads;
mod vital;
mod waiting;

use bus::Bus;
pub use bus::BusError;
pub(crate) use bus::{embedded_options, provision};
use parts::Running;
pub use ready::Ready;
use remote::Remote;

/// How long our own neuron may take to be seen once it is registered.
const NEURON_SEEN_MAX: Duration = Duration::from_secs(10);
/// How long all parts together may take to end, beyond the gateway's drain time.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything that is configured, with an embedded server unless `nats.url` is given.
    All,
    /// The gateway and the ledger's writers.
    Gateway,
    Projector,
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
    /// Another process has the port, or the address is not this machine's.
    #[error("cannot listen on {address} ({setting})")]
    Listen {
        setting: &'static str,
        address: SocketAddr,
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
    #[error("the neuron does not start")]
    Neuron(#[source] NeuronError),
    #[error("the gateway does not serve")]
    Gateway(#[source] GatewayError),
    #[error("the projector stopped")]
    Projector(#[source] ProjectorError),
    /// A part did not end in time and was cut off; what it had not written the next start does.
    #[error("{part} did not end in time and was cut off: see the log above")]
    Late { part: &'static str },
    /// A part is over that should run.
    #[error("{part} ended by itself: see the log above")]
    Ended { part: &'static str },
    /// A defect of this program.
    #[error("{part} crashed")]
    Crashed {
        part: &'static str,
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
    let mut bus = tokio::select! {
        opened = waiting::told("nats and what the ledger keeps there", Bus::open(config, role)) => opened?,
        // a server of our own that does not come up ends with what would have had it
        () = stop.cancelled() => return Ok(()),
    };
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
                never = bus.keep_up() => match never {},
            }
        }
        Err(None) => Ok(()),
        Err(Some(error)) => Err(error),
    };
    let stopped = running.stop(config.gateway.drain + STOP_MARGIN).await;
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
    let health = Health::default();
    let started = async {
        let mut ready = Ready {
            nats: bus.url.clone(),
            ..Ready::default()
        };
        if matches!(role, Role::All | Role::Projector) {
            projector::start(bus, &health, running).await?;
        }
        let listeners = match role {
            Role::All | Role::Gateway => Some(gateway::Listeners::bind(config).await?),
            Role::Projector | Role::Neuron => None,
        };
        let (ledger, time) = match listeners {
            Some(_) => {
                let time = start_time(bus, running).await;
                let ledger = start_ledger(config, bus, &time, running).await?;
                (Some(ledger), Some(time))
            }
            None => (None, None),
        };
        match (&ledger, role) {
            (Some(ledger), Role::All) => {
                let ledger: Arc<dyn Ledger> = Arc::<ClusterLedger>::clone(ledger);
                projector::start_reconcile(bus, ledger, running).await?;
            }
            (None, Role::Projector) => {
                projector::start_reconcile(bus, Arc::new(Remote::new(bus)), running).await?;
            }
            _ => {}
        }
        if matches!(role, Role::All | Role::Neuron)
            && let Some(neuron) = &config.neuron
        {
            ready.neuron = Some(start_neuron(config, neuron, bus, running).await?);
        }
        if let (Some(listeners), Some(ledger), Some(time)) = (listeners, ledger, time) {
            gateway::warn_of_unlimited(config);
            gateway::warn_of_unpriced_fallbacks(config);
            let gateway = gateway::url(&listeners.clients);
            ready.metrics = Some(gateway::url(&listeners.metrics));
            ready.example = ready::example(config, &gateway);
            ready.gateway = Some(gateway);
            let readiness =
                readiness::start(bus, &ledger, &time, &health, role == Role::All, running).await?;
            let now = readiness.borrow().clone();
            ready.reasons = now.texts().into_iter().map(str::to_owned).collect();
            ready.warnings = now.warnings;
            let parts = GatewayParts {
                listeners,
                ledger,
                time,
                neuron: ready.neuron.clone(),
                ready: readiness,
            };
            start_gateway(config, bus, parts, running).await?;
        }
        Ok(ready)
    };
    started.await.map_err(Some)
}

/// The time that this process's requests go by.
async fn start_time(bus: &Bus, running: &mut Running) -> Arc<ServerTime> {
    let (nats, names, partitions) = (bus.nats.clone(), bus.names.clone(), bus.meta.partitions);
    let time = ServerTime::start(&nats, &names, partitions).await;
    let (stop, followed) = (CancellationToken::new(), Arc::clone(&time));
    running.add("time", stop.clone(), async move {
        followed.follow(&nats, &stop).await;
        Ok(())
    });
    time
}

/// Takes part in the ledger, and makes true what the configuration declares.
async fn start_ledger(
    config: &Config,
    bus: &Bus,
    time: &Arc<ServerTime>,
    running: &mut Running,
) -> Result<Arc<ClusterLedger>, RoleError> {
    let host = HostConfig {
        partitions: bus.meta.partitions,
        ledger: bus.meta.ledger.clone(),
        writer: bus.process.clone(),
        expiry_grace_ms: config.ledger.expiry_grace_ms,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
        clock: HostClock::machine().within(config.ledger.clock_skew_max),
    };
    let cluster = ClusterConfig {
        host,
        names: bus.names.clone(),
        replicas: bus.replicas,
        checkpoint: bus.checkpoint.clone(),
        owed: Owed::by_who_declares(),
    };
    let ledger = ClusterLedger::start(&bus.nats, cluster).await;
    let ledger = ledger.map_err(BusError::from)?;
    let (stop, writers) = (CancellationToken::new(), Arc::clone(&ledger));
    running.add("ledger", stop.clone(), async move {
        stop.cancelled().await;
        writers.stop().await;
        Ok(())
    });
    declaring::start(config, bus, &ledger, time, running).await?;
    Ok(ledger)
}

async fn start_neuron(
    config: &Config,
    neuron: &NeuronConfig,
    bus: &Bus,
    running: &mut Running,
) -> Result<String, RoleError> {
    let secret = bus.neuron_secret().await?;
    let (nats, names) = (bus.neuron.clone(), bus.names.clone());
    let (told, stop) = (neuron.clone(), CancellationToken::new());
    let started = seatbelt_neuron::start(told, secret, Some(nats), names, stop.clone()).await;
    let started = started.map_err(RoleError::Neuron)?;
    let own = format!("http://{}", started.local_addr());
    let url = neuron.url.clone().unwrap_or(own);
    if let Some(file) = &config.file {
        models::follow(started.models(), file.clone(), stop.clone());
    }
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
    time: Arc<ServerTime>,
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
    let store = seatbelt_bus::snapshot_bucket(&bus.nats, &bus.names, bus.replicas).await;
    let usage = seatbelt_bus::NatsUsageEvents::start(&bus.nats, &bus.names).await;
    let neurons = seatbelt_bus::watch_neurons(&bus.nats, &bus.names, bus.replicas).await;
    let neurons = neurons.map_err(BusError::from)?;
    if let Some(url) = &with.neuron {
        seen(neurons.clone(), url).await;
    }
    let stop = CancellationToken::new();
    let keys = watch::channel(gateway::keys(config)?).1;
    let prices = watch::channel(gateway::prices(config)).1;
    let parts = Parts {
        keys,
        prices,
        ledger: with.ledger,
        snapshots: Arc::new(SnapshotReader::new(
            Arc::new(store.map_err(BusError::from)?),
            bus.meta.partitions,
        )),
        usage: Arc::new(usage.map_err(BusError::from)?),
        threads: threads::threads(config, bus).await?,
        first_uses: Some(first_uses::first_uses(bus)),
        neurons,
        neuron_secret: bus.neuron_secret().await?,
        clock: Arc::new(move || with.time.now_ms()),
        ready: with.ready,
    };
    let gateway = Gateway::new(gateway::told(config), parts).map_err(RoleError::Gateway)?;
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
