//! What callers were told, to be held against the journal once the run is over.

use std::collections::{BTreeMap, BTreeSet};

use seatbelt_schemas::{
    command::{CommandError, Standing},
    ids::{AccountId, CommandId, ReservationId},
    position::Position,
};

#[derive(Default)]
pub(crate) struct Told {
    /// Positions that an outcome was told for.
    pub(crate) outcomes: BTreeMap<CommandId, Vec<Position>>,
    pub(crate) refused: BTreeSet<CommandId>,
    /// What was granted, and by when that was known.
    pub(crate) grants: BTreeMap<ReservationId, AccountId>,
    /// What a reservation really used, once a durable settle said that it is on record: its tokens.
    pub(crate) truths: BTreeMap<ReservationId, u64>,
    /// Reservations that were given back, durably.
    pub(crate) released: Vec<ReservationId>,
    pub(crate) reads: Vec<Standing>,
    pub(crate) errors: Vec<Failed>,
}

/// A command that came back as an error, for good.
pub(crate) struct Failed {
    pub(crate) id: CommandId,
    pub(crate) error: CommandError,
    /// Whether the id was sent with another body before.
    pub(crate) forged: bool,
}

impl Told {
    pub(crate) fn outcome(&mut self, id: CommandId, position: Position) {
        self.outcomes.entry(id).or_default().push(position);
    }
}
