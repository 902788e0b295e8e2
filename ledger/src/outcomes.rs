//! What became of recent commands: idempotency by id and fingerprint.
//!
//! Hot are the [`HOT_MAX`] commands of a partition with the newest ids. Every id at or below the
//! largest one that was dropped may have been carried out: it is never taken for new. Command ids
//! begin with their time, so what is dropped first is what is oldest. Outcomes are a fold of the
//! journal like everything else, so a restart forgets nothing that is hot.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use seatbelt_schemas::{
    command::{Change, Refusal, Release, Reserve, Resize, Resolution, Settle},
    event::{Asked, Event, EventBody, Refused, Report},
    ids::{AccountId, CommandId, EndUserId, KeyId, ModelId, ReservationId, RunId},
    meter::Amounts,
    position::Position,
};

use crate::{account::Account, decide};

/// How many commands of one partition stay hot: at about 120 bytes each, 120 MB at most. That is 10
/// seconds at 100,000 decisions a second and a quarter of an hour at 1,000.
pub const HOT_MAX: usize = 1 << 20;

/// A digest of a command's content; only compared within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    fn of(content: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// Of a reserve. How long its caller waits is not part of what it asks.
    pub fn of_reserve(command: &Reserve) -> Self {
        let Reserve {
            account,
            key,
            model,
            run,
            end_user,
            ..
        } = command;
        Self::of_asked(
            account,
            key,
            (model.as_ref(), run.as_ref(), end_user.as_ref()),
            &asked(command),
        )
    }

    fn of_asked(
        account: &AccountId,
        key: &KeyId,
        scopes: (Option<&ModelId>, Option<&RunId>, Option<&EndUserId>),
        asked: &Asked,
    ) -> Self {
        Self::of(("reserve", account, key, scopes, asked))
    }

    /// Of a resize.
    pub fn of_resize(command: &Resize) -> Self {
        let Resize {
            account,
            reservation,
            input_tokens,
            output_tokens,
            ..
        } = command;
        Self::of(("resize", account, reservation, input_tokens, output_tokens))
    }

    /// Of a settle.
    pub fn of_settle(command: &Settle) -> Self {
        Self::of_report(&command.account, command.reservation, &command.report)
    }

    fn of_report(account: &AccountId, reservation: ReservationId, report: &Report) -> Self {
        Self::of(("settle", account, reservation, report))
    }

    /// Of a release.
    pub fn of_release(command: &Release) -> Self {
        Self::of((
            "release",
            &command.account,
            command.reservation,
            command.reason.as_str(),
        ))
    }

    /// Of an operator's change. The version inside a price is the ledger's to give.
    pub fn of_change(account: &AccountId, change: &Change) -> Self {
        match change {
            Change::SetPrice(price) => Self::of((
                "price",
                account,
                &price.model,
                &price.rates,
                &price.long_context,
            )),
            other => Self::of(("change", account, other)),
        }
    }

    /// Of the command that caused an event; `None` for events that no caller's command names.
    pub fn of_event(event: &Event) -> Option<Self> {
        let account = &event.account;
        let of_scopes = |scopes: &seatbelt_schemas::scope::Scopes, asked| {
            let others = (
                scopes.model.as_ref(),
                scopes.run.as_ref(),
                scopes.end_user.as_ref(),
            );
            Self::of_asked(account, &scopes.key, others, asked)
        };
        match &event.body {
            EventBody::Reserved(data) => Some(of_scopes(&data.scopes, &data.asked)),
            EventBody::Refused(data) => Some(of_scopes(&data.scopes, &data.asked)),
            EventBody::Resized(data) => Some(Self::of((
                "resize",
                account,
                &data.reservation,
                &data.hold.input_tokens,
                &data.hold.output_tokens,
            ))),
            EventBody::Settled(data) => {
                Some(Self::of_report(account, data.reservation, &data.report))
            }
            EventBody::Released(data) => Some(Self::of((
                "release",
                account,
                data.reservation,
                data.reason.as_str(),
            ))),
            body => decide::change_of(body).map(|change| Self::of_change(account, &change)),
        }
    }
}

