//! A clock of a host's own, with an offset and a drift, on the time of the runtime. It works under paused
//! time too, and then costs no time to wait for.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::host::clock::{TimeSource, now_ms};

const MILLION: i128 = 1_000_000;
const NANOS_PER_MS: i128 = 1_000_000;

/// Where the clock stood when it was last touched.
#[derive(Debug)]
struct Stand {
    /// The runtime's time then.
    true_at: Instant,
    /// What the monotonic clock showed.
    monotonic: Instant,
    /// What the wall clock showed, unix ns.
    wall_ns: i128,
    /// How much faster than the runtime's time both go, in millionths.
    drift_ppm: i32,
}

/// A clock that may be set and may drift. Clones are one clock.
#[derive(Debug, Clone)]
pub struct OwnClock {
    stand: Arc<Mutex<Stand>>,
}

impl OwnClock {
    /// A clock that shows `wall_ms` now and goes right from here.
    pub fn new(wall_ms: u64) -> Self {
        let now = Instant::now();
        let stand = Stand {
            true_at: now,
            monotonic: now,
            wall_ns: i128::from(wall_ms) * NANOS_PER_MS,
            drift_ppm: 0,
        };
        Self {
            stand: Arc::new(Mutex::new(stand)),
        }
    }

    /// A clock that is `offset_ms` ahead of the machine's (behind it, where negative).
    pub fn ahead_by(offset_ms: i64) -> Self {
        let clock = Self::new(now_ms());
        clock.set_by(offset_ms);
        clock
    }

    /// Sets the wall clock forward (back, where negative). The monotonic clock hears nothing of it.
    pub fn set_by(&self, step_ms: i64) {
        let mut stand = self.stand();
        stand.wall_ns += i128::from(step_ms) * NANOS_PER_MS;
    }

    /// From now on both clocks go faster than the runtime's time by so many millionths (slower, where
    /// negative).
    ///
    /// # Panics
    /// Where the clock would stand still or go backwards.
    pub fn drift(&self, ppm: i32) {
        assert!(i128::from(ppm) > -MILLION, "a clock goes forward");
        let mut stand = self.stand();
        let now = Instant::now();
        let went_ns = stand.went_ns(now);
        *stand = Stand {
            true_at: now,
            monotonic: stand.monotonic + nanos(went_ns),
            wall_ns: stand.wall_ns + went_ns,
            drift_ppm: ppm,
        };
    }

    fn stand(&self) -> MutexGuard<'_, Stand> {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stand {
    /// How far the clock has gone on since it was touched.
    fn went_ns(&self, now: Instant) -> i128 {
        let true_ns = now.saturating_duration_since(self.true_at).as_nanos();
        let true_ns = i128::try_from(true_ns).unwrap_or(i128::MAX / (2 * MILLION));
        true_ns * (MILLION + i128::from(self.drift_ppm)) / MILLION
    }
}

impl TimeSource for OwnClock {
    fn wall_ms(&self) -> u64 {
        let stand = self.stand();
        let wall_ns = stand.wall_ns + stand.went_ns(Instant::now());
        u64::try_from(wall_ns.div_euclid(NANOS_PER_MS)).unwrap_or(0)
    }

    fn instant(&self) -> Instant {
        let stand = self.stand();
        stand.monotonic + nanos(stand.went_ns(Instant::now()))
    }

    fn timer(&self, span: Duration) -> Duration {
        let rate = MILLION + i128::from(self.stand().drift_ppm);
        let span_ns = i128::try_from(span.as_nanos()).unwrap_or(i128::MAX / MILLION);
        // rounded up: whoever wakes finds that the time has come
        nanos((span_ns * MILLION + rate - 1) / rate)
    }
}

fn nanos(ns: i128) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}
