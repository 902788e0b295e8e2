//! The gateway as a service: its routes, its start, its orderly end.
//!
//! Takes its listeners and its shutdown as arguments. At shutdown it accepts nothing new, lets
//! requests and settles in progress end within the drain time, then cuts the rest short, which still
//! gives every reservation its one end.

use std::{
    future::IntoFuture,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, Uri},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::{any, get, post},
    serve::ListenerExt,
};
use seatbelt_ledger::api::{Ledger, Neurons, Snapshots, UsageEvents};
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;
use ulid::Ulid;

use crate::{
    Clock,
    app::{RequestId, Shared},
    config::{CONNECT_TIMEOUT, GatewayConfig},
    error::{ApiError, Case, Dialect},
    gate::{Gate, Patience},
    metrics::Metrics,
    receive::caller::Keyring,
    routes::{generate, key},
    run::USAGE_EVENT_WAIT,
    upstream::catalog::Catalog,
};

/// How long the end of requests that were cut short may take: a neuron's last report and a settle.
const CUT_MAX: Duration = Duration::from_secs(10);
const _: () = assert!(CUT_MAX.as_secs() > USAGE_EVENT_WAIT.as_secs());

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the gateway needs of the rest of the system.
pub struct Parts {
    /// The gate.
    pub ledger: Arc<dyn Ledger>,
    /// Spend for reading.
    pub snapshots: Arc<dyn Snapshots>,
    /// Usage as neurons report it.
    pub usage: Arc<dyn UsageEvents>,
    /// The neurons alive now.
    pub neurons: Neurons,
    /// The time, unix ms.
    pub clock: Clock,
    /// Why a paying request would be turned away now, shown in `/health/ready`; empty where none would.
    pub ready: watch::Receiver<Vec<String>>,
}

/// The gateway did not start, or did not go on.
#[derive(Debug, Error)]
pub enum GatewayError {
    /// Correct the configuration.
    #[error("gateway configuration has {} mistakes: {}", .0.len(), .0.join("; "))]
    Config(Vec<String>),
    /// The machine lacks something that HTTPS needs, such as root certificates.
    #[error("cannot make the HTTP client")]
    Client(#[source] reqwest::Error),
    /// A listener broke.
    #[error("cannot serve on the {which} listener")]
    Listener {
        /// Which one.
        which: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A gateway, ready to serve.
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// Checks the configuration and puts the parts together.
    pub fn new(mut config: GatewayConfig, parts: Parts) -> Result<Self, GatewayError> {
        let mistakes = config.mistakes();
        if !mistakes.is_empty() {
            return Err(GatewayError::Config(mistakes));
        }
        let metrics = Arc::new(Metrics::new());
        let tracker = TaskTracker::new();
        let patience = Patience {
            budget_wait: config.budget_wait,
            ledger_timeout: config.ledger_timeout,
            request_timeout: config.request_timeout,
        };
        let gate = Gate::new(
            parts.ledger,
            Arc::clone(&parts.clock),
            patience,
            tracker.clone(),
            Arc::clone(&metrics),
        );
        if !config.require_auth {
            tracing::warn!(
                "require_auth is off: requests without a key are forwarded and not metered"
            );
        }
        let shared = Shared {
            keyring: Keyring::new(std::mem::take(&mut config.keys), config.require_auth),
            catalog: Catalog::new(&config.upstreams, &config.neuron_models, parts.neurons),
            gate: Arc::new(gate),
            client: client(&config).map_err(GatewayError::Client)?,
            snapshots: parts.snapshots,
            usage: parts.usage,
            metrics,
            clock: parts.clock,
            slots: Arc::new(Semaphore::new(config.requests)),
            tracker,
            cut: CancellationToken::new(),
            draining: AtomicBool::new(false),
            ready: parts.ready,
            config,
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Serves until `shutdown`, then drains. The ledger must outlive this.
    pub async fn serve(
        self,
        listener: TcpListener,
        metrics: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), GatewayError> {
        let shared = self.shared;
        let metrics_stop = CancellationToken::new();
        let metrics_router = Router::new()
            .route("/metrics", get(key::metrics))
            .with_state(Arc::clone(&shared));
        let metrics_server = axum::serve(metrics, metrics_router)
            .with_graceful_shutdown(metrics_stop.clone().cancelled_owned());
        let metrics_task = tokio::spawn(metrics_server.into_future());
        let listener = listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                tracing::debug!(%error, "cannot set TCP_NODELAY on a connection");
            }
        });
        let server = axum::serve(listener, router(Arc::clone(&shared)))
            .with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let mut server_task = tokio::spawn(server.into_future());
        let early = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = &mut server_task => Some(ended),
        };
        drain(&shared, early.is_none().then_some(&mut server_task)).await;
        metrics_stop.cancel();
        // scrapes in progress are not waited for
        metrics_task.abort();
        match early {
            Some(Ok(Err(source))) => Err(GatewayError::Listener {
                which: "gateway",
                source,
            }),
            _ => Ok(()),
        }
    }
}

