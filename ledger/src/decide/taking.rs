//! What a request takes of a cap, and what is held there against it: all that is held, unless its open run holds
//! its share there already.
//!
//! What a run holds is out of the payer's cap while the cap keeps to its limit. One that stands above it was
//! lowered, or somebody used more than was held: from then on nothing is set aside in it for anybody, and a
//! request of the run must fit beside what others hold and what the run's own requests hold. So a cap that is
//! lowered stops the runs under it too.

use seatbelt_schemas::{meter::Amounts, scope::Scopes};

use super::{Context, Cover};
use crate::account::{Account, Cap};

/// How a request stands to a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taking {
    /// Its open run holds its share: it takes nothing.
    Covered,
    /// It takes its own, of what this leaves.
    Own { held: u64 },
    /// It takes its own although its run holds for it: the cap stands above its limit.
    Uncovered { held: u64 },
}

impl Taking {
    pub(super) fn of(account: &Account, context: Context<'_>, scopes: &Scopes, cap: &Cap) -> Self {
        let run = scopes.run.as_ref().zip(account.run_of(scopes));
        let Some((id, _)) = run.filter(|(_, run)| run.covers(&cap.spec)) else {
            return Self::Own { held: cap.held };
        };
        let used = cap.spent(context.at_ms).saturating_add(cap.held);
        if context.cover == Cover::Always || !cap.spec.hard || used <= cap.limit() {
            return Self::Covered;
        }
        let idle = account.unused_of_run(id, cap.spec.meter);
        Self::Uncovered {
            held: cap.held.saturating_sub(idle),
        }
    }

    /// What is held against the request; `None` where it takes nothing.
    pub(super) fn held(self) -> Option<u64> {
        match self {
            Self::Covered => None,
            Self::Own { held } | Self::Uncovered { held } => Some(held),
        }
    }

    /// What a request that would hold `want` takes of the cap; `None` where that is not known (no price).
    pub(super) fn need(self, cap: &Cap, want: &Amounts) -> Option<u64> {
        match self {
            Self::Covered => Some(0),
            Self::Own { .. } | Self::Uncovered { .. } => want.held_in(cap.spec.meter),
        }
    }

    pub(super) fn is_uncovered(self) -> bool {
        matches!(self, Self::Uncovered { .. })
    }
}
