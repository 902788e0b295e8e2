//! How a command is let in: turned away, left to wait for what is not in memory, answered as it was
//! before, or found fit to be decided.
//!
//! What a command needs from outside is decided in one place, before anything of it is looked at.

use seatbelt_schemas::{
    cap::CapStanding,
    command::{
        Ack, AdminOutcome, CommandError, Grant, Read, Refusal, Release, ReserveOutcome, Resize,
        Settle,
    },
    ids::{AccountId, CommandId, ReservationId},
    position::Position,
};

use super::{
    Caller, Next, PARKED_MAX, PENDING_EVENTS_MAX, Reply, Request, StepDown, Writer,
    cold::{Fetch, Fetched},
    replies::{RESTING_MAX, TurnedAway},
};
use crate::{
    account::Account,
    api::Answer,
    decide::validate::Malformed,
    outcomes::{End, Fingerprint, Outcome, Recall, Stands},
};

impl<T: Caller> Writer<T> {
    /// Takes a command in. Its answer comes from [`Writer::answers`], now or later.
    pub fn submit(&mut self, now_ms: u64, request: Request, caller: T) {
        if self.pending.len() >= PENDING_EVENTS_MAX {
            let detail = format!("{PENDING_EVENTS_MAX} decisions wait for the journal already");
            return self.turn_away(caller, TurnedAway::Unavailable(detail));
        }
        if self.replies.resting() + self.doubts.len() >= RESTING_MAX {
            let detail = format!("{RESTING_MAX} answers wait for the journal already");
            return self.turn_away(caller, TurnedAway::Unavailable(detail));
        }
        if let Some(fetch) = self.missing(&request) {
            return self.park(fetch, request, caller);
        }
        match request {
            Request::Reserve(command) => self.reserve(now_ms, command, caller),
            Request::Resize(command) => self.resize(now_ms, &command, caller),
            Request::Settle(command, ack) => self.settle(now_ms, command, ack, caller),
            Request::Release(command) => self.release(now_ms, &command, caller),
            Request::Exchange(command) => self.exchange(now_ms, &command, caller),
            Request::Read(query) => self.read(now_ms, &query, caller),
            Request::Admin(command) => self.admin(now_ms, &command, caller),
        }
    }

    /// What a command needs that is not in memory: its account, or what the journal tells of an older
    /// command with its id. What ends a reservation needs no such search while the reservation is
    /// there to be ended: it cannot have been carried out before. One that has expired can only be
    /// settled; whatever else comes for it is told where it ended.
    pub(super) fn missing(&self, request: &Request) -> Option<Fetch> {
        let account = request.account();
        if !self.state.is_resident(account) && !account.is_system() && self.is_ours(account) {
            return Some(Fetch::Account(account.clone()));
        }
        let state = self.state.account(account);
        let is_open = |id| state.is_some_and(|state| state.open().contains_key(&id));
        let has_expired = |id| state.is_some_and(|state| state.expired().contains_key(&id));
        let id = match request {
            // what became of a reservation that is open the account tells
            Request::Read(Read { reservation, .. }) => match reservation {
                Some(reservation) if !is_open(*reservation) => CommandId::from(*reservation),
                _ => return None,
            },
            Request::Reserve(command) => command.id,
            Request::Admin(command) => command.id,
            // first whether it was carried out; then where the hold that was to make room ended
            Request::Exchange(command)
                if is_open(command.release) || self.outcomes.is_cold(command.reserve.id) =>
            {
                command.reserve.id
            }
            Request::Exchange(command) => command.release.into(),
            Request::Resize(command) if is_open(command.reservation) => command.id,
            Request::Settle(Settle { reservation, .. }, _)
                if is_open(*reservation) || has_expired(*reservation) =>
            {
                return None;
            }
            Request::Release(Release { reservation, .. }) if is_open(*reservation) => return None,
            Request::Resize(Resize { reservation, .. })
            | Request::Settle(Settle { reservation, .. }, _)
            | Request::Release(Release { reservation, .. }) => CommandId::from(*reservation),
        };
        if !self.outcomes.is_cold(id) {
            return None;
        }
        let unread = self.outcomes.unread_of(id).map(Fetch::Above);
        Some(unread.unwrap_or(Fetch::Command(id)))
    }

