//! How much the answers of one request may write while more is being held for them.
//!
//! Shared by the engine, which asks after each token, and by the route that raises it. It is never lowered, so a call
//! that comes late or twice changes nothing. An answer at its limit waits in its slot, takes part in no step, and ends
//! once no more will come. Numbers are of one answer: all have as much.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// So long an answer waits for more at most.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// The same while others wait for a slot: enough for a ledger that is well, and no more. What an account waits for may
/// be its own other answers, and whoever else would use the slot is not to wait for these.
pub(super) const PATIENCE_BESIDE: Duration = Duration::from_millis(250);

/// What the answers of a request may write by now.
#[derive(Debug, Clone)]
pub(crate) struct Allowance(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    limit: usize,
    /// It grows no further.
    most: usize,
    /// No more will come.
    last: bool,
    /// The request is over.
    over: bool,
    /// Tokens of the longest answer.
    longest: usize,
    /// Answers that wait for more than this limit.
    waiting: usize,
    /// Somebody wants to know once the longest has so many.
    look_at: usize,
}

/// What becomes of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    GoOn,
    Wait,
    End,
}

/// How a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stands {
    pub(crate) longest: usize,
    pub(crate) waits: bool,
    pub(crate) over: bool,
}

impl Allowance {
    /// So much now, and so much at most.
    pub(crate) fn new(limit: usize, most: usize) -> Self {
        assert!(0 < limit && limit <= most, "{limit} of {most}");
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                limit,
                most,
                last: false,
                over: false,
                longest: 0,
                waiting: 0,
                look_at: usize::MAX,
            }),
            changed: Notify::new(),
        }))
    }

    /// An answer has so many tokens now.
    pub(super) fn wrote(&self, tokens: usize) -> May {
        let mut state = self.state();
        state.longest = state.longest.max(tokens);
        let may = state.may(tokens);
        if may == May::Wait {
            state.waiting += 1;
        }
        if may == May::Wait || state.longest >= state.look_at {
            state.look_at = usize::MAX;
            self.0.changed.notify_waiters();
        }
        may
    }

    /// What becomes of an answer with so many tokens that waits.
    pub(super) fn look(&self, tokens: usize) -> May {
        self.state().may(tokens)
    }

    /// An answer with so many tokens waits no longer.
    pub(super) fn gives_up(&self, tokens: usize) {
        let mut state = self.state();
        if state.may(tokens) == May::Wait {
            state.waiting -= 1;
        }
    }

    /// Lets each answer have so many tokens, and says whether that is more than before. More than it may come to is as
    /// much as that.
    pub(crate) fn raise(&self, limit: usize) -> bool {
        let mut state = self.state();
        let limit = limit.min(state.most);
        let more = limit > state.limit;
        if more {
            state.limit = limit;
            state.waiting = 0;
        }
        more
    }

    /// More than it has by now.
    pub(crate) fn is_more(&self, limit: usize) -> bool {
        let state = self.state();
        limit.min(state.most) > state.limit
    }

    /// No more will come.
    pub(crate) fn was_the_last(&self) {
        let mut state = self.state();
        state.last = true;
        state.waiting = 0;
    }

    /// The request is over, and whoever waits for it is told.
    pub(crate) fn close(&self) {
        self.state().over = true;
        self.0.changed.notify_waiters();
    }

    pub(crate) fn stands(&self) -> Stands {
        let state = self.state();
        Stands {
            longest: state.longest,
            waits: state.waiting > 0,
            over: state.over,
        }
    }

    /// Until the longest answer has so many tokens, or one waits, or all is over.
    pub(crate) async fn until(&self, tokens: usize) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.state();
                if state.over || state.waiting > 0 || state.longest >= tokens {
                    return;
                }
                state.look_at = state.look_at.min(tokens);
            }
            changed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.0.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may(&self, tokens: usize) -> May {
        if tokens < self.limit {
            May::GoOn
        } else if self.last || self.limit >= self.most {
            May::End
        } else {
            May::Wait
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn it_grows_to_its_end_and_never_back() {
        let allowance = Allowance::new(2, 5);
        assert_eq!(allowance.wrote(1), May::GoOn);
        assert_eq!(allowance.wrote(2), May::Wait);
        assert!(allowance.raise(4));
        assert!(!allowance.raise(3), "a call that came late");
        assert_eq!(allowance.look(2), May::GoOn);
        assert_eq!(allowance.wrote(4), May::Wait);
        assert!(allowance.raise(9));
        assert_eq!(allowance.look(4), May::GoOn);
        assert_eq!(allowance.wrote(5), May::End);
    }

    #[test]
    fn who_waits_ends_once_no_more_will_come() {
        let allowance = Allowance::new(2, 5);
        assert_eq!(allowance.wrote(2), May::Wait);
        assert!(allowance.stands().waits);
        allowance.was_the_last();
        assert!(!allowance.stands().waits, "it only has not looked yet");
        assert_eq!(allowance.look(2), May::End);
        allowance.gives_up(2);
    }

    #[test]
    fn whoever_asks_is_told_once_there_is_so_much_or_somebody_waits_or_all_is_over() {
        let allowance = Allowance::new(4, 9);
        let told = |tokens| allowance.until(tokens).now_or_never().is_some();
        assert!(!told(1));
        allowance.wrote(1);
        assert!(told(1) && !told(2));
        let mut asked = Box::pin(allowance.until(3));
        assert!(asked.as_mut().now_or_never().is_none());
        allowance.wrote(3);
        assert!(asked.now_or_never().is_some());
        allowance.wrote(4);
        assert!(told(9), "an answer waits");
        allowance.gives_up(4);
        assert!(!told(9));
        let mut asked = Box::pin(allowance.until(9));
        assert!(asked.as_mut().now_or_never().is_none());
        allowance.close();
        assert!(asked.now_or_never().is_some());
    }
}
