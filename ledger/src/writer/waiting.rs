//! The waiting queue of one account: first come, first served among those who compete for the same
//! cap; a request is not blocked by one with whom it shares no short cap.
//!
//! Pure bookkeeping. Whether a waiter fits is decided by [`decide`](crate::decide).

use std::collections::{BTreeSet, HashMap, VecDeque};

use seatbelt_schemas::{
    command::Reserve,
    ids::{AccountId, CapId, CommandId},
};

use crate::outcomes::Fingerprint;

/// Most reserves that wait in one account; a further one is answered at once.
pub const WAITERS_PER_ACCOUNT_MAX: usize = 1024;
/// Longest wait a caller may ask for.
pub const WAIT_MS_MAX: u64 = 60_000;

/// A reserve that waits for open holds to resolve.
#[derive(Debug)]
pub(super) struct Waiter<T> {
    pub(super) command: Reserve,
    pub(super) fingerprint: Fingerprint,
    pub(super) give_up_ms: u64,
    /// The caps it was short of, or stood behind others at, when last looked at.
    pub(super) short: Vec<CapId>,
    /// Who wants the answer: more than one where the same command was sent again.
    pub(super) callers: Vec<T>,
}

/// All waiters of a partition.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    queues: HashMap<AccountId, VecDeque<Waiter<T>>>,
    ids: HashMap<CommandId, AccountId>,
    wakes: BTreeSet<(u64, AccountId)>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            queues: HashMap::new(),
            ids: HashMap::new(),
            wakes: BTreeSet::new(),
        }
    }
}

impl<T> Waiting<T> {
    /// The waiter of a command that was sent before.
    pub(super) fn find(&mut self, id: CommandId) -> Option<&mut Waiter<T>> {
        let queue = self.queues.get_mut(self.ids.get(&id)?)?;
        queue.iter_mut().find(|waiter| waiter.command.id == id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(super) fn len(&self, account: &AccountId) -> usize {
        self.queues.get(account).map_or(0, VecDeque::len)
    }

    pub(super) fn push(&mut self, waiter: Waiter<T>) {
        let account = waiter.command.account.clone();
        self.ids.insert(waiter.command.id, account.clone());
        self.wakes.insert((waiter.give_up_ms, account.clone()));
        self.queues.entry(account).or_default().push_back(waiter);
    }

    /// Takes an account's whole queue out, to be looked through and put back.
    pub(super) fn take(&mut self, account: &AccountId) -> VecDeque<Waiter<T>> {
        let queue = self.queues.remove(account).unwrap_or_default();
        queue.iter().for_each(|waiter| {
            self.ids.remove(&waiter.command.id);
        });
        queue
    }

    /// Puts back who still waits; `wake_ms` is when time alone may let someone in.
    pub(super) fn put(
        &mut self,
        account: &AccountId,
        queue: VecDeque<Waiter<T>>,
        wake_ms: Option<u64>,
    ) {
        if queue.is_empty() {
            return;
        }
        let give_up_ms = queue.iter().map(|waiter| waiter.give_up_ms).min();
        for at_ms in give_up_ms.into_iter().chain(wake_ms) {
            self.wakes.insert((at_ms, account.clone()));
        }
        queue.iter().for_each(|waiter| {
            self.ids.insert(waiter.command.id, account.clone());
        });
        self.queues.insert(account.clone(), queue);
    }

    /// The next moment at which someone has to be looked at.
    pub(super) fn next_wake_ms(&self) -> Option<u64> {
        self.wakes.first().map(|(at_ms, _)| *at_ms)
    }

    /// An account whose moment has come.
    pub(super) fn pop_due(&mut self, now_ms: u64) -> Option<AccountId> {
        while self.next_wake_ms()? <= now_ms {
            let (_, account) = self.wakes.pop_first()?;
            if self.queues.contains_key(&account) {
                return Some(account);
            }
        }
        None
    }

    /// Everyone who waits, at the end of the writer.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.ids.clear();
        self.wakes.clear();
        self.queues
            .drain()
            .flat_map(|(_, queue)| queue)
            .flat_map(|waiter| waiter.callers)
            .collect()
    }
}
