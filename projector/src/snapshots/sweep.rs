//! Looks through all snapshots of a partition for those that were lost, and puts them right, used or not.
//!
//! A snapshot may go, or go back to what it was once, while its account rests: by a purge, or because a
//! server that was killed has of a bucket that it need not sync what it had before. The account's next event would
//! tell; until then `/v1/key` would show too little. So each one is held to what the directory and the
//! journal know, at the start, whenever the store was in trouble, and again and again.
//!
//! It runs beside the projection, some accounts or some of the journal at a time, and takes a small share
//! of the time: what it costs to look is waited for many times over before it is done again.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use seatbelt_ledger::{
    account::Account,
    directory::{Entry, LastPositions},
    journal::Journal,
    snapshot::{AccountSnapshot, FoundSnapshot, Unusable, pieces},
};
use seatbelt_schemas::{chain::in_one_line, ids::AccountId, names::Names, position::Position};
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::{Folded, Listed, NotKept, SNAPSHOTS_IN_FLIGHT_MAX, Snapshots, fold::Fold};
use crate::{follow::Stop, store::Revision};

/// Accounts looked at in one step.
const LOOKED_AT_MAX: usize = 512;
/// Accounts folded again at once; the next sweep finds the others.
const FOLDED_MAX: usize = 10_000;
/// How long the journal is read for them in one step.
const FOLD_SLICE: Duration = Duration::from_millis(50);
/// A sweep is made again after so many times what the last one took,
const REST_TIMES: u32 = 50;
/// and not sooner than this,
const REST_MIN: Duration = Duration::from_secs(5);
/// nor later than this.
const REST_MAX: Duration = Duration::from_secs(15 * 60);

/// How far a sweep has come.
pub(super) enum Sweep {
    /// None is made before then.
    Rests(Instant),
    /// Snapshots are looked at.
    Looks(Look),
    /// Those that are lost are folded from the journal.
    Folds(Fold),
}

/// A sweep while it looks.
pub(super) struct Look {
    begun: Instant,
    /// Accounts that have something in the bucket, with their last events.
    left: Vec<(AccountId, Position)>,
    lost: BTreeSet<Entry>,
}

/// What was seen of one account.
struct Seen {
    account: AccountId,
    revision: Revision,
    head: Option<pieces::PiecesHead>,
    /// Why it is not the account's snapshot.
    lost: Option<Unusable>,
}

impl Default for Sweep {
    fn default() -> Self {
        Self::Rests(Instant::now())
    }
}

impl Sweep {
    /// Whether there is something to do now.
    pub(super) fn is_due(&self) -> bool {
        match self {
            Self::Rests(until) => *until <= Instant::now(),
            Self::Looks(_) | Self::Folds(_) => true,
        }
    }

    fn rested(took: Duration) -> Self {
        let rest = took.saturating_mul(REST_TIMES).clamp(REST_MIN, REST_MAX);
        Self::Rests(Instant::now() + rest)
    }
}

