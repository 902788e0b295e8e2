//! `POST /v1/runs` sent again under one `Idempotency-Key`: the same run, for as long as it is open, and then another
//! one, of another name, which the secret of the first is worth nothing for.
//!
//! A run's id is made of its reservation's. Which one that is, is written before it is opened, as for any other request
//! that is sent again (`repeats`). The opening goes on where its client leaves: its answer may be asked for again.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode};
use seatbelt_schemas::{budget::Budget, ids::RunId, position::Position};
use tokio::time::sleep;

use super::{Asked, run_id};
use crate::{
    app::App,
    config::{KeyEntry, Within},
    error::ApiError,
    gate::{NotHeld, runs::Opening},
    receive::IDEMPOTENCY_KEY,
    repeats::{Became, Named},
};

/// Longest such key.
const LEN_MAX: usize = 255;
/// What is said of a run that is not open.
const NOT_FOUND: &str = "run_not_found";
/// How often it is looked whether one that is being opened is.
const LOOKS_MAX: u32 = 40;
const LOOK_PAUSE: Duration = Duration::from_millis(25);

/// A run that a client names a key for: the same for the same key of the same caller.
pub(super) fn named(
    headers: &HeaderMap,
    key: &KeyEntry,
    outer: Option<&RunId>,
    asked: &Asked,
) -> Result<Option<Named>, ApiError> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let value = value.as_bytes();
    if value.is_empty() || value.len() > LEN_MAX {
        let problem = format!("must be 1 to {LEN_MAX} bytes");
        return Err(ApiError::invalid_field(IDEMPOTENCY_KEY, &problem));
    }
    let outer = outer.map_or("", RunId::as_str).as_bytes();
    let parts = [b"run".as_slice(), outer, asked.label.as_bytes(), value];
    let amounts = amounts(&asked.budget);
    Ok(Some(Named::of(key, &parts, &[amounts.as_bytes()])))
}

fn amounts(budget: &Budget) -> String {
    let each = budget
        .iter()
        .map(|(meter, amount)| format!("{meter}={amount};"));
    each.collect()
}

/// The run, opened now or before: until when, where it stands, and whether it is new.
pub(super) async fn opened(
    app: &App,
    key: &Arc<KeyEntry>,
    mut named: Named,
    opening: impl Fn(RunId) -> Opening,
    label: &str,
) -> Result<(StatusCode, Within, Position), ApiError> {
    let mut last = None;
    for _ in 0..LOOKS_MAX {
        match app.repeats.became(&mut named).await? {
            // it has ended
            Became::Nothing | Became::Charged(..) => {
                let id = app.gate.command_id();
                let opening = opening(run_id(label, id)?);
                let until_ms = app.repeats.until_ms(app.gate.patience_of(&opening));
                let written = app.repeats.write(&named, id.into(), until_ms).await?;
                let Some(written) = written else {
                    continue;
                };
                let within = Within {
                    run: opening.run.clone(),
                    deadline_ms: opening.deadline_ms,
                };
                let opened = app.gate.open_run_to_keep(key, id, opening, until_ms).await;
                if let Err(NotHeld::Denied(_)) = &opened {
                    app.repeats.take_back(written).await;
                }
                return Ok((StatusCode::CREATED, within, opened?.position));
            }
            Became::Open(id) => {
                let run = run_id(label, id)?;
                match app.gate.run(key, &run).await {
                    // its time is up, and its end not written yet
                    Ok(found) if found.run.deadline_ms <= (app.clock)() => {
                        app.gate.close_run(Arc::clone(key), run).await?;
                    }
                    Ok(found) => {
                        let deadline_ms = found.run.deadline_ms;
                        let within = Within { run, deadline_ms };
                        return Ok((StatusCode::OK, within, found.standing.position));
                    }
                    Err(error) if error.code() == NOT_FOUND => {} // it ended meanwhile
                    Err(error) => return Err(error),
                }
            }
            Became::Unsure(id) => {
                last = Some(id);
                sleep(LOOK_PAUSE).await;
            }
        }
    }
    Err(match last {
        Some(id) => ApiError::request_in_progress(id),
        None => ApiError::busy("the run under this Idempotency-Key changes"),
    })
}
