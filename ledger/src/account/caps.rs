//! A cap with its counters, and how the caps that apply to a request are found among many.

use std::ops::Range;

use seatbelt_schemas::{
    cap::{CapEvidence, CapSpec, CapStanding, CapTerms},
    meter::Amounts,
    scope::Scopes,
    window::Window,
};
use serde::{Deserialize, Serialize};

use crate::counter::Counter;

/// Up to so many caps are looked through one by one, which then is faster than searching them scope by
/// scope.
const FEW_CAPS: usize = 12;

/// A cap with its counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cap {
    /// What it is.
    pub spec: CapSpec,
    /// What credits have added to its limit.
    pub credits: u64,
    /// Sum of the open holds that it applies to. Exact: what is let in keeps the account's sums countable
    /// ([`validate`](crate::decide::validate)), so that none stops at the end of its range.
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

    pub(super) fn take(&mut self, hold: &Amounts) {
        let amount = hold.held_in(self.spec.meter).unwrap_or(0);
        self.held = self.held.saturating_add(amount);
    }

    pub(super) fn give_back(&mut self, hold: &Amounts) {
        let amount = hold.held_in(self.spec.meter).unwrap_or(0);
        self.held = self.held.saturating_sub(amount);
    }

    pub(super) fn charge(&mut self, charge: &Amounts, reserved_at_ms: u64, now_ms: u64) {
        let amount = charge.spent_in(self.spec.meter).unwrap_or(0);
        self.counter
            .add(self.spec.window, reserved_at_ms, now_ms, amount);
    }

    pub(super) fn uncharge(&mut self, charge: &Amounts, reserved_at_ms: u64, now_ms: u64) {
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

    pub(super) fn announce(&mut self, percent: u8, at_ms: u64) {
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
    pub(super) fn rearm(&mut self, at_ms: u64) {
        let (spent, limit) = (u128::from(self.spent(at_ms)), u128::from(self.limit()));
        self.announced
            .retain(|(percent, _)| spent * 100 >= u128::from(*percent) * limit);
    }
}

pub(super) fn each_matching(caps: &mut [Cap], scopes: &Scopes, mut change: impl FnMut(&mut Cap)) {
    if caps.len() <= FEW_CAPS {
        let matching = |cap: &&mut Cap| scopes.matches(&cap.spec.scope);
        return caps.iter_mut().filter(matching).for_each(change);
    }
    for scope in scopes.sort_keys() {
        let range = range_of(caps, scope);
        caps[range].iter_mut().for_each(&mut change);
    }
}

/// The caps that apply to a request. Many caps that do not are leapt over: each leap ends at a scope of
/// the request or behind it, so there are no more leaps than scopes.
#[derive(Debug, Clone)]
pub struct Matching<'a> {
    pub(super) rest: &'a [Cap],
    pub(super) scopes: &'a Scopes,
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
pub(super) fn range_of(caps: &[Cap], scope: (u8, &str)) -> Range<usize> {
    let from = caps.partition_point(|cap| cap.spec.scope.sort_key() < scope);
    let count = caps[from..].partition_point(|cap| cap.spec.scope.sort_key() == scope);
    from..from + count
}
