//! How a writer lets reserves wait, and whom it looks at again when something has changed.
//!
//! A reserve is decided once when it comes. Events mark the lines of the caps that they touch; a sweep
//! looks at the heads of marked lines, a bounded number at a time, so that no account's queue keeps the
//! others from being served. What is left over is looked at in the next ticks.

use seatbelt_schemas::{
    command::Reserve,
    event::{Event, EventBody},
    ids::{AccountId, ReservationId},
    meter::Amounts,
};

use super::{
    Caller, Writer,
    replies::TurnedAway,
    request_of,
    waiting::{Due, Ticket, Waiter},
};
use crate::{
    account::{Account, deciding},
    decide::{self, Verdict, validate},
};

/// Most waiters of one account that are looked at in one go.
const LOOKS_PER_SWEEP_MAX: usize = 64;
/// Most waits ended, lines aged and accounts swept in one tick.
const DUE_PER_TICK_MAX: usize = 256;
const SWEEPS_PER_TICK_MAX: usize = 8;
/// What a reserve is answered that would wait at a writer which hands over.
const HANDED_OVER: &str =
    "the partition is being handed over, and waits for room go on at its next host: ask again";

impl<T: Caller> Writer<T> {
    /// Looks at a reserve that has just come, and lets it wait where it must.
    pub(super) fn enqueue(&mut self, now_ms: u64, waiter: Box<Waiter<T>>) {
        let account = waiter.command.account.clone();
        // what was left over came before
        self.sweep(now_ms, &account);
        let ticket = self.waiting.ticket();
        self.look_at_or_keep(now_ms, ticket, waiter);
        self.sweep(now_ms, &account);
    }

    /// Looks at the heads of the lines that may move, whoever came first.
    pub(super) fn sweep(&mut self, now_ms: u64, account: &AccountId) {
        for _ in 0..LOOKS_PER_SWEEP_MAX {
            let Some(ticket) = self.waiting.next_moved(account) else {
                return;
            };
            self.look_again(now_ms, account, ticket);
        }
        self.waiting.leave_over(account);
    }

    /// Ends the waits whose patience has run out, lets aged windows let someone in, and goes on with
    /// sweeps that were too long.
    pub(super) fn tick_waiting(&mut self, now_ms: u64) {
        for _ in 0..DUE_PER_TICK_MAX {
            let Some((account, due)) = self.waiting.pop_due(now_ms) else {
                break;
            };
            match due {
                Due::Aged(cap) => self.waiting.mark(&account, &cap),
                Due::GaveUp(ticket) => self.look_again(now_ms, &account, ticket),
            }
            self.sweep(now_ms, &account);
        }
        for _ in 0..SWEEPS_PER_TICK_MAX {
            let Some(account) = self.waiting.pop_left_over() else {
                break;
            };
            self.sweep(now_ms, &account);
        }
    }

    /// Another host takes over: whoever waits is told at once to ask there, and so is whoever would. Nothing
    /// is held for any of them. What fits is still decided.
    pub fn hand_over(&mut self) {
        self.handing_over = true;
        let callers = self.waiting.drain();
        self.ask_elsewhere(callers);
    }

    fn ask_elsewhere(&mut self, callers: Vec<T>) {
        for caller in callers {
            self.turn_away(caller, TurnedAway::Unavailable(HANDED_OVER.to_owned()));
        }
    }

    /// The clock that the time given with every call comes from was set, by so many ms forward. What
    /// somebody waits for goes on from there: patience is a span of time, whatever the clock says.
    pub fn clock_was_set(&mut self, step_ms: i64) {
        self.waiting.shift(step_ms);
        let lingers = self.linger_until_ms;
        self.linger_until_ms = lingers.map(|until_ms| until_ms.saturating_add_signed(step_ms));
    }

    /// A caller of this account went away: whoever waited behind it may fit now.
    pub fn caller_left(&mut self, now_ms: u64, account: &AccountId) {
        let gone = self.waiting.gone(account, nobody_listens);
        for ticket in gone {
            drop(self.waiting.take(account, ticket));
        }
        self.sweep(now_ms, account);
    }

    /// Marks the lines that an event may let move. Told before the event is applied, while the hold
    /// that it ends is still there to say which caps it is in.
    pub(super) fn mark_lines(&mut self, event: &Event) {
        let account = &event.account;
        if self.waiting.len(account) == 0 {
            return;
        }
        let Some(state) = self.state.account(account) else {
            return;
        };
        let reservation = match &event.body {
            EventBody::Settled(data) => data.reservation,
            EventBody::Released(data) => data.reservation,
            EventBody::Expired(data) => data.reservation,
            EventBody::Resized(data) => data.reservation,
            EventBody::Refused(_) | EventBody::Overrun(_) | EventBody::ThresholdCrossed(_) => {
                return;
            }
            // it only takes, unless requests now need what their run holds already
            EventBody::Reserved(data) if data.budget.is_none() => return,
            _ => return self.waiting.mark_all(account),
        };
        match touched(state, reservation) {
            Touched::All => self.waiting.mark_all(account),
            Touched::Caps(caps) => {
                for cap in caps {
                    self.waiting.mark(account, &cap.spec.cap);
                }
            }
        }
    }

