//! Commands that take no hold: reading an account, and what an operator changes.

use seatbelt_schemas::{
    command::{Admin, AdminOutcome, Change, CommandError, Fate, Read, STANDING_CAPS_MAX, Standing},
    event::EventBody,
    ids::{AccountId, ReservationId},
};

use super::{Caller, Reply, Writer, carrying::By, replies::TurnedAway};
use crate::{
    account::Account,
    decide::{self, validate},
    outcomes::{Fingerprint, Outcome},
};

impl<T: Caller> Writer<T> {
    pub(super) fn read(&mut self, now_ms: u64, query: &Read, caller: T) {
        let at_ms = self.event_ms(now_ms);
        let position = self.state.position();
        let standing = self.account(&query.account).map(|state| {
            let (key, run) = (query.key.as_ref(), query.run.as_ref());
            let fate = |id| self.fate(state, id);
            let mut standings = state.standings(key, run, at_ms);
            Reply::Standing(Standing {
                account: query.account.clone(),
                position,
                at_ms,
                open: state.open().len() as u64,
                multiplier_ppm: state.multiplier_ppm(),
                caps: standings.by_ref().take(STANDING_CAPS_MAX).collect(),
                more: standings.next().is_some(),
                live_keys: Some(state.live_keys()),
                run: run.and_then(|run| state.run_standing(run)).map(Box::new),
                inside: run.map_or_else(Vec::new, |run| state.runs_inside(run)),
                fate: query.reservation.map(fate),
            })
        });
        self.answer(caller, standing);
    }

    /// What became of a reservation: the account tells of those that are open, however old they are.
    fn fate(&self, state: &Account, reservation: ReservationId) -> Fate {
        match state.open().contains_key(&reservation) {
            true => Fate::Open,
            false => self.outcomes.fate(reservation),
        }
    }

    pub(super) fn admin(&mut self, now_ms: u64, command: &Admin, caller: T) {
        let Admin {
            id,
            account,
            actor,
            change,
        } = command;
        let fingerprint = Fingerprint::of_change(account, change);
        self.carrying_out = Some((*id, fingerprint));
        match self.recall(account, *id, fingerprint) {
            Some(Ok((position, reply))) => return self.answer_at(position, caller, reply),
            Some(Err(error)) => return self.answer(caller, Err(error)),
            None => {}
        }
        if let Err(malformed) = validate::admin(command, now_ms) {
            return self.turn_away(caller, TurnedAway::Malformed(malformed));
        }
        if let Err(error) = self.unused(*id) {
            return self.answer(caller, Err(error));
        }
        match self.decide_change(account, change) {
            Err(error) => self.answer(caller, Err(error)),
            Ok(None) => {
                let position = self.state.position();
                self.outcomes
                    .remember(*id, fingerprint, Outcome::Unchanged(position));
                self.answer_at(
                    position,
                    caller,
                    Ok(Reply::Admin(AdminOutcome { position: None })),
                );
            }
            Ok(Some(body)) => {
                let by = By {
                    account,
                    cause: *id,
                    actor,
                };
                self.carry_out(now_ms, by, body, |writer, at| {
                    let reply = AdminOutcome { position: Some(at) };
                    writer.answer_at(at, caller, Ok(Reply::Admin(reply)));
                });
            }
        }
    }

    pub(super) fn decide_change(
        &self,
        account: &AccountId,
        change: &Change,
    ) -> Result<Option<EventBody>, CommandError> {
        if let Change::SetPrice(price) = change {
            return Ok(decide::set_price(self.state.prices(), price)?.map(EventBody::from));
        }
        match (self.account(account), change) {
            (Ok(state), _) => {
                validate::room_for_change(state, change)?;
                decide::change(state, change)
            }
            (Err(CommandError::UnknownAccount { .. }), Change::OpenAccount) => {
                decide::change(&Account::default(), change)
            }
            (Err(error), _) => Err(error),
        }
    }
}
