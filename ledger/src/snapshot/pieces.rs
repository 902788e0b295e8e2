//! The snapshot of an account that has many keys, caps or reservations: a head under the account's key,
//! and pieces that it names by number and by the hash of each one's bytes.
//!
//! - What a head names is never written over. New pieces take numbers that the head in the store does not
//!   name, and count once the next head names them; so a crash anywhere leaves a whole snapshot, and a
//!   piece that was lost, torn or put back no longer has its hash.
//! - A list is cut after ids that a hash picks, not after so many entries: what comes and goes changes the
//!   piece that it stands in and leaves the others as they are. Only what changed is written.
//! - One piece that did not change is written anew each time, in turn: one that was lost comes back
//!   within as many writes as there are pieces.
//! - Small accounts are never cut, so that there is one form of them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use seatbelt_schemas::{
    cap::CAPS_WITH_RUNS_MAX,
    ids::{AccountId, ReservationId, RunId},
    position::Position,
    wire,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::{AccountSnapshot, SNAPSHOT_BYTES_MAX, TooLarge, Unusable, whole};
use crate::{
    account::{Account, ExpiredReservation, LATE_SETTLE_COUNT_MAX, Reservation, Run},
    decide::validate::{KEYS_PER_ACCOUNT_MAX, OPEN_PER_ACCOUNT_MAX},
    writer::WAITERS_PER_ACCOUNT_MAX,
};

/// Version of the head; told apart from a whole snapshot by it.
pub const HEAD_VERSION: u8 = 3;
/// An account with at most so many keys, caps, runs and reservations stands in one value.
pub const WHOLE_ENTRIES_MAX: usize = 1024;
/// A piece is cut at the first id that a hash picks after so many bytes,
const PIECE_BYTES_MIN: usize = 16 * 1024;
/// and after so many at the latest.
const PIECE_BYTES_MAX: usize = 64 * 1024;
/// One id in 64 is picked: those whose hash begins with so many zeros.
const CUT_ZEROS: u32 = 6;
/// Most pieces of one account.
pub const PIECES_MAX: usize = 12_000;

// The widest that an entry of each kind is written: a test writes them.
const KEY_BYTES_MAX: usize = 256;
const CAP_BYTES_MAX: usize = 5_120;
const RUN_BYTES_MAX: usize = 1_024;
const OPEN_BYTES_MAX: usize = 1_280;
const EXPIRED_BYTES_MAX: usize = 1_536;
const PIECE_REF_BYTES_MAX: usize = 56;
const HEAD_REST_BYTES_MAX: usize = 1_024;

/// Largest account that is let grow. Waiting reserves were let in before the bound was reached; a run has
/// a cap at least.
const ACCOUNT_BYTES_MAX: usize = KEYS_PER_ACCOUNT_MAX * KEY_BYTES_MAX
    + CAPS_WITH_RUNS_MAX * (CAP_BYTES_MAX + RUN_BYTES_MAX)
    + (OPEN_PER_ACCOUNT_MAX + WAITERS_PER_ACCOUNT_MAX) * OPEN_BYTES_MAX
    + LATE_SETTLE_COUNT_MAX * EXPIRED_BYTES_MAX;
/// Kinds of entries, each with a last piece that may be small.
const KINDS: usize = 5;

const _: () = assert!(
    ACCOUNT_BYTES_MAX / PIECE_BYTES_MIN + KINDS <= PIECES_MAX,
    "every account within its bounds fits into the pieces there may be"
);
const _: () = assert!(
    PIECES_MAX * PIECE_REF_BYTES_MAX + HEAD_REST_BYTES_MAX <= SNAPSHOT_BYTES_MAX,
    "a head names all pieces there may be"
);
const _: () = assert!(
    PIECE_BYTES_MAX + CAP_BYTES_MAX <= SNAPSHOT_BYTES_MAX
        && (PIECE_BYTES_MAX + CAP_BYTES_MAX) / 2 <= u16::MAX as usize,
    "a piece fits one value, and its entries, of two bytes and more, are counted in 16 bits"
);

/// A piece by its number and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRef {
    /// Last part of its key.
    pub number: u32,
    /// SHA-256 of what stands there.
    pub digest: ByteBuf,
}

/// One thing of each piece, by the kind of entry that it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists<T> {
    pub keys: Vec<T>,
    pub caps: Vec<T>,
    pub runs: Vec<T>,
    /// Of open reservations.
    pub open: Vec<T>,
    /// Of expired reservations.
    pub expired: Vec<T>,
}

