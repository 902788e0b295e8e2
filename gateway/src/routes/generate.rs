//! `POST /v1/chat/completions` and `POST /v1/messages`: from the request to the driver of its job.
//!
//! Both take the same way: key, body, plan, reserve; only then anything is dispatched. Until the hold
//! is granted all of it lives in the connection's own task, so that a client which leaves gives up
//! its place in the queue.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderValue},
    response::Response,
};
use seatbelt_schemas::{event::OnShort, ids::RunId};
use tokio::{sync::oneshot, time::Instant};
use tracing::Instrument;

use crate::{
    app::{RequestId, Shared},
    config::KeyEntry,
    error::{ApiError, Case, Dialect},
    metrics::Stage,
    plan::{Caller, Plan},
    receive::body::{discard, parse, read_body},
    run::{Admitted, drive},
};

/// A client may ask for its output maximum to be lowered to what fits: `clamp`, else `refuse`. This
/// and the next are the only `x-seatbelt-*` headers of a client that are read: they say how to decide
/// and what the request is part of, not who pays for it.
const X_ON_SHORT: &str = "x-seatbelt-on-short";
/// The agent run that the request belongs to. Naming one can only add limits, or spend what the
/// account has set aside for it: the caps of the caller's own key apply in any case.
const X_RUN: &str = "x-seatbelt-run";

/// `POST /v1/chat/completions`.
pub(super) async fn chat_completions(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Response {
    answer(&shared, request, Dialect::OpenAi).await
}

/// `POST /v1/messages`.
pub(super) async fn messages(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    answer(&shared, request, Dialect::Anthropic).await
}

async fn answer(shared: &Arc<Shared>, request: Request, dialect: Dialect) -> Response {
    let answered = admit(shared, request, dialect).await;
    answered.unwrap_or_else(|error| {
        error.note();
        error.into_response(dialect)
    })
}

/// Lets a request through to its driver, or says why not.
async fn admit(
    shared: &Arc<Shared>,
    request: Request,
    dialect: Dialect,
) -> Result<Response, ApiError> {
    let permit = Arc::clone(&shared.slots)
        .try_acquire_owned()
        .map_err(|_| ApiError::busy("too many requests are in progress"))?;
    let (parts, body) = request.into_parts();
    let began = Instant::now();
    let caller = match shared.keyring.caller(&parts.headers) {
        Ok(caller) => caller,
        Err(error) => {
            drop(permit);
            discard(body, 0).await;
            return Err(error);
        }
    };
    shared.metrics.stage(Stage::Auth, began.elapsed());
    let body = read_body(body, shared.config.body_bytes).await?;
    let body = parse(&body)?;
    let id = parts.extensions.get::<RequestId>();
    let id = id.map_or("", |id| id.0.as_str());
    let on_short = on_short(&parts.headers, caller.as_deref())?;
    let run = run(&parts.headers)?;
    let asking = Caller {
        key: caller.as_deref(),
        run: run.as_ref(),
        headers: &parts.headers,
    };
    let plan = Plan::make(shared, dialect, body, id, asking).await?;
    let held = match &caller {
        Some(caller) => {
            let want = plan.want(caller, on_short, run)?;
            Some(shared.gate.reserve(want).await?)
        }
        None => None,
    };
    // from here on, no await before the driver has the hold
    let admitted = Admitted {
        dialect,
        plan,
        held,
        client_headers: parts.headers,
        permit,
    };
    let (head, answered) = oneshot::channel();
    let driver = drive(admitted.into_job(shared), head);
    shared.tracker.spawn(driver.in_current_span());
    let lost = || ApiError::new(Case::Internal, "the request was lost inside the gateway");
    answered.await.unwrap_or_else(|_| Err(lost()))
}

/// The request's own word, else the key's.
fn on_short(headers: &HeaderMap, caller: Option<&KeyEntry>) -> Result<OnShort, ApiError> {
    match headers.get(X_ON_SHORT).map(HeaderValue::as_bytes) {
        None => Ok(caller.map_or(OnShort::Refuse, |caller| caller.on_short)),
        Some(b"refuse") => Ok(OnShort::Refuse),
        Some(b"clamp") => Ok(OnShort::Clamp),
        Some(_) => Err(ApiError::invalid_field(
            X_ON_SHORT,
            "must be 'refuse' or 'clamp'",
        )),
    }
}

/// The run that a client names.
fn run(headers: &HeaderMap) -> Result<Option<RunId>, ApiError> {
    let problem = "must be a run id: 1 to 64 characters of A-Z a-z 0-9 _ -";
    let Some(value) = headers.get(X_RUN) else {
        return Ok(None);
    };
    let run = value.to_str().ok().and_then(|text| RunId::new(text).ok());
    run.map(Some)
        .ok_or_else(|| ApiError::invalid_field(X_RUN, problem))
}
