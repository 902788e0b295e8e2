//! A request's body: read within its bounds of size and time, and parsed once.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use seatbelt_dialects::Fields;
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    config::{BODY_TIMEOUT, DISCARD_TIMEOUT},
    error::{ApiError, Case},
};

/// How much of a body that is refused is read all the same, so that the client gets to read why.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;

pub(crate) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(body)) => Ok(body),
        Ok(_) => Err(ApiError::invalid_body("it must be a JSON object")),
        Err(error) => Err(ApiError::invalid_body(format_args!(
            "it is not JSON: {error}"
        ))),
    }
}

/// Reads a body of at most so many bytes.
pub(crate) async fn read_body(body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let until = Instant::now() + BODY_TIMEOUT;
    let late = || {
        ApiError::new(
            Case::BodyTimeout,
            "the request body did not arrive in time: send it faster",
        )
    };
    let mut chunks = body.into_data_stream();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(|_| late())? {
        let chunk =
            chunk.map_err(|error| ApiError::invalid_body(format_args!("it broke off: {error}")))?;
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&chunk);
        }
        let read = first.len().max(all.len());
        if read > bytes_max {
            discard(Body::from_stream(chunks), read).await;
            return Err(ApiError::new(
                Case::BodyTooLarge,
                format!("the request body is larger than {bytes_max} bytes: send a smaller one"),
            ));
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads what a refused client still sends, within bounds: closing at once would reset the
/// connection before the client has read its answer.
pub(crate) async fn discard(body: Body, mut read: usize) {
    let mut chunks = body.into_data_stream();
    let _ = timeout(DISCARD_TIMEOUT, async {
        while let Some(Ok(chunk)) = chunks.next().await {
            read += chunk.len();
            if read > DISCARD_BYTES_MAX {
                break;
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_no_object_is_not_parsed() {
        for odd in [
            "",
            "nonsense",
            "[]",
            "\"a\"",
            "{\"a\":",
            "{} x",
            "{\"a\":1e999}",
        ] {
            assert_eq!(
                parse(odd.as_bytes()).unwrap_err().code(),
                "invalid_body",
                "{odd}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
    }
}
