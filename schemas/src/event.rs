//! Events: the envelope and all kinds of version 1.
//!
//! Stored bytes are the truth: [`StoredEvent`] keeps them beside the decoded view, so fields and
//! kinds that this build does not know survive every hop. An event holds all that its decision
//! depended on besides the state, so that it can be decided again and compared byte for byte.

use std::{fmt, marker::PhantomData};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    ids::{AccountId, Actor, CommandId},
    position::Position,
    wire::{self, UnknownField, WireError},
};

mod kinds;

mod account;
mod ending;
mod hold;
mod partition;

pub use account::{
    AccountOpened, Adjusted, CapRemoved, Credited, KeyIssued, KeyRevoked, ThresholdCrossed,
};
pub use ending::{Expired, Overrun, Released, Report, Settled, Timings, UsageSource};
pub use hold::{Asked, Attempt, OnShort, OnUnknown, RefusalReason, Refused, Reserved, Resized};
use kinds::BodySeed;
pub use kinds::{Body, CapSet, EventBody, KINDS, PriceSet};
pub use partition::{Adopted, Genesis, WriterStarted};

/// One event with its envelope.
pub type Event = EventOf<EventBody>;

/// An envelope around what is read of an event's `data`.
#[derive(Debug, Clone, PartialEq)]
pub struct EventOf<B> {
    /// Its number within the partition.
    pub position: Position,
    /// When it was decided, unix ms; never goes backwards within a partition.
    pub at_ms: u64,
    /// Whose it is; [`AccountId::system`] for the partition's own.
    pub account: AccountId,
    /// The command that caused it.
    pub cause: CommandId,
    /// Who gave that command.
    pub actor: Actor,
    pub body: B,
}

#[derive(Serialize)]
struct Envelope<'a> {
    v: u8,
    position: Position,
    at_ms: u64,
    account: &'a AccountId,
    kind: &'a str,
    cause: CommandId,
    actor: &'a Actor,
    data: &'a EventBody,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum EnvelopeField {
    V,
    Position,
    AtMs,
    Account,
    Kind,
    Cause,
    Actor,
    Data,
    #[serde(other)]
    Other,
}

impl Event {
    /// The version this code writes.
    pub const VERSION: u8 = 1;

    /// The event's bytes, as they are stored and hashed.
    pub fn encode(&self) -> Bytes {
        wire::encode(&self.envelope()).into()
    }

    /// As [`Event::encode`], behind what `bytes` holds already.
    pub fn encode_into(&self, bytes: &mut Vec<u8>) {
        wire::encode_into(&self.envelope(), bytes);
    }

    fn envelope(&self) -> Envelope<'_> {
        Envelope {
            v: Self::VERSION,
            position: self.position,
            at_ms: self.at_ms,
            account: &self.account,
            kind: self.body.kind(),
            cause: self.cause,
            actor: &self.actor,
            data: &self.body,
        }
    }
}

impl<B: Body> EventOf<B> {
    /// Reads stored bytes as far as `B` goes; unknown fields are skipped, an unknown kind is kept as it is.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        wire::decode("event", bytes)
    }

    /// As [`EventOf::decode`], and the first field that was skipped, if any was.
    pub fn decode_noting(bytes: &[u8]) -> Result<(Self, Option<UnknownField>), WireError> {
        let (Noted { event, unknown }, skipped) = wire::decode_noting("event", bytes)?;
        Ok((event, skipped.or(unknown)))
    }
}

impl<'de, B: Body> Deserialize<'de> for EventOf<B> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Noted::deserialize(from).map(|noted| noted.event)
    }
}

/// An event, and what was skipped in `data` where that had to be read a second time.
struct Noted<B> {
    event: EventOf<B>,
    unknown: Option<UnknownField>,
}

impl<'de, B: Body> Deserialize<'de> for Noted<B> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(EventVisitor(PhantomData))
    }
}

struct EventVisitor<B>(PhantomData<B>);

