//! Where a projection stands on its partition's journal, and the check of each next commit: decodes,
//! right partition, right place, chained to the one before.
//!
//! A commit that fails the check halts the projection at that place. Nothing is skipped and nothing
//! is repaired here.

use bytes::Bytes;
use seatbelt_ledger::{
    journal::{Journal, ReadError, Sequence, Stored, strays},
    partition::{ChainError, Head},
};
use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    event::{Event, EventBody, StoredEvent},
    position::{Partition, Position},
};
use thiserror::Error;
use tracing::warn;

/// The journal cannot be followed past this place: the projections of this partition stop until an
/// operator acts. `seatbelt audit verify` says more.
#[derive(Debug, Error)]
pub enum Halt {
    /// A commit that must be there is not.
    #[error(
        "partition {partition} halted: the journal has no readable commit at sequence {at} although it goes on: \
         what the server keeps of it is damaged; restore it, or have the server cut it there as docs/recovery.md \
         says and then go on with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    Gap { partition: Partition, at: Sequence },
    /// The journal is shorter than what was already projected from it.
    #[error(
        "partition {partition} halted: the journal ends at sequence {end}, yet it was projected up to \
         sequence {at}: it was cut or replaced"
    )]
    Cut {
        partition: Partition,
        /// Where the journal ends.
        end: Sequence,
        /// Where the projection stands.
        at: Sequence,
    },
    /// The feed holds an event that the journal does not.
    #[error(
        "partition {partition} halted: the feed holds event {position}, which the journal does not hold \
         (read up to sequence {at}): it was cut or replaced; restore it, or go on with it as it is with \
         `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    OnFeed {
        partition: Partition,
        /// How far the journal was read.
        at: Sequence,
        /// Position of the event.
        position: Position,
    },
    /// The journal does not begin with genesis.
    #[error(
        "partition {partition} halted: the journal does not begin with genesis at sequence {at}"
    )]
    NoGenesis { partition: Partition, at: Sequence },
    /// A commit does not continue the journal.
    #[error("partition {partition} halted: the journal cannot be followed past sequence {at}")]
    Chain {
        partition: Partition,
        /// Sequence of the commit.
        at: Sequence,
        /// What does not fit.
        #[source]
        source: ChainError,
    },
}

/// Why a message is not stepped over.
#[derive(Debug)]
pub(crate) enum NotStepped {
    /// No commit says so.
    Halt(Halt),
    /// What follows it cannot be read now.
    Unread(ReadError),
}

impl From<ReadError> for NotStepped {
    fn from(error: ReadError) -> Self {
        Self::Unread(error)
    }
}

impl Halt {
    /// The partition that stands still.
    pub fn partition(&self) -> Partition {
        match self {
            Self::Gap { partition, .. }
            | Self::Cut { partition, .. }
            | Self::OnFeed { partition, .. }
            | Self::NoGenesis { partition, .. }
            | Self::Chain { partition, .. } => *partition,
        }
    }

    /// The sequence that the journal cannot be followed past.
    pub fn sequence(&self) -> Sequence {
        match self {
            Self::Gap { at, .. }
            | Self::Cut { at, .. }
            | Self::OnFeed { at, .. }
            | Self::NoGenesis { at, .. }
            | Self::Chain { at, .. } => *at,
        }
    }
}

/// The place after which a partition's journal is read on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// Sequence of the last commit taken.
    pub sequence: Sequence,
    /// Where the journal stood after it.
    pub head: Head,
}

impl Tail {
    /// The place before the first commit.
    pub fn start(partition: Partition) -> Self {
        Self {
            sequence: Sequence(0),
            head: Head::start(partition),
        }
    }

    pub fn partition(&self) -> Partition {
        self.head.partition
    }

    /// Checks the next commit and steps over it. On an error nothing has moved.
    pub fn accept(&mut self, stored: &Stored) -> Result<Commit, Halt> {
        let commit = self.check(stored)?;
        self.step(&commit, &stored.payload);
        Ok(commit)
    }

    /// Reads the next commit and checks that it continues the journal; moves nothing.
    pub fn check(&self, stored: &Stored) -> Result<Commit, Halt> {
        let (partition, at) = (self.partition(), self.sequence.next());
        if stored.sequence != at {
            return Err(Halt::Gap { partition, at });
        }
        let checked = self.head.check(&stored.payload);
        let commit = checked.map_err(|source| Halt::Chain {
            partition,
            at,
            source,
        })?;
        let opens = |first: &StoredEvent| matches!(first.event.body, EventBody::Genesis(_));
        if self.head.ledger.is_none() && !commit.events.first().is_some_and(opens) {
            return Err(Halt::NoGenesis { partition, at });
        }
        Ok(commit)
    }

