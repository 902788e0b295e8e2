//! Answers, and what each of them rests on.
//!
//! An answer that is made from the state is given once the state it was made from lasts: a caller who
//! was told acts on it, and a writer that dies must take nothing back. The one exception is a settle
//! whose caller asked to hear that it was taken. An answer without a position is possible only for
//! what no state has a part in, see `TurnedAway`.

use std::collections::VecDeque;

use seatbelt_schemas::{
    command::{CommandError, Resolution},
    position::Position,
};

use super::Reply;
use crate::{api::Answer, decide::validate::Malformed};

/// Most answers that wait for what they rest on; beyond it commands are turned away as unavailable.
pub const RESTING_MAX: usize = 1 << 16;

/// Why a command is not looked at. It says nothing of the state, and so rests on nothing.
#[derive(Debug, Clone)]
pub(super) enum TurnedAway {
    /// It could never be carried out.
    Malformed(Malformed),
    /// Not now; the caller tries again with the same id.
    Unavailable(String),
}

impl From<TurnedAway> for CommandError {
    fn from(why: TurnedAway) -> Self {
        match why {
            TurnedAway::Malformed(malformed) => malformed.into(),
            TurnedAway::Unavailable(detail) => Self::unavailable(detail),
        }
    }
}

#[derive(Debug)]
struct Resting<T> {
    on: Position,
    caller: T,
    answer: Answer<Reply>,
}

/// All answers of a writer, and up to where its decisions last.
#[derive(Debug)]
pub(super) struct Replies<T> {
    durable: Position,
    told: Position,
    /// In the order of what they rest on.
    resting: VecDeque<Resting<T>>,
    ready: Vec<(T, Answer<Reply>)>,
}

impl<T> Replies<T> {
    pub(super) fn new(durable: Position) -> Self {
        Self {
            durable,
            told: durable,
            resting: VecDeque::new(),
            ready: Vec::new(),
        }
    }

    /// The last position that lasts.
    pub(super) fn durable(&self) -> Position {
        self.durable
    }

    /// Up to where answers have been taken.
    pub(super) fn told(&self) -> Position {
        self.told
    }

    /// How many wait for what they rest on.
    pub(super) fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Answers once `on` is durable.
    pub(super) fn rest(&mut self, on: Position, caller: T, answer: Answer<Reply>) {
        if on <= self.durable {
            return self.ready.push((caller, answer));
        }
        let place = self.resting.partition_point(|before| before.on <= on);
        let resting = Resting { on, caller, answer };
        self.resting.insert(place, resting);
    }

    /// Says that a settle is in the state, which may still die: its caller asked for no more.
    pub(super) fn taken(&mut self, caller: T, resolution: Resolution) {
        self.ready.push((caller, Ok(Reply::Resolution(resolution))));
    }

    /// Turns a command away without a look at the state.
    pub(super) fn turn_away(&mut self, caller: T, why: TurnedAway) {
        self.ready.push((caller, Err(why.into())));
    }

    /// All up to `durable` lasts.
    pub(super) fn landed(&mut self, durable: Position) {
        assert!(durable >= self.durable, "what lasts does not shrink");
        self.durable = durable;
        let lasting = self.resting.partition_point(|answer| answer.on <= durable);
        let lasting = self.resting.drain(..lasting);
        self.ready
            .extend(lasting.map(|Resting { caller, answer, .. }| (caller, answer)));
    }

    /// What answers rest on may never last: takes their callers out, to be told so.
    pub(super) fn give_up(&mut self) -> Vec<T> {
        let resting = self.resting.drain(..);
        resting.map(|Resting { caller, .. }| caller).collect()
    }

    /// Answers that may be given now.
    pub(super) fn take(&mut self) -> std::vec::Drain<'_, (T, Answer<Reply>)> {
        self.told = self.durable;
        self.ready.drain(..)
    }
}
