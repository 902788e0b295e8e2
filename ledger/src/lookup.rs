//! Finds in the journal what became of a command that is older than what stays hot.
//!
//! A command id begins with the time it was made. Its event is written at most [`CLOCK_SKEW_MS_MAX`]
//! before that (the caller's clock was ahead) and at most `WRITTEN_MS_MAX` after it (older ones
//! are turned away), and times on a journal only go forward: so the place is found by bisection, and
//! the search looks where it most likely is first.
//!
//! Only the command's own event proves that it was carried out. What befell its reservation may stand
//! near the id's time while the reserve itself stands far before it, so none of that ends the search:
//! a command is found, or the whole span in which it can stand has been read.

use futures::StreamExt;
use memchr::memmem::Finder;
use seatbelt_schemas::{
    commit::Commit,
    event::{Event, EventBody},
    ids::{CommandId, ReservationId},
};

use crate::{
    decide::validate::{CLOCK_SKEW_MS_MAX, COMMAND_AGE_MS_MAX},
    journal::{Journal, ReadError, Sequence, Stored},
    outcomes::{Outcomes, Trace, ahead::Unsearched, ended_by},
    writer::waiting::WAIT_MS_MAX,
};

/// Longest time from a command's id to its event: the age at which it is still taken in, the wait for
/// other holds, and as much again as clocks may differ.
const WRITTEN_MS_MAX: u64 = COMMAND_AGE_MS_MAX + WAIT_MS_MAX + CLOCK_SKEW_MS_MAX;
/// How far around its own time a command is looked for first, ms: clocks agree to a second, and a
/// command waits for some seconds.
const NEAR_BEFORE_MS: u64 = 1_000;
const NEAR_AFTER_MS: u64 = 10_000;

/// Traces a command up to the commit `end`, with all that befell its reservation if it made one.
pub async fn trace<J: Journal>(
    journal: &J,
    id: CommandId,
    end: Sequence,
) -> Result<Trace, ReadError> {
    trace_past(journal, id, end, &[]).await
}

/// As [`trace`], on a journal with messages that are no commits: a copy of an old commit would tell a
/// wrong story.
pub async fn trace_past<J: Journal>(
    journal: &J,
    id: CommandId,
    end: Sequence,
    skipped: &[u64],
) -> Result<Trace, ReadError> {
    let made_ms = id.at_ms();
    let near = made_ms.saturating_sub(NEAR_BEFORE_MS)..made_ms.saturating_add(NEAR_AFTER_MS);
    let whole = made_ms.saturating_sub(CLOCK_SKEW_MS_MAX)..made_ms.saturating_add(WRITTEN_MS_MAX);
    let spans = [near.clone(), whole.start..near.start, near.end..whole.end];
    for span in spans {
        let mut search = Search::new(id, skipped);
        let from = first_at(journal, span.start, end, skipped).await?;
        search.run(journal, from, end, span.end).await?;
        if search.is_found() {
            let events = search.events;
            return Ok(Trace { id, events });
        }
    }
    let events = Vec::new();
    Ok(Trace { id, events })
}

/// Reads what the journal tells of ids above a floor; at most `max` of them stay. Messages that are no
/// commits tell nothing.
pub async fn above<J: Journal>(
    journal: &J,
    unread: Unsearched,
    max: usize,
    skipped: &[u64],
) -> Result<Outcomes, ReadError> {
    let Unsearched { floor, from_ms, to } = unread;
    let from = first_at(journal, from_ms, to, skipped).await?;
    let mut outcomes = Outcomes::after(None, max);
    let mut commits = journal.replay(from, to);
    while let Some(stored) = commits.next().await {
        let stored = stored?;
        if skipped.contains(&stored.sequence.0) {
            continue;
        }
        // one that does not decode stopped whoever took the partition over, if it matters
        let Ok(commit) = Commit::decode(&stored.payload) else {
            continue;
        };
        for stored in &commit.events {
            outcomes.apply_above(&stored.event, floor);
        }
    }
    Ok(outcomes)
}