/// What a reserve asks, as events record it.
pub fn asked(command: &Reserve) -> Asked {
    Asked {
        input_tokens: command.input_tokens,
        output_tokens: command.output_tokens,
        deadline_ms: command.deadline_ms,
        on_short: command.on_short,
        on_unknown: command.on_unknown,
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A hold was taken.
    Reserved {
        /// Where.
        position: Position,
        /// What was held.
        hold: Amounts,
        /// Whether it is less than asked.
        clamped: bool,
        /// Where the reservation ended, if it has.
        ended: Option<Position>,
    },
    /// A reserve was refused.
    Refused(Box<Refusal>),
    /// A reservation was settled, released or resized.
    Resolved(Resolution),
    /// An operator's change was made.
    Changed(Position),
}

impl Outcome {
    /// Where it is recorded.
    pub fn position(&self) -> Position {
        match self {
            Self::Reserved { position, .. } | Self::Changed(position) => *position,
            Self::Refused(refusal) => refusal.position,
            Self::Resolved(resolution) => resolution.position,
        }
    }

    /// A refusal as callers see it; `None` where its cap is gone.
    pub fn of_refused(
        data: &Refused,
        position: Position,
        at_ms: u64,
        account: Option<&Account>,
    ) -> Option<Self> {
        let cap = account?.cap(&data.cap)?;
        Some(Self::Refused(Box::new(Refusal {
            position,
            at_ms,
            reason: data.reason,
            cap: cap.standing(at_ms),
            requested: data.want.held_in(cap.spec.meter).unwrap_or(0),
            resets_at_ms: data.resets_at_ms,
        })))
    }

    /// The outcome that an event records, given the account after it.
    fn of_event(event: &Event, account: Option<&Account>) -> Option<Self> {
        let position = event.position;
        let resolved = |amounts| Some(Self::Resolved(Resolution { position, amounts }));
        match &event.body {
            EventBody::Reserved(data) => {
                let clamped = data.hold.output_tokens < data.asked.output_tokens;
                Some(Self::Reserved {
                    position,
                    hold: data.hold,
                    clamped,
                    ended: None,
                })
            }
            EventBody::Refused(data) => Self::of_refused(data, position, event.at_ms, account),
            EventBody::Resized(data) => resolved(data.hold),
            EventBody::Settled(data) => resolved(data.charge),
            EventBody::Released(_) => resolved(Amounts::zero()),
            body => decide::change_of(body).map(|_| Self::Changed(position)),
        }
    }
}

/// What is known of a command id.
#[derive(Debug, Clone, PartialEq)]
pub enum Recall<'a> {
    /// Nothing: it is new.
    New,
    /// It is older than what stays hot: it may have been carried out.
    Forgotten,
    /// It was carried out with the same content.
    Same(&'a Outcome),
    /// It was carried out with another content.
    Other,
}

/// What became of recent commands of one partition.
#[derive(Debug, Default)]
pub struct Outcomes {
    hot: BTreeMap<CommandId, (Fingerprint, Outcome)>,
    /// The largest id that was dropped.
    floor: Option<CommandId>,
}

impl Outcomes {
    /// What is known of a command.
    pub fn recall(&self, id: CommandId, fingerprint: Fingerprint) -> Recall<'_> {
        match self.hot.get(&id) {
            Some((known, outcome)) if *known == fingerprint => Recall::Same(outcome),
            Some(_) => Recall::Other,
            None if self.floor.is_some_and(|floor| id <= floor) => Recall::Forgotten,
            None => Recall::New,
        }
    }

    /// Where a reservation ended, if that is still known.
    pub fn ended(&self, reservation: ReservationId) -> Option<Position> {
        match self.hot.get(&reservation.into()) {
            Some((_, Outcome::Reserved { ended, .. })) => *ended,
            _ => None,
        }
    }

    /// Folds one event in, after the account has it.
    pub fn apply(&mut self, event: &Event, account: Option<&Account>) {
        match &event.body {
            EventBody::Settled(data) => self.end(data.reservation, event.position),
            EventBody::Released(data) => self.end(data.reservation, event.position),
            EventBody::Expired(data) => self.end(data.reservation, event.position),
            _ => {}
        }
        let Some(fingerprint) = Fingerprint::of_event(event) else {
            return;
        };
        let Some(outcome) = Outcome::of_event(event, account) else {
            return;
        };
        // of several events with one cause (a settle and its overrun) the first tells
        self.remember(event.cause, fingerprint, outcome);
    }

    /// Notes the outcome of a command, unless one is known.
    pub fn remember(&mut self, id: CommandId, fingerprint: Fingerprint, outcome: Outcome) {
        self.hot.entry(id).or_insert((fingerprint, outcome));
        if self.hot.len() > HOT_MAX {
            // not this one, however old its id is: its caller has not been answered yet
            let dropped = self.hot.keys().copied().find(|known| *known != id);
            dropped.map(|dropped| self.hot.remove(&dropped));
            self.floor = self.floor.max(dropped);
        }
    }

    fn end(&mut self, reservation: ReservationId, position: Position) {
        if let Some((_, Outcome::Reserved { ended, .. })) = self.hot.get_mut(&reservation.into()) {
            *ended = Some(position);
        }
    }
}
