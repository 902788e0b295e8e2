//! The reserves that a host works on for callers elsewhere, and those that were given up.
//!
//! A caller sends a reserve again while no answer comes, so that several tries of one reservation may
//! be worked on at once, and one more may still be on its way. Giving it up ends them all: those that
//! are here at once, a later one when it comes. What was given up is remembered for as long as a try
//! may be worked on, and bounded in number.
//!
//! A grant that is told to nobody, because its caller died while it waited, is taken back. That is certain
//! only where no other try of it was heard, now or before.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seatbelt_schemas::ids::ReservationId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{WITHIN_MAX, post::Listens};

/// Reservations remembered as given up, and as told; beyond it the oldest is forgotten. Those of the last seconds
/// are what matters, and a host answers fewer in that time.
const REMEMBERED_MAX: usize = 65_536;
/// How long one is remembered: nobody waits longer for a reserve.
const REMEMBERED_FOR: Duration = WITHIN_MAX;

/// All of them, for one partition.
#[derive(Debug, Default)]
pub(super) struct Reserving(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tries: HashMap<ReservationId, Tries>,
    given_up: Remembered,
    /// Those whose grant somebody may have heard of.
    told: Remembered,
}

/// The tries of one reservation: ended together.
#[derive(Debug, Default)]
struct Tries {
    gone: CancellationToken,
    count: usize,
    /// Somebody may have heard of a grant, or nobody did.
    heard: Option<Listens>,
}

/// One try, until dropped.
#[derive(Debug)]
pub(super) struct Try<'a> {
    all: &'a Reserving,
    reservation: ReservationId,
    gone: CancellationToken,
}

impl Reserving {
    /// A try begins; `None` where its reservation was given up before it came.
    pub(super) fn begin(&self, reservation: ReservationId) -> Option<Try<'_>> {
        let mut state = self.state();
        if state.given_up.holds(reservation, Instant::now()) {
            return None;
        }
        let tries = state.tries.entry(reservation).or_default();
        tries.count += 1;
        let gone = tries.gone.clone();
        drop(state);
        Some(Try {
            all: self,
            reservation,
            gone,
        })
    }

    /// Ends all tries of a reservation, also those that are still to come.
    pub(super) fn give_up(&self, reservation: ReservationId) {
        let mut state = self.state();
        state.given_up.insert(reservation, Instant::now());
        if let Some(tries) = state.tries.get(&reservation) {
            tries.gone.cancel();
        }
    }

    /// The journal has the reservation's end: a try that comes later is told of that.
    pub(super) fn ended(&self, reservation: ReservationId) {
        self.state().given_up.remove(reservation);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // no code panics while it holds the lock half way through a change
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Try<'_> {
    /// What came of telling its grant. Whether to take the hold back: it is the last try, nobody heard of the
    /// grant through any of them, and none was heard of before.
    pub(super) fn told(self, listens: Listens) -> bool {
        let mut state = self.all.state();
        let State { tries, told, .. } = &mut *state;
        let Some(tries) = tries.get_mut(&self.reservation) else {
            return false;
        };
        let now = Instant::now();
        if listens == Listens::Perhaps {
            told.insert(self.reservation, now);
        }
        let before = tries.heard.unwrap_or(Listens::Nobody);
        let heard = match (before, listens) {
            (Listens::Nobody, Listens::Nobody) => Listens::Nobody,
            _ => Listens::Perhaps,
        };
        tries.heard = Some(heard);
        tries.count == 1 && heard == Listens::Nobody && !told.holds(self.reservation, now)
    }

    /// Waits until the reservation is given up.
    pub(super) async fn given_up(&self) {
        self.gone.cancelled().await;
    }
}

impl Drop for Try<'_> {
    fn drop(&mut self) {
        let mut state = self.all.state();
        if let Some(tries) = state.tries.get_mut(&self.reservation) {
            tries.count -= 1;
            if tries.count == 0 {
                state.tries.remove(&self.reservation);
            }
        }
    }
}

/// Reservations, oldest first.
#[derive(Debug, Default)]
struct Remembered {
    since: HashMap<ReservationId, Instant>,
    /// One of a removed reservation stays until its turn comes.
    order: VecDeque<(Instant, ReservationId)>,
}

