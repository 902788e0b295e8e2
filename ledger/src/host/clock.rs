//! The clocks of a host: the wall clock, and a monotonic one.
//!
//! A host reads time nowhere else, so that each may be given a clock of its own: tests give one an
//! offset and a drift.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use super::skew::{Reading, SKEW_MAX_DEFAULT};

/// The wall clock of this machine, unix ms.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    whole_ms(since)
}

/// What tells the time.
pub trait TimeSource: fmt::Debug + Send + Sync + 'static {
    /// The wall clock, unix ms. Anybody may set it.
    fn wall_ms(&self) -> u64;

    /// The monotonic clock. Only the distance between two readings of one source means anything.
    fn instant(&self) -> Instant;

    /// How long the runtime's timers run while this monotonic clock goes on by `span`.
    fn timer(&self, span: Duration) -> Duration;
}

/// The clocks of the machine.
#[derive(Debug, Clone, Copy)]
struct Machine;

impl TimeSource for Machine {
    fn wall_ms(&self) -> u64 {
        now_ms()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn timer(&self, span: Duration) -> Duration {
        span
    }
}

/// The clock of a host. Clones tell the same time.
#[derive(Debug, Clone)]
pub struct HostClock {
    source: Arc<dyn TimeSource>,
    skew_max: Duration,
}

impl HostClock {
    /// The clocks of the machine.
    pub fn machine() -> Self {
        Self::of(Machine)
    }

    /// A clock of its own.
    pub fn of(source: impl TimeSource) -> Self {
        Self {
            source: Arc::new(source),
            skew_max: SKEW_MAX_DEFAULT,
        }
    }

    /// The same clock, which may be so far from the server's.
    #[must_use]
    pub fn within(self, skew_max: Duration) -> Self {
        Self { skew_max, ..self }
    }

    /// How far it may be from the server's.
    pub fn skew_max(&self) -> Duration {
        self.skew_max
    }

    /// Both clocks.
    pub fn read(&self) -> Reading {
        Reading {
            wall_ms: self.wall_ms(),
            at: self.instant(),
        }
    }

    /// The wall clock, unix ms.
    pub fn wall_ms(&self) -> u64 {
        self.source.wall_ms()
    }

    /// The monotonic clock.
    pub fn instant(&self) -> Instant {
        self.source.instant()
    }

    /// Waits for as long as this clock goes on by `span`.
    pub async fn sleep(&self, span: Duration) {
        tokio::time::sleep(self.source.timer(span)).await;
    }
}

pub(super) fn whole_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn signed(at_ms: u64) -> i64 {
    i64::try_from(at_ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::clock::OwnClock;

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_runs_fast_wakes_early() {
        let own = OwnClock::new(1_000_000_000);
        own.drift(100_000);
        let clock = HostClock::of(own);
        let (begun, wall_ms) = (Instant::now(), clock.wall_ms());
        clock.sleep(Duration::from_millis(1_100)).await;
        // the timers of the runtime are good to a millisecond
        let took = begun.elapsed();
        assert!((1_000..=1_001).contains(&took.as_millis()), "{took:?}");
        let went_ms = clock.wall_ms() - wall_ms;
        assert!((1_100..=1_102).contains(&went_ms), "{went_ms}");
    }
}
