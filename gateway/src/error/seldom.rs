//! What happens to every request while something is out is logged once a second for each cause, with
//! how often it was: a log that grows by thousands of lines a second hides what they say.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often one cause is logged.
const EVERY: Duration = Duration::from_secs(1);
/// Causes told apart; beyond it all are forgotten, and each is logged anew.
const CAUSES_MAX: usize = 64;

/// When each cause was logged last, and how often it came since.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Mutex<HashMap<String, (Instant, u64)>>);

impl Seldom {
    /// Whether to log it now: how often it was left out since the last time.
    pub(crate) fn note(&self, cause: &str, now: Instant) -> Option<u64> {
        // no code panics while it holds the lock half way through a change
        let mut causes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, left_out)) = causes.get_mut(cause) {
            if now.saturating_duration_since(*at) < EVERY {
                *left_out = left_out.saturating_add(1);
                return None;
            }
            *at = now;
            return Some(std::mem::take(left_out));
        }
        if causes.len() >= CAUSES_MAX {
            causes.clear();
        }
        causes.insert(cause.to_owned(), (now, 0));
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_logged_once_a_second_with_how_often_it_was() {
        let (seldom, begun) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.note("a", begun), Some(0));
        for ms in 1..1000 {
            assert_eq!(seldom.note("a", begun + Duration::from_millis(ms)), None);
        }
        assert_eq!(seldom.note("b", begun), Some(0), "another cause");
        assert_eq!(seldom.note("a", begun + EVERY), Some(999));
        assert_eq!(seldom.note("a", begun + EVERY), None);
    }

    #[test]
    fn causes_are_bounded() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        for number in 0..10_000 {
            seldom.note(&number.to_string(), now);
        }
        assert!(seldom.0.lock().unwrap().len() <= CAUSES_MAX);
    }
}
