//! Whatever generates or reads a text for money (`POST /v1/chat/completions`, `/v1/messages`,
//! `/v1/completions`, `/v1/responses`, `/v1/embeddings`): received, looked up where it may be a repeated one, planned, reserved, run.
//!
//! All take the same way; only once the hold is granted anything is dispatched. Until then all of it
//! lives in the connection's own task, so that a client which leaves gives up its place in the queue.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::Response,
};
use seatbelt_dialects::Api;

use crate::{
    app::App,
    error::{ApiError, Case},
};

/// `POST /v1/chat/completions`.
pub(super) async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Chat).await
}

/// `POST /v1/messages`.
pub(super) async fn messages(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Messages).await
}

/// `POST /v1/completions`.
pub(super) async fn completions(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Completions).await
}

/// `POST /v1/responses`.
pub(super) async fn responses(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Responses).await
}

/// `POST /v1/embeddings`.
pub(super) async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Embeddings).await
}

async fn answer(app: &App, request: Request, api: Api) -> Response {
    let answered = generate(app, request, api).await;
    answered.unwrap_or_else(|error| {
        error.note();
        error.into_response(api.dialect())
    })
}

/// Lets a request through to its upstream, or says why not.
async fn generate(app: &App, request: Request, api: Api) -> Result<Response, ApiError> {
    let received = app.receiver.receive(request).await?;
    let (received, named) = app.repeats.look_up(api, received).await?;
    let plan = app.planner.plan(api, received).await?;
    let held = match plan.want()? {
        Some(want) => Some(app.repeats.reserve(named.clone(), want).await?),
        None => None,
    };
    // no await between the grant and the run that owns it
    let answered = app.runner.start(plan, held, named);
    let lost = || ApiError::new(Case::Internal, "the request was lost inside the gateway");
    answered.await.unwrap_or_else(|_| Err(lost()))
}
