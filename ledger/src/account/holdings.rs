//! What is held in every scope that something open touches, and which reservations belong to which run:
//! so that a new cap, and a run that opens or closes, need not look through everything that is open.
//!
//! Kept by `apply` beside the caps, by the same rule. It follows from the rest of the account, so it is
//! part of no snapshot and no event: whoever reads an account makes it anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hash,
};

use seatbelt_schemas::{
    budget::Budget,
    ids::{EndUserId, KeyId, ModelId, ReservationId, RunId, TeamId},
    meter::{Amounts, Meter},
    scope::{Scope, Scopes},
};

use super::{Cap, Reservation, Run, run::left};
use crate::hashing::Map;

const METERS: [Meter; 6] = [
    Meter::Requests,
    Meter::Tokens,
    Meter::InputTokens,
    Meter::OutputTokens,
    Meter::Cost,
    Meter::Concurrency,
];

/// What is held in one scope, by meter: in each what a cap of that scope and meter holds. Wide enough
/// for any number of holds, so that nothing is lost in between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held([u128; METERS.len()]);

impl Held {
    fn is_zero(&self) -> bool {
        self.0 == [0; METERS.len()]
    }

    fn in_meter(&self, meter: Meter) -> u64 {
        let each = METERS.iter().zip(self.0);
        let found = each
            .filter(|(known, _)| **known == meter)
            .map(|(_, held)| held);
        u64::try_from(found.sum::<u128>()).unwrap_or(u64::MAX)
    }

    fn each(&mut self, mut change: impl FnMut(Meter, &mut u128)) {
        for (meter, held) in METERS.into_iter().zip(&mut self.0) {
            change(meter, held);
        }
    }
}

/// What open reservations hold, by scope, and the reservations of each run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holdings {
    account: Held,
    teams: Map<TeamId, Held>,
    keys: Map<KeyId, Held>,
    models: Map<ModelId, Held>,
    runs: Map<RunId, Held>,
    end_users: Map<EndUserId, Held>,
    /// What of the above open runs hold.
    by_runs: Map<Scope, Held>,
    of_runs: Map<RunId, BTreeSet<ReservationId>>,
    /// Open runs by the key that opened them.
    of_keys: Map<KeyId, BTreeSet<RunId>>,
}

impl Holdings {
    /// Made anew from what it follows from.
    pub(super) fn of(
        open: &BTreeMap<ReservationId, Reservation>,
        runs: &BTreeMap<RunId, Run>,
        caps: &[Cap],
    ) -> Self {
        let mut holdings = Self::default();
        for (id, run) in runs {
            holdings.run_opened(id, run);
        }
        for (id, reservation) in open {
            let scopes = &reservation.scopes;
            holdings.opened(*id, scopes);
            match scopes
                .run
                .as_ref()
                .and_then(|run| Some((run, runs.get(run)?)))
            {
                Some((name, run)) if run.reservation == *id => {
                    holdings.rest(run, &Amounts::zero(), &left(caps, name));
                }
                Some((_, run)) => holdings.take(scopes, Some(run), &reservation.hold),
                None => holdings.take(scopes, None, &reservation.hold),
            }
        }
        holdings
    }

    /// What is held in a scope, as a cap of it in `meter` holds it.
    pub(super) fn held(&self, scope: &Scope, meter: Meter) -> u64 {
        let held = match scope {
            Scope::Account => Some(&self.account),
            Scope::Team(id) => self.teams.get(id),
            Scope::Key(id) => self.keys.get(id),
            Scope::Model(id) => self.models.get(id),
            Scope::Run(id) => self.runs.get(id),
            Scope::EndUser(id) => self.end_users.get(id),
        };
        held.map_or(0, |held| held.in_meter(meter))
    }

    /// What of it runs hold.
    pub(super) fn held_by_runs(&self, scope: &Scope, meter: Meter) -> u64 {
        let held = self.by_runs.get(scope);
        held.map_or(0, |held| held.in_meter(meter))
    }

    /// The open reservations of a run, its budget included.
    pub(super) fn of_run(&self, run: &RunId) -> impl Iterator<Item = &ReservationId> {
        self.of_runs.get(run).into_iter().flatten()
    }

    /// The open runs of a key, by id.
    pub(super) fn runs_of(&self, key: &KeyId) -> impl Iterator<Item = &RunId> {
        self.of_keys.get(key).into_iter().flatten()
    }

    /// A run is open from here on.
    pub(super) fn run_opened(&mut self, id: &RunId, run: &Run) {
        let of_key = self.of_keys.entry(run.payer.key.clone()).or_default();
        of_key.insert(id.clone());
    }

