//! What is spent in a cap's window, by slot.
//!
//! Pure: the time is always given. Slots that have left the window stop counting by the time alone;
//! they are dropped from memory when the counter is next written.

use std::collections::VecDeque;

use seatbelt_schemas::window::Window;
use serde::{Deserialize, Serialize};

/// Spend by slot, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    slots: VecDeque<(u64, u64)>,
    total: u64,
}

impl Counter {
    /// What counts at `at_ms`.
    pub fn spent(&self, window: Window, at_ms: u64) -> u64 {
        match self.slots.front() {
            Some((oldest, _)) if is_gone(window, *oldest, at_ms) => {}
            _ => return self.total,
        }
        let gone = self
            .slots
            .iter()
            .take_while(|(slot, _)| is_gone(window, *slot, at_ms));
        self.total - gone.map(|(_, amount)| amount).sum::<u64>()
    }

    /// Adds spend that belongs to `spent_at_ms`, as seen at `now_ms`; nothing where its slot has left
    /// the window since.
    pub fn add(&mut self, window: Window, spent_at_ms: u64, now_ms: u64, amount: u64) {
        self.forget(window, now_ms);
        let slot = window.slot(spent_at_ms);
        if amount == 0 || is_gone(window, slot, now_ms) {
            return;
        }
        // amounts are bounded at the border (2^62 each), so saturation is out of reach in practice
        // and would err on the side of the cap
        let amount = amount.min(u64::MAX - self.total);
        self.total += amount;
        match self.slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            Ok(index) => self.slots[index].1 += amount,
            Err(index) => self.slots.insert(index, (slot, amount)),
        }
    }

    /// Takes spend back that belonged to `spent_at_ms`, as far as its slot still counts.
    pub fn subtract(&mut self, window: Window, spent_at_ms: u64, now_ms: u64, amount: u64) {
        self.forget(window, now_ms);
        let slot = window.slot(spent_at_ms);
        if let Ok(index) = self.slots.binary_search_by_key(&slot, |(slot, _)| *slot) {
            let taken = amount.min(self.slots[index].1);
            self.slots[index].1 -= taken;
            self.total -= taken;
        }
    }

    /// Takes spend back, whichever moment of the window it belongs to: the newest first, so that what
    /// is taken back counts nowhere until the window has passed.
    pub fn take_back(&mut self, window: Window, now_ms: u64, amount: u64) {
        self.forget(window, now_ms);
        let mut left = amount;
        for (_, spent) in self.slots.iter_mut().rev() {
            let taken = left.min(*spent);
            *spent -= taken;
            self.total -= taken;
            left -= taken;
        }
    }

    /// The first moment at which `shortfall` of what counts at `at_ms` has left the window; `None`
    /// where that never happens.
    pub fn aged_out_ms(&self, window: Window, at_ms: u64, shortfall: u64) -> Option<u64> {
        let mut aged = 0u64;
        let live = self
            .slots
            .iter()
            .skip_while(|(slot, _)| is_gone(window, *slot, at_ms));
        for (slot, amount) in live {
            aged += amount;
            if aged >= shortfall {
                return window.slot_gone_ms(*slot);
            }
        }
        None
    }

    /// When the next part of what counts at `at_ms` leaves the window.
    pub fn next_gone_ms(&self, window: Window, at_ms: u64) -> Option<u64> {
        let live = self
            .slots
            .iter()
            .find(|(slot, _)| !is_gone(window, *slot, at_ms));
        live.and_then(|(slot, _)| window.slot_gone_ms(*slot))
    }

    /// When all that counts at `at_ms` has left the window.
    pub fn all_aged_out_ms(&self, window: Window, at_ms: u64) -> Option<u64> {
        let (slot, _) = self.slots.back()?;
        window.slot_gone_ms(*slot).filter(|gone| *gone > at_ms)
    }

    fn forget(&mut self, window: Window, now_ms: u64) {
        while let Some((slot, amount)) = self.slots.front() {
            if *amount > 0 && !is_gone(window, *slot, now_ms) {
                break;
            }
            self.total -= amount;
            self.slots.pop_front();
        }
    }
}

fn is_gone(window: Window, slot: u64, at_ms: u64) -> bool {
    window.slot_gone_ms(slot).is_some_and(|gone| gone <= at_ms)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Window = Window::Rolling { seconds: 60 };

    #[test]
    fn spend_leaves_with_its_whole_slot() {
        let mut counter = Counter::default();
        counter.add(WINDOW, 500, 500, 7);
        assert_eq!(counter.spent(WINDOW, 60_999), 7);
        assert_eq!(counter.spent(WINDOW, 61_000), 0);
        assert_eq!(counter.aged_out_ms(WINDOW, 500, 7), Some(61_000));
        assert_eq!(counter.aged_out_ms(WINDOW, 500, 8), None);
    }

    #[test]
    fn spend_whose_slot_is_gone_is_not_counted_again() {
        let mut counter = Counter::default();
        counter.add(WINDOW, 500, 70_000, 7);
        assert_eq!(counter.spent(WINDOW, 70_000), 0);
    }

    #[test]
    fn a_balance_never_forgets() {
        let mut counter = Counter::default();
        counter.add(Window::Balance, 1, 1, 7);
        assert_eq!(counter.spent(Window::Balance, u64::MAX), 7);
        assert_eq!(counter.aged_out_ms(Window::Balance, 1, 1), None);
    }

    proptest! {
        #[test]
        fn the_counter_agrees_with_a_plain_list(
            seconds in 1..200u64,
            steps in proptest::collection::vec((0..20_000u64, 0..30_000u64, 1..50u64), 1..40),
        ) {
            let window = Window::Rolling { seconds };
            let (mut counter, mut list, mut now) = (Counter::default(), Vec::new(), 0);
            for (step, back, amount) in steps {
                now += step;
                let spent_at = now - back.min(now);
                counter.add(window, spent_at, now, amount);
                list.push((window.slot_gone_ms(window.slot(spent_at)).unwrap(), amount));
                let live = |at: u64| list.iter().filter(|(gone, _)| *gone > at).map(|(_, amount)| amount).sum::<u64>();
                prop_assert_eq!(counter.spent(window, now), live(now));
                prop_assert_eq!(counter.spent(window, now + seconds * 500), live(now + seconds * 500));
                if let Some(at) = counter.aged_out_ms(window, now, amount) {
                    prop_assert!(live(now) - live(at) >= amount);
                    prop_assert!(live(now) - live(at - 1) < amount);
                }
            }
        }
    }
}
