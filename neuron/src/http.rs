//! The neuron over HTTP, in the OpenAI dialect.
//!
//! | route | what |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions` | an answer, whole or as server-sent events |
//! | `POST /v1/embeddings` | a vector for each text, of a model that is an encoder |
//! | `POST /tokenize` | `{"input_tokens", "context", "output"}` of the same body; runs nothing, reports nothing |
//! | `POST /limit` | more output is held for a request that runs; says how much it has written |
//! | `POST /recipe` | the tokenizer and chat template of this name, by which gateways count |
//! | `GET /v1/models`, `/v1/models/{id}`, `/models` | the models with their limits, and whether they are loaded |
//! | `POST /models/load`, `/models/unload` | takes a model into memory, or out of it; the body is `{"model": NAME}` |
//! | `GET /health/live`, `/health/ready`, `/metrics` | for machines |
//!
//! All but `/models`, health and metrics is for the gateways of its deployment alone, each reservation
//! once (`access`), unless the neuron is configured as open. Models are loaded and unloaded by those, and by who has the
//! admin token. Every answer to a generation carries
//! `x-request-id`; its usage is reported before its last byte is sent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use seatbelt_bus::{Twin, Unseen};
use seatbelt_schemas::neuron::{NeuronModel, PATH_LIMIT, PATH_RECIPE};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

pub(crate) use self::{
    access::Used, doubts::Doubts, embeddings::Embeds, limit::Growing, served::Served,
    shaping::Shaping,
};
use self::{
    admin::{PATH_LOAD, PATH_UNLOAD},
    error::ErrorAnswer,
    request::Dialect,
};
use crate::{
    clock::SharedTime,
    config::{Access, AdminToken},
    engine::Engine,
    metrics::{self, Gauge},
    seat::Status,
    shelf::{Failed, Roster, Shelf},
    usage::TicketOffice,
};

mod access;
mod admin;
mod answer;
mod doubts;
mod embeddings;
mod error;
mod generate;
mod headers;
mod limit;
mod recipe;
mod request;
mod served;
mod shaping;
mod tokenize;
mod way;

/// Everything a handler needs.
pub(crate) struct App {
    pub(crate) access: Access,
    /// Loads and unloads models by name.
    pub(crate) admin: Option<AdminToken>,
    /// What deadlines are told in.
    pub(crate) time: SharedTime,
    pub(crate) used: Used,
    pub(crate) growing: Growing,
    pub(crate) doubts: Doubts,
    /// What an operator was told at the start.
    pub(crate) notices: Vec<String>,
    /// Whether another neuron registers under the same id, and whether gateways see this one; none where nothing
    /// is registered.
    pub(crate) registered: Option<(Twin, Unseen)>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) office: TicketOffice,
    /// Places for work on large bodies.
    pub(crate) aside: Arc<Semaphore>,
    pub(crate) shaping: Shaping,
    pub(crate) draining: AtomicBool,
    pub(crate) since_s: u64,
}

impl App {
    /// A model that writes.
    fn served(&self, name: &str) -> Result<Arc<Served>, ErrorAnswer> {
        let roster = self.shelf.roster();
        let mut served = roster.served.iter();
        let found = served.find(|served| served.id.as_str() == name);
        found.cloned().ok_or_else(|| absent(&roster, name))
    }

    /// A model that gives vectors.
    fn embeds(&self, name: &str) -> Result<Arc<Embeds>, ErrorAnswer> {
        let roster = self.shelf.roster();
        let mut embedders = roster.embedders.iter();
        let found = embedders.find(|embeds| embeds.id.as_str() == name);
        let writes = || {
            roster
                .served
                .iter()
                .any(|served| served.id.as_str() == name)
        };
        found.cloned().ok_or_else(|| match writes() {
            true => ErrorAnswer::no_embeddings(),
            false => absent(&roster, name),
        })
    }

    /// Why no request for any model can be taken now, if so.
    fn closed(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Acquire) {
            return Some("the neuron is stopping");
        }
        (!self.office.outbox.open_for_requests()).then_some("usage cannot be recorded now")
    }

    /// Every model as gateways are told of it.
    pub(crate) fn records(&self) -> Vec<NeuronModel> {
        let (closed, roster) = (self.closed(), self.shelf.roster());
        let served = roster.served.iter();
        let served = served.map(|served| served.record(closed.or_else(|| served.closed())));
        let embedders = roster.embedders.iter();
        let embedders = embedders.map(|embeds| embeds.record(closed.or_else(|| embeds.closed())));
        served.chain(embedders).collect()
    }
}

/// What is said of a model that does not do what is asked for.
fn absent(roster: &Roster, name: &str) -> ErrorAnswer {
    let embeds = |embeds: &Arc<Embeds>| embeds.id.as_str() == name;
    if roster.embedders.iter().any(embeds) {
        return ErrorAnswer::embeddings_alone(name);
    }
    let failed = |failed: &Failed| failed.config.id.as_str() == name;
    match roster.failed.iter().any(failed) {
        true => ErrorAnswer::model_failed(name),
        false => ErrorAnswer::unknown_model(name),
    }
}

/// The routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/tokenize", post(tokenize::tokenize))
        .route(PATH_RECIPE, post(recipe::recipe))
        .route(PATH_LIMIT, post(limit::limit))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/models", get(all_models))
        .route(PATH_LOAD, post(admin::load))
        .route(PATH_UNLOAD, post(admin::unload))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(&app), access::guard))
        .with_state(app)
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    generate::serve(&app, Dialect::Chat, request).await
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Response {
    generate::serve(&app, Dialect::Completion, request).await
}

