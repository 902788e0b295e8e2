//! The public feed: every event of the journal as one message, in order, once. Only where the stream
//! itself lost messages are they published again, after those that were there: at least once then,
//! and each with the id that it always has.
//!
//! What is published is read from the stream itself. The mark kept beside the snapshots only says
//! where to begin reading, on the journal and on the feed; without it, or with a wrong one, both are
//! read from their start and the result is the same.

mod claim;
pub mod message;
mod standing;
pub(crate) mod walk;
pub mod writer;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use seatbelt_ledger::{
    journal::{Journal, ReadError, Sequence, Stored},
    partition::Head,
};
use seatbelt_schemas::{
    chain::in_one_line,
    event::StoredEvent,
    ids::LedgerId,
    names::Names,
    position::{Partition, Position},
    wire,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::{
    claim::{Claim, Verdict},
    message::{EventSource, FeedMessage},
    writer::{FEED_CHECK_EVERY, FeedError, FeedWriter, Published},
};
use crate::{
    Health,
    chain::{self, Halt, Tail},
    follow::{Patience, Stop, pause},
    health::Component,
    store::{FeedSequence, Revision, SnapshotStore, StoreError, WriteError},
};

/// How often the mark is written at most.
pub const FEED_MARK_EVERY: Duration = Duration::from_secs(1);
/// Most commits whose messages are appended together.
pub const FEED_COMMITS_MAX: usize = 64;
/// How long after an append the next one is begun at the earliest, unless so many commits wait already: each
/// costs the server and this process the same, however little is in it.
pub const FEED_APPEND_EVERY: Duration = Duration::from_millis(20);
/// How often a journal that ends before the feed is looked at again: one that another server takes over
/// may be late.
const CLAIM_LOOKS: u32 = 5;
const CLAIM_PAUSE: Duration = Duration::from_millis(200);

/// Where one partition's feed stands, on the journal and on the stream; key `feed.<pp>` of the
/// snapshot bucket, MessagePack with named fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedMark {
    /// Version of this shape: 2. Marks of version 1 did not know of holes: the feed is read whole
    /// once.
    pub v: u8,
    /// Journal: the last commit that was published whole.
    pub sequence: u64,
    /// Journal: where it stood after that commit. Prices are left out: the feed needs none.
    pub head: Head,
    /// Feed: every event of this partition up to here is on it.
    pub published_position: Position,
    /// Feed: place of this partition's last message on the stream.
    pub published_sequence: u64,
    /// Feed: position of that message, by which the place is checked before it is trusted.
    #[serde(default)]
    pub published_last: Position,
    /// Feed: places on the stream that held no message.
    #[serde(default)]
    pub removed: u64,
    /// Whether the journal was found not to hold that last message: word for the partition's writer. Such a
    /// mark tells nothing else.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disputed: bool,
}

impl FeedMark {
    /// The version this code writes.
    pub const VERSION: u8 = 2;

    /// The mark's key.
    pub fn key(partition: Partition) -> String {
        format!("feed.{partition}")
    }

    /// The word that the journal does not hold what stands at a place of the feed.
    fn disputing(partition: Partition, at: FeedSequence, last: Position) -> Self {
        let Tail { sequence, head } = Tail::start(partition);
        Self {
            v: Self::VERSION,
            sequence: sequence.0,
            head,
            published_position: Position(0),
            published_sequence: at.0,
            published_last: last,
            removed: 0,
            disputed: true,
        }
    }

    fn published(&self) -> Published {
        Published {
            position: self.published_position,
            sequence: FeedSequence(self.published_sequence),
            last: self.published_last,
            removed: self.removed,
        }
    }
}

/// Whether the journal is known to hold what the feed held of it.
enum Claimed {
    /// The feed has not been asked.
    Unasked,
    /// It may hold it further on.
    Open(Claim),
    Settled,
}

/// The feed of one partition.
pub(crate) struct Feed<J> {
    names: Names,
    journal: Arc<J>,
    marks: Arc<dyn SnapshotStore>,
    writer: Arc<FeedWriter>,
    tail: Tail,
    published: Published,
    claimed: Claimed,
    marked: Revision,
    marked_at: Instant,
    mark_due: bool,
    /// Whether the mark speaks against the journal.
    disputed: bool,
    checked_at: Instant,
    /// When commits are taken up again.
    next_at: Instant,
    patience: Patience,
    health: Health,
}

