//! What is on record about a journal outside of it, and the comparison at every opening.
//!
//! Five witnesses know how far a partition's journal once went: the facts in bucket META (written when
//! a reign begins, every few seconds while the journal grows, and when it ends), the partition record of the snapshots, the feed's mark, the feed
//! itself, and the writer that was here before. A journal that is gone, shorter, or another one than any of them saw is
//! not begun anew and not appended to: only `seatbelt ledger adopt-journal` goes on from it.

use std::time::Duration;

use futures::future::try_join3;
use seatbelt_bus::{Bucket, Nats, ProvisionError};
use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    event::EventBody,
    ids::LedgerId,
    names::Names,
    position::{Partition, Position},
    wire,
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use thiserror::Error;
use tokio::time::timeout;

use super::{
    NatsJournal,
    fed::{self, Fed, Reach},
};
use crate::{
    journal::{Journal, ReadError, Sequence},
    partition::Head,
    snapshot::PartitionRecord,
    store::{StoreError, WriteError},
};

/// How often a record that somebody else writes at the same moment is tried again.
const NOTE_TRIES_MAX: u32 = 4;

/// How long one read of what somebody saw may take, and how often it is tried: an answer that a server
/// without a leader never gives must not cost a takeover its time.
const READ_MAX: Duration = Duration::from_secs(1);
const READ_TRIES_MAX: u32 = 3;

/// Key `journal.<pp>` of bucket META, MessagePack with named fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    /// Version of this shape: 1.
    v: u8,
    /// SHA-256 of the first commit, which holds genesis; empty where nothing is known of a journal but that
    /// there was one.
    first: ByteBuf,
    /// Sequence of the last commit known to have been acknowledged.
    end: u64,
    /// Its SHA-256.
    last: ByteBuf,
}

impl Begun {
    const VERSION: u8 = 1;
}

/// The part of a feed mark that tells of the journal.
#[derive(Debug, Deserialize)]
struct Mark {
    sequence: u64,
    head: Head,
    #[serde(default)]
    published_sequence: u64,
    #[serde(default)]
    published_last: Position,
    /// Whether the journal was found not to hold what stands at that place of the feed.
    #[serde(default)]
    disputed: bool,
}

/// A commit that somebody has seen on the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// Who, for people.
    pub by: &'static str,
    pub at: Sequence,
    pub hash: ChainHash,
}

/// A journal that is not what it was. Nothing was made and nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Doubt {
    /// The stream is gone.
    #[error(
        "the journal of partition {partition} is gone, but {by} saw it end at sequence {at}: restore it, or go on without it with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    Lost {
        partition: Partition,
        /// Who saw it.
        by: &'static str,
        at: Sequence,
    },
    /// It ends earlier than it once did.
    #[error(
        "the journal of partition {partition} ends at sequence {end}, but {by} saw it go on to {at}: restore it, or go on from where it ends with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    Shorter {
        partition: Partition,
        /// Where it ends.
        end: Sequence,
        /// Who saw more.
        by: &'static str,
        at: Sequence,
    },
    /// The stream is gone, and only the feed itself tells that there was one.
    #[error(
        "the journal of partition {partition} is gone, but the feed holds its events up to position {at}: restore it, or go on without it with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    LostOnFeed { partition: Partition, at: Position },
    /// The feed holds events that come after its end.
    #[error(
        "the journal of partition {partition} ends at position {end}, but the feed holds its events up to position {at}: restore it, or go on from where it ends with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    BehindFeed {
        partition: Partition,
        /// Position of its last event.
        end: Position,
        /// The last one on the feed.
        at: Position,
    },
    /// Another commit stands at a place that somebody has seen.
    #[error(
        "the journal of partition {partition} has another commit at sequence {at} than {by} saw there: restore it, or go on with it as it is with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    Replaced {
        partition: Partition,
        /// Who saw another one.
        by: &'static str,
        at: Sequence,
    },
    /// Its genesis names another ledger. It cannot be adopted.
    #[error(
        "the journal of partition {partition} belongs to ledger {found}, but META says that this is ledger {wanted}: put back whichever of the two was lost; where META was lost, `seatbelt ledger rebuild-meta` makes it again from the journals"
    )]
    Foreign {
        partition: Partition,
        /// What genesis says.
        found: LedgerId,
        /// What META says.
        wanted: LedgerId,
    },
    /// It does not hold what a checkpoint, which is kept away from the server, has seen of it.
    #[error(
        "the journal of partition {partition} {found}, but the checkpoint saw it go on to sequence {at}: a newer backup holds more; to go on from this one, take a checkpoint into another file with `seatbelt audit checkpoint` and name that one in nats.checkpoint"
    )]
    Checkpoint {
        partition: Partition,
        /// What was found instead.
        found: String,
        /// How far it went.
        at: Sequence,
    },
    /// The server no longer has a commit that it says is there. It cannot be adopted as it is.
    #[error(
        "the journal of partition {partition} has no readable commit at sequence {at} although it goes on: what the server keeps of it is damaged; restore it, or have the server cut it there as docs/recovery.md says and then go on with `seatbelt ledger adopt-journal --partition {partition}`"
    )]
    Hole {
        partition: Partition,
        /// The first commit that is missing, as far as that is known.
        at: Sequence,
    },
}

