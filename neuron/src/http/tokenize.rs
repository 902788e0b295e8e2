//! `POST /tokenize`: how many input tokens a body would have, exactly, and the model's limits.
//!
//! The body is that of a chat, of embeddings if it has an `input`, or else of a completion. Nothing is run and no
//! usage is reported, so a gateway can size a hold before it reserves.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde::de::IgnoredAny;
use serde_json::json;

use super::{
    App,
    access::Signed,
    embeddings,
    error::ErrorAnswer,
    generate::prompt_tokens,
    request::{Dialect, Wish},
    way::{aside, read_body},
};

pub(super) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    count(&app, request)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

async fn count(app: &Arc<App>, request: Request) -> Result<Response, ErrorAnswer> {
    let signed = request.extensions().get::<Signed>().copied();
    let body = read_body(request.into_body(), signed).await?;
    let size = body.len();
    if is_of(&body, "input") {
        return Ok(Json(embeddings::count(app, &body).await?).into_response());
    }
    let wish = aside(app, size, move || read(&body)).await??;
    let served = app.served(&wish.model)?;
    let limits = (served.context(), served.output());
    let tokens = prompt_tokens(app, &served, wish, size).await?;
    Ok(
        Json(json!({ "input_tokens": tokens, "context": limits.0, "output": limits.1 }))
            .into_response(),
    )
}

/// Whether a body has this field.
fn is_of(body: &[u8], field: &str) -> bool {
    let body = serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(body);
    body.is_ok_and(|body| body.contains_key(field))
}

fn read(body: &[u8]) -> Result<Wish, ErrorAnswer> {
    let dialect = match is_of(body, "messages") {
        true => Dialect::Chat,
        false => Dialect::Completion,
    };
    Wish::read(dialect, body)
}
