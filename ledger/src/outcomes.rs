//! What became of recent commands: idempotency by id and fingerprint.
//!
//! Hot are the [`HOT_MAX`] commands of a partition with the newest ids, and apart from them the newest
//! [`REFUSED_MAX`] refusals, so that no flood of refusals pushes others out. Every id at or below the
//! largest one that was dropped may have been carried out: it is never taken for new before the
//! journal was asked. Command ids begin with their time, so what is dropped first is what is oldest.
//! After a takeover that is the time of the last event; see [`ahead`] for ids of callers whose clocks
//! were ahead of it.
//! Outcomes are a fold of the journal like everything else. What the journal tells of an older command
//! is kept here for a while too, as a [`Trace`].

use std::hash::Hash;

use seatbelt_schemas::{
    budget::Budget,
    cap::CapStanding,
    command::{Change, Exchange, Refusal, Release, Reserve, Resize, Resolution, Settle},
    event::{Asked, Event, EventBody, Refused, Report},
    ids::{AccountId, CommandId, EndUserId, KeyId, ModelId, ReservationId, RunId},
    meter::Amounts,
    position::Position,
    price::Price,
};

use crate::{decide, hashing};

pub mod ahead;
mod ends;
mod kept;
mod searches;

use ahead::Ahead;
pub use ends::{End, EndOf, Stands, ended_by};
use kept::{Newest, Recollected};
use searches::Searches;

/// How many commands of one partition stay hot. That is 2.6 seconds at 100,000 decisions a second and
/// more than four minutes at 1,000.
pub const HOT_MAX: usize = 1 << 18;
/// How many refusals that are events of their own stay hot beside them.
pub const REFUSED_MAX: usize = HOT_MAX / 4;
/// How many refusals that were counted into an event of others do. The journal knows none of them, so
/// forgetting one makes no other id doubtful.
pub const COUNTED_MAX: usize = HOT_MAX / 16;
/// What all of them take at most: at the worst filling of their trees, which is twice the best.
pub const HOT_BYTES_MAX: usize = 128 << 20;

/// A node of a tree has room for 11 entries and holds 5 at least.
const ENTRY_BYTES: usize = size_of::<(CommandId, KnownOutcome)>() * 11 / 5;
/// A refusal beside its entry, with the texts of its cap.
const REFUSAL_BYTES: usize = size_of::<Refusal>() + 128;
const _: () = assert!(
    (HOT_MAX + REFUSED_MAX + COUNTED_MAX) * ENTRY_BYTES
        + (REFUSED_MAX + COUNTED_MAX) * REFUSAL_BYTES
        <= HOT_BYTES_MAX,
    "what is hot fits the memory that is stated for it"
);

/// How many older commands are kept after the journal was asked for them.
pub const RECOLLECTED_MAX: usize = 4096;

/// What the journal tells of one command: its events, and those of its reservation up to its end, in
/// order. Empty where it was never carried out.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    pub id: CommandId,
    pub events: Vec<Event>,
}