/// Why a journal is not opened, by what to do next.
#[derive(Debug, Error)]
pub enum OpenError {
    /// An operator must decide.
    #[error(transparent)]
    Doubt(#[from] Doubt),
    /// The stream cannot be used.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// A bucket does not answer: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal does not answer, or is damaged.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl OpenError {
    /// Whether nobody answered: the same may go well a moment later.
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Self::Store(_)
                | Self::Provision(ProvisionError::Unreachable { .. })
                | Self::Read(ReadError::Unreachable { .. })
        )
    }
}

/// What is on record about a journal.
struct Record {
    known: Vec<Sighting>,
    fed: Option<Fed>,
    /// Where it went to at least, where META knows nothing of its commits.
    begun: Option<Sequence>,
}

impl Record {
    /// Nobody ever saw the journal.
    fn is_empty(&self) -> bool {
        self.known.is_empty() && self.fed.is_none() && self.begun.is_none()
    }

    /// What it means that there is none although somebody saw it.
    fn nothing_there<T>(&self, partition: Partition) -> Result<T, OpenError> {
        let most = self.known.iter().max_by_key(|known| known.at);
        match (most, &self.fed) {
            (Some(&Sighting { by, at, .. }), _) => Err(Doubt::Lost { partition, by, at }.into()),
            (None, Some(fed)) => {
                let at = fed.position;
                Err(Doubt::LostOnFeed { partition, at }.into())
            }
            (None, None) => {
                let (by, at) = ("META", self.begun.unwrap_or(Sequence(1)));
                Err(Doubt::Lost { partition, by, at }.into())
            }
        }
    }
}

/// One partition's journal and whoever knows of it.
#[derive(Debug, Clone)]
pub struct Witnesses {
    nats: Nats,
    names: Names,
    partition: Partition,
    ledger: LedgerId,
    /// What was seen away from the server.
    checkpoint: Option<Sighting>,
}

impl Witnesses {
    /// Those of a partition of this ledger.
    pub fn new(nats: &Nats, names: &Names, partition: Partition, ledger: &LedgerId) -> Self {
        Self {
            nats: nats.clone(),
            names: names.clone(),
            partition,
            ledger: ledger.clone(),
            checkpoint: None,
        }
    }

    /// The same, with what a checkpoint saw of the journal, away from the server.
    #[must_use]
    pub fn and_checkpoint(self, checkpoint: Option<Sighting>) -> Self {
        Self { checkpoint, ..self }
    }

