//! How far a host's wall clock is from that of the server which keeps the journal.
//!
//! Pure. A look at the server's clock lies between two readings of the host's, so it gives bounds and no
//! number: only a distance that is beyond what is allowed for certain is held against the host.

use std::{fmt, time::Duration};

use tokio::time::Instant;

use super::clock::{signed, whole_ms};

/// How far a host's clock may be from the server's, where nothing else is said.
///
/// It has to cover the host's own error, the largest difference between the clocks of the servers that
/// hold copies (another one may lead the next moment), and what a look takes. Clocks that are kept in
/// step differ by milliseconds, in trouble or over a leap second by one second; what is off by five is not
/// kept at all. The shortest window that anybody sets is a minute.
pub const SKEW_MAX_DEFAULT: Duration = Duration::from_secs(5);
/// The least that may be asked for: less would hold the length of a look against a host.
pub const SKEW_MAX_LEAST: Duration = Duration::from_secs(1);
/// The most: ids of commands may be as far ahead.
pub const SKEW_MAX_MOST: Duration = Duration::from_secs(60);

const _: () = assert!(
    SKEW_MAX_MOST.as_millis() <= crate::decide::validate::CLOCK_SKEW_MS_MAX as u128,
    "a host that leads must understand the ids of one that is as far off as it may be"
);

/// One reading of both clocks of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The wall clock, unix ms.
    pub wall_ms: u64,
    /// The monotonic clock.
    pub at: Instant,
}

impl Reading {
    /// What the wall clock shows at `at` if nobody sets it, unix ms.
    pub fn expected_ms(&self, at: Instant) -> u64 {
        let went = at.saturating_duration_since(self.at);
        self.wall_ms.saturating_add(whole_ms(went))
    }
}

/// One look at the server's clock.
#[derive(Debug, Clone, Copy)]
pub struct ClockLook {
    /// When it was asked.
    pub asked: Reading,
    /// When its answer was there.
    pub heard: Reading,
    /// What it showed in between, unix ms.
    pub server_ms: u64,
}

impl ClockLook {
    /// How far the host is ahead of the server.
    pub fn skew(&self) -> Skew {
        let server_ms = signed(self.server_ms);
        let asked = signed(self.asked.wall_ms).saturating_sub(server_ms);
        let heard = signed(self.heard.wall_ms).saturating_sub(server_ms);
        Skew {
            // the server shows whole ms: it may be almost one further
            least_ms: asked.min(heard).saturating_sub(1),
            most_ms: asked.max(heard),
        }
    }
}

/// How far a host's clock is ahead of the server's (behind it, where negative), ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Skew {
    /// At least so much.
    pub least_ms: i64,
    /// At most so much.
    pub most_ms: i64,
}

impl Skew {
    /// What it most likely is, ms.
    pub fn likely_ms(&self) -> i64 {
        self.least_ms.midpoint(self.most_ms)
    }

    /// Whether it is more than `max` for certain, in either direction.
    pub fn is_beyond(&self, max: Duration) -> bool {
        let max_ms = signed(whole_ms(max));
        self.least_ms > max_ms || self.most_ms < -max_ms
    }
}

/// A host's clock is too far off to lead a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOff {
    pub skew: Skew,
    /// How far it may be.
    pub max: Duration,
}

impl fmt::Display for ClockOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off_ms = self.skew.likely_ms();
        let direction = if off_ms < 0 { "behind" } else { "ahead of" };
        write!(
            f,
            "this host's clock is {} ms {direction} the clock of nats-server, and ledger.clock_skew_max_ms is {}: set the one that is wrong right (chrony, systemd-timesyncd)",
            off_ms.unsigned_abs(),
            whole_ms(self.max)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER_MS: u64 = 1_000_000_000;

    #[track_caller]
    fn check(asked_ms: i64, heard_ms: i64, beyond: bool) {
        let reading = |off_ms| Reading {
            wall_ms: SERVER_MS.checked_add_signed(off_ms).unwrap(),
            at: Instant::now(),
        };
        let look = ClockLook {
            asked: reading(asked_ms),
            heard: reading(heard_ms),
            server_ms: SERVER_MS,
        };
        let skew = look.skew();
        assert_eq!(skew.is_beyond(SKEW_MAX_DEFAULT), beyond, "{skew:?}");
    }

    #[test]
    fn only_a_distance_that_is_certain_is_beyond() {
        check(0, 1, false);
        check(5_000, 5_001, false);
        check(5_002, 5_003, true);
        check(-5_001, -5_001, true);
        // an answer that took long says less
        check(4_000, 9_000, false);
        check(-9_000, -4_000, false);
        // set while it was looked
        check(0, 3_600_000, false);
    }

    #[test]
    fn the_words_say_which_way_and_what_to_do() {
        let off = ClockOff {
            skew: Skew {
                least_ms: -3_600_001,
                most_ms: -3_600_000,
            },
            max: SKEW_MAX_DEFAULT,
        };
        let words = off.to_string();
        assert!(
            words.contains("ms behind the clock of nats-server"),
            "{words}"
        );
        assert!(words.contains("clock_skew_max_ms is 5000"), "{words}");
    }
}
