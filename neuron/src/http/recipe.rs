//! `POST /recipe`: the tokenizer and chat template of a model that is served, by the name under which the neuron
//! registered them.
//!
//! With them a gateway counts prompts by itself, so that a request that its caps refuse never comes here.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header,
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{App, access::Signed, error::ErrorAnswer, way::read_body};

pub(super) async fn recipe(State(app): State<Arc<App>>, request: Request) -> Response {
    hand_out(&app, request)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

#[derive(Deserialize)]
struct Wanted {
    name: String,
}

async fn hand_out(app: &App, request: Request) -> Result<Response, ErrorAnswer> {
    let signed = request.extensions().get::<Signed>().copied();
    let body = read_body(request.into_body(), signed).await?;
    let wanted: Wanted = serde_json::from_slice(&body)
        .map_err(|error| ErrorAnswer::invalid_body(format!("the body names no recipe: {error}")))?;
    let roster = app.shelf.roster();
    let mut served = roster.served.iter().map(|served| &served.model.recipe);
    let found = served.find(|recipe| recipe.name == wanted.name);
    let recipe = found.ok_or_else(ErrorAnswer::unknown_recipe)?;
    let kind = [(header::CONTENT_TYPE, "application/json")];
    Ok((kind, recipe.encoded.clone()).into_response())
}
