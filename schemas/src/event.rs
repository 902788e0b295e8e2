//! Events: the envelope and all kinds of version 1.
//!
//! Stored bytes are the truth: [`StoredEvent`] keeps them beside the decoded view, so fields and
//! kinds that this build does not know survive every hop. An event holds all that its decision
//! depended on besides the state, so that it can be decided again and compared byte for byte.

use std::{fmt, marker::PhantomData, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    budget::Budget,
    cap::{CapEvidence, CapSpec, CapTerms},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ModelId, ReservationId, TeamId},
    meter::Amounts,
    position::{Epoch, Position},
    price::Price,
    scope::Scopes,
    skipped::Skipped,
    usage::Usage,
    wire::{self, WireError},
};

/// The first event of every partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The ledger's id, the same in all partitions.
    pub ledger: LedgerId,
    /// This partition.
    pub partition: u8,
    /// Number of partitions, fixed from here on.
    pub partitions: u8,
}

/// A writer took the partition over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterStarted {
    /// Its reign.
    pub epoch: Epoch,
    /// The process, by a name for people.
    pub writer: String,
    /// Version of the software.
    pub version: String,
    /// Where an operator took a journal that is not what it was as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// Where an operator had messages skipped that stand before it and are no commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

/// An operator's word that a journal goes on from where it ends, whatever was seen after that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Sequence of the commit that it ended with; zero where it was gone.
    pub end: u64,
    /// Why that needed a word.
    pub reason: String,
    /// Who gave it.
    pub by: String,
}

/// An account exists from here on; or one that exists pays by another multiplier from here on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountOpened {
    /// What all its costs are multiplied by, in millionths; it stays as it is where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
}

/// What happens to a request that does not fit whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnShort {
    /// It is refused.
    #[default]
    Refuse,
    /// Its output maximum is lowered to what fits, at least 1 token.
    Clamp,
}

/// How a reservation ends whose usage nobody reported until its deadline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// The whole hold is charged: never below the truth.
    #[default]
    ChargeHold,
    /// Nothing is charged.
    Release,
}

/// A key exists from here on.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyIssued {
    /// The key's public id.
    pub key: KeyId,
    /// Its team.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamId>,
    /// SHA-256 of the secret, hex, for keys whose secret we made. Declared keys have none here: their
    /// secrets are chosen by people and must not be guessable from a public event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_sha256: Option<String>,
}

/// A key reserves nothing from here on; open reservations run to their end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRevoked {
    /// The key.
    pub key: KeyId,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A cap is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapRemoved {
    /// The cap.
    pub cap: CapId,
}

/// A balance was topped up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credited {
    /// The cap whose limit grows.
    pub cap: CapId,
    /// By how much, in the meter's unit.
    pub amount: u64,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is spent was corrected by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    /// The cap whose spend changes, in the window of now.
    pub cap: CapId,
    /// Added to what is spent, in the meter's unit; may be negative.
    pub delta: i64,
    /// Why, in the operator's words.
    pub reason: String,
}

/// What a caller asked to reserve, as far as a decision depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Asked {
    /// Upper bound of the input.
    pub input_tokens: u64,
    /// Output maximum, all choices together.
    pub output_tokens: u64,
    /// Most calls of tools that the provider runs and charges for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tool_calls: u64,
    /// When the reservation ends by itself, unix ms.
    pub deadline_ms: u64,
    /// What to do when it does not fit whole.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_short: OnShort,
    /// What to do when nobody reports its usage.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_unknown: OnUnknown,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A hold was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Its id.
    pub reservation: ReservationId,
    /// Whose it is.
    pub scopes: Arc<Scopes>,
    /// What was asked.
    pub asked: Asked,
    /// What is held. Its output is below what was asked where it was clamped.
    pub hold: Amounts,
    /// Version of the model's price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<u32>,
    /// What its account's costs were multiplied by, in millionths; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
    /// The budget with which this opens the run that `scopes` names; the hold is the same amounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Every matching cap, as the decision met it.
    pub caps: Vec<CapEvidence>,
}

