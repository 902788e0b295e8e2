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
use crate::{app::Shared, error::ApiError, upstream::catalog::Listed};

/// `GET /v1/models`.
pub(super) async fn all(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    answer(shared.keyring.caller(&headers).map(|_| {
        let data: Vec<Value> = shared
            .catalog
            .list()
            .iter()
            .map(|listed| model(&shared, listed))
            .collect();
        json!({"object": "list", "data": data})
    }))
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(super) async fn one(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    answer(shared.keyring.caller(&headers).and_then(|_| {
        let listed = shared
            .catalog
            .listed(&id)
            .ok_or_else(|| ApiError::model_not_found(&id))?;
        Ok(model(&shared, &listed))
    }))
}

fn model(shared: &Shared, listed: &Listed) -> Value {
    json!({
        "id": listed.id,
        "object": "model",
        "created": 0,
        "owned_by": listed.owner,
        "context_length": listed.context,
        "max_output_tokens": listed.output,
        "price": shared.config.prices.get(&listed.id).map(price),
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