    /// Opens the journal to append to it. It is made only where nobody ever saw one; `own` is what this
    /// process itself saw.
    pub async fn open(
        &self,
        replicas: u8,
        own: Option<Sighting>,
    ) -> Result<NatsJournal, OpenError> {
        let (nats, names, partition) = (&self.nats, &self.names, self.partition);
        let mut record = self.record(Reach::Near).await?;
        record.known.extend(own);
        if record.is_empty() {
            if let Some(checkpoint) = self.checkpoint {
                return Err(missed(partition, "is not there".to_owned(), checkpoint).into());
            }
            let journal = NatsJournal::open(nats, names, partition, replicas).await?;
            self.agrees(&journal, &record).await?;
            return Ok(journal);
        }
        let opened = NatsJournal::reopen(nats, names, partition, replicas).await;
        let journal = match opened {
            Err(ProvisionError::Missing { .. }) => return record.nothing_there(partition),
            other => other?,
        };
        self.agrees(&journal, &record).await?;
        self.holds_checkpoint(&journal).await?;
        Ok(journal)
    }

    /// Whether the journal, which agrees with all that is kept beside it, holds what the checkpoint saw.
    async fn holds_checkpoint(&self, journal: &impl Journal) -> Result<(), OpenError> {
        let (partition, Some(seen)) = (self.partition, self.checkpoint) else {
            return Ok(());
        };
        let end = journal.end().await?;
        if end < seen.at {
            let found = format!("ends at sequence {end}");
            return Err(missed(partition, found, seen).into());
        }
        let at = seen.at;
        let stored = journal.get(at).await?.ok_or(ReadError::Gap { at })?;
        if ChainHash::of(&stored.payload) != seen.hash {
            let found = format!("has another commit at sequence {at}");
            return Err(missed(partition, found, seen).into());
        }
        Ok(())
    }

    /// Looks at the journal as [`Witnesses::open`] does; nothing is made. A journal that nobody ever saw
    /// is as it should be.
    pub async fn look(&self) -> Result<(), OpenError> {
        let (nats, names, partition) = (&self.nats, &self.names, self.partition);
        let record = self.record(Reach::All).await?;
        let journal = match NatsJournal::open_existing(nats, names, partition).await {
            Err(ProvisionError::Missing { .. }) if record.is_empty() => return Ok(()),
            Err(ProvisionError::Missing { .. }) => return record.nothing_there(partition),
            other => other?,
        };
        self.agrees(&journal, &record).await
    }

    /// Compares a journal with all that is kept beside it.
    async fn agrees(&self, journal: &impl Journal, record: &Record) -> Result<(), OpenError> {
        let partition = self.partition;
        let compared = async {
            compare(journal, partition, &self.ledger, &record.known).await?;
            match &record.fed {
                Some(fed) => fed::check(journal, partition, fed).await,
                None => Ok(()),
            }
        };
        match compared.await {
            Err(OpenError::Read(ReadError::Gap { at })) => {
                Err(Doubt::Hole { partition, at }.into())
            }
            compared => compared,
        }
    }

    /// The commits that META, the partition record and the feed's mark have seen, and the last event on the
    /// feed. What cannot be read there vouches for nothing.
    async fn record(&self, reach: Reach) -> Result<Record, StoreError> {
        let mut known = Vec::new();
        let meta = self.bucket(&self.names.meta_bucket());
        let snapshots = self.bucket(&self.names.snapshot_bucket());
        let (meta_key, mark_key) = (self.key(), self.mark_key());
        let record_key = Names::snapshot_partition_key(self.partition);
        let reads = try_join3(
            self.read_if_there(&meta, &meta_key),
            self.read_if_there(&snapshots, &record_key),
            self.read_if_there(&snapshots, &mark_key),
        );
        // large: three requests at once
        let (begun, record, mark) = Box::pin(reads).await?;
        let begun = begun.as_ref().and_then(decode);
        if let Some(begun) = &begun {
            known.extend(seen("META", 1, &begun.first));
            known.extend(seen("META", begun.end, &begun.last));
        }
        let record = record.and_then(|value| PartitionRecord::decode(&value).ok());
        if let Some(record) = record.filter(|record| record.head.partition == self.partition) {
            let hash = record.head.chain.0;
            known.extend(seen("the partition record", record.sequence, &hash));
        }
        let mark = self.mark(mark);
        let mut published = None;
        if let Some(mark) = mark {
            known.extend(seen("the feed", mark.sequence, &mark.head.chain.0));
            published = Some((mark.published_sequence, mark.published_last));
        }
        let fed = fed::last(
            &self.nats,
            &self.names,
            (&self.ledger, self.partition),
            published,
            reach,
        )
        .await;
        Ok(Record {
            known,
            fed,
            begun: begun.map(|begun| Sequence(begun.end)),
        })
    }

