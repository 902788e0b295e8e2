//! The neuron over HTTP, in the OpenAI dialect.
//!
//! | route | what |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions` | an answer, whole or as server-sent events |
//! | `POST /v1/embeddings` | a vector for each text, of a model that is an encoder |
//! | `POST /tokenize` | `{"input_tokens", "context", "output"}` of the same body; runs nothing, reports nothing |
//! | `POST /limit` | more output is held for a request that runs; says how much it has written |
//! | `POST /recipe` | the tokenizer and chat template of this name, by which gateways count |
//! | `GET /v1/models`, `/v1/models/{id}`, `/models` | the models with their limits |
//! | `GET /health/live`, `/health/ready`, `/metrics` | for machines |
//!
//! All but `/models`, health and metrics is for the gateways of its deployment alone, each reservation
//! once (`access`), unless the neuron is configured as open. Every answer to a generation carries
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
use seatbelt_schemas::{
    ids::ModelId,
    neuron::{NeuronModel, PATH_LIMIT, PATH_RECIPE},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

pub(crate) use self::{
    access::Used, doubts::Doubts, embeddings::Embeds, limit::Growing, shaping::Shaping,
};
use self::{error::ErrorAnswer, request::Dialect};
use crate::{
    clock::SharedTime,
    config::{Access, Device},
    engine::Engine,
    load::{Failed, Seat},
    metrics::{self, Gauge},
    model::Model,
    thread::Health,
    usage::TicketOffice,
};

mod access;
mod answer;
mod doubts;
mod embeddings;
mod error;
mod generate;
mod headers;
mod limit;
mod recipe;
mod request;
mod shaping;
mod tokenize;
mod way;

/// A model that is up.
pub(crate) struct Served {
    pub(crate) id: ModelId,
    pub(crate) device: Device,
    pub(crate) slots: usize,
    pub(crate) model: Model,
    pub(crate) seat: Seat,
}

impl Served {
    /// The engine that runs it now.
    pub(crate) fn engine(&self) -> Arc<Engine> {
        self.seat.engine()
    }

    /// Why it takes no request now, if so.
    fn closed(&self) -> Option<&'static str> {
        match self.engine().health() {
            Health::Well => None,
            Health::Stuck => Some("a step of the model does not end"),
            Health::Dead => Some("the model broke down and is loaded again"),
        }
    }

    /// What is told of it to the outside.
    pub(crate) fn record(&self, ready: bool) -> NeuronModel {
        NeuronModel {
            id: self.id.clone(),
            context: self.model.context as u64,
            output: self.model.output as u64,
            slots: u32::try_from(self.slots).unwrap_or(u32::MAX),
            recipe: Some(self.model.recipe.name.clone()),
            ready,
            grows: true,
        }
    }
}

/// Everything a handler needs.
pub(crate) struct App {
    pub(crate) access: Access,
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
    pub(crate) models: Vec<Served>,
    pub(crate) embedders: Vec<Embeds>,
    /// Configured, but not loaded.
    pub(crate) failed: Vec<Failed>,
    pub(crate) office: TicketOffice,
    /// Places for work on large bodies.
    pub(crate) aside: Arc<Semaphore>,
    pub(crate) shaping: Shaping,
    pub(crate) draining: AtomicBool,
    pub(crate) since_s: u64,
}

impl App {
    fn served(&self, name: &str) -> Option<&Served> {
        self.models.iter().find(|served| served.id.as_str() == name)
    }

    /// What is said of a model that is not served.
    fn absent(&self, name: &str) -> ErrorAnswer {
        if self
            .embedders
            .iter()
            .any(|embeds| embeds.id.as_str() == name)
        {
            return ErrorAnswer::embeddings_alone(name);
        }
        match self.failed.iter().any(|failed| failed.id.as_str() == name) {
            true => ErrorAnswer::model_failed(name),
            false => ErrorAnswer::unknown_model(name),
        }
    }

    /// Why no request for any model can be taken now, if so.
    fn closed(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Acquire) {
            return Some("the neuron is stopping");
        }
        (!self.office.outbox.open_for_requests()).then_some("usage cannot be recorded now")
    }

    /// The same of one model.
    fn closed_for(&self, served: &Served) -> Option<&'static str> {
        self.closed().or_else(|| served.closed())
    }

    /// Every model as gateways are told of it.
    pub(crate) fn records(&self) -> Vec<NeuronModel> {
        let record = |served: &Served| served.record(self.closed_for(served).is_none());
        let embeds = self.embedders.iter().map(|embeds| {
            let closed = self.closed().or_else(|| embeds.closed());
            embeds.record(closed.is_none())
        });
        self.models.iter().map(record).chain(embeds).collect()
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
        .route("/models", get(models))
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

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app
        .models
        .iter()
        .map(|served| model_json(&app, served))
        .chain(app.embedders.iter().map(|embeds| embeds_json(&app, embeds)))
        .collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    let embeds = app.embedders.iter().find(|embeds| embeds.id.as_str() == id);
    match (app.served(&id), embeds) {
        (Some(served), _) => Json(model_json(&app, served)).into_response(),
        (None, Some(embeds)) => Json(embeds_json(&app, embeds)).into_response(),
        (None, None) => app.absent(&id).into_response(),
    }
}

fn embeds_json(app: &App, embeds: &Embeds) -> Value {
    json!({
        "id": embeds.id,
        "object": "model",
        "created": app.since_s,
        "owned_by": "seatbelt",
        "context_length": embeds.context,
        "max_output_tokens": 0,
        "embedding_length": embeds.embedder.width(),
        "device": embeds.device.as_str(),
    })
}

fn model_json(app: &App, served: &Served) -> Value {
    json!({
        "id": served.id,
        "object": "model",
        "created": app.since_s,
        "owned_by": "seatbelt",
        "context_length": served.model.context,
        "max_output_tokens": served.model.output,
        "device": served.device.as_str(),
        "slots": served.slots,
    })
}

/// An engine that broke down may come back by itself; whoever asks again and again and still hears no,
/// starts the process anew.
async fn live(State(app): State<Arc<App>>) -> Response {
    let served = app
        .models
        .iter()
        .map(|served| (&served.id, served.closed()));
    let embeds = app
        .embedders
        .iter()
        .map(|embeds| (&embeds.id, embeds.closed()));
    let broken = served
        .chain(embeds)
        .find_map(|(id, closed)| Some((id, closed?)));
    match broken {
        None => Json(json!({ "status": "live" })).into_response(),
        Some((id, reason)) => unavailable(&json!({
            "status": "not live", "model": id, "reason": reason
        })),
    }
}

fn unavailable(body: &Value) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    let served = app.models.iter().map(|served| app.closed_for(served));
    let embeds = app
        .embedders
        .iter()
        .map(|embeds| app.closed().or_else(|| embeds.closed()));
    match served.chain(embeds).min().flatten() {
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
    let failed = app.failed.iter().map(|failed| failed.reason.clone());
    let closed = app.models.iter().filter_map(|served| {
        let reason = served.closed()?;
        Some(format!("model {}: {reason}", served.id))
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
    let per_model = |value: fn(&Engine) -> usize| -> Vec<(&str, usize)> {
        app.models
            .iter()
            .map(|served| (served.id.as_str(), value(&served.engine())))
            .collect()
    };
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
            values: (app.models.iter())
                .map(|served| (served.id.as_str(), served.slots * served.model.context))
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
