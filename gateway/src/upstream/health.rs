//! Whether one of several deployments of a model is asked now: what it did lately decides it, and nothing
//! else asks it to find out.
//!
//! Pure: the time is an argument. One that failed often in a row, or said how long it wants to be left
//! alone, is out for a while; then a single request tries it, and either it is back or it is out for twice
//! as long. What one account alone sees fail is no word on it where others were answered lately: its requests may
//! be what is wrong.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use seatbelt_schemas::ids::AccountId;
use tokio::time::Instant;

use super::pauses::{Pauses, Steps};

/// Failures in a row after which it is out.
const FAILURES_MAX: u32 = 5;
/// How long it is out, first and at most.
const STEPS: Steps = Steps {
    first: Duration::from_secs(5),
    max: Duration::from_secs(60),
};
/// A request that tries it counts as lost after so long: then another may.
const PROBE_MAX: Duration = Duration::from_secs(60);

/// How long an answer says that it was in order for others.
const WELL_FOR: Duration = Duration::from_secs(600);

/// Whose request it was: an account, or nobody's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who(u64);

impl Who {
    pub(crate) fn of(account: Option<&AccountId>) -> Self {
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// What came of asking it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered, whatever it said about the request.
    Well,
    /// It failed, or turned the request away for its own reasons; for how long it says that it will, if it does.
    Ill { retry_after: Option<Duration> },
    /// Nothing that says something of it.
    Unknown,
}

/// What is known of a deployment.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failures: u32,
    /// Whose failures these are, while they are of one alone.
    failed: Option<Who>,
    by_several: bool,
    pauses: Pauses,
    /// Who was answered last, and who before that was another.
    well: [Option<(Who, Instant)>; 2],
}

impl Health {
    /// Whether a request may be sent to it.
    pub(crate) fn is_usable(&self, now: Instant) -> bool {
        self.pauses.lets_through(now, PROBE_MAX)
    }

    /// How much longer it is left alone; nothing where it is not out.
    pub(crate) fn out_for(&self, now: Instant) -> Option<Duration> {
        self.pauses.left(now)
    }

    /// A request is sent to it.
    pub(crate) fn asked(&mut self, now: Instant) {
        self.pauses.is_asked(now);
    }

    /// What came of one.
    pub(crate) fn told(&mut self, outcome: Outcome, who: Who, now: Instant) {
        match outcome {
            Outcome::Well => {
                let well = self.well_with(who, now);
                *self = Self {
                    well,
                    ..Self::default()
                };
            }
            Outcome::Unknown => self.pauses.trial_says_nothing(),
            Outcome::Ill { retry_after } => {
                self.failures = self.failures.saturating_add(1);
                self.by_several |= self.failed.is_some_and(|failed| failed != who);
                self.failed = Some(who);
                let often = self.failures >= FAILURES_MAX;
                let says_something = self.by_several || !self.others_are_well(who, now);
                if (often && says_something) || self.pauses.is_tried() {
                    self.pauses.lengthen(STEPS, now);
                }
                if let Some(asked) = retry_after {
                    self.pauses.at_least(asked.min(STEPS.max), now);
                }
            }
        }
    }

    fn well_with(&self, who: Who, now: Instant) -> [Option<(Who, Instant)>; 2] {
        let [last, before] = self.well;
        match last {
            Some((same, _)) if same == who => [Some((who, now)), before],
            other => [Some((who, now)), other],
        }
    }

