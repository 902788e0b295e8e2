//! What must hold of a journal, computed from its events alone by plain sums: no code of the ledger's
//! state or decisions is used here.

use std::collections::BTreeMap;

use bytes::Bytes;
use seatbelt_schemas::{
    budget::Budget,
    cap::{CapEvidence, CapSpec},
    commit::{ChainHash, Commit},
    event::{Attempt, Event, EventBody, Refused, Reserved, Settled},
    ids::{AccountId, CapId, CommandId, ReservationId, RunId},
    meter::{Amounts, Meter},
    scope::{Scope, Scopes},
    window::Window,
};

/// A cap with what operators did to it.
struct Cap {
    spec: CapSpec,
    credits: u64,
    adjusted: i128,
    /// Whether operators ever took something off what is spent.
    forgave: bool,
    /// Position of its event: what ended before is not counted.
    set_at: u64,
}

/// An open reservation, or one that ended.
#[derive(Clone)]
struct Taken {
    account: AccountId,
    scopes: Scopes,
    hold: Amounts,
    at_ms: u64,
    /// The budget, where it opened a run.
    budget: Option<Budget>,
    /// The opening of the run that it is in.
    opening: Option<ReservationId>,
    /// Where it opened a run, the openings of those that it was taken out of, the innermost first.
    within: Vec<ReservationId>,
}

/// A charge, and the position at which its reservation ended.
struct Charge {
    taken: Taken,
    amounts: Amounts,
    ended_at: u64,
}

#[derive(Default)]
pub(crate) struct Books {
    caps: BTreeMap<(AccountId, CapId), Cap>,
    open: BTreeMap<ReservationId, Taken>,
    charges: BTreeMap<ReservationId, Charge>,
    ends: BTreeMap<ReservationId, &'static str>,
    /// What late settles gave back to the payers of open runs, and what runs within them have.
    given_back: BTreeMap<(ReservationId, Meter), u64>,
    /// Of each open reservation that is another attempt, which one.
    attempts: BTreeMap<ReservationId, Attempt>,
    /// What was released to make room: what must come next, of which command.
    makes_room: Option<(CommandId, ReservationId, Attempt)>,
    pub(crate) causes: BTreeMap<CommandId, Vec<Event>>,
    pub(crate) events: Vec<Event>,
}

impl Books {
    /// Reads a whole journal and checks every promise on the way.
    pub(crate) fn read(journal: &[Bytes]) -> Result<Self, String> {
        let mut books = Self::default();
        let mut prev = ChainHash::default();
        for payload in journal {
            let commit = Commit::decode(payload).map_err(|error| error.to_string())?;
            if commit.prev != prev {
                return Err(format!(
                    "the chain breaks at position {}",
                    commit.first_position
                ));
            }
            prev = ChainHash::of(payload);
            for stored in commit.events {
                books.take(stored.event)?;
            }
        }
        Ok(books)
    }

    pub(crate) fn take(&mut self, event: Event) -> Result<(), String> {
        if event.position.0 != self.events.len() as u64 + 1 {
            return Err(format!(
                "position {} stands at {}",
                event.position,
                self.events.len() + 1
            ));
        }
        if self
            .events
            .last()
            .is_some_and(|last| last.at_ms > event.at_ms)
        {
            return Err(format!("time goes backwards at {}", event.position));
        }
        let before = self.used(&event);
        self.goes_on(&event)?;
        self.fold(&event)?;
        self.nothing_rises(&event, &before)?;
        self.causes
            .entry(event.cause)
            .or_default()
            .push(event.clone());
        self.events.push(event);
        Ok(())
    }

    /// A hold that made room is followed by the one that takes its place, of the same command, one attempt
    /// further; no other says that it is an attempt.
    fn goes_on(&mut self, event: &Event) -> Result<(), String> {
        let (taken, attempt) = match &event.body {
            EventBody::Reserved(data) => (Some(data.reservation), data.attempt),
            _ => (None, None),
        };
        let expected = self.makes_room.take();
        let is_next = match expected {
            None => attempt.is_none(),
            Some((cause, by, next)) => {
                event.cause == cause && taken == Some(by) && attempt == Some(next)
            }
        };
        if !is_next {
            return Err(format!(
                "position {}: {expected:?} belongs where attempt {attempt:?} stands",
                event.position
            ));
        }
        if let (Some(reservation), Some(attempt)) = (taken, attempt) {
            self.attempts.insert(reservation, attempt);
        }
        if makes_room(&event.body) {
            self.note_room(event);
        }
        if let EventBody::Settled(data) = &event.body
            && data.attempt != self.attempts.get(&data.reservation).copied()
        {
            return Err(format!(
                "{} is settled as another attempt",
                data.reservation
            ));
        }
        Ok(())
    }

