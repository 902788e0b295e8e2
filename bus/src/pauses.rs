//! Pauses between tries of something that fails: each twice as long as the one before, up to a longest.
//!
//! Each is drawn from between a half and the whole of its length, so that many who lost the same server do not
//! all come back to it at the same moment. None is ever longer than it would be without.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Pauses that are still to come.
#[derive(Debug)]
pub struct Pauses {
    how: ExponentialBuilder,
    longest: Duration,
    left: <ExponentialBuilder as BackoffBuilder>::Backoff,
}

impl Pauses {
    /// From the `first` on, up to the `longest`; without end.
    pub fn new(first: Duration, longest: Duration) -> Self {
        let how = ExponentialBuilder::new()
            .with_min_delay(first / 2)
            .with_max_delay(longest / 2)
            .without_max_times()
            // adds as much again at the most
            .with_jitter();
        let left = how.build();
        Self { how, longest, left }
    }

    /// How long to wait now.
    pub fn draw(&mut self) -> Duration {
        let next = self.left.next().unwrap_or(self.longest);
        next.min(self.longest)
    }

    /// It worked: what fails next begins with the first.
    pub fn renew(&mut self) {
        self.left = self.how.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[track_caller]
    fn check_grows(pauses: &mut Pauses) {
        for whole in [20, 40, 80, 160, 320, 500, 500, 500] {
            let pause = pauses.draw();
            assert!(pause >= ms(whole) / 2, "{pause:?} is short of {whole} ms");
            assert!(pause <= ms(whole), "{pause:?} is longer than {whole} ms");
        }
    }

    #[test]
    fn pauses_double_and_none_is_longer_than_the_longest() {
        let mut pauses = Pauses::new(ms(20), ms(500));
        check_grows(&mut pauses);
        pauses.renew();
        check_grows(&mut pauses);
    }

    #[test]
    fn two_who_wait_do_not_come_back_together() {
        let draw = || {
            let mut pauses = Pauses::new(ms(20), ms(500));
            (0..16).map(|_| pauses.draw()).collect::<Vec<_>>()
        };
        assert_ne!(draw(), draw());
    }

    #[test]
    fn a_long_outage_does_not_end_them() {
        let mut pauses = Pauses::new(ms(20), ms(500));
        for _ in 0..100_000 {
            pauses.draw();
        }
        assert!(pauses.draw() >= ms(250));
    }
}