impl<J: Journal> Feed<J> {
    pub(crate) fn new(
        names: Names,
        partition: Partition,
        journal: Arc<J>,
        marks: Arc<dyn SnapshotStore>,
        writer: Arc<FeedWriter>,
    ) -> Self {
        Self {
            names,
            journal,
            marks,
            writer,
            tail: Tail::start(partition),
            published: Published::default(),
            claimed: Claimed::Unasked,
            marked: Revision(0),
            marked_at: Instant::now(),
            mark_due: false,
            disputed: false,
            checked_at: Instant::now(),
            next_at: Instant::now(),
            patience: Patience::default(),
            health: Health::default(),
        }
    }

    /// Tells there how it gets on.
    pub(crate) fn telling(self, health: &Health) -> Self {
        let health = health.clone();
        Self { health, ..self }
    }

    /// Publishes until `stop`, or until it must not go on.
    pub(crate) async fn run(mut self, stop: &CancellationToken) -> Result<(), Stop> {
        let mut resumed = false;
        while !stop.is_cancelled() {
            let step = async {
                if !resumed {
                    self.resume().await?;
                    resumed = true;
                }
                self.follow(stop).await
            };
            match step.await {
                Ok(()) => {}
                Err(NotFed::Stop(stop)) => return Err(stop),
                Err(NotFed::Behind(published)) => {
                    let partition = self.tail.partition();
                    warn!(%partition, %published.position, "the feed lost messages: publishing them again");
                    self.rewind(published);
                }
                Err(NotFed::Store(error)) => {
                    let (partition, error) = (self.tail.partition(), in_one_line(&error));
                    self.health.waits(partition, Component::Feed, error.clone());
                    warn!(%partition, error, "feed waits for its store");
                    self.patience.pause(stop).await;
                }
            }
        }
        self.mark().await.or_else(NotFed::unless_stop)
    }

    /// Takes up where the mark says, if journal and feed still agree with it.
    async fn resume(&mut self) -> Result<(), NotFed> {
        let partition = self.tail.partition();
        let kept = self.marks.read(&FeedMark::key(partition)).await?;
        self.marked = kept.revision;
        let Some(value) = kept.value else {
            return Ok(());
        };
        let mark = match wire::decode::<FeedMark>("feed mark", &value) {
            Ok(mark) if mark.v == FeedMark::VERSION && mark.head.partition == partition => mark,
            Ok(_) => return Ok(()),
            Err(error) => {
                warn!(%partition, %error, "feed mark unreadable: reading journal and feed from their start");
                return Ok(());
            }
        };
        self.disputed = mark.disputed;
        let Some(ledger) = mark.head.ledger.clone() else {
            return Ok(());
        };
        let source = EventSource { ledger, partition };
        let published = self.writer.published(&source, mark.published()).await?;
        if published.position >= mark.head.position {
            self.tail = Tail {
                sequence: Sequence(mark.sequence),
                head: mark.head,
            };
        }
        self.published = published;
        Ok(())
    }

    /// Back to the start of the journal: what is on the feed already is skipped there.
    fn rewind(&mut self, published: Published) {
        self.tail = Tail::start(self.tail.partition());
        self.published = published;
    }

