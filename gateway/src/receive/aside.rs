//! What takes long for a large body, done on a thread of its own: the threads that serve everybody are
//! as few as the processor's cores, and nobody is to wait there behind another's megabytes.
//!
//! Nor may such bodies take all cores, of which the ledger needs some in time: at most half of them work on large
//! bodies, and at most a quarter on those of one account. The others wait in the order in which they came.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use bytes::Bytes;
use seatbelt_schemas::ids::AccountId;
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    config::{COUNTED_AT_ONCE_MAX, DONE_AT_ONCE_MAX},
    error::{ApiError, Case},
};

/// Where the work on a body is done.
#[derive(Debug, Clone)]
pub(crate) struct Aside {
    benches: Arc<Benches>,
    account: Option<AccountId>,
    /// Else where it was read: that takes less than to hand it over would matter.
    is_large: bool,
}

impl Aside {
    pub(crate) fn of(body: &Bytes, benches: &Arc<Benches>, account: Option<&AccountId>) -> Self {
        Self {
            benches: Arc::clone(benches),
            account: account.cloned(),
            is_large: body.len() > DONE_AT_ONCE_MAX,
        }
    }

    /// For a body of which only the work shows how much there is to do.
    pub(super) fn unpacking(self) -> Self {
        Self {
            is_large: true,
            ..self
        }
    }

    /// For the count of this many bytes of text.
    pub(crate) fn to_count(&self, bytes: u64) -> Self {
        Self {
            is_large: bytes > COUNTED_AT_ONCE_MAX,
            ..self.clone()
        }
    }

    /// Does the work. It goes on where its caller is dropped, so it keeps what it takes of the shares.
    pub(crate) async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        if !self.is_large {
            return work();
        }
        let (benches, own) = (&self.benches, self.benches.own(self.account.clone()));
        // the account's own turn first: what waits for it keeps no other's place
        let turn = Arc::clone(&own.turns).acquire_owned().await;
        let place = Arc::clone(&benches.all).acquire_owned().await;
        let done = spawn_blocking(move || {
            let _kept = (turn, place, own);
            work()
        });
        done.await.unwrap_or_else(|died| {
            let message = "the request body could not be worked on";
            Err(ApiError::new(Case::Internal, message).log(died.to_string()))
        })
    }
}

/// Threads for large bodies.
#[derive(Debug)]
pub(crate) struct Benches {
    all: Arc<Semaphore>,
    each: usize,
    /// Of the accounts that have a large body here.
    own: Mutex<HashMap<Option<AccountId>, Weak<Own>>>,
}

/// An account's place at them; requests without a key are one account.
#[derive(Debug)]
struct Own {
    turns: Arc<Semaphore>,
    account: Option<AccountId>,
    benches: Weak<Benches>,
}

impl Benches {
    /// For a machine with so many cores.
    pub(crate) fn new(cores: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new((cores / 2).max(1))),
            each: (cores / 4).max(1),
            own: Mutex::default(),
        })
    }

    fn own(self: &Arc<Self>, account: Option<AccountId>) -> Arc<Own> {
        let mut known = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.get(&account).and_then(Weak::upgrade);
        found.unwrap_or_else(|| {
            let own = Arc::new(Own {
                turns: Arc::new(Semaphore::new(self.each)),
                account: account.clone(),
                benches: Arc::downgrade(self),
            });
            known.insert(account, Arc::downgrade(&own));
            own
        })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let Some(benches) = self.benches.upgrade() else {
            return;
        };
        let mut known = benches.own.lock().unwrap_or_else(PoisonError::into_inner);
        // another request of the account may have come since
        if known
            .get(&self.account)
            .is_some_and(|own| own.strong_count() == 0)
        {
            known.remove(&self.account);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use futures::future::join;

    use super::*;

    fn large(benches: &Arc<Benches>, account: &str) -> Aside {
        let account = AccountId::new(account).unwrap();
        let body = Bytes::from(vec![b' '; DONE_AT_ONCE_MAX + 1]);
        Aside::of(&body, benches, Some(&account))
    }

    /// Work that ends once it is told to.
    fn until(told: mpsc::Receiver<()>) -> impl FnOnce() -> Result<(), ApiError> + Send + 'static {
        move || {
            let told = told.recv_timeout(Duration::from_secs(20));
            told.map_err(|_| ApiError::busy("nobody went on"))
        }
    }

    #[tokio::test]
    async fn others_go_on_while_a_large_body_is_worked_on() {
        let benches = Benches::new(1);
        let (tell, told) = mpsc::channel();
        let working = large(&benches, "a").work(until(told));
        let small = Aside::of(&Bytes::from_static(b"{}"), &benches, None);
        let (worked, _) = join(working, async {
            small.work(|| Ok(())).await.unwrap();
            tell.send(())
        })
        .await;
        assert!(worked.is_ok());
    }

    #[tokio::test]
    async fn one_account_waits_for_itself_and_leaves_a_place_to_others() {
        let benches = Benches::new(4);
        let (tell, told) = mpsc::channel();
        let first = tokio::spawn(large(&benches, "a").work(until(told)));
        while benches.all.available_permits() == 2 {
            tokio::task::yield_now().await;
        }
        let mut second = tokio::spawn(large(&benches, "a").work(|| Ok(())));
        let others = large(&benches, "b").work(|| Ok(())).await;
        assert!(others.is_ok() && !second.is_finished());
        assert_eq!(
            benches.all.available_permits(),
            1,
            "the second has not begun"
        );
        tell.send(()).unwrap();
        first.await.unwrap().unwrap();
        (&mut second).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_account_that_has_nothing_here_takes_no_memory() {
        let benches = Benches::new(4);
        for n in 0..100 {
            large(&benches, &format!("a{n}"))
                .work(|| Ok(()))
                .await
                .unwrap();
        }
        assert!(benches.own.lock().unwrap().is_empty());
        assert_eq!(benches.all.available_permits(), 2);
    }
}
