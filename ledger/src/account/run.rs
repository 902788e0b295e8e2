//! A run with a budget of its own: what it holds in the caps of its payer, and what of that is left.
//!
//! The budget is taken once, when the run is opened; its requests are then held to the run's own caps
//! and take nothing more where the run holds already. `spent + held` of a payer's cap so never rises
//! by what happens inside the run, except by usage above a hold.

use seatbelt_schemas::{
    budget::{Budget, is_run_cap_id},
    cap::CapSpec,
    command::{RunStanding, STANDING_RUNS_MAX},
    event::Reserved,
    ids::{ReservationId, RunId},
    meter::{Amounts, Meter},
    scope::{Scope, Scopes},
};
use serde::{Deserialize, Serialize};

use super::{Account, Cap, each_matching, range_of};

/// Whose caps decide a reserve and stand in its evidence. A request is met by all that match it; what
/// opens a run, by its payer's and those of the run that it is taken out of, whatever caps stand on the
/// new run already.
pub fn deciding(scopes: &Scopes, budget: Option<&Budget>, within: Option<&RunId>) -> Scopes {
    let run = match budget {
        None => scopes.run.as_ref(),
        Some(_) => within,
    };
    Scopes {
        run: run.cloned(),
        ..scopes.clone()
    }
}

/// How deep runs may lie within each other.
pub const RUN_DEPTH_MAX: usize = 8;

/// An open run with a budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The reservation that holds the budget; its end closes the run.
    pub reservation: ReservationId,
    /// Whose budget it is part of: the key and its team, nothing narrower.
    pub payer: Scopes,
    /// What was set aside.
    pub budget: Budget,
    /// The runs that it was opened within, the innermost first: all of them must be open for it to be
    /// spent from, and what is left of it goes back to the first that is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<RunId>,
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

/// What of a closing run nobody spent or holds, by meter: it goes to the run that it was within.
fn unused(caps: &[Cap], run: &RunId) -> Vec<(Meter, u64)> {
    let own = &caps[range_of(caps, Scope::sort_key_of_run(run))];
    let own = own.iter().filter(|cap| is_of_run(&cap.spec, run));
    own.map(|cap| {
        let unspent = cap.limit().saturating_sub(cap.spent(0));
        (cap.spec.meter, unspent.saturating_sub(cap.held))
    })
    .collect()
}

/// Runs in the account's own state.
impl Account {
    /// Whether a run is open and so is every run that it is within; the first that is not.
    pub fn run_ended<'a>(&'a self, run: &'a RunId) -> Option<&'a RunId> {
        let Some(open) = self.runs.get(run) else {
            return Some(run);
        };
        open.within
            .iter()
            .find(|outer| !self.runs.contains_key(*outer))
    }

    /// How a run stands, where it is open.
    pub fn run_standing(&self, id: &RunId) -> Option<RunStanding> {
        let run = self.runs.get(id)?;
        let open = self.open.get(&run.reservation)?;
        Some(RunStanding {
            reservation: run.reservation,
            key: run.payer.key.clone(),
            budget: run.budget,
            opened_at_ms: open.at_ms,
            deadline_ms: open.asked.deadline_ms,
            within: run.within.clone(),
        })
    }

    /// What of an open run's budget in a meter nobody spent and none of its requests holds.
    pub(crate) fn unused_of_run(&self, id: &RunId, meter: Meter) -> u64 {
        let unused = unused(&self.caps, id).into_iter();
        let mut of_meter = unused.filter(|(known, _)| *known == meter);
        of_meter.next().map_or(0, |(_, amount)| amount)
    }

    /// Open runs within a run, whether that is open or not, the innermost first.
    pub fn runs_inside(&self, id: &RunId) -> Vec<RunId> {
        let runs = self.runs.iter();
        let mut inside: Vec<_> = runs
            .filter(|(_, inner)| inner.within.contains(id))
            .collect();
        inside.sort_by_key(|(_, inner)| std::cmp::Reverse(inner.within.len()));
        let inside = inside.into_iter().take(STANDING_RUNS_MAX);
        inside.map(|(inner, _)| inner.clone()).collect()
    }

