//! The waiting queue of one account: first come, first served among those who compete for the same
//! cap; a request is not blocked by one with whom it shares no short cap.
//!
//! Whoever waits stands in the line of each cap that it was short of, or stood behind others at, when
//! last looked at. Only the head of a line that may move is looked at again, so neither a further
//! reserve nor the end of a hold costs more where many wait.
//!
//! Pure bookkeeping. Whether a waiter fits is decided by [`decide`](crate::decide).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use seatbelt_schemas::{
    command::Reserve,
    ids::{AccountId, CapId, CommandId},
};

use crate::{hashing::Map, outcomes::Fingerprint};

/// Most reserves that wait in one account; a further one is answered at once.
pub const WAITERS_PER_ACCOUNT_MAX: usize = 1024;
/// Longest wait a caller may ask for.
pub const WAIT_MS_MAX: u64 = 60_000;

/// The place of a reserve in the order in which they came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

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

/// Why someone has to be looked at when a moment comes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// Spend leaves a cap's window.
    Aged(CapId),
    /// A waiter's patience ends.
    GaveUp(Ticket),
}

/// Those who wait for one cap.
#[derive(Debug, Default)]
struct Line {
    tickets: BTreeSet<Ticket>,
    /// Under which ticket it is among the lines that may move, if it is.
    moved: Option<Ticket>,
    /// When time alone may let its head in.
    wake_ms: Option<u64>,
}

/// Those who wait in one account.
#[derive(Debug)]
struct Queue<T> {
    waiters: BTreeMap<Ticket, Box<Waiter<T>>>,
    lines: BTreeMap<CapId, Line>,
    /// Lines that may move, by their heads.
    moved: BTreeSet<(Ticket, CapId)>,
    /// Whether it is among the queues in which looks were left over.
    left_over: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            waiters: BTreeMap::new(),
            lines: BTreeMap::new(),
            moved: BTreeSet::new(),
            left_over: false,
        }
    }
}

impl<T> Queue<T> {
    fn mark(&mut self, cap: &CapId) {
        let Some(line) = self.lines.get_mut(cap) else {
            return;
        };
        if let (None, Some(head)) = (line.moved, line.tickets.first().copied()) {
            line.moved = Some(head);
            self.moved.insert((head, cap.clone()));
        }
    }

    fn unmark(&mut self, cap: &CapId) {
        let line = self.lines.get_mut(cap);
        if let Some(ticket) = line.and_then(|line| line.moved.take()) {
            self.moved.remove(&(ticket, cap.clone()));
        }
    }
}

/// All waiters of a partition.
#[derive(Debug)]
pub(super) struct Waiters<T> {
    queues: Map<AccountId, Queue<T>>,
    ids: Map<CommandId, (AccountId, Ticket)>,
    wakes: BTreeSet<(u64, AccountId, Due)>,
    /// Accounts in which lines may still move, whoever was left over first.
    left_over: VecDeque<AccountId>,
    last: Ticket,
}

impl<T> Default for Waiters<T> {
    fn default() -> Self {
        Self {
            queues: Map::default(),
            ids: Map::default(),
            wakes: BTreeSet::new(),
            left_over: VecDeque::new(),
            last: Ticket(0),
        }
    }
}

impl<T> Waiters<T> {
    /// The waiter of a command that was sent before.
    pub(super) fn find(&mut self, id: CommandId) -> Option<&mut Waiter<T>> {
        let (account, ticket) = self.ids.get(&id)?;
        let queue = self.queues.get_mut(account)?;
        queue.waiters.get_mut(ticket).map(Box::as_mut)
    }

    /// Whether a reserve waits under this id.
    pub(super) fn waits(&self, id: CommandId) -> bool {
        self.ids.contains_key(&id)
    }

    pub(super) fn len(&self, account: &AccountId) -> usize {
        let queue = self.queues.get(account);
        queue.map_or(0, |queue| queue.waiters.len())
    }

    /// The place of whoever comes now: behind everyone.
    pub(super) fn ticket(&mut self) -> Ticket {
        self.last = Ticket(self.last.0 + 1);
        self.last
    }

    /// Whether someone who came before `ticket` stands in a cap's line.
    pub(super) fn stands_before(&self, account: &AccountId, cap: &CapId, ticket: Ticket) -> bool {
        let line = self.queues.get(account).and_then(|q| q.lines.get(cap));
        line.is_some_and(|line| line.tickets.first().is_some_and(|head| *head < ticket))
    }

    /// Lets someone wait who was just looked at. A line that it leads needs no further look.
    pub(super) fn put(&mut self, ticket: Ticket, waiter: Box<Waiter<T>>) {
        debug_assert!(!waiter.short.is_empty(), "whoever waits, waits for a cap");
        let account = waiter.command.account.clone();
        self.ids
            .insert(waiter.command.id, (account.clone(), ticket));
        let due = (waiter.give_up_ms, account.clone(), Due::GaveUp(ticket));
        self.wakes.insert(due);
        let queue = self.queues.entry(account).or_default();
        for cap in &waiter.short {
            let line = queue.lines.entry(cap.clone()).or_default();
            line.tickets.insert(ticket);
            if line.tickets.first() == Some(&ticket) {
                queue.unmark(cap);
            }
        }
        queue.waiters.insert(ticket, waiter);
    }