    pub(super) fn is_ours(&self, account: &AccountId) -> bool {
        self.config.partitions.of(account) == self.config.partition
    }

    pub(super) fn park(&mut self, fetch: Fetch, request: Request, caller: T) {
        if self.parked.len() >= PARKED_MAX {
            let detail = format!("{PARKED_MAX} commands wait for older state already");
            return self.turn_away(caller, TurnedAway::Unavailable(detail));
        }
        if let Fetch::Command(id) = fetch {
            self.outcomes.search_for(id);
        }
        let decided = self.state.position();
        self.parked.park(fetch, decided, request, caller);
    }

    /// The next that has to be fetched: from the snapshots, or from the journal up to its end.
    pub fn take_fetch(&mut self) -> Option<Fetch> {
        if self.doubts.begin_look(self.tail) {
            return Some(Fetch::End);
        }
        self.parked.next(self.replies.durable())
    }

    /// Watches the deadlines of accounts that may be out of memory.
    pub fn watch(&mut self, accounts: impl IntoIterator<Item = AccountId>) {
        let away = accounts.into_iter();
        let away = away.filter(|account| !self.state.is_resident(account));
        self.parked.watch(away);
    }

    /// Commands and answers that wait for something to be fetched.
    pub fn parked(&self) -> usize {
        self.parked.len() + self.doubts.len()
    }

    /// Turns away all who wait for something to be fetched, before a planned end.
    pub fn stop_fetching(&mut self, detail: &str) {
        let mut callers = self.parked.drain();
        callers.extend(self.doubts.give_up());
        for caller in callers {
            self.turn_away(caller, TurnedAway::Unavailable(detail.to_owned()));
        }
    }

    /// Takes in what was fetched, and carries out what waited for it. What was fetched may show that
    /// another writer has taken over.
    pub fn fetched(&mut self, now_ms: u64, fetched: Fetched) -> Next {
        let (fetch, failure) = match fetched {
            Fetched::End(end) => return self.journal_ends_at(end),
            Fetched::Account(_, Some(loaded)) if self.is_beyond(loaded.position) => {
                return self.step_down(StepDown::Fenced);
            }
            Fetched::Account(account, loaded) => {
                self.parked.arrived(&account);
                let state = loaded.map(|loaded| loaded.state);
                self.move_in(now_ms, &account, state.unwrap_or_default());
                (Fetch::Account(account), None)
            }
            Fetched::Command(trace) => {
                self.outcomes.recollect(&trace);
                (Fetch::Command(trace.id), None)
            }
            Fetched::Above(unread, read) => {
                self.outcomes.take_read(*read);
                (Fetch::Above(unread), None)
            }
            Fetched::Failed {
                fetch: Fetch::End,
                detail,
            } => return self.no_look_at_the_end(&detail),
            Fetched::Failed { fetch, detail } => {
                self.parked.failed(&fetch);
                match fetch {
                    Fetch::Above(_) => self.outcomes.give_up_reading(),
                    Fetch::Command(id) => self.outcomes.give_up_search(id),
                    Fetch::Account(_) | Fetch::End => {}
                }
                (fetch, Some(detail))
            }
        };
        for (request, caller) in self.parked.take(&fetch) {
            match &failure {
                None => self.submit(now_ms, request, caller),
                Some(detail) => self.turn_away(caller, TurnedAway::Unavailable(detail.clone())),
            }
        }
        if let Fetch::Account(account) = fetch {
            self.state.forget_unopened(&account);
        }
        Next::Continue
    }

