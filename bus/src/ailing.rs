//! Whether a bucket is past hope: the server has it, answers for it, and keeps nothing in it any more.
//!
//! Bits that change in what a server keeps of a stream, while it is down, can leave a stream that is there
//! and takes nothing. One whose values only say who is alive right now is made again (ADR 0048).

use std::time::{Duration, Instant};

/// How long a bucket must have failed without a break, and how often, before it is past hope: longer than an
/// election or a start of the server, which look the same from outside.
const FAILING_MIN: Duration = Duration::from_secs(8);
const FAILURES_MIN: u32 = 2;

/// How a bucket has fared since it last did what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Ailing(Option<Failing>);

#[derive(Debug)]
struct Failing {
    since: Instant,
    times: u32,
}

impl Ailing {
    /// It did what it was asked.
    pub(crate) fn is_well(&mut self) {
        self.0 = None;
    }

    /// It failed, and began to at `begun` where it had not before. Says whether it is past hope; whoever hears
    /// that makes it again, and nobody else does for as long again.
    pub(crate) fn failed(&mut self, begun: Instant, now: Instant) -> bool {
        let failing = self.0.get_or_insert(Failing {
            since: begun,
            times: 0,
        });
        failing.times = failing.times.saturating_add(1);
        let since = now.saturating_duration_since(failing.since);
        let is_past_hope = failing.times >= FAILURES_MIN && since >= FAILING_MIN;
        if is_past_hope {
            self.0 = None;
        }
        is_past_hope
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_fails_often_and_long_without_a_break_is_past_hope() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut ailing = Ailing::default();
        // often, but not long: a server that is started again
        for tenth in 0..70 {
            assert!(!ailing.failed(at(tenth * 100), at(tenth * 100 + 1)));
        }
        ailing.is_well();
        // long, but not often: one write that waits for its whole time
        assert!(!ailing.failed(at(8_000), at(18_000)));
        assert!(ailing.failed(at(18_000), at(23_000)));
        assert!(!ailing.failed(at(23_000), at(28_000)), "it counts anew");
    }
}