/// The last commit before the first one at or after `at_ms`.
async fn first_at<J: Journal>(
    journal: &J,
    at_ms: u64,
    end: Sequence,
    skipped: &[u64],
) -> Result<Sequence, ReadError> {
    let (mut before, mut after) = (Sequence(0), end.next());
    while before.next() < after {
        let middle = Sequence(before.0 + (after.0 - before.0) / 2);
        let Some(stored) = journal.get(middle).await? else {
            return Err(ReadError::Gap { at: middle });
        };
        // what does not decode is found by the search itself, if it matters; so is what is no commit
        match Commit::decode(&stored.payload) {
            Ok(commit) if commit.at_ms < at_ms && !skipped.contains(&middle.0) => before = middle,
            _ => after = middle,
        }
    }
    Ok(before)
}

struct Search<'a> {
    id: CommandId,
    skipped: &'a [u64],
    reservation: ReservationId,
    needle: Finder<'static>,
    events: Vec<Event>,
}

impl<'a> Search<'a> {
    fn new(id: CommandId, skipped: &'a [u64]) -> Self {
        Self {
            id,
            skipped,
            reservation: id.into(),
            needle: Finder::new(&id.to_string()).into_owned(),
            events: Vec::new(),
        }
    }

    /// Looks through the commits after `from` until the command's story is whole or its time is over.
    async fn run<J: Journal>(
        &mut self,
        journal: &J,
        from: Sequence,
        end: Sequence,
        until_ms: u64,
    ) -> Result<(), ReadError> {
        let mut commits = journal.replay(from, end);
        let mut at = from;
        while at < end && !self.is_over() {
            let Some(stored) = commits.next().await else {
                return Err(ReadError::Gap { at: at.next() });
            };
            let stored = stored?;
            at = stored.sequence;
            if self.skipped.contains(&at.0) {
                continue;
            }
            let at_ms = self.look(&stored);
            if !self.is_found() && at_ms.is_some_and(|at_ms| at_ms >= until_ms) {
                break;
            }
        }
        Ok(())
    }

    /// Takes the events of a commit that belong to the story; the commit's time where it is known. A
    /// commit that does not name the id is not decoded, but for now and then to see what time it is.
    fn look(&mut self, stored: &Stored) -> Option<u64> {
        let named = self.needle.find(&stored.payload).is_some();
        if !named && !stored.sequence.0.is_multiple_of(16) {
            return None;
        }
        let commit = Commit::decode(&stored.payload).ok()?;
        let at_ms = commit.at_ms;
        let events = commit.events.into_iter().map(|stored| stored.event);
        self.events.extend(events.filter(|event| {
            event.cause == self.id || concerns(&event.body) == Some(self.reservation)
        }));
        Some(at_ms)
    }

    /// The command's own event, where it has been seen; not that of the hold that made room for it.
    fn own(&self) -> Option<&Event> {
        self.events
            .iter()
            .find(|event| event.cause == self.id && !makes_room(&event.body))
    }

    fn is_found(&self) -> bool {
        self.own().is_some()
    }

    /// Whether nothing more can follow.
    fn is_over(&self) -> bool {
        match self.own().map(|event| &event.body) {
            None => false,
            Some(EventBody::Reserved(_)) => self.events.iter().any(|event| {
                // an expired reservation may still be settled late
                ended_by(&event.body) == Some(self.reservation)
                    && !matches!(event.body, EventBody::Expired(_))
            }),
            Some(_) => true,
        }
    }
}

fn makes_room(body: &EventBody) -> bool {
    matches!(body, EventBody::Released(data) if data.replaced_by.is_some())
}

/// The reservation that an event changes or ends.
fn concerns(body: &EventBody) -> Option<ReservationId> {
    match body {
        EventBody::Resized(data) => Some(data.reservation),
        other => ended_by(other),
    }
}
