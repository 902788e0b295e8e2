//! What was decided is carried out: written with all that follows from it, told, and let act on those
//! who wait. One way for whatever ends or changes a hold, whoever asked for it.

use seatbelt_schemas::{
    command::{Ack, CommandError, Resolution},
    event::EventBody,
    ids::{AccountId, Actor, CommandId},
    meter::Amounts,
    position::Position,
};

use super::{Caller, Reply, Writer};
use crate::{api::Answer, outcomes::ended_by};

/// On whose account something happens, by which command, and who gave it.
#[derive(Clone, Copy)]
pub(super) struct By<'a> {
    pub(super) account: &'a AccountId,
    pub(super) cause: CommandId,
    pub(super) actor: &'a Actor,
}

impl<T: Caller> Writer<T> {
    /// Writes a decision with what follows from it; then `tell` says so, and those who wait are looked
    /// at: they come after whoever made room for them.
    pub(super) fn carry_out(
        &mut self,
        now_ms: u64,
        by: By<'_>,
        body: EventBody,
        tell: impl FnOnce(&mut Self, Position),
    ) {
        if let Some(ended) = ended_by(&body) {
            self.forget_deadline(by.account, ended);
        }
        let position = self.write_whole(now_ms, by.account, by.cause, by.actor, body);
        tell(self, position);
        self.sweep(now_ms, by.account);
    }

    /// The same for what nobody asked for.
    pub(super) fn carry_out_own(&mut self, now_ms: u64, account: &AccountId, body: EventBody) {
        let by = By {
            account,
            cause: self.own_id(now_ms),
            actor: &Actor::system("writer"),
        };
        self.carry_out(now_ms, by, body, |_, _| ());
    }

    /// Carries out what was decided of a hold and answers with what it costs now, or answers why not.
    pub(super) fn resolve(
        &mut self,
        now_ms: u64,
        by: By<'_>,
        decided: Answer<(EventBody, Amounts)>,
        (ack, caller): (Ack, T),
    ) {
        let (body, amounts) = match decided {
            Ok(decided) => decided,
            Err(error) => {
                let error: CommandError = self.explained(error);
                return self.answer(caller, Err(error));
            }
        };
        let lingers = match body {
            EventBody::Settled(_) => self.linger(now_ms),
            _ => None,
        };
        self.carry_out(now_ms, by, body, |writer, position| {
            writer.linger_until_ms = lingers;
            let reply = Ok(Reply::Resolution(Resolution { position, amounts }));
            writer.answer_when(ack, position, caller, reply);
        });
    }
}
