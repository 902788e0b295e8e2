//! The state of one account: keys, caps with their counters, open reservations; and `apply`, which
//! cannot fail.
//!
//! Pure and deterministic: the same events give the same state, byte for byte. Prices are not part
//! of an account: `settled` and `expired` carry what they charge.

use std::{collections::BTreeMap, ops::Range};

use seatbelt_schemas::{
    cap::{CapEvidence, CapSpec, CapStanding, CapTerms},
    event::{Adjusted, Asked, Event, EventBody, Expired, Reserved, Resized, Settled},
    ids::{CapId, KeyId, ReservationId, TeamId},
    meter::Amounts,
    scope::{Scope, Scopes},
    window::Window,
};
use serde::{Deserialize, Serialize};

use crate::counter::Counter;

/// How long an expired reservation can still be settled late: 24 hours.
pub const LATE_SETTLE_MS_MAX: u64 = 24 * 3_600_000;
/// How many expired reservations of one account can still be settled late.
pub const LATE_SETTLE_COUNT_MAX: usize = 4096;

/// Up to so many caps are looked through one by one, which then is faster than searching them scope by
/// scope.
const FEW_CAPS: usize = 12;

/// A key as the ledger knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its id.
    pub key: KeyId,
    /// Its team.
    pub team: Option<TeamId>,
    /// SHA-256 of its secret, hex, where the ledger made it.
    pub secret_sha256: Option<String>,
    /// Whether it reserves nothing any more.
    pub revoked: bool,
}

/// A cap with its counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// What it is.
    pub spec: CapSpec,
    /// What credits have added to its limit.
    pub credits: u64,
    /// Sum of the open holds that it applies to.
    pub held: u64,
    /// What is spent.
    pub counter: Counter,
    /// Thresholds already announced, each with the moment until which it stays quiet.
    pub announced: Vec<(u8, u64)>,
    /// The account's version from which on it counts.
    #[serde(default)]
    pub since: u32,
}

impl Cap {
    /// The limit, credits included.
    pub fn limit(&self) -> u64 {
        self.spec.limit.saturating_add(self.credits)
    }

    /// What is spent in the window at `at_ms`.
    pub fn spent(&self, at_ms: u64) -> u64 {
        self.counter.spent(self.spec.window, at_ms)
    }

    /// The cap as a decision at `at_ms` meets it.
    pub fn evidence(&self, at_ms: u64) -> CapEvidence {
        CapEvidence {
            cap: self.spec.cap.clone(),
            limit: self.limit(),
            spent: self.spent(at_ms),
            held: self.held,
        }
    }

    /// The cap as callers see it at `at_ms`.
    pub fn standing(&self, at_ms: u64) -> CapStanding {
        CapStanding {
            cap: self.spec.cap.clone(),
            scope: self.spec.scope.clone(),
            meter: self.spec.meter,
            window: self.spec.window,
            limit: self.limit(),
            spent: self.spent(at_ms),
            held: self.held,
            resets_at_ms: self.counter.all_aged_out_ms(self.spec.window, at_ms),
        }
    }

    /// What the cap is, besides its numbers, as a refusal at `at_ms` records it.
    pub fn terms(&self, at_ms: u64) -> CapTerms {
        CapTerms {
            scope: self.spec.scope.clone(),
            meter: self.spec.meter,
            window: self.spec.window,
            resets_at_ms: self.counter.all_aged_out_ms(self.spec.window, at_ms),
        }
    }

    fn take(&mut self, hold: &Amounts) {
        let amount = hold.held_in(self.spec.meter).unwrap_or(0);
        self.held = self.held.saturating_add(amount);
    }

    fn give_back(&mut self, hold: &Amounts) {
        let amount = hold.held_in(self.spec.meter).unwrap_or(0);
        self.held = self.held.saturating_sub(amount);
    }

    fn charge(&mut self, charge: &Amounts, reserved_at_ms: u64, now_ms: u64) {
        let amount = charge.spent_in(self.spec.meter).unwrap_or(0);
        self.counter
            .add(self.spec.window, reserved_at_ms, now_ms, amount);
    }

    fn uncharge(&mut self, charge: &Amounts, reserved_at_ms: u64, now_ms: u64) {
        let amount = charge.spent_in(self.spec.meter).unwrap_or(0);
        self.counter
            .subtract(self.spec.window, reserved_at_ms, now_ms, amount);
    }

