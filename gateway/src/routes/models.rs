//! `GET /v1/models`: what is served now, with limits and prices, in the dialect of whoever asks.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, Uri},
    response::Response,
};
use seatbelt_dialects::Dialect;
use seatbelt_schemas::price::Rates;
use serde_json::{Value, json};

use super::{answer, nowhere::dialect};
use crate::{app::App, error::ApiError, upstream::catalog::Listed};

/// `GET /v1/models`.
pub(super) async fn all(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Response {
    let dialect = dialect(&uri, &headers);
    let list = |_| {
        let listed = app.catalog.list();
        let models = listed.iter().map(|listed| model(&app, listed, dialect));
        let data: Vec<Value> = models.collect();
        match dialect {
            Dialect::OpenAi => json!({"object": "list", "data": data}),
            // all of them are one page
            Dialect::Anthropic => json!({
                "first_id": listed.first().map(|listed| &listed.id),
                "last_id": listed.last().map(|listed| &listed.id),
                "has_more": false,
                "data": data,
            }),
        }
    };
    answer(app.keyring.caller(&headers).map(list), dialect)
}

/// `GET /v1/models/{id}`; an id may have slashes.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let dialect = dialect(&uri, &headers);
    let found = app.keyring.caller(&headers).and_then(|_| {
        let listed = app
            .catalog
            .listed(&id)
            .ok_or_else(|| ApiError::model_not_found(&id))?;
        Ok(model(&app, &listed, dialect))
    });
    answer(found, dialect)
}

/// A model as the SDKs of a dialect read it, with its limits and its price for everybody.
fn model(app: &App, listed: &Listed, dialect: Dialect) -> Value {
    let mut shown = match dialect {
        Dialect::OpenAi => json!({
            "id": listed.id,
            "object": "model",
            "created": 0,
            "owned_by": listed.owner,
        }),
        Dialect::Anthropic => json!({
            "type": "model",
            "id": listed.id,
            "display_name": listed.id,
            "created_at": "1970-01-01T00:00:00Z",
            "max_input_tokens": listed.context,
            "max_tokens": listed.output,
        }),
    };
    shown["context_length"] = json!(listed.context);
    shown["max_output_tokens"] = json!(listed.output);
    shown["price"] = json!(app.prices.borrow().get(&listed.id).map(price));
    shown
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
