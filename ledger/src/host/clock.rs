//! The time as a host reads it: the wall clock, a monotonic clock, and by how much the first was set
//! beside the second.
//!
//! A host reads time nowhere else, so that each may be given a clock of its own: tests give one an
//! offset and a drift. Patience is a span of time and must not change when somebody sets the clock, or
//! when a machine comes back from sleep. What the wall clock did beside the monotonic one is therefore
//! told, too.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

/// Steps of the wall clock below this are taken as its going: what a machine's time service does to keep
/// it right, and the coarseness of both clocks.
const STEP_MS_MIN: i64 = 20;

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

/// A host's clock as one task reads it. Compares the wall clock with the monotonic one.
#[derive(Debug)]
pub(super) struct Watch {
    clock: HostClock,
    wall_ms: u64,
    at: Instant,
}

impl Watch {
    pub(super) fn new(clock: HostClock) -> Self {
        let (wall_ms, at) = (clock.wall_ms(), clock.instant());
        Self { clock, wall_ms, at }
    }

    pub(super) fn clock(&self) -> &HostClock {
        &self.clock
    }

    /// The wall clock, unix ms, and by how much it was set since that was last told, ms; 0 where it just
    /// went on.
    pub(super) fn read(&mut self) -> (u64, i64) {
        let (wall_ms, at) = (self.clock.wall_ms(), self.clock.instant());
        let went = at.saturating_duration_since(self.at);
        let expected_ms = self.wall_ms.saturating_add(whole_ms(went));
        let step_ms = signed(wall_ms).saturating_sub(signed(expected_ms));
        if step_ms.saturating_abs() < STEP_MS_MIN {
            return (wall_ms, 0);
        }
        (self.wall_ms, self.at) = (wall_ms, at);
        (wall_ms, step_ms)
    }
}

fn whole_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn signed(at_ms: u64) -> i64 {
    i64::try_from(at_ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::clock::OwnClock;

    const START_MS: u64 = 1_000_000_000;
    const HOUR_MS: i64 = 3_600_000;

    fn watched() -> (OwnClock, Watch) {
        let clock = OwnClock::new(START_MS);
        let watch = Watch::new(HostClock::of(clock.clone()));
        (clock, watch)
    }

    async fn goes_on(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_goes_is_no_step() {
        let (_, mut watch) = watched();
        assert_eq!(watch.read(), (START_MS, 0));
        goes_on(60_001).await;
        assert_eq!(watch.read(), (START_MS + 60_001, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_is_a_step_told_once() {
        for hour in [-HOUR_MS, HOUR_MS] {
            let (clock, mut watch) = watched();
            goes_on(1_000).await;
            clock.set_by(hour);
            let set_ms = (START_MS + 1_000).checked_add_signed(hour).unwrap();
            assert_eq!(watch.read(), (set_ms, hour));
            goes_on(5).await;
            assert_eq!(watch.read(), (set_ms + 5, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_drift_is_told_once_it_has_come_to_something() {
        let (clock, mut watch) = watched();
        goes_on(100).await;
        clock.set_by(-10);
        assert_eq!(watch.read().1, 0);
        goes_on(100).await;
        clock.set_by(-10);
        assert_eq!(watch.read().1, -20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_runs_fast_wakes_early() {
        let own = OwnClock::new(START_MS);
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