    fn mark(&self, value: Option<bytes::Bytes>) -> Option<Mark> {
        let mark = wire::decode::<Mark>("feed mark", &value?).ok()?;
        (mark.head.partition == self.partition).then_some(mark)
    }

    /// Whether whoever projects the journal has found that it does not hold what the feed does: an opening
    /// does not look so far back. Then it is compared with all that is known, as at an opening.
    pub async fn hear(&self, journal: &impl Journal) -> Result<(), OpenError> {
        let snapshots = self.bucket(&self.names.snapshot_bucket());
        let value = snapshots.read(&self.mark_key()).await?.value;
        match self.mark(value) {
            Some(mark) if mark.disputed => {
                let record = self.record(Reach::Near).await?;
                self.agrees(journal, &record).await
            }
            _ => Ok(()),
        }
    }

    /// Puts on record how far the journal is known to go, unless more is on record, or the journal is another now.
    pub async fn note(
        &self,
        journal: &impl Journal,
        (end, last): (Sequence, ChainHash),
    ) -> Result<(), OpenError> {
        let meta = self.bucket(&self.names.meta_bucket());
        for _ in 0..NOTE_TRIES_MAX {
            let kept = meta.read(&self.key()).await?;
            let found = kept.value.as_ref().and_then(decode);
            let found = found.filter(|found: &Begun| !found.first.is_empty());
            let first = match found {
                Some(found) if found.end >= end.0 => return Ok(()),
                Some(found) => found.first,
                None => first_of(journal).await?,
            };
            // a host that slept while an operator adopted the journal knows of one that is no more
            let stands = journal.get(end).await?;
            if stands.is_none_or(|found| ChainHash::of(&found.payload) != last) {
                return Ok(());
            }
            match meta
                .write(&self.key(), kept.revision, begun(first, end, last))
                .await
            {
                Ok(_) => return Ok(()),
                Err(WriteError::Moved) => {}
                Err(WriteError::Unreachable(error)) => return Err(error.into()),
            }
        }
        Ok(()) // somebody writes all the time, and so knows more
    }

    /// Puts on record that there was a journal, where nothing is: it is gone, and nobody knows more.
    pub(super) async fn miss(&self) -> Result<(), OpenError> {
        let meta = self.bucket(&self.names.meta_bucket());
        let gone = Begun {
            v: Begun::VERSION,
            first: ByteBuf::new(),
            end: 1,
            last: ByteBuf::new(),
        };
        let kept = meta.read(&self.key()).await?;
        if kept.value.is_some() {
            return Ok(());
        }
        let value = wire::encode(&gone).into();
        match meta.write(&self.key(), kept.revision, value).await {
            Ok(_) | Err(WriteError::Moved) => Ok(()),
            Err(WriteError::Unreachable(error)) => Err(error.into()),
        }
    }

    /// Forgets what was seen of another journal, and puts this one on record instead: for an operator
    /// who adopts it.
    pub async fn replace(
        &self,
        journal: &impl Journal,
        (end, last): (Sequence, ChainHash),
    ) -> Result<(), OpenError> {
        let meta = self.bucket(&self.names.meta_bucket());
        let value = begun(first_of(journal).await?, end, last);
        let kept = meta.read(&self.key()).await?;
        match meta.write(&self.key(), kept.revision, value).await {
            Ok(_) => Ok(()),
            Err(WriteError::Moved) => Err(StoreError {
                action: format!("write {} in bucket META", self.key()),
                source: "a writer wrote it at the same moment: run the command again".into(),
            }
            .into()),
            Err(WriteError::Unreachable(error)) => Err(error.into()),
        }
    }

