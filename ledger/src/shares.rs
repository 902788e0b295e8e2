//! Fair shares of something bounded that all accounts of a partition use: no account takes more places
//! than its share, so that the others always find one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use seatbelt_schemas::ids::AccountId;

use crate::hashing::Map;

/// Who has how many places.
#[derive(Debug)]
pub(crate) struct Shares {
    each_max: usize,
    taken: Mutex<Map<AccountId, usize>>,
}

/// A place taken by an account, until dropped.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    account: AccountId,
}

impl Shares {
    /// Of which an account may have `each_max` at once.
    pub(crate) fn new(each_max: usize) -> Arc<Self> {
        Arc::new(Self {
            each_max,
            taken: Mutex::default(),
        })
    }

    /// A place for an account; `None` where it has its share already.
    pub(crate) fn take(self: &Arc<Self>, account: &AccountId) -> Option<Share> {
        let mut taken = self.taken();
        let count = taken.entry(account.clone()).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(Share {
            shares: Arc::clone(self),
            account: account.clone(),
        })
    }

    fn taken(&self) -> MutexGuard<'_, Map<AccountId, usize>> {
        // no code panics while it holds the lock half way through a change
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.taken();
        if let Some(count) = taken.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_takes_its_share_and_leaves_the_others_theirs() {
        let [one, other] = ["one", "other"].map(|id| AccountId::new(id).unwrap());
        let shares = Shares::new(2);
        let mut places = vec![shares.take(&one).unwrap(), shares.take(&one).unwrap()];
        assert!(shares.take(&one).is_none());
        assert!(shares.take(&other).is_some());
        places.pop();
        assert!(shares.take(&one).is_some());
        places.clear();
        assert!(shares.taken().is_empty(), "nothing is kept of who has left");
    }
}