    /// Takes someone out; the lines that it led may move.
    pub(super) fn take(&mut self, account: &AccountId, ticket: Ticket) -> Option<Box<Waiter<T>>> {
        let queue = self.queues.get_mut(account)?;
        let waiter = queue.waiters.remove(&ticket)?;
        self.ids.remove(&waiter.command.id);
        let due = (waiter.give_up_ms, account.clone(), Due::GaveUp(ticket));
        self.wakes.remove(&due);
        for cap in &waiter.short {
            let Some(line) = queue.lines.get_mut(cap) else {
                continue;
            };
            let led = line.tickets.first() == Some(&ticket);
            line.tickets.remove(&ticket);
            if !line.tickets.is_empty() {
                if led {
                    queue.unmark(cap);
                    queue.mark(cap);
                }
                continue;
            }
            if let Some(at_ms) = line.wake_ms {
                let due = (at_ms, account.clone(), Due::Aged(cap.clone()));
                self.wakes.remove(&due);
            }
            queue.unmark(cap);
            queue.lines.remove(cap);
        }
        if queue.waiters.is_empty() {
            self.queues.remove(account);
        }
        Some(waiter)
    }

    /// Something has changed at a cap: its line may move.
    pub(super) fn mark(&mut self, account: &AccountId, cap: &CapId) {
        if let Some(queue) = self.queues.get_mut(account) {
            queue.mark(cap);
        }
    }

    /// Something has changed that may concern every line of an account.
    pub(super) fn mark_all(&mut self, account: &AccountId) {
        if let Some(queue) = self.queues.get_mut(account) {
            let caps: Vec<_> = queue.lines.keys().cloned().collect();
            caps.iter().for_each(|cap| queue.mark(cap));
        }
    }

    /// The next who has to be looked at because a line may move, whoever came first.
    pub(super) fn next_moved(&mut self, account: &AccountId) -> Option<Ticket> {
        let queue = self.queues.get_mut(account)?;
        let (_, cap) = queue.moved.pop_first()?;
        let line = queue.lines.get_mut(&cap).expect("a marked line is there");
        line.moved = None;
        line.tickets.first().copied()
    }

    /// Notes that lines of an account may still move, for later.
    pub(super) fn leave_over(&mut self, account: &AccountId) {
        let queue = self.queues.get_mut(account);
        let Some(queue) = queue.filter(|queue| !queue.left_over && !queue.moved.is_empty()) else {
            return;
        };
        queue.left_over = true;
        self.left_over.push_back(account.clone());
    }

    /// An account in which looks were left over.
    pub(super) fn pop_left_over(&mut self) -> Option<AccountId> {
        let account = self.left_over.pop_front()?;
        if let Some(queue) = self.queues.get_mut(&account) {
            queue.left_over = false;
        }
        Some(account)
    }

    /// Sets when time alone may let in whoever leads a cap's line.
    pub(super) fn wake_at(&mut self, account: &AccountId, cap: &CapId, at_ms: Option<u64>) {
        let queue = self.queues.get_mut(account);
        let Some(line) = queue.and_then(|queue| queue.lines.get_mut(cap)) else {
            return;
        };
        let due = |at_ms| (at_ms, account.clone(), Due::Aged(cap.clone()));
        if let Some(before_ms) = std::mem::replace(&mut line.wake_ms, at_ms) {
            self.wakes.remove(&due(before_ms));
        }
        self.wakes.extend(at_ms.map(due));
    }

    /// The next moment at which someone has to be looked at; at once where looks were left over.
    pub(super) fn next_wake_ms(&self) -> Option<u64> {
        if !self.left_over.is_empty() {
            return Some(0);
        }
        self.wakes.first().map(|(at_ms, ..)| *at_ms)
    }

    /// What has become due in an account.
    pub(super) fn pop_due(&mut self, now_ms: u64) -> Option<(AccountId, Due)> {
        let (at_ms, ..) = self.wakes.first()?;
        if *at_ms > now_ms {
            return None;
        }
        let (_, account, due) = self.wakes.pop_first()?;
        if let Due::Aged(cap) = &due {
            let queue = self.queues.get_mut(&account);
            if let Some(line) = queue.and_then(|queue| queue.lines.get_mut(cap)) {
                line.wake_ms = None;
            }
        }
        Some((account, due))
    }

    /// Those of an account for whom `is_gone` holds.
    pub(super) fn gone(
        &self,
        account: &AccountId,
        is_gone: impl Fn(&Waiter<T>) -> bool,
    ) -> Vec<Ticket> {
        let waiters = self
            .queues
            .get(account)
            .into_iter()
            .flat_map(|q| &q.waiters);
        waiters
            .filter(|(_, waiter)| is_gone(waiter))
            .map(|(ticket, _)| *ticket)
            .collect()
    }

    /// Moves every end of patience by as much as the clock was set.
    pub(super) fn shift(&mut self, step_ms: i64) {
        let is_patience = |due: &Due| matches!(due, Due::GaveUp(_));
        self.wakes.retain(|(.., due)| !is_patience(due));
        for (account, queue) in &mut self.queues {
            for (ticket, waiter) in &mut queue.waiters {
                waiter.give_up_ms = waiter.give_up_ms.saturating_add_signed(step_ms);
                let due = Due::GaveUp(*ticket);
                self.wakes.insert((waiter.give_up_ms, account.clone(), due));
            }
        }
    }

    /// Everyone who waits, at the end of the writer; in the same order in every run.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.ids.clear();
        self.wakes.clear();
        self.left_over.clear();
        let queues: BTreeMap<_, _> = self.queues.drain().collect();
        queues
            .into_values()
            .flat_map(|queue| queue.waiters.into_values())
            .flat_map(|waiter| waiter.callers)
            .collect()
    }
}
