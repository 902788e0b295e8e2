//! `GET /v1/key`: the caller's own caps as they stand.
//!
//! Answered from the projector's snapshot, which trails the ledger. So that a caller reads what it
//! just spent, the answer waits a little for the snapshot to reach the last position this gateway was
//! told; then it shows what there is, with its position and age.

use std::sync::Arc;

use axum::{extract::State, http::HeaderMap, response::Response};
use seatbelt_dialects::Dialect;
use seatbelt_ledger::api::{Read, SnapshotStanding};
use seatbelt_schemas::{cap::CapStanding, position::Position, time::rfc3339_ms};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::answer;
use crate::{
    app::App,
    config::{KeyEntry, LOOK_AGAIN, LOOK_MAX, OWN_WRITES_WAIT},
    error::ApiError,
};

/// `GET /v1/key`.
pub(super) async fn key(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let caller = app.keyring.caller(&headers);
    let told = match caller {
        Ok(Some(caller)) => standing(&app, &caller)
            .await
            .map(|found| key_body(&caller, &found)),
        // there is no key to tell about
        Ok(None) => Err(ApiError::invalid_key()),
        Err(error) => Err(error),
    };
    answer(told, Dialect::OpenAi)
}

async fn standing(app: &App, caller: &KeyEntry) -> Result<SnapshotStanding, ApiError> {
    // whoever has the key of a run is shown what that has, and nothing of the key that opened it
    if let Some(within) = &caller.within {
        let standing = app.gate.run(caller, &within.run).await?.standing;
        return Ok(SnapshotStanding {
            standing,
            age_ms: 0,
        });
    }
    let wanted = app.gate.marked(&caller.account);
    let until = Instant::now() + OWN_WRITES_WAIT;
    loop {
        let found = look(app, caller).await?;
        let fresh = found
            .as_ref()
            .is_some_and(|found| Some(found.standing.position) >= wanted);
        if fresh || Instant::now() >= until {
            return match found {
                Some(found) => Ok(found),
                None => read(app, caller).await,
            };
        }
        // an account that the projector never saw and this gateway never used: nothing to wait for
        if found.is_none() && wanted.is_none() {
            return read(app, caller).await;
        }
        sleep(LOOK_AGAIN).await;
    }
}

async fn look(app: &App, caller: &KeyEntry) -> Result<Option<SnapshotStanding>, ApiError> {
    let at_ms = (app.clock)();
    let look = app
        .snapshots
        .standing(caller.account.clone(), Some(caller.key.clone()), at_ms);
    match timeout(LOOK_MAX, look).await {
        Ok(Ok(found)) => Ok(found),
        // lost, too large, or its store is away: the ledger itself knows
        Ok(Err(error)) => {
            tracing::debug!(%error, source = %error.source, "asking the ledger");
            read(app, caller).await.map(Some)
        }
        Err(_) => {
            tracing::debug!("the snapshot was not read in time: asking the ledger");
            read(app, caller).await.map(Some)
        }
    }
}

/// The writer's own state, where there is no snapshot yet.
async fn read(app: &App, caller: &KeyEntry) -> Result<SnapshotStanding, ApiError> {
    let query = Read {
        account: caller.account.clone(),
        key: Some(caller.key.clone()),
        run: None,
        reservation: None,
    };
    match timeout(LOOK_MAX, app.gate.ledger().read(query)).await {
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
    let mut told = json!({
        "account": caller.account,
        "key": caller.key,
        "position": position,
        "age_ms": found.age_ms,
        "caps": found.standing.caps.iter().map(cap).collect::<Vec<_>>(),
    });
    if let Some(ppm) = found.standing.multiplier_ppm {
        told["multiplier_ppm"] = json!(ppm);
    }
    if let Some(within) = &caller.within {
        told["run"] = json!(within.run);
    }
    told
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
