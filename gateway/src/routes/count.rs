//! `POST /v1/messages/count_tokens` and `POST /v1/responses/input_tokens`: cost nothing, and a header says who counted.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use seatbelt_dialects::Api;

use crate::{
    app::App,
    error::{ApiError, BY_UPSTREAM, X_REFUSED_BY},
};

/// Who counted.
const X_COUNTED: HeaderName = HeaderName::from_static("x-seatbelt-counted");

/// `POST /v1/messages/count_tokens`.
pub(super) async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Messages).await
}

/// `POST /v1/responses/input_tokens`.
pub(super) async fn input_tokens(State(app): State<Arc<App>>, request: Request) -> Response {
    answer(&app, request, Api::Responses).await
}

async fn answer(app: &App, request: Request, api: Api) -> Response {
    counted(app, request, api).await.unwrap_or_else(|error| {
        error.note();
        error.into_response(api.dialect())
    })
}

async fn counted(app: &App, request: Request, api: Api) -> Result<Response, ApiError> {
    let received = app.receiver.receive(request).await?;
    let counted = app.planner.count_tokens(api, received).await?;
    let mut response = Response::new(Body::from(counted.body));
    *response.status_mut() = counted.status;
    *response.headers_mut() = counted.headers;
    let headers = response.headers_mut();
    if counted.status.is_success() || !headers.contains_key(header::CONTENT_TYPE) {
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
    }
    headers.insert(X_COUNTED, HeaderValue::from_static(counted.by));
    if !counted.status.is_success() {
        headers.insert(X_REFUSED_BY, BY_UPSTREAM);
    }
    Ok(response)
}