    /// Thresholds that spend has reached at `at_ms` and that nobody was told of.
    pub fn due_thresholds(&self, at_ms: u64) -> impl Iterator<Item = u8> + '_ {
        let (spent, limit) = (u128::from(self.spent(at_ms)), u128::from(self.limit()));
        self.spec.thresholds.iter().copied().filter(move |percent| {
            let mut announced = self.announced.iter();
            spent > 0
                && spent * 100 >= u128::from(*percent) * limit
                && !announced.any(|(told, until)| told == percent && at_ms < *until)
        })
    }

    fn announce(&mut self, percent: u8, at_ms: u64) {
        let window = self.spec.window;
        let until = match window {
            Window::Balance => u64::MAX,
            Window::Calendar { .. } => window.slot_gone_ms(window.slot(at_ms)).unwrap_or(u64::MAX),
            Window::Rolling { .. } => at_ms + window.length_ms(at_ms).unwrap_or(0),
        };
        self.announced
            .retain(|(told, until)| *told != percent && at_ms < *until);
        self.announced.push((percent, until));
    }

    /// After a change of the limit or of what is spent, a threshold that is no longer reached may be
    /// announced again.
    fn rearm(&mut self, at_ms: u64) {
        let (spent, limit) = (u128::from(self.spent(at_ms)), u128::from(self.limit()));
        self.announced
            .retain(|(percent, _)| spent * 100 >= u128::from(*percent) * limit);
    }
}

/// An open hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Whose it is.
    pub scopes: Scopes,
    /// What was asked.
    pub asked: Asked,
    /// What is held.
    pub hold: Amounts,
    /// Version of the model's price.
    pub price: Option<u32>,
    /// When it was taken, unix ms: its spend belongs here.
    pub at_ms: u64,
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
pub struct Account {
    opened: bool,
    version: u32,
    keys: Vec<Key>,
    caps: Vec<Cap>,
    open: BTreeMap<ReservationId, Reservation>,
    expired: BTreeMap<ReservationId, ExpiredReservation>,
}

impl Account {
    /// Whether the account exists.
    pub fn is_open(&self) -> bool {
        self.opened
    }

    /// How many events have been applied: the account's own version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The account's keys, by id.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// One key.
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

    /// One cap.
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

    /// Open reservations.
    pub fn open(&self) -> &BTreeMap<ReservationId, Reservation> {
        &self.open
    }

    /// Reservations that expired and may still be settled late.
    pub fn expired(&self) -> &BTreeMap<ReservationId, ExpiredReservation> {
        &self.expired
    }

    /// The caps as callers see them at `at_ms`; only those that apply to `key` where one is given.
    pub fn standings(&self, key: Option<&KeyId>, at_ms: u64) -> Vec<CapStanding> {
        let team = key
            .and_then(|key| self.key(key))
            .and_then(|key| key.team.as_ref());
        let applies = |scope: &Scope| match (scope, key) {
            (_, None) | (Scope::Account, _) => true,
            (Scope::Key(id), Some(key)) => id == key,
            (Scope::Team(id), _) => Some(id) == team,
            _ => false,
        };
        self.caps
            .iter()
            .filter(|cap| applies(&cap.spec.scope))
            .map(|cap| cap.standing(at_ms))
            .collect()
    }

