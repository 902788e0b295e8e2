//! A request's body: read within its bounds of size, time and memory, weighed, and parsed once.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use seatbelt_dialects::{Exact, Fields};
use seatbelt_schemas::{ids::AccountId, json};
use serde_json::Value;
use tokio::time::{Instant, timeout, timeout_at};
use ulid::Ulid;

use super::{
    aside::Aside,
    encoding::Encoding,
    scan::weigh,
    shares::{Share, Shares},
};
use crate::{
    config::{BODY_TIMEOUT, DISCARD_TIMEOUT, GatewayConfig, body_memory_max, values_max},
    error::{ApiError, Case},
};

/// How much of a body that is refused is read all the same, so that the client gets to read why.
const DISCARD_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The same for a client without a key.
const KEYLESS_BYTES_MAX: usize = 1024 * 1024;

/// Stands before a text in UTF-8 where somebody thought that it had to.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Takes bodies in, with one budget of memory for all of them.
pub(super) struct Bodies {
    bytes_max: usize,
    values_max: usize,
    memory: Arc<Shares>,
    /// Of the connections, those on which a body is on its way.
    arriving: Arc<Shares>,
}

impl Bodies {
    pub(super) fn new(config: &GatewayConfig) -> Self {
        let (whole, one) = (config.bodies_bytes, body_memory_max(config.body_bytes));
        let each = config.share(whole).max(one);
        Self {
            bytes_max: config.body_bytes,
            values_max: values_max(config.body_bytes),
            memory: Shares::new("bytes of request bodies in memory", whole, each),
            arriving: Shares::new(
                "request bodies on their way",
                config.connections,
                config.share(config.connections),
            ),
        }
    }

    /// Reads a body, taking room for it as it comes.
    pub(super) async fn read(
        &self,
        body: Body,
        account: Option<&AccountId>,
    ) -> Result<(Bytes, Share), ApiError> {
        let until = Instant::now() + BODY_TIMEOUT;
        // refused unread: the connection ends, which is what is short
        let _arriving = self.arriving.take(account, 1)?;
        let mut room = self.memory.take(account, 0)?;
        let mut chunks = body.into_data_stream();
        let mut pieces = Pieces::default();
        while let Some(chunk) = timeout_at(until, chunks.next()).await.map_err(|_| late())? {
            let chunk = chunk
                .map_err(|error| ApiError::invalid_body(format_args!("it broke off: {error}")))?;
            let read = pieces.len() + chunk.len();
            if let Err(error) = self.fits(read).and_then(|()| room.grow(chunk.len())) {
                drop((pieces, room));
                let rest = DISCARD_BYTES_MAX.saturating_sub(read);
                discard(Body::from_stream(chunks), rest).await;
                return Err(error);
            }
            pieces.push(chunk);
        }
        Ok((pieces.joined(), room))
    }

    fn fits(&self, read: usize) -> Result<(), ApiError> {
        match read <= self.bytes_max {
            true => Ok(()),
            false => Err(too_large(self.bytes_max)),
        }
    }

    /// Decodes and parses a body, with room for what becomes of it.
    pub(super) async fn parse(
        &self,
        body: Bytes,
        encoding: Encoding,
        aside: Aside,
        mut room: Share,
    ) -> Result<(Fields, Option<Exact>, Share), ApiError> {
        let (bytes_max, values_max) = (self.bytes_max, self.values_max);
        let parsing = move || {
            let body = encoding.decoded(body, bytes_max, &mut room)?;
            let body = without_bom(body);
            let weight = weigh(&body, values_max)?.bytes();
            room.grow(weight)?;
            let Some((marked, exact)) = Exact::marked(&body, mark) else {
                return Ok((parse(&body)?, None, room));
            };
            // each of these numbers is an object of its own, which is bounded as such
            let more = weigh(&marked, values_max)?.bytes().saturating_sub(weight);
            room.grow(more.saturating_add(marked.len() - body.len()))?;
            Ok((parse(&marked)?, Some(exact), room))
        };
        aside.work(parsing).await
    }
}

pub(super) fn too_large(bytes_max: usize) -> ApiError {
    ApiError::new(
        Case::BodyTooLarge,
        format!("the request body is larger than {bytes_max} bytes: send a smaller one"),
    )
}

/// A body without the mark that some editors and languages write before a text.
fn without_bom(body: Bytes) -> Bytes {
    match body.starts_with(BOM) {
        true => body.slice(BOM.len()..),
        false => body,
    }
}

/// What no client can guess, as it is made for its body.
fn mark() -> String {
    format!("{:020x}", Ulid::new().random())
}

fn parse(body: &[u8]) -> Result<Fields, ApiError> {
    match json::from_slice(body) {
        Ok(Value::Object(body)) => Ok(body),
        Ok(_) => Err(ApiError::invalid_body("it must be a JSON object")),
        Err(error) => Err(ApiError::invalid_body(format_args!(
            "it is not JSON: {error}"
        ))),
    }
}

fn late() -> ApiError {
    ApiError::new(
        Case::BodyTimeout,
        "the request body did not arrive in time: send it faster",
    )
}

/// A body as it comes: most come in one piece, which is not copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    all: BytesMut,
}

impl Pieces {
    fn len(&self) -> usize {
        self.first.len().max(self.all.len())
    }

    fn push(&mut self, piece: Bytes) {
        if self.len() == 0 {
            self.first = piece;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.all.extend_from_slice(&piece);
    }

    fn joined(self) -> Bytes {
        if self.all.is_empty() {
            self.first
        } else {
            self.all.freeze()
        }
    }
}

/// Sees off a client without a key. One that waits to be told to go on is not: to read would tell it.
pub(super) async fn see_off(headers: &HeaderMap, body: Body) {
    if !headers.contains_key(header::EXPECT) {
        discard(body, KEYLESS_BYTES_MAX).await;
    }
}

/// Reads what a refused client still sends, within bounds: closing at once would reset the
/// connection before the client has read its answer.
async fn discard(body: Body, bytes_max: usize) {
    let mut chunks = body.into_data_stream();
    let mut read = 0;
    let _ = timeout(DISCARD_TIMEOUT, async {
        while let Some(Ok(chunk)) = chunks.next().await {
            read += chunk.len();
            if read > bytes_max {
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

    #[test]
    fn json_in_a_text_stays_a_text_whatever_its_field_is_called() {
        // as serde_json calls it where one of its values is to be JSON in a text
        let name = "$serde_json::private::RawValue";
        let within = |text: &str| serde_json::json!({ "x": { name: text } }).to_string();
        let mut nested = "[{},{}]".to_owned();
        for _ in 0..10 {
            let body = parse(within(&nested).as_bytes()).unwrap();
            assert_eq!(body["x"][name], nested);
            nested = within(&nested);
        }
    }
}