    /// Steps over a commit that was checked here.
    pub fn step(&mut self, commit: &Commit, payload: &Bytes) {
        self.sequence = self.sequence.next();
        for stored in &commit.events {
            self.note(&stored.event);
        }
        self.head.epoch = commit.epoch;
        self.head.chain = ChainHash::of(payload);
    }

    /// What a halt is worth: steps over messages that are no commits, where the commit after them says so.
    pub(crate) async fn step_over<J: Journal>(
        &mut self,
        journal: &J,
        stored: &Stored,
        halt: Halt,
    ) -> Result<(), NotStepped> {
        if !matches!(halt, Halt::Chain { .. }) {
            return Err(NotStepped::Halt(halt));
        }
        let last = strays::step_over(journal, &self.head, stored).await?;
        self.sequence = last.ok_or(NotStepped::Halt(halt))?;
        let (partition, last) = (self.partition(), self.sequence);
        warn!(%partition, first = %stored.sequence, %last, "messages that are no commits are stepped over, as an operator said");
        Ok(())
    }

    fn note(&mut self, event: &Event) {
        self.head.position = event.position;
        self.head.at_ms = event.at_ms;
        match &event.body {
            EventBody::Genesis(data) => self.head.ledger = Some(data.ledger.clone()),
            EventBody::PriceSet(price) => self.head.prices.set(price.clone()),
            EventBody::WriterStarted(data) => self.head.started(data),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::position::{Epoch, Position};

    use super::*;
    use crate::testing::{commits, opened};

    fn stored(sequence: u64, commit: &Commit) -> Stored {
        Stored {
            sequence: Sequence(sequence),
            payload: commit.encode(),
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Stored), expected: &str) {
        let commits = commits(&[&[opened("a")], &[opened("b"), opened("c")]]);
        let mut tail = Tail::start(Partition(0));
        tail.accept(&stored(1, &commits[0])).unwrap();
        let mut second = stored(2, &commits[1]);
        change(&mut second);
        let before = tail.clone();
        let halt = tail.accept(&second).unwrap_err();
        let mut said = halt.to_string();
        if let Some(source) = std::error::Error::source(&halt) {
            said = format!("{said}: {source}");
        }
        assert!(said.contains(expected), "{said}");
        assert_eq!(halt.sequence(), Sequence(2));
        assert_eq!(tail, before);
    }

    fn rewrite(stored: &mut Stored, change: impl FnOnce(&mut Commit)) {
        let mut commit = Commit::decode(&stored.payload).unwrap();
        change(&mut commit);
        stored.payload = commit.encode();
    }

    #[test]
    fn a_whole_journal_is_followed() {
        let mut tail = Tail::start(Partition(0));
        let commits = commits(&[&[opened("a")], &[opened("b"), opened("c")]]);
        for (sequence, commit) in (1..).zip(&commits) {
            assert_eq!(tail.accept(&stored(sequence, commit)).unwrap(), *commit);
        }
        assert_eq!(tail.sequence, Sequence(2));
        assert_eq!(tail.head.position, Position(4));
        assert_eq!(tail.head.ledger.unwrap().as_str(), "ledger-1");
    }

    #[test]
    fn a_journal_without_genesis_is_not_followed() {
        let mut first = commits(&[&[opened("a")]]).remove(0);
        first.events.remove(0);
        again(&mut first, |event| event.position = Position(1));
        let halt = Tail::start(Partition(0)).accept(&stored(1, &first));
        assert!(matches!(
            halt,
            Err(Halt::NoGenesis {
                at: Sequence(1),
                ..
            })
        ));
    }

    fn again(commit: &mut Commit, change: impl Fn(&mut Event)) {
        for stored in &mut commit.events {
            change(&mut stored.event);
            *stored = StoredEvent::new(stored.event.clone());
        }
    }

    #[test]
    fn a_damaged_journal_halts_at_the_damage() {
        check(
            |second| second.sequence = Sequence(3),
            "no readable commit at sequence 2",
        );
        check(
            |second| second.payload = Bytes::from_static(b"x"),
            "past sequence 2: partition 00: what follows position 2 cannot be read",
        );
        check(
            |second| rewrite(second, |commit| commit.prev = ChainHash([7; 32])),
            "the commit at position 3 does not chain",
        );
        check(
            |second| rewrite(second, |commit| commit.partition = Partition(9)),
            "belongs to partition 09",
        );
    }

    #[test]
    fn positions_times_and_reigns_only_go_forward() {
        let gap = |commit: &mut Commit| {
            commit.first_position = Position(9);
            again(commit, |event| event.position.0 += 6);
        };
        check(
            |second| rewrite(second, gap),
            "position 3 belongs next, the commit begins at 9",
        );
        let early = |commit: &mut Commit| again(commit, |event| event.at_ms = 1);
        check(
            |second| rewrite(second, early),
            "time goes backwards at position 3",
        );
        check(
            |second| rewrite(second, |commit| commit.epoch = Epoch(0)),
            "epoch goes backwards",
        );
    }
}
