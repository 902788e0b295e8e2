//! Commands that take a hold, change it and end it, carried out on the newest state.

use seatbelt_schemas::{
    command::{Ack, CommandError, Release, Reserve, Resize, Settle},
    event::{EventBody, Refused},
    ids::{AccountId, Actor, CommandId, ReservationId},
    meter::Amounts,
};

use super::{
    Caller, Writer,
    carrying::By,
    replies::TurnedAway,
    waiting::{WAIT_MS_MAX, WAITERS_PER_ACCOUNT_MAX, Waiter},
};
use crate::{
    decide::{self, validate},
    outcomes::{Fingerprint, Outcome},
};

impl<T: Caller> Writer<T> {
    pub(super) fn reserve(&mut self, now_ms: u64, command: Reserve, caller: T) {
        let fingerprint = Fingerprint::of_reserve(&command);
        // first of all: what was decided stays so, also after the request's own deadline
        match self.recall(&command.account, command.id, fingerprint) {
            Some(Ok((position, reply))) => return self.answer_at(position, caller, reply),
            Some(Err(error)) => return self.answer(caller, Err(error)),
            None => {}
        }
        if let Err(malformed) = validate::reserve(&command, now_ms) {
            return self.turn_away(caller, TurnedAway::Malformed(malformed));
        }
        match self
            .account(&command.account)
            .map(validate::room_for_reserve)
        {
            Err(error) => return self.answer(caller, Err(error)),
            Ok(Err(full)) => return self.turn_away(caller, TurnedAway::Unavailable(full)),
            Ok(Ok(())) => {}
        }
        if let Some(waiter) = self.waiting.find(command.id) {
            if waiter.fingerprint == fingerprint {
                waiter.callers.push(caller);
            } else {
                self.answer(caller, Err(CommandError::Conflict { id: command.id }));
            }
            return;
        }
        let full = self.waiting.len(&command.account) >= WAITERS_PER_ACCOUNT_MAX;
        let wait_ms = if full {
            0
        } else {
            command.wait_ms.min(WAIT_MS_MAX)
        };
        let give_up_ms = now_ms.saturating_add(wait_ms).min(command.deadline_ms);
        let waiter = Box::new(Waiter {
            command,
            fingerprint,
            give_up_ms,
            short: Vec::new(),
            callers: vec![caller],
        });
        self.enqueue(now_ms, waiter);
    }

    /// Answers all who wait for a reserve with an error.
    pub(super) fn fail(&mut self, waiter: Box<Waiter<T>>, error: &CommandError) {
        for caller in waiter.callers {
            self.answer(caller, Err(error.clone()));
        }
    }

    /// Writes a refusal, or counts it where its key has caused many in this second. What is counted
    /// takes nothing from anybody, and its event follows within a second: its answer rests on the
    /// state that refused.
    pub(super) fn refuse(&mut self, now_ms: u64, waiter: Box<Waiter<T>>, data: Refused) {
        let (account, at_ms) = (waiter.command.account.clone(), self.event_ms(now_ms));
        let counted = Refused {
            decided_at_ms: Some(at_ms),
            ..data.clone()
        };
        let single = !self
            .tallies
            .take(now_ms, &account, waiter.command.id, counted);
        if single {
            return self.conclude(now_ms, waiter, data.into());
        }
        let position = self.state.position();
        let fingerprint = waiter.fingerprint;
        if let Some(outcome) = Outcome::of_refused(&data, position, at_ms) {
            self.outcomes
                .remember_counted(waiter.command.id, fingerprint, outcome);
        }
        self.tell(&account, waiter.command.id, fingerprint, waiter.callers);
    }

    pub(super) fn conclude(&mut self, now_ms: u64, waiter: Box<Waiter<T>>, body: EventBody) {
        let Waiter {
            command,
            fingerprint,
            callers,
            ..
        } = *waiter;
        let actor = Actor::key(&command.key);
        self.carrying_out = Some((command.id, fingerprint));
        self.write(now_ms, &command.account, command.id, &actor, body);
        self.tell(&command.account, command.id, fingerprint, callers);
    }

    /// Tells the outcome of a command that was just carried out to all who wait for it.
    pub(super) fn tell(
        &mut self,
        account: &AccountId,
        id: CommandId,
        fingerprint: Fingerprint,
        callers: Vec<T>,
    ) {
        for caller in callers {
            match self.recall(account, id, fingerprint) {
                Some(Ok((position, reply))) => self.answer_at(position, caller, reply),
                Some(Err(error)) => self.answer(caller, Err(error)),
                None => unreachable!("what was just carried out is remembered"),
            }
        }
    }

    pub(super) fn resize(&mut self, now_ms: u64, command: &Resize, caller: T) {
        let Resize {
            id,
            account,
            reservation,
            input_tokens,
            output_tokens,
            actor,
        } = command;
        let known = (account, *id, Fingerprint::of_resize(command));
        let valid = validate::resize(command, now_ms);
        let Some(caller) = self.admit(valid, known, Ack::Durable, caller) else {
            return;
        };
        let (context, tokens) = (self.context(now_ms), (*input_tokens, *output_tokens));
        let decided = self.account(account).and_then(|state| {
            let resized = decide::resize(state, context, *reservation, tokens.0, tokens.1)?;
            let hold = resized.hold;
            if let Some(open) = state.open().get(reservation) {
                validate::holdable(state, &open.scopes, (&open.hold, &hold))?;
            }
            Ok((resized.into(), hold))
        });
        let by = By {
            account,
            cause: *id,
            actor,
        };
        self.resolve(now_ms, by, decided, (Ack::Durable, caller));
    }

    pub(super) fn settle(&mut self, now_ms: u64, command: Settle, ack: Ack, caller: T) {
        let known = (
            &command.account,
            command.id,
            Fingerprint::of_settle(&command),
        );
        let valid = validate::settle(&command, now_ms);
        let Some(caller) = self.admit(valid, known, ack, caller) else {
            return;
        };
        let Settle {
            id,
            account,
            reservation,
            report,
            actor,
        } = command;
        let context = self.context(now_ms);
        let decided = self.account(&account).and_then(|state| {
            let settled = decide::settle(state, context, reservation, report)?;
            let charge = settled.charge;
            Ok((settled.into(), charge))
        });
        let by = By {
            account: &account,
            cause: id,
            actor: &actor,
        };
        self.resolve(now_ms, by, decided, (ack, caller));
    }

    pub(super) fn release(&mut self, now_ms: u64, command: &Release, caller: T) {
        let Release {
            id,
            account,
            reservation,
            reason,
            actor,
        } = command;
        let known = (account, *id, Fingerprint::of_release(command));
        let valid = validate::release(command, now_ms);
        let Some(caller) = self.admit(valid, known, Ack::Durable, caller) else {
            return;
        };
        let decided = self.account(account).and_then(|state| {
            let released = decide::release(state, *reservation, reason)?;
            Ok((released.into(), Amounts::zero()))
        });
        let by = By {
            account,
            cause: *id,
            actor,
        };
        self.resolve(now_ms, by, decided, (Ack::Durable, caller));
    }

    /// Gives back a hold whose caller left before it could be told.
    pub fn undelivered(&mut self, now_ms: u64, account: &AccountId, reservation: ReservationId) {
        let reason = "the caller left before the answer";
        let released = self
            .account(account)
            .and_then(|state| decide::release(state, reservation, reason));
        if let Ok(released) = released {
            self.carry_out_own(now_ms, account, released.into());
        }
    }
}
