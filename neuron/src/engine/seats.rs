//! Who waits gets a slot, with what is held of his prompt.

use std::sync::atomic::Ordering;

use super::{
    Job, Row, Shift, Worker,
    kept::{self, Held, Kept, Place},
    running::Running,
};

/// Most bytes that are moved between slots for one request while nobody answers: a tenth of a second or two.
const MOVED_BYTES_MAX: usize = 1 << 30;
/// The same while somebody does: a few milliseconds.
const MOVED_BYTES_BESIDE_MAX: usize = 64 << 20;

impl Worker {
    /// Gives free slots to those who wait.
    pub(super) fn fill(&mut self) {
        let next = |all: &Self| {
            let mut waiting = all.waiting.iter();
            waiting.position(|waiting| !all.waits_for_its_prompt(&waiting.job))
        };
        while let Some(at) = next(self) {
            let Some(place) = self.place(&self.waiting[at].job) else {
                return;
            };
            let Some(waiting) = self.waiting.remove(at) else {
                return;
            };
            let reused = self.make_room(&place);
            self.kept[place.slot] = None;
            self.slots[place.slot] = Some(Running::new(
                *waiting,
                reused,
                &self.voice,
                self.clock.clone(),
                self.metrics.clone(),
            ));
            self.load.active.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether another answer to the same prompt reads it just now, and it is shorter to copy what that has read. Short
    /// prompts are read together instead.
    fn waits_for_its_prompt(&self, job: &Job) -> bool {
        let prompt = job.prompt.len();
        let copied = prompt <= self.decoder.movable(MOVED_BYTES_BESIDE_MAX);
        let worth = copied && prompt > self.reach.spare && job.ticket.account().is_some();
        let mut running = self.slots.iter().flatten();
        worth && running.any(|running| running.reading() && running.shares_prompt_of(&job.ticket))
    }

    fn place(&self, job: &Job) -> Option<Place> {
        let slots = self.slots.iter().zip(&self.kept);
        let held: Vec<Held<'_>> = slots
            .map(|(running, kept)| match (running, kept) {
                (Some(running), _) => Held {
                    account: running.account(),
                    tokens: running.held(),
                    busy: true,
                    turn: self.turn,
                },
                (None, kept) => Held {
                    account: kept.as_ref().map(|kept| &kept.account),
                    tokens: kept.as_ref().map_or(&[], |kept| &kept.tokens),
                    busy: false,
                    turn: kept.as_ref().map_or(0, |kept| kept.turn),
                },
            })
            .collect();
        let answers = self.slots.iter().flatten().any(Running::answering);
        let bytes = if answers {
            MOVED_BYTES_BESIDE_MAX
        } else {
            MOVED_BYTES_MAX
        };
        let movable = self.decoder.movable(bytes);
        kept::place(&held, job.ticket.account(), &job.prompt, movable)
    }

    /// Shifts what slots hold; the tokens that the place then holds of its prompt.
    fn make_room(&mut self, place: &Place) -> usize {
        for shift in &place.shifts {
            let done = self.decoder.shift(*shift);
            if let Err(error) = &done {
                tracing::warn!(%error, "what a slot holds could not be moved, and is read again");
            }
            match *shift {
                Shift::Copy { from, to, .. } => self.kept[to] = self.kept[from].clone(),
                Shift::Swap { slots, .. } => self.kept.swap(slots[0], slots[1]),
            }
            if done.is_err() {
                let (Shift::Copy { from, to, .. }
                | Shift::Swap {
                    slots: [from, to], ..
                }) = *shift;
                self.kept[from] = None;
                self.kept[to] = None;
                return 0;
            }
        }
        place.reused
    }
}

/// A free slot's part in a step: it writes behind what is kept, where the next request's tokens overwrite it.
pub(super) fn idle(kept: Option<&Kept>) -> Row {
    Row {
        token: 0,
        position: kept.map_or(0, |kept| kept.tokens.len()),
    }
}
