//! The state of one partition: all its accounts, its prices, and where the journal stands.
//!
//! State is the fold of the journal and nothing else. [`PartitionState::accept`] checks each commit
//! against the chain before any of it is applied.

use std::collections::HashMap;

use bytes::Bytes;
use seatbelt_schemas::{
    commit::{ChainHash, Commit, CommitError, Header, UnreadCommit},
    event::{Event, EventBody, WriterStarted},
    ids::{AccountId, LedgerId, ReservationId},
    position::{Epoch, Partition, Position},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{account::Account, hashing, prices::PriceBook};

/// Where a partition's journal stands after its last accepted commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub partition: Partition,
    /// The ledger, once its genesis has been read.
    pub ledger: Option<LedgerId>,
    /// The last writer's reign.
    pub epoch: Epoch,
    /// The last position.
    pub position: Position,
    /// Time of the last event, unix ms.
    pub at_ms: u64,
    /// Hash of the last commit.
    #[serde(with = "chain_bytes")]
    pub chain: ChainHash,
    pub prices: PriceBook,
    /// Sequences of messages on the journal that are no commits, and were skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<u64>,
}

mod chain_bytes {
    use seatbelt_schemas::commit::ChainHash;
    use serde::{Deserializer, Serializer, de::Error};
    use serde_bytes::ByteBuf;

    pub(super) fn serialize<S: Serializer>(hash: &ChainHash, to: S) -> Result<S::Ok, S::Error> {
        serde_bytes::serialize(hash.0.as_slice(), to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ChainHash, D::Error> {
        let bytes: ByteBuf = serde_bytes::deserialize(from)?;
        <[u8; 32]>::try_from(bytes.as_slice())
            .map(ChainHash)
            .map_err(|_| D::Error::custom("a hash has 32 bytes"))
    }
}

/// Accounts in an order that is the same in every process, so that a simulated run can be done again. Ids
/// come from operators: nobody else could make many of them fall together.
type Accounts = HashMap<AccountId, Account, hashing::Fixed>;

/// The state of one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionState {
    head: Head,
    accounts: Accounts,
    /// Whether there may be accounts that are not in memory.
    #[serde(default)]
    paged: bool,
}

/// A commit that does not continue the journal. Nothing of it was applied.
#[derive(Debug, Error)]
pub enum ChainError {
    /// Its bytes are not a commit.
    #[error("partition {partition}: what follows position {after} cannot be read")]
    Commit {
        partition: Partition,
        /// The last good position.
        after: Position,
        /// What is wrong with it.
        #[source]
        source: CommitError,
    },
    /// It is another partition's.
    #[error(
        "partition {partition}: the commit after position {after} belongs to partition {found}"
    )]
    Partition {
        partition: Partition,
        /// The last good position.
        after: Position,
        /// What the commit says.
        found: Partition,
    },
    /// Events are missing or repeated.
    #[error(
        "partition {partition}: position {expected} belongs next, the commit begins at {found}"
    )]
    Gap {
        partition: Partition,
        /// The position that belongs next.
        expected: Position,
        /// Where the commit begins.
        found: Position,
    },
    /// `prev` is not the hash of the commit before.
    #[error(
        "partition {partition}: the commit at position {at} does not chain to the one before it"
    )]
    Broken {
        partition: Partition,
        /// Where the commit begins.
        at: Position,
    },
    /// It has messages skipped that are not those before it.
    #[error(
        "partition {partition}: the writer that starts at position {at} names messages to skip that are not those before it"
    )]
    Skips {
        partition: Partition,
        /// Where the commit begins.
        at: Position,
    },
    /// Time or reign go backwards.
    #[error("partition {partition}: {what} goes backwards at position {at}")]
    Backwards {
        partition: Partition,
        /// Where the commit begins.
        at: Position,
        /// `time` or `epoch`.
        what: &'static str,
    },
}

impl Head {
    /// Before the first commit.
    pub fn start(partition: Partition) -> Self {
        Self {
            partition,
            ledger: None,
            epoch: Epoch(0),
            position: Position(0),
            at_ms: 0,
            chain: ChainHash::default(),
            prices: PriceBook::default(),
            skipped: Vec::new(),
        }
    }

    /// Notes what a writer says when it starts.
    pub fn started(&mut self, started: &WriterStarted) {
        self.epoch = started.epoch;
        let messages = started.skipped.iter().flat_map(|word| &word.messages);
        self.skipped.extend(messages.map(|stray| stray.sequence));
    }

    /// Reads a stored commit and checks that it continues the journal.
    pub fn check(&self, payload: &Bytes) -> Result<Commit, ChainError> {
        let commit = Commit::read(payload).map_err(|source| self.unreadable(source))?;
        let header = commit.header();
        self.continued_by(&header)?;
        self.in_time(&header, commit.events[0].event.at_ms)?;
        Ok(commit)
    }

