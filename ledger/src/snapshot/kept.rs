//! Reads snapshots from the bucket and writes them, whole or in pieces.
//!
//! Whoever reads pieces while they are written anew may find one of them gone from under the head that
//! it has read: then there is another head by now, and it reads that one. Under the same head, a piece
//! that is not what it should be is lost.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use seatbelt_schemas::{ids::AccountId, names::Names, position::Position, wire};
use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    AccountSnapshot, SNAPSHOT_VERSION, Unusable, in_place, in_time,
    pieces::{HEAD_VERSION, OwnedEntry, PieceRef, PiecesHead, Written},
};
use crate::{
    account::{Account, Sections},
    store::{Kept, Revision, SnapshotStore, StoreError, WriteError},
};

/// Pieces of one account on their way to or from the store at once.
const PIECES_IN_FLIGHT_MAX: usize = 32;
/// How often pieces are read again that were written anew meanwhile. A head stands for 100 ms at least,
/// and what it names for as long again.
const READ_TRIES_MAX: u32 = 8;

/// What the bucket has of an account.
#[derive(Debug)]
pub struct FoundSnapshot {
    /// What stands under its key.
    pub kept: Kept,
    /// That as a head, where the snapshot is in pieces, all of which are there.
    pub head: Option<PiecesHead>,
    /// The snapshot; `None` where the account never had one.
    pub snapshot: Result<Option<AccountSnapshot>, Unusable>,
}

/// An account without its reservations: what a caller is told of it.
#[derive(Debug)]
pub struct AccountOutline {
    pub account: AccountId,
    /// Every event of the account up to here is in it, and none after.
    pub position: Position,
    /// Time of the partition's last event then, unix ms.
    pub at_ms: u64,
    /// How many open reservations it has.
    pub open: u64,
    /// Its keys, caps and runs.
    pub state: Account,
}

/// The two forms of a snapshot.
enum Form {
    Whole(AccountSnapshot),
    Pieces(PiecesHead),
}

impl Form {
    fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        #[derive(Deserialize)]
        struct Version {
            v: u8,
        }
        let Version { v } = wire::decode("account snapshot", bytes)?;
        match v {
            HEAD_VERSION => PiecesHead::decode(bytes).map(Self::Pieces),
            _ => AccountSnapshot::decode(bytes).map(Self::Whole),
        }
    }

    fn of_kept(
        account: &AccountId,
        kept: &Kept,
        vouched: (Revision, Position),
    ) -> Result<Option<Self>, Unusable> {
        let value = match &kept.value {
            Some(value) => value,
            None if kept.revision == Revision(0) => return Ok(None),
            None => return Err(Unusable::Deleted),
        };
        let form = Self::decode(value)?;
        let (found, position) = match &form {
            Self::Whole(whole) => (&whole.account, whole.position),
            Self::Pieces(head) => (&head.account, head.position),
        };
        in_place(account, found)?;
        in_time(kept.revision, position, vouched)?;
        Ok(Some(form))
    }
}

/// Why pieces are not what their head names.
enum Broken {
    Store(StoreError),
    Piece(u32),
}

impl From<StoreError> for Broken {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl FoundSnapshot {
    /// Reads what there is of an account. `vouched` is the partition's record as far as it matters: its
    /// revision, and the position it vouches for.
    pub async fn read(
        store: &dyn SnapshotStore,
        account: &AccountId,
        vouched: (Revision, Position),
    ) -> Result<Self, StoreError> {
        let key = Names::snapshot_account_key(account);
        let mut kept = store.read(&key).await?;
        for _ in 0..READ_TRIES_MAX {
            let head = match Form::of_kept(account, &kept, vouched) {
                Ok(Some(Form::Pieces(head))) => head,
                Ok(Some(Form::Whole(whole))) => return Ok(Self::whole(kept, Ok(Some(whole)))),
                Ok(None) => return Ok(Self::whole(kept, Ok(None))),
                Err(unusable) => return Ok(Self::whole(kept, Err(unusable))),
            };
            let number = match sections(store, &head).await {
                Ok(sections) => return Ok(Self::in_pieces(kept, head, sections)),
                Err(Broken::Store(error)) => return Err(error),
                Err(Broken::Piece(number)) => number,
            };
            let again = store.read(&key).await?;
            if again == kept {
                return Ok(Self::whole(kept, Err(Unusable::Piece { number })));
            }
            kept = again;
        }
        Err(in_flux(account))
    }

    fn whole(kept: Kept, snapshot: Result<Option<AccountSnapshot>, Unusable>) -> Self {
        Self {
            kept,
            head: None,
            snapshot,
        }
    }

