//! What the snapshot bucket holds, MessagePack with named fields:
//!
//! - `partition.<pp>`, [`PartitionRecord`]: where the journal stood when all snapshots of the
//!   partition were current. A writer starts from this, the accounts' snapshots, and the journal
//!   after `sequence`.
//! - `account.<id>`, [`AccountSnapshot`]: one account, at its own `position`, which may be past the
//!   partition's when the projector died between the two: events of that account up to its own
//!   position are already in it.
//!
//! Snapshots are for reading and for starting faster, never the gate; all of them can be thrown away.

use bytes::Bytes;
use seatbelt_ledger::{account::Account, partition::Head};
use seatbelt_schemas::{
    ids::AccountId,
    position::Position,
    wire::{self, WireError},
};
use serde::{Deserialize, Serialize};

/// Version of both shapes.
pub const RECORD_VERSION: u8 = 1;
/// Largest snapshot that is kept: what a NATS server takes by default, less its headers. Of a larger
/// one (some thousands of open reservations) only the fact is kept, as [`TooLarge`]: readers are told,
/// and the projector folds that account again from the journal when it starts.
pub const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024 - 16 * 1024;

/// How far a partition's snapshots are current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Version of this shape: 1.
    pub v: u8,
    /// The projector that keeps the snapshots; none where it stopped by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projector: Option<String>,
    /// Sequence of the last commit that is in every snapshot.
    pub sequence: u64,
    /// Where the journal stood after it: position, chain, epoch, time, prices, ledger.
    pub head: Head,
    /// When the journal is last known to have ended there, unix ms.
    pub checked_at_ms: u64,
}

/// One account as folded up to a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountSnapshot {
    /// Version of this shape: 1.
    pub v: u8,
    /// The account.
    pub account: AccountId,
    /// Every event of the account up to here is in it, and none after.
    pub position: Position,
    /// Time of the partition's last event then, unix ms.
    pub at_ms: u64,
    /// Its state.
    pub state: Account,
}

/// Stands where an account's snapshot would, which is larger than [`SNAPSHOT_BYTES_MAX`]. It has no
/// `state`, so it is never taken for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLarge {
    /// Version of this shape: 1.
    pub v: u8,
    /// The account.
    pub account: AccountId,
    /// Position up to which the account was folded.
    pub position: Position,
    /// Time of the partition's last event then, unix ms.
    pub at_ms: u64,
    /// How large it would be.
    pub too_large: u64,
}

fn versioned(what: &'static str, v: u8) -> Result<(), WireError> {
    match v {
        RECORD_VERSION => Ok(()),
        found => Err(WireError::Version { what, found }),
    }
}

impl PartitionRecord {
    /// The record as bytes.
    pub fn encode(&self) -> Bytes {
        wire::encode(self).into()
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let record: Self = wire::decode("partition record", bytes)?;
        versioned("partition record", record.v).map(|()| record)
    }
}

impl AccountSnapshot {
    /// Reads a snapshot.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let snapshot: Self = wire::decode("account snapshot", bytes)?;
        versioned("account snapshot", snapshot.v).map(|()| snapshot)
    }

    /// A snapshot as it is kept: whole, or as [`TooLarge`].
    pub(crate) fn kept(
        account: &AccountId,
        position: Position,
        at_ms: u64,
        state: &Account,
    ) -> Bytes {
        let whole = Self::encode(account, position, at_ms, state);
        if whole.len() <= SNAPSHOT_BYTES_MAX {
            return whole;
        }
        let stand_in = TooLarge {
            v: RECORD_VERSION,
            account: account.clone(),
            position,
            at_ms,
            too_large: whole.len() as u64,
        };
        wire::encode(&stand_in).into()
    }

    /// A snapshot as bytes, without owning the state.
    pub(crate) fn encode(
        account: &AccountId,
        position: Position,
        at_ms: u64,
        state: &Account,
    ) -> Bytes {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            v: u8,
            account: &'a AccountId,
            position: Position,
            at_ms: u64,
            state: &'a Account,
        }
        let borrowed = Borrowed {
            v: RECORD_VERSION,
            account,
            position,
            at_ms,
            state,
        };
        wire::encode(&borrowed).into()
    }
}
