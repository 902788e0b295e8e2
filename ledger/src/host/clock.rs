//! The time as a task tells it to its writer: the wall clock, and by how much it was set.
//!
//! Patience is a span of time and must not change when somebody sets the clock, or when a machine comes
//! back from sleep. What the wall clock did beside the monotonic one is therefore told, too.

use std::time::Duration;

use tokio::time::Instant;

/// Steps of the wall clock below this are taken as its going: what a machine's time service does to keep
/// it right, and the coarseness of both clocks.
const STEP_MS_MIN: i64 = 20;

/// Compares the wall clock with the monotonic one.
#[derive(Debug)]
pub(super) struct Clock {
    wall_ms: u64,
    at: Instant,
}

impl Clock {
    pub(super) fn new(wall_ms: u64, at: Instant) -> Self {
        Self { wall_ms, at }
    }

    /// By how much the wall clock was set since that was last told, ms; 0 where it just went on.
    pub(super) fn step_ms(&mut self, wall_ms: u64, at: Instant) -> i64 {
        let went = at.saturating_duration_since(self.at);
        let expected_ms = self.wall_ms.saturating_add(whole_ms(went));
        let step_ms = signed(wall_ms).saturating_sub(signed(expected_ms));
        if step_ms.saturating_abs() < STEP_MS_MIN {
            return 0;
        }
        *self = Self { wall_ms, at };
        step_ms
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

    const START_MS: u64 = 1_000_000_000;
    const HOUR_MS: u64 = 3_600_000;

    /// Readings are wall ms and how long the monotonic clock went, ms.
    #[track_caller]
    fn check(readings: &[(u64, u64)], steps: &[i64]) {
        let start = Instant::now();
        let mut clock = Clock::new(START_MS, start);
        let told = readings.iter().map(|(wall_ms, went_ms)| {
            clock.step_ms(*wall_ms, start + Duration::from_millis(*went_ms))
        });
        assert_eq!(told.collect::<Vec<_>>(), steps);
    }

    #[test]
    fn a_clock_that_goes_is_no_step() {
        check(&[(START_MS + 1, 0), (START_MS + 60_000, 60_001)], &[0, 0]);
    }

    #[test]
    fn a_clock_that_is_set_is_a_step_told_once() {
        let back = START_MS - HOUR_MS;
        check(&[(back, 0), (back + 5, 5)], &[-3_600_000, 0]);
        let ahead = START_MS + HOUR_MS;
        check(
            &[(ahead + 1_000, 1_000), (ahead + 1_005, 1_005)],
            &[3_600_000, 0],
        );
    }

    #[test]
    fn a_slow_drift_is_told_once_it_has_come_to_something() {
        check(&[(START_MS + 90, 100), (START_MS + 180, 200)], &[0, -20]);
    }
}