    /// Reads a stored commit's header and checks that it continues the journal. The times of its
    /// events are for [`Head::in_time`].
    pub fn check_header<'a>(&self, payload: &'a [u8]) -> Result<UnreadCommit<'a>, ChainError> {
        let unread = UnreadCommit::of(payload).map_err(|source| self.unreadable(source))?;
        self.continued_by(unread.header()).map(|()| unread)
    }

    /// Checks that an event of the commit with this header is not before the journal's end.
    pub fn in_time(&self, header: &Header, at_ms: u64) -> Result<(), ChainError> {
        if at_ms < self.at_ms {
            return Err(self.backwards(header, "time"));
        }
        Ok(())
    }

    /// What is wrong where the next commit cannot be read.
    pub fn unreadable(&self, source: CommitError) -> ChainError {
        ChainError::Commit {
            partition: self.partition,
            after: self.position,
            source,
        }
    }

    fn backwards(&self, header: &Header, what: &'static str) -> ChainError {
        ChainError::Backwards {
            partition: self.partition,
            at: header.first_position,
            what,
        }
    }

    fn continued_by(&self, header: &Header) -> Result<(), ChainError> {
        let (partition, after) = (self.partition, self.position);
        if header.partition != partition {
            return Err(ChainError::Partition {
                partition,
                after,
                found: header.partition,
            });
        }
        let (expected, found) = (after.next(), header.first_position);
        if found != expected {
            return Err(ChainError::Gap {
                partition,
                expected,
                found,
            });
        }
        if header.prev != self.chain {
            return Err(ChainError::Broken {
                partition,
                at: found,
            });
        }
        if header.epoch < self.epoch {
            return Err(self.backwards(header, "epoch"));
        }
        Ok(())
    }
}

impl PartitionState {
    /// The state before the first commit.
    pub fn new(partition: Partition) -> Self {
        Self {
            head: Head::start(partition),
            accounts: Accounts::default(),
            paged: false,
        }
    }

    /// The state at `head` with no account in memory yet: each moves in before it is first used.
    pub fn paged(head: Head) -> Self {
        Self {
            head,
            accounts: Accounts::default(),
            paged: true,
        }
    }

    /// Whether all that is known of an account is in memory.
    pub fn is_resident(&self, account: &AccountId) -> bool {
        !self.paged || self.accounts.contains_key(account)
    }

    /// Puts an account into memory as it stands at the head. Asserts that it was not there: what is
    /// in memory is never older.
    pub fn move_in(&mut self, account: AccountId, state: Account) {
        let before = self.accounts.insert(account, state);
        assert!(before.is_none(), "an account moves in once");
    }

    /// How many accounts are in memory.
    pub fn residents(&self) -> usize {
        self.accounts.len()
    }

    /// Lets accounts be out of memory from now on; so far all that exist are in it.
    pub fn page(&mut self) {
        self.paged = true;
    }

    /// Takes an account out of memory. Only for one whose snapshot is current.
    pub fn move_out(&mut self, account: &AccountId) {
        assert!(self.paged, "what moves out can move in again");
        self.accounts.remove(account);
    }

    /// Lets go of an account that does not exist.
    pub fn forget_unopened(&mut self, account: &AccountId) {
        if self.paged
            && self
                .account(account)
                .is_some_and(|known| known.version() == 0)
        {
            self.accounts.remove(account);
        }
    }

    /// Where the journal stands.
    pub fn head(&self) -> &Head {
        &self.head
    }

    pub fn partition(&self) -> Partition {
        self.head.partition
    }

    /// The last position.
    pub fn position(&self) -> Position {
        self.head.position
    }

    /// Hash of the last commit.
    pub fn chain(&self) -> ChainHash {
        self.head.chain
    }

    /// Time of the last event, unix ms.
    pub fn at_ms(&self) -> u64 {
        self.head.at_ms
    }

    /// The last writer's reign.
    pub fn epoch(&self) -> Epoch {
        self.head.epoch
    }

    /// The ledger's id, once genesis has been read.
    pub fn ledger_id(&self) -> Option<&LedgerId> {
        self.head.ledger.as_ref()
    }

    pub fn prices(&self) -> &PriceBook {
        &self.head.prices
    }

    pub fn account(&self, account: &AccountId) -> Option<&Account> {
        self.accounts.get(account)
    }

    /// What an account would be without one of its open requests, and the prices in force; it stays as it is.
    pub fn without<T>(
        &mut self,
        account: &AccountId,
        reservation: ReservationId,
        look: impl FnOnce(&Account, &PriceBook) -> T,
    ) -> Option<T> {
        let Self { head, accounts, .. } = self;
        let account = accounts.get_mut(account)?;
        account.without(reservation, |account| look(account, &head.prices))
    }

    /// All accounts, in no order.
    pub fn accounts(&self) -> impl Iterator<Item = (&AccountId, &Account)> {
        self.accounts.iter()
    }

    /// Checks that a stored commit continues the journal, and applies it whole.
    pub fn accept(&mut self, payload: &Bytes) -> Result<Commit, ChainError> {
        let commit = self.check(payload)?;
        for stored in &commit.events {
            self.apply(&stored.event);
        }
        self.committed(commit.epoch, ChainHash::of(payload));
        Ok(commit)
    }

    /// Reads a stored commit and checks that it continues the journal; applies nothing.
    pub fn check(&self, payload: &Bytes) -> Result<Commit, ChainError> {
        self.head.check(payload)
    }

    /// Steps over one event that its account has in it already.
    pub fn pass(&mut self, event: &Event) {
        self.head.position = event.position;
        self.head.at_ms = self.head.at_ms.max(event.at_ms);
    }

    /// Applies one event that is known to come next; gives back its account as it stands then.
    pub fn apply(&mut self, event: &Event) -> Option<&Account> {
        self.pass(event);
        match &event.body {
            EventBody::Genesis(data) => self.head.ledger = Some(data.ledger.clone()),
            EventBody::WriterStarted(data) => self.head.started(data),
            EventBody::PriceSet(price) => self.head.prices.set(price.clone()),
            EventBody::Unknown { .. }
                if self
                    .account(&event.account)
                    .is_none_or(|known| known.version() == 0) => {}
            _ => {
                let account = self.accounts.entry(event.account.clone()).or_default();
                account.apply(event);
                return Some(account);
            }
        }
        None
    }

    /// Notes that everything applied so far ends with a commit of this hash.
    pub fn committed(&mut self, epoch: Epoch, hash: ChainHash) {
        self.head.epoch = epoch;
        self.head.chain = hash;
    }
}
