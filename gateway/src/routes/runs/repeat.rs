//! `POST /v1/runs` sent again under one `Idempotency-Key`: the same run, for as long as it is open. Its id is made of
//! the key, so that the ledger itself knows it, whichever gateway is asked and after any restart.

use axum::http::HeaderMap;
use seatbelt_schemas::{budget::Budget, ids::RunId, position::Position};
use sha2::{Digest, Sha256};
use ulid::Ulid;

use crate::{
    app::App,
    config::{KeyEntry, Within},
    error::ApiError,
    receive::IDEMPOTENCY_KEY,
};

/// Longest such key.
const LEN_MAX: usize = 255;
/// What is said of a run that is not open.
const NOT_FOUND: &str = "run_not_found";

/// What is unique of the id of a run that a client names a key for: the same for the same key of the same caller.
pub(super) fn named(
    headers: &HeaderMap,
    key: &KeyEntry,
    outer: Option<&RunId>,
) -> Result<Option<Ulid>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let value = value.as_bytes();
    if value.is_empty() || value.len() > LEN_MAX {
        let problem = format!("must be 1 to {LEN_MAX} bytes");
        return Err(ApiError::invalid_field(IDEMPOTENCY_KEY, &problem));
    }
    let outer = outer.map_or("", RunId::as_str);
    let mut hash = Sha256::new();
    for part in [
        b"seatbelt run",
        key.account.as_str().as_bytes(),
        key.key.as_str().as_bytes(),
        outer.as_bytes(),
        value,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let (first, _) = hash.split_at(16);
    let bits = first
        .iter()
        .fold(0_u128, |bits, byte| bits << 8 | u128::from(*byte));
    Ok(Some(Ulid::from(bits)))
}

/// The run, if it is open: until when, and where it stands. An error where another one was asked for under its key.
pub(super) async fn found(
    app: &App,
    key: &KeyEntry,
    (run, outer): (&RunId, Option<&RunId>),
    budget: &Budget,
) -> Result<Option<(Within, Position)>, ApiError> {
    let found = match app.gate.run(key, run).await {
        Ok(found) => found,
        Err(error) if error.code() == NOT_FOUND => return Ok(None),
        Err(error) => return Err(error),
    };
    if found.run.budget != *budget || found.run.within.first() != outer {
        return Err(ApiError::idempotency_key_reused(run.as_str()));
    }
    let within = Within {
        run: run.clone(),
        deadline_ms: found.run.deadline_ms,
    };
    Ok(Some((within, found.standing.position)))
}
