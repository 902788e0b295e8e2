//! Accounts that come into memory and leave it.
//!
//! One leaves only where its snapshot is what is here; one that comes finds what should have ended while
//! it was away.

use seatbelt_schemas::ids::AccountId;

use super::{Caller, EXPIRE_PER_TICK_MAX, LET_GO_MAX, Writer};
use crate::account::Account;

impl<T: Caller> Writer<T> {
    /// Accounts that may leave memory once their snapshots are as they are here, each with its version:
    /// some of those that nothing is open or waits in, where there are more in memory than there should
    /// be.
    pub fn crowd(&self) -> Vec<(AccountId, u32)> {
        let most = self.config.accounts_max;
        let above = self.state.residents().saturating_sub(most);
        if above == 0 {
            return Vec::new();
        }
        // some more than need be, so that the next account does not crowd it again
        let wanted = above.saturating_add(most / 16).min(LET_GO_MAX);
        let accounts = self.state.accounts();
        let idle = accounts.filter(|(_, state)| state.open().is_empty());
        idle.take(wanted)
            .map(|(account, state)| (account.clone(), state.version()))
            .collect()
    }

    /// Takes accounts out of memory whose snapshots hold these versions, unless something has happened
    /// to them since.
    pub fn let_go(&mut self, accounts: &[(AccountId, u32)]) {
        for (account, version) in accounts {
            let known = self.state.account(account);
            let same = known.is_some_and(|known| known.version() == *version);
            if same && self.waiting.len(account) == 0 && !self.tallies.counts(account) {
                // also in a writer that began with all of them, from the journal's beginning
                self.state.page();
                self.state.move_out(account);
            }
        }
    }

    /// Puts an account into memory, and ends what should have ended while it was away: a piece of it, as a
    /// tick would, so that the rest of a large account keeps nobody from the journal.
    pub(super) fn move_in(&mut self, now_ms: u64, account: &AccountId, state: Account) {
        if self.state.is_resident(account) {
            return;
        }
        let open = state.open().iter();
        let open: Vec<_> = open
            .map(|(id, open)| (open.asked.deadline_ms, *id, account.clone()))
            .collect();
        self.state.move_in(account.clone(), state);
        let grace_ms = self.config.expiry_grace_ms;
        let mut expired = 0;
        for deadline in open {
            let is_due = now_ms >= deadline.0.saturating_add(grace_ms);
            if is_due && expired < EXPIRE_PER_TICK_MAX {
                expired += 1;
                self.expire(now_ms, account, deadline.1);
            } else {
                self.deadlines.insert(deadline);
            }
        }
    }
}
