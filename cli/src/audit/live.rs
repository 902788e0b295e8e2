//! Journals of a server, read with patience: a server that is busy, or changes its leader, is asked again for a
//! while before an audit gives up.

use std::{future::Future, time::Duration};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use seatbelt_bus::{Nats, Pauses, ProvisionError};
use seatbelt_ledger::{
    journal::{Journal, ReadError, Sequence, Stored},
    nats::NatsJournal,
};
use seatbelt_schemas::{
    names::Names,
    position::{PARTITIONS_MAX, Partition, Partitions},
};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{
    AuditError,
    source::{Item, partitions_of},
};

/// How long a server that does not answer is asked again, counted from its first silence.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// An error that may be none a moment later.
trait Passing: std::error::Error {
    fn passes(&self) -> bool;
}

impl Passing for ProvisionError {
    fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

impl Passing for ReadError {
    fn passes(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

/// How long somebody has waited for an answer: not at all before the first error.
#[derive(Default)]
struct Patience(Option<(Instant, Pauses)>);

impl Patience {
    /// Waits a moment where it is worth to ask again.
    async fn bears(&mut self, error: &impl Passing) -> bool {
        let begun = || (Instant::now(), Pauses::new(PAUSE_FIRST, PAUSE_MAX));
        let (since, pauses) = self.0.get_or_insert_with(begun);
        if !error.passes() || since.elapsed() >= PATIENCE {
            return false;
        }
        warn!(%error, "the server does not answer: it is asked again");
        sleep(pauses.draw()).await;
        true
    }
}

async fn patiently<T, E: Passing, F: Future<Output = Result<T, E>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T, E> {
    let mut patience = Patience::default();
    loop {
        match ask().await {
            Err(error) if patience.bears(&error).await => {}
            answer => return answer,
        }
    }
}

/// Opens one journal.
pub(super) async fn open(
    nats: &Nats,
    names: &Names,
    partition: Partition,
) -> Result<NatsJournal, ProvisionError> {
    patiently(|| NatsJournal::open_existing(nats, names, partition)).await
}

/// How many partitions the ledger on a server has: what the genesis of any journal says, or META where none can
/// be read.
pub(super) async fn partitions_on(nats: &Nats, names: &Names) -> Result<Partitions, AuditError> {
    let mut first = None;
    for partition in (0..PARTITIONS_MAX).map(Partition) {
        match of_journal(nats, names, partition).await {
            Ok(partitions) => return Ok(partitions),
            Err(error @ AuditError::Open { .. }) => return Err(error),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    let known = seatbelt_bus::meta(nats, names)
        .await
        .map(|meta| meta.partitions);
    known.map_err(|_| first.expect("there is no ledger without a partition"))
}

/// What one journal says of it; [`AuditError::NoLedger`] where it is not there or empty.
async fn of_journal(
    nats: &Nats,
    names: &Names,
    partition: Partition,
) -> Result<Partitions, AuditError> {
    let journal = match open(nats, names, partition).await {
        Ok(journal) => journal,
        Err(error @ ProvisionError::Missing { .. }) => {
            let detail = error.to_string();
            return Err(AuditError::NoLedger { detail });
        }
        Err(source) => return Err(open_error(partition, source)),
    };
    let at = Sequence(1);
    match patiently(|| journal.get(at)).await {
        Ok(Some(stored)) => partitions_of(partition, &stored),
        Ok(None) => Err(AuditError::NoLedger {
            detail: "its journal is empty".to_owned(),
        }),
        Err(source) => Err(AuditError::Read {
            partition,
            at,
            source,
        }),
    }
}

pub(super) fn open_error(partition: Partition, source: ProvisionError) -> AuditError {
    AuditError::Open { partition, source }
}

/// Every commit of one journal, up to where it ends now.
pub(super) fn journal_commits<J: Journal>(
    partition: Partition,
    journal: &J,
) -> BoxStream<'_, Result<Item, AuditError>> {
    let commits = stream::once(async move {
        match patiently(|| journal.end()).await {
            Ok(end) => replay(journal, end),
            // damaged: one by one, to find where
            Err(ReadError::Gap { .. }) => one_by_one(journal),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    });
    commits
        .flatten()
        .map(move |stored| match stored {
            Ok(stored) => Ok(Item { partition, stored }),
            Err(source) => {
                let (ReadError::Gap { at } | ReadError::Unreachable { at, .. }) = &source;
                Err(AuditError::Read {
                    partition,
                    at: *at,
                    source,
                })
            }
        })
        .boxed()
}

fn one_by_one<J: Journal>(journal: &J) -> BoxStream<'_, Result<Stored, ReadError>> {
    stream::unfold(Some(Sequence(1)), move |at| async move {
        let at = at?;
        match patiently(|| journal.get(at)).await {
            Ok(Some(stored)) => Some((Ok(stored), Some(at.next()))),
            Ok(None) => None,
            Err(ReadError::Gap { .. }) => Some((Err(ReadError::Gap { at }), None)),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

/// All commits up to one; goes on behind the last that came where the server was away in between.
fn replay<J: Journal>(journal: &J, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
    let begun = Some((journal.replay(Sequence(0), to), Sequence(0)));
    stream::unfold(begun, move |reading| async move {
        let (mut commits, last) = reading?;
        let mut patience = Patience::default();
        loop {
            match commits.next().await? {
                Ok(stored) => {
                    let last = stored.sequence;
                    return Some((Ok(stored), Some((commits, last))));
                }
                Err(error) if patience.bears(&error).await => commits = journal.replay(last, to),
                Err(error) => return Some((Err(error), None)),
            }
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use seatbelt_ledger::journal::AppendError;
    use tokio_util::bytes::Bytes;

    use super::*;

    const COMMITS: u64 = 5;

    /// A journal of five commits, each of which is read once its server has failed so many times before.
    struct Unsteady {
        fails_each: u64,
        asked: AtomicU64,
    }

    impl Unsteady {
        fn failing(fails_each: u64) -> Self {
            let asked = AtomicU64::new(0);
            Self { fails_each, asked }
        }

        fn answer<T>(&self, at: Sequence, answer: T) -> Result<T, ReadError> {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            if self.fails_each < u64::MAX && asked % (self.fails_each + 1) == self.fails_each {
                return Ok(answer);
            }
            let source = "no leader".into();
            Err(ReadError::Unreachable { at, source })
        }

        fn stored(sequence: Sequence) -> Stored {
            let payload = Bytes::from(sequence.0.to_string());
            Stored { sequence, payload }
        }
    }

    impl Journal for Unsteady {
        async fn append(&self, _: Sequence, _: Bytes) -> Result<Sequence, AppendError> {
            unreachable!("an audit writes nothing")
        }

        async fn end(&self) -> Result<Sequence, ReadError> {
            self.answer(Sequence(0), Sequence(COMMITS))
        }

        async fn get(&self, at: Sequence) -> Result<Option<Stored>, ReadError> {
            self.answer(at, Some(Self::stored(at)))
        }

        fn replay(
            &self,
            after: Sequence,
            to: Sequence,
        ) -> BoxStream<'_, Result<Stored, ReadError>> {
            let rest = (after.0 + 1..=to.0).map(Sequence);
            stream::iter(rest)
                .map(|at| self.answer(at, Self::stored(at)))
                .boxed()
        }

        fn follow(&self, _: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
            unreachable!("an audit ends where the journal does")
        }
    }

    async fn read(journal: &Unsteady) -> Vec<Result<u64, AuditError>> {
        let items = journal_commits(Partition(3), journal);
        items
            .map(|item| item.map(|item| item.stored.sequence.0))
            .collect()
            .await
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_away_now_and_then_is_read_to_the_end() {
        let commits = read(&Unsteady::failing(3)).await;
        let commits: Vec<_> = commits.into_iter().map(Result::unwrap).collect();
        assert_eq!(commits, [1, 2, 3, 4, 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stays_away_is_told() {
        let begun = Instant::now();
        let commits = read(&Unsteady::failing(u64::MAX)).await;
        assert!(matches!(commits[..], [Err(AuditError::Read { .. })]));
        assert!(begun.elapsed() >= PATIENCE);
        assert!(begun.elapsed() <= PATIENCE + PAUSE_MAX);
    }
}
