//! A journal in memory: the same promises as the stored one, for tests and the simulation.
//!
//! Clones share one log. Faults are scripted per append, in order, so that every way an append can
//! end has a test without a broken server. Nothing here survives the process.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::watch;

use super::{AppendError, Journal, ReadError, Sequence, Stored};
use crate::host::clock::HostClock;

/// What befalls one append. An append at the wrong place is refused whatever the script says, as a
/// server would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalFault {
    /// It goes well.
    None,
    /// It lands, and the caller never learns: the acknowledgement is lost.
    UnknownLanded,
    /// It never lands, and the caller never learns.
    UnknownLost,
    /// It never lands while the caller waits, and lands when the next append arrives.
    UnknownDelayed,
    /// It is told to be at the wrong place, for an earlier try of itself is still being replicated: nothing
    /// stands there yet. It lands when the next append arrives.
    Replicating,
    /// The journal refuses it.
    Refused,
}

#[derive(Debug, Default)]
struct Log {
    commits: Vec<Bytes>,
    faults: VecDeque<JournalFault>,
    delayed: Option<(Sequence, Bytes)>,
}

impl Log {
    fn end(&self) -> Sequence {
        Sequence(self.commits.len() as u64)
    }

    fn commit(&self, sequence: Sequence) -> Option<Stored> {
        let index = usize::try_from(sequence.0.checked_sub(1)?).ok()?;
        let payload = self.commits.get(index)?.clone();
        Some(Stored { sequence, payload })
    }

    fn push_if(&mut self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        if self.end() != expected {
            return Err(AppendError::WrongSequence { expected });
        }
        self.commits.push(payload);
        Ok(self.end())
    }

    fn append(&mut self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        if let Some((at, bytes)) = self.delayed.take() {
            // it arrives as any append does: at the wrong place it changes nothing
            drop(self.push_if(at, bytes));
        }
        let unknown = |source: &str| AppendError::Unknown {
            expected,
            source: source.to_owned().into(),
        };
        match self.faults.pop_front().unwrap_or(JournalFault::None) {
            JournalFault::None => self.push_if(expected, payload),
            JournalFault::UnknownLanded => {
                self.push_if(expected, payload)?;
                Err(unknown("the acknowledgement was lost"))
            }
            JournalFault::UnknownLost => Err(unknown("the append was lost")),
            JournalFault::UnknownDelayed => {
                self.delayed = Some((expected, payload));
                Err(unknown("the append is late"))
            }
            JournalFault::Replicating => {
                self.delayed = Some((expected, payload));
                Err(AppendError::WrongSequence { expected })
            }
            JournalFault::Refused => Err(AppendError::Refused {
                detail: "refused by script".to_owned(),
            }),
        }
    }
}

/// The journal of one partition, in memory.
#[derive(Debug, Clone)]
pub struct MemoryJournal {
    log: Arc<Mutex<Log>>,
    end: watch::Sender<Sequence>,
    clock: Option<HostClock>,
}

impl Default for MemoryJournal {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryJournal {
    /// An empty journal.
    pub fn new() -> Self {
        Self {
            log: Arc::default(),
            end: watch::Sender::new(Sequence(0)),
            clock: None,
        }
    }

    /// An empty journal whose server has this clock.
    pub fn on_clock(clock: HostClock) -> Self {
        Self {
            clock: Some(clock),
            ..Self::new()
        }
    }

    /// A journal that already holds `commits`, whatever they are.
    pub fn with_commits(commits: impl IntoIterator<Item = Bytes>) -> Self {
        let journal = Self::new();
        let end = {
            let mut log = journal.lock();
            log.commits.extend(commits);
            log.end()
        };
        journal.end.send_replace(end);
        journal
    }

    /// Scripts what befalls the next appends, after those scripted before.
    pub fn script(&self, faults: impl IntoIterator<Item = JournalFault>) {
        self.lock().faults.extend(faults);
    }

    /// Loses all that stands behind a place, as a server does that lost the end of its file.
    pub fn cut(&self, to: Sequence) {
        let keep = usize::try_from(to.0).unwrap_or(usize::MAX);
        let end = {
            let mut log = self.lock();
            log.commits.truncate(keep);
            log.end()
        };
        self.end.send_replace(end);
    }

    /// All commits, in order.
    pub fn commits(&self) -> Vec<Bytes> {
        self.lock().commits.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        // no code panics while it holds the lock half way through a change
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stored(&self, sequence: Sequence) -> Option<Stored> {
        self.lock().commit(sequence)
    }
}

impl Journal for MemoryJournal {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        let (outcome, end) = {
            let mut log = self.lock();
            let outcome = log.append(expected, payload);
            (outcome, log.end())
        };
        self.end.send_replace(end);
        outcome
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        Ok(self.lock().end())
    }

    async fn server_ms(&self) -> Result<Option<u64>, ReadError> {
        Ok(self.clock.as_ref().map(HostClock::wall_ms))
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        Ok(self.stored(sequence))
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        stream::unfold(after.next(), move |at| async move {
            if at > to {
                return None;
            }
            let stored = self.stored(at).ok_or(ReadError::Gap { at });
            // an error is the last item
            let next = if stored.is_ok() { at.next() } else { to.next() };
            Some((stored, next))
        })
        .boxed()
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        let end = self.end.subscribe();
        stream::unfold((after.next(), end), move |(at, mut end)| async move {
            // the sender lives in self, so waiting cannot fail
            end.wait_for(|end| *end >= at).await.ok()?;
            let stored = self.stored(at)?;
            Some((Ok(stored), (at.next(), end)))
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::conformance;

    #[tokio::test]
    async fn memory_journal_conforms() {
        conformance::suite(async || {
            let journal = MemoryJournal::new();
            [journal.clone(), journal]
        })
        .await;
    }

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[tokio::test]
    async fn a_lost_acknowledgement_leaves_the_commit_there() {
        let journal = MemoryJournal::new();
        journal.script([JournalFault::UnknownLanded]);
        let outcome = journal.append(Sequence(0), bytes("a")).await;
        assert!(matches!(outcome, Err(AppendError::Unknown { .. })));
        assert_eq!(journal.commits(), [bytes("a")]);
    }

    #[tokio::test]
    async fn a_lost_or_refused_append_leaves_nothing() {
        let journal = MemoryJournal::new();
        journal.script([JournalFault::UnknownLost, JournalFault::Refused]);
        let lost = journal.append(Sequence(0), bytes("a")).await;
        assert!(matches!(lost, Err(AppendError::Unknown { .. })));
        let refused = journal.append(Sequence(0), bytes("a")).await;
        assert!(matches!(refused, Err(AppendError::Refused { .. })));
        assert!(journal.commits().is_empty());
    }

    #[tokio::test]
    async fn a_delayed_append_takes_its_place_before_its_own_retry() {
        let journal = MemoryJournal::new();
        journal.script([JournalFault::UnknownDelayed]);
        let late = journal.append(Sequence(0), bytes("a")).await;
        assert!(matches!(late, Err(AppendError::Unknown { .. })));
        assert!(journal.commits().is_empty());
        let again = journal.append(Sequence(0), bytes("a")).await;
        assert!(matches!(again, Err(AppendError::WrongSequence { .. })));
        assert_eq!(journal.commits(), [bytes("a")]);
    }
}
