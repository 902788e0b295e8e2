//! What operators read: whether this gateway lives, whether it would serve, what it counted.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::time::Instant;

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
    warnings.extend(app.catalog.out(Instant::now()).map(|(model, name, out_for)| {
        let seconds = out_for.as_secs().max(1);
        format!("deployment {name} of model {model} failed and is left alone for {seconds} s more")
    }));
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
    write_out(&app, &mut text).expect("writing to a string does not fail");
    text.push_str(metrics::END);
    (kind, text).into_response()
}

/// How many models each deployment is left alone for.
fn write_out(app: &App, out: &mut String) -> fmt::Result {
    let name = "seatbelt_gateway_deployments_out";
    writeln!(
        out,
        "# HELP {name} Models for which a deployment failed and is left alone now.\n# TYPE {name} gauge"
    )?;
    let mut counts = BTreeMap::<&str, usize>::new();
    for (_, deployment, _) in app.catalog.out(Instant::now()) {
        *counts.entry(deployment).or_default() += 1;
    }
    for (deployment, count) in counts {
        writeln!(out, "{name}{{upstream=\"{deployment}\"}} {count}")?;
    }
    Ok(())
}
