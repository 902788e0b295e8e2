//! Where every choice of a run comes from: one seed.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// `SplitMix64` (Steele, Lea, Flood 2014): small, seeded, the same everywhere. Shared by all tasks of a
/// run, which take turns on one thread.
pub(crate) struct Chance(Mutex<u64>);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn one_in(&self, odds: u64) -> bool {
        self.below(odds) == 0
    }

    pub(crate) fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// Up to so many ms.
    pub(crate) fn ms(&self, below: u64) -> Duration {
        Duration::from_millis(self.below(below))
    }
}
