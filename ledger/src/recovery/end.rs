//! A partition record saw the journal go as far as it says. A journal that does not is not the one that
//! the record was made from: nothing is read from it in its place.

use thiserror::Error;

use super::RecoveryError;
use crate::journal::Sequence;

/// The journal is not what the partition record saw.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Changed {
    /// It ends earlier.
    #[error(
        "the journal ends at sequence {end}, but the partition record saw it go on to {at}: restore it, or go on from where it ends with `seatbelt ledger adopt-journal`"
    )]
    Shorter {
        /// Where it ends.
        end: Sequence,
        /// How far it went.
        at: Sequence,
    },
    /// It has another commit where the record ends.
    #[error(
        "the journal has another commit at sequence {at} than the partition record saw there: restore it, or go on with it as it is with `seatbelt ledger adopt-journal`"
    )]
    Replaced { at: Sequence },
}

/// Whether a journal that ends at `end` reaches to where a record saw it.
pub fn reaches(end: Sequence, at: Sequence) -> Result<(), RecoveryError> {
    if end < at {
        return Err(Changed::Shorter { end, at }.into());
    }
    Ok(())
}
