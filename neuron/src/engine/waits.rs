//! Answers that have written all they may for now, and wait in their slots for more.
//!
//! They take part in no step, and nobody's step waits for them. None waits for ever: less long where others wait for
//! a slot.

use std::{sync::mpsc::RecvTimeoutError, time::Duration};

use super::{
    Worker,
    allowance::{PATIENCE, PATIENCE_BESIDE},
    running::Running,
};

/// How often those who wait are looked at while nobody runs: a caller who left is found by looking.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Worker {
    /// Lets those go on who may have more by now, and ends those who waited long enough.
    pub(super) fn look_at_waits(&mut self) {
        let patience = match self.waiting.is_empty() {
            true => PATIENCE,
            false => PATIENCE_BESIDE,
        };
        let now = self.clock.now();
        for slot in 0..self.slots.len() {
            let waits = self.slots[slot].as_mut().filter(|running| running.waits());
            if let Some(turn) = waits.map(|running| running.look(now, patience)) {
                self.settle_turn(slot, turn);
            }
        }
    }

    /// Whether nothing can be done until somebody may have more.
    pub(super) fn only_waits(&self) -> bool {
        let mut taken = self.slots.iter().flatten();
        let room = self.slots.iter().any(Option::is_none);
        taken.all(Running::waits) && (self.waiting.is_empty() || !room)
    }

    /// Waits for a command, and not for long. False at the end.
    pub(super) fn waits_for_word(&mut self) -> bool {
        match self.inbox.recv_timeout(LOOK_EVERY) {
            Ok(command) => self.obey(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }
}
