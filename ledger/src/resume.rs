//! Takes a partition up where its snapshots leave off: the recent commands from the journal before the
//! partition record, the state from the journal after it. Or all of it from the journal's beginning.
//!
//! Pure: whoever drives it reads the journal and the snapshots. What does not fit together is found
//! here and never mended here: [`Disagreement`] means that the journal alone has to do.

use std::collections::HashMap;

use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    event::EventBody,
    ids::AccountId,
    position::{Partition, Position},
};
use thiserror::Error;

use crate::{
    account::Account,
    directory::{self, Entry, LastPositions},
    journal::{Sequence, Stored},
    outcomes::Outcomes,
    partition::{ChainError, Head, PartitionState},
    snapshot::{AccountSnapshot, PartitionRecord, agrees},
};

/// A partition as a writer takes it over.
#[derive(Debug)]
pub struct Resumed {
    /// Its state; accounts that are not in it may be in snapshots if it is paged.
    pub state: PartitionState,
    /// What became of its commands.
    pub outcomes: Outcomes,
    /// The last commit that is in both.
    pub tail: Sequence,
    /// Accounts that are not in memory and have open reservations.
    pub open: Vec<AccountId>,
    /// Whether there are others, which the record does not name: see [`crate::recovery::open`].
    pub more_open: bool,
}

impl Resumed {
    /// A partition whose journal is empty; the `hot_max` newest commands will stay hot.
    pub fn empty(partition: Partition, hot_max: usize) -> Self {
        Self {
            state: PartitionState::new(partition),
            outcomes: Outcomes::after(None, hot_max),
            tail: Sequence(0),
            open: Vec::new(),
            more_open: false,
        }
    }
}

/// Snapshots and journal do not tell the same.
#[derive(Debug, Error)]
pub enum Disagreement {
    /// The journal does not have the commit that the partition record ends with.
    #[error("the partition record ends with another commit than the journal has at sequence {at}")]
    Anchor { at: Sequence },
    /// An account is not what a decision says it met.
    #[error("account {account} is not what the event at position {at} met")]
    Account { account: AccountId, at: Position },
}

/// Why a commit cannot be taken.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// The journal is damaged.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The snapshots are not to be used.
    #[error(transparent)]
    Disagrees(#[from] Disagreement),
}

/// A partition being taken up.
#[derive(Debug)]
pub struct Resume {
    resumed: Resumed,
    /// Where the partition record ends.
    base: Sequence,
    /// Hash of the last commit read before the base.
    link: Option<ChainHash>,
    /// Events of an account up to here were in its snapshot.
    moved_in: HashMap<AccountId, Position>,
    /// The last positions, up to the base, of the accounts in the commits read before it.
    last: LastPositions,
    /// The release of the last writer that was met.
    written_by: Option<String>,
}

impl Resume {
    /// From the journal's beginning, with no snapshots; the `hot_max` newest commands stay hot.
    pub fn from_start(partition: Partition, hot_max: usize) -> Self {
        Self {
            resumed: Resumed::empty(partition, hot_max),
            base: Sequence(0),
            link: None,
            moved_in: HashMap::new(),
            last: LastPositions::new(),
            written_by: None,
        }
    }

    /// From what a partition record vouches for.
    pub fn from_record(record: PartitionRecord, hot_max: usize) -> Self {
        let mark = record.history.older;
        let (tail, at_ms) = (Sequence(mark.sequence), record.head.at_ms);
        let resumed = Resumed {
            state: PartitionState::paged(record.head),
            outcomes: Outcomes::resumed(mark.newest, tail, at_ms, hot_max),
            tail,
            more_open: record.open.is_none(),
            open: record.open.unwrap_or_default(),
        };
        Self {
            resumed,
            base: Sequence(record.sequence),
            link: None,
            moved_in: HashMap::new(),
            last: LastPositions::new(),
            written_by: None,
        }
    }

    /// The last event of an account up to the base, where it is among the commits read before it.
    pub fn last(&self, account: &AccountId) -> Option<Position> {
        self.last.get(&Entry::of(account)).copied()
    }

    /// How many accounts are in memory, beside the ledger's own.
    pub fn accounts(&self) -> usize {
        let accounts = self.resumed.state.accounts();
        accounts.filter(|(account, _)| !account.is_system()).count()
    }

