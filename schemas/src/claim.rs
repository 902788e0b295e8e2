//! An event as far as its decision depends on it: what the command behind it asked or reported.
//!
//! What the decision itself gave (holds, evidence, charges) is not read here. Whoever audits decides it
//! anew and compares the bytes, which says all that reading it could say, and takes half the time.

use serde::{Deserialize, Deserializer, de::IgnoredAny};

use crate::{
    budget::Budget,
    event::{Asked, Body, EventBody, Report, Timings, UsageSource},
    ids::{ReservationId, RunId},
    scope::Scopes,
    usage::Usage,
};

/// What an event claims to have been decided on.
#[derive(Debug, Clone, PartialEq)]
pub enum Claim {
    /// A hold was asked for, and taken.
    Reserved(ReserveClaim),
    /// A hold was asked for, and refused.
    Refused(RefusedClaim),
    /// A use was reported.
    Settled {
        reservation: ReservationId,
        /// What was used.
        report: Report,
    },
    /// Every other kind, whole: most of it is the command's.
    Other(Box<EventBody>),
}

/// What a reserve asked. Its team is the ledger's to say.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ReserveClaim {
    /// The id that the hold has, or would have had.
    pub reservation: ReservationId,
    pub scopes: Scopes,
    pub asked: Asked,
    /// What was asked for a run to have of its own.
    #[serde(default)]
    pub budget: Option<Budget>,
    /// The run that it was to be taken out of.
    #[serde(default)]
    pub within: Option<RunId>,
    /// Whether what its run holds counted for nothing in a cap above its limit.
    #[serde(default)]
    pub uncovered: bool,
}

/// A refusal, besides what the decision gave.
#[derive(Debug, Clone, PartialEq)]
pub struct RefusedClaim {
    pub request: ReserveClaim,
    /// How many refusals the event stands for.
    pub count: u64,
    /// When the last of them was decided, where that was before it was written.
    pub decided_at_ms: Option<u64>,
    /// Whether the event says what the cap was: earlier builds did not.
    pub terms: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RefusedFields {
    reservation: ReservationId,
    scopes: Scopes,
    asked: Asked,
    budget: Option<Budget>,
    within: Option<RunId>,
    #[serde(default)]
    uncovered: bool,
    terms: Option<IgnoredAny>,
    #[serde(default = "one")]
    count: u64,
    decided_at_ms: Option<u64>,
}

fn one() -> u64 {
    1
}

#[derive(Deserialize)]
struct SettledFields {
    reservation: ReservationId,
    usage: Usage,
    upstream: String,
    source: UsageSource,
    finish: Option<String>,
    timings: Timings,
}

impl Claim {
    /// The kind's name on the wire.
    pub fn kind(&self) -> &str {
        match self {
            Self::Reserved(_) => "reserved",
            Self::Refused(_) => "refused",
            Self::Settled { .. } => "settled",
            Self::Other(body) => body.kind(),
        }
    }
}

impl Body for Claim {
    fn read<'de, D: Deserializer<'de>>(kind: &str, from: D) -> Result<Self, D::Error> {
        Ok(match kind {
            "reserved" => Self::Reserved(ReserveClaim::deserialize(from)?),
            "refused" => {
                let data = RefusedFields::deserialize(from)?;
                Self::Refused(RefusedClaim {
                    request: ReserveClaim {
                        reservation: data.reservation,
                        scopes: data.scopes,
                        asked: data.asked,
                        budget: data.budget,
                        within: data.within,
                        uncovered: data.uncovered,
                    },
                    count: data.count,
                    decided_at_ms: data.decided_at_ms,
                    terms: data.terms,
                })
            }
            "settled" => {
                let data = SettledFields::deserialize(from)?;
                Self::Settled {
                    reservation: data.reservation,
                    report: Report {
                        usage: data.usage,
                        upstream: data.upstream,
                        source: data.source,
                        finish: data.finish,
                        timings: data.timings,
                    },
                }
            }
            kind => Self::Other(EventBody::read(kind, from)?.into()),
        })
    }
}
