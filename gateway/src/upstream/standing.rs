//! How this gateway stands with a neuron: what it has there, and what it found when it last called.
//!
//! A neuron that could not be reached, or that turned a call away before it looked at it, is passed over for a
//! pause that grows with each failure; after it one request tries again. Where all that serve a model are passed
//! over, they are asked all the same: a guess refuses nobody.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use reqwest::Url;
use seatbelt_schemas::ids::NeuronId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::pauses::{Pauses, Steps};

/// How long a neuron is passed over, first and at most. One that is not there any more is out of the register after
/// 10 s, and one that came back should not wait.
const STEPS: Steps = Steps {
    first: Duration::from_millis(500),
    max: Duration::from_secs(5),
};

/// What kept a neuron from serving a call, for certain before any work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No connection was made.
    Unreachable,
    /// It does not take our calls: it knows another secret, or shares no time with us.
    TurnsUsAway,
    /// What answers there has no such route or model: another server, or another neuron.
    NotThere,
}

/// Of one neuron.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Requests there.
    pub(super) busy: AtomicU64,
    trouble: Mutex<Option<Trouble>>,
    /// Where it was called last.
    called_at: Mutex<Option<Url>>,
    /// Questions in a row that it did not answer after it left.
    misses: AtomicU32,
    /// Ends the requests there; another one for those that come after.
    lost: Mutex<CancellationToken>,
}

#[derive(Debug)]
struct Trouble {
    /// Where it was called: at another address it may be well.
    url: String,
    fault: Fault,
    detail: String,
    pauses: Pauses,
}

impl Standing {
    pub(super) fn load(&self) -> u64 {
        self.busy.load(Relaxed)
    }

    /// Ends when nothing is to be heard from there any more.
    pub(super) fn lost(&self) -> CancellationToken {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.clone()
    }

    pub(super) fn called_at(&self) -> Option<Url> {
        let called_at = self
            .called_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        called_at.clone()
    }

    /// It left, and answers all the same.
    pub(super) fn answers(&self) {
        self.misses.store(0, Relaxed);
    }

    /// It left, and did not answer: how often by now.
    pub(super) fn is_silent(&self) -> u32 {
        self.misses.fetch_add(1, Relaxed).saturating_add(1)
    }

    /// Nothing is to be heard from there any more.
    pub(super) fn give_up(&self) {
        self.answers();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lost).cancel();
    }

    /// Whether others are asked first for now.
    pub(super) fn is_passed_over(&self, url: &str, now: Instant) -> bool {
        let trouble = self.trouble();
        trouble.as_ref().is_some_and(
            |Trouble {
                 url: known, pauses, ..
             }| { known == url && !pauses.lets_through(now, pauses.length()) },
        )
    }

    /// A request goes there. After a pause it is the one that tries: others wait for what it finds.
    pub(super) fn is_called(&self, url: &str, base: &Url, now: Instant) {
        let mut called_at = self
            .called_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if called_at.as_ref() != Some(base) {
            *called_at = Some(base.clone());
        }
        if let Some(trouble) = &mut *self.trouble()
            && trouble.url == url
        {
            trouble.pauses.is_asked(now);
        }
    }

    /// It took a call. Says whether that is news.
    pub(super) fn took_a_call(&self) -> bool {
        self.trouble().take().is_some()
    }

    /// It took none. Says whether that is news.
    pub(super) fn failed(&self, url: &str, fault: Fault, detail: &str, now: Instant) -> bool {
        let mut trouble = self.trouble();
        let known = trouble.take().filter(|known| known.url == url);
        let is_news = known.as_ref().is_none_or(|known| known.fault != fault);
        let mut pauses = known.map(|known| known.pauses).unwrap_or_default();
        pauses.lengthen(STEPS, now);
        *trouble = Some(Trouble {
            url: url.to_owned(),
            fault,
            detail: detail.to_owned(),
            pauses,
        });
        is_news
    }

    /// What is wrong with it, for people.
    pub(super) fn told(&self, neuron: &NeuronId, url: &str) -> Option<String> {
        let trouble = self.trouble();
        let trouble = trouble.as_ref().filter(|trouble| trouble.url == url)?;
        let detail = &trouble.detail;
        Some(match trouble.fault {
            Fault::Unreachable => format!(
                "neuron {neuron} cannot be reached at {url} ({detail}): see whether it runs, and whether its neuron.url and the network between are right"
            ),
            Fault::NotThere => format!(
                "what answers at {url} for neuron {neuron} has no such route or model ({detail}): see whether its neuron.url leads to it, and whether it was started with other models"
            ),
            Fault::TurnsUsAway => format!(
                "neuron {neuron} at {url} turns this gateway's calls away ({detail}): if the neuron secret was changed, restart what started before, the neuron or this gateway; if its clock is off, set it right; if two neurons have one id or url, give each its own"
            ),
        })
    }

    fn trouble(&self) -> MutexGuard<'_, Option<Trouble>> {
        // no code panics while it holds the lock half way through a change
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://a:1";

    fn fails(standing: &Standing, now: Instant) -> bool {
        standing.failed(URL, Fault::Unreachable, "refused", now)
    }

    #[test]
    fn who_fails_is_passed_over_for_pauses_that_grow_to_a_bound() {
        let (standing, mut now) = (Standing::default(), Instant::now());
        assert!(!standing.is_passed_over(URL, now));
        let mut pauses = Vec::new();
        for n in 0..6 {
            assert_eq!(fails(&standing, now), n == 0, "it is news once");
            let mut pause = Duration::ZERO;
            while standing.is_passed_over(URL, now + pause) {
                pause += Duration::from_millis(100);
            }
            pauses.push(pause.as_millis());
            now += pause;
            standing.is_called(URL, &Url::parse(URL).unwrap(), now);
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 5000, 5000]);
        assert!(!standing.is_passed_over("http://b:1", now - Duration::from_secs(1)));
    }

    #[test]
    fn one_request_tries_after_the_pause_and_ends_it_where_it_is_taken() {
        let (standing, begun) = (Standing::default(), Instant::now());
        fails(&standing, begun);
        let later = begun + STEPS.first;
        assert!(!standing.is_passed_over(URL, later));
        standing.is_called(URL, &Url::parse(URL).unwrap(), later);
        assert!(
            standing.is_passed_over(URL, later),
            "the others wait for it"
        );
        assert!(standing.took_a_call() && !standing.took_a_call());
        assert!(!standing.is_passed_over(URL, later));
    }

    #[test]
    fn what_many_requests_find_at_once_is_one_failure() {
        let (standing, now) = (Standing::default(), Instant::now());
        for _ in 0..50 {
            fails(&standing, now);
        }
        assert!(!standing.is_passed_over(URL, now + STEPS.first));
    }

    #[test]
    fn the_reason_is_told_for_the_address_it_was_found_at() {
        let (standing, neuron) = (Standing::default(), NeuronId::new("n").unwrap());
        standing.failed(URL, Fault::TurnsUsAway, "401", Instant::now());
        let told = standing.told(&neuron, URL).unwrap();
        assert!(
            told.contains("neuron n") && told.contains("secret"),
            "{told}"
        );
        assert_eq!(standing.told(&neuron, "http://b:1"), None);
    }
}