    async fn follow(&mut self, stop: &CancellationToken) -> Result<(), NotFed> {
        let journal = Arc::clone(&self.journal);
        let commits = journal.follow(self.tail.sequence);
        let mut commits = commits.ready_chunks(FEED_COMMITS_MAX);
        loop {
            let mark_at = self.marked_at + FEED_MARK_EVERY;
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(mark_at), if self.mark_due => self.mark().await?,
                () = tokio::time::sleep_until(self.checked_at + FEED_CHECK_EVERY) => self.check().await?,
                chunk = after(self.next_at, commits.next()) => match chunk {
                    Some(chunk) => {
                        let is_full = chunk.len() == FEED_COMMITS_MAX;
                        self.take(chunk).await?;
                        if !is_full {
                            self.next_at = Instant::now() + FEED_APPEND_EVERY;
                        }
                    }
                    None => {
                        pause(stop).await;
                        return Ok(());
                    }
                },
            }
        }
    }

    /// Looks whether the feed still holds what was published.
    async fn check(&mut self) -> Result<(), NotFed> {
        self.checked_at = Instant::now();
        let Some(ledger) = self.tail.head.ledger.clone() else {
            self.works();
            return Ok(());
        };
        self.settle(&self.tail.clone(), &[]).await?;
        let partition = self.tail.partition();
        let source = EventSource { ledger, partition };
        let there = self.writer.check(&source, self.published).await?;
        if there.position < self.tail.head.position {
            return Err(NotFed::Behind(there));
        }
        self.published = there;
        self.works();
        Ok(())
    }

    /// Publishes the events of some commits. The tail moves only past what is published.
    async fn take(&mut self, chunk: Vec<Result<Stored, ReadError>>) -> Result<(), NotFed> {
        let mut tail = self.tail.clone();
        let (mut events, mut trouble) = (Vec::new(), None);
        for stored in chunk {
            match read(&*self.journal, &mut tail, stored).await {
                Ok(more) => events.extend(more),
                Err(error) => {
                    trouble = Some(error);
                    break;
                }
            }
        }
        self.settle(&tail, &events).await?;
        self.publish(&tail, &events).await?;
        self.tail = tail;
        trouble.map_or(Ok(()), Err)
    }

    /// Sees to it that the journal, which was read up to `tail` with `events` at its end, holds what the
    /// feed holds of it.
    async fn settle(&mut self, tail: &Tail, events: &[StoredEvent]) -> Result<(), NotFed> {
        if matches!(self.claimed, Claimed::Unasked) {
            let Some(ledger) = tail.head.ledger.clone() else {
                return Ok(());
            };
            self.claimed = Claimed::Open(self.claim(ledger).await?);
        }
        let Claimed::Open(claim) = &mut self.claimed else {
            return Ok(());
        };
        let (partition, at) = (tail.partition(), tail.sequence);
        let mut looks = 1;
        loop {
            match claim.against(tail, events) {
                Verdict::Holds => {
                    self.claimed = Claimed::Settled;
                    // it was put back as it was: nothing speaks against it any more
                    self.mark_due |= std::mem::take(&mut self.disputed);
                    return Ok(());
                }
                Verdict::ReadOn => return Ok(()),
                Verdict::Missing if looks < CLAIM_LOOKS => {
                    tokio::time::sleep(CLAIM_PAUSE).await;
                    claim.end = end(&*self.journal, partition).await?;
                }
                Verdict::Missing | Verdict::Other => {
                    let (place, position) = (claim.place, claim.position);
                    self.dispute(place, position).await;
                    let halt = Halt::OnFeed {
                        partition,
                        at,
                        position,
                    };
                    return Err(halt.into());
                }
            }
            looks += 1;
        }
    }

    /// Leaves word for the partition's writer, which looks there as it goes: it must not go on either.
    async fn dispute(&mut self, at: FeedSequence, last: Position) {
        let partition = self.tail.partition();
        let mark = FeedMark::disputing(partition, at, last);
        let value = Bytes::from(wire::encode(&mark));
        let key = FeedMark::key(partition);
        match self.marks.write(&key, self.marked, value).await {
            Ok(revision) => (self.marked, self.mark_due) = (revision, false),
            // it is tried again with the partition
            Err(error) => warn!(%partition, %error, "the writer is not told what the feed holds"),
        }
    }

    async fn claim(&self, ledger: LedgerId) -> Result<Claim, NotFed> {
        let partition = self.tail.partition();
        let source = EventSource { ledger, partition };
        let published = self.writer.published(&source, self.published).await?;
        Ok(Claim {
            place: published.sequence,
            position: published.last,
            event: self.writer.last_event(&source, published).await?,
            // after the look: what is on the feed was on the journal before
            end: end(&*self.journal, partition).await?,
        })
    }

    async fn publish(&mut self, tail: &Tail, events: &[StoredEvent]) -> Result<(), NotFed> {
        let (Some(ledger), Some(_)) = (&tail.head.ledger, events.first()) else {
            return Ok(());
        };
        let (ledger, partition) = (ledger.clone(), tail.partition());
        let source = EventSource { ledger, partition };
        let messages: Vec<_> = events
            .iter()
            .map(|stored| FeedMessage::new(&self.names, &source, stored))
            .collect();
        self.published = self
            .writer
            .publish(&source, self.published, &messages)
            .await?;
        self.mark_due = true;
        self.works();
        Ok(())
    }

    fn works(&mut self) {
        self.patience.renew();
        self.health.works(self.tail.partition(), Component::Feed);
    }

    async fn mark(&mut self) -> Result<(), NotFed> {
        if !self.mark_due {
            return Ok(());
        }
        self.marked_at = Instant::now();
        let mark = FeedMark {
            v: FeedMark::VERSION,
            sequence: self.tail.sequence.0,
            head: Head {
                prices: Default::default(),
                ..self.tail.head.clone()
            },
            published_position: self.published.position,
            published_sequence: self.published.sequence.0,
            published_last: self.published.last,
            removed: self.published.removed,
            disputed: false,
        };
        let key = FeedMark::key(self.tail.partition());
        let value = Bytes::from(wire::encode(&mark));
        match self.marks.write(&key, self.marked, value).await {
            Ok(revision) => {
                self.marked = revision;
                self.mark_due = false;
                Ok(())
            }
            Err(WriteError::Moved) => Err(Stop::Fenced.into()),
            Err(WriteError::Unreachable(error)) => Err(error.into()),
        }
    }
}

