//! The job of a granted request: what goes to the upstream, what comes along with the answer.
//!
//! Upstream headers are made afresh: the operator's key, a neuron's bounds. Of the client's headers
//! only those pass that choose an API version.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use seatbelt_schemas::{
    command::Grant,
    event::OnUnknown,
    neuron::{
        HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
        HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
    },
};
use serde_json::json;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    allowance,
    app::Shared,
    bounds::write_chat_max,
    catalog::{Route, Upstream},
    config::{HOLD_GRACE, MaxField, OnDisconnect, UpstreamKind},
    drive::{Call, Job, Limits, USAGE_EVENT_WAIT},
    error::{Dialect, X_POSITION},
    gate::{Reservation, ms},
    intake::Fields,
    plan::Plan,
    usage::Api,
};

/// The output maximum of one choice, where it was lowered.
const X_CLAMPED: HeaderName = HeaderName::from_static("x-seatbelt-clamped");
const X_RESERVATION: HeaderName = HeaderName::from_static("x-seatbelt-reservation");
/// The version of the Anthropic API that is asked for where the client names none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// A request that may be dispatched now.
pub(crate) struct Admitted {
    pub(crate) dialect: Dialect,
    pub(crate) plan: Plan,
    /// None for a request that is not metered.
    pub(crate) held: Option<(Reservation, Grant)>,
    pub(crate) client_headers: HeaderMap,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Admitted {
    /// Makes it ready for its driver.
    pub(crate) fn into_job(self, shared: &Arc<Shared>) -> Job {
        let Plan {
            mut body,
            asked,
            bound,
            route,
            api,
            face,
            answer_id,
            ..
        } = self.plan;
        let (reservation, grant) = self.held.unzip();
        let mut max = bound.output_tokens;
        let mut headers = HeaderMap::new();
        if let Some(grant) = &grant {
            grant_headers(grant, (shared.clock)(), &mut headers);
            if grant.clamped {
                max = (grant.hold.output_tokens / asked.choices).max(1);
                headers.insert(X_CLAMPED, max.into());
            }
        }
        write_max(&mut body, max, &route, api);
        let call = call(&route, reservation.as_ref(), &self.client_headers, &body);
        let limit = shared.config.request_timeout;
        // asked for before the dispatch, or an early event would be missed
        let usage_event = match (&route, &reservation) {
            (Route::Neuron(_), Some(reservation)) => {
                Some(shared.usage.usage(reservation.id, limit + USAGE_EVENT_WAIT))
            }
            _ => None,
        };
        let free_when_unknown = reservation
            .as_ref()
            .is_some_and(|held| held.on_unknown == OnUnknown::Release);
        let charges_errors = match &route {
            Route::Foreign(upstream, _) => !upstream.errors_are_free && !free_when_unknown,
            Route::Neuron(_) => false, // those that come after work are told apart by its answers
        };
        let (upstream, neuron, output_is_visible) = match route {
            Route::Foreign(upstream, model) => {
                (upstream.name.clone(), None, model.output_is_visible)
            }
            Route::Neuron(neuron) => (neuron.neuron.to_string(), Some(neuron), false),
        };
        let cancels = shared.config.on_disconnect == OnDisconnect::Cancel;
        let began = Instant::now();
        Job {
            shared: Arc::clone(shared),
            limits: Limits {
                ends_with_client: neuron.is_some() || cancels || reservation.is_none(),
                deadline: began + limit,
                cut: shared.cut.clone(),
            },
            reservation,
            call: Some(call),
            upstream,
            neuron,
            usage_event,
            api,
            dialect: self.dialect,
            face,
            answer_id,
            stream: asked.stream,
            choices: asked.choices,
            output_is_visible,
            charges_errors,
            began,
            first_byte_ms: 0,
            headers,
            _permit: self.permit,
        }
    }
}

fn write_max(body: &mut Fields, max: u64, route: &Route, api: Api) {
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

fn call(
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

/// The reservation, its position, and the tightest caps.
fn grant_headers(grant: &Grant, now_ms: u64, headers: &mut HeaderMap) {
    let id = HeaderValue::try_from(grant.reservation.to_string());
    let id = id.expect("a reservation id is a valid header value");
    headers.insert(X_RESERVATION, id);
    headers.insert(X_POSITION, grant.position.0.into());
    allowance::show(&grant.caps, now_ms, headers);
}
