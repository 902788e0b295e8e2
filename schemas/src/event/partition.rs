//! Events of a partition itself: its beginning, and who writes it.

use serde::{Deserialize, Serialize};

use crate::{ids::LedgerId, position::Epoch, skipped::Skipped};

/// The first event of every partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// The ledger's id, the same in all partitions.
    pub ledger: LedgerId,
    pub partition: u8,
    /// Number of partitions, fixed from here on.
    pub partitions: u8,
}

/// A writer took the partition over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterStarted {
    /// Its reign.
    pub epoch: Epoch,
    /// The process, by a name for people.
    pub writer: String,
    /// Version of the software.
    pub version: String,
    /// Where an operator took a journal that is not what it was as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// Where an operator had messages skipped that stand before it and are no commits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

/// An operator's word that a journal goes on from where it ends, whatever was seen after that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// Sequence of the commit that it ended with; zero where it was gone.
    pub end: u64,
    /// Why that needed a word.
    pub reason: String,
    /// Who gave it.
    pub by: String,
}
