//! A partition's writer reached by request: `<prefix>.ledger.v1.<pp>.<verb>`.
//!
//! How a message travels is behind [`post::Post`]: here nobody knows of NATS.
//!
//! A request is MessagePack `{v:1, within_ms, body}`, the reply `{v:1, ok}` or `{v:1, error}`.
//! `within_ms` is how long the caller waits from now on, so that no two clocks are compared. Who
//! calls tries again with the same id until then: commands are idempotent, so one is never carried
//! out twice, and one without an answer is an error and never a free request.

mod client;
pub mod post;
mod reserving;
mod service;
mod twice;

use std::time::Duration;

use seatbelt_schemas::{
    command::{Ack, CommandError, Settle},
    wire::{self, WireError},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use client::RemoteLedger;
pub use service::{DRAIN_MAX, IN_FLIGHT_MAX, LedgerService};

/// Version of request and reply.
const VERSION: u8 = 1;
/// Largest request; a command is far smaller.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;
/// Longest a request may be worked on, whatever it says.
pub const WITHIN_MAX: Duration = Duration::from_secs(120);

/// What can be asked of a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Reserve,
    Resize,
    Settle,
    Release,
    Exchange,
    Read,
    Admin,
}

impl Verb {
    const ALL: [Self; 7] = [
        Self::Reserve,
        Self::Resize,
        Self::Settle,
        Self::Release,
        Self::Exchange,
        Self::Read,
        Self::Admin,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::Resize => "resize",
            Self::Settle => "settle",
            Self::Release => "release",
            Self::Exchange => "exchange",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.name() == name)
    }
}

#[derive(Serialize, Deserialize)]
struct RequestFrame<T> {
    v: u8,
    within_ms: u64,
    body: T,
}

/// A settle and when to answer it.
#[derive(Serialize, Deserialize)]
struct SettleBody {
    command: Settle,
    ack: Ack,
    /// Whether a second reply is to say that what was taken lasts. A host that does not know the field
    /// sends none, and a caller that does not set it gets one.
    #[serde(skip_serializing_if = "is_false", default)]
    lasting: bool,
}

#[derive(Serialize, Deserialize)]
struct ReplyFrame<T> {
    v: u8,
    #[serde(skip_serializing_if = "Option::is_none", default = "none")]
    ok: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    error: Option<CommandError>,
    /// Of the two replies to a settle the second.
    #[serde(skip_serializing_if = "is_false", default)]
    lasting: bool,
}

fn none<T>() -> Option<T> {
    None
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// The version alone, whatever else there is.
#[derive(Deserialize)]
struct Versioned {
    v: u8,
}

fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, WireError> {
    let Versioned { v: found } = wire::decode(what, bytes)?;
    if found != VERSION {
        return Err(WireError::Version { what, found });
    }
    wire::decode(what, bytes)
}

fn encode_reply<T: Serialize>(answer: Result<T, CommandError>) -> Vec<u8> {
    wire::encode(&reply(answer, false))
}

fn reply<T>(answer: Result<T, CommandError>, lasting: bool) -> ReplyFrame<T> {
    let (ok, error) = match answer {
        Ok(outcome) => (Some(outcome), None),
        Err(error) => (None, Some(error)),
    };
    ReplyFrame {
        v: VERSION,
        ok,
        error,
        lasting,
    }
}

fn decode_reply<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CommandError> {
    decode_one_of_two(bytes).map(|(outcome, _)| outcome)
}

/// A reply, and whether it is the second of two.
fn decode_one_of_two<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, bool), CommandError> {
    let unreadable = |detail: String| {
        // the command may have been carried out all the same
        CommandError::unavailable(format!("the writer's reply cannot be read: {detail}"))
    };
    let reply: ReplyFrame<T> =
        decode("ledger reply", bytes).map_err(|error| unreadable(error.to_string()))?;
    match (reply.ok, reply.error) {
        (_, Some(error)) => Err(error),
        (Some(outcome), None) => Ok((outcome, reply.lasting)),
        (None, None) => Err(unreadable("it holds neither outcome nor error".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_comes_back_as_it_was_given() {
        let ok = decode_reply::<u32>(&encode_reply(Ok(7_u32)));
        assert_eq!(ok, Ok(7));
        let error = CommandError::invalid("no");
        let refused = decode_reply::<u32>(&encode_reply::<u32>(Err(error.clone())));
        assert_eq!(refused, Err(error));
    }

    #[test]
    fn a_reply_that_cannot_be_read_leaves_the_outcome_open() {
        for bytes in [&b""[..], b"x", &wire::encode(&("v", 2))] {
            let answer = decode_reply::<u32>(bytes);
            assert!(
                matches!(answer, Err(CommandError::Unavailable { .. })),
                "{answer:?}"
            );
        }
    }

    #[test]
    fn another_version_is_told_as_such() {
        let request = wire::encode(&RequestFrame {
            v: 2,
            within_ms: 1,
            body: (),
        });
        let found = decode::<RequestFrame<()>>("ledger request", &request).err();
        let message = found.map(|error| error.to_string()).unwrap_or_default();
        assert!(message.contains("version 2"), "{message}");
    }

    #[test]
    fn verbs_are_those_of_the_contract() {
        let names = Verb::ALL.map(Verb::name);
        assert_eq!(
            names,
            [
                "reserve", "resize", "settle", "release", "exchange", "read", "admin"
            ]
        );
        assert_eq!(Verb::named("reserve"), Some(Verb::Reserve));
        assert_eq!(Verb::named("steal"), None);
    }
}