    fn in_pieces(kept: Kept, head: PiecesHead, sections: Sections) -> Self {
        let snapshot = AccountSnapshot {
            v: SNAPSHOT_VERSION,
            account: head.account.clone(),
            position: head.position,
            at_ms: head.at_ms,
            digest: head.digest.clone(),
            state: sections.into(),
        };
        Self {
            kept,
            head: Some(head),
            snapshot: Ok(Some(snapshot)),
        }
    }
}

impl AccountOutline {
    /// Reads what a caller is told of an account; of one in pieces, not those of reservations.
    pub async fn read(
        store: &dyn SnapshotStore,
        account: &AccountId,
    ) -> Result<Option<Self>, Box<dyn std::error::Error + Send + Sync>> {
        let key = Names::snapshot_account_key(account);
        let mut kept = store.read(&key).await?;
        for _ in 0..READ_TRIES_MAX {
            let Some(value) = &kept.value else {
                return Ok(None);
            };
            let head = match Form::decode(value)? {
                Form::Whole(whole) => return Ok(Some(whole.into())),
                Form::Pieces(head) => head,
            };
            let number = match terms(store, &head).await {
                Ok(sections) => return Ok(Some(Self::in_pieces(&head, sections))),
                Err(Broken::Store(error)) => return Err(error.into()),
                Err(Broken::Piece(number)) => number,
            };
            let again = store.read(&key).await?;
            if again == kept {
                return Err(Unusable::Piece { number }.into());
            }
            kept = again;
        }
        Err(in_flux(account).into())
    }

    fn in_pieces(head: &PiecesHead, sections: Sections) -> Self {
        Self {
            account: head.account.clone(),
            position: head.position,
            at_ms: head.at_ms,
            open: head.open,
            state: sections.into(),
        }
    }
}

impl From<AccountSnapshot> for AccountOutline {
    fn from(whole: AccountSnapshot) -> Self {
        Self {
            account: whole.account,
            position: whole.position,
            at_ms: whole.at_ms,
            open: whole.state.open().len() as u64,
            state: whole.state,
        }
    }
}

fn in_flux(account: &AccountId) -> StoreError {
    StoreError {
        action: format!("read the snapshot of account {account}"),
        source: "its pieces were written anew again and again meanwhile".into(),
    }
}

/// Everything that a head names.
async fn sections(store: &dyn SnapshotStore, head: &PiecesHead) -> Result<Sections, Broken> {
    let of = &head.account;
    let open = entries::<OwnedEntry<_, _>>(store, of, &head.pieces.open).await?;
    let expired = entries::<OwnedEntry<_, _>>(store, of, &head.pieces.expired).await?;
    Ok(Sections {
        open: open.into_iter().map(|open| (open.id, open.of)).collect(),
        expired: expired.into_iter().map(|old| (old.id, old.of)).collect(),
        ..terms(store, head).await?
    })
}

/// What a head names besides reservations.
async fn terms(store: &dyn SnapshotStore, head: &PiecesHead) -> Result<Sections, Broken> {
    let of = &head.account;
    let runs = entries::<OwnedEntry<_, _>>(store, of, &head.pieces.runs).await?;
    Ok(Sections {
        opened: head.opened,
        version: head.version,
        multiplier_ppm: head.multiplier_ppm,
        keys: entries(store, of, &head.pieces.keys).await?,
        caps: entries(store, of, &head.pieces.caps).await?,
        runs: runs.into_iter().map(|run| (run.id, run.of)).collect(),
        ..Sections::default()
    })
}

/// The entries of these pieces, in order.
async fn entries<T: DeserializeOwned + Send>(
    store: &dyn SnapshotStore,
    account: &AccountId,
    pieces: &[PieceRef],
) -> Result<Vec<T>, Broken> {
    let read: Vec<Vec<T>> = stream::iter(0..pieces.len())
        .map(|at| read_piece(store, account, &pieces[at]))
        .buffered(PIECES_IN_FLIGHT_MAX)
        .try_collect()
        .await?;
    Ok(read.into_iter().flatten().collect())
}

async fn read_piece<T: DeserializeOwned>(
    store: &dyn SnapshotStore,
    account: &AccountId,
    piece: &PieceRef,
) -> Result<Vec<T>, Broken> {
    let key = Names::snapshot_piece_key(account, piece.number);
    let value = store.read(&key).await?.value;
    let value = value.filter(|value| Sha256::digest(value)[..] == piece.digest[..]);
    let value = value.ok_or(Broken::Piece(piece.number))?;
    let entries = wire::decode_whole("piece of an account snapshot", &value);
    entries.map_err(|_| Broken::Piece(piece.number))
}

impl Written {
    /// Writes the snapshot where `expected` stands under the account's key, and gives what stands there
    /// then.
    pub async fn write(
        &self,
        store: &dyn SnapshotStore,
        account: &AccountId,
        expected: Revision,
    ) -> Result<Revision, WriteError> {
        let key = Names::snapshot_account_key(account);
        if !self.pieces.is_empty() {
            // what another head names must not be written over
            if store.read(&key).await?.revision != expected {
                return Err(WriteError::Moved);
            }
            stream::iter(0..self.pieces.len())
                .map(|at| write_piece(store, account, &self.pieces[at]))
                .buffer_unordered(PIECES_IN_FLIGHT_MAX)
                .try_for_each(async |()| Ok(()))
                .await?;
        }
        store.write(&key, expected, self.value.clone()).await
    }
}

async fn write_piece(
    store: &dyn SnapshotStore,
    account: &AccountId,
    (number, piece): &(u32, Bytes),
) -> Result<(), WriteError> {
    let key = Names::snapshot_piece_key(account, *number);
    let revision = store.read(&key).await?.revision;
    store.write(&key, revision, piece.clone()).await.map(drop)
}
