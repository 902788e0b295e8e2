//! The state of one account: keys, caps with their counters, open reservations; and `apply`, which
//! cannot fail.
//!
//! Pure and deterministic: the same events give the same state, byte for byte. Prices are not part
//! of an account: `settled` and `expired` carry what they charge.

use std::{collections::BTreeMap, sync::Arc};

use seatbelt_schemas::{
    cap::CapSpec,
    event::{Adjusted, Asked, Attempt, Event, EventBody, Expired, Reserved, Resized, Settled},
    ids::{CapId, KeyId, ReservationId, RunId, TeamId},
    meter::{Amounts, Meter},
    scope::{Scope, Scopes},
};
use serde::{Deserialize, Serialize};

use crate::counter::Counter;

mod caps;
mod holdings;
mod run;
mod sections;
mod standing;

pub use caps::{Cap, Matching};
use caps::{each_matching, range_of};
use holdings::Holdings;
pub use run::{RUN_DEPTH_MAX, Run, deciding};
pub use sections::Sections;

/// How long an expired reservation can still be settled late: 24 hours.
pub const LATE_SETTLE_MS_MAX: u64 = 24 * 3_600_000;
/// How many expired reservations of one account can still be settled late.
pub const LATE_SETTLE_COUNT_MAX: usize = 4096;

/// A key as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub key: KeyId,
    pub team: Option<TeamId>,
    /// SHA-256 of its secret, hex, where the ledger made it.
    pub secret_sha256: Option<String>,
    /// Whether it reserves nothing any more.
    pub revoked: bool,
}

/// An open hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    pub scopes: Arc<Scopes>,
    pub asked: Asked,
    /// What is held.
    pub hold: Amounts,
    /// Version of the model's price.
    pub price: Option<u32>,
    /// When it was taken, unix ms: its spend belongs here.
    pub at_ms: u64,
    /// What its account's costs were multiplied by then, in millionths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
    /// Which attempt of its request it is, from the second on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

/// A hold that ended by its deadline and may still be settled late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpiredReservation {
    /// The reservation as it was.
    pub reservation: Reservation,
    /// What was charged when it expired.
    pub charge: Amounts,
    /// When it expired, unix ms.
    pub expired_at_ms: u64,
    /// The account's version that this came with: caps set later know nothing of the charge.
    #[serde(default)]
    pub version: u32,
}

/// The state of one account.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "sections::Stored")]
pub struct Account {
    opened: bool,
    version: u32,
    keys: Vec<Key>,
    caps: Vec<Cap>,
    open: BTreeMap<ReservationId, Reservation>,
    expired: BTreeMap<ReservationId, ExpiredReservation>,
    /// Runs that are open with a budget of their own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    runs: BTreeMap<RunId, Run>,
    /// What all costs are multiplied by, in millionths, where that was ever set.
    #[serde(skip_serializing_if = "Option::is_none")]
    multiplier_ppm: Option<u64>,
    /// What of all this is held, by scope.
    #[serde(skip)]
    holdings: Box<Holdings>,
    /// How many of the keys are not revoked.
    #[serde(skip)]
    live_keys: u64,
}

impl Account {
    /// Whether the account exists.
    pub fn is_open(&self) -> bool {
        self.opened
    }

    /// What all its costs are multiplied by, in millionths, where that was ever set.
    pub fn multiplier_ppm(&self) -> Option<u64> {
        self.multiplier_ppm
    }

    /// How many events have been applied: the account's own version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The account's keys, by id.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// How many of them are not revoked.
    pub fn live_keys(&self) -> u64 {
        self.live_keys
    }

    pub fn key(&self, key: &KeyId) -> Option<&Key> {
        let index = self
            .keys
            .binary_search_by(|known| known.key.cmp(key))
            .ok()?;
        Some(&self.keys[index])
    }

    /// All caps, by scope and id.
    pub fn caps(&self) -> &[Cap] {
        &self.caps
    }

    pub fn cap(&self, cap: &CapId) -> Option<&Cap> {
        self.caps.iter().find(|known| known.spec.cap == *cap)
    }

    /// The caps of one scope.
    pub fn caps_of(&self, scope: &Scope) -> &[Cap] {
        &self.caps[range_of(&self.caps, scope.sort_key())]
    }