    /// Changes the limits of an open run's own caps; what it holds for its requests follows.
    fn change_limits(&mut self, id: &RunId, change: impl Fn(&mut Cap)) {
        let scopes = self.runs.get(id).map(|run| Scopes {
            run: Some(id.clone()),
            ..run.payer.clone()
        });
        let Some(scopes) = scopes else { return };
        self.within_run(&scopes, |account| {
            let own = range_of(&account.caps, Scope::sort_key_of_run(id));
            let own = account.caps[own].iter_mut();
            own.filter(|cap| is_of_run(&cap.spec, id)).for_each(change);
        });
    }

    /// Sets a run's budget aside: its payer's caps hold it, the run's own caps divide it up. What is taken
    /// out of another run is not that run's any more.
    pub(super) fn open_run(&mut self, data: &Reserved, budget: Budget, at_ms: u64) {
        let Some(id) = data.scopes.run.clone() else {
            return;
        };
        let mut within = Vec::new();
        if let Some(outer) = &data.within {
            self.change_limits(outer, |cap| {
                let amount = budget.amount(cap.spec.meter).unwrap_or(0);
                cap.spec.limit = cap.spec.limit.saturating_sub(amount);
            });
            within.push(outer.clone());
            let outside = self.runs.get(outer).map(|outer| &outer.within);
            within.extend(outside.into_iter().flatten().cloned());
        }
        let run = Run {
            reservation: data.reservation,
            payer: deciding(&data.scopes, Some(&budget), None),
            budget,
            within,
        };
        self.each_matching(&run.payer, |cap| {
            let amount = budget.amount(cap.spec.meter).unwrap_or(0);
            cap.held = cap.held.saturating_add(amount);
        });
        self.holdings.rest(&run, &Amounts::zero(), &budget.hold());
        self.insert_open(data, at_ms);
        self.holdings.run_opened(&id, &run);
        self.runs.insert(id.clone(), run);
        budget.caps(&id).for_each(|spec| self.set_cap(&spec, at_ms));
    }

    /// Gives what is left of a run's budget back and removes its caps: to the innermost run around it that
    /// is open, else to its payer. Requests that are still open hold by themselves from here on, within
    /// what the run held for them.
    pub(super) fn close_run(&mut self, id: &RunId) {
        let left = left(&self.caps, id);
        let unused = unused(&self.caps, id);
        let Some(run) = self.runs.remove(id) else {
            return;
        };
        self.holdings.run_closed(id, &run);
        self.each_matching(&run.payer, |cap| {
            if run.covers(&cap.spec) {
                let amount = left.spent_in(cap.spec.meter).unwrap_or(0);
                cap.held = cap.held.saturating_sub(amount);
            }
        });
        self.caps.retain(|cap| !is_of_run(&cap.spec, id));
        self.holdings.rest(&run, &left, &Amounts::zero());
        let requests: Vec<_> = self.holdings.of_run(id).copied().collect();
        let Self {
            open,
            caps,
            holdings,
            ..
        } = self;
        for request in requests.iter().filter_map(|id| open.get(id)) {
            holdings.take_over(&request.scopes, &run, &request.hold);
            each_matching(caps, &request.scopes, |cap| {
                if run.covers(&cap.spec) {
                    cap.take(&request.hold);
                }
            });
        }
        let outer = run.within.iter().find(|id| self.runs.contains_key(*id));
        if let Some(outer) = outer {
            self.change_limits(outer, |cap| {
                let back = unused.iter().find(|(meter, _)| *meter == cap.spec.meter);
                let back = back.map_or(0, |(_, amount)| *amount);
                cap.spec.limit = cap.spec.limit.saturating_add(back);
            });
        }
    }

    /// Changes what a request holds and spends; what its open run still holds for it follows.
    pub(super) fn within_run(&mut self, scopes: &Scopes, change: impl FnOnce(&mut Self)) {
        let Some(id) = scopes.run.as_ref().filter(|id| self.runs.contains_key(id)) else {
            return change(self);
        };
        let before = left(&self.caps, id);
        change(self);
        let after = left(&self.caps, id);
        let Self {
            runs,
            caps,
            holdings,
            ..
        } = self;
        if let Some(run) = runs.get(id) {
            holdings.rest(run, &before, &after);
            each_matching(caps, &run.payer, |cap| {
                if run.covers(&cap.spec) {
                    let amount = |of: &Amounts| of.spent_in(cap.spec.meter).unwrap_or(0);
                    let others = cap.held.saturating_sub(amount(&before));
                    cap.held = others.saturating_add(amount(&after));
                }
            });
        }
    }
}