/// An open hold was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    /// The reservation.
    pub reservation: ReservationId,
    /// Its key.
    pub key: KeyId,
    /// The hold from here on.
    pub hold: Amounts,
    /// Every matching cap, as the decision met it.
    pub caps: Vec<CapEvidence>,
}

/// Why a reserve was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// It would not fit even if nothing were held.
    Spent,
    /// It is larger than the limit: it never fits.
    Unsatisfiable,
    /// It would fit once open holds resolve, which took longer than the caller could wait.
    Held,
    /// A cap counts money and the model has no price.
    Unpriced,
}

impl RefusalReason {
    /// The reason's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spent => "spent",
            Self::Unsatisfiable => "unsatisfiable",
            Self::Held => "held",
            Self::Unpriced => "unpriced",
        }
    }
}

/// A reserve was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The id it would have had.
    pub reservation: ReservationId,
    /// Whose it would have been.
    pub scopes: Arc<Scopes>,
    /// What was asked.
    pub asked: Asked,
    /// What would have been held.
    pub want: Amounts,
    /// Version of the model's price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<u32>,
    /// What its account's costs were multiplied by, in millionths; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
    /// The budget with which it would have opened the run that `scopes` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Why.
    pub reason: RefusalReason,
    /// The cap that refused.
    pub cap: CapId,
    /// When it would fit, unix ms; none where time alone does not help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at_ms: Option<u64>,
    /// What the cap that refused was; absent in events of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<CapTerms>,
    /// Every matching cap, as the decision met it.
    pub caps: Vec<CapEvidence>,
    /// How many refusals of the same key, cap and reason this event stands for; one where absent.
    /// The numbers are those of the last of them.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub count: u64,
    /// When the last of them was decided, unix ms, where that was before this event was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decided_at_ms: Option<u64>,
}

fn one() -> u64 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_one(count: &u64) -> bool {
    *count == 1
}

/// Where the numbers of a settle come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// A neuron's usage event or answer.
    Neuron,
    /// The upstream's own report.
    Upstream,
    /// Counted by the gateway, as an upper bound.
    Counted,
    /// Nothing was known: the hold itself.
    Hold,
}

/// How long the stages of a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// From the reserve to the first byte of the answer.
    pub first_byte_ms: u64,
    /// From the reserve to the last byte of the answer.
    pub total_ms: u64,
}

/// What was really used, as the caller reports it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// By kind of token.
    pub usage: Usage,
    /// The upstream that served it.
    pub upstream: String,
    /// Where the numbers come from.
    pub source: UsageSource,
    /// Why the output ended, in the upstream's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<String>,
    /// How long it took.
    pub timings: Timings,
}

/// A reservation was replaced by what was really used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "SettledFields")]
pub struct Settled {
    /// The reservation.
    pub reservation: ReservationId,
    /// Whose it was.
    pub scopes: Arc<Scopes>,
    /// What was used, and by whom that is known.
    pub report: Report,
    /// The model that was charged for; the same as asked.
    pub model: Option<ModelId>,
    /// What is charged, by meter.
    pub charge: Amounts,
    /// Version of the model's price.
    pub price: Option<u32>,
    /// What its account's costs were multiplied by when it was reserved, in millionths; 1 where absent.
    pub multiplier_ppm: Option<u64>,
    /// The moment of the reservation: the spend belongs to it. Unix ms.
    pub reserved_at_ms: u64,
    /// The reservation had expired: this replaces the charge made then.
    pub late: bool,
}