    /// Every cap that applies to a request, in a fixed order: by scope and id.
    pub fn matching<'a>(&'a self, scopes: &'a Scopes) -> Matching<'a> {
        Matching {
            rest: &self.caps,
            scopes,
        }
    }

    pub fn open(&self) -> &BTreeMap<ReservationId, Reservation> {
        &self.open
    }

    /// Reservations that expired and may still be settled late.
    pub fn expired(&self) -> &BTreeMap<ReservationId, ExpiredReservation> {
        &self.expired
    }

    /// What is held in a scope, as a cap of it in `meter` holds it: requests each by itself, those of an
    /// open run by the run where it covers the cap.
    pub fn held_in(&self, scope: &Scope, meter: Meter) -> u64 {
        self.holdings.held(scope, meter)
    }

    /// What of that open runs hold for themselves and their requests: it stays until they end.
    pub fn held_by_runs(&self, scope: &Scope, meter: Meter) -> u64 {
        self.holdings.held_by_runs(scope, meter)
    }

    /// Whether any reservation of this run is open.
    pub fn has_open_of(&self, run: &RunId) -> bool {
        self.holdings.of_run(run).next().is_some()
    }

    /// Runs that are open with a budget of their own.
    pub fn runs(&self) -> &BTreeMap<RunId, Run> {
        &self.runs
    }

    /// The open run that a request with these scopes spends from.
    pub fn run_of(&self, scopes: &Scopes) -> Option<&Run> {
        self.runs.get(scopes.run.as_ref()?)
    }

    /// The run whose budget this open reservation holds; `None` for a request.
    pub fn run_held_by(&self, id: ReservationId, open: &Reservation) -> Option<&Run> {
        self.run_of(&open.scopes)
            .filter(|run| run.reservation == id)
    }

    /// The open run that a cap came with; it is the run's to change and remove.
    pub fn run_with_cap(&self, cap: &CapSpec) -> Option<&Run> {
        match &cap.scope {
            Scope::Run(id) if run::is_of_run(cap, id) => self.runs.get(id),
            _ => None,
        }
    }

