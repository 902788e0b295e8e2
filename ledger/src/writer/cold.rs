//! Commands that wait for what is not in memory: their account, or what the journal tells of an older
//! command.
//!
//! Pure bookkeeping. Whoever drives the writer does the fetching, and gives what it found back.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use seatbelt_schemas::{
    ids::{AccountId, CommandId},
    position::Position,
};

use super::Request;
use crate::{
    journal::Sequence,
    outcomes::{Outcomes, Trace, ahead::Unsearched},
    recovery::Loaded,
};

/// Something to be fetched.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fetch {
    /// An account, as it stands.
    Account(AccountId),
    /// What the journal tells of a command, up to its end.
    Command(CommandId),
    /// What the journal tells of ids that were ahead of their time.
    Above(Unsearched),
    /// Where the journal ends by now.
    End,
}

/// What was fetched.
#[derive(Debug)]
pub enum Fetched {
    /// An account; `None` where there is none.
    Account(AccountId, Option<Loaded>),
    Command(Trace),
    /// Those that were ahead of their time.
    Above(Unsearched, Box<Outcomes>),
    /// The journal's end.
    End(Sequence),
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
    /// What of the journal is to be read at once, whether or not anybody waits for it.
    unread: Option<Unsearched>,
    /// Accounts that are wanted for their deadlines, whether or not anybody waits for them.
    watched: HashSet<AccountId>,
    /// Accounts that are being fetched: a second fetch of one could bring back what it was before it
    /// came into memory, changed, and left again.
    under_way: HashSet<AccountId>,
}

impl<T> Parked<T> {
    /// Nothing waits; these accounts are wanted.
    pub(super) fn watching(accounts: Vec<AccountId>) -> Self {
        Self {
            callers: HashMap::new(),
            len: 0,
            watched: accounts.iter().cloned().collect(),
            under_way: HashSet::new(),
            accounts: accounts.into(),
            commands: VecDeque::new(),
            unread: None,
        }
    }

    /// The same, and this of the journal is to be read.
    pub(super) fn and_reading(self, unread: Option<Unsearched>) -> Self {
        Self { unread, ..self }
    }

    /// Wants these accounts too.
    pub(super) fn watch(&mut self, accounts: impl Iterator<Item = AccountId>) {
        for account in accounts {
            if self.watched.insert(account.clone()) {
                self.accounts.push_back(account);
            }
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
            // it is read from the writer's beginning, once
            Fetch::Above(_) => {}
            Fetch::End => unreachable!("answers wait for a look at the end, not commands"),
        }
        self.callers.insert(fetch, vec![(request, caller)]);
    }

    /// The next to be fetched.
    pub(super) fn next(&mut self, durable: Position) -> Option<Fetch> {
        if let Some(unread) = self.unread.take() {
            return Some(Fetch::Above(unread));
        }
        while let Some(account) = self.accounts.pop_front() {
            if self.is_wanted(&account) && self.under_way.insert(account.clone()) {
                return Some(Fetch::Account(account));
            }
        }
        let (decided, _) = self.commands.front()?;
        if *decided > durable {
            return None;
        }
        let (_, id) = self.commands.pop_front()?;
        Some(Fetch::Command(id))
    }

    /// Whether anybody still wants an account: one that stood in the queue twice has arrived once.
    fn is_wanted(&self, account: &AccountId) -> bool {
        let fetch = Fetch::Account(account.clone());
        self.watched.contains(account) || self.callers.contains_key(&fetch)
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
        self.under_way.remove(account);
    }

    /// An account has not arrived: it is fetched again if it is wanted.
    pub(super) fn failed(&mut self, fetch: &Fetch) {
        if let Fetch::Account(account) = fetch {
            self.under_way.remove(account);
            if self.watched.contains(account) {
                self.accounts.push_back(account.clone());
            }
        }
    }

    /// Everyone who waits, at the end of the writer; in the same order in every run.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.len = 0;
        self.accounts.clear();
        self.under_way.clear();
        self.commands.clear();
        self.unread = None;
        let callers: BTreeMap<_, _> = self.callers.drain().collect();
        callers
            .into_values()
            .flatten()
            .map(|(_, caller)| caller)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::command::Read;

    use super::*;

    fn account() -> AccountId {
        AccountId::new("a").unwrap()
    }

    fn fetch() -> Fetch {
        Fetch::Account(account())
    }

    fn ask(parked: &mut Parked<u8>, caller: u8) {
        let read = Read {
            account: account(),
            key: None,
            run: None,
            reservation: None,
        };
        parked.park(fetch(), Position(0), Request::Read(read), caller);
    }

    #[test]
    fn an_account_is_fetched_once_however_many_want_it() {
        let mut parked = Parked::watching(vec![account()]);
        assert_eq!(parked.next(Position(0)), Some(fetch()));
        ask(&mut parked, 1);
        assert_eq!(parked.next(Position(0)), None, "it is under way");
        parked.arrived(&account());
        assert_eq!(parked.take(&fetch()).len(), 1);
        assert_eq!(parked.next(Position(0)), None);
        ask(&mut parked, 2);
        assert_eq!(parked.next(Position(0)), Some(fetch()), "it left again");
    }

    #[test]
    fn an_account_that_stood_in_the_queue_twice_is_not_fetched_when_it_is_there() {
        let mut parked = Parked::watching(vec![account()]);
        ask(&mut parked, 1);
        assert_eq!(parked.next(Position(0)), Some(fetch()));
        parked.arrived(&account());
        assert_eq!(parked.take(&fetch()).len(), 1);
        assert_eq!(parked.next(Position(0)), None);
    }

    #[test]
    fn an_account_that_is_watched_later_is_fetched_once() {
        let mut parked: Parked<u8> = Parked::watching(Vec::new());
        assert_eq!(parked.next(Position(0)), None);
        parked.watch([account(), account()].into_iter());
        assert_eq!(parked.next(Position(0)), Some(fetch()));
        assert_eq!(parked.next(Position(0)), None, "it is under way");
    }

    #[test]
    fn a_failed_fetch_is_tried_again_where_deadlines_want_it() {
        let mut parked: Parked<u8> = Parked::watching(vec![account()]);
        assert_eq!(parked.next(Position(0)), Some(fetch()));
        parked.failed(&fetch());
        assert_eq!(parked.next(Position(0)), Some(fetch()));
    }
}
