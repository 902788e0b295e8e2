//! What the snapshot bucket holds, MessagePack with named fields:
//!
//! - `partition.<pp>`, [`PartitionRecord`]: where the journal stood when all snapshots of the
//!   partition were current. A writer starts from this, the accounts' snapshots, and the journal
//!   after `sequence`.
//! - `directory.<pp>.*`, [`directory`](crate::directory): which accounts there are, and how far each
//!   one's snapshot must reach.
//! - `account.<id>`, [`AccountSnapshot`]: one account, at its own `position`, which may be past the
//!   partition's when the projector died between the two: events of that account up to its own
//!   position are already in it. Of an account with many keys, caps or reservations, [a head](pieces::PiecesHead), which
//!   names the [`pieces`] that hold them, `account.<id>.<n>`.
//!
//! Snapshots are for reading and for starting faster, never the gate; all of them can be thrown away.
//! Whoever starts from one checks it first: its digest, its place in time, and, event by event, that
//! it agrees with what the journal's decisions say they met.

pub mod kept;
pub mod pieces;

use bytes::Bytes;
use seatbelt_schemas::{
    cap::CapEvidence,
    event::{Event, EventBody},
    ids::{AccountId, CommandId},
    position::Position,
    scope::Scopes,
    wire::{self, UnknownField, WireError},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    account::{Account, deciding},
    directory::DirectoryRef,
    partition::Head,
    store::{Kept, Revision},
};

pub use kept::{AccountOutline, FoundSnapshot};
pub use pieces::Written;

/// Version of the partition record.
pub const RECORD_VERSION: u8 = 3;
/// Version of the account snapshot.
pub const SNAPSHOT_VERSION: u8 = 2;
/// How many events lie between two marks of a partition's history. A writer that starts from a
/// snapshot keeps the outcomes of one to two times so many events at hand.
pub const MARK_EVERY_EVENTS: u64 = 32_768;
/// How many accounts with open reservations a partition record names at most.
pub const OPEN_ACCOUNTS_MAX: usize = 16_384;
/// Largest value that is kept: what a NATS server takes by default, less its headers.
pub const SNAPSHOT_BYTES_MAX: usize = 1024 * 1024 - 16 * 1024;

/// A place in a partition's journal, and the newest command id of all events up to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Sequence of its last commit.
    pub sequence: u64,
    /// Position of its last event.
    pub position: Position,
    /// The newest id; none before the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<CommandId>,
}

/// What a fold of the journal knows of the ids in it: enough for a writer to take up the recent ones
/// without reading the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The newest command id so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<CommandId>,
    /// At least [`MARK_EVERY_EVENTS`] before the end, or the journal's beginning.
    pub older: Mark,
    /// The mark after that.
    pub newer: Mark,
}

impl History {
    /// Folds one event in.
    pub fn note(&mut self, event: &Event) {
        self.newest = self.newest.max(Some(event.cause));
    }

    /// Notes that the commit of `sequence` ends at `position`; whether a mark was made there, as one is
    /// after `every` events.
    pub fn step(&mut self, sequence: u64, position: Position, every: u64) -> bool {
        if position.0.saturating_sub(self.newer.position.0) < every {
            return false;
        }
        let newest = self.newest;
        self.older = self.newer;
        self.newer = Mark {
            sequence,
            position,
            newest,
        };
        true
    }
}

/// How far a partition's snapshots are current.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Version of this shape.
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
    /// The ids of its commands.
    pub history: History,
    /// Accounts with open reservations, whose deadlines somebody must watch; none where there are
    /// more than [`OPEN_ACCOUNTS_MAX`]: then each is looked at when it is next used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<Vec<AccountId>>,
    /// The directory of accounts, current up to the newer mark at least; none before the first mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<DirectoryRef>,
}

/// One account as folded up to a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountSnapshot {
    /// Version of this shape.
    pub v: u8,
    pub account: AccountId,
    /// Every event of the account up to here is in it, and none after.
    pub position: Position,
    /// Time of the partition's last event then, unix ms.
    pub at_ms: u64,
    /// SHA-256 over the MessagePack of the account, the position, the time and the state, as an array.
    pub digest: ByteBuf,
    pub state: Account,
}

