//! A cap: a limit of one meter, in one window, for one scope.

use serde::{Deserialize, Serialize};

use crate::{ids::CapId, meter::Meter, scope::Scope, window::Window};

/// Percentages of the limit at which an alert is written, unless the cap says otherwise.
pub const THRESHOLDS_DEFAULT: [u8; 3] = [50, 80, 100];
/// Most thresholds one cap may have.
pub const THRESHOLDS_MAX: usize = 4;
/// Most caps of one scope: bounds the events that one command can cause.
pub const CAPS_PER_SCOPE_MAX: usize = 8;
/// Most caps that operators may give one account. Those of open runs stand beside them: whoever opens runs keeps no
/// operator from limiting it.
pub const CAPS_PER_ACCOUNT_MAX: usize = 10_000;
/// Most caps that the open runs of one account may have together.
pub const CAPS_OF_RUNS_MAX: usize = 5_000;
/// Most caps of one account, its operators' and its runs'.
pub const CAPS_WITH_RUNS_MAX: usize = CAPS_PER_ACCOUNT_MAX + CAPS_OF_RUNS_MAX;

/// What a cap is, as set by an operator. Counters are state, not part of this.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CapSpec {
    /// The cap's id, unique inside its account.
    pub cap: CapId,
    /// What it applies to.
    pub scope: Scope,
    /// What it counts.
    pub meter: Meter,
    /// Over which time it counts.
    pub window: Window,
    /// Most that may be spent and held together, in the meter's unit.
    pub limit: u64,
    /// Hard refuses; soft only alerts.
    #[serde(default = "hard", skip_serializing_if = "Clone::clone")]
    pub hard: bool,
    /// Percentages of the limit at which `threshold_crossed` is written, ascending.
    #[serde(
        default = "thresholds_default",
        skip_serializing_if = "is_thresholds_default"
    )]
    pub thresholds: Vec<u8>,
}

fn hard() -> bool {
    true
}

fn thresholds_default() -> Vec<u8> {
    THRESHOLDS_DEFAULT.to_vec()
}

fn is_thresholds_default(thresholds: &[u8]) -> bool {
    thresholds == THRESHOLDS_DEFAULT
}

/// A cap as a decision met it: evidence in `reserved` and `refused`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapEvidence {
    pub cap: CapId,
    /// Its limit, credits included.
    pub limit: u64,
    /// Settled in its window, before this event.
    pub spent: u64,
    /// Held by open reservations, before this event.
    pub held: u64,
}

/// What a cap was when it refused, besides its numbers, so that a refusal can be told again in full
/// when the cap is long gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapTerms {
    /// What it applied to.
    pub scope: Scope,
    /// What it counted.
    pub meter: Meter,
    /// Over which time it counted.
    pub window: Window,
    /// When all that was spent then will have left the window, unix ms; none for a balance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at_ms: Option<u64>,
}

/// A cap as it stands, for callers: with what it is and when it frees up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapStanding {
    pub cap: CapId,
    /// What it applies to.
    pub scope: Scope,
    /// What it counts.
    pub meter: Meter,
    /// Over which time it counts.
    pub window: Window,
    /// Its limit, credits included.
    pub limit: u64,
    /// Settled in its window.
    pub spent: u64,
    /// Held by open reservations.
    pub held: u64,
    /// When all that is spent now will have left the window, unix ms; none for a balance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets_at_ms: Option<u64>,
}

impl CapStanding {
    /// What may still be held: limit less spent less held, never below zero.
    pub fn available(&self) -> u64 {
        self.limit
            .saturating_sub(self.spent)
            .saturating_sub(self.held)
    }
}