impl<'de, B: Body> de::Visitor<'de> for EventVisitor<B> {
    type Value = Noted<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event: a map with v, position, at_ms, account, kind, cause, actor, data")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Noted<B>, A::Error> {
        let (mut v, mut position, mut at_ms, mut account) = (None::<u8>, None, None, None);
        let (mut kind, mut cause, mut actor) = (None::<compact_str::CompactString>, None, None);
        // decoded at once where `kind` came before it, kept raw where it did not
        let (mut body, mut raw) = (None, None);
        while let Some(name) = map.next_key::<EnvelopeField>()? {
            match name {
                EnvelopeField::V => v = Some(map.next_value()?),
                EnvelopeField::Position => position = Some(map.next_value()?),
                EnvelopeField::AtMs => at_ms = Some(map.next_value()?),
                EnvelopeField::Account => account = Some(map.next_value()?),
                EnvelopeField::Kind => kind = Some(map.next_value()?),
                EnvelopeField::Cause => cause = Some(map.next_value()?),
                EnvelopeField::Actor => actor = Some(map.next_value()?),
                EnvelopeField::Data => match &kind {
                    Some(kind) => body = Some(map.next_value_seed(BodySeed(kind, PhantomData))?),
                    None => raw = Some(map.next_value::<rmpv::Value>()?),
                },
                EnvelopeField::Other => {
                    map.next_value::<de::IgnoredAny>()?;
                }
            }
        }
        let missing = de::Error::missing_field;
        match v.ok_or_else(|| missing("v"))? {
            Event::VERSION => {}
            other => {
                return Err(de::Error::custom(format_args!(
                    "event version {other} is not known, use a newer build"
                )));
            }
        }
        let kind = kind.ok_or_else(|| missing("kind"))?;
        let (body, unknown) = match (body, raw) {
            (Some(body), _) => (body, None),
            (None, None) => return Err(missing("data")),
            (None, Some(raw)) => {
                // a raw value cannot be read as an enum written by name: read its bytes again
                let (bytes, seed) = (wire::encode(&raw), BodySeed(&kind, PhantomData));
                let read = wire::decode_seed_noting("event data", &bytes, seed);
                read.map_err(de::Error::custom)?
            }
        };
        let event = EventOf {
            position: position.ok_or_else(|| missing("position"))?,
            at_ms: at_ms.ok_or_else(|| missing("at_ms"))?,
            account: account.ok_or_else(|| missing("account"))?,
            cause: cause.ok_or_else(|| missing("cause"))?,
            actor: actor.ok_or_else(|| missing("actor"))?,
            body,
        };
        let unknown = unknown.map(|field| field.within("data"));
        Ok(Noted { event, unknown })
    }
}

impl<B> EventOf<B> {
    /// Puts another body into the envelope; gives back the one that was in it.
    pub fn replace<C>(self, body: C) -> (EventOf<C>, B) {
        let event = EventOf {
            position: self.position,
            at_ms: self.at_ms,
            account: self.account,
            cause: self.cause,
            actor: self.actor,
            body,
        };
        (event, self.body)
    }
}

/// An event together with the bytes it was read from or will be stored as.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredEvent {
    /// The truth.
    pub bytes: Bytes,
    /// What this build understands of it.
    pub event: Event,
    /// The first field that it does not: who decides by the event must not go on.
    pub unknown: Option<UnknownField>,
}

impl StoredEvent {
    /// Encodes a new event.
    pub fn new(event: Event) -> Self {
        Self {
            bytes: event.encode(),
            event,
            unknown: None,
        }
    }

    /// Reads a stored one.
    pub fn read(bytes: Bytes) -> Result<Self, WireError> {
        let (event, unknown) = Event::decode_noting(&bytes)?;
        Ok(Self {
            bytes,
            event,
            unknown,
        })
    }

    /// The whole event as JSON, from its bytes: also what this build does not understand.
    pub fn to_json(&self) -> Result<serde_json::Value, WireError> {
        let value: rmpv::Value = wire::decode("event", &self.bytes)?;
        serde_json::to_value(&value).map_err(|error| WireError::Shape {
            what: "event as JSON",
            detail: error.to_string(),
        })
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
