//! Refusals that a hammering client causes: the first of each second are events of their own, the
//! rest are counted into one.
//!
//! Pure bookkeeping. What is counted here is written before anything else changes its account, so
//! that the event decides again on the very state that refused. A crash loses at most a second of
//! counts and no balance.

use std::collections::BTreeSet;

use seatbelt_schemas::{
    event::{RefusalReason, Refused},
    ids::{AccountId, CapId, CommandId, KeyId},
};

use crate::hashing::Map;

/// How many refusals of one key by one cap for one reason are events of their own, per second.
pub const SINGLE_REFUSALS_PER_SECOND: u32 = 256;
/// How long refusals are counted before they are written.
pub const TALLY_MS: u64 = 1000;

type Kind = (KeyId, CapId, RefusalReason);

/// Refusals of one kind within one second.
#[derive(Debug)]
struct Tally {
    began_ms: u64,
    singles: u32,
    counted: Option<CountedRefusals>,
}

/// Counted refusals, to be written as one event.
#[derive(Debug)]
pub(super) struct CountedRefusals {
    /// The last command that was counted.
    pub(super) cause: CommandId,
    /// Its refusal, with the count of all.
    pub(super) data: Refused,
}

/// All tallies of a partition.
#[derive(Debug)]
pub(super) struct Tallies {
    singles_max: u32,
    accounts: Map<AccountId, Map<Kind, Tally>>,
    due: BTreeSet<(u64, AccountId)>,
}

impl Tallies {
    pub(super) fn new(singles_max: u32) -> Self {
        Self {
            singles_max,
            accounts: Map::default(),
            due: BTreeSet::new(),
        }
    }

    /// Counts a refusal; false where it is to be an event of its own.
    pub(super) fn take(
        &mut self,
        now_ms: u64,
        account: &AccountId,
        cause: CommandId,
        data: Refused,
    ) -> bool {
        let kind = (data.scopes.key.clone(), data.cap.clone(), data.reason);
        let kinds = self.accounts.entry(account.clone()).or_default();
        let tally = kinds.entry(kind).or_insert_with(|| {
            self.due
                .insert((now_ms.saturating_add(TALLY_MS), account.clone()));
            Tally {
                began_ms: now_ms,
                singles: 0,
                counted: None,
            }
        });
        if tally.singles < self.singles_max {
            tally.singles += 1;
            return false;
        }
        let before = tally.counted.take().map_or(0, |counted| counted.data.count);
        let data = Refused {
            count: before.saturating_add(1),
            ..data
        };
        tally.counted = Some(CountedRefusals { cause, data });
        true
    }

    /// Takes out what is counted for an account, in a fixed order, to be written now.
    pub(super) fn drain(&mut self, account: &AccountId) -> Vec<CountedRefusals> {
        let Some(kinds) = self.accounts.get_mut(account) else {
            return Vec::new();
        };
        let mut counted: Vec<_> = kinds
            .values_mut()
            .filter_map(|tally| tally.counted.take())
            .collect();
        counted.sort_by_key(|counted| counted.cause);
        counted
    }

    /// Whether anything is known of an account.
    pub(super) fn counts(&self, account: &AccountId) -> bool {
        self.accounts.contains_key(account)
    }

    /// Accounts that have something counted.
    pub(super) fn counting(&self) -> Vec<AccountId> {
        let counts = |kinds: &Map<Kind, Tally>| kinds.values().any(|tally| tally.counted.is_some());
        let mut accounts: Vec<_> = self
            .accounts
            .iter()
            .filter(|(_, kinds)| counts(kinds))
            .map(|(account, _)| account.clone())
            .collect();
        accounts.sort();
        accounts
    }

    /// The next moment at which something is due.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(at_ms, _)| *at_ms)
    }

    /// An account whose second is over, to be drained and then told to [`Tallies::close`].
    pub(super) fn pop_due(&mut self, now_ms: u64) -> Option<AccountId> {
        if self.next_due_ms()? > now_ms {
            return None;
        }
        self.due.pop_first().map(|(_, account)| account)
    }

    /// Forgets the seconds of an account that are over.
    pub(super) fn close(&mut self, now_ms: u64, account: &AccountId) {
        if let Some(kinds) = self.accounts.get_mut(account) {
            kinds.retain(|_, tally| {
                tally.counted.is_some() || now_ms < tally.began_ms.saturating_add(TALLY_MS)
            });
            if kinds.is_empty() {
                self.accounts.remove(account);
            }
        }
    }
}
