//! Whether a model's thread does its work, seen from outside.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{clock::Clock, config::STEP_TIME_MAX};

/// How a thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It takes requests.
    Well,
    /// One run of its model has taken so long that it will hardly end.
    Stuck,
    /// It has ended.
    Dead,
}

/// When the step under way began.
#[derive(Debug)]
pub(crate) struct Pulse {
    clock: Clock,
    start: Instant,
    /// Nanoseconds from the start, and one; 0 between steps.
    began: AtomicU64,
}

impl Pulse {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            start: clock.now(),
            clock,
            began: AtomicU64::new(0),
        }
    }

    /// Runs a step, and how long it took.
    pub(crate) fn around<T>(&self, step: impl FnOnce() -> T) -> (T, Duration) {
        let began = self.clock.now();
        let since = nanos(began.duration_since(self.start));
        self.began.store(since.saturating_add(1), Ordering::Release);
        let done = step();
        self.began.store(0, Ordering::Release);
        (done, self.clock.now().duration_since(began))
    }

    /// Whether a step takes longer than any should.
    pub(super) fn is_stuck(&self) -> bool {
        let began = self.began.load(Ordering::Acquire);
        let now = nanos(self.clock.now().duration_since(self.start));
        began > 0 && Duration::from_nanos(now.saturating_sub(began - 1)) > STEP_TIME_MAX
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_step_that_takes_too_long_is_stuck_until_it_ends() {
        let seconds = Arc::new(AtomicU64::new(0));
        let (start, told) = (Instant::now(), Arc::clone(&seconds));
        let clock = Clock::of(move || start + Duration::from_secs(told.load(Ordering::Acquire)));
        let pulse = Pulse::new(clock);
        seconds.store(10_000, Ordering::Release);
        assert!(!pulse.is_stuck(), "between steps nothing is");
        let ((), took) = pulse.around(|| {
            seconds.fetch_add(STEP_TIME_MAX.as_secs(), Ordering::AcqRel);
            assert!(!pulse.is_stuck());
            seconds.fetch_add(1, Ordering::AcqRel);
            assert!(pulse.is_stuck());
        });
        assert_eq!(took, STEP_TIME_MAX + Duration::from_secs(1));
        assert!(!pulse.is_stuck());
    }
}
