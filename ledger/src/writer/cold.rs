//! Commands that wait for what is not in memory: their account, or what the journal tells of an older
//! command.
//!
//! Pure bookkeeping. Whoever drives the writer does the fetching, and gives what it found back.

use std::collections::{HashMap, HashSet, VecDeque};

use seatbelt_schemas::{
    ids::{AccountId, CommandId},
    position::Position,
};

use super::Request;
use crate::{account::Account, outcomes::Trace};

/// Something to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Fetch {
    /// An account, as it stands.
    Account(AccountId),
    /// What the journal tells of a command, up to its end.
    Command(CommandId),
}

/// What was fetched.
#[derive(Debug)]
pub enum Fetched {
    /// An account; `None` where there is none.
    Account(AccountId, Option<Account>),
    /// A command.
    Command(Trace),
    /// Nothing, this time.
    Failed {
        /// What was to be fetched.
        fetch: Fetch,
        /// Why it was not, for people.
        detail: String,
    },
}

/// All that waits, and all that is to be fetched.
#[derive(Debug)]
pub(super) struct Parked<T> {
    callers: HashMap<Fetch, Vec<(Request, T)>>,
    len: usize,
    accounts: VecDeque<AccountId>,
    /// Each once what was decided up to a position is durable: a command decided a moment ago is in
    /// the journal only then.
    commands: VecDeque<(Position, CommandId)>,
    /// Accounts that are wanted for their deadlines, whether or not anybody waits for them.
    watched: HashSet<AccountId>,
}

impl<T> Parked<T> {
    /// Nothing waits; these accounts are wanted.
    pub(super) fn watching(accounts: Vec<AccountId>) -> Self {
        Self {
            callers: HashMap::new(),
            len: 0,
            watched: accounts.iter().cloned().collect(),
            accounts: accounts.into(),
            commands: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lets a command wait. `decided` is the last position decided so far.
    pub(super) fn park(&mut self, fetch: Fetch, decided: Position, request: Request, caller: T) {
        self.len += 1;
        if let Some(callers) = self.callers.get_mut(&fetch) {
            callers.push((request, caller));
            return;
        }
        match &fetch {
            // somebody waits for it, which nobody does for those that are only watched
            Fetch::Account(account) => self.accounts.push_front(account.clone()),
            Fetch::Command(id) => self.commands.push_back((decided, *id)),
        }
        self.callers.insert(fetch, vec![(request, caller)]);
    }

    /// The next to be fetched.
    pub(super) fn next(&mut self, durable: Position) -> Option<Fetch> {
        if let Some(account) = self.accounts.pop_front() {
            return Some(Fetch::Account(account));
        }
        let (decided, _) = self.commands.front()?;
        if *decided > durable {
            return None;
        }
        let (_, id) = self.commands.pop_front()?;
        Some(Fetch::Command(id))
    }

    /// Who waited for this.
    pub(super) fn take(&mut self, fetch: &Fetch) -> Vec<(Request, T)> {
        let callers = self.callers.remove(fetch).unwrap_or_default();
        self.len -= callers.len();
        callers
    }

    /// An account has arrived: it is no longer wanted.
    pub(super) fn arrived(&mut self, account: &AccountId) {
        self.watched.remove(account);
    }

    /// An account has not arrived: it is fetched again if it is wanted.
    pub(super) fn failed(&mut self, fetch: &Fetch) {
        if let Fetch::Account(account) = fetch
            && self.watched.contains(account)
        {
            self.accounts.push_back(account.clone());
        }
    }

    /// Everyone who waits, at the end of the writer.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.len = 0;
        self.accounts.clear();
        self.commands.clear();
        self.callers
            .drain()
            .flat_map(|(_, callers)| callers)
            .map(|(_, caller)| caller)
            .collect()
    }
}