/// [`Settled`] on the wire, where the report's fields stand among its own. Written out, because
/// `#[serde(flatten)]` buffers every field.
#[derive(Deserialize)]
struct SettledFields {
    reservation: ReservationId,
    scopes: Arc<Scopes>,
    usage: Usage,
    upstream: String,
    source: UsageSource,
    finish: Option<String>,
    timings: Timings,
    model: Option<ModelId>,
    charge: Amounts,
    price: Option<u32>,
    multiplier_ppm: Option<u64>,
    reserved_at_ms: u64,
    #[serde(default)]
    late: bool,
}

impl From<SettledFields> for Settled {
    fn from(fields: SettledFields) -> Self {
        let report = Report {
            usage: fields.usage,
            upstream: fields.upstream,
            source: fields.source,
            finish: fields.finish,
            timings: fields.timings,
        };
        Self {
            reservation: fields.reservation,
            scopes: fields.scopes,
            report,
            model: fields.model,
            charge: fields.charge,
            price: fields.price,
            multiplier_ppm: fields.multiplier_ppm,
            reserved_at_ms: fields.reserved_at_ms,
            late: fields.late,
        }
    }
}

impl Serialize for Settled {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Fields<'a> {
            reservation: ReservationId,
            scopes: &'a Scopes,
            usage: &'a Usage,
            upstream: &'a str,
            source: UsageSource,
            #[serde(skip_serializing_if = "Option::is_none")]
            finish: Option<&'a str>,
            timings: &'a Timings,
            #[serde(skip_serializing_if = "Option::is_none")]
            model: Option<&'a ModelId>,
            charge: &'a Amounts,
            #[serde(skip_serializing_if = "Option::is_none")]
            price: Option<u32>,
            #[serde(skip_serializing_if = "Option::is_none")]
            multiplier_ppm: Option<u64>,
            reserved_at_ms: u64,
            #[serde(skip_serializing_if = "is_default")]
            late: bool,
        }
        let Report {
            usage,
            upstream,
            source,
            finish,
            timings,
        } = &self.report;
        Fields {
            reservation: self.reservation,
            scopes: &self.scopes,
            usage,
            upstream,
            source: *source,
            finish: finish.as_deref(),
            timings,
            model: self.model.as_ref(),
            charge: &self.charge,
            price: self.price,
            multiplier_ppm: self.multiplier_ppm,
            reserved_at_ms: self.reserved_at_ms,
            late: self.late,
        }
        .serialize(to)
    }
}

/// A reservation was given back, nothing used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// The reservation.
    pub reservation: ReservationId,
    /// Its key.
    pub key: KeyId,
    /// Why, in one phrase.
    pub reason: String,
}

/// A reservation ended by its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    /// The reservation.
    pub reservation: ReservationId,
    /// Its key.
    pub key: KeyId,
    /// By which policy.
    pub policy: OnUnknown,
    /// What is charged: the hold, or nothing.
    pub charge: Amounts,
    /// The moment of the reservation: the spend belongs to it. Unix ms.
    pub reserved_at_ms: u64,
}

/// A settle lay above its hold. The charge is recorded in full by `settled`; this flags it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrun {
    /// The reservation.
    pub reservation: ReservationId,
    /// Its key.
    pub key: KeyId,
    /// How far above, by meter.
    pub above: Amounts,
}

/// Spend crossed a share of a limit, once per window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThresholdCrossed {
    /// The cap.
    pub cap: CapId,
    /// The share, in per cent.
    pub percent: u8,
    /// The limit, credits included.
    pub limit: u64,
    /// What is spent.
    pub spent: u64,
}

/// What is read of an event's `data`.
pub trait Body: Sized {
    /// Reads `data` straight into the type that `kind` names.
    fn read<'de, D: Deserializer<'de>>(kind: &str, from: D) -> Result<Self, D::Error>;
}

struct BodySeed<'a, B>(&'a str, PhantomData<B>);

impl<'de, B: Body> de::DeserializeSeed<'de> for BodySeed<'_, B> {
    type Value = B;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<B, D::Error> {
        B::read(self.0, from)
    }
}

