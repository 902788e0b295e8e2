//! What all accounts share, such as places and memory, and how much of it one of them may take.
//!
//! What is taken is a value that gives it back when it is dropped. Nobody waits here: what does not fit
//! is refused, and the refusal says whether the whole is taken or the account's share of it. Requests
//! without a key are one account.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use seatbelt_schemas::ids::AccountId;

use crate::error::ApiError;

/// What is shared.
#[derive(Debug)]
pub(crate) struct Shares {
    /// As a refusal counts it.
    what: &'static str,
    whole: usize,
    each: usize,
    taken: Mutex<Taken>,
}

/// No account stands here with nothing, so there are no more of them than the whole has parts.
#[derive(Debug, Default)]
struct Taken {
    whole: usize,
    by: HashMap<Option<AccountId>, usize>,
}

/// What one request has taken.
#[derive(Debug)]
pub(crate) struct Share {
    of: Arc<Shares>,
    account: Option<AccountId>,
    amount: usize,
}

impl Shares {
    /// One account may take `each` of the whole, and something in any case.
    pub(crate) fn new(what: &'static str, whole: usize, each: usize) -> Arc<Self> {
        Arc::new(Self {
            what,
            whole,
            each: each.clamp(1, whole.max(1)),
            taken: Mutex::default(),
        })
    }

    pub(crate) fn take(
        self: &Arc<Self>,
        account: Option<&AccountId>,
        amount: usize,
    ) -> Result<Share, ApiError> {
        let mut share = Share {
            of: Arc::clone(self),
            account: account.cloned(),
            amount: 0,
        };
        share.grow(amount)?;
        Ok(share)
    }

    fn whole_is_taken(&self) -> ApiError {
        let Self { what, whole, .. } = self;
        ApiError::busy(&format!("this gateway is full: it takes {whole} {what}"))
    }

    fn share_is_taken(&self, account: Option<&AccountId>) -> ApiError {
        let Self { what, each, .. } = self;
        let who = match account {
            Some(account) => format!("account '{account}' has"),
            None => "requests without a key have".to_owned(),
        };
        ApiError::busy(&format!(
            "{who} taken all that one may take of this gateway, {each} {what}"
        ))
    }
}

impl Share {
    /// How much it is.
    pub(crate) fn amount(&self) -> usize {
        self.amount
    }

    /// So much more of the same for the same account, as a share of its own.
    pub(crate) fn another(&self, amount: usize) -> Result<Self, ApiError> {
        self.of.take(self.account.as_ref(), amount)
    }

    /// Takes more; where that does not fit nothing changes.
    pub(crate) fn grow(&mut self, amount: usize) -> Result<(), ApiError> {
        if amount == 0 {
            return Ok(());
        }
        let shares = &self.of;
        let mut taken = shares.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if amount > shares.whole - taken.whole {
            return Err(shares.whole_is_taken());
        }
        let own = taken.by.get(&self.account).copied().unwrap_or(0);
        if amount > shares.each - own {
            return Err(shares.share_is_taken(self.account.as_ref()));
        }
        taken.whole += amount;
        taken.by.insert(self.account.clone(), own + amount);
        self.amount += amount;
        Ok(())
    }

    /// Gives back all but so much.
    pub(crate) fn shrink_to(&mut self, amount: usize) {
        let back = self.amount.saturating_sub(amount);
        if back == 0 {
            return;
        }
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(taken.whole >= back, "no more is given back than was taken");
        taken.whole -= back;
        self.amount -= back;
        if let Entry::Occupied(mut own) = taken.by.entry(self.account.clone()) {
            *own.get_mut() -= back;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::new(name).unwrap()
    }

    #[test]
    fn one_account_takes_its_share_and_leaves_the_rest_to_others() {
        let (a, b) = (account("a"), account("b"));
        let shares = Shares::new("places", 4, 2);
        let first = shares.take(Some(&a), 1).unwrap();
        let _second = shares.take(Some(&a), 1).unwrap();
        let refused = shares.take(Some(&a), 1).unwrap_err();
        assert!(format!("{refused:?}").contains("account 'a'"));
        let _others = shares.take(Some(&b), 2).unwrap();
        drop(first);
        assert!(shares.take(Some(&a), 1).is_ok());
        let _keyless = shares.take(None, 1).unwrap();
        let full = shares.take(Some(&a), 1).unwrap_err();
        assert!(format!("{full:?}").contains("is full"));
    }

    #[test]
    fn a_share_is_something_even_of_the_smallest_whole() {
        assert!(Shares::new("places", 1, 0).take(None, 1).is_ok());
    }

    proptest! {
        #[test]
        fn all_that_was_taken_comes_back(steps in prop::collection::vec((0_usize..3, 0_usize..40, any::<bool>()), 0..60)) {
            let shares = Shares::new("bytes", 100, 60);
            let names = ["a", "b", "c"].map(account);
            let mut held: Vec<Share> = Vec::new();
            for (who, amount, gives_back) in steps {
                match held.get_mut(amount % 7) {
                    Some(share) if gives_back => share.shrink_to(amount / 2),
                    Some(share) => { let _ = share.grow(amount); }
                    None => held.extend(shares.take(Some(&names[who]), amount)),
                }
                let taken = shares.taken.lock().unwrap();
                let of = |who: &AccountId| held.iter().filter(|share| share.account.as_ref() == Some(who)).map(|share| share.amount).sum::<usize>();
                for name in &names {
                    prop_assert_eq!(taken.by.get(&Some(name.clone())).copied().unwrap_or(0), of(name));
                    prop_assert!(of(name) <= 60);
                }
                prop_assert_eq!(taken.whole, names.iter().map(of).sum::<usize>());
                prop_assert!(taken.whole <= 100);
            }
            held.clear();
            prop_assert!(shares.taken.lock().unwrap().by.is_empty());
        }
    }
}