/// Why what is kept for an account is not its snapshot: fold it again from the journal.
#[derive(Debug, Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] WireError),
    /// Its content is not what was written.
    #[error("its digest does not fit its content")]
    Digest,
    /// It stands under another account's key.
    #[error("it is of account {found}")]
    Account { found: AccountId },
    /// It was deleted.
    #[error("it was deleted")]
    Deleted,
    /// It is older than the record that vouches for it, yet was written after it.
    #[error("it ends at position {found} and was put there after {vouched} had been vouched for")]
    Stale {
        /// Where it ends.
        found: Position,
        /// What it must hold.
        vouched: Position,
    },
    /// There is none, yet the account has events.
    #[error("it is missing, and the account has an event at position {last}")]
    Missing {
        /// Its last event that is known of.
        last: Position,
    },
    /// The account has later events.
    #[error("it ends at position {found}, and the account has an event at position {last}")]
    Outdated {
        /// Where it ends.
        found: Position,
        /// The account's last event that is known of.
        last: Position,
    },
    /// A piece of it is not what its head names.
    #[error("its piece {number} is not what its head names")]
    Piece { number: u32 },
    /// Its head stands where the whole was looked for.
    #[error("it is in pieces")]
    InPieces,
    /// The journal has no event of the account.
    #[error("it ends at position {found}, and no event of the account is known up to there")]
    Unheard {
        /// Where it ends.
        found: Position,
    },
}

/// Stands where an account's snapshot would that does not even fit into pieces. No account is let grow
/// so far; one may have in the journal of a version that had fewer bounds. Readers are told, and whoever
/// needs the account folds it again from the journal. It has no `state`, so it is never taken for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TooLarge {
    /// Version of this shape.
    pub v: u8,
    pub account: AccountId,
    /// Position up to which the account was folded.
    pub position: Position,
    /// Time of the partition's last event then, unix ms.
    pub at_ms: u64,
    /// How large it would be.
    pub too_large: u64,
}

impl TooLarge {
    fn of(account: &AccountId, position: Position, at_ms: u64, bytes: usize) -> Bytes {
        let stand_in = Self {
            v: SNAPSHOT_VERSION,
            account: account.clone(),
            position,
            at_ms,
            too_large: bytes as u64,
        };
        wire::encode(&stand_in).into()
    }
}

/// Whether what stands under an account's key is the account's.
fn in_place(account: &AccountId, found: &AccountId) -> Result<(), Unusable> {
    if found == account {
        return Ok(());
    }
    let found = found.clone();
    Err(Unusable::Account { found })
}

/// Whether what was written at `revision` goes as far as what was vouched for by then.
fn in_time(
    revision: Revision,
    found: Position,
    vouched: (Revision, Position),
) -> Result<(), Unusable> {
    let (since, vouched) = vouched;
    if revision > since && found < vouched {
        return Err(Unusable::Stale { found, vouched });
    }
    Ok(())
}

/// Whether what was read is of the expected version, and nothing in it was left out: a later release may add
/// a field without another version.
fn whole(
    what: &'static str,
    (found, expected): (u8, u8),
    unknown: Option<UnknownField>,
) -> Result<(), WireError> {
    match unknown {
        _ if found != expected => Err(WireError::Version { what, found }),
        Some(field) => Err(WireError::Unknown { what, field }),
        None => Ok(()),
    }
}

impl PartitionRecord {
    /// The record as bytes.
    pub fn encode(&self) -> Bytes {
        wire::encode(self).into()
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let what = "partition record";
        let (record, unknown): (Self, _) = wire::decode_noting(what, bytes)?;
        whole(what, (record.v, RECORD_VERSION), unknown).map(|()| record)
    }
}

