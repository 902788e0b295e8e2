//! What can be read: models with limits and prices, the caller's own caps, health, metrics.
//!
//! `GET /v1/key` is answered from the projector's snapshot, which trails the ledger. So that a caller
//! reads what it just spent, the answer waits a little for the snapshot to reach the last position
//! this gateway was told; then it shows what there is, with its position and age.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use seatbelt_ledger::api::{Read, SnapshotStanding};
use seatbelt_schemas::{cap::CapStanding, position::Position, price::Rates, time::rfc3339_ms};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    app::Shared,
    config::KeyEntry,
    error::{ApiError, Dialect},
    upstream::catalog::Listed,
};

/// How long a read waits for the snapshot to have what the caller was told before.
const OWN_WRITES_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks at the snapshot.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Longest any one look may take.
const LOOK_MAX: Duration = Duration::from_secs(3);

fn answer(result: Result<Value, ApiError>) -> Response {
    match result {
        Ok(body) => Json(body).into_response(),
        Err(error) => {
            error.note();
            error.into_response(Dialect::OpenAi)
        }
    }
}

/// `GET /v1/models`.
pub(crate) async fn models(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
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
pub(crate) async fn one_model(
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

/// `GET /v1/key`.
pub(crate) async fn key(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let caller = shared.keyring.caller(&headers);
    answer(match caller {
        Ok(Some(caller)) => standing(&shared, &caller)
            .await
            .map(|found| key_body(&caller, &found)),
        // there is no key to tell about
        Ok(None) => Err(ApiError::invalid_key()),
        Err(error) => Err(error),
    })
}

async fn standing(shared: &Shared, caller: &KeyEntry) -> Result<SnapshotStanding, ApiError> {
    let wanted = shared.gate.marked(&caller.account);
    let until = Instant::now() + OWN_WRITES_WAIT;
    loop {
        let found = look(shared, caller).await?;
        let fresh = found
            .as_ref()
            .is_some_and(|found| Some(found.standing.position) >= wanted);
        if fresh || Instant::now() >= until {
            return match found {
                Some(found) => Ok(found),
                None => read(shared, caller).await,
            };
        }
        // an account that the projector never saw and this gateway never used: nothing to wait for
        if found.is_none() && wanted.is_none() {
            return read(shared, caller).await;
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn look(shared: &Shared, caller: &KeyEntry) -> Result<Option<SnapshotStanding>, ApiError> {
    let at_ms = (shared.clock)();
    let look = shared
        .snapshots
        .standing(caller.account.clone(), Some(caller.key.clone()), at_ms);
    match timeout(LOOK_MAX, look).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(ApiError::ledger_unavailable(format!(
            "{error}: {}",
            error.source
        ))),
        Err(_) => Err(ApiError::ledger_unavailable(
            "the snapshot was not read in time",
        )),
    }
}

/// The writer's own state, where there is no snapshot yet.
async fn read(shared: &Shared, caller: &KeyEntry) -> Result<SnapshotStanding, ApiError> {
    let query = Read {
        account: caller.account.clone(),
        key: Some(caller.key.clone()),
    };
    match timeout(LOOK_MAX, shared.gate.ledger().read(query)).await {
        Ok(Ok(standing)) => Ok(SnapshotStanding {
            standing,
            age_ms: 0,
        }),
        Ok(Err(error)) => Err(ApiError::from_command(&error)),
        Err(_) => Err(ApiError::ledger_unavailable(
            "read was not answered in time",
        )),
    }
}

fn key_body(caller: &KeyEntry, found: &SnapshotStanding) -> Value {
    let Position(position) = found.standing.position;
    json!({
        "account": caller.account,
        "key": caller.key,
        "position": position,
        "age_ms": found.age_ms,
        "caps": found.standing.caps.iter().map(cap).collect::<Vec<_>>(),
    })
}

fn cap(cap: &CapStanding) -> Value {
    json!({
        "id": cap.cap,
        "scope": cap.scope.kind(),
        "meter": cap.meter,
        "window": cap.window,
        "limit": cap.limit,
        "spent": cap.spent,
        "held": cap.held,
        "available": cap.available(),
        "resets_at": cap.resets_at_ms.map(rfc3339_ms),
    })
}

/// `GET /health/live`.
pub(crate) async fn live() -> Response {
    Json(json!({"live": true})).into_response()
}

/// `GET /health/ready`.
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Response {
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
pub(crate) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    (kind, shared.metrics.text()).into_response()
}