async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Response {
    embeddings::serve(&app, request).await
}

/// What clients may ask for.
async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": data(&app) }))
}

/// The same, and what is configured but not to be had.
async fn all_models(State(app): State<Arc<App>>) -> Json<Value> {
    let mut data = data(&app);
    let roster = app.shelf.roster();
    data.extend(roster.failed.iter().map(|failed| {
        json!({ "id": failed.config.id, "object": "model", "created": app.since_s, "owned_by": "seatbelt",
            "state": "failed", "reason": failed.reason })
    }));
    Json(json!({ "object": "list", "data": data }))
}

fn data(app: &App) -> Vec<Value> {
    let roster = app.shelf.roster();
    let served = roster.served.iter().map(|served| served.json(app.since_s));
    let embedders = roster.embedders.iter();
    let embedders = embedders.map(|embeds| embeds.json(app.since_s));
    served.chain(embedders).collect()
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match (app.served(&id), app.embeds(&id)) {
        (Ok(served), _) => Json(served.json(app.since_s)).into_response(),
        (Err(_), Ok(embeds)) => Json(embeds.json(app.since_s)).into_response(),
        (Err(absent), Err(_)) => absent.into_response(),
    }
}

/// An engine that broke down may come back by itself; whoever asks again and again and still hears no,
/// starts the process anew.
async fn live(State(app): State<Arc<App>>) -> Response {
    let residents = app.shelf.roster().residents();
    let broken = residents.iter().find(|one| one.status().is_broken());
    match broken {
        None => Json(json!({ "status": "live" })).into_response(),
        Some(one) => unavailable(&json!({
            "status": "not live", "model": one.id(), "reason": one.status().closed()
        })),
    }
}

fn unavailable(body: &Value) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let residents = app.shelf.roster().residents();
    let closed = residents
        .iter()
        .map(|one| app.closed().or_else(|| one.status().closed()));
    match closed.min().flatten() {
        None => {
            let mut ready = json!({ "status": "ready" });
            let warnings = warnings(&app);
            if !warnings.is_empty() {
                ready["warnings"] = json!(warnings);
            }
            Json(ready).into_response()
        }
        Some(reason) => unavailable(&json!({ "status": "not ready", "reason": reason })),
    }
}

/// What an operator should look at although the neuron serves.
fn warnings(app: &App) -> Vec<String> {
    let roster = app.shelf.roster();
    let failed = roster.failed.iter().map(|failed| failed.reason.clone());
    let closed = roster.residents().into_iter().filter_map(|one| {
        let (id, status) = (one.id(), one.status());
        match status {
            Status::Ready | Status::Loading | Status::Unloaded(None) => None,
            Status::Failed { reason, .. } => Some(reason),
            Status::Unloaded(Some(why)) => Some(format!("model {id} is not loaded: {why}")),
            Status::Broken | Status::Stuck => Some(format!("model {id}: {}", status.closed()?)),
        }
    });
    let doubts = app.doubts.warnings(Instant::now());
    let doubts = doubts.into_iter().map(str::to_owned);
    let registered = app.registered.as_ref();
    let twin = registered.and_then(|(twin, _)| twin.warning());
    let unseen = registered.and_then(|(_, unseen)| unseen.warning());
    let found = failed.chain(closed).chain(app.notices.iter().cloned());
    let found = found.chain(app.time.warning()).chain(twin).chain(unseen);
    found.chain(doubts).collect()
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let roster = app.shelf.roster();
    let up: Vec<(&Served, Option<Arc<Engine>>)> = (roster.served.iter())
        .map(|served| (&**served, served.seat.up()))
        .collect();
    let per_model = |value: fn(&Engine) -> usize| -> Vec<(&str, usize)> {
        let value = |engine: &Option<Arc<Engine>>| engine.as_deref().map_or(0, value);
        up.iter()
            .map(|(served, engine)| (served.id.as_str(), value(engine)))
            .collect()
    };
    let held = |served: &Served| served.slots() * served.context();
    let gauges = [
        Gauge {
            name: "seatbelt_neuron_active",
            help: "Requests in slots.",
            values: per_model(Engine::active),
        },
        Gauge {
            name: "seatbelt_neuron_queued",
            help: "Requests waiting for a slot.",
            values: per_model(Engine::queued),
        },
        Gauge {
            name: "seatbelt_neuron_cache_tokens",
            help: "Tokens in the caches of requests in slots.",
            values: per_model(Engine::cached),
        },
        Gauge {
            name: "seatbelt_neuron_cache_tokens_max",
            help: "Tokens that the caches hold.",
            values: (up.iter())
                .map(|(served, engine)| {
                    (
                        served.id.as_str(),
                        engine.as_ref().map_or(0, |_| held(served)),
                    )
                })
                .collect(),
        },
        Gauge {
            name: "seatbelt_neuron_usage_pending",
            help: "Requests under way and usage events not yet published.",
            values: vec![("", app.office.outbox.waiting())],
        },
    ];
    (
        [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
        app.office.metrics.render(&gauges),
    )
}

async fn no_route() -> Response {
    ErrorAnswer::no_route().into_response()
}

async fn no_method() -> Response {
    ErrorAnswer::no_method().into_response()
}
