//! How many outcomes are kept, and which of them are let go.

use std::collections::{BTreeMap, VecDeque};

use seatbelt_schemas::ids::CommandId;

use super::{KnownOutcome, RECOLLECTED_MAX};

/// Commands with the newest ids.
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) known: BTreeMap<CommandId, KnownOutcome>,
    pub(super) max: usize,
}

impl Newest {
    pub(super) fn of(max: usize) -> Self {
        Self {
            known: BTreeMap::new(),
            max: max.max(1),
        }
    }

    /// Keeps a command, unless it is known.
    pub(super) fn keep(&mut self, id: CommandId, known: KnownOutcome) {
        self.known.entry(id).or_insert(known);
    }

    /// Drops the oldest where there are too many; the largest id that had to go.
    pub(super) fn drop_oldest(&mut self, but: Option<CommandId>) -> Option<CommandId> {
        let mut largest = None;
        while self.known.len() > self.max {
            let mut ids = self.known.keys().copied();
            let dropped = ids.find(|known| Some(*known) != but);
            dropped.map(|dropped| self.known.remove(&dropped));
            largest = largest.max(dropped);
        }
        largest
    }
}

/// Older commands, as the journal told of them; the first asked for are let go first.
#[derive(Debug, Default)]
pub(super) struct Recollected {
    pub(super) known: BTreeMap<CommandId, Option<KnownOutcome>>,
    order: VecDeque<CommandId>,
}

impl Recollected {
    pub(super) fn keep(&mut self, id: CommandId, known: Option<KnownOutcome>) {
        if self.known.contains_key(&id) {
            return;
        }
        self.known.insert(id, known);
        self.order.push_back(id);
        if self.order.len() > RECOLLECTED_MAX
            && let Some(first) = self.order.pop_front()
        {
            self.known.remove(&first);
        }
    }
}
