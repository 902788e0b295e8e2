//! What is served: the table of routes, one file for each thing that can be asked for, and what is
//! answered to anything else.
//!
//! Whatever is asked for, the answer has a request id and is counted by route and status.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{any, get, post},
};
use seatbelt_dialects::Dialect;
use serde_json::Value;
use tracing::Instrument;
use ulid::Ulid;

use crate::{app::App, error::ApiError, receive::RequestId};

mod cors;
mod count;
mod generate;
mod health;
mod key;
mod models;
mod nowhere;
mod runs;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The same where Anthropic's SDKs look for it.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Everything on the clients' listener.
pub(crate) fn table(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(generate::chat_completions))
        .route("/v1/messages", post(generate::messages))
        .route("/v1/messages/count_tokens", post(count::count_tokens))
        .route("/v1/completions", post(generate::completions))
        .route("/v1/responses", post(generate::responses))
        .route("/v1/responses/input_tokens", post(count::input_tokens))
        .route("/v1/embeddings", post(generate::embeddings))
        .route("/v1/models", get(models::all))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/key", get(key::key))
        .route("/v1/runs", post(runs::open))
        .route("/v1/runs/{id}", get(runs::one))
        .route("/v1/runs/{id}/close", post(runs::close))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/v1/responses/{*rest}", any(nowhere::not_served))
        .route("/admin/v1/{*rest}", any(nowhere::not_served))
        .method_not_allowed_fallback(nowhere::method_not_allowed)
        .fallback(nowhere::not_found)
        .layer(from_fn_with_state(Arc::clone(&app), observe))
        .layer(from_fn_with_state(Arc::clone(&app), cors::cors))
        .with_state(app)
}

/// Everything on the metrics listener.
pub(crate) fn metrics(app: Arc<App>) -> Router {
    Router::new()
        .route("/metrics", get(health::metrics))
        .with_state(app)
}

/// Gives every request its id, and counts its answer by route and status.
async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", |path| known_route(path.as_str()));
    let id = Ulid::new().to_string();
    let header = HeaderValue::try_from(&id).expect("a ULID is a valid header value");
    let span = tracing::info_span!("request", %id, route);
    request.extensions_mut().insert(RequestId(id));
    let dialect = nowhere::dialect(request.uri(), request.headers());
    let mut response = next.run(request).instrument(span).await;
    if dialect == Dialect::Anthropic {
        response.headers_mut().insert(REQUEST_ID, header.clone());
    }
    response.headers_mut().insert(X_REQUEST_ID, header);
    app.metrics.request(route, response.status().as_u16());
    response
}

/// The route as a label: a fixed set, whatever is asked for.
fn known_route(path: &str) -> &'static str {
    const ROUTES: [&str; 15] = [
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/models",
        "/v1/models/{*id}",
        "/v1/key",
        "/v1/runs",
        "/v1/runs/{id}",
        "/v1/runs/{id}/close",
        "/health/live",
        "/health/ready",
    ];
    ROUTES
        .into_iter()
        .find(|route| *route == path)
        .unwrap_or("other")
}

/// What is read and not generated.
fn answer(result: Result<Value, ApiError>, dialect: Dialect) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(error) => {
            error.note();
            error.into_response(dialect)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_is_a_label_whatever_was_asked_for() {
        assert_eq!(known_route("/v1/messages"), "/v1/messages");
        assert_eq!(known_route("/v1/models/{*id}"), "/v1/models/{*id}");
        assert_eq!(known_route("/v1/models/secret"), "other");
    }
}
