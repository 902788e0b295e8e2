//! Runs: `POST /v1/runs` sets a budget aside out of what the caller's key may spend, and hands out a secret
//! that spends within it alone; `GET /v1/runs/{id}` shows how it stands; `POST /v1/runs/{id}/close` gives the
//! rest back.

use std::{fmt::Display, sync::Arc};

use axum::{
    Json,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use seatbelt_dialects::{Dialect, Fields};
use seatbelt_schemas::{
    budget::Budget, cap::CapStanding, command::RunStanding, ids::RunId, meter::Meter,
    position::Position, time::rfc3339_ms,
};
use serde_json::{Map, Value, json};
use ulid::Ulid;

mod repeat;

use super::answer;
use crate::{
    app::App,
    config::{KeyEntry, RUN_AMOUNT_MAX, RUN_LABEL_MAX, RUN_LIFE_MS_MAX, RUN_TTL_S, Within},
    error::ApiError,
    gate::runs::{Closed, Found, Opening},
    receive::{X_RUN, X_TEAM},
};

/// `POST /v1/runs`.
pub(super) async fn open(State(app): State<Arc<App>>, request: Request) -> Response {
    match opened(&app, request).await {
        // nobody on the way keeps a secret
        Ok((status, run)) => {
            let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            (status, no_store, Json(run)).into_response()
        }
        Err(error) => answer(Err(error), Dialect::OpenAi),
    }
}

/// `GET /v1/runs/{id}`.
pub(super) async fn one(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let told = async {
        let (key, run) = asked_for(&app, &headers, &id)?;
        let found = app.gate.run(&key, &run).await?;
        Ok(shown(&run, &found, "open"))
    };
    answer(told.await, Dialect::OpenAi)
}

/// `POST /v1/runs/{id}/close`.
pub(super) async fn close(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let told = async {
        let (key, run) = asked_for(&app, &headers, &id)?;
        match app.gate.close_run(key, run.clone()).await? {
            Closed::Whole(found) => Ok(shown(&run, &found, "closed")),
            Closed::Inside { ended } => Ok(json!({
                "id": run,
                "object": "run",
                "status": "closed",
                "ended_inside": ended,
            })),
        }
    };
    answer(told.await, Dialect::OpenAi)
}

fn asked_for(app: &App, headers: &HeaderMap, id: &str) -> Result<(Arc<KeyEntry>, RunId), ApiError> {
    let key = app.keyring.caller(headers)?;
    let key = key.ok_or_else(ApiError::invalid_key)?;
    let run = RunId::new(id).map_err(|_| ApiError::run_not_found(id))?;
    Ok((key, run))
}

async fn opened(app: &App, request: Request) -> Result<(StatusCode, Value), ApiError> {
    let received = app.receiver.receive(request).await?;
    let caller = &received.caller;
    let key = caller.key.as_ref().ok_or_else(ApiError::invalid_key)?;
    let asked = Asked::read(&received.body)?;
    let named = repeat::named(&received.headers, key, caller.run.as_ref(), &asked)?;
    if key.within.is_none() && caller.run.is_some() {
        let problem = "does not open a run inside another: send that run's secret as the key, or leave the header out";
        return Err(ApiError::invalid_field(X_RUN, problem));
    }
    if caller.team.is_some() {
        let problem = "is of requests, also of those within a run, and not of a run: leave it out";
        return Err(ApiError::invalid_field(X_TEAM, problem));
    }
    let now_ms = (app.clock)();
    let outer = key.within.as_ref();
    let life_ms = asked.ttl_s.saturating_mul(1000).min(RUN_LIFE_MS_MAX);
    let until_ms = now_ms.saturating_add(life_ms);
    let deadline_ms = outer.map_or(until_ms, |outer| until_ms.min(outer.deadline_ms));
    let opening = |run| Opening {
        run,
        budget: asked.budget,
        deadline_ms,
        within: caller.run.clone(),
        wait: caller.wait,
    };
    let (status, within, position) = match named {
        Some(named) => repeat::opened(app, key, named, opening, &asked.label).await?,
        None => {
            let run = run_id(&asked.label, Ulid::new())?;
            let grant = app.gate.open_run(key, opening(run.clone())).await?;
            let within = Within { run, deadline_ms };
            (StatusCode::CREATED, within, grant.position)
        }
    };
    let outer = caller.run.as_ref();
    Ok((
        status,
        told(app, key, (&within, outer), &asked.budget, position),
    ))
}

/// A run as its opener is told of it, with the secret that spends within it.
fn told(
    app: &App,
    key: &KeyEntry,
    (within, outer): (&Within, Option<&RunId>),
    budget: &Budget,
    position: Position,
) -> Value {
    json!({
        "id": within.run,
        "object": "run",
        "status": "open",
        "label": label_of(&within.run),
        "secret": app.keyring.of_runs.issue(key, within),
        "budget": amounts(budget),
        "within": outer,
        "expires_at": rfc3339_ms(within.deadline_ms),
        "position": position.0,
    })
}

/// What a client asks for.
struct Asked {
    label: String,
    budget: Budget,
    ttl_s: u64,
}

impl Asked {
    fn read(body: &Fields) -> Result<Self, ApiError> {
        let (mut amounts, mut ttl, mut label) = (None, None, None);
        for (name, value) in body {
            match name.as_str() {
                "budget" => amounts = Some(value),
                "ttl" => ttl = Some(value),
                "label" => label = Some(value),
                odd => {
                    return Err(ApiError::invalid_field(
                        odd,
                        "is no field of a run: 'budget', 'ttl' and 'label' are",
                    ));
                }
            }
        }
        Ok(Self {
            label: label_told(label)?,
            budget: budget(amounts)?,
            ttl_s: ttl_s(ttl)?,
        })
    }
}

/// What the id of a run begins with.
fn label_told(label: Option<&Value>) -> Result<String, ApiError> {
    let label = match label {
        None | Some(Value::Null) => Some("run"),
        Some(label) => label.as_str(),
    };
    let label = label.ok_or_else(wrong_label)?;
    run_id(label, Ulid::nil()).map(|_| label.to_owned())
}

/// An id, which begins with the label: it stands in every event of the run.
fn run_id(label: &str, unique: impl Display) -> Result<RunId, ApiError> {
    let fits = (1..=RUN_LABEL_MAX).contains(&label.len());
    let id = fits.then(|| RunId::new(format!("{label}-{unique}")).ok());
    id.flatten().ok_or_else(wrong_label)
}

fn wrong_label() -> ApiError {
    let problem = format!("must be 1 to {RUN_LABEL_MAX} characters of A-Z a-z 0-9 _ -");
    ApiError::invalid_field("label", &problem)
}

/// The part of a run's id that its opener chose.
fn label_of(run: &RunId) -> Option<&str> {
    let (label, unique) = run.as_str().rsplit_once('-')?;
    unique.parse::<Ulid>().is_ok().then_some(label)
}

fn ttl_s(ttl: Option<&Value>) -> Result<u64, ApiError> {
    let ttl_s = match ttl {
        None | Some(Value::Null) => Some(RUN_TTL_S.default()),
        Some(ttl) => ttl.as_u64(),
    };
    let (least, most) = RUN_TTL_S.bounds();
    let within = |ttl_s: &u64| (least..=most).contains(ttl_s);
    ttl_s.filter(within).ok_or_else(|| {
        let problem = format!("must be a whole number of seconds from {least} to {most}");
        ApiError::invalid_field("ttl", &problem)
    })
}

fn budget(budget: Option<&Value>) -> Result<Budget, ApiError> {
    let meters = Budget::METERS.map(Meter::as_str).join(", ");
    let invalid = |problem: &str| ApiError::invalid_field("budget", problem);
    let named = || {
        let problem = format!("must name an amount for at least one of {meters}");
        invalid(&problem)
    };
    let budget = budget.and_then(Value::as_object).ok_or_else(named)?;
    let mut amounts = Vec::with_capacity(budget.len());
    for (name, amount) in budget {
        let meter = Budget::METERS
            .into_iter()
            .find(|meter| meter.as_str() == name);
        let meter = meter.ok_or_else(named)?;
        let whole = format!("must have a whole number as {meter}");
        let amount = amount.as_u64().ok_or_else(|| invalid(&whole))?;
        if amount > RUN_AMOUNT_MAX {
            let problem = format!("may have {RUN_AMOUNT_MAX} as {meter} at most");
            return Err(invalid(&problem));
        }
        amounts.push((meter, amount));
    }
    Budget::new(amounts).map_err(|error| invalid(&format!("cannot be taken: {error}")))
}

fn amounts(budget: &Budget) -> Value {
    let amounts = budget.iter();
    Value::Object(
        amounts
            .map(|(meter, amount)| (meter.to_string(), json!(amount)))
            .collect::<Map<_, _>>(),
    )
}

fn shown(id: &RunId, found: &Found, status: &str) -> Value {
    let RunStanding {
        budget,
        opened_at_ms,
        deadline_ms,
        within,
        ..
    } = &found.run;
    json!({
        "id": id,
        "object": "run",
        "status": status,
        "label": label_of(id),
        "budget": amounts(budget),
        "within": within.first(),
        "inside": found.standing.inside,
        "opened_at": rfc3339_ms(*opened_at_ms),
        "expires_at": rfc3339_ms(*deadline_ms),
        "position": found.standing.position.0,
        "meters": found.standing.caps.iter().map(meter).collect::<Map<_, _>>(),
    })
}

/// What is left of one meter. What runs inside have, is not its own.
fn meter(cap: &CapStanding) -> (String, Value) {
    let told = json!({
        "limit": cap.limit,
        "spent": cap.spent,
        "held": cap.held,
        "available": cap.available(),
    });
    (cap.meter.to_string(), told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &Value, expected: Result<u64, &str>) {
        let body = body.as_object().unwrap();
        let read = Asked::read(body).map(|asked| asked.ttl_s);
        let read = read.map_err(|error| error.into_response(Dialect::OpenAi).status().as_u16());
        assert_eq!(read, expected.map_err(|_| 400), "{body:?}");
    }

    #[test]
    fn what_is_asked_for_is_within_its_bounds() {
        let budget = json!({"tokens": 5});
        check(&json!({"budget": budget}), Ok(RUN_TTL_S.default()));
        check(
            &json!({"budget": budget, "ttl": 60, "label": "a_b-c"}),
            Ok(60),
        );
        check(
            &json!({"budget": budget, "ttl": 86_400, "label": null}),
            Ok(86_400),
        );
        for odd in [
            json!({}),
            json!({"budget": {}}),
            json!({"budget": 5}),
            json!({"budget": {"token": 5}}),
            json!({"budget": {"tokens": 0}}),
            json!({"budget": {"tokens": -1}}),
            json!({"budget": {"tokens": 1.5}}),
            json!({"budget": {"tokens": "5"}}),
            json!({"budget": {"concurrency": 5}}),
            json!({"budget": {"cost": u64::MAX}}),
            json!({"budget": budget, "ttl": 0}),
            json!({"budget": budget, "ttl": 86_401}),
            json!({"budget": budget, "ttl": "60"}),
            json!({"budget": budget, "label": ""}),
            json!({"budget": budget, "label": "a b"}),
            json!({"budget": budget, "label": "l".repeat(RUN_LABEL_MAX + 1)}),
            json!({"budget": budget, "labels": "x"}),
        ] {
            check(&odd, Err("invalid"));
        }
    }

    #[test]
    fn a_label_is_told_from_the_id_that_it_begins() {
        let id = run_id("deep-research", Ulid::new()).unwrap();
        assert_eq!(label_of(&id), Some("deep-research"));
        assert_eq!(
            label_of(&run_id(&label_told(None).unwrap(), Ulid::new()).unwrap()),
            Some("run")
        );
        assert_eq!(label_of(&RunId::new("of-an-operator").unwrap()), None);
        let longest = "l".repeat(RUN_LABEL_MAX);
        assert!(run_id(&longest, Ulid::new()).is_ok());
    }
}
