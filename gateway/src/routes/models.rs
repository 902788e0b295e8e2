//! `GET /v1/models`: what is served now, with limits and prices.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::HeaderMap,
    response::Response,
};
use seatbelt_schemas::price::Rates;
use serde_json::{Value, json};

use super::answer;
use crate::{app::App, error::ApiError, upstream::catalog::Listed};

/// `GET /v1/models`.
pub(super) async fn all(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    answer(app.keyring.caller(&headers).map(|_| {
        let data: Vec<Value> = app
            .catalog
            .list()
            .iter()
            .map(|listed| model(&app, listed))
            .collect();
        json!({"object": "list", "data": data})
    }))
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    answer(app.keyring.caller(&headers).and_then(|_| {
        let listed = app
            .catalog
            .listed(&id)
            .ok_or_else(|| ApiError::model_not_found(&id))?;
        Ok(model(&app, &listed))
    }))
}

fn model(app: &App, listed: &Listed) -> Value {
    json!({
        "id": listed.id,
        "object": "model",
        "created": 0,
        "owned_by": listed.owner,
        "context_length": listed.context,
        "max_output_tokens": listed.output,
        "price": app.config.prices.get(&listed.id).map(price),
    })
}

/// Prices in integers, pico-USD per token, as the ledger reckons with them.
fn price(rates: &Rates) -> Value {
    json!({
        "unit": "pico_usd_per_token",
        "input": rates.input,
        "cached_input": rates.cached_input,
        "cache_write": rates.cache_write,
        "output": rates.output,
        "reasoning": rates.reasoning,
    })
}
