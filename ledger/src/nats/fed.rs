//! What the feed itself holds of a partition, as a witness of its journal.
//!
//! The feed gets events only from the journal, so its last one must stand there, byte for byte. Its mark
//! knows the same but lies beside the snapshots, and is put back or lost with them. The feed is derived:
//! one that cannot be read vouches for nothing, and stops no partition.

use std::time::Duration;

use bytes::Bytes;
use seatbelt_bus::{FeedLook, Nats, kept::StoreError};
use seatbelt_schemas::{
    chain::in_one_line,
    commit::Commit,
    ids::LedgerId,
    names::Names,
    position::{Partition, Position},
    skipped::SKIPPED_MAX,
};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::begun::{Doubt, OpenError};
use crate::journal::{Journal, ReadError, Sequence};

/// Who says so, for people.
const BY: &str = "the feed";
/// How many places of the feed an opening looks at, from its end: a takeover waits for it. The projector
/// reads what is before them, and leaves word in its mark of what the journal does not hold.
const NEAR: u64 = 2048;
/// How long an opening looks, and how long an operator's command does.
const NEAR_MAX: Duration = Duration::from_secs(2);
const ALL_MAX: Duration = Duration::from_secs(120);
/// How often a journal that ends before the feed is read again: on three servers one that takes over may
/// not have applied yet what the one before it handed out.
const LOOKS: u32 = 5;
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// How far back the feed is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// For whoever waits to serve.
    Near,
    /// For an operator.
    All,
}

/// An event on the feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fed {
    /// Its position in its partition.
    pub(super) position: Position,
    event: Bytes,
}

/// The partition's last event on the feed. `published` is a place there and the position that stands at it,
/// before which nothing need be looked for.
pub(super) async fn last(
    nats: &Nats,
    names: &Names,
    (ledger, partition): (&LedgerId, Partition),
    published: Option<(u64, Position)>,
    reach: Reach,
) -> Option<Fed> {
    let feed = FeedLook::of(nats, names);
    let source = format!("{ledger}/{partition}");
    let (places, within) = match reach {
        Reach::Near => (NEAR, NEAR_MAX),
        Reach::All => (u64::MAX, ALL_MAX),
    };
    let failure = match timeout(within, find(&feed, &source, published, places)).await {
        Ok(Ok(found)) => return found,
        Ok(Err(failure)) => in_one_line(&failure),
        Err(elapsed) => elapsed.to_string(),
    };
    warn!(%partition, failure, "the feed cannot be asked how far the journal went");
    None
}

async fn find(
    feed: &FeedLook,
    source: &str,
    published: Option<(u64, Position)>,
    places: u64,
) -> Result<Option<Fed>, StoreError> {
    let (mut after, mut marked) = (0, None);
    if let Some((at, position)) = published.filter(|(at, _)| *at > 0) {
        let there = feed.get(at).await?;
        let id = format!("{source}/{position}");
        // it may be another feed than the one that was marked
        marked = there.filter(|there| there.id == id);
        after = marked.as_ref().map_or(0, |_| at - 1);
    }
    let mut found = feed.last_of(source, after, places).await?;
    if found.is_empty() {
        found.extend(marked); // farther back than it is looked
    }
    let position = |id: &str| id.rsplit_once('/')?.1.parse().ok().map(Position);
    let fed = found.into_iter().filter_map(|message| {
        let position = position(&message.id)?;
        let event = message.payload;
        Some(Fed { position, event })
    });
    Ok(fed.max_by_key(|fed| fed.position))
}

/// How a journal stands to an event on the feed.
enum Stands {
    /// It holds it, or nothing that tells otherwise.
    Agrees,
    /// Another one is there, or nothing that can be read.
    Other(Sequence),
    /// It ends before it.
    Behind(Position),
}

/// Compares a journal with the last event on the feed.
pub(super) async fn check(
    journal: &impl Journal,
    partition: Partition,
    fed: &Fed,
) -> Result<(), OpenError> {
    let mut looks = 1;
    loop {
        match compare(journal, fed).await? {
            Stands::Agrees => return Ok(()),
            Stands::Other(at) => {
                return Err(Doubt::Replaced {
                    partition,
                    by: BY,
                    at,
                }
                .into());
            }
            Stands::Behind(end) if looks >= LOOKS => {
                let at = fed.position;
                return Err(Doubt::BehindFeed { partition, end, at }.into());
            }
            Stands::Behind(_) => sleep(LOOK_PAUSE).await,
        }
        looks += 1;
    }
}

async fn compare(journal: &impl Journal, fed: &Fed) -> Result<Stands, ReadError> {
    let end = journal.end().await?;
    let Some((last, commit)) = commit_up_to(journal, end).await? else {
        return Ok(Stands::Agrees); // no commit at all: for whoever reads it to tell
    };
    let last_position = last_of(&commit);
    if fed.position > last_position {
        return Ok(match last == end {
            true => Stands::Behind(last_position),
            // what stands there may have been the commit
            false => Stands::Other(last.next()),
        });
    }
    let Some((at, commit)) = holding(journal, last, fed.position).await? else {
        return Ok(Stands::Agrees);
    };
    let mut events = commit.events.iter();
    Ok(match events.find(|it| it.event.position == fed.position) {
        Some(stored) if stored.bytes == fed.event => Stands::Agrees,
        Some(_) => Stands::Other(at),
        // positions that do not follow each other: for whoever reads the journal to tell
        None => Stands::Agrees,
    })
}

/// The commit with an event at `position`, as far as positions grow with sequences.
async fn holding(
    journal: &impl Journal,
    last: Sequence,
    position: Position,
) -> Result<Option<(Sequence, Commit)>, ReadError> {
    let (mut low, mut high) = (1, last.0);
    while low < high {
        let middle = high - (high - low) / 2;
        match commit_up_to(journal, Sequence(middle)).await? {
            Some((_, commit)) if commit.first_position <= position => low = middle,
            Some((at, _)) => high = at.0.saturating_sub(1).max(low),
            None => return Ok(None),
        }
    }
    commit_up_to(journal, Sequence(low)).await
}

/// The last commit up to a place: messages that are none are stepped over.
async fn commit_up_to(
    journal: &impl Journal,
    place: Sequence,
) -> Result<Option<(Sequence, Commit)>, ReadError> {
    let lowest = place.0.saturating_sub(SKIPPED_MAX as u64).max(1);
    for at in (lowest..=place.0).rev().map(Sequence) {
        let stored = journal.get(at).await?.ok_or(ReadError::Gap { at })?;
        if let Ok(commit) = Commit::read(&stored.payload) {
            return Ok(Some((at, commit)));
        }
    }
    Ok(None)
}

fn last_of(commit: &Commit) -> Position {
    let last = commit.events.last().map(|stored| stored.event.position);
    last.unwrap_or(commit.first_position)
}
