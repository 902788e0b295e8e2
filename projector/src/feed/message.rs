//! One event as one message of the public feed: CloudEvents 1.0 in binary mode, the payload being
//! the event's stored bytes.
//!
//! Everything here follows from the event and the ledger's id, so that a rebuild gives the same ids
//! and bytes.

use std::fmt;

use bytes::Bytes;
use seatbelt_schemas::{
    event::StoredEvent,
    ids::LedgerId,
    names::Names,
    position::{Partition, Position},
    time::rfc3339_ms,
};

/// The partition of one ledger: the first two parts of every `ce-id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventSource {
    pub ledger: LedgerId,
    pub partition: Partition,
}

impl EventSource {
    /// The id of the event at `position`.
    pub fn id(&self, position: Position) -> String {
        format!("{self}/{position}")
    }
}

/// Takes an id apart: its source as text, and its position. `None` where it is no id of the feed.
pub fn parse_id(id: &str) -> Option<(&str, Position)> {
    let (source, position) = id.rsplit_once('/')?;
    Some((source, Position(position.parse().ok()?)))
}

impl fmt::Display for EventSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ledger, self.partition)
    }
}

/// A message of the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedMessage {
    /// Where it is published.
    pub subject: String,
    /// Its `ce-id`, which is its `Nats-Msg-Id` too.
    pub id: String,
    /// Its position within its partition.
    pub position: Position,
    /// All headers, `Nats-Msg-Id` among them.
    pub headers: Vec<(&'static str, String)>,
    /// The event's bytes as stored.
    pub payload: Bytes,
}

impl FeedMessage {
    /// The message of one event.
    pub fn new(names: &Names, source: &EventSource, stored: &StoredEvent) -> Self {
        let event = &stored.event;
        let id = source.id(event.position);
        let kind = token(event.body.kind());
        let headers = vec![
            ("ce-specversion", "1.0".to_owned()),
            ("ce-id", id.clone()),
            ("ce-type", names.feed_type(&kind)),
            ("ce-source", format!("/seatbelt/{source}")),
            ("ce-subject", event.account.to_string()),
            ("ce-time", rfc3339_ms(event.at_ms)),
            ("content-type", "application/msgpack".to_owned()),
            ("Nats-Msg-Id", id.clone()),
        ];
        Self {
            subject: names.feed_subject(&event.account, &kind),
            id,
            position: event.position,
            headers,
            payload: stored.bytes.clone(),
        }
    }
}

/// A kind that a newer build made may not be a safe subject token or header value; all of version 1
/// are, and pass unchanged.
fn token(kind: &str) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
            c
        } else {
            '_'
        }
    };
    let token: String = kind.chars().take(64).map(safe).collect();
    if token.is_empty() {
        "_".to_owned()
    } else {
        token
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::event::{EventBody, KINDS};

    use super::*;
    use crate::testing::{commits, opened};

    fn source() -> EventSource {
        EventSource {
            ledger: LedgerId::new("ledger-1").unwrap(),
            partition: Partition(0),
        }
    }

    #[test]
    fn a_message_is_a_cloud_event_around_the_stored_bytes() {
        let commits = commits(&[&[opened("acct-a")]]);
        let stored = &commits[0].events[1];
        let message = FeedMessage::new(&Names::default(), &source(), stored);
        assert_eq!(message.subject, "seatbelt.spend.v1.acct-a.account_opened");
        assert_eq!(message.payload, stored.bytes);
        let headers: Vec<_> = message
            .headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        assert_eq!(
            headers,
            [
                "ce-specversion: 1.0",
                "ce-id: ledger-1/00/2",
                "ce-type: seatbelt.spend.account_opened.v1",
                "ce-source: /seatbelt/ledger-1/00",
                "ce-subject: acct-a",
                "ce-time: 2023-11-14T22:13:20.000Z",
                "content-type: application/msgpack",
                "Nats-Msg-Id: ledger-1/00/2",
            ]
        );
    }

    #[test]
    fn an_id_comes_apart_as_it_was_made() {
        let id = source().id(Position(7));
        assert_eq!(parse_id(&id), Some(("ledger-1/00", Position(7))));
        for other in ["7", "", "ledger-1/00/x", "ledger-1/00/"] {
            assert_eq!(parse_id(other), None, "{other:?}");
        }
    }

    #[test]
    fn kinds_of_version_1_are_their_own_tokens_and_foreign_ones_cannot_escape_theirs() {
        for kind in KINDS {
            assert_eq!(token(kind), *kind);
        }
        assert_eq!(token("a.b\r\nx: *>"), "a_b__x____");
        assert_eq!(token(""), "_");
        let commits = commits(&[&[(
            seatbelt_schemas::ids::AccountId::new("a").unwrap(),
            EventBody::Unknown {
                kind: "run.opened".to_owned(),
                data: rmpv::Value::Nil,
            },
        )]]);
        let message = FeedMessage::new(&Names::default(), &source(), &commits[0].events[1]);
        assert_eq!(message.subject, "seatbelt.spend.v1.a.run_opened");
    }
}
