//! What time does to a writer: deadlines, waits and windows that run out, and settles that linger.
//!
//! The time is given with every call. Each tick does a bounded piece of what is due.

use seatbelt_schemas::ids::{AccountId, ReservationId};

use super::{Caller, EXPIRE_PER_TICK_MAX, Writer};
use crate::decide;

impl<T: Caller> Writer<T> {
    /// Lets time act: deadlines and waits that have run out, windows that have aged.
    pub fn tick(&mut self, now_ms: u64) {
        // a clock that went back must not make anything wait longer
        let lingers =
            |until_ms| now_ms < until_ms && until_ms - now_ms <= self.config.settle_linger_ms;
        self.linger_until_ms = self.linger_until_ms.filter(|until_ms| lingers(*until_ms));
        let grace_ms = self.config.expiry_grace_ms;
        for _ in 0..EXPIRE_PER_TICK_MAX {
            match self.deadlines.first() {
                Some((deadline, ..)) if now_ms >= deadline.saturating_add(grace_ms) => {}
                _ => break,
            }
            if let Some((_, reservation, account)) = self.deadlines.pop_first() {
                self.expire(now_ms, &account, reservation);
            }
        }
        self.tick_waiting(now_ms);
        while let Some(account) = self.tallies.pop_due(now_ms) {
            self.write_counted(now_ms, &account);
            self.tallies.close(now_ms, &account);
        }
    }

    /// Lets nothing wait any longer, before a planned end.
    pub fn hurry(&mut self, now_ms: u64) {
        self.linger_until_ms = None;
        self.write_all_counted(now_ms);
    }

    pub(super) fn write_all_counted(&mut self, now_ms: u64) {
        for account in self.tallies.counting() {
            self.write_counted(now_ms, &account);
        }
    }

    /// The next moment at which [`Writer::tick`] has something to do.
    pub fn next_wake_ms(&self) -> Option<u64> {
        let deadline = self
            .deadlines
            .first()
            .map(|(at_ms, ..)| at_ms + self.config.expiry_grace_ms);
        [
            deadline,
            self.linger_until_ms,
            self.waiting.next_wake_ms(),
            self.tallies.next_due_ms(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Until when a settle decided now may wait for its commit; not at all behind what may not.
    pub(super) fn linger(&self, now_ms: u64) -> Option<u64> {
        let linger_ms = self.config.settle_linger_ms;
        if linger_ms == 0 {
            return None;
        }
        match self.linger_until_ms {
            None if self.pending.is_empty() => Some(now_ms.saturating_add(linger_ms)),
            until_ms => until_ms,
        }
    }

    pub(super) fn expire(&mut self, now_ms: u64, account: &AccountId, reservation: ReservationId) {
        let (at_ms, grace_ms) = (self.event_ms(now_ms), self.config.expiry_grace_ms);
        let Some(state) = self.state.account(account) else {
            return;
        };
        let Some(expired) = decide::expire(state, at_ms, grace_ms, reservation) else {
            return;
        };
        self.carry_out_own(now_ms, account, expired.into());
    }

    pub(super) fn forget_deadline(&mut self, account: &AccountId, reservation: ReservationId) {
        let open = self
            .state
            .account(account)
            .and_then(|state| state.open().get(&reservation));
        if let Some(deadline_ms) = open.map(|open| open.asked.deadline_ms) {
            self.deadlines
                .remove(&(deadline_ms, reservation, account.clone()));
        }
    }
}