impl<T> Lists<T> {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let lists = [
            &self.keys,
            &self.caps,
            &self.runs,
            &self.open,
            &self.expired,
        ];
        lists.into_iter().flatten()
    }

    fn map<U>(self, mut to: impl FnMut(T) -> U) -> Lists<U> {
        let mut each = |list: Vec<T>| list.into_iter().map(&mut to).collect();
        Lists {
            keys: each(self.keys),
            caps: each(self.caps),
            runs: each(self.runs),
            open: each(self.open),
            expired: each(self.expired),
        }
    }
}

/// What stands under the key of an account whose snapshot is in pieces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PiecesHead {
    /// Version of this shape.
    pub v: u8,
    pub account: AccountId,
    /// Every event of the account up to here is in it, and none after.
    pub position: Position,
    /// Time of the partition's last event then, unix ms.
    pub at_ms: u64,
    /// SHA-256 over the MessagePack of all other fields but the version, as an array.
    pub digest: ByteBuf,
    /// Whether the account exists.
    pub opened: bool,
    /// How many events of the account have been applied.
    pub version: u32,
    /// How many open reservations it has.
    pub open: u64,
    /// Which piece is written anew next time, though it has not changed.
    pub turn: u32,
    pub pieces: Lists<PieceRef>,
    /// What all costs are multiplied by, in millionths, where that was ever set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
}

impl PiecesHead {
    /// Reads a head and checks its digest.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        let what = "head of an account snapshot";
        let (head, unknown): (Self, _) = wire::decode_noting(what, bytes)?;
        whole(what, (head.v, HEAD_VERSION), unknown)?;
        if head.digest_of_rest() != head.digest.as_slice() {
            return Err(Unusable::Digest);
        }
        Ok(head)
    }

    fn digest_of_rest(&self) -> [u8; 32] {
        let Self {
            account,
            position,
            at_ms,
            opened,
            version,
            open,
            turn,
            pieces,
            multiplier_ppm,
            ..
        } = self;
        let rest = (
            account, position, at_ms, opened, version, open, turn, pieces,
        );
        // heads of earlier builds have none, and keep their digest
        let rest = match multiplier_ppm {
            None => wire::encode(&rest),
            Some(ppm) => wire::encode(&(rest, ppm)),
        };
        Sha256::digest(rest).into()
    }
}

/// An entry that stands under an id.
#[derive(Serialize)]
struct Entry<'a, K, V> {
    id: &'a K,
    of: &'a V,
}

/// As it is read.
#[derive(Deserialize)]
pub(super) struct OwnedEntry<K, V> {
    pub(super) id: K,
    pub(super) of: V,
}

/// Cuts one list into pieces. A piece is the MessagePack array of its entries.
struct Cutter {
    done: Vec<Bytes>,
    piece: Vec<u8>,
    entries: u16,
}

/// What an array of up to 65,535 entries begins with, before their number.
const LIST: [u8; 3] = [0xdc, 0, 0];

impl Cutter {
    fn cut<T: Serialize, I: AsRef<[u8]>>(entries: impl Iterator<Item = (I, T)>) -> Vec<Bytes> {
        let mut cutter = Self {
            done: Vec::new(),
            piece: LIST.to_vec(),
            entries: 0,
        };
        for (id, entry) in entries {
            wire::encode_into(&entry, &mut cutter.piece);
            cutter.entries += 1;
            let length = cutter.piece.len();
            let picked = length >= PIECE_BYTES_MIN && is_picked(id.as_ref());
            if picked || length >= PIECE_BYTES_MAX {
                cutter.end_piece();
            }
        }
        if cutter.entries > 0 {
            cutter.end_piece();
        }
        cutter.done
    }

    fn end_piece(&mut self) {
        let mut piece = std::mem::replace(&mut self.piece, LIST.to_vec());
        piece[1..3].copy_from_slice(&self.entries.to_be_bytes());
        self.entries = 0;
        self.done.push(piece.into());
    }
}

/// Whether a piece may end after this id: the same for the same id, always. FNV-1a, and a last step that
/// lets the ends of ids, in which neighbours differ, reach the first bits.
fn is_picked(id: &[u8]) -> bool {
    let hash = id.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15).leading_zeros() >= CUT_ZEROS
}

