//! The gateway as a service: its start, its orderly end.
//!
//! Takes its listeners and its shutdown as arguments. At shutdown it accepts nothing new, sends those
//! who only wait for room to another gateway, lets requests and settles in progress end within the drain
//! time, then cuts the rest short, which still gives every reservation its one end.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use seatbelt_connections::{ConnectionBounds, Connections};
use seatbelt_ledger::api::{Ledger, Neurons, Snapshots, UsageEvents};
use seatbelt_schemas::neuron::signature::NeuronSecret;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::App,
    clock::Clock,
    config::{CUT_MAX, CUT_MIN, GatewayConfig, KeyTable, Prices},
    gate::{Gate, Patience},
    metrics::Metrics,
    plan::Planner,
    ready::Readiness,
    receive::{Receiver, caller::Keyring, run_secret::RunSecrets},
    repeats::{FirstUseStore, Repeats},
    routes,
    run::Runner,
    threads::ThreadStore,
    upstream::{
        catalog::{Catalog, UnreadTokenizer},
        client::client,
        count::Counter,
        recipes::Recipes,
        silent,
    },
};

/// What the gateway needs of the rest of the system.
pub struct Parts {
    /// The gate.
    pub ledger: Arc<dyn Ledger>,
    /// Spend for reading.
    pub snapshots: Arc<dyn Snapshots>,
    /// Usage as neurons report it.
    pub usage: Arc<dyn UsageEvents>,
    /// Whose the responses are that upstreams keep; nothing where none keeps any.
    pub threads: Option<Arc<dyn ThreadStore>>,
    /// What clients' own keys of requests were used for; nothing where no request may be repeated.
    pub first_uses: Option<Arc<dyn FirstUseStore>>,
    /// The neurons alive now.
    pub neurons: Neurons,
    /// The keys that may be used now.
    pub keys: watch::Receiver<KeyTable>,
    /// What is shown of prices now.
    pub prices: watch::Receiver<Prices>,
    /// With it calls to neurons are signed.
    pub neuron_secret: NeuronSecret,
    /// The time, unix ms.
    pub clock: Clock,
    /// Whether paying requests would be let through now, shown in `/health/ready` and the metrics.
    pub ready: watch::Receiver<Readiness>,
}

/// The gateway did not start, or did not go on.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// Correct the configuration.
    #[error("gateway configuration has {} mistakes: {}", .0.len(), .0.join("; "))]
    Config(Vec<String>),
    /// Name a file that is one, or none.
    #[error(transparent)]
    Tokenizer(#[from] UnreadTokenizer),
    /// The machine lacks something that HTTPS needs, such as root certificates.
    #[error("cannot make the HTTP client")]
    Client(#[source] reqwest::Error),
    /// A mistake in this program ended the task that accepts connections.
    #[error("cannot accept connections any more")]
    Connections(#[source] JoinError),
}

/// A gateway, ready to serve.
pub struct Gateway {
    app: Arc<App>,
}

impl Gateway {
    /// Checks the configuration, reads the tokenizers that it names, and puts the parts together.
    pub fn new(config: GatewayConfig, parts: Parts) -> Result<Self, GatewayError> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(GatewayError::Config(mistakes));
        }
        if !config.require_auth {
            tracing::warn!(
                "require_auth is off: requests without a key are forwarded and not metered"
            );
        }
        let client = client(config.pool_idle).map_err(GatewayError::Client)?;
        let app = app(config, parts, client)?;
        Ok(Self { app: Arc::new(app) })
    }

    /// Serves until `shutdown`, then drains. The ledger must outlive this.
    pub async fn serve(
        self,
        listener: TcpListener,
        metrics: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), GatewayError> {
        let app = self.app;
        let metrics_stop = CancellationToken::new();
        let metrics_server = axum::serve(metrics, routes::metrics(Arc::clone(&app)))
            .with_graceful_shutdown(metrics_stop.clone().cancelled_owned());
        let metrics_task = tokio::spawn(metrics_server.into_future());
        let recipes = Arc::clone(&app.planner.recipes);
        tokio::spawn(recipes.follow(app.neurons.clone(), shutdown.clone()));
        let (catalog, client) = (Arc::clone(&app.catalog), app.runner.client.clone());
        tokio::spawn(silent::watch(catalog, client, shutdown.clone()));
        let table = routes::table(Arc::clone(&app));
        let connections = Connections::new(bounds(&app.config));
        let mut server = tokio::spawn(connections.serve(listener, table, shutdown.clone()));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => {}
            Err(died) = &mut server => return Err(GatewayError::Connections(died)),
        }
        drain(&app, &mut server).await;
        metrics_stop.cancel();
        // scrapes in progress are not waited for
        metrics_task.abort();
        Ok(())
    }
}

/// What the connections of clients are held to.
fn bounds(config: &GatewayConfig) -> ConnectionBounds {
    ConnectionBounds {
        connections: config.connections,
        header_timeout: config.header_timeout,
        stall_max: config.client_stall,
    }
}

