//! The time as a partition's task tells it to its writer, and by how much it was set.
//!
//! Patience is a span of time and must not change when somebody sets the clock, or when a machine comes
//! back from sleep: what the time did beside the monotonic clock is told with it. The time itself keeps
//! near the server's: between two looks at that it is reckoned on the monotonic clock, so that a wall
//! clock which is set moves no window before it is found out.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    clock::{HostClock, signed, whole_ms},
    skew::{ClockLook, ClockOff, Reading, Skew},
};

/// Steps of the wall clock below this are taken as its going: what a machine's time service does to keep
/// it right, and the coarseness of both clocks.
const STEP_MS_MIN: i64 = 20;
/// How often the server's clock is looked at, and how soon again at the earliest where the wall clock was
/// set.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How soon it is looked again after a look that found something to be made sure of.
const LOOK_SURE: Duration = Duration::from_secs(1);

/// What the server told.
#[derive(Debug)]
pub(super) enum Looked {
    /// Its time.
    At(ClockLook),
    /// That it has none: the journal is kept in this process.
    NoClock,
    /// Nothing, this time.
    Failed,
}

/// A host's clock as one task reads it.
#[derive(Debug)]
pub(super) struct Timepiece {
    clock: HostClock,
    /// The wall clock when it was last found set.
    wall: Reading,
    /// The time when it was last told to have been set.
    told: Reading,
    /// The server's time at the last look: it is not behind that now.
    server: Option<Reading>,
    skew: Option<Skew>,
    /// When the server's clock is looked at next; never where it has none.
    look_at: Option<Instant>,
    looked_at: Instant,
}

impl Timepiece {
    pub(super) fn new(clock: HostClock) -> Self {
        let now = clock.read();
        Self {
            clock,
            wall: now,
            told: now,
            server: None,
            skew: None,
            look_at: Some(now.at),
            looked_at: now.at,
        }
    }

    pub(super) fn clock(&self) -> &HostClock {
        &self.clock
    }

    /// The time, unix ms, and by how much it was set since that was last told, ms; 0 where it just went
    /// on.
    pub(super) fn read(&mut self) -> (u64, i64) {
        let now = self.clock.read();
        if step_ms(&mut self.wall, now) != 0 {
            // somebody set it: is it right now?
            let soonest = self.looked_at + LOOK_AGAIN;
            self.look_at = self.look_at.map(|at| at.min(soonest));
        }
        let now = self.near_server(now);
        (now.wall_ms, step_ms(&mut self.told, now))
    }

    /// The time, unix ms.
    pub(super) fn ms(&self) -> u64 {
        self.near_server(self.clock.read()).wall_ms
    }

    /// The host's time, no further from the server's than half of what is allowed: so far apart are two
    /// writers that follow each other at most, however wrong their hosts are.
    fn near_server(&self, now: Reading) -> Reading {
        let Some(server) = &self.server else {
            return now;
        };
        let server_ms = server.expected_ms(now.at);
        let near_ms = whole_ms(self.clock.skew_max() / 2);
        let (from_ms, to_ms) = (
            server_ms.saturating_sub(near_ms),
            server_ms.saturating_add(near_ms),
        );
        Reading {
            wall_ms: now.wall_ms.clamp(from_ms, to_ms),
            ..now
        }
    }

    /// How long until the server's clock is looked at; none where that is not to be.
    pub(super) fn until_look(&self) -> Option<Duration> {
        let at = self.look_at?;
        Some(at.saturating_duration_since(self.clock.instant()))
    }

    /// Whether it is time to look at the server's clock; if so, it is not said again until
    /// [`Timepiece::looked`].
    pub(super) fn take_look(&mut self) -> bool {
        let due = self.until_look().is_some_and(|left| left.is_zero());
        if due {
            self.look_at = None;
        }
        due
    }

    /// What the last look found is to be made sure of: the next one is not far.
    pub(super) fn make_sure(&mut self) {
        let soon = self.clock.instant() + LOOK_SURE;
        self.look_at = self.look_at.map(|at| at.min(soon));
    }

