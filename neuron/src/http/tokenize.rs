//! `POST /tokenize`: how many input tokens a body would have, exactly, and the model's limits.
//!
//! The body is that of a chat, or of a completion if it has no `messages`. Nothing is run and no
//! usage is reported, so a gateway can size a hold before it reserves.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    App,
    access::Signed,
    error::ApiError,
    generate::{prompt_tokens, read_body},
    request::{Dialect, Wish},
};

pub(super) async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    count(&app, request)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

async fn count(app: &Arc<App>, request: Request) -> Result<Response, ApiError> {
    let signed = request.extensions().get::<Signed>().copied();
    let body = read_body(request.into_body(), signed).await?;
    let chat = serde_json::from_slice::<serde_json::Value>(&body)
        .is_ok_and(|body| body.get("messages").is_some());
    let wish = Wish::read(
        if chat {
            Dialect::Chat
        } else {
            Dialect::Completion
        },
        &body,
    )?;
    let served = app
        .served(&wish.model)
        .ok_or_else(|| ApiError::unknown_model(&wish.model))?;
    let limits = (served.model.context, served.model.output);
    let tokens = prompt_tokens(app, wish).await?.len();
    Ok(
        Json(json!({ "input_tokens": tokens, "context": limits.0, "output": limits.1 }))
            .into_response(),
    )
}