impl Remembered {
    fn insert(&mut self, reservation: ReservationId, now: Instant) {
        self.forget(now);
        if self.order.len() >= REMEMBERED_MAX {
            self.forget_oldest();
        }
        self.since.insert(reservation, now);
        self.order.push_back((now, reservation));
        assert!(
            self.since.len() <= self.order.len() && self.order.len() <= REMEMBERED_MAX,
            "what is remembered is bounded"
        );
    }

    fn holds(&self, reservation: ReservationId, now: Instant) -> bool {
        let since = self.since.get(&reservation);
        since.is_some_and(|since| now.saturating_duration_since(*since) < REMEMBERED_FOR)
    }

    fn remove(&mut self, reservation: ReservationId) {
        self.since.remove(&reservation);
    }

    fn forget(&mut self, now: Instant) {
        let old = |since: &Instant| now.saturating_duration_since(*since) >= REMEMBERED_FOR;
        while self.order.front().is_some_and(|(since, _)| old(since)) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((since, reservation)) = self.order.pop_front()
            // given up again meanwhile: that time counts
            && self.since.get(&reservation) == Some(&since)
        {
            self.since.remove(&reservation);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn id(number: u128) -> ReservationId {
        ReservationId::from_parts(1, number)
    }

    fn is_over(one: &Try<'_>) -> bool {
        one.given_up().now_or_never().is_some()
    }

    #[test]
    fn giving_up_ends_every_try_and_no_other_reservation() {
        let all = Reserving::default();
        let tries = [1, 1, 2].map(|number| all.begin(id(number)).expect("not given up"));
        all.give_up(id(1));
        assert_eq!(tries.each_ref().map(is_over), [true, true, false]);
    }

    #[test]
    fn a_try_that_ends_leaves_the_others_reachable() {
        let all = Reserving::default();
        let (first, second) = (all.begin(id(1)).unwrap(), all.begin(id(1)).unwrap());
        drop(second);
        all.give_up(id(1));
        assert!(is_over(&first));
        drop(first);
        assert!(all.state().tries.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_try_that_comes_after_it_was_given_up_does_not_begin() {
        let all = Reserving::default();
        all.give_up(id(1));
        assert!(all.begin(id(1)).is_none());
        assert!(all.begin(id(2)).is_some());
        all.ended(id(1));
        assert!(all.begin(id(1)).is_some(), "the journal answers it");
    }

    #[test]
    fn a_grant_is_taken_back_only_where_nobody_ever_heard_of_it() {
        use Listens::{Nobody, Perhaps};
        for (heard, expected) in [
            (&[Nobody][..], true),
            (&[Nobody, Nobody], true),
            (&[Perhaps, Nobody], false),
            (&[Nobody, Perhaps], false),
        ] {
            let all = Reserving::default();
            let tries: Vec<_> = heard.iter().map(|_| all.begin(id(1)).unwrap()).collect();
            let back = tries
                .into_iter()
                .zip(heard)
                .map(|(one, heard)| one.told(*heard));
            assert_eq!(
                back.collect::<Vec<_>>().last(),
                Some(&expected),
                "{heard:?}"
            );
            assert!(all.state().tries.is_empty());
            let later = all.begin(id(1)).unwrap();
            let was_heard = heard.contains(&Perhaps);
            assert_eq!(later.told(Nobody), !was_heard, "{heard:?}, and once more");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_given_up_is_forgotten_when_nobody_waits_any_more() {
        let all = Reserving::default();
        all.give_up(id(1));
        tokio::time::advance(REMEMBERED_FOR / 2).await;
        all.give_up(id(1));
        tokio::time::advance(REMEMBERED_FOR / 2).await;
        all.give_up(id(2));
        assert!(all.begin(id(1)).is_none(), "the later time counts");
        tokio::time::advance(REMEMBERED_FOR).await;
        assert!(all.begin(id(1)).is_some());
        all.give_up(id(3));
        assert_eq!(all.state().given_up.order.len(), 1);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_oldest_goes_first() {
        let all = Reserving::default();
        for number in 0..=REMEMBERED_MAX {
            all.give_up(id(number as u128));
        }
        assert!(all.begin(id(0)).is_some());
        assert!(all.begin(id(1)).is_none());
        assert_eq!(all.state().given_up.since.len(), REMEMBERED_MAX);
    }
}
