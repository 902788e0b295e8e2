//! A hold put in the place of another one, carried out on the newest state: two events, one decision, and
//! nobody who waits is looked at in between.

use seatbelt_schemas::{
    command::{Ack, CommandError, Exchange},
    event::{Released, Reserved},
    ids::Actor,
    meter::Amounts,
};

use super::{Caller, Writer, request_of};
use crate::{
    account::Account,
    api::Answer,
    decide::{self, Context, Cover, ReserveRequest, exchange, validate},
    outcomes::Fingerprint,
    prices::PriceBook,
};

impl<T: Caller> Writer<T> {
    pub(super) fn exchange(&mut self, now_ms: u64, command: &Exchange, caller: T) {
        let Exchange { reserve, .. } = command;
        let fingerprint = Fingerprint::of_exchange(command);
        let known = (&reserve.account, reserve.id, fingerprint);
        let valid = validate::exchange(command, now_ms);
        let Some(caller) = self.admit(valid, known, Ack::Durable, caller) else {
            return;
        };
        match self.decide_exchange(now_ms, command) {
            Err(error) => {
                let error: CommandError = self.explained(error);
                self.answer(caller, Err(error));
            }
            Ok(decided) => {
                self.put_in_place(now_ms, command, decided);
                self.tell(&reserve.account, reserve.id, fingerprint, vec![caller]);
                self.sweep(now_ms, &reserve.account);
            }
        }
    }

    fn decide_exchange(&mut self, now_ms: u64, command: &Exchange) -> Answer<(Released, Reserved)> {
        let Exchange { release, reserve } = command;
        let (at_ms, by) = (self.event_ms(now_ms), (reserve.id.into(), &reserve.key));
        let (released, attempt) = exchange::leave(self.account(&reserve.account)?, *release, by)?;
        let request = ReserveRequest {
            attempt: Some(attempt),
            ..request_of(reserve)
        };
        let without = |account: &Account, prices: &PriceBook| {
            let context = Context {
                at_ms,
                prices,
                cover: Cover::WithinLimits,
            };
            let verdict = decide::reserve(account, context, request, true)?;
            let reserved = exchange::taken(account, verdict)?;
            let hold = (&Amounts::zero(), &reserved.hold);
            validate::holdable(account, &reserved.scopes, hold).map(|()| reserved)
        };
        let reserved = self.state.without(&reserve.account, *release, without);
        let gone = CommandError::UnknownReservation {
            reservation: *release,
        };
        Ok((released, reserved.ok_or(gone)??))
    }

    fn put_in_place(
        &mut self,
        now_ms: u64,
        command: &Exchange,
        (released, reserved): (Released, Reserved),
    ) {
        let account = &command.reserve.account;
        let (cause, actor) = (command.reserve.id, Actor::key(&command.reserve.key));
        self.forget_deadline(account, released.reservation);
        let deadline_ms = reserved.asked.deadline_ms;
        let deadline = (deadline_ms, reserved.reservation, account.clone());
        self.deadlines.insert(deadline);
        self.write(now_ms, account, cause, &actor, released.into());
        self.write(now_ms, account, cause, &actor, reserved.into());
    }
}