impl AccountSnapshot {
    /// Reads a snapshot and checks its digest.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        let what = "account snapshot";
        let (snapshot, unknown): (Self, _) = wire::decode_noting(what, bytes)?;
        whole(what, (snapshot.v, SNAPSHOT_VERSION), unknown)?;
        let Self {
            account,
            position,
            at_ms,
            digest,
            state,
            ..
        } = &snapshot;
        if digest_of(account, *position, *at_ms, state) != digest.as_slice() {
            return Err(Unusable::Digest);
        }
        Ok(snapshot)
    }

    /// What the bucket keeps for an account; `None` where it never had a snapshot. `vouched` is the
    /// partition's record as far as it matters: its revision, and the position it vouches for.
    pub fn of_kept(
        account: &AccountId,
        kept: &Kept,
        vouched: (Revision, Position),
    ) -> Result<Option<Self>, Unusable> {
        let value = match &kept.value {
            Some(value) => value,
            None if kept.revision == Revision(0) => return Ok(None),
            None => return Err(Unusable::Deleted),
        };
        let snapshot = Self::decode(value)?;
        in_place(account, &snapshot.account)?;
        in_time(kept.revision, snapshot.position, vouched)?;
        Ok(Some(snapshot))
    }

    /// Holds what is kept for an account to the account's last event up to `vouched`; `None` where it
    /// has none up to there.
    pub fn held_to(
        kept: Option<Self>,
        last: Option<Position>,
        vouched: Position,
    ) -> Result<Option<Self>, Unusable> {
        match (kept, last) {
            (None, Some(last)) => Err(Unusable::Missing { last }),
            (Some(Self { position, .. }), Some(last)) if position < last => {
                let found = position;
                Err(Unusable::Outdated { found, last })
            }
            (Some(Self { position, .. }), None) if position <= vouched => {
                Err(Unusable::Unheard { found: position })
            }
            (kept, _) => Ok(kept),
        }
    }

    /// A snapshot as one value: whole, or as [`TooLarge`]. What is kept in pieces is [`Written`].
    pub fn kept(account: &AccountId, position: Position, at_ms: u64, state: &Account) -> Bytes {
        let whole = Self::encode(account, position, at_ms, state);
        if whole.len() <= SNAPSHOT_BYTES_MAX {
            return whole;
        }
        TooLarge::of(account, position, at_ms, whole.len())
    }

    /// A snapshot as bytes, without owning the state.
    pub fn encode(account: &AccountId, position: Position, at_ms: u64, state: &Account) -> Bytes {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            v: u8,
            account: &'a AccountId,
            position: Position,
            at_ms: u64,
            #[serde(with = "serde_bytes")]
            digest: [u8; 32],
            state: &'a Account,
        }
        let borrowed = Borrowed {
            v: SNAPSHOT_VERSION,
            account,
            position,
            at_ms,
            digest: digest_of(account, position, at_ms, state),
            state,
        };
        wire::encode(&borrowed).into()
    }
}

fn digest_of(account: &AccountId, position: Position, at_ms: u64, state: &Account) -> [u8; 32] {
    Sha256::digest(wire::encode(&(account, position, at_ms, state))).into()
}

/// Whether the account, as it is before the event, is what the event says its decision met. Events
/// without evidence agree with everything.
pub fn agrees(account: &Account, event: &Event) -> bool {
    let met = |scopes: &Scopes, caps: &[CapEvidence], at_ms| {
        let known = account.matching(scopes).map(|cap| cap.evidence(at_ms));
        known.eq(caps.iter().cloned())
    };
    match &event.body {
        EventBody::Reserved(data) => {
            let scopes = deciding(&data.scopes, data.budget.as_ref(), data.within.as_ref());
            met(&scopes, &data.caps, event.at_ms)
        }
        EventBody::Refused(data) => {
            let at_ms = data.decided_at_ms.unwrap_or(event.at_ms);
            let scopes = deciding(&data.scopes, data.budget.as_ref(), data.within.as_ref());
            met(&scopes, &data.caps, at_ms)
        }
        EventBody::Resized(data) => account
            .open()
            .get(&data.reservation)
            .is_some_and(|open| met(&open.scopes, &data.caps, event.at_ms)),
        EventBody::Settled(data) => {
            let known = &data.reservation;
            account.open().contains_key(known) || account.expired().contains_key(known)
        }
        EventBody::Released(data) => account.open().contains_key(&data.reservation),
        EventBody::Expired(data) => account.open().contains_key(&data.reservation),
        EventBody::AccountOpened(data) => account.is_open() == data.multiplier_ppm.is_some(),
        EventBody::Unknown { .. } => true,
        _ => account.is_open(),
    }
}