    /// A run is not open any more.
    pub(super) fn run_closed(&mut self, id: &RunId, run: &Run) {
        let key = &run.payer.key;
        if let Some(of_key) = self.of_keys.get_mut(key) {
            of_key.remove(id);
            if of_key.is_empty() {
                self.of_keys.remove(key);
            }
        }
    }

    /// A reservation is open from here on.
    pub(super) fn opened(&mut self, id: ReservationId, scopes: &Scopes) {
        if let Some(run) = &scopes.run {
            self.of_runs.entry(run.clone()).or_default().insert(id);
        }
    }

    /// A reservation is not open any more.
    pub(super) fn ended(&mut self, id: ReservationId, scopes: &Scopes) {
        let Some(run) = &scopes.run else { return };
        if let Some(ids) = self.of_runs.get_mut(run) {
            ids.remove(&id);
            if ids.is_empty() {
                self.of_runs.remove(run);
            }
        }
    }

    /// A request holds: by itself where its open run does not hold for it.
    pub(super) fn take(&mut self, scopes: &Scopes, run: Option<&Run>, hold: &Amounts) {
        self.each(scopes, run, |held, covered| {
            held.each(|meter, held| {
                if !covers(covered, meter) {
                    *held += u128::from(hold.held_in(meter).unwrap_or(0));
                }
            });
        });
    }

    /// Takes back what [`Self::take`] did.
    pub(super) fn give_back(&mut self, scopes: &Scopes, run: Option<&Run>, hold: &Amounts) {
        self.each(scopes, run, |held, covered| {
            held.each(|meter, held| {
                if !covers(covered, meter) {
                    let amount = u128::from(hold.held_in(meter).unwrap_or(0));
                    *held = held.saturating_sub(amount);
                }
            });
        });
    }

    /// A request whose run has closed holds by itself what the run held for it.
    pub(super) fn take_over(&mut self, scopes: &Scopes, run: &Run, hold: &Amounts) {
        self.each(scopes, Some(run), |held, covered| {
            held.each(|meter, held| {
                if covers(covered, meter) {
                    *held += u128::from(hold.held_in(meter).unwrap_or(0));
                }
            });
        });
    }

    /// What a run holds for its requests changes.
    pub(super) fn rest(&mut self, run: &Run, before: &Amounts, after: &Amounts) {
        let change = |held: &mut Held, covered: Option<&Budget>| {
            held.each(|meter, held| {
                if covers(covered, meter) {
                    let amount = |of: &Amounts| u128::from(of.spent_in(meter).unwrap_or(0));
                    *held = held.saturating_sub(amount(before)) + amount(after);
                }
            });
        };
        self.each(&run.payer, Some(run), change);
        let Scopes { key, team, .. } = &run.payer;
        let team = team.clone().map(Scope::Team);
        for scope in [Scope::Account, Scope::Key(key.clone())]
            .into_iter()
            .chain(team)
        {
            entry(&mut self.by_runs, Some(&scope), |held| {
                change(held, Some(&run.budget));
            });
        }
    }

    /// Every scope of a request; with the budget of its open run where that may hold for it there.
    fn each(
        &mut self,
        scopes: &Scopes,
        run: Option<&Run>,
        mut change: impl FnMut(&mut Held, Option<&Budget>),
    ) {
        let budget = |same: bool| run.filter(|_| same).map(|run| &run.budget);
        let payer = run.map(|run| &run.payer);
        let team = payer.is_some_and(|payer| payer.team == scopes.team);
        let key = payer.is_some_and(|payer| payer.key == scopes.key);
        change(&mut self.account, budget(true));
        let (team, key) = (budget(team), budget(key));
        entry(&mut self.teams, scopes.team.as_ref(), |held| {
            change(held, team);
        });
        entry(&mut self.keys, Some(&scopes.key), |held| change(held, key));
        entry(&mut self.models, scopes.model.as_ref(), |held| {
            change(held, None);
        });
        entry(&mut self.runs, scopes.run.as_ref(), |held| {
            change(held, None);
        });
        entry(&mut self.end_users, scopes.end_user.as_ref(), |held| {
            change(held, None);
        });
    }
}

fn covers(budget: Option<&Budget>, meter: Meter) -> bool {
    budget.is_some_and(|budget| budget.amount(meter).is_some())
}

/// Changes what is held under one id; nothing held leaves nothing behind.
fn entry<I: Hash + Eq + Clone>(
    map: &mut Map<I, Held>,
    id: Option<&I>,
    change: impl FnOnce(&mut Held),
) {
    let Some(id) = id else { return };
    if let Some(held) = map.get_mut(id) {
        change(held);
        if held.is_zero() {
            map.remove(id);
        }
        return;
    }
    let mut held = Held::default();
    change(&mut held);
    if !held.is_zero() {
        map.insert(id.clone(), held);
    }
}

#[cfg(test)]
mod tests;
