//! A run with a budget of its own: what it holds in the caps of its payer, and what of that is left.
//!
//! The budget is taken once, when the run is opened; its requests are then held to the run's own caps
//! and take nothing more where the run holds already. `spent + held` of a payer's cap so never rises
//! by what happens inside the run, except by usage above a hold.

use seatbelt_schemas::{
    budget::{Budget, is_run_cap_id},
    cap::CapSpec,
    ids::{ReservationId, RunId},
    meter::{Amounts, Meter},
    scope::{Scope, Scopes},
};
use serde::{Deserialize, Serialize};

use super::{Cap, range_of};

/// Whose caps decide a reserve and stand in its evidence. A request is met by all that match it; what
/// opens a run, by its payer's alone, whatever caps stand on the run already.
pub fn deciding(scopes: &Scopes, budget: Option<&Budget>) -> Scopes {
    let run = match budget {
        None => scopes.run.clone(),
        Some(_) => None,
    };
    Scopes {
        run,
        ..scopes.clone()
    }
}

/// An open run with a budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The reservation that holds the budget; its end closes the run.
    pub reservation: ReservationId,
    /// Whose budget it is part of: the key and its team, nothing narrower.
    pub payer: Scopes,
    /// What was set aside.
    pub budget: Budget,
}

impl Run {
    /// Whether the run holds in such a cap, so that its requests need not.
    pub fn covers(&self, cap: &CapSpec) -> bool {
        self.budget.amount(cap.meter).is_some() && self.payer.matches(&cap.scope)
    }
}

/// Whether a cap came with `run` and goes with it.
pub(super) fn is_of_run(cap: &CapSpec, run: &RunId) -> bool {
    matches!(&cap.scope, Scope::Run(id) if id == run) && is_run_cap_id(&cap.cap, run, cap.meter)
}

/// What an open run still holds in its payer's caps, by meter: what of its budget is not spent, and
/// never less than what its own requests hold, for an overrun of one must not uncover the others.
pub(super) fn left(caps: &[Cap], run: &RunId) -> Amounts {
    let own = &caps[range_of(caps, Scope::sort_key_of_run(run))];
    let mut left = Amounts::zero();
    for cap in own.iter().filter(|cap| is_of_run(&cap.spec, run)) {
        // a balance: what is spent is the same at any time
        let unspent = cap.limit().saturating_sub(cap.spent(0));
        let amount = unspent.max(cap.held);
        match cap.spec.meter {
            Meter::Requests => left.requests = amount,
            Meter::Tokens => left.tokens = amount,
            Meter::InputTokens => left.input_tokens = amount,
            Meter::OutputTokens => left.output_tokens = amount,
            Meter::Cost => left.cost = Some(amount),
            Meter::Concurrency => {}
        }
    }
    left
}
