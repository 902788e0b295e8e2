//! Pages of other origins may call the gateway where the operator lists them; off where none is listed.
//!
//! No credentials are allowed: a key is a header that the page sets itself. Which headers a page may send is
//! for the gateway to say, not for the browser to guess, so that what it asks for is allowed as asked.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::Response,
};

use crate::app::App;

/// Every origin.
const ANY: &str = "*";
/// How long a browser may remember what is allowed, s.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
const ALL: HeaderValue = HeaderValue::from_static("*");
const VARY: HeaderValue = HeaderValue::from_static("origin");

/// Answers a browser that asks first, and says of every other answer which page may read it.
pub(super) async fn cors(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let listed = &app.config.cors_origins;
    let Some(origin) = allowed(listed, request.headers()) else {
        let mut response = next.run(request).await;
        // what is kept of it may be asked for by a page that is listed
        if !listed.is_empty() {
            response.headers_mut().append(header::VARY, VARY);
        }
        return response;
    };
    let asks_first = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match asks_first {
        true => preflight(request.headers()),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, ALL);
    headers.append(header::VARY, VARY);
    response
}

fn preflight(asked: &HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(named) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, named.clone());
    }
    response
}

/// What to answer the origin of a request; nothing where it is not listed, or where it names none.
fn allowed(listed: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    if listed.iter().any(|one| one == ANY) {
        return Some(ALL);
    }
    let is_listed = listed.iter().any(|one| one.as_bytes() == origin.as_bytes());
    is_listed.then(|| origin.clone())
}