/// A digest of a command's content; only compared within one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    fn of(content: impl Hash) -> Self {
        Self(hashing::digest(content))
    }

    /// Of a reserve. How long its caller waits is not part of what it asks.
    pub fn of_reserve(command: &Reserve) -> Self {
        let Reserve {
            account,
            key,
            model,
            run,
            end_user,
            budget,
            within,
            ..
        } = command;
        Self::of_asked(
            account,
            key,
            (model.as_ref(), run.as_ref(), end_user.as_ref()),
            (
                &asked(command),
                budget.as_ref().map(|budget| (budget, within.as_ref())),
            ),
        )
    }

    /// Of an exchange: which open hold makes room is told by the events of that hold, not by the command's own.
    pub fn of_exchange(command: &Exchange) -> Self {
        Self::of_reserve(&command.reserve).of_another_attempt()
    }

    fn of_another_attempt(self) -> Self {
        Self::of(("exchange", self.0))
    }

    fn of_asked(
        account: &AccountId,
        key: &KeyId,
        scopes: (Option<&ModelId>, Option<&RunId>, Option<&EndUserId>),
        asked: (&Asked, Option<(&Budget, Option<&RunId>)>),
    ) -> Self {
        Self::of(("reserve", account, key, scopes, asked))
    }

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

    pub fn of_settle(command: &Settle) -> Self {
        Self::of_report(&command.account, command.reservation, &command.report)
    }

    fn of_report(account: &AccountId, reservation: ReservationId, report: &Report) -> Self {
        Self::of(("settle", account, reservation, report))
    }

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
            Change::SetPrice(price) if price.says_more() => {
                let price = Price {
                    version: 0,
                    ..price.clone()
                };
                Self::of(("price", account, &price))
            }
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
            EventBody::Reserved(data) => {
                let budget = data.budget.as_ref();
                let budget = budget.map(|budget| (budget, data.within.as_ref()));
                let reserve = of_scopes(&data.scopes, (&data.asked, budget));
                Some(match data.attempt {
                    None => reserve,
                    Some(_) => reserve.of_another_attempt(),
                })
            }
            EventBody::Refused(data) => {
                let budget = data.budget.as_ref();
                let budget = budget.map(|budget| (budget, data.within.as_ref()));
                Some(of_scopes(&data.scopes, (&data.asked, budget)))
            }
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
            // it made room for the reservation of that command, whose event follows
            EventBody::Released(data) if data.replaced_by.is_some() => None,
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
        tool_calls: command.tool_calls,
        deadline_ms: command.deadline_ms,
        on_short: command.on_short,
        on_unknown: command.on_unknown,
    }
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// A hold was taken.
    Reserved { position: Position, stands: Stands },
    /// A reserve was refused.
    Refused(Box<Refusal>),
    /// A reservation was settled, released or resized.
    Resolved(Resolution),
    /// An operator's change was made.
    Changed(Position),
    /// An operator's change was so already. No event tells of it, so it is known while it is hot and
    /// this writer lives; carried out again later, it would be decided anew.
    Unchanged(Position),
}

impl Outcome {
    /// Where it is recorded.
    pub fn position(&self) -> Position {
        match self {
            Self::Reserved { position, .. }
            | Self::Changed(position)
            | Self::Unchanged(position) => *position,
            Self::Refused(refusal) => refusal.position,
            Self::Resolved(resolution) => resolution.position,
        }
    }

    /// A refusal as callers see it; `None` where it does not say what its cap was.
    pub fn of_refused(data: &Refused, position: Position, at_ms: u64) -> Option<Self> {
        let terms = data.terms.as_ref()?;
        let numbers = data.caps.iter().find(|known| known.cap == data.cap)?;
        let cap = CapStanding {
            cap: data.cap.clone(),
            scope: terms.scope.clone(),
            meter: terms.meter,
            window: terms.window,
            limit: numbers.limit,
            spent: numbers.spent,
            held: numbers.held,
            resets_at_ms: terms.resets_at_ms,
        };
        Some(Self::Refused(Box::new(Refusal {
            position,
            at_ms,
            reason: data.reason,
            requested: data.want.held_in(cap.meter).unwrap_or(0),
            cap,
            resets_at_ms: data.resets_at_ms,
            held_by_runs: 0,
        })))
    }

