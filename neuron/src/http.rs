//! The neuron over HTTP, in the OpenAI dialect.
//!
//! | route | what |
//! |---|---|
//! | `POST /v1/chat/completions`, `/v1/completions` | an answer, whole or as server-sent events |
//! | `POST /v1/embeddings` | refused: no decoder gives embeddings |
//! | `POST /tokenize` | `{"input_tokens", "context", "output"}` of the same body; runs nothing, reports nothing |
//! | `POST /recipe` | the tokenizer and chat template of this name, by which gateways count |
//! | `GET /v1/models`, `/v1/models/{id}`, `/models` | the models with their limits |
//! | `GET /health/live`, `/health/ready`, `/metrics` | for machines |
//!
//! All but `/models`, health and metrics is for the gateways of its deployment alone, each reservation
//! once (`access`), unless the neuron is configured as open. Every answer to a generation carries
//! `x-request-id`; its usage is reported before its last byte is sent.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use seatbelt_schemas::{
    ids::ModelId,
    neuron::{NeuronModel, PATH_RECIPE},
};
use serde_json::{Value, json};

pub(crate) use self::access::Used;
use self::{error::ApiError, request::Dialect};
use crate::{
    config::{Access, Device},
    engine::Engine,
    metrics::{self, Gauge},
    model::Model,
    usage::TicketOffice,
};

mod access;
mod answer;
mod error;
mod generate;
mod headers;
mod recipe;
mod request;
mod tokenize;

/// A model that is up.
pub(crate) struct Served {
    pub(crate) id: ModelId,
    pub(crate) device: Device,
    pub(crate) slots: usize,
    pub(crate) model: Model,
    pub(crate) engine: Engine,
}

impl Served {
    /// What is told of it to the outside.
    pub(crate) fn record(&self) -> NeuronModel {
        NeuronModel {
            id: self.id.clone(),
            context: self.model.context as u64,
            output: self.model.output as u64,
            slots: u32::try_from(self.slots).unwrap_or(u32::MAX),
            recipe: Some(self.model.recipe.name.clone()),
            ready: true,
        }
    }
}

/// Everything a handler needs.
pub(crate) struct App {
    pub(crate) access: Access,
    pub(crate) used: Used,
    pub(crate) models: Vec<Served>,
    pub(crate) office: TicketOffice,
    pub(crate) draining: AtomicBool,
    pub(crate) since_s: u64,
}

impl App {
    fn served(&self, name: &str) -> Option<&Served> {
        self.models.iter().find(|served| served.id.as_str() == name)
    }

    /// Why no request can be taken now, if so.
    fn closed(&self) -> Option<&'static str> {
        if self.draining.load(Ordering::Acquire) {
            return Some("the neuron is stopping");
        }
        if !self.office.outbox.open_for_requests() {
            return Some("usage cannot be recorded now");
        }
        (!self.models.iter().all(|served| served.engine.alive())).then_some("an engine has stopped")
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
    generate::refuse(&app, request, ApiError::no_embeddings()).await
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    let data: Vec<Value> = app
        .models
        .iter()
        .map(|served| model_json(&app, served))
        .collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match app.served(&id) {
        Some(served) => Json(model_json(&app, served)).into_response(),
        None => ApiError::unknown_model(&id).into_response(),
    }
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

async fn live() -> Json<Value> {
    Json(json!({ "status": "live" }))
}

async fn ready(State(app): State<Arc<App>>) -> Response {
    match app.closed() {
        None => Json(json!({ "status": "ready" })).into_response(),
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({ "status": "not ready", "reason": reason })),
        )
            .into_response(),
    }
}

async fn metrics(State(app): State<Arc<App>>) -> impl IntoResponse {
    let per_model = |value: fn(&Engine) -> usize| -> Vec<(&str, usize)> {
        app.models
            .iter()
            .map(|served| (served.id.as_str(), value(&served.engine)))
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
    ApiError::no_route().into_response()
}

async fn no_method() -> Response {
    ApiError::no_method().into_response()
}
