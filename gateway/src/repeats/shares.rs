//! How many first uses each account has kept: no one of them fills what all share.
//!
//! Counted here by the hour in which they were written, so for this gateway alone and since it began.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use seatbelt_schemas::ids::AccountId;

/// Most that one account has: an eighth of what the bucket takes of all together.
pub(super) const PER_ACCOUNT_MAX: u32 = 1 << 17;
/// Hours in which one that is still kept may have been written: it is kept for a day.
const HOURS: usize = 25;
const HOUR_MS: u64 = 60 * 60 * 1000;
/// Accounts told apart; beyond it all are forgotten. Only operators make accounts.
const ACCOUNTS_MAX: usize = 16_384;

/// An hour since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hour(u64);

/// What each account has kept.
#[derive(Debug)]
pub(super) struct Shares {
    most: u32,
    accounts: Mutex<HashMap<AccountId, Day>>,
}

impl Shares {
    /// Of `most` for each account.
    pub(super) fn new(most: u32) -> Self {
        let accounts = Mutex::default();
        Self { most, accounts }
    }

    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Counts one, and gives the hour it counts to; nothing where the account has as many as it may.
    pub(super) fn take(&self, account: &AccountId, now_ms: u64) -> Option<Hour> {
        let now = Hour(now_ms / HOUR_MS);
        let mut accounts = self.lock();
        if !accounts.contains_key(account) {
            if accounts.len() >= ACCOUNTS_MAX {
                accounts.retain(|_, day| day.until(now) > 0);
            }
            if accounts.len() >= ACCOUNTS_MAX {
                accounts.clear();
            }
            accounts.insert(account.clone(), Day::new(now));
        }
        let day = accounts.get_mut(account).expect("it was just made");
        if day.until(now) >= self.most {
            return None;
        }
        Some(day.take())
    }

    /// One that was counted to an hour is not kept.
    pub(super) fn give_back(&self, account: &AccountId, hour: Hour) {
        if let Some(day) = self.lock().get_mut(account) {
            day.give_back(hour);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AccountId, Day>> {
        // no code panics while it holds the lock half way through a change
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an account wrote in each hour of about a day.
#[derive(Debug)]
struct Day {
    /// The latest hour.
    last: Hour,
    written: [u32; HOURS],
}

impl Day {
    fn new(last: Hour) -> Self {
        let written = [0; HOURS];
        Self { last, written }
    }

    /// Goes on to an hour, and says how many are left by then.
    fn until(&mut self, now: Hour) -> u32 {
        let passed = now.0.saturating_sub(self.last.0);
        for hour in (self.last.0 + 1..).take(usize::try_from(passed).unwrap_or(HOURS).min(HOURS)) {
            self.written[place(Hour(hour))] = 0;
        }
        if passed >= HOURS as u64 {
            self.written = [0; HOURS];
        }
        self.last = self.last.max(now);
        self.written
            .iter()
            .fold(0, |sum, hour| sum.saturating_add(*hour))
    }

    fn take(&mut self) -> Hour {
        let written = &mut self.written[place(self.last)];
        *written = written.saturating_add(1);
        self.last
    }

    fn give_back(&mut self, hour: Hour) {
        // one that long ago counts no more
        if self.last.0.saturating_sub(hour.0) < HOURS as u64 {
            let written = &mut self.written[place(hour)];
            *written = written.saturating_sub(1);
        }
    }
}

fn place(hour: Hour) -> usize {
    usize::try_from(hour.0 % HOURS as u64).expect("it is less than the hours")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(name: &str) -> AccountId {
        AccountId::new(name).unwrap()
    }

    fn at(hour: u64) -> u64 {
        (500_000 + hour) * HOUR_MS
    }

    #[test]
    fn an_account_has_no_more_than_its_share_within_a_day() {
        let (shares, a) = (Shares::new(3), account("a"));
        let first = shares.take(&a, at(0)).unwrap();
        assert!(shares.take(&a, at(10)).is_some());
        assert!(shares.take(&a, at(24)).is_some());
        assert_eq!(shares.take(&a, at(24)), None);
        assert!(shares.take(&account("b"), at(24)).is_some(), "its own");
        assert!(shares.take(&a, at(25)).is_some(), "the first grew old");
        assert_eq!(shares.take(&a, at(25)), None);
        shares.give_back(&a, first);
        assert_eq!(shares.take(&a, at(25)), None, "it counted no more");
        assert!(shares.take(&a, at(1000)).is_some(), "all did");
    }

    #[test]
    fn what_is_given_back_counts_for_nothing() {
        let (shares, a) = (Shares::new(2), account("a"));
        for hour in 0..100 {
            let taken = shares.take(&a, at(hour)).unwrap();
            shares.give_back(&a, taken);
        }
        // a clock that went back
        assert!(shares.take(&a, at(3)).is_some());
        assert!(shares.take(&a, at(99)).is_some());
        assert_eq!(shares.take(&a, at(99)), None);
    }

    #[test]
    fn accounts_are_bounded() {
        let shares = Shares::new(1);
        for number in 0..2 * ACCOUNTS_MAX + 1 {
            shares.take(&account(&format!("a{number}")), at(0));
        }
        assert!(shares.lock().len() <= ACCOUNTS_MAX);
    }
}