    /// Folds one event in. Cannot fail: what does not fit the state (a settle of an unknown
    /// reservation) changes nothing here and is found by the audit, which decides again.
    pub fn apply(&mut self, event: &Event) {
        let at_ms = event.at_ms;
        self.version = self.version.saturating_add(1);
        match &event.body {
            EventBody::AccountOpened(_) => self.opened = true,
            EventBody::KeyIssued(data) => self.issue(Key {
                key: data.key.clone(),
                team: data.team.clone(),
                secret_sha256: data.secret_sha256.clone(),
                revoked: false,
            }),
            EventBody::KeyRevoked(data) => {
                if let Ok(index) = self.keys.binary_search_by(|known| known.key.cmp(&data.key)) {
                    self.keys[index].revoked = true;
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
            EventBody::Released(data) => {
                self.end(data.reservation);
            }
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
            Ok(index) => self.keys[index] = key,
            Err(index) => self.keys.insert(index, key),
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
        let mut cap = Cap {
            spec: spec.clone(),
            credits: 0,
            held: 0,
            counter: Counter::default(),
            announced: Vec::new(),
            since: self.version,
        };
        let matching = self
            .open
            .values()
            .filter(|open| open.scopes.matches(&spec.scope));
        matching.for_each(|open| cap.take(&open.hold));
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
        self.each_matching(&data.scopes, |cap| cap.take(&data.hold));
        let reservation = Reservation {
            scopes: data.scopes.clone(),
            asked: data.asked,
            hold: data.hold,
            price: data.price,
            at_ms,
        };
        self.open.insert(data.reservation, reservation);
    }

    fn resize(&mut self, data: &Resized) {
        let Some(mut open) = self.open.remove(&data.reservation) else {
            return;
        };
        self.each_matching(&open.scopes, |cap| {
            cap.give_back(&open.hold);
            cap.take(&data.hold);
        });
        open.hold = data.hold;
        self.open.insert(data.reservation, open);
    }

    fn settle(&mut self, data: &Settled, at_ms: u64) {
        if let Some(open) = self.end(data.reservation) {
            self.each_matching(&open.scopes, |cap| {
                cap.charge(&data.charge, open.at_ms, at_ms);
            });
        } else if let Some(expired) = self.expired.remove(&data.reservation) {
            let reserved_at_ms = expired.reservation.at_ms;
            self.each_matching(&expired.reservation.scopes, |cap| {
                if cap.since <= expired.version {
                    cap.uncharge(&expired.charge, reserved_at_ms, at_ms);
                    cap.charge(&data.charge, reserved_at_ms, at_ms);
                }
            });
        }
    }

    fn expire(&mut self, data: &Expired, at_ms: u64) {
        let Some(reservation) = self.end(data.reservation) else {
            return;
        };
        let (scopes, reserved_at_ms) = (&reservation.scopes, reservation.at_ms);
        self.each_matching(scopes, |cap| {
            cap.charge(&data.charge, reserved_at_ms, at_ms);
        });
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

    /// Takes a reservation out and gives its hold back.
    fn end(&mut self, reservation: ReservationId) -> Option<Reservation> {
        let open = self.open.remove(&reservation)?;
        self.each_matching(&open.scopes, |cap| cap.give_back(&open.hold));
        Some(open)
    }

    fn each_matching(&mut self, scopes: &Scopes, mut change: impl FnMut(&mut Cap)) {
        if self.caps.len() <= FEW_CAPS {
            let matching = |cap: &&mut Cap| scopes.matches(&cap.spec.scope);
            return self.caps.iter_mut().filter(matching).for_each(change);
        }
        for scope in scopes.sort_keys() {
            let range = range_of(&self.caps, scope);
            self.caps[range].iter_mut().for_each(&mut change);
        }
    }

    fn change_cap(&mut self, cap: &CapId, change: impl FnOnce(&mut Cap)) {
        if let Some(cap) = self.caps.iter_mut().find(|known| known.spec.cap == *cap) {
            change(cap);
        }
    }
}

/// The caps that apply to a request. Many caps that do not are leapt over: each leap ends at a scope of
/// the request or behind it, so there are no more leaps than scopes.
#[derive(Debug, Clone)]
pub struct Matching<'a> {
    rest: &'a [Cap],
    scopes: &'a Scopes,
}

impl<'a> Iterator for Matching<'a> {
    type Item = &'a Cap;

    fn next(&mut self) -> Option<&'a Cap> {
        loop {
            let (cap, after) = self.rest.split_first()?;
            self.rest = after;
            if self.scopes.matches(&cap.spec.scope) {
                return Some(cap);
            }
            if after.len() > FEW_CAPS {
                let here = cap.spec.scope.sort_key();
                let before = |cap: &Cap, scope| cap.spec.scope.sort_key() < scope;
                self.rest = match self.scopes.sort_keys().find(|scope| *scope > here) {
                    Some(scope) => &after[after.partition_point(|cap| before(cap, scope))..],
                    None => &[],
                };
            }
        }
    }
}

/// Where the caps of one scope stand in the sorted list.
fn range_of(caps: &[Cap], scope: (u8, &str)) -> Range<usize> {
    let from = caps.partition_point(|cap| cap.spec.scope.sort_key() < scope);
    let count = caps[from..].partition_point(|cap| cap.spec.scope.sort_key() == scope);
    from..from + count
}
