//! What operators read: whether this gateway lives, whether it would serve, what it counted.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::app::Shared;

/// `GET /health/live`.
pub(super) async fn live() -> Response {
    Json(json!({"live": true})).into_response()
}

/// `GET /health/ready`.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let draining = shared.draining.load(Relaxed);
    let reasons = shared.ready.borrow().clone();
    let ready = reasons.is_empty() && !draining;
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "ready": ready,
        "reasons": reasons,
        "draining": draining,
        "durability": shared.config.durability,
        "require_auth": shared.config.require_auth,
    });
    (status, Json(body)).into_response()
}

/// `GET /metrics`, on the metrics listener alone.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, shared.metrics.text()).into_response()
}
