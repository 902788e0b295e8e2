//! Messages on a journal's subject that are no commits of it.
//!
//! Nobody but a writer publishes there, and a writer's append is conditional, so one that is there stands
//! at the journal's end and nothing follows it: the partition stops. Where an operator has them skipped,
//! the next commit continues the chain of the one before them and says so in a `writer_started` that names
//! each by its place and hash. Whoever reads the journal steps over exactly those.

use futures::TryStreamExt;
use seatbelt_schemas::{
    commit::{Commit, UnreadCommit},
    event::EventBody,
    skipped::{SKIPPED_MAX, Skipped, Stray},
};
use thiserror::Error;

use super::{Journal, ReadError, Sequence, Stored};
use crate::partition::{ChainError, Head};

/// A message that no later commit says to step over.
#[derive(Debug, Error)]
#[error("sequence {at}")]
pub struct Unresolved {
    /// The first such message.
    pub at: Sequence,
    /// Why it is no commit, or what is wrong with the word for it.
    #[source]
    pub source: ChainError,
}

/// The messages met since the last commit that are none, for who reads a journal once from its start.
#[derive(Debug, Default)]
pub struct Strays {
    met: Vec<Stray>,
    first: Option<Unresolved>,
    skipped: u64,
}

impl Strays {
    /// Notes a message that does not continue the journal.
    pub fn meet(
        &mut self,
        stored: (Sequence, &[u8]),
        source: ChainError,
    ) -> Result<(), Unresolved> {
        let (at, payload) = stored;
        let first = self.first.take().unwrap_or(Unresolved { at, source });
        if self.met.len() >= SKIPPED_MAX {
            return Err(first);
        }
        self.met.push(Stray::of(at.0, payload));
        self.first = Some(first);
        Ok(())
    }

    /// Whether a commit that continues the journal may stand here: its word names what was met since the
    /// one before, and nothing else.
    pub fn resolve(
        &mut self,
        at: Sequence,
        head: &Head,
        word: Option<&Skipped>,
    ) -> Result<(), Unresolved> {
        let named = word.map_or(&[][..], |word| &word.messages);
        if named == self.met {
            self.skipped += self.met.len() as u64;
            self.met.clear();
            self.first = None;
            return Ok(());
        }
        let (partition, position) = (head.partition, head.position.next());
        let source = ChainError::Skips {
            partition,
            at: position,
        };
        Err(match (self.first.take(), word) {
            (Some(first), None) => first,
            _ => Unresolved { at, source },
        })
    }

    /// At the journal's end: nothing follows that could name what was met last.
    pub fn finish(&mut self) -> Result<(), Unresolved> {
        self.first.take().map_or(Ok(()), Err)
    }

    /// How many were stepped over so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

/// What a commit says of the messages before it.
pub fn word_of(commit: &Commit) -> Option<&Skipped> {
    let mut bodies = commit.events.iter().map(|stored| &stored.event.body);
    bodies.find_map(word_in)
}

/// As [`word_of`], of one event.
pub fn word_in(body: &EventBody) -> Option<&Skipped> {
    match body {
        EventBody::WriterStarted(started) => started.skipped.as_ref(),
        _ => None,
    }
}

/// Looks past a message that does not continue the journal after `head`: gives the last one to step over
/// where the commit that follows names them all; `None` where none does.
pub async fn step_over<J: Journal>(
    journal: &J,
    head: &Head,
    first: &Stored,
) -> Result<Option<Sequence>, ReadError> {
    let end = journal.end().await?;
    let mut rest = journal.replay(first.sequence, end);
    let mut met = vec![Stray::of(first.sequence.0, &first.payload)];
    while met.len() <= SKIPPED_MAX
        && let Some(next) = rest.try_next().await?
    {
        let Ok(commit) = head.check(&next.payload) else {
            met.push(Stray::of(next.sequence.0, &next.payload));
            continue;
        };
        let named = word_of(&commit).is_some_and(|word| word.messages == met);
        return Ok(named.then_some(Sequence(next.sequence.0 - 1)));
    }
    Ok(None)
}

/// What a message that does not continue the journal is, as far as its bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing of this journal, or bytes of which nothing can be told.
    Foreign,
    /// A copy of what stands earlier.
    Copy,
    /// It stands where the next commit belongs: most likely that was one, and was damaged.
    Damaged,
    /// A commit of a later place: what belongs between is missing.
    Later,
}

/// Tells by its header what a message is that does not continue the journal after `head`.
pub fn kind(head: &Head, payload: &[u8]) -> Kind {
    let Ok(unread) = UnreadCommit::of(payload) else {
        return Kind::Foreign;
    };
    let (header, next) = (unread.header(), head.position.next());
    if header.partition != head.partition {
        return Kind::Foreign;
    }
    match header.first_position.cmp(&next) {
        std::cmp::Ordering::Less => Kind::Copy,
        std::cmp::Ordering::Equal => Kind::Damaged,
        std::cmp::Ordering::Greater => Kind::Later,
    }
}

/// What becomes of the messages at a journal's end that do not continue it, as far as their bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayVerdict {
    /// None of them was ever a commit of this journal.
    Strays,
    /// One stands where the next commit belongs, or says that it stands later and contradicts itself: most likely
    /// it was the next commit, and was damaged.
    Damaged,
    /// A commit of a later place stands there, behind one that may have been damaged: it was decided on what
    /// that one said.
    Middle(Sequence),
}

/// Judges the messages behind `head`. A writer appends behind the commit before and nowhere else, so that one of
/// a later place with nothing between that may be damaged is none of this journal.
pub fn judge(head: &Head, messages: &[Stored]) -> StrayVerdict {
    let mut verdict = StrayVerdict::Strays;
    let mut may_be_damaged = false;
    for message in messages {
        let is_whole = Commit::read(&message.payload).is_ok();
        match kind(head, &message.payload) {
            Kind::Later if may_be_damaged => return StrayVerdict::Middle(message.sequence),
            Kind::Later if !is_whole => verdict = StrayVerdict::Damaged,
            Kind::Damaged => verdict = StrayVerdict::Damaged,
            Kind::Later | Kind::Foreign | Kind::Copy => {}
        }
        may_be_damaged |= !is_whole || verdict == StrayVerdict::Damaged;
    }
    verdict
}