    /// All of them.
    pub fn take_last(&mut self) -> LastPositions {
        std::mem::take(&mut self.last)
    }

    /// The last commit taken; the one after it comes next.
    pub fn tail(&self) -> Sequence {
        self.resumed.tail
    }

    /// The release of the writer that the last commit taken is from, where that was met.
    pub fn written_by(&self) -> Option<&str> {
        self.written_by.as_deref()
    }

    /// Reads the next commit and checks that it continues the journal.
    pub fn check(&self, stored: &Stored) -> Result<Commit, ResumeError> {
        if stored.sequence > self.base {
            return Ok(self.resumed.state.check(&stored.payload)?);
        }
        let (partition, after) = (self.resumed.state.partition(), Position(0));
        let commit = Commit::decode(&stored.payload).map_err(|source| ChainError::Commit {
            partition,
            after,
            source,
        })?;
        if self.link.is_some_and(|link| link != commit.prev) {
            let at = commit.first_position;
            return Err(ChainError::Broken { partition, at }.into());
        }
        let anchored = ChainHash::of(&stored.payload) == self.resumed.state.chain();
        if stored.sequence == self.base && !anchored {
            return Err(Disagreement::Anchor { at: self.base }.into());
        }
        Ok(commit)
    }

    /// Where the journal stands after the last commit taken, or at the record where that is later.
    pub fn head(&self) -> &Head {
        self.resumed.state.head()
    }

    /// Whether the record knows a message for one that is no commit.
    pub fn skips(&self, at: Sequence) -> bool {
        at <= self.base && self.head().skipped.contains(&at.0)
    }

    /// Steps over messages that are no commits, up to this one.
    pub fn step_over(&mut self, last: Sequence) {
        self.resumed.tail = last;
    }

    /// Accounts that have to move in before a commit is taken.
    pub fn missing(&self, stored: &Stored, commit: &Commit) -> Vec<AccountId> {
        if stored.sequence <= self.base {
            return Vec::new();
        }
        let accounts = commit.events.iter().map(|stored| &stored.event.account);
        let state = &self.resumed.state;
        let mut missing: Vec<_> = accounts
            .filter(|account| !account.is_system() && !state.is_resident(account))
            .cloned()
            .collect();
        missing.sort();
        missing.dedup();
        missing
    }

    /// Puts an account into memory as its snapshot has it; `None` where it has none.
    pub fn move_in(&mut self, account: AccountId, snapshot: Option<AccountSnapshot>) {
        let (state, position) = match snapshot {
            Some(snapshot) => (snapshot.state, snapshot.position),
            None => (Account::default(), Position(0)),
        };
        self.moved_in.insert(account.clone(), position);
        self.resumed.state.move_in(account, state);
    }

    /// Takes a commit that was checked, with every account that it needs in memory.
    pub fn take(&mut self, stored: &Stored, commit: &Commit) -> Result<(), Disagreement> {
        let hash = ChainHash::of(&stored.payload);
        for event in commit.events.iter().map(|stored| &stored.event) {
            self.resumed.outcomes.apply(event);
            if let EventBody::WriterStarted(started) = &event.body {
                self.written_by = Some(started.version.clone());
            }
            if stored.sequence <= self.base {
                directory::note(&mut self.last, event);
                continue;
            }
            let state = &mut self.resumed.state;
            let seen = self.moved_in.get(&event.account);
            if seen.is_some_and(|seen| event.position <= *seen) {
                state.pass(event);
                continue;
            }
            if seen.is_some()
                && let Some(account) = state.account(&event.account)
                && !agrees(account, event)
            {
                return Err(Disagreement::Account {
                    account: event.account.clone(),
                    at: event.position,
                });
            }
            state.apply(event);
        }
        if stored.sequence > self.base {
            self.resumed.state.committed(commit.epoch, hash);
        }
        self.link = Some(hash);
        self.resumed.tail = stored.sequence;
        Ok(())
    }

    /// All is taken.
    pub fn finish(mut self) -> Resumed {
        let state = &self.resumed.state;
        self.resumed
            .open
            .retain(|account| !state.is_resident(account));
        self.resumed
    }
}