macro_rules! kinds {
    ($($variant:ident = $kind:literal),* $(,)?) => {
        /// What happened: one variant per kind of version 1, and whatever a newer build wrote.
        #[derive(Debug, Clone, PartialEq)]
        pub enum EventBody {
            $(#[doc = concat!("`", $kind, "`")] $variant($variant),)*
            /// A kind that this build does not know; readers skip it.
            Unknown {
                /// Its name.
                kind: String,
                /// Its data, as it is.
                data: rmpv::Value,
            },
        }

        /// Every kind of version 1.
        pub const KINDS: &[&str] = &[$($kind),*];

        impl EventBody {
            /// The kind's name on the wire.
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$variant(_) => $kind,)*
                    Self::Unknown { kind, .. } => kind,
                }
            }
        }

        $(impl From<$variant> for EventBody {
            fn from(data: $variant) -> Self {
                Self::$variant(data)
            }
        })*

        impl Serialize for EventBody {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$variant(data) => data.serialize(to),)*
                    Self::Unknown { data, .. } => data.serialize(to),
                }
            }
        }

        impl Body for EventBody {
            fn read<'de, D: Deserializer<'de>>(kind: &str, from: D) -> Result<Self, D::Error> {
                match kind {
                    $($kind => $variant::deserialize(from).map(Self::$variant),)*
                    kind => Ok(Self::Unknown { kind: kind.to_owned(), data: rmpv::Value::deserialize(from)? }),
                }
            }
        }
    };
}

/// `price_set` carries a whole price.
pub type PriceSet = Price;
/// `cap_set` carries a whole cap.
pub type CapSet = CapSpec;

kinds! {
    Genesis = "genesis",
    WriterStarted = "writer_started",
    AccountOpened = "account_opened",
    KeyIssued = "key_issued",
    KeyRevoked = "key_revoked",
    CapSet = "cap_set",
    CapRemoved = "cap_removed",
    Credited = "credited",
    Adjusted = "adjusted",
    PriceSet = "price_set",
    Reserved = "reserved",
    Resized = "resized",
    Refused = "refused",
    Settled = "settled",
    Released = "released",
    Expired = "expired",
    Overrun = "overrun",
    ThresholdCrossed = "threshold_crossed",
}

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
    /// What happened.
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
}

impl<'de, B: Body> Deserialize<'de> for EventOf<B> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(EventVisitor(PhantomData))
    }
}

struct EventVisitor<B>(PhantomData<B>);

impl<'de, B: Body> de::Visitor<'de> for EventVisitor<B> {
    type Value = EventOf<B>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event: a map with v, position, at_ms, account, kind, cause, actor, data")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<EventOf<B>, A::Error> {
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
        let body = match (body, raw) {
            (Some(body), _) => body,
            (None, None) => return Err(missing("data")),
            (None, Some(raw)) => {
                // a raw value cannot be read as an enum written by name: read its bytes again
                let bytes = wire::encode(&raw);
                let mut reader = rmp_serde::Deserializer::from_read_ref(&bytes);
                B::read(&kind, &mut reader).map_err(de::Error::custom)?
            }
        };
        Ok(EventOf {
            position: position.ok_or_else(|| missing("position"))?,
            at_ms: at_ms.ok_or_else(|| missing("at_ms"))?,
            account: account.ok_or_else(|| missing("account"))?,
            cause: cause.ok_or_else(|| missing("cause"))?,
            actor: actor.ok_or_else(|| missing("actor"))?,
            body,
        })
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
}

impl StoredEvent {
    /// Encodes a new event.
    pub fn new(event: Event) -> Self {
        Self {
            bytes: event.encode(),
            event,
        }
    }

    /// Reads a stored one.
    pub fn read(bytes: Bytes) -> Result<Self, WireError> {
        let event = Event::decode(&bytes)?;
        Ok(Self { bytes, event })
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