    fn key(&self) -> String {
        format!("journal.{}", self.partition)
    }

    /// Where the projector keeps how far the feed went.
    fn mark_key(&self) -> String {
        format!("feed.{}", self.partition)
    }

    fn bucket(&self, name: &str) -> Bucket {
        Bucket::at(&self.nats, name)
    }

    /// A bucket that is definitely not there has seen nothing; one that does not answer is an error.
    async fn read_if_there(
        &self,
        bucket: &Bucket,
        key: &str,
    ) -> Result<Option<bytes::Bytes>, StoreError> {
        let mut tries = READ_TRIES_MAX;
        loop {
            tries -= 1;
            let failure = match timeout(READ_MAX, bucket.read(key)).await {
                Ok(Ok(kept)) => return Ok(kept.value),
                Ok(Err(error)) => error,
                Err(elapsed) => StoreError {
                    action: format!("read {key} of partition {}", self.partition),
                    source: elapsed.into(),
                },
            };
            if matches!(timeout(READ_MAX, bucket.exists()).await, Ok(Ok(false))) {
                return Ok(None);
            }
            if tries == 0 {
                return Err(failure);
            }
        }
    }
}

fn missed(partition: Partition, found: String, seen: Sighting) -> Doubt {
    let at = seen.at;
    Doubt::Checkpoint {
        partition,
        found,
        at,
    }
}

fn decode(value: &bytes::Bytes) -> Option<Begun> {
    let begun = wire::decode::<Begun>("journal facts", value).ok()?;
    (begun.v == Begun::VERSION).then_some(begun)
}

fn begun(first: ByteBuf, end: Sequence, last: ChainHash) -> bytes::Bytes {
    let begun = Begun {
        v: Begun::VERSION,
        first,
        end: end.0,
        last: ByteBuf::from(last.0.to_vec()),
    };
    wire::encode(&begun).into()
}

fn seen(by: &'static str, at: u64, hash: &[u8]) -> Option<Sighting> {
    let hash = ChainHash(hash.try_into().ok()?);
    (at > 0).then_some(Sighting {
        by,
        at: Sequence(at),
        hash,
    })
}

async fn first_of(journal: &impl Journal) -> Result<ByteBuf, ReadError> {
    let at = Sequence(1);
    let first = journal.get(at).await?.ok_or(ReadError::Gap { at })?;
    Ok(ByteBuf::from(ChainHash::of(&first.payload).0.to_vec()))
}

/// Compares a journal with what was seen of it.
async fn compare(
    journal: &impl Journal,
    partition: Partition,
    ledger: &LedgerId,
    known: &[Sighting],
) -> Result<(), OpenError> {
    let first = journal.get(Sequence(1)).await?;
    let genesis = first.and_then(|first| genesis_of(&first.payload));
    if let Some(found) = genesis.filter(|found| found != ledger) {
        let wanted = ledger.clone();
        return Err(Doubt::Foreign {
            partition,
            found,
            wanted,
        }
        .into());
    }
    let end = journal.end().await?;
    let most = known.iter().max_by_key(|known| known.at);
    if let Some(&Sighting { by, at, .. }) = most.filter(|most| most.at > end) {
        return Err(Doubt::Shorter {
            partition,
            end,
            by,
            at,
        }
        .into());
    }
    for &Sighting { by, at, hash } in known {
        let stored = journal.get(at).await?.ok_or(ReadError::Gap { at })?;
        if ChainHash::of(&stored.payload) != hash {
            return Err(Doubt::Replaced { partition, by, at }.into());
        }
    }
    Ok(())
}

/// A first commit that cannot be read is for whoever reads the journal to tell.
fn genesis_of(payload: &bytes::Bytes) -> Option<LedgerId> {
    let commit = Commit::read(payload).ok()?;
    match &commit.events.first()?.event.body {
        EventBody::Genesis(genesis) => Some(genesis.ledger.clone()),
        _ => None,
    }
}