    fn note_room(&mut self, event: &Event) {
        if let EventBody::Released(data) = &event.body
            && let Some(by) = data.replaced_by
        {
            let first = Attempt {
                of: data.reservation,
                n: 1,
            };
            let before = self.attempts.get(&data.reservation).unwrap_or(&first);
            let next = Attempt {
                n: before.n + 1,
                ..*before
            };
            self.makes_room = Some((event.cause, by, next));
        }
    }

    fn fold(&mut self, event: &Event) -> Result<(), String> {
        let account = event.account.clone();
        match &event.body {
            EventBody::CapSet(spec) => {
                let new = || Cap {
                    spec: spec.clone(),
                    credits: 0,
                    adjusted: 0,
                    forgave: false,
                    set_at: event.position.0,
                };
                let slot = self.caps.entry((account, spec.cap.clone()));
                slot.or_insert_with(new).spec = spec.clone();
            }
            EventBody::CapRemoved(data) => {
                self.caps.remove(&(account, data.cap.clone()));
            }
            EventBody::Credited(data) => {
                let cap = self.caps.get_mut(&(account, data.cap.clone()));
                cap.ok_or("credited but not set")?.credits += data.amount;
            }
            EventBody::Adjusted(data) => {
                // what is spent never falls below nothing
                let (spent, _) = self.stands(&account, &data.cap, event.at_ms, None);
                let cap = self.caps.get_mut(&(account, data.cap.clone()));
                let delta = i128::from(data.delta).max(-spent);
                let cap = cap.ok_or("adjusted but not set")?;
                cap.adjusted += delta;
                cap.forgave |= delta < 0;
            }
            EventBody::Reserved(data) => self.reserve(event, data)?,
            EventBody::Refused(data) => self.refuse(event, data)?,
            EventBody::Resized(data) => {
                let open = self.open.get(&data.reservation);
                let mut open = open.ok_or("resized but not open")?.clone();
                let old = std::mem::replace(&mut open.hold, data.hold);
                if open.budget.is_some() {
                    return Err(format!("the budget {} is resized", data.reservation));
                }
                self.fits(event, &open, &old, data.reservation)?;
                self.open.insert(data.reservation, open);
            }
            EventBody::Settled(data) if data.late => self.settle_late(event, data)?,
            EventBody::Settled(data) => {
                self.end(event, data.reservation, "settled", data.charge)?;
            }
            EventBody::Released(data) => {
                self.end(event, data.reservation, "released", Amounts::default())?;
            }
            EventBody::Expired(data) => {
                self.end(event, data.reservation, "expired", data.charge)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// The truth, after an end that did not know it.
    fn settle_late(&mut self, event: &Event, data: &Settled) -> Result<(), String> {
        self.forgiven(event, data.reservation);
        let charge = self
            .charges
            .get_mut(&data.reservation)
            .ok_or("late but never expired")?;
        if self.ends.insert(data.reservation, "late") != Some("expired") {
            return Err(format!("{} is settled late twice", data.reservation));
        }
        let old = std::mem::replace(&mut charge.amounts, data.charge);
        let opening = charge.taken.opening;
        if let Some(opening) = opening.filter(|opening| self.open.contains_key(opening)) {
            for meter in Budget::METERS {
                let amount = |of: &Amounts| of.spent_in(meter).unwrap_or(0);
                *self.given_back.entry((opening, meter)).or_default() +=
                    amount(&old).saturating_sub(amount(&data.charge));
            }
        }
        Ok(())
    }

    /// What operators took off a balance is not taken off again where the truth replaces a charge that
    /// they had forgiven.
    fn forgiven(&mut self, event: &Event, reservation: ReservationId) {
        let Some(charge) = self.charges.get(&reservation) else {
            return;
        };
        let mut forgiven = Vec::new();
        for ((account, id), cap) in &self.caps {
            let counts = *account == event.account
                && cap.spec.window == Window::Balance
                && charge.ended_at > cap.set_at
                && charge.taken.scopes.matches(&cap.spec.scope);
            let amount = i128::from(charge.amounts.spent_in(cap.spec.meter).unwrap_or(0));
            let (spent, _) = self.stands(account, id, event.at_ms, None);
            if counts && spent < amount {
                forgiven.push(((account.clone(), id.clone()), amount - spent));
            }
        }
        for (cap, amount) in forgiven {
            self.caps
                .entry(cap)
                .and_modify(|cap| cap.adjusted += amount);
        }
    }

    fn reserve(&mut self, event: &Event, data: &Reserved) -> Result<(), String> {
        let opening = self.opening(&event.account, data.scopes.run.as_ref());
        let taken = Taken {
            account: event.account.clone(),
            scopes: Scopes::clone(&data.scopes),
            hold: data.hold,
            at_ms: event.at_ms,
            budget: data.budget,
            opening,
            within: self.outer(&event.account, data.within.as_ref()),
        };
        for evidence in &data.caps {
            self.says(event, evidence)?;
        }
        self.fits(event, &taken, &Amounts::default(), data.reservation)?;
        if let (Some(budget), Some(run)) = (&data.budget, &data.scopes.run) {
            if opening.is_some() {
                return Err(format!("run {run} is opened twice"));
            }
            self.move_out(&taken, budget);
            for meter in Budget::METERS {
                let Some(limit) = budget.amount(meter) else {
                    continue;
                };
                let cap = CapId::new(format!("run:{run}:{meter}")).unwrap();
                let (scope, window) = (Scope::Run(run.clone()), Window::Balance);
                let (hard, thresholds) = (true, Vec::new());
                let cap = Cap {
                    spec: CapSpec {
                        cap,
                        scope,
                        meter,
                        window,
                        limit,
                        hard,
                        thresholds,
                    },
                    credits: 0,
                    adjusted: 0,
                    forgave: false,
                    set_at: event.position.0,
                };
                let id = (event.account.clone(), cap.spec.cap.clone());
                if self.caps.insert(id, cap).is_some() {
                    return Err(format!("the caps of run {run} were there before it"));
                }
            }
        }
        if self.open.insert(data.reservation, taken).is_some() {
            return Err(format!("{} is reserved twice", data.reservation));
        }
        Ok(())
    }

    /// Promise 5: a refusal names a cap that the request takes something of, and does not fit.
    fn refuse(&self, event: &Event, data: &Refused) -> Result<(), String> {
        let taken = Taken {
            account: event.account.clone(),
            scopes: Scopes::clone(&data.scopes),
            hold: data.want,
            at_ms: event.at_ms,
            budget: data.budget,
            opening: self.opening(&event.account, data.scopes.run.as_ref()),
            within: self.outer(&event.account, data.within.as_ref()),
        };
        let id = (event.account.clone(), data.cap.clone());
        let cap = self.caps.get(&id).ok_or("refused by no cap")?;
        let at_ms = data.decided_at_ms.unwrap_or(event.at_ms);
        let (spent, held) = self.stands(&event.account, &data.cap, at_ms, None);
        let uncovered = self.uncovered(&taken, &cap.spec, at_ms);
        let held = uncovered.unwrap_or(held);
        let limit = self.limit(&event.account, &data.cap);
        let fits = data
            .want
            .held_in(cap.spec.meter)
            .is_some_and(|need| spent + i128::from(held) + i128::from(need) <= i128::from(limit));
        if fits || !(self.takes_from(&taken, &cap.spec) || uncovered.is_some()) {
            return Err(format!(
                "position {}: cap {} refuses without reason",
                event.position, data.cap
            ));
        }
        Ok(())
    }

    /// The openings of a run and of those around it, the innermost first.
    fn outer(&self, account: &AccountId, within: Option<&RunId>) -> Vec<ReservationId> {
        let Some(outer) = self.opening(account, within) else {
            return Vec::new();
        };
        let mut all = vec![outer];
        all.extend(&self.open[&outer].within);
        all
    }

    /// What a run gets out of another one is not that one's any more.
    fn move_out(&mut self, taken: &Taken, budget: &Budget) {
        let Some(outer) = taken.within.first() else {
            return;
        };
        let limited = self.open.get(outer).and_then(|outer| outer.budget);
        for meter in Budget::METERS {
            let amount = budget.amount(meter).unwrap_or(0);
            if limited.is_some_and(|limited| limited.amount(meter).is_some()) {
                *self.given_back.entry((*outer, meter)).or_default() += amount;
            }
        }
    }

    /// What nobody spent or holds of a run that ends goes to the innermost one around it that is open.
    fn move_back(&mut self, reservation: ReservationId) {
        let Some(taken) = self.open.get(&reservation).cloned() else {
            return;
        };
        let outer = taken.within.iter().find(|id| self.open.contains_key(id));
        let (Some(outer), Some(run), Some(budget)) = (outer, &taken.scopes.run, taken.budget)
        else {
            return;
        };
        for meter in Budget::METERS {
            let cap = CapId::new(format!("run:{run}:{meter}")).unwrap();
            let limited = self.open[outer]
                .budget
                .and_then(|outer| outer.amount(meter));
            if budget.amount(meter).is_none() || limited.is_none() {
                continue;
            }
            let (spent, held) = self.stands(&taken.account, &cap, u64::MAX, None);
            let limit = i128::from(self.limit(&taken.account, &cap));
            let unused = (limit - spent - i128::from(held)).max(0);
            let moved = self.given_back.entry((*outer, meter)).or_default();
            *moved -= u64::try_from(unused).unwrap();
        }
    }

    /// The reservation that opened a run, while it is open.
    fn opening(&self, account: &AccountId, run: Option<&RunId>) -> Option<ReservationId> {
        let mut open = self.open.iter();
        let found = open.find(|(_, open)| {
            open.budget.is_some() && open.account == *account && open.scopes.run.as_ref() == run
        });
        run.and(found).map(|(id, _)| *id)
    }

    fn end(
        &mut self,
        event: &Event,
        reservation: ReservationId,
        how: &'static str,
        amounts: Amounts,
    ) -> Result<(), String> {
        self.move_back(reservation);
        let Some(taken) = self.open.remove(&reservation) else {
            return Err(format!(
                "{reservation} is {how} but not open: {:?}",
                self.ends.get(&reservation)
            ));
        };
        self.ends.insert(reservation, how);
        if let (Some(_), Some(run)) = (taken.budget, &taken.scopes.run) {
            let prefix = format!("run:{run}:");
            let gone = |account: &AccountId, cap: &CapId| {
                *account == taken.account && cap.as_str().starts_with(&prefix)
            };
            self.caps.retain(|(account, cap), _| !gone(account, cap));
            return match amounts == Amounts::default() && how != "settled" {
                true => Ok(()),
                false => Err(format!("the budget {reservation} is {how} for {amounts:?}")),
            };
        }
        let charge = Charge {
            taken,
            amounts,
            ended_at: event.position.0,
        };
        self.charges.insert(reservation, charge);
        Ok(())
    }

    /// What a decision says of a cap is what the sums say.
    fn says(&self, event: &Event, evidence: &CapEvidence) -> Result<(), String> {
        let stands = self.stands(&event.account, &evidence.cap, event.at_ms, None);
        let limit = self.limit(&event.account, &evidence.cap);
        if (i128::from(evidence.spent), evidence.held) == stands && evidence.limit == limit {
            return Ok(());
        }
        Err(format!(
            "position {}: the books say {stands:?} of {limit}, the decision {evidence:?}",
            event.position
        ))
    }

    /// Promise 1, at the moment of taking or growing a hold.
    fn fits(
        &self,
        event: &Event,
        taken: &Taken,
        old: &Amounts,
        reservation: ReservationId,
    ) -> Result<(), String> {
        for ((account, id), Cap { spec, .. }) in &self.caps {
            if *account != event.account || !spec.hard {
                continue;
            }
            let uncovered = self.uncovered(taken, spec, event.at_ms);
            if uncovered.is_none() && !self.takes_from(taken, spec) {
                continue;
            }
            let need = match taken.budget {
                Some(budget) => budget.amount(spec.meter).unwrap_or(0),
                None => taken.hold.held_in(spec.meter).unwrap_or(0),
            };
            // what takes nothing is let through, also where an overrun has passed the limit
            let before = old.held_in(spec.meter).unwrap_or(0);
            let grows = need > before;
            let (spent, held) = self.stands(account, id, event.at_ms, Some(reservation));
            let is_open = self.open.contains_key(&reservation);
            let own = if is_open { before } else { 0 };
            let held = uncovered.map_or(held, |held| held - own);
            let limit = self.limit(account, id);
            if grows && spent + i128::from(held) + i128::from(need) > i128::from(limit) {
                return Err(format!(
                    "position {} breaks cap {id}: {spent} + {held} + {need}",
                    event.position
                ));
            }
        }
        Ok(())
    }

    /// What is spent and held together under each cap of an event's account.
    fn used(&self, event: &Event) -> Vec<(CapId, Meter, i128)> {
        let ends = matches!(
            event.body,
            EventBody::Settled(_) | EventBody::Released(_) | EventBody::Expired(_)
        );
        let caps = self
            .caps
            .iter()
            .filter(|((account, _), _)| ends && *account == event.account);
        caps.map(|((account, id), cap)| {
            let (spent, held) = self.stands(account, id, event.at_ms, None);
            (id.clone(), cap.spec.meter, spent + i128::from(held))
        })
        .collect()
    }

    /// The end of a reservation leads no cap up, but by what was used above the hold or found out late.
    fn nothing_rises(&self, event: &Event, before: &[(CapId, Meter, i128)]) -> Result<(), String> {
        let truth = match &event.body {
            EventBody::Settled(data) => Some(data),
            _ => None,
        };
        for (cap, meter, before) in before {
            let Some(known) = self.caps.get(&(event.account.clone(), cap.clone())) else {
                continue;
            };
            if known.forgave && truth.is_some_and(|data| data.late) {
                continue; // the truth counts, whatever was forgiven before it was known
            }
            let (spent, held) = self.stands(&event.account, cap, event.at_ms, None);
            let excess = truth.map_or(0, |data| self.excess(event, data.reservation, *meter));
            if spent + i128::from(held) > before + excess {
                return Err(format!(
                    "position {} leads cap {cap} from {before} to {spent} + {held}",
                    event.position
                ));
            }
        }
        Ok(())
    }

    /// How far a settle lies above what was held, or charged at expiry, for its reservation.
    fn excess(&self, event: &Event, reservation: ReservationId, meter: Meter) -> i128 {
        let amount = |of: &Amounts| i128::from(of.spent_in(meter).unwrap_or(0));
        let EventBody::Settled(data) = &event.body else {
            return 0;
        };
        let known = if data.late {
            let mut expiries = self.events.iter().filter_map(|past| match &past.body {
                EventBody::Expired(data) if data.reservation == reservation => Some(data.charge),
                _ => None,
            });
            expiries.next()
        } else {
            Some(self.charges[&reservation].taken.hold)
        };
        (amount(&data.charge) - known.map_or(0, |known| amount(&known))).max(0)
    }

    /// A cap's limit, by plain sums.
    pub(crate) fn limit(&self, account: &AccountId, cap: &CapId) -> u64 {
        let Some(Cap { spec, credits, .. }) = self.caps.get(&(account.clone(), cap.clone())) else {
            return 0;
        };
        let run = match &spec.scope {
            Scope::Run(run) if cap.as_str().starts_with("run:") => Some(run),
            _ => None,
        };
        let opening = run.and_then(|run| self.opening(account, Some(run)));
        let back = opening.and_then(|opening| self.given_back.get(&(opening, spec.meter)));
        spec.limit + credits - back.unwrap_or(&0)
    }

    /// Whether a reserve takes something from such a cap. What a run takes out of another one it takes from
    /// that one's caps, which hold it in all others already.
    fn takes_from(&self, taken: &Taken, spec: &CapSpec) -> bool {
        let outer = taken.within.first().and_then(|outer| self.open.get(outer));
        let (Some(outer), Some(budget)) = (outer, taken.budget) else {
            return self.holds_in(taken, spec);
        };
        let of_outer = match (&spec.scope, &outer.scopes.run) {
            (Scope::Run(run), Some(outer)) => run == outer,
            _ => false,
        };
        (of_outer && budget.amount(spec.meter).is_some())
            || (self.holds_in(taken, spec) && !self.holds_in(outer, spec))
    }

    /// Whether a reservation holds in such a cap: a budget in its meters under its key, a request of
    /// an open run not where the run does.
    fn holds_in(&self, taken: &Taken, spec: &CapSpec) -> bool {
        if let Some(budget) = taken.budget {
            let of_payer = matches!(spec.scope, Scope::Account | Scope::Team(_) | Scope::Key(_));
            return of_payer
                && taken.scopes.matches(&spec.scope)
                && budget.amount(spec.meter).is_some();
        }
        let opening = taken.opening.and_then(|opening| self.open.get(&opening));
        taken.scopes.matches(&spec.scope)
            && opening.is_none_or(|opening| !self.holds_in(opening, spec))
    }

    /// What is held against a request of an open run in a cap that the run holds in, where that stands above its
    /// limit: what others hold there, and what the run's requests do.
    fn uncovered(&self, taken: &Taken, spec: &CapSpec, at_ms: u64) -> Option<u64> {
        let id = taken.opening.filter(|_| taken.budget.is_none())?;
        let opening = self.open.get(&id)?;
        let covers = taken.scopes.matches(&spec.scope) && self.holds_in(opening, spec);
        let (spent, held) = self.stands(&taken.account, &spec.cap, at_ms, None);
        let above = spent + i128::from(held) > i128::from(self.limit(&taken.account, &spec.cap));
        if !(spec.hard && covers && above) {
            return None;
        }
        let of_run = self.open.values().filter(|open| open.opening == Some(id));
        let asked = of_run.map(|open| open.hold.held_in(spec.meter).unwrap_or(0));
        let left = self.left(id, &opening.budget?, spec.meter);
        Some(held - (left - asked.sum::<u64>()))
    }

    /// What an open run still holds: what its requests have left of the budget, or what they hold.
    fn left(&self, opening: ReservationId, budget: &Budget, meter: Meter) -> u64 {
        let spent = self
            .charges
            .values()
            .filter(|charge| charge.taken.opening == Some(opening));
        let spent = spent.map(|charge| charge.amounts.spent_in(meter).unwrap_or(0));
        let back = self.given_back.get(&(opening, meter)).unwrap_or(&0);
        let unspent = budget
            .amount(meter)
            .unwrap_or(0)
            .saturating_sub(spent.sum::<u64>() + back);
        let held = self
            .open
            .values()
            .filter(|open| open.opening == Some(opening));
        let held = held.map(|open| open.hold.held_in(meter).unwrap_or(0));
        unspent.max(held.sum())
    }

    /// What is spent and held under a cap, by plain sums.
    pub(crate) fn stands(
        &self,
        account: &AccountId,
        cap: &CapId,
        at_ms: u64,
        except: Option<ReservationId>,
    ) -> (i128, u64) {
        let Some(cap) = self.caps.get(&(account.clone(), cap.clone())) else {
            return (0, 0);
        };
        let spec = &cap.spec;
        let held = self.open.iter().filter(|(id, open)| {
            open.account == *account && Some(**id) != except && self.holds_in(open, spec)
        });
        let held = held.map(|(id, open)| match &open.budget {
            Some(budget) => self.left(*id, budget, spec.meter),
            None => open.hold.held_in(spec.meter).unwrap_or(0),
        });
        let spent = self.charges.values().filter(|charge| {
            let counts = spec
                .window
                .slot_gone_ms(spec.window.slot(charge.taken.at_ms))
                .is_none_or(|gone| gone > at_ms);
            charge.taken.account == *account
                && charge.taken.scopes.matches(&spec.scope)
                && charge.ended_at > cap.set_at
                && counts
        });
        let spent: i128 = spent
            .map(|charge| i128::from(charge.amounts.spent_in(spec.meter).unwrap_or(0)))
            .sum();
        (spent + cap.adjusted, held.sum())
    }

    pub(crate) fn caps(&self) -> impl Iterator<Item = (&AccountId, &CapId)> {
        self.caps.keys().map(|(account, cap)| (account, cap))
    }

    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }
}

/// Whether an event only makes room for the one after it.
pub(crate) fn makes_room(body: &EventBody) -> bool {
    matches!(body, EventBody::Released(data) if data.replaced_by.is_some())
}
