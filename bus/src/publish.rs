//! One message to JetStream, and what came of it: acknowledged, at the wrong place, refused, or
//! nobody knows.

use std::time::Duration;

use async_nats::{
    HeaderMap, HeaderValue, Request, RequestErrorKind,
    header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_STREAM},
    jetstream::{self, ErrorCode, publish::PublishAck, response::Response},
};
use bytes::Bytes;
use tokio::time::timeout;

use super::{Nats, connect::NoAnswer, stream::is_passing};

/// Why nobody knows, where nothing was heard.
pub const SILENCE: &str = "no acknowledgement came in time";

/// Why nobody knows, where no stream listens.
pub const NOBODY: &str = "no stream listens on its subject";

/// What came of publishing.
#[derive(Debug)]
pub enum Acceptance {
    /// It is stored, or the server took it for a duplicate and says so.
    Acknowledged(PublishAck),
    /// The stream or subject is not where the message expected it; nothing was written.
    WrongPlace,
    /// The server refuses; nothing was written by this attempt.
    Refused(String),
    /// No answer came in time, over a connection that stands. Nobody knows.
    Silence,
    /// No stream listens on the subject: it is gone, or the server is only starting. Nothing was
    /// written by this attempt.
    Nobody,
    /// Nobody knows.
    Unknown(Box<dyn std::error::Error + Send + Sync>),
}

/// Publishes and waits for the acknowledgement, at most `patience`; not longer than the connection
/// lasts, and not after the server has denied it.
pub async fn publish(
    nats: &Nats,
    subject: &str,
    headers: HeaderMap,
    payload: Bytes,
    patience: Duration,
) -> Acceptance {
    let request = Request::new()
        .headers(headers)
        .payload(payload)
        .timeout(Some(patience));
    let mut troubles = nats.troubles();
    let sent = nats.client().send_request(subject.to_owned(), request);
    tokio::select! {
        biased;
        // the outer bound also covers a client whose queue is full
        reply = timeout(patience, sent) => match reply {
            Ok(Ok(message)) => acknowledged(&message.payload),
            Ok(Err(error)) => match error.kind() {
                RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::InvalidSubject => {
                    Acceptance::Refused(error.to_string())
                }
                RequestErrorKind::TimedOut => Acceptance::Silence,
                RequestErrorKind::NoResponders => Acceptance::Nobody,
                _ => Acceptance::Unknown(error.into()),
            },
            Err(_) => Acceptance::Silence,
        },
        trouble = troubles.about(subject) => match trouble {
            NoAnswer::Lost => Acceptance::Unknown("the connection was lost".into()),
            NoAnswer::Denied(denied) => Acceptance::Refused(denied.to_string()),
        },
    }
}

/// As [`publish`], if the stream ends at `expected`.
pub async fn publish_after(
    nats: &Nats,
    stream: &str,
    subject: &str,
    expected: u64,
    payload: Bytes,
    patience: Duration,
) -> Acceptance {
    let mut headers = HeaderMap::new();
    headers.insert(NATS_EXPECTED_LAST_SEQUENCE, HeaderValue::from(expected));
    headers.insert(NATS_EXPECTED_STREAM, stream);
    publish(nats, subject, headers, payload, patience).await
}

fn acknowledged(payload: &[u8]) -> Acceptance {
    match serde_json::from_slice::<Response<PublishAck>>(payload) {
        Ok(Response::Ok(ack)) => Acceptance::Acknowledged(ack),
        Ok(Response::Err { error }) => refusal(&error),
        Err(error) => Acceptance::Unknown(error.into()),
    }
}

/// The codes are those of nats-server's `errors.json`.
fn refusal(error: &jetstream::Error) -> Acceptance {
    /// As 10071, without the sequence: raised for a message that is still being replicated.
    const WRONG_LAST_SEQUENCE_CONSTANT: ErrorCode = ErrorCode(10164);
    let code = error.error_code();
    if code == ErrorCode::STREAM_WRONG_LAST_SEQUENCE || code == WRONG_LAST_SEQUENCE_CONSTANT {
        return Acceptance::WrongPlace;
    }
    if is_passing(code) {
        return Acceptance::Unknown(error.clone().into());
    }
    Acceptance::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(reply: &str, expected: &str) {
        let outcome = match acknowledged(reply.as_bytes()) {
            Acceptance::Acknowledged(ack) => format!("at {}", ack.sequence),
            Acceptance::WrongPlace => "wrong place".to_owned(),
            Acceptance::Silence | Acceptance::Nobody | Acceptance::Unknown(_) => {
                "unknown".to_owned()
            }
            Acceptance::Refused(detail) => detail,
        };
        assert_eq!(outcome, expected);
    }

    fn server_error(code: u16, err_code: u16, words: &str) -> String {
        format!(
            r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"{words}"}},"stream":"S","seq":0}}"#
        )
    }

    #[test]
    fn a_reply_is_an_acknowledgement_or_nobody_knows() {
        check(r#"{"stream":"S","seq":8}"#, "at 8");
        check("not json", "unknown");
        check("{}", "unknown");
    }

    #[test]
    fn a_server_error_is_the_fence_or_passes_or_is_a_refusal() {
        check(
            &server_error(400, 10071, "wrong last sequence: 9"),
            "wrong place",
        );
        check(
            &server_error(400, 10164, "wrong last sequence"),
            "wrong place",
        );
        check(
            &server_error(503, 10008, "temporarily unavailable"),
            "unknown",
        );
        check(
            &server_error(500, 10047, "insufficient storage resources available"),
            "insufficient storage resources available (code 500, error code 10047)",
        );
        check(
            &server_error(400, 10109, "invalid operation on sealed stream"),
            "invalid operation on sealed stream (code 400, error code 10109)",
        );
    }
}
