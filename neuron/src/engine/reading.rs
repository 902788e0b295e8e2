//! Reads prompts: the one that came first, in pieces, or several whole ones in one run.

use std::{ops::Range, time::Duration};

use super::{
    EndReason, Worker, failures,
    pace::Beside,
    running::{Running, Turn},
    together::{self, Together},
};
use crate::config::PREFILL_CHUNK_TOKENS;

/// So long may answers wait with their next step for prompts that came with theirs: each step without them takes
/// nearly as long as one with them.
const GATHERING_MAX: Duration = Duration::from_millis(100);

impl Worker {
    /// Reads on in the prompt that came first, and those beside it that can be read in the same run.
    pub(super) fn prefill(&mut self) {
        let Some(oldest) = self.oldest() else {
            return;
        };
        let most = (self.pace).piece(self.beside(oldest), self.reach.tokens_max);
        let slots = self.neighbours(oldest, most);
        match slots.len() {
            1 => self.read_piece(oldest, most),
            _ => self.read_together(slots, most),
        }
    }

    /// The slot whose prompt came first: the lowest slot is the one that is soonest free again, and its next
    /// request would be read before an older one above it.
    fn oldest(&self) -> Option<usize> {
        let reading = self.slots.iter().enumerate().filter_map(|(slot, running)| {
            let running = running.as_ref().filter(|running| running.reading())?;
            Some((running.since, slot))
        });
        reading.min().map(|(_, slot)| slot)
    }

    /// Whom a piece for `slot` would hold up. Short prompts that came together are read one after the
    /// other: held back for the first of them to answer, the last would answer later than before.
    fn beside(&self, slot: usize) -> Beside {
        let Some(reader) = &self.slots[slot] else {
            return Beside::Nobody;
        };
        let short = reader.unread() <= PREFILL_CHUNK_TOKENS;
        let held_up = |answer: &Running| {
            answer
                .read_at
                .is_some_and(|first| !answer.waits() && (!short || first <= reader.since))
        };
        match self.slots.iter().flatten().any(held_up) {
            true => Beside::Answers,
            false => Beside::Nobody,
        }
    }

    /// Whether answers wait for prompts that came with theirs before they take their next step.
    pub(super) fn gathers(&self) -> bool {
        let Some(next) = self.oldest() else {
            return false;
        };
        let waits_since = (self.slots.iter().flatten()).filter_map(|answer| answer.last);
        let since = waits_since.min();
        let now = self.clock.now();
        let soon = since.is_some_and(|since| now.duration_since(since) < GATHERING_MAX);
        soon && self.beside(next) == Beside::Nobody
    }

    fn neighbours(&self, oldest: usize, most: usize) -> Range<usize> {
        let whole = |running: &Option<Running>| {
            let prompt = running.as_ref()?.whole()?;
            (prompt.len() <= most).then_some(prompt.len())
        };
        let whole: Vec<Option<usize>> = self.slots.iter().map(whole).collect();
        let run = together::Run {
            together: self.reach.together,
            most,
            spare: self.reach.spare,
            waiting: self
                .slots
                .iter()
                .flatten()
                .filter(|slot| slot.reading())
                .count(),
        };
        together::neighbours(&whole, oldest, run)
    }

    fn read_piece(&mut self, slot: usize, most: usize) {
        let Some(running) = self.slots[slot].as_mut() else {
            return;
        };
        let (position, tokens) = (running.position, running.next_piece(most));
        let (decoder, logits) = (&mut self.decoder, &mut self.logits);
        let (ran, took) = (self.pulse).around(|| decoder.prefill(slot, position, tokens, logits));
        let count = tokens.len();
        if let Err(error) = &ran
            && count > PREFILL_CHUNK_TOKENS
        {
            // Most likely there is no memory for so many: they are read again in pieces.
            tracing::warn!(%error, tokens = count, "a long piece of a prompt could not be read, and pieces are shorter from now on");
            self.reach.tokens_max = PREFILL_CHUNK_TOKENS;
            return;
        }
        self.pace.read(most, count, took);
        self.failures = failures(self.failures, &ran);
        let turn = match ran {
            Ok(()) => running.read(count, &self.logits, &self.guides),
            Err(error) => Turn::Over(EndReason::Failed(error.to_string())),
        };
        self.settle_turn(slot, turn);
    }

    fn read_together(&mut self, slots: Range<usize>, most: usize) {
        let prompts: Vec<&[u32]> = (self.slots[slots.clone()].iter().flatten())
            .filter_map(Running::whole)
            .collect();
        assert_eq!(prompts.len(), slots.len(), "all of them are to be read");
        let (decoder, logits) = (&mut self.decoder, &mut self.logits);
        let run = || decoder.prefill_together(slots.start, &prompts, logits);
        let (ran, took) = self.pulse.around(run);
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        if let Err(error) = ran {
            // Nobody has read anything: each is read by itself now, and fails by itself if it must.
            tracing::warn!(%error, "prompts could not be read together, and are read one by one from now on");
            self.reach.together = Together::Never;
            return;
        }
        let tokens = lengths.len() * lengths.iter().copied().max().unwrap_or(0);
        self.pace.read(most, tokens, took);
        self.failures = 0;
        let vocab = self.decoder.vocab();
        for (at, (slot, count)) in slots.zip(lengths).enumerate() {
            let Some(running) = self.slots[slot].as_mut() else {
                continue;
            };
            let logits = &self.logits[at * vocab..(at + 1) * vocab];
            let turn = running.read(count, logits, &self.guides);
            self.settle_turn(slot, turn);
        }
    }
}
