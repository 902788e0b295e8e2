//! Events that end a reservation: what was used, given back, or charged by policy.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Attempt, OnUnknown, is_default};
use crate::{
    ids::{KeyId, ModelId, ReservationId},
    meter::Amounts,
    scope::Scopes,
    usage::Usage,
};

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
    /// Which attempt of its request answered, where it was not the first.
    pub attempt: Option<Attempt>,
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
    attempt: Option<Attempt>,
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
            attempt: fields.attempt,
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
            #[serde(skip_serializing_if = "Option::is_none")]
            attempt: Option<Attempt>,
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
            attempt: self.attempt,
        }
        .serialize(to)
    }
}

/// A reservation was given back, nothing used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub reservation: ReservationId,
    pub key: KeyId,
    /// Why, in one phrase.
    pub reason: String,
    /// The reservation that took its place, where one did: its event follows at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaced_by: Option<ReservationId>,
}

/// A reservation ended by its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expired {
    pub reservation: ReservationId,
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
    pub reservation: ReservationId,
    pub key: KeyId,
    /// How far above, by meter.
    pub above: Amounts,
}