    /// The outcome that an event records.
    fn of_event(event: &Event) -> Option<Self> {
        let position = event.position;
        let resolved = |amounts| Some(Self::Resolved(Resolution { position, amounts }));
        match &event.body {
            EventBody::Reserved(data) => {
                let stands = Stands::Open {
                    hold: data.hold,
                    clamped: data.hold.output_tokens < data.asked.output_tokens,
                };
                Some(Self::Reserved { position, stands })
            }
            EventBody::Refused(data) => Self::of_refused(data, position, event.at_ms),
            EventBody::Resized(data) => resolved(data.hold),
            EventBody::Settled(data) => resolved(data.charge),
            EventBody::Released(data) if data.replaced_by.is_some() => None,
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
    /// It is older than what stays hot: only the journal knows whether it was carried out.
    Cold,
    /// It was carried out with the same content.
    Same(&'a Outcome),
    /// It was carried out with another content.
    Other,
}

type KnownOutcome = (Fingerprint, Outcome);

/// What became of the commands of one partition.
#[derive(Debug)]
pub struct Outcomes {
    hot: Newest,
    refused: Newest,
    counted: Newest,
    /// The largest id that is not hot.
    floor: Option<CommandId>,
    /// Ids above it of which it is not known yet whether they were carried out.
    ahead: Option<Ahead>,
    recollected: Recollected,
    /// Commands that are being looked for in the journal.
    searches: Searches,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self::after(None, HOT_MAX)
    }
}

impl Outcomes {
    /// Those of a journal whose events so far have ids up to `floor`; the `max` newest of what follows
    /// stay hot, and refusals in proportion.
    pub fn after(floor: Option<CommandId>, max: usize) -> Self {
        Self {
            hot: Newest::of(max),
            refused: Newest::of(max / (HOT_MAX / REFUSED_MAX)),
            counted: Newest::of(max / (HOT_MAX / COUNTED_MAX)),
            floor,
            ahead: None,
            recollected: Recollected::default(),
            searches: Searches::default(),
        }
    }

    /// Whether only the journal knows what became of a command.
    pub fn is_cold(&self, id: CommandId) -> bool {
        self.may_be_old(id) && self.known(id).is_none()
    }

    /// What is known of a command.
    pub fn recall(&self, id: CommandId, fingerprint: Fingerprint) -> Recall<'_> {
        match self.known(id) {
            Some(Some((known, outcome))) if *known == fingerprint => Recall::Same(outcome),
            Some(Some(_)) => Recall::Other,
            Some(None) => Recall::New,
            None if self.may_be_old(id) => Recall::Cold,
            None => Recall::New,
        }
    }

    /// Whether an id is one that may have been carried out without being hot.
    fn may_be_old(&self, id: CommandId) -> bool {
        let ahead = self.ahead.as_ref();
        self.floor.is_some_and(|floor| id <= floor) || ahead.is_some_and(|ahead| ahead.covers(id))
    }

    /// The outcome of a command, hot or recollected; `Some(None)` where the journal has none.
    fn known(&self, id: CommandId) -> Option<Option<&KnownOutcome>> {
        match self.hot(id) {
            Some(known) => Some(Some(known)),
            None => self.recollected.known.get(&id).map(Option::as_ref),
        }
    }

    fn hot(&self, id: CommandId) -> Option<&KnownOutcome> {
        let parts = [&self.hot, &self.refused, &self.counted];
        parts.into_iter().find_map(|part| part.known.get(&id))
    }

    /// Folds one event in.
    pub fn apply(&mut self, event: &Event) {
        if let Some(fingerprint) = Fingerprint::of_event(event) {
            self.apply_as(event, fingerprint);
        } else if let Some((reservation, end)) = End::by(event) {
            self.end(reservation, end);
        }
    }

    /// Folds in an event of a command whose fingerprint is known.
    pub fn apply_as(&mut self, event: &Event, fingerprint: Fingerprint) {
        if let Some((reservation, end)) = End::by(event) {
            self.end(reservation, end);
        }
        // of several events with one cause (a settle and its overrun) the first tells
        if let Some(outcome) = Outcome::of_event(event) {
            self.remember(event.cause, fingerprint, outcome);
        }
    }

    /// Notes the outcome of a command, unless one is known.
    pub fn remember(&mut self, id: CommandId, fingerprint: Fingerprint, outcome: Outcome) {
        self.recollected.known.remove(&id);
        // what was counted is an event after all, as the last of those that were counted with it
        let counted = self.counted.known.remove(&id);
        let known = counted.unwrap_or((fingerprint, outcome));
        self.searches.note(id, &known);
        self.keep(id, known);
        // not this one, however old its id is: its caller has not been answered yet
        self.drop_oldest(Some(id));
    }

    /// Notes a refusal that was counted and is no event of its own.
    pub fn remember_counted(&mut self, id: CommandId, fingerprint: Fingerprint, outcome: Outcome) {
        self.recollected.known.remove(&id);
        if self.hot(id).is_none() {
            self.counted.keep(id, (fingerprint, outcome));
            self.counted.drop_oldest(Some(id));
        }
    }

    fn keep(&mut self, id: CommandId, known: KnownOutcome) {
        match known.1 {
            Outcome::Refused(_) => self.refused.keep(id, known),
            _ => self.hot.keep(id, known),
        }
    }

    fn drop_oldest(&mut self, but: Option<CommandId>) {
        let dropped = [&mut self.hot, &mut self.refused].map(|part| part.drop_oldest(but));
        self.floor = dropped.into_iter().fold(self.floor, Ord::max);
    }

    /// Takes in what the journal tells of an older command.
    pub fn recollect(&mut self, trace: &Trace) {
        for event in &trace.events {
            if let Some((reservation, end)) = End::by(event) {
                self.end(reservation, end);
            }
            if self.hot(event.cause).is_none()
                && let Some(known) = known_by(event)
            {
                self.recollected.keep(event.cause, Some(known));
            }
        }
        let since = self.searches.end(trace.id);
        if self.is_cold(trace.id) {
            self.recollected.keep(trace.id, since.known);
        }
        if let Some(end) = since.ended {
            self.end(trace.id.into(), end);
        }
    }

    fn end(&mut self, reservation: ReservationId, end: End) {
        let id = CommandId::from(reservation);
        self.searches.note_end(id, end);
        let known = match self.hot.known.get_mut(&id) {
            Some(known) => Some(known),
            None => self.recollected.known.get_mut(&id).and_then(Option::as_mut),
        };
        match known {
            Some((_, Outcome::Reserved { stands, .. })) => *stands = Stands::Ended(end),
            Some(_) => {}
            None => self.note_end(id, end),
        }
    }
}

fn known_by(event: &Event) -> Option<KnownOutcome> {
    Some((Fingerprint::of_event(event)?, Outcome::of_event(event)?))
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{
        cap::CapStanding, event::RefusalReason, ids::CapId, meter::Meter, scope::Scope,
        window::Window,
    };

    use super::*;

    /// So many commands stay hot, four refusals, and one that was counted.
    const MAX: usize = 16;

    fn id(at_ms: u64) -> CommandId {
        CommandId::from_parts(at_ms, 7)
    }

    fn fingerprint() -> Fingerprint {
        Fingerprint::of("a command")
    }

    fn changed() -> Outcome {
        Outcome::Changed(Position(3))
    }

    fn refused() -> Outcome {
        let cap = CapStanding {
            cap: CapId::new("cap").unwrap(),
            scope: Scope::Account,
            meter: Meter::Tokens,
            window: Window::Balance,
            limit: 1,
            spent: 1,
            held: 0,
            resets_at_ms: None,
        };
        Outcome::Refused(Box::new(Refusal {
            position: Position(3),
            at_ms: 1,
            reason: RefusalReason::Spent,
            cap,
            requested: 1,
            resets_at_ms: None,
            held_by_runs: 0,
        }))
    }

    #[test]
    fn a_flood_of_refusals_pushes_no_other_outcome_out() {
        let mut outcomes = Outcomes::after(None, MAX);
        outcomes.remember(id(1), fingerprint(), changed());
        for at_ms in 2..=100 {
            outcomes.remember(id(at_ms), fingerprint(), refused());
        }
        let known = outcomes.recall(id(1), fingerprint());
        assert_eq!(known, Recall::Same(&changed()));
        assert_eq!(outcomes.recall(id(96), fingerprint()), Recall::Cold);
        let known = outcomes.recall(id(97), fingerprint());
        assert_eq!(known, Recall::Same(&refused()));
        assert_eq!(outcomes.recall(id(101), fingerprint()), Recall::New);
    }

    #[test]
    fn a_refusal_that_was_counted_makes_no_other_id_doubtful() {
        let mut outcomes = Outcomes::after(None, MAX);
        for at_ms in 1..=100 {
            outcomes.remember_counted(id(at_ms), fingerprint(), refused());
        }
        let known = outcomes.recall(id(100), fingerprint());
        assert_eq!(known, Recall::Same(&refused()));
        assert_eq!(outcomes.recall(id(99), fingerprint()), Recall::New);
    }

    #[test]
    fn what_was_counted_and_then_written_is_looked_up_once_it_is_dropped() {
        let mut outcomes = Outcomes::after(None, MAX);
        outcomes.remember_counted(id(1), fingerprint(), refused());
        outcomes.remember(id(1), fingerprint(), refused());
        for at_ms in 2..=5 {
            outcomes.remember(id(at_ms), fingerprint(), refused());
        }
        assert!(outcomes.is_cold(id(1)));
    }
}
