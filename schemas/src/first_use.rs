//! The first use of an `Idempotency-Key`: what was asked under it, and which reservation it became.
//!
//! Written before anything is reserved, so that whoever repeats the request finds it, whichever gateway is asked
//! and whatever died since. What became of the reservation the ledger tells; nothing of that is kept here.

use serde::{Deserialize, Serialize};

use crate::ids::ReservationId;

/// What a key of a client's stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstUse {
    /// Version of this shape: 1.
    pub v: u8,
    /// SHA-256 of what was asked.
    #[serde(with = "serde_bytes")]
    pub asked: [u8; 32],
    /// The reservation that it becomes.
    pub reservation: ReservationId,
    /// From then on, unix ms, nobody reserves it any more: where the ledger does not know it, it never was.
    pub until_ms: u64,
}

impl FirstUse {
    /// The version that is written.
    pub const VERSION: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;

    #[test]
    fn what_is_written_stays_readable() {
        let first = FirstUse {
            v: FirstUse::VERSION,
            asked: [7; 32],
            reservation: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            until_ms: 300,
        };
        let bytes = wire::encode(&first);
        let mut written = b"\x84\xa1v\x01\xa5asked\xc4\x20".to_vec();
        written.extend([7; 32]);
        written.extend(b"\xabreservation\xba01ARZ3NDEKTSV4RRFFQ69G5FAV\xa8until_ms\xcd\x01\x2c");
        assert_eq!(bytes, written);
        assert_eq!(
            wire::decode::<FirstUse>("first use", &bytes).unwrap(),
            first
        );
    }
}