/// What comes next, but not before a time.
async fn after<T>(at: Instant, next: impl Future<Output = T>) -> T {
    // a timer is a millisecond late even where nothing is to be waited for
    if Instant::now() < at {
        tokio::time::sleep_until(at).await;
    }
    next.await
}

async fn end<J: Journal>(journal: &J, partition: Partition) -> Result<Sequence, NotFed> {
    journal
        .end()
        .await
        .map_err(|error| unread(partition, error))
}

fn unread(partition: Partition, error: ReadError) -> NotFed {
    match error {
        ReadError::Gap { at } => Halt::Gap { partition, at }.into(),
        ReadError::Unreachable { at, source } => NotFed::Store(StoreError {
            action: format!("read the journal of partition {partition} at sequence {at}"),
            source,
        }),
    }
}

async fn read<J: Journal>(
    journal: &J,
    tail: &mut Tail,
    stored: Result<Stored, ReadError>,
) -> Result<Vec<StoredEvent>, NotFed> {
    let partition = tail.partition();
    let stored = stored.map_err(|error| unread(partition, error))?;
    if stored.sequence <= tail.sequence {
        return Ok(Vec::new()); // stepped over already
    }
    let halt = match tail.accept(&stored) {
        Ok(commit) => return Ok(commit.events),
        Err(halt) => halt,
    };
    match tail.step_over(journal, &stored, halt).await {
        Ok(()) => Ok(Vec::new()),
        Err(chain::NotStepped::Halt(halt)) => Err(halt.into()),
        Err(chain::NotStepped::Unread(error)) => Err(unread(partition, error)),
    }
}

/// Why a step of the feed did not succeed.
enum NotFed {
    Stop(Stop),
    Behind(Published),
    Store(StoreError),
}

impl NotFed {
    /// At the end, a mark that could not be written costs the next start some reading, no more.
    fn unless_stop(self) -> Result<(), Stop> {
        match self {
            Self::Stop(Stop::Halted(halt)) => Err(Stop::Halted(halt)),
            _ => Ok(()),
        }
    }
}

impl From<Stop> for NotFed {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<Halt> for NotFed {
    fn from(halt: Halt) -> Self {
        Self::Stop(Stop::Halted(halt))
    }
}

impl From<StoreError> for NotFed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<FeedError> for NotFed {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::Behind(published) => Self::Behind(published),
            FeedError::Store(error) => Self::Store(error),
        }
    }
}
