//! Answers that deny something, and the look at the journal that each of them rests on.
//!
//! A writer that was overtaken does not know it before it writes. What it grants never lasts, and what it
//! read is true as of its position; but that something is not there, its successor may have made untrue. So
//! such an answer is given once a look at the journal, begun after it was decided, has found no commit but
//! this writer's own. One look serves all who came before it.

use seatbelt_schemas::{command::CommandError, position::Position};

use super::{Caller, Next, Reply, StepDown, Writer, replies::TurnedAway};
use crate::{api::Answer, journal::Sequence};

/// Whether an answer says that something is not so, which may have become so since the journal's end that
/// its writer knows.
pub(super) fn denies(answer: &Answer<Reply>) -> bool {
    let Err(error) = answer else {
        return false;
    };
    match error {
        CommandError::UnknownAccount { .. }
        | CommandError::UnknownKey { .. }
        | CommandError::KeyRevoked { .. }
        | CommandError::RunEnded { .. }
        | CommandError::TooManyRuns { .. }
        | CommandError::UnknownCap { .. }
        | CommandError::UnknownReservation { .. }
        | CommandError::Short { .. } => true,
        // true for good, or of no state
        CommandError::AlreadyResolved { .. }
        | CommandError::Conflict { .. }
        | CommandError::Invalid { .. }
        | CommandError::WrongPartition { .. }
        | CommandError::Unavailable { .. } => false,
    }
}

#[derive(Debug)]
struct Doubt<T> {
    on: Position,
    caller: T,
    answer: Answer<Reply>,
}

/// All answers that deny something and are not given yet.
#[derive(Debug)]
pub(super) struct Doubts<T> {
    /// Decided since the last look began.
    fresh: Vec<Doubt<T>>,
    /// Those that the look under way is for, and where the journal ended at least when it began.
    looking: Option<(Sequence, Vec<Doubt<T>>)>,
    /// A look has found the append in flight, or another writer's commit in its place: which of them, its
    /// outcome tells.
    in_flight: Vec<Doubt<T>>,
}

impl<T> Default for Doubts<T> {
    fn default() -> Self {
        Self {
            fresh: Vec::new(),
            looking: None,
            in_flight: Vec::new(),
        }
    }
}

impl<T> Doubts<T> {
    pub(super) fn add(&mut self, on: Position, caller: T, answer: Answer<Reply>) {
        self.fresh.push(Doubt { on, caller, answer });
    }

    pub(super) fn len(&self) -> usize {
        let looking = self.looking.as_ref();
        let looking = looking.map_or(0, |(_, doubts)| doubts.len());
        self.fresh.len() + looking + self.in_flight.len()
    }

    /// Whether a look is to begin now; those who wait have it.
    pub(super) fn begin_look(&mut self, tail: Sequence) -> bool {
        let begins = self.looking.is_none() && !self.fresh.is_empty();
        if begins {
            self.looking = Some((tail, std::mem::take(&mut self.fresh)));
        }
        begins
    }

    fn looked(&mut self) -> (Sequence, Vec<Doubt<T>>) {
        self.looking.take().unwrap_or_default()
    }

    /// Takes everyone out, at the end of the writer.
    pub(super) fn give_up(&mut self) -> Vec<T> {
        let (_, mut all) = self.looked();
        all.append(&mut self.in_flight);
        all.append(&mut self.fresh);
        all.into_iter().map(|doubt| doubt.caller).collect()
    }
}

impl<T: Caller> Writer<T> {
    /// Whether a position that somebody vouches for was never decided here: another writer did.
    pub fn is_beyond(&self, position: Position) -> bool {
        position > self.state.position()
    }

    /// Whether a journal that ends here has another writer's commit: it ends behind what this one knows of,
    /// and it is not the append in flight.
    pub fn is_overtaken_at(&self, end: Sequence) -> bool {
        let flight = self.in_flight.as_ref();
        end > flight.map_or(self.tail, |flight| flight.expected.next())
    }

    /// A look at the journal that began a moment ago has found this end.
    pub(super) fn journal_ends_at(&mut self, end: Sequence) -> Next {
        if self.is_overtaken_at(end) {
            return self.step_down(StepDown::Fenced);
        }
        let (least, mut doubts) = self.doubts.looked();
        if end < least {
            // whoever leads the servers now may not have taken in all yet; or it is lost
            let detail = "the journal is shorter than it was";
            self.turn_all_away(doubts, detail);
        } else if end > self.tail {
            self.doubts.in_flight.append(&mut doubts);
        } else {
            self.give(doubts);
        }
        Next::Continue
    }

    /// The append in flight has landed: what a look found in its place was this writer's own.
    pub(super) fn had_its_place(&mut self) {
        let doubts = std::mem::take(&mut self.doubts.in_flight);
        self.give(doubts);
    }

    /// The journal could not be looked at.
    pub(super) fn no_look_at_the_end(&mut self, detail: &str) -> Next {
        let (_, doubts) = self.doubts.looked();
        self.turn_all_away(doubts, detail);
        Next::Continue
    }

    fn turn_all_away(&mut self, doubts: Vec<Doubt<T>>, detail: &str) {
        for doubt in doubts {
            self.turn_away(doubt.caller, TurnedAway::Unavailable(detail.to_owned()));
        }
    }

    fn give(&mut self, doubts: Vec<Doubt<T>>) {
        for Doubt { on, caller, answer } in doubts {
            self.replies.rest(on, caller, answer);
        }
    }
}
