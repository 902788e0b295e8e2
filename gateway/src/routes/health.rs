//! What operators read: whether this gateway lives, whether it would serve, what it counted.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{app::App, metrics};

/// `GET /health/live`.
pub(super) async fn live() -> Response {
    Json(json!({"live": true})).into_response()
}

/// `GET /health/ready`.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let draining = app.draining.load(Relaxed);
    let found = app.ready.borrow().clone();
    let ready = found.reasons.is_empty() && !draining;
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut warnings = found.warnings.clone();
    warnings.extend(app.catalog.fleet().warnings);
    let body = json!({
        "ready": ready,
        "reasons": found.texts(),
        "warnings": warnings,
        "draining": draining,
        "durability": app.config.durability,
        "require_auth": app.config.require_auth,
    });
    (status, Json(body)).into_response()
}

/// `GET /metrics`, on the metrics listener alone.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let kind = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)];
    let mut text = app.metrics.text();
    let written = app.ready.borrow().write_metrics(&mut text);
    let written = written.and_then(|()| app.catalog.fleet().write_metrics(&mut text));
    written.expect("writing to a string does not fail");
    text.push_str(metrics::END);
    (kind, text).into_response()
}
