//! A commit: the events decided together, durable together; one JetStream message.
//!
//! `prev` chains each commit to the SHA-256 of the stored bytes of the one before. Bytes are never
//! re-encoded before hashing. Whoever needs a commit whole reads a [`Commit`]; whoever goes through its
//! events one by one reads [`UnreadCommit`] and keeps none of them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    event::{Body, Event, EventOf, StoredEvent},
    position::{Epoch, Partition, Position},
    wire::{self, UnknownField, WireError},
};

/// Most events in one commit.
pub const COMMIT_EVENTS_MAX: usize = 256;
/// Most bytes in one commit.
pub const COMMIT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a commit besides its events, at most: field names and numbers (under 128) and 3 bytes
/// in front of each event.
pub const COMMIT_OVERHEAD_MAX: usize = 128 + 3 * COMMIT_EVENTS_MAX;

/// SHA-256 of a commit's stored bytes; 32 zero bytes before the first.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// The hash of a commit's stored bytes.
    pub fn of(payload: &[u8]) -> Self {
        Self(Sha256::digest(payload).into())
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainHash({self})")
    }
}

#[derive(Deserialize)]
struct Payload<'a> {
    v: u8,
    partition: u8,
    epoch: Epoch,
    first_position: Position,
    #[serde(borrow, with = "serde_bytes")]
    prev: &'a [u8],
    at_ms: u64,
    #[serde(borrow)]
    events: Vec<&'a serde_bytes::Bytes>,
}

#[derive(Serialize)]
struct PayloadRef<'a> {
    v: u8,
    partition: u8,
    epoch: Epoch,
    first_position: Position,
    #[serde(with = "serde_bytes")]
    prev: &'a [u8],
    at_ms: u64,
    events: Vec<&'a serde_bytes::Bytes>,
}

/// The stored bytes of a commit made of events that are encoded already.
pub fn encode_commit(
    partition: Partition,
    epoch: Epoch,
    first_position: Position,
    prev: ChainHash,
    at_ms: u64,
    events: &[&[u8]],
) -> Bytes {
    let payload = PayloadRef {
        v: Commit::VERSION,
        partition: partition.0,
        epoch,
        first_position,
        prev: &prev.0,
        at_ms,
        events: events
            .iter()
            .map(|event| serde_bytes::Bytes::new(event))
            .collect(),
    };
    wire::encode(&payload).into()
}

/// What a commit says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub partition: Partition,
    /// The reign that wrote it.
    pub epoch: Epoch,
    /// Position of its first event.
    pub first_position: Position,
    /// Hash of the commit before it.
    pub prev: ChainHash,
    /// When it was decided, unix ms.
    pub at_ms: u64,
}

/// A commit, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    pub partition: Partition,
    /// The reign that wrote it.
    pub epoch: Epoch,
    /// Position of its first event.
    pub first_position: Position,
    /// Hash of the commit before it.
    pub prev: ChainHash,
    /// When it was decided, unix ms.
    pub at_ms: u64,
    /// Its events, 1 to [`COMMIT_EVENTS_MAX`].
    pub events: Vec<StoredEvent>,
    /// The first field besides those of its events that this build does not know: who decides by the
    /// commit must not go on.
    pub unknown: Option<UnknownField>,
}

/// A commit of which only the header has been read.
#[derive(Debug, Clone)]
pub struct UnreadCommit<'a> {
    header: Header,
    events: Vec<&'a serde_bytes::Bytes>,
    unknown: Option<UnknownField>,
}

