//! How long something that failed is left alone: for pauses that double up to a bound, after each of which a
//! single request tries it.
//!
//! Pure: the time is an argument. What counts as a failure is for who keeps it: [`Health`](super::health::Health) of
//! a deployment, [`Standing`](super::standing::Standing) of a neuron.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause and the longest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Steps {
    pub(super) first: Duration,
    pub(super) max: Duration,
}

/// The pause that something is in, if it is in one, and what is known of the one before.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    /// Of the last one that failures brought; doubled by the next.
    length: Duration,
    until: Option<Instant>,
    /// Since when a request tries it.
    trial: Option<Instant>,
}

impl Pauses {
    /// Whether a request may go there: none before the pause is over, then one, and another one where nothing
    /// was heard of that for `trial_max`.
    pub(super) fn lets_through(&self, now: Instant, trial_max: Duration) -> bool {
        let is_over = |until| now >= until;
        let is_lost = |since: Instant| now >= since + trial_max;
        self.until.is_none_or(is_over) && self.trial.is_none_or(is_lost)
    }

    /// A request goes there. After a pause it is the one that tries.
    pub(super) fn is_asked(&mut self, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            self.trial = Some(now);
        }
    }

    /// Whether a request tries it.
    pub(super) fn is_tried(&self) -> bool {
        self.trial.is_some()
    }

    /// The request that tried it found nothing out: another one may.
    pub(super) fn trial_says_nothing(&mut self) {
        self.trial = None;
    }

    /// It failed: a longer pause, or the same from now on where this is one of many requests that were under
    /// way when the pause began.
    pub(super) fn lengthen(&mut self, steps: Steps, now: Instant) {
        let is_new = self.trial.take().is_some() || self.until.is_none_or(|until| until <= now);
        if is_new {
            self.length = (self.length * 2).clamp(steps.first, steps.max);
        }
        self.at_least(self.length, now);
    }

    /// It asked to be left alone for so long: no failure that a later pause would count.
    pub(super) fn at_least(&mut self, asked: Duration, now: Instant) {
        self.until = self.until.max(Some(now + asked));
    }

    /// Of the last one that failures brought.
    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// How much longer it is left alone, nothing where only a trial is wanted; none where it is in no pause.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        Some(self.until?.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const STEPS: Steps = Steps {
        first: S,
        max: Duration::from_secs(5),
    };

    #[test]
    fn pauses_double_to_the_bound_and_one_request_ends_each() {
        let (mut pauses, mut now) = (Pauses::default(), Instant::now());
        for seconds in [1, 2, 4, 5, 5] {
            pauses.lengthen(STEPS, now);
            assert_eq!(pauses.left(now), Some(S * seconds));
            assert!(!pauses.lets_through(now + S * seconds - S / 2, S));
            now += S * seconds;
            assert!(pauses.lets_through(now, S));
            pauses.is_asked(now);
            assert!(!pauses.lets_through(now, S), "one at a time");
        }
    }

    #[test]
    fn what_was_under_way_when_a_pause_began_makes_it_no_longer() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        (0..50).for_each(|_| pauses.lengthen(STEPS, now));
        pauses.lengthen(STEPS, now + S / 2);
        assert_eq!(pauses.left(now + S / 2), Some(S), "from the last on");
    }

    #[test]
    fn a_trial_that_is_lost_or_says_nothing_lets_another_one_through() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        pauses.lengthen(STEPS, now);
        pauses.is_asked(now + S);
        assert!(
            !pauses.lets_through(now + S * 2, S * 3) && pauses.lets_through(now + S * 4, S * 3)
        );
        pauses.trial_says_nothing();
        assert!(pauses.lets_through(now + S, S * 3));
    }

    #[test]
    fn what_it_asks_for_counts_as_no_failure() {
        let (mut pauses, now) = (Pauses::default(), Instant::now());
        pauses.at_least(S * 30, now);
        pauses.at_least(S, now);
        assert_eq!(pauses.left(now), Some(S * 30));
        pauses.lengthen(STEPS, now + S * 30);
        assert_eq!(pauses.left(now + S * 30), Some(S));
    }
}