    fn look_again(&mut self, now_ms: u64, account: &AccountId, ticket: Ticket) {
        if let Some(waiter) = self.waiting.take(account, ticket)
            && !nobody_listens(&waiter)
        {
            self.look_at_or_keep(now_ms, ticket, waiter);
        }
    }

    fn look_at_or_keep(&mut self, now_ms: u64, ticket: Ticket, waiter: Box<Waiter<T>>) {
        if let Some(waiter) = self.look_at(now_ms, ticket, waiter) {
            self.keep(now_ms, ticket, waiter);
        }
    }

    /// Lets a reserve wait, until time lets it in where nothing else does.
    fn keep(&mut self, now_ms: u64, ticket: Ticket, waiter: Box<Waiter<T>>) {
        if self.handing_over {
            return self.ask_elsewhere(waiter.callers);
        }
        let at_ms = self.event_ms(now_ms);
        let account = waiter.command.account.clone();
        let ages = self.state.account(&account).and_then(|state| {
            let Reserve { budget, within, .. } = &waiter.command;
            let scopes = decide::scopes_of(state, &request_of(&waiter.command)).ok()?;
            let scopes = deciding(&scopes, budget.as_ref(), within.as_ref());
            let caps = state.matching(&scopes);
            let short = caps.filter(|cap| waiter.short.contains(&cap.spec.cap));
            let ages = short.map(|cap| {
                let age_ms = cap.counter.next_gone_ms(cap.spec.window, at_ms);
                (cap.spec.cap.clone(), age_ms)
            });
            Some(ages.collect::<Vec<_>>())
        });
        self.waiting.put(ticket, waiter);
        for (cap, age_ms) in ages.unwrap_or_default() {
            self.waiting.wake_at(&account, &cap, age_ms);
        }
    }

    /// Decides one reserve and answers it, or gives it back to wait on.
    fn look_at(
        &mut self,
        now_ms: u64,
        ticket: Ticket,
        mut waiter: Box<Waiter<T>>,
    ) -> Option<Box<Waiter<T>>> {
        let last_call = now_ms >= waiter.give_up_ms;
        let account = &waiter.command.account;
        let blocked = |cap: &_| self.waiting.stands_before(account, cap, ticket);
        let verdict = self.account(account).and_then(|state| {
            let context = self.context(now_ms);
            let request = request_of(&waiter.command);
            validate::opening(state, &waiter.command)?;
            let verdict = decide::reserve(state, context, request, last_call)?;
            if let Verdict::Reserve(data) = &verdict {
                validate::holdable(state, &data.scopes, (&Amounts::zero(), &data.hold))?;
            }
            let behind = match &verdict {
                Verdict::Reserve(data) if !last_call => decide::contested(state, data, blocked),
                Verdict::Wait(short) => short.iter().filter(|cap| blocked(cap)).cloned().collect(),
                _ => Vec::new(),
            };
            Ok((verdict, behind))
        });
        match verdict {
            // at the caps that nobody waits for before it, it holds nobody up while it stands behind
            Ok((Verdict::Wait(_) | Verdict::Reserve(_), behind)) if !behind.is_empty() => {
                waiter.short = behind;
                return Some(waiter);
            }
            Ok((Verdict::Wait(short), _)) => {
                waiter.short = short;
                return Some(waiter);
            }
            Ok((Verdict::Reserve(data), _)) => {
                if let Err(malformed) = validate::alive(&waiter.command, now_ms) {
                    self.fail(waiter, &malformed.into());
                    return None;
                }
                let deadline = (data.asked.deadline_ms, data.reservation, account.clone());
                self.deadlines.insert(deadline);
                self.conclude(now_ms, waiter, data.into());
            }
            Ok((Verdict::Refuse(data), _)) => self.refuse(now_ms, waiter, data),
            Err(error) => self.fail(waiter, &error),
        }
        None
    }
}

fn nobody_listens<T: Caller>(waiter: &Waiter<T>) -> bool {
    waiter.callers.iter().all(Caller::is_gone)
}

/// What the end or change of a reservation touches.
enum Touched<'a> {
    /// The end of a run takes caps away.
    All,
    Caps(crate::account::Matching<'a>),
}

fn touched(state: &Account, reservation: ReservationId) -> Touched<'_> {
    if let Some(open) = state.open().get(&reservation) {
        return match state.run_held_by(reservation, open) {
            Some(_) => Touched::All,
            None => Touched::Caps(state.matching(&open.scopes)),
        };
    }
    match state.expired().get(&reservation) {
        Some(expired) => Touched::Caps(state.matching(&expired.reservation.scopes)),
        None => Touched::All,
    }
}
