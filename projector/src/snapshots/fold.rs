//! Accounts folded again from the journal's beginning, as much of it at a time as the caller lets.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use seatbelt_ledger::{
    account::Account,
    directory::Entry,
    journal::{Journal, Sequence},
    recovery::newer,
};
use seatbelt_schemas::{
    event::{Event, EventBody},
    ids::AccountId,
    position::Partition,
};
use tokio::time::Instant;

use super::{NotKept, Snapshots};
use crate::chain::Tail;

/// Accounts, and how far the journal was read for them.
pub(super) struct Fold {
    wanted: BTreeSet<Entry>,
    tail: Tail,
    states: BTreeMap<AccountId, Account>,
}

impl Fold {
    pub(super) fn of(partition: Partition, wanted: BTreeSet<Entry>) -> Self {
        Self {
            wanted,
            tail: Tail::start(partition),
            states: BTreeMap::new(),
        }
    }

    /// The last commit that is in it.
    pub(super) fn reached(&self) -> Sequence {
        self.tail.sequence
    }

    /// The accounts that were found.
    pub(super) fn into_states(self) -> BTreeMap<AccountId, Account> {
        self.states
    }

    fn apply(&mut self, event: &Event) {
        if event.account.is_system() || !self.wanted.contains(&Entry::of(&event.account)) {
            return;
        }
        match self.states.get_mut(&event.account) {
            Some(state) => state.apply(event),
            // what only a newer build can read leaves no account behind
            None if matches!(event.body, EventBody::Unknown { .. }) => {}
            None => {
                let mut state = Account::default();
                state.apply(event);
                self.states.insert(event.account.clone(), state);
            }
        }
    }
}

impl<J: Journal> Snapshots<J> {
    /// Reads on up to the tail, for as long as `slice` lets.
    pub(super) async fn fold_on(
        &self,
        fold: &mut Fold,
        slice: Option<Duration>,
    ) -> Result<(), NotKept> {
        let (begun, journal) = (Instant::now(), Arc::clone(&self.journal));
        let mut commits = journal.replay(fold.tail.sequence, self.tail.sequence);
        while let Some(stored) = commits.next().await {
            let stored = stored.map_err(|error| self.unread(error))?;
            if stored.sequence <= fold.tail.sequence {
                continue; // stepped over already
            }
            match fold.tail.accept(&stored) {
                Ok(commit) => {
                    newer::knows_all_of(&commit, None)?;
                    let events = commit.events.iter();
                    events.for_each(|stored| fold.apply(&stored.event));
                }
                Err(halt) => {
                    let stepped = fold.tail.step_over(&*journal, &stored, halt).await;
                    stepped.map_err(|trouble| self.not_stepped(trouble))?;
                }
            }
            if slice.is_some_and(|slice| begun.elapsed() >= slice) {
                break;
            }
        }
        Ok(())
    }

    /// The state of one account at the tail, from the journal's start.
    pub(super) async fn fold_again(&self, account: &AccountId) -> Result<Account, NotKept> {
        let wanted = BTreeSet::from([Entry::of(account)]);
        let mut fold = Fold::of(self.tail.partition(), wanted);
        self.fold_on(&mut fold, None).await?;
        let state = fold.into_states().remove(account);
        Ok(state.unwrap_or_default())
    }
}
