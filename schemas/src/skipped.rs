//! Messages on a journal's subject that are no commits, and that an operator had skipped. The word for it
//! stands in the `writer_started` that follows them, so that every reader of the journal, or of a copy of
//! it, steps over exactly these.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Most messages that one word skips: it fits a commit. Whoever may publish on a journal's subject can put more
/// there; that journal is restored.
pub const SKIPPED_MAX: usize = 512;

/// An operator's word that messages are no commits of this journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// All that stand between the commit before and this one, in order.
    pub messages: Vec<Stray>,
    /// Why that needed a word.
    pub reason: String,
    /// Who gave it.
    pub by: String,
}

/// A message that is no commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// Its sequence on the journal's stream.
    pub sequence: u64,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

impl Stray {
    /// The message at this sequence with these bytes.
    pub fn of(sequence: u64, payload: &[u8]) -> Self {
        Self {
            sequence,
            sha256: hex::encode(Sha256::digest(payload)),
        }
    }
}
