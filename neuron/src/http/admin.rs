//! `POST /models/load` and `/models/unload`: a model by its name into memory, or out of it until it is asked for again.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{App, access::Signed, error::ErrorAnswer, way::read_body};
use crate::{config::AdminToken, shelf::NotDone};

pub(super) const PATH_LOAD: &str = "/models/load";
pub(super) const PATH_UNLOAD: &str = "/models/unload";

/// Whether a call is one of these.
pub(super) fn is_of_admin(path: &str) -> bool {
    [PATH_LOAD, PATH_UNLOAD].contains(&path)
}

/// Whether whoever calls has the admin token.
pub(super) fn has(token: Option<&AdminToken>, headers: &HeaderMap) -> bool {
    let told = headers.get(header::AUTHORIZATION);
    let told = told.and_then(|told| told.as_bytes().strip_prefix(b"Bearer "));
    token.zip(told).is_some_and(|(token, told)| token.is(told))
}

#[derive(Deserialize)]
struct Named {
    model: String,
}

pub(super) async fn load(State(app): State<Arc<App>>, request: Request) -> Response {
    let named = match read(&app, request).await {
        Ok(named) => named,
        Err(error) => return error.into_response(),
    };
    let done = app.shelf.load_named(&named.model).await;
    answer(&named, done, "ready")
}

pub(super) async fn unload(State(app): State<Arc<App>>, request: Request) -> Response {
    let named = match read(&app, request).await {
        Ok(named) => named,
        Err(error) => return error.into_response(),
    };
    let done = app.shelf.unload_named(&named.model).await;
    answer(&named, done, "unloaded")
}

async fn read(app: &App, request: Request) -> Result<Named, ErrorAnswer> {
    let signed = request.extensions().get::<Signed>().copied();
    if let Some(reason) = app.closed() {
        return Err(ErrorAnswer::closed(reason));
    }
    let body = read_body(request.into_body(), signed).await?;
    serde_json::from_slice(&body)
        .map_err(|error| ErrorAnswer::invalid_body(format!("the body names no model: {error}")))
}

fn answer(named: &Named, done: Result<(), NotDone>, state: &str) -> Response {
    let name = &named.model;
    let error = match done {
        Ok(()) => return Json(json!({ "model": name, "state": state })).into_response(),
        Err(NotDone::Unknown) => ErrorAnswer::unknown_model(name),
        Err(NotDone::Busy) => ErrorAnswer::model_busy(name),
        Err(NotDone::NotNow(why)) => ErrorAnswer::busy(why),
        Err(NotDone::Failed(reason)) => ErrorAnswer::engine(reason),
    };
    error.into_response()
}