    /// Every cap that limits an open reservation: all that match, but for those in which the run of a
    /// request holds its share already.
    pub fn limiting<'a>(
        &'a self,
        id: ReservationId,
        open: &'a Reservation,
    ) -> impl Iterator<Item = &'a Cap> {
        let run = self
            .run_of(&open.scopes)
            .filter(|run| run.reservation != id);
        self.matching(&open.scopes)
            .filter(move |cap| run.is_none_or(|run| !run.covers(&cap.spec)))
    }

    /// Folds one event in. Cannot fail: what does not fit the state (a settle of an unknown
    /// reservation) changes nothing here and is found by the audit, which decides again.
    pub fn apply(&mut self, event: &Event) {
        let at_ms = event.at_ms;
        self.version = self.version.saturating_add(1);
        match &event.body {
            EventBody::AccountOpened(data) => {
                self.opened = true;
                self.multiplier_ppm = data.multiplier_ppm.or(self.multiplier_ppm);
            }
            EventBody::KeyIssued(data) => self.issue(Key {
                key: data.key.clone(),
                team: data.team.clone(),
                secret_sha256: data.secret_sha256.clone(),
                revoked: false,
            }),
            EventBody::KeyRevoked(data) => {
                if let Ok(index) = self.keys.binary_search_by(|known| known.key.cmp(&data.key)) {
                    let was = std::mem::replace(&mut self.keys[index].revoked, true);
                    self.live_keys -= u64::from(!was);
                }
            }
            EventBody::CapSet(spec) => self.set_cap(spec, at_ms),
            EventBody::CapRemoved(data) => self.caps.retain(|cap| cap.spec.cap != data.cap),
            EventBody::Credited(data) => self.change_cap(&data.cap, |cap| {
                cap.credits = cap.credits.saturating_add(data.amount);
                cap.rearm(at_ms);
            }),
            EventBody::Adjusted(data) => self.adjust(data, at_ms),
            EventBody::Reserved(data) => self.reserve(data, at_ms),
            EventBody::Resized(data) => self.resize(data),
            EventBody::Settled(data) => self.settle(data, at_ms),
            EventBody::Released(data) => self.release(data.reservation),
            EventBody::Expired(data) => self.expire(data, at_ms),
            EventBody::ThresholdCrossed(data) => {
                self.change_cap(&data.cap, |cap| cap.announce(data.percent, at_ms));
            }
            EventBody::Refused(_)
            | EventBody::Overrun(_)
            | EventBody::Genesis(_)
            | EventBody::WriterStarted(_)
            | EventBody::PriceSet(_)
            | EventBody::Unknown { .. } => {}
        }
    }

    fn issue(&mut self, key: Key) {
        match self.keys.binary_search_by(|known| known.key.cmp(&key.key)) {
            Ok(index) => {
                let before = std::mem::replace(&mut self.keys[index], key);
                self.live_keys += u64::from(before.revoked);
            }
            Err(index) => {
                self.keys.insert(index, key);
                self.live_keys += 1;
            }
        }
    }

    fn set_cap(&mut self, spec: &CapSpec, at_ms: u64) {
        let same = |cap: &Cap| {
            let old = &cap.spec;
            old.cap == spec.cap
                && old.scope == spec.scope
                && old.meter == spec.meter
                && old.window == spec.window
        };
        if let Some(cap) = self.caps.iter_mut().find(|cap| same(cap)) {
            cap.spec = spec.clone();
            cap.rearm(at_ms);
            return;
        }
        self.caps.retain(|cap| cap.spec.cap != spec.cap);
        let cap = Cap {
            spec: spec.clone(),
            credits: 0,
            held: self.held_in(&spec.scope, spec.meter),
            counter: Counter::default(),
            announced: Vec::new(),
            since: self.version,
        };
        let order = |known: &Cap| (&known.spec.scope, &known.spec.cap) < (&spec.scope, &spec.cap);
        let index = self.caps.partition_point(order);
        self.caps.insert(index, cap);
    }

    fn adjust(&mut self, data: &Adjusted, at_ms: u64) {
        let amount = data.delta.unsigned_abs();
        self.change_cap(&data.cap, |cap| {
            let window = cap.spec.window;
            if data.delta >= 0 {
                cap.counter.add(window, at_ms, at_ms, amount);
            } else {
                cap.counter.take_back(window, at_ms, amount);
            }
            cap.rearm(at_ms);
        });
    }

    fn reserve(&mut self, data: &Reserved, at_ms: u64) {
        if let Some(budget) = data.budget {
            self.open_run(data, budget, at_ms);
            return;
        }
        self.within_run(&data.scopes, |account| {
            account.hold(&data.scopes, &data.hold);
        });
        self.insert_open(data, at_ms);
    }

    fn insert_open(&mut self, data: &Reserved, at_ms: u64) {
        let reservation = Reservation {
            scopes: Arc::clone(&data.scopes),
            asked: data.asked,
            hold: data.hold,
            price: data.price,
            at_ms,
            multiplier_ppm: data.multiplier_ppm,
            attempt: data.attempt,
        };
        self.holdings.opened(data.reservation, &data.scopes);
        self.open.insert(data.reservation, reservation);
    }

    fn resize(&mut self, data: &Resized) {
        let Some(open) = self.open.get_mut(&data.reservation) else {
            return;
        };
        let scopes = Arc::clone(&open.scopes);
        let before = std::mem::replace(&mut open.hold, data.hold);
        self.within_run(&scopes, |account| {
            account.give_back(&scopes, &before);
            account.hold(&scopes, &data.hold);
        });
    }

    fn settle(&mut self, data: &Settled, at_ms: u64) {
        if let Some(open) = self.take_out(data.reservation) {
            self.charge(&open, &data.charge, at_ms);
        } else if let Some(expired) = self.expired.remove(&data.reservation) {
            self.within_run(&expired.reservation.scopes, |account| {
                account.correct(&expired, &data.charge, at_ms);
            });
        }
    }

    /// Replaces an open reservation's hold by its charge.
    fn charge(&mut self, open: &Reservation, charge: &Amounts, at_ms: u64) {
        self.within_run(&open.scopes, |account| {
            account.give_back(&open.scopes, &open.hold);
            account.each_matching(&open.scopes, |cap| cap.charge(charge, open.at_ms, at_ms));
        });
    }

    /// Replaces the charge of an expired reservation by the truth. What an open run gets back by it
    /// goes on to the payer: others may have taken that room by now, so the run does not hold it anew.
    fn correct(&mut self, expired: &ExpiredReservation, charge: &Amounts, at_ms: u64) {
        let (scopes, reserved_at_ms) = (&expired.reservation.scopes, expired.reservation.at_ms);
        let run = scopes.run.as_ref();
        self.each_matching(scopes, |cap| {
            if cap.since > expired.version {
                return;
            }
            let before = cap.spent(at_ms);
            cap.uncharge(&expired.charge, reserved_at_ms, at_ms);
            cap.charge(charge, reserved_at_ms, at_ms);
            if run.is_some_and(|run| run::is_of_run(&cap.spec, run)) {
                let back = before.saturating_sub(cap.spent(at_ms));
                cap.spec.limit = cap.spec.limit.saturating_sub(back);
            }
        });
    }

    /// What the account would be without one of its open requests; it stays as it is. `None` where that is
    /// not open, or is the budget of a run.
    pub fn without<T>(&mut self, id: ReservationId, look: impl FnOnce(&Self) -> T) -> Option<T> {
        let open = self.open.get(&id)?;
        if self.run_held_by(id, open).is_some() {
            return None;
        }
        let open = self.take_out(id)?;
        self.within_run(&open.scopes, |account| {
            account.give_back(&open.scopes, &open.hold);
        });
        let seen = look(self);
        // as it was taken: a run's share follows from what its requests hold
        self.within_run(&open.scopes, |account| {
            account.hold(&open.scopes, &open.hold);
        });
        self.holdings.opened(id, &open.scopes);
        self.open.insert(id, open);
        Some(seen)
    }

    fn release(&mut self, id: ReservationId) {
        let Some(open) = self.take_out(id) else {
            return;
        };
        self.within_run(&open.scopes, |account| {
            account.give_back(&open.scopes, &open.hold);
        });
    }

    fn expire(&mut self, data: &Expired, at_ms: u64) {
        let Some(reservation) = self.take_out(data.reservation) else {
            return;
        };
        self.charge(&reservation, &data.charge, at_ms);
        let expired = ExpiredReservation {
            reservation,
            charge: data.charge,
            expired_at_ms: at_ms,
            version: self.version,
        };
        self.expired.insert(data.reservation, expired);
        self.expired
            .retain(|_, expired| at_ms < expired.expired_at_ms.saturating_add(LATE_SETTLE_MS_MAX));
        while self.expired.len() > LATE_SETTLE_COUNT_MAX {
            self.expired.pop_first();
        }
    }

    /// Takes an open request out, for its hold to be ended. A run's budget is closed here at once and
    /// has no hold of its own to end.
    fn take_out(&mut self, id: ReservationId) -> Option<Reservation> {
        let open = self.open.remove(&id)?;
        self.holdings.ended(id, &open.scopes);
        if self.run_held_by(id, &open).is_none() {
            return Some(open);
        }
        if let Some(run) = &open.scopes.run {
            self.close_run(run);
        }
        None
    }

    fn each_matching(&mut self, scopes: &Scopes, change: impl FnMut(&mut Cap)) {
        each_matching(&mut self.caps, scopes, change);
    }

    /// A request holds, in every cap in which it does so by itself.
    fn hold(&mut self, scopes: &Scopes, hold: &Amounts) {
        let Self {
            runs,
            caps,
            holdings,
            ..
        } = self;
        let run = scopes.run.as_ref().and_then(|id| runs.get(id));
        holdings.take(scopes, run, hold);
        each_holding(caps, scopes, run, |cap| cap.take(hold));
    }

    /// Takes back what [`Self::hold`] did.
    fn give_back(&mut self, scopes: &Scopes, hold: &Amounts) {
        let Self {
            runs,
            caps,
            holdings,
            ..
        } = self;
        let run = scopes.run.as_ref().and_then(|id| runs.get(id));
        holdings.give_back(scopes, run, hold);
        each_holding(caps, scopes, run, |cap| cap.give_back(hold));
    }

    fn change_cap(&mut self, cap: &CapId, change: impl FnOnce(&mut Cap)) {
        if let Some(cap) = self.caps.iter_mut().find(|known| known.spec.cap == *cap) {
            change(cap);
        }
    }
}

/// Every cap in which a request holds by itself.
fn each_holding(
    caps: &mut [Cap],
    scopes: &Scopes,
    run: Option<&Run>,
    mut change: impl FnMut(&mut Cap),
) {
    each_matching(caps, scopes, |cap| {
        if run.is_none_or(|run| !run.covers(&cap.spec)) {
            change(cap);
        }
    });
}
