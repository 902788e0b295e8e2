//! Events that begin a reservation, or refuse one.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::is_default;
use crate::{
    budget::Budget,
    cap::{CapEvidence, CapTerms},
    ids::{CapId, KeyId, ReservationId, RunId},
    meter::Amounts,
    scope::Scopes,
};

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

/// Which attempt of a request a reservation is. The first says nothing of it: it may be the only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attempt {
    /// The reservation of the first, by which all of them are known.
    pub of: ReservationId,
    /// Its number, from 2 on; each is one more than the one whose place it took.
    pub n: u32,
}

/// A hold was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    pub reservation: ReservationId,
    pub scopes: Arc<Scopes>,
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
    /// The open run that the budget was taken out of; out of what the key may spend where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<RunId>,
    /// Where it took the place of another one of the same request, which was released right before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// A cap in which its open run holds its share stood above its limit, so that this counted for nothing there;
    /// absent in events of builds that let it pass.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uncovered: bool,
    /// Every matching cap, as the decision met it.
    pub caps: Vec<CapEvidence>,
}

/// An open hold was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resized {
    pub reservation: ReservationId,
    pub key: KeyId,
    /// The hold from here on.
    pub hold: Amounts,
    /// A cap in which its open run holds its share stood above its limit, so that this counted for nothing there;
    /// absent in events of builds that let it pass.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uncovered: bool,
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
    /// The open run that the budget would have been taken out of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<RunId>,
    pub reason: RefusalReason,
    /// The cap that refused.
    pub cap: CapId,
    /// When it would fit, unix ms; none where time alone does not help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at_ms: Option<u64>,
    /// What the cap that refused was; absent in events of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<CapTerms>,
    /// A cap in which its open run holds its share stood above its limit, so that this counted for nothing there;
    /// absent in events of builds that let it pass.
    #[serde(default, skip_serializing_if = "is_default")]
    pub uncovered: bool,
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