/// Plans requests: inputs are counted here, or by a neuron.
fn planner(
    client: &reqwest::Client,
    secret: &NeuronSecret,
    clock: &Clock,
    catalog: &Arc<Catalog>,
    threads: Option<Arc<dyn ThreadStore>>,
    (gate, metrics): (&Arc<Gate>, &Arc<Metrics>),
) -> Arc<Planner> {
    Arc::new(Planner {
        catalog: Arc::clone(catalog),
        gate: Arc::clone(gate),
        recipes: Recipes::new(client.clone(), secret.clone(), Arc::clone(clock)),
        counter: Counter {
            client: client.clone(),
            catalog: Arc::clone(catalog),
            secret: secret.clone(),
            clock: Arc::clone(clock),
        },
        threads,
        metrics: Arc::clone(metrics),
    })
}

fn patience(config: &GatewayConfig) -> Patience {
    Patience {
        budget_wait: config.budget_wait,
        ledger_timeout: config.ledger_timeout,
        request_timeout: config.request_timeout,
    }
}

/// Puts the tools together.
fn app(
    config: GatewayConfig,
    parts: Parts,
    client: reqwest::Client,
) -> Result<App, UnreadTokenizer> {
    let of_runs = RunSecrets::new(parts.neuron_secret.clone(), Arc::clone(&parts.clock));
    let keyring = Arc::new(Keyring::new(parts.keys, config.require_auth, of_runs));
    let metrics = Arc::new(Metrics::new(config.metrics_by_key));
    let ledger = Arc::clone(&parts.ledger);
    metrics.ask_clocks(Box::new(move || ledger.clock_offsets_ms()));
    let (tracker, cut) = (TaskTracker::new(), CancellationToken::new());
    let neurons = parts.neurons.clone();
    let catalog = Catalog::new(&config.upstreams, &config.neuron_models, parts.neurons)?;
    let catalog = Arc::new(catalog);
    let patience = patience(&config);
    let gate = Arc::new(Gate::new(
        parts.ledger,
        Arc::clone(&parts.clock),
        patience,
        tracker.clone(),
        Arc::clone(&metrics),
        cut.clone(),
    ));
    let (secret, clock) = (&parts.neuron_secret, &parts.clock);
    let shared = (&gate, &metrics);
    let planner = planner(&client, secret, clock, &catalog, parts.threads, shared);
    let repeats = Arc::new(Repeats::new(parts.first_uses, &gate, clock, &tracker));
    Ok(App {
        receiver: Receiver::new(
            Arc::clone(&keyring),
            &config,
            Arc::clone(&metrics),
            cut.clone(),
        ),
        runner: Arc::new(Runner {
            planner: Arc::clone(&planner),
            repeats: Arc::clone(&repeats),
            client,
            usage: parts.usage,
            neuron_secret: parts.neuron_secret,
            catalog: Arc::clone(&catalog),
            metrics: Arc::clone(&metrics),
            clock: Arc::clone(&parts.clock),
            request_timeout: config.request_timeout,
            upstream_idle: config.upstream_idle,
            on_disconnect: config.on_disconnect,
            ping: config.ping,
            tracker: tracker.clone(),
            cut: cut.clone(),
        }),
        repeats,
        planner,
        keyring,
        prices: parts.prices,
        catalog,
        neurons,
        gate,
        snapshots: parts.snapshots,
        metrics,
        clock: parts.clock,
        tracker,
        cut,
        draining: AtomicBool::new(false),
        ready: parts.ready,
        config,
    })
}

/// Waits for all that is in progress; cuts it short in time for its settles before the drain time is over.
async fn drain(app: &App, server: &mut JoinHandle<()>) {
    app.draining.store(true, Relaxed);
    // they have nothing to lose here: nothing is held for them, and another gateway serves them sooner
    app.gate.stop_waiting();
    app.tracker.close();
    let abort = server.abort_handle();
    let all = async {
        let _ = server.await;
        app.tracker.wait().await;
    };
    tokio::pin!(all);
    let (working, ending) = parts_of_drain(app.config.drain);
    if timeout(working, &mut all).await.is_ok() {
        return;
    }
    // what is not tracked is no request yet: a body or a head that is still on its way
    let open = app.tracker.len();
    if open > 0 {
        tracing::warn!(
            open,
            "requests in progress are cut short: the drain time is nearly over"
        );
    }
    app.cut.cancel();
    if timeout(ending, &mut all).await.is_ok() {
        return;
    }
    let open = app.tracker.len();
    if open > 0 {
        tracing::error!(
            open,
            "some requests did not end; the ledger ends their holds by expiry"
        );
    }
    abort.abort();
}

/// Of the time of an orderly stop, how long requests may go on, and how long their end may take.
fn parts_of_drain(drain: Duration) -> (Duration, Duration) {
    let ending = (drain / 2).clamp(CUT_MIN, CUT_MAX);
    (drain.saturating_sub(ending), ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_within_its_drain_time() {
        for ms in [4_000, 5_000, 25_000, 600_000] {
            let drain = Duration::from_millis(ms);
            let (working, ending) = parts_of_drain(drain);
            assert_eq!(working + ending, drain);
            assert!(working >= ending);
        }
        let none = parts_of_drain(Duration::ZERO);
        assert_eq!(
            none,
            (Duration::ZERO, CUT_MIN),
            "every settle has some time"
        );
    }
}