/// Waits for all that is in progress; after the drain time cuts it short.
async fn drain(shared: &Shared, server: Option<&mut tokio::task::JoinHandle<io::Result<()>>>) {
    shared.draining.store(true, Relaxed);
    shared.tracker.close();
    let abort = server.as_ref().map(|server| server.abort_handle());
    let all = async {
        if let Some(server) = server {
            let _ = server.await;
        }
        shared.tracker.wait().await;
    };
    tokio::pin!(all);
    if timeout(shared.config.drain, &mut all).await.is_ok() {
        return;
    }
    tracing::warn!(
        open = shared.tracker.len(),
        "drain time is over: requests in progress are cut short"
    );
    shared.cut.cancel();
    if timeout(CUT_MAX, &mut all).await.is_err() {
        tracing::error!(
            open = shared.tracker.len(),
            "some requests did not end; the ledger ends their holds by expiry"
        );
        if let Some(abort) = abort {
            abort.abort();
        }
    }
}

fn client(config: &GatewayConfig) -> reqwest::Result<reqwest::Client> {
    // whoever comes first in the process installs it; the provider is the same
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .tcp_nodelay(true)
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(config.pool_idle)
        .user_agent(concat!("seatbelt/", env!("CARGO_PKG_VERSION")))
        .build()
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate::chat_completions))
        .route("/v1/messages", post(generate::messages))
        .route("/v1/models", get(key::models))
        .route("/v1/models/{*id}", get(key::one_model))
        .route("/v1/key", get(key::key))
        .route("/health/live", get(key::live))
        .route("/health/ready", get(key::ready))
        .route("/v1/completions", any(not_served))
        .route("/v1/responses", any(not_served))
        .route("/v1/embeddings", any(not_served))
        .route("/v1/messages/count_tokens", any(not_served))
        .route("/admin/v1/{*rest}", any(not_served))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(not_found)
        .layer(from_fn_with_state(Arc::clone(&shared), observe))
        .with_state(shared)
}

/// Gives every request its id, and counts its answer by route and status.
async fn observe(State(shared): State<Arc<Shared>>, mut request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", |path| known_route(path.as_str()));
    let id = Ulid::new().to_string();
    let header = HeaderValue::try_from(&id).expect("a ULID is a valid header value");
    let span = tracing::info_span!("request", %id, route);
    request.extensions_mut().insert(RequestId(id));
    let mut response = next.run(request).instrument(span).await;
    response.headers_mut().insert(X_REQUEST_ID, header);
    shared.metrics.request(route, response.status().as_u16());
    response
}

/// The route as a label: a fixed set, whatever is asked for.
fn known_route(path: &str) -> &'static str {
    const ROUTES: [&str; 7] = [
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/models",
        "/v1/models/{*id}",
        "/v1/key",
        "/health/live",
        "/health/ready",
    ];
    ROUTES
        .into_iter()
        .find(|route| *route == path)
        .unwrap_or("other")
}

fn dialect(uri: &Uri) -> Dialect {
    match uri.path().strip_prefix("/v1/messages") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Dialect::Anthropic,
        _ => Dialect::OpenAi,
    }
}

async fn not_found(uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    let message =
        format!("there is no route {path}: see GET /v1/models and POST /v1/chat/completions");
    ApiError::new(Case::RouteNotFound, message).into_response(dialect(&uri))
}

async fn method_not_allowed(uri: Uri, request: Request) -> Response {
    let message = format!("{} does not take {}", uri.path(), request.method());
    ApiError::new(Case::MethodNotAllowed, message).into_response(dialect(&uri))
}

async fn not_served(uri: Uri) -> Response {
    let instead = match uri.path() {
        path if path.starts_with("/admin/") => {
            "declare accounts, keys and caps in the configuration file"
        }
        "/v1/messages/count_tokens" | "/v1/embeddings" => "nothing here takes its place yet",
        _ => "use POST /v1/chat/completions or POST /v1/messages",
    };
    ApiError::route_not_served(uri.path(), instead).into_response(dialect(&uri))
}