impl<J: Journal> Snapshots<J> {
    /// Goes on with the sweep. A store that does not answer ends it, and so does a journal that is damaged
    /// long before its end, but neither ends the projection.
    pub(super) async fn sweep(&mut self) -> Result<(), NotKept> {
        if !self.sweep.is_due() {
            return Ok(());
        }
        // an error leaves this behind
        let sweep = std::mem::replace(&mut self.sweep, Sweep::rested(Duration::ZERO));
        let swept = match sweep {
            Sweep::Rests(_) => self.begin_sweep().await,
            Sweep::Looks(look) => self.look(look).await,
            Sweep::Folds(fold) => self.fold_lost(fold).await,
        };
        match swept {
            Ok(next) => {
                self.sweep = next;
                Ok(())
            }
            Err(NotKept::Store(error)) => {
                debug!(
                    error = in_one_line(&error),
                    "snapshots are looked through later"
                );
                Ok(())
            }
            Err(NotKept::Stop(Stop::Halted(halt))) => {
                let partition = self.tail.partition();
                error!(%partition, error = in_one_line(&halt), "lost snapshots cannot be folded again from the journal");
                self.sweep = Sweep::Rests(Instant::now() + REST_MAX);
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    /// Lists the accounts there must be, and which of them have anything in the bucket.
    async fn begin_sweep(&mut self) -> Result<Sweep, NotKept> {
        let begun = Instant::now();
        let last = self.all_last().await?;
        let mut lost: BTreeSet<Entry> = last.keys().copied().collect();
        let mut left = Vec::new();
        let mut take = |account: AccountId| {
            let entry = Entry::of(&account);
            if lost.remove(&entry) {
                left.push((account, last[&entry]));
            }
        };
        self.store.accounts().await?.into_iter().for_each(&mut take);
        // what is in memory need not be folded
        let mut in_memory: Vec<AccountId> = self.accounts.keys().cloned().collect();
        in_memory.sort();
        in_memory.into_iter().for_each(take);
        self.look(Look { begun, left, lost }).await
    }

    /// The last event of every account up to the tail.
    async fn all_last(&self) -> Result<LastPositions, NotKept> {
        let Listed::Read {
            directory, newer, ..
        } = &self.listed
        else {
            unreachable!("the directory is read before snapshots are looked through");
        };
        let mut last = directory.all(&*self.store).await?;
        last.extend(newer);
        Ok(last)
    }

    /// Looks at the next accounts.
    async fn look(&mut self, mut look: Look) -> Result<Sweep, NotKept> {
        let rest = look.left.len().saturating_sub(LOOKED_AT_MAX);
        let batch = look.left.split_off(rest);
        let seen: Vec<Seen> = stream::iter(batch)
            // what is to be written anyway is not lost
            .filter(|(account, _)| std::future::ready(!self.dirty.contains(account)))
            .map(|(account, last)| self.look_at(account, last))
            .buffered(SNAPSHOTS_IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        // whatever stands there by now is not a successor's, if the record is still this projector's
        self.check_seat().await?;
        for seen in seen {
            self.judge(seen, &mut look.lost);
        }
        if !look.left.is_empty() {
            return Ok(Sweep::Looks(look));
        }
        if look.lost.is_empty() {
            return Ok(Sweep::rested(look.begun.elapsed()));
        }
        let (partition, accounts) = (self.tail.partition(), look.lost.len());
        error!(%partition, accounts, "snapshots lost of accounts at rest: folding them again from the journal");
        let wanted = look.lost.into_iter().take(FOLDED_MAX).collect();
        Ok(Sweep::Folds(Fold::of(partition, wanted)))
    }

    async fn look_at(&self, account: AccountId, last: Position) -> Result<Seen, NotKept> {
        let vouched = (self.revision, self.recorded_position);
        let FoundSnapshot {
            kept,
            head,
            snapshot,
        } = FoundSnapshot::read(&*self.store, &account, vouched).await?;
        let tail = self.tail.head.position;
        let held = snapshot.and_then(|found| AccountSnapshot::held_to(found, Some(last), tail));
        Ok(Seen {
            account,
            revision: kept.revision,
            head,
            lost: held.err(),
        })
    }

    /// Says what becomes of what was seen: it is good, or written again from memory, or `lost`.
    fn judge(&mut self, seen: Seen, lost: &mut BTreeSet<Entry>) {
        let (partition, position) = (self.tail.partition(), self.tail.head.position);
        let account = seen.account;
        let Some(folded) = self.accounts.get_mut(&account) else {
            if let Some(unusable) = seen.lost {
                debug!(%partition, %account, reason = %unusable, "snapshot lost");
                lost.insert(Entry::of(&account));
            }
            return;
        };
        let lost_a_piece = matches!(seen.lost, Some(Unusable::Piece { .. }));
        let is_known = folded.revision == seen.revision && !lost_a_piece;
        // one that was loaded ahead of the projection cannot be written before that has come so far
        if is_known || folded.loaded_at > position {
            return;
        }
        (folded.revision, folded.head) = (seen.revision, seen.head);
        if let Some(unusable) = seen.lost {
            let reason = unusable.to_string();
            error!(%partition, %account, %position, reason, "snapshot lost: writing the account again");
            self.dirty.insert(account);
        }
    }

    /// Reads on in the journal; at its end, what was folded is there to be written.
    async fn fold_lost(&mut self, mut fold: Fold) -> Result<Sweep, NotKept> {
        self.fold_on(&mut fold, Some(FOLD_SLICE)).await?;
        if fold.reached() < self.tail.sequence {
            return Ok(Sweep::Folds(fold));
        }
        // what had an event meanwhile was loaded, and so folded, by then
        let folded = fold.into_states().into_iter();
        let folded = folded.filter(|(account, _)| !self.accounts.contains_key(account));
        let folded: Vec<(AccountId, Account)> = folded.collect();
        let found: Vec<_> = stream::iter(folded)
            .map(async |(account, state)| {
                let key = Names::snapshot_account_key(&account);
                let kept = self.store.read(&key).await?;
                Ok::<_, NotKept>((account, state, kept.revision))
            })
            .buffered(SNAPSHOTS_IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        self.check_seat().await?;
        let (partition, accounts) = (self.tail.partition(), found.len());
        for (account, state, revision) in found {
            self.note_open(&account, &state);
            self.dirty.insert(account.clone());
            let folded = Folded {
                state,
                loaded_at: self.tail.head.position,
                revision,
                head: None,
            };
            self.accounts.insert(account, folded);
        }
        info!(%partition, accounts, "snapshots are written again");
        Ok(Sweep::rested(Duration::ZERO))
    }

    /// Whether the record is still what this projector wrote last.
    pub(super) async fn check_seat(&self) -> Result<(), NotKept> {
        let key = Names::snapshot_partition_key(self.tail.partition());
        if self.store.read(&key).await?.revision != self.revision {
            return Err(NotKept::Stop(Stop::Fenced));
        }
        Ok(())
    }
}