    fn others_are_well(&self, who: Who, now: Instant) -> bool {
        let mut well = self.well.into_iter().flatten();
        well.any(|(other, at)| other != who && now.saturating_duration_since(at) < WELL_FOR)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const ILL: Outcome = Outcome::Ill { retry_after: None };

    fn who(name: &str) -> Who {
        Who::of(Some(&AccountId::new(name).unwrap()))
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ill(health: &mut Health, times: u32, now: Instant) {
        (0..times).for_each(|_| health.told(ILL, who("a"), now));
    }

    #[test]
    fn it_is_out_after_failures_in_a_row_and_an_answer_in_between_counts_anew() {
        let (mut health, now) = (Health::default(), Instant::now());
        ill(&mut health, FAILURES_MAX - 1, now);
        health.told(Outcome::Well, who("a"), now);
        ill(&mut health, FAILURES_MAX - 1, now);
        assert!(health.is_usable(now));
        health.told(ILL, who("a"), now);
        assert!(!health.is_usable(now));
        assert_eq!(health.out_for(now), Some(s(5)));
    }

    #[test]
    fn what_fails_for_one_account_alone_takes_it_from_no_other() {
        let begun = Instant::now();
        let mut health = Health::default();
        health.told(Outcome::Well, who("b"), begun);
        health.told(Outcome::Well, who("a"), begun);
        ill(&mut health, 100, begun);
        assert!(health.is_usable(begun), "it was in order for another");
        health.told(ILL, who("b"), begun);
        assert!(!health.is_usable(begun), "that one sees it too");
        let mut health = Health::default();
        health.told(Outcome::Well, who("b"), begun);
        health.told(Outcome::Well, who("a"), begun);
        health.told(Outcome::Well, who("a"), begun);
        ill(&mut health, 100, begun + WELL_FOR);
        assert!(!health.is_usable(begun + WELL_FOR), "that was long ago");
    }

    #[test]
    fn one_request_tries_it_and_the_pause_grows_until_it_answers() {
        let (mut health, mut now) = (Health::default(), Instant::now());
        ill(&mut health, FAILURES_MAX, now);
        for pause in [5, 10, 20, 40, 60, 60] {
            assert!(!health.is_usable(now + s(pause) - Duration::from_millis(1)));
            now += s(pause);
            assert!(health.is_usable(now));
            health.asked(now);
            assert!(!health.is_usable(now), "one at a time");
            health.told(ILL, who("a"), now);
        }
        now += s(60);
        health.asked(now);
        health.told(Outcome::Well, who("a"), now);
        assert!(health.is_usable(now) && health.out_for(now).is_none());
    }

    #[test]
    fn a_request_that_tries_it_and_is_lost_keeps_nobody_out_for_good() {
        let (mut health, now) = (Health::default(), Instant::now());
        ill(&mut health, FAILURES_MAX, now);
        health.asked(now + s(5));
        assert!(!health.is_usable(now + s(6)));
        assert!(health.is_usable(now + s(5) + PROBE_MAX));
        health.told(Outcome::Unknown, who("a"), now + s(7));
        assert!(
            health.is_usable(now + s(7)),
            "a client that left says nothing"
        );
    }

    #[test]
    fn it_is_left_alone_for_as_long_as_it_says_and_no_longer_than_a_minute() {
        for (told, kept) in [(7, 7), (3600, 60)] {
            let (mut health, now) = (Health::default(), Instant::now());
            let retry_after = Some(s(told));
            health.told(Outcome::Ill { retry_after }, who("a"), now);
            assert_eq!(health.out_for(now), Some(s(kept)));
            assert!(!health.is_usable(now));
            assert!(health.is_usable(now + s(kept)));
        }
    }

    proptest! {
        #[test]
        fn it_is_never_out_for_longer_than_the_longest_pause(
            steps in vec((0..4u8, 0..90u64), 0..60),
        ) {
            let (mut health, mut now) = (Health::default(), Instant::now());
            for (what, seconds) in steps {
                now += s(seconds);
                match what {
                    0 => health.told(Outcome::Well, who("a"), now),
                    1 => health.told(ILL, who("a"), now),
                    2 => health.told(Outcome::Ill { retry_after: Some(s(seconds * 10)) }, who("a"), now),
                    _ => health.asked(now),
                }
                prop_assert!(health.out_for(now).unwrap_or_default() <= STEPS.max);
                prop_assert!(health.is_usable(now + STEPS.max + PROBE_MAX));
            }
        }
    }
}
