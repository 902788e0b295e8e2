//! What goes to the upstream.
//!
//! Upstream headers are made afresh: the operator's key, a neuron's bounds. Of the client's headers
//! only those pass that choose an API version.

pub(crate) mod catalog;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use seatbelt_schemas::neuron::{
    HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
    HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
};
use serde_json::json;

use crate::{
    bound::write_chat_max,
    clock::ms,
    config::{HOLD_GRACE, MaxField, UpstreamKind},
    gate::Reservation,
    receive::body::Fields,
    upstream::catalog::{Route, Upstream},
    usage::Api,
};

/// The version of the Anthropic API that is asked for where the client names none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// The request as it goes out.
pub(crate) struct Call {
    pub(crate) url: reqwest::Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Writes the output maximum under the name that the upstream knows.
pub(crate) fn write_max(body: &mut Fields, max: u64, route: &Route, api: Api) {
    let field = match route {
        Route::Foreign(_, model) => model.max_field,
        Route::Neuron(_) => MaxField::MaxTokens,
    };
    match api {
        Api::OpenAi => write_chat_max(body, max, field),
        Api::Anthropic => {
            body.insert("max_tokens".to_owned(), json!(max));
        }
    }
}

/// The request as it goes out to `route`.
pub(crate) fn call(
    route: &Route,
    reservation: Option<&Reservation>,
    client: &HeaderMap,
    body: &Fields,
) -> Call {
    let mut headers = HeaderMap::new();
    let json = HeaderValue::from_static("application/json");
    headers.insert(header::CONTENT_TYPE, json);
    let url = match route {
        Route::Foreign(upstream, _) => {
            upstream_headers(upstream, client, &mut headers);
            upstream.url.clone()
        }
        Route::Neuron(neuron) => {
            if let Some(reservation) = reservation {
                neuron_headers(reservation, &mut headers);
            }
            neuron.chat_url.clone()
        }
    };
    let mut bytes = Vec::with_capacity(512);
    serde_json::to_writer(&mut bytes, body).expect("a JSON object is written to memory");
    Call {
        url,
        headers,
        body: Bytes::from(bytes),
    }
}

/// What the neuron must know to hold the request to its reservation.
fn neuron_headers(reservation: &Reservation, headers: &mut HeaderMap) {
    let mut set = |name: &'static str, value: String| {
        let value = HeaderValue::try_from(value).expect("ids and numbers are valid header values");
        headers.insert(HeaderName::from_static(name), value);
    };
    set(HEADER_RESERVATION, reservation.id.to_string());
    set(HEADER_ACCOUNT, reservation.account.to_string());
    set(HEADER_KEY, reservation.key.to_string());
    set(
        HEADER_MAX_INPUT_TOKENS,
        reservation.hold.input_tokens.to_string(),
    );
    set(
        HEADER_MAX_OUTPUT_TOKENS,
        reservation.hold.output_tokens.to_string(),
    );
    set(
        HEADER_DEADLINE_MS,
        reservation
            .deadline_ms
            .saturating_sub(ms(HOLD_GRACE))
            .to_string(),
    );
}

/// The operator's key, never the client's; of the client's headers only what chooses an API version.
fn upstream_headers(upstream: &Upstream, client: &HeaderMap, headers: &mut HeaderMap) {
    let sensitive = |text: String| {
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let key = upstream.api_key.as_ref().map(|key| key.expose());
    match upstream.kind {
        UpstreamKind::OpenAi => {
            if let Some(value) = key.and_then(|key| sensitive(format!("Bearer {key}"))) {
                headers.insert(header::AUTHORIZATION, value);
            }
        }
        UpstreamKind::Anthropic => {
            if let Some(value) = key.and_then(|key| sensitive(key.to_owned())) {
                headers.insert(HeaderName::from_static("x-api-key"), value);
            }
            let version = HeaderName::from_static("anthropic-version");
            let default = HeaderValue::from_static(ANTHROPIC_VERSION);
            headers.insert(
                version.clone(),
                client.get(&version).cloned().unwrap_or(default),
            );
            let beta = HeaderName::from_static("anthropic-beta");
            for value in client.get_all(&beta) {
                headers.append(beta.clone(), value.clone());
            }
        }
    }
}