    /// Takes in what came of a look.
    pub(super) fn looked(&mut self, looked: &Looked) {
        let now = self.clock.instant();
        self.looked_at = now;
        self.look_at = match looked {
            Looked::NoClock => None,
            Looked::At(_) | Looked::Failed => Some(now + LOOK_EVERY),
        };
        if let Looked::At(look) = looked {
            self.skew = Some(look.skew());
            // the server's clock showed this before its answer was here
            self.server = Some(Reading {
                wall_ms: look.server_ms,
                at: look.heard.at,
            });
        }
    }

    /// How far the clock is ahead of the server's, where that is known.
    pub(super) fn skew(&self) -> Option<Skew> {
        self.skew
    }

    /// That the clock is too far from the server's, where it is for certain.
    pub(super) fn off(&self) -> Option<ClockOff> {
        let (skew, max) = (self.skew?, self.clock.skew_max());
        skew.is_beyond(max).then_some(ClockOff { skew, max })
    }

    /// By how much the time is behind that of the journal, beyond what clocks may differ by.
    pub(super) fn behind(&self, journal_ms: u64) -> Option<Duration> {
        let behind = Duration::from_millis(journal_ms.saturating_sub(self.ms()));
        (behind > self.clock.skew_max()).then_some(behind)
    }
}

/// By how much a clock was set since `then`, ms; 0 where it just went on.
fn step_ms(then: &mut Reading, now: Reading) -> i64 {
    let expected_ms = then.expected_ms(now.at);
    let step_ms = signed(now.wall_ms).saturating_sub(signed(expected_ms));
    if step_ms.saturating_abs() < STEP_MS_MIN {
        return 0;
    }
    *then = now;
    step_ms
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::clock::OwnClock;

    const START_MS: u64 = 1_000_000_000;
    const HOUR_MS: i64 = 3_600_000;

    fn watched() -> (OwnClock, Timepiece) {
        let clock = OwnClock::new(START_MS);
        let time = Timepiece::new(HostClock::of(clock.clone()));
        (clock, time)
    }

    fn look(time: &mut Timepiece, server_ms: u64) {
        let now = time.clock().read();
        time.looked(&Looked::At(ClockLook {
            asked: now,
            heard: now,
            server_ms,
        }));
    }

    async fn goes_on(ms: u64) {
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_goes_is_no_step() {
        let (_, mut time) = watched();
        assert_eq!(time.read(), (START_MS, 0));
        goes_on(60_001).await;
        assert_eq!(time.read(), (START_MS + 60_001, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_is_a_step_told_once() {
        for hour in [-HOUR_MS, HOUR_MS] {
            let (clock, mut time) = watched();
            goes_on(1_000).await;
            clock.set_by(hour);
            let set_ms = (START_MS + 1_000).checked_add_signed(hour).unwrap();
            assert_eq!(time.read(), (set_ms, hour));
            goes_on(5).await;
            assert_eq!(time.read(), (set_ms + 5, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_drift_is_told_once_it_has_come_to_something() {
        let (clock, mut time) = watched();
        goes_on(100).await;
        clock.set_by(-10);
        assert_eq!(time.read().1, 0);
        goes_on(100).await;
        clock.set_by(-10);
        assert_eq!(time.read().1, -20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_is_held_near_the_servers_and_looked_at_again() {
        for hour in [-HOUR_MS, HOUR_MS] {
            let (clock, mut time) = watched();
            assert!(time.take_look());
            look(&mut time, START_MS);
            goes_on(1_000).await;
            assert!(!time.take_look(), "not so soon");
            clock.set_by(hour);
            let near = 2_500 * hour.signum();
            let held_ms = (START_MS + 1_000).checked_add_signed(near).unwrap();
            assert_eq!(time.read(), (held_ms, near));
            assert!(time.off().is_none(), "nobody has looked");
            assert!(time.take_look(), "it was set");
            look(&mut time, START_MS + 1_000);
            assert!(time.off().is_some());
            goes_on(10).await;
            assert_eq!(time.read(), (held_ms + 10, 0), "goes on from there");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_journal_without_a_clock_is_not_looked_at_again() {
        let (_, mut time) = watched();
        assert!(time.take_look());
        time.looked(&Looked::NoClock);
        goes_on(3_600_000).await;
        assert!(!time.take_look());
        time.looked(&Looked::Failed);
        goes_on(5_000).await;
        assert!(time.take_look());
    }
}
