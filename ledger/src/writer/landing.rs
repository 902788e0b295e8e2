//! The commit in flight: at most one, until its outcome is definite.
//!
//! An outcome that is not known is settled by appending the same bytes at the same place, and by reading
//! what stands there. A writer that lost its place tells everybody who waits, and is over.

use bytes::Bytes;
use seatbelt_schemas::commit::{COMMIT_BYTES_MAX, ChainHash, encode_commit};

use super::{Caller, InFlight, Next, StepDown, Writer, replies::TurnedAway};
use crate::journal::{AppendError, Sequence};

impl<T: Caller> Writer<T> {
    /// The next commit to append, if there is one and none is in flight: the sequence at which the
    /// journal must end, and the bytes.
    pub fn take_append(&mut self) -> Option<(Sequence, Bytes)> {
        if self.in_flight.is_some() || self.linger_until_ms.is_some() {
            return None;
        }
        let taken = self.pending.take_commit();
        let (first, last) = (taken.first()?.position, taken.last()?);
        let events: Vec<&[u8]> = taken.iter().map(|event| event.bytes.as_ref()).collect();
        let (partition, prev) = (self.config.partition, self.state.chain());
        let payload = encode_commit(partition, self.epoch, first, prev, last.at_ms, &events);
        debug_assert!(payload.len() <= COMMIT_BYTES_MAX);
        self.state.committed(self.epoch, ChainHash::of(&payload));
        let expected = self.tail;
        self.in_flight = Some(InFlight {
            expected,
            payload: payload.clone(),
            last: last.position,
        });
        Some((expected, payload))
    }

    /// The bytes in flight, to append them again.
    pub fn in_flight(&self) -> Option<(Sequence, Bytes)> {
        self.in_flight
            .as_ref()
            .map(|flight| (flight.expected, flight.payload.clone()))
    }

    /// What came of the append in flight.
    pub fn appended(&mut self, outcome: Result<Sequence, AppendError>) -> Next {
        match outcome {
            Ok(sequence) => self.landed(sequence),
            Err(AppendError::Unknown { .. }) => Next::Retry,
            Err(AppendError::WrongSequence { expected }) => Next::ReadBack(expected.next()),
            Err(AppendError::Refused { detail }) => self.step_down(StepDown::Refused(detail)),
        }
    }

    /// What stands where the append in flight belongs: itself, if an earlier try landed, or another
    /// writer's commit.
    pub fn read_back(&mut self, found: Option<&Bytes>) -> Next {
        let flight = self
            .in_flight
            .as_ref()
            .expect("read back follows an append in flight");
        match found {
            Some(bytes) if *bytes == flight.payload => self.landed(flight.expected.next()),
            Some(_) => self.step_down(StepDown::Fenced),
            None => self.step_down(StepDown::Truncated),
        }
    }

    pub(super) fn landed(&mut self, sequence: Sequence) -> Next {
        let flight = self.in_flight.take().expect("only what is in flight lands");
        assert_eq!(
            sequence,
            flight.expected.next(),
            "a conditional append lands right after its condition"
        );
        self.tail = sequence;
        self.replies.landed(flight.last);
        self.had_its_place();
        Next::Continue
    }

    /// Ends the writer: nobody is answered from its state any more.
    pub fn step_down(&mut self, reason: StepDown) -> Next {
        let mut callers = self.replies.give_up();
        callers.extend(self.doubts.give_up());
        callers.extend(self.waiting.drain());
        callers.extend(self.parked.drain());
        for caller in callers {
            self.turn_away(caller, TurnedAway::Unavailable(reason.to_string()));
        }
        self.pending.clear();
        self.in_flight = None;
        Next::StepDown(reason)
    }
}
