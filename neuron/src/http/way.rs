//! What the ways of all requests that are paid for have in common: their beginning, their end, and where work on
//! large bodies is done.

use std::{sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::LengthLimitError;
use seatbelt_schemas::neuron::signature::BodyHash;

use super::{
    App,
    access::{self, Signed},
    error::ErrorAnswer,
    headers::{self, Limits},
};
use crate::{
    config::{BODY_BYTES_MAX, BODY_TIME_MAX},
    usage::Ticket,
};

/// Bodies up to this size are read and tokenized in place; larger ones would hold up other requests.
const INLINE_BYTES_MAX: usize = 16 * 1024;
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The ticket of a request that has its reservation for itself. Where another had it, there is none: the
/// reservation has its one event from the other.
pub(super) fn open(app: &App, request: &Request) -> Result<Ticket, ErrorAnswer> {
    let (headers, signed) = (request.headers(), request.extensions().get::<Signed>());
    access::take(app, signed, headers)?;
    Ok(app.office.open(headers::caller(headers)))
}

/// A request whose headers and body were read.
pub(super) struct Begun {
    pub(super) limits: Limits,
    pub(super) deadline: Option<Instant>,
    pub(super) body: Bytes,
}

/// Reads headers and body, if any request can be taken now.
pub(super) async fn begin(app: &App, request: Request) -> Result<Begun, ErrorAnswer> {
    let signed = request.extensions().get::<Signed>().copied();
    if let Some(reason) = app.closed() {
        return Err(ErrorAnswer::closed(reason));
    }
    let limits = headers::limits(request.headers())?;
    // Before anything takes its time: the wall clock may be set meanwhile.
    let deadline = limits.deadline_ms.and_then(|at_ms| app.time.moment(at_ms));
    let body = read_body(request.into_body(), signed).await?;
    Ok(Begun {
        limits,
        deadline,
        body,
    })
}

/// The body, if it is neither too large nor too slow, and the one that was signed.
pub(super) async fn read_body(body: Body, signed: Option<Signed>) -> Result<Bytes, ErrorAnswer> {
    let read = axum::body::to_bytes(body, BODY_BYTES_MAX);
    let Ok(read) = tokio::time::timeout(BODY_TIME_MAX, read).await else {
        return Err(ErrorAnswer::body_too_slow());
    };
    let body = read.map_err(|error| {
        let source = std::error::Error::source(&error);
        match source.is_some_and(|source| source.is::<LengthLimitError>()) {
            true => ErrorAnswer::body_too_large(BODY_BYTES_MAX),
            false => ErrorAnswer::invalid_body("the body ended early"),
        }
    })?;
    match signed {
        Some(signed) if signed.body != BodyHash::of(&body) => {
            Err(ErrorAnswer::other_body().unused())
        }
        _ => Ok(body),
    }
}

/// Does what takes its time with a body of this size, beside the workers that serve everybody where it is
/// large: as much at once as there are cores.
pub(super) async fn aside<T: Send + 'static>(
    app: &App,
    size: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ErrorAnswer> {
    if size <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    let place = Arc::clone(&app.aside).acquire_owned().await;
    let place = place.expect("places are never closed");
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        // Held to the end, although whoever asked may be gone before.
        drop(place);
        done
    });
    let broke = |error| ErrorAnswer::engine(format!("reading the request broke off: {error}"));
    done.await.map_err(broke)
}

pub(super) async fn turn_away(ticket: Ticket, error: ErrorAnswer) -> Response {
    // The refusal stands even if its report could not be written: nothing was used.
    ticket.reject().wait().await;
    error.into_response()
}

pub(super) fn with_request_id(mut response: Response, id: &str) -> Response {
    if let Ok(id) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