impl Lists<Bytes> {
    fn cut(state: &Account) -> Self {
        type Open<'a> = Entry<'a, ReservationId, Reservation>;
        type Expired<'a> = Entry<'a, ReservationId, ExpiredReservation>;
        let keys = state.keys().iter().map(|key| (key.key.as_str(), key));
        let caps = state.caps().iter().map(|cap| (cap.spec.cap.as_str(), cap));
        let runs = state.runs().iter();
        let runs = runs.map(|(id, of)| (id.as_str(), Entry::<RunId, Run> { id, of }));
        let open = state.open().iter();
        let open = open.map(|(id, of)| (id.bits().to_be_bytes(), Open { id, of }));
        let expired = state.expired().iter();
        let expired = expired.map(|(id, of)| (id.bits().to_be_bytes(), Expired { id, of }));
        Self {
            keys: Cutter::cut(keys),
            caps: Cutter::cut(caps),
            runs: Cutter::cut(runs),
            open: Cutter::cut(open),
            expired: Cutter::cut(expired),
        }
    }

    /// Gives each piece the number under which it stands already, or a free one, under which it is to
    /// be written.
    fn place(self, standing: Option<&PiecesHead>) -> (Lists<PieceRef>, Vec<(u32, Bytes)>) {
        let named = || standing.iter().flat_map(|head| head.pieces.all());
        let known: HashMap<&[u8], u32> = named()
            .map(|piece| (piece.digest.as_slice(), piece.number))
            .collect();
        let taken: HashSet<u32> = named().map(|piece| piece.number).collect();
        let mut free = (0..u32::MAX).filter(|number| !taken.contains(number));
        let renewed = standing.map(|head| head.turn);
        let (mut index, mut new) = (0, Vec::new());
        let placed = self.map(|piece| {
            let digest = Sha256::digest(&piece).to_vec();
            let stands = known.get(digest.as_slice()).copied();
            let number = stands.filter(|_| renewed != Some(index));
            let number = number.unwrap_or_else(|| {
                let number = free.next().expect("there are fewer pieces than numbers");
                new.push((number, piece));
                number
            });
            index += 1;
            let digest = ByteBuf::from(digest);
            PieceRef { number, digest }
        });
        (placed, new)
    }
}

/// What has to be written for a snapshot to stand: the pieces, and then the value under the account's
/// key.
#[derive(Debug)]
pub struct Written {
    /// Pieces that do not stand yet, each with its number.
    pub pieces: Vec<(u32, Bytes)>,
    /// What then goes under the account's key.
    pub value: Bytes,
    /// The head, where the value is one.
    pub head: Option<PiecesHead>,
    /// Bytes of the whole snapshot, those that stand already included.
    pub size: usize,
}

impl Written {
    /// The snapshot of an account; `standing` is the head that stands in the store, with pieces that
    /// were as it says.
    pub fn of(
        account: &AccountId,
        position: Position,
        at_ms: u64,
        state: &Account,
        standing: Option<&PiecesHead>,
    ) -> Self {
        if state.entries() <= WHOLE_ENTRIES_MAX {
            let value = AccountSnapshot::encode(account, position, at_ms, state);
            if value.len() <= SNAPSHOT_BYTES_MAX {
                return Self::single(value);
            }
        }
        Self::in_pieces(account, (position, at_ms), state, standing, PIECES_MAX)
    }

    fn in_pieces(
        account: &AccountId,
        (position, at_ms): (Position, u64),
        state: &Account,
        standing: Option<&PiecesHead>,
        pieces_max: usize,
    ) -> Self {
        let cut = Lists::cut(state);
        let (count, size) = (cut.all().count(), cut.all().map(Bytes::len).sum());
        if count > pieces_max || cut.all().any(|piece| piece.len() > SNAPSHOT_BYTES_MAX) {
            return Self::single(TooLarge::of(account, position, at_ms, size));
        }
        let turn = standing.map_or(0, |head| head.turn.saturating_add(1));
        let (named, pieces) = cut.place(standing);
        let mut head = PiecesHead {
            v: HEAD_VERSION,
            account: account.clone(),
            position,
            at_ms,
            digest: ByteBuf::new(),
            opened: state.is_open(),
            version: state.version(),
            open: state.open().len() as u64,
            turn: if turn as usize >= count { 0 } else { turn },
            pieces: named,
            multiplier_ppm: state.multiplier_ppm(),
        };
        head.digest = ByteBuf::from(head.digest_of_rest().to_vec());
        Self {
            pieces,
            value: wire::encode(&head).into(),
            head: Some(head),
            size,
        }
    }

    fn single(value: Bytes) -> Self {
        Self {
            pieces: Vec::new(),
            size: value.len(),
            value,
            head: None,
        }
    }
}

#[cfg(test)]
mod tests;