    /// What a command that was carried out before is answered; `None` where it is new.
    pub(super) fn recall(
        &self,
        account: &AccountId,
        id: CommandId,
        fingerprint: Fingerprint,
    ) -> Option<Result<(Position, Answer<Reply>), CommandError>> {
        let outcome = match self.outcomes.recall(id, fingerprint) {
            // what is cold and matters was fetched before the command got here
            Recall::New | Recall::Cold => return None,
            Recall::Other => return Some(Err(CommandError::Conflict { id })),
            Recall::Same(outcome) => outcome,
        };
        // how a reservation stands is told from the state of now, wherever it began
        let position = match outcome {
            Outcome::Reserved { .. } => self.state.position(),
            other => other.position(),
        };
        let reply = match outcome {
            Outcome::Reserved { position, stands } => match stands {
                Stands::Ended(End { position, .. }) => Err(CommandError::AlreadyResolved {
                    reservation: id.into(),
                    position: *position,
                }),
                Stands::Open { hold, clamped } => {
                    Ok(Reply::Reserve(ReserveOutcome::Reserved(Grant {
                        reservation: id.into(),
                        position: *position,
                        hold: *hold,
                        clamped: *clamped,
                        caps: self.standings_of(account, id.into()),
                    })))
                }
            },
            Outcome::Refused(refusal) => {
                let told = Refusal {
                    held_by_runs: self.held_by_runs(account, refusal),
                    ..Refusal::clone(refusal)
                };
                Ok(Reply::Reserve(ReserveOutcome::Refused(Box::new(told))))
            }
            Outcome::Resolved(resolution) => Ok(Reply::Resolution(*resolution)),
            Outcome::Changed(position) => Ok(Reply::Admin(AdminOutcome {
                position: Some(*position),
            })),
            Outcome::Unchanged(_) => Ok(Reply::Admin(AdminOutcome { position: None })),
        };
        Some(Ok((position, reply)))
    }

    /// What runs hold now of the cap that refused.
    fn held_by_runs(&self, account: &AccountId, refusal: &Refusal) -> u64 {
        let CapStanding { scope, meter, .. } = &refusal.cap;
        let state = self.state.account(account);
        state.map_or(0, |state| state.held_by_runs(scope, *meter))
    }

    /// The caps of an open reservation, as callers see them.
    pub(super) fn standings_of(
        &self,
        account: &AccountId,
        reservation: ReservationId,
    ) -> Vec<CapStanding> {
        let Some(state) = self.state.account(account) else {
            return Vec::new();
        };
        let Some(open) = state.open().get(&reservation) else {
            return Vec::new();
        };
        state
            .limiting(reservation, open)
            .map(|cap| cap.standing(self.state.at_ms()))
            .collect()
    }

    /// Says where a reservation ended instead of that it is not known, if that is remembered.
    pub(super) fn explained(&self, error: CommandError) -> CommandError {
        match error {
            CommandError::UnknownReservation { reservation } => {
                match self.outcomes.ended(reservation) {
                    Some(position) => CommandError::AlreadyResolved {
                        reservation,
                        position,
                    },
                    None => CommandError::UnknownReservation { reservation },
                }
            }
            other => other,
        }
    }

    /// Checks a command on an open reservation; `None` once it has been answered.
    pub(super) fn admit(
        &mut self,
        valid: Result<(), Malformed>,
        (account, id, fingerprint): (&AccountId, CommandId, Fingerprint),
        ack: Ack,
        caller: T,
    ) -> Option<T> {
        self.carrying_out = Some((id, fingerprint));
        // first of all: what was decided stays so, however old it is
        match self.recall(account, id, fingerprint) {
            Some(Ok((position, reply))) => self.answer_when(ack, position, caller, reply),
            Some(Err(error)) => self.answer(caller, Err(error)),
            None => match (valid, self.unused(id).and(self.account(account).map(drop))) {
                (Err(malformed), _) => self.turn_away(caller, TurnedAway::Malformed(malformed)),
                (Ok(()), Err(error)) => self.answer(caller, Err(error)),
                (Ok(()), Ok(())) => return Some(caller),
            },
        }
        None
    }

    /// Checks that no reserve waits under the id of another command: one id has one outcome.
    pub(super) fn unused(&self, id: CommandId) -> Result<(), CommandError> {
        if self.waiting.waits(id) {
            return Err(CommandError::Conflict { id });
        }
        Ok(())
    }

    pub(super) fn account(&self, account: &AccountId) -> Result<&Account, CommandError> {
        let known = self.state.account(account);
        known.filter(|account| account.is_open()).ok_or_else(|| {
            let account = account.clone();
            if self.is_ours(&account) {
                CommandError::UnknownAccount { account }
            } else {
                let partition = self.config.partition.0;
                CommandError::WrongPartition { account, partition }
            }
        })
    }
}