/// Bytes that are not a commit.
#[derive(Debug, Error)]
pub enum CommitError {
    /// Not the shape of a commit.
    #[error("cannot read commit")]
    Shape(#[source] WireError),
    /// One of its events is not the shape of an event.
    #[error("cannot read event {index} of commit at position {first_position}")]
    Event {
        /// Which one, from 0.
        index: usize,
        /// Where the commit begins.
        first_position: Position,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// Its numbers contradict each other.
    #[error("commit at position {first_position} contradicts itself: {detail}")]
    Contradiction {
        /// Where the commit begins.
        first_position: Position,
        /// What does not fit.
        detail: String,
    },
}

fn contradiction(first_position: Position, detail: impl Into<String>) -> CommitError {
    CommitError::Contradiction {
        first_position,
        detail: detail.into(),
    }
}

impl Commit {
    /// The version this code writes.
    pub const VERSION: u8 = 1;

    /// The commit's bytes, as they are stored and hashed.
    pub fn encode(&self) -> Bytes {
        let events: Vec<&[u8]> = self
            .events
            .iter()
            .map(|event| event.bytes.as_ref())
            .collect();
        let Self {
            partition,
            epoch,
            first_position,
            prev,
            at_ms,
            ..
        } = self;
        encode_commit(*partition, *epoch, *first_position, *prev, *at_ms, &events)
    }

    /// As [`Commit::read`], from a copy of the bytes.
    pub fn decode(payload: &[u8]) -> Result<Self, CommitError> {
        Self::read(&Bytes::copy_from_slice(payload))
    }

    /// Reads stored bytes and checks the commit against itself: bounds, gapless positions, times. Its
    /// events share the bytes.
    pub fn read(payload: &Bytes) -> Result<Self, CommitError> {
        let unread = UnreadCommit::of(payload)?;
        let mut events = Vec::with_capacity(unread.events.len());
        for read in unread.read_events(Event::decode_noting) {
            let (bytes, event, unknown) = read?;
            let bytes = payload.slice_ref(bytes);
            events.push(StoredEvent {
                bytes,
                event,
                unknown,
            });
        }
        let Header {
            partition,
            epoch,
            first_position,
            prev,
            at_ms,
        } = unread.header;
        Ok(Self {
            partition,
            epoch,
            first_position,
            prev,
            at_ms,
            events,
            unknown: unread.unknown,
        })
    }

    /// What it says of itself.
    pub fn header(&self) -> Header {
        Header {
            partition: self.partition,
            epoch: self.epoch,
            first_position: self.first_position,
            prev: self.prev,
            at_ms: self.at_ms,
        }
    }

    /// Position of its last event.
    pub fn last_position(&self) -> Position {
        Position(self.first_position.0 + self.events.len() as u64 - 1)
    }
}

impl<'a> UnreadCommit<'a> {
    /// Reads the header of stored bytes and checks the bounds.
    pub fn of(payload: &'a [u8]) -> Result<Self, CommitError> {
        let read = wire::decode_noting("commit", payload).map_err(CommitError::Shape)?;
        let (raw, unknown): (Payload<'a>, _) = read;
        if raw.v != Commit::VERSION {
            return Err(CommitError::Shape(WireError::Version {
                what: "commit",
                found: raw.v,
            }));
        }
        let first_position = raw.first_position;
        let prev = <[u8; 32]>::try_from(raw.prev).map_err(|_| {
            let detail = format!("prev has {} bytes instead of 32", raw.prev.len());
            contradiction(first_position, detail)
        })?;
        let header = Header {
            partition: Partition(raw.partition),
            epoch: raw.epoch,
            first_position,
            prev: ChainHash(prev),
            at_ms: raw.at_ms,
        };
        let unread = Self {
            header,
            events: raw.events,
            unknown,
        };
        unread.bounded(payload.len())?;
        Ok(unread)
    }

    fn bounded(&self, payload_len: usize) -> Result<(), CommitError> {
        let (first, count) = (self.header.first_position, self.events.len());
        let detail = if !(1..=COMMIT_EVENTS_MAX).contains(&count) {
            format!("{count} events instead of 1 to {COMMIT_EVENTS_MAX}")
        } else if payload_len > COMMIT_BYTES_MAX {
            format!("{payload_len} bytes instead of at most {COMMIT_BYTES_MAX}")
        } else if first == Position(0) {
            "positions begin at 1".to_owned()
        } else if first.0.checked_add(count as u64).is_none() {
            "positions end".to_owned()
        } else {
            return Ok(());
        };
        Err(contradiction(first, detail))
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The first field besides those of its events that this build does not know.
    pub fn unknown(&self) -> Option<&UnknownField> {
        self.unknown.as_ref()
    }

    /// The stored bytes of its first event.
    pub fn first(&self) -> &'a [u8] {
        self.events[0]
    }

    /// Its events, each with its stored bytes, read as far as `B` goes and checked against the commit:
    /// gapless positions, times that do not go backwards.
    pub fn events<B: Body>(
        &self,
    ) -> impl Iterator<Item = Result<(&'a [u8], EventOf<B>), CommitError>> {
        let events = self.read_events(|bytes| EventOf::decode(bytes).map(|event| (event, ())));
        events.map(|read| read.map(|(bytes, event, ())| (bytes, event)))
    }

    /// As [`UnreadCommit::events`], with what `decode` notes of each.
    fn read_events<B, N>(
        &self,
        decode: impl Fn(&'a [u8]) -> Result<(EventOf<B>, N), WireError>,
    ) -> impl Iterator<Item = Result<(&'a [u8], EventOf<B>, N), CommitError>> {
        let Header {
            first_position,
            at_ms: last_ms,
            ..
        } = self.header;
        let mut earliest_ms = 0;
        self.events.iter().enumerate().map(move |(index, bytes)| {
            let bytes: &'a [u8] = bytes;
            let read = decode(bytes).map_err(|source| CommitError::Event {
                index,
                first_position,
                source,
            });
            let (event, noted) = read?;
            let expected = Position(first_position.0 + index as u64);
            if event.position != expected {
                let found = event.position;
                let detail = format!("event {found} stands where {expected} belongs");
                return Err(contradiction(first_position, detail));
            }
            if !(earliest_ms..=last_ms).contains(&event.at_ms) {
                let detail = format!("the time of event {expected} goes backwards");
                return Err(contradiction(first_position, detail));
            }
            earliest_ms = event.at_ms;
            Ok((bytes, event, noted))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        event::{AccountOpened, StoredEvent},
        ids::{AccountId, Actor, CommandId},
    };

    fn commit(events: u64) -> Commit {
        let events = (1..=events).map(|position| {
            StoredEvent::new(Event {
                position: Position(position),
                at_ms: 5,
                account: AccountId::new("a").unwrap(),
                cause: CommandId::from_parts(5, u128::from(position)),
                actor: Actor::system("test"),
                body: AccountOpened::default().into(),
            })
        });
        Commit {
            partition: Partition(1),
            epoch: Epoch(1),
            first_position: Position(1),
            prev: ChainHash::default(),
            at_ms: 5,
            events: events.collect(),
            unknown: None,
        }
    }

    #[test]
    fn a_commit_reads_back_as_it_was_written() {
        let commit = commit(3);
        assert_eq!(Commit::decode(&commit.encode()).unwrap(), commit);
        assert_eq!(commit.last_position(), Position(3));
    }

    #[test]
    fn overhead_is_within_its_stated_bound() {
        let commit = commit(COMMIT_EVENTS_MAX as u64);
        let events: usize = commit.events.iter().map(|event| event.bytes.len()).sum();
        assert!(commit.encode().len() - events <= COMMIT_OVERHEAD_MAX);
    }

    #[test]
    fn a_commit_that_contradicts_itself_is_not_read() {
        let refuse = |change: fn(&mut Commit)| {
            let mut commit = commit(3);
            change(&mut commit);
            assert!(matches!(
                Commit::decode(&commit.encode()),
                Err(CommitError::Contradiction { .. })
            ));
        };
        refuse(|commit| commit.events.clear());
        refuse(|commit| commit.events.swap(0, 1));
        refuse(|commit| commit.first_position = Position(2));
        refuse(|commit| commit.at_ms = 4);
    }

    #[test]
    fn bytes_that_are_no_commit_are_an_error_and_no_panic() {
        let whole = commit(2).encode();
        for end in 0..whole.len() {
            assert!(Commit::decode(&whole[..end]).is_err());
        }
        let mut longer = whole.to_vec();
        longer.push(0);
        assert!(Commit::decode(&longer).is_err());
    }
}
