//! One account at some moment, in the vocabulary of `eventually`: the ledger up to there is the store, and a
//! `Repository` loads the account by replay. No other account is held in memory.

use std::{
    future::ready,
    sync::{Mutex, PoisonError},
};

use eventually::{
    repository::{Error, Repository},
    store::{AppendError, EventStore, EventStream, Expected, Persisted, Select},
    versioning::Versioned,
};
use futures::{
    FutureExt, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seatbelt_ledger::{account::Account, repository::AccountAggregate};
use seatbelt_schemas::{
    commit::Commit,
    event::{Event, EventBody},
    ids::AccountId,
    position::Position,
};

use super::{
    AuditError,
    show::At,
    source::{Item, Source},
};

/// How far a ledger was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reached {
    /// The last event, whoever's it is.
    pub(super) position: Position,
    /// The newest time of any.
    pub(super) at_ms: u64,
}

/// An account as it stood.
#[derive(Debug)]
pub(super) struct Stood {
    pub(super) account: Account,
    pub(super) reached: Reached,
}

/// Loads an account as it stood at some moment, or at the end.
pub(super) async fn load(
    source: &Source,
    account: &AccountId,
    at: Option<At>,
) -> Result<Stood, AuditError> {
    let ledger = UpTo {
        source,
        at,
        reached: Mutex::new(Reached {
            position: Position(0),
            at_ms: 0,
        }),
    };
    let repository = Repository::new(AccountAggregate::default().into(), &ledger);
    let loaded = repository.get(account.clone()).await;
    let root = loaded.map_err(|error| match error {
        Error::Store(error) => error,
        Error::Aggregate(source) => AuditError::Account {
            account: account.clone(),
            source,
        },
    })?;
    if root.version() == 0 {
        let account = account.clone();
        return Err(AuditError::NoAccount { account });
    }
    Ok(Stood {
        account: root.state().clone(),
        reached: ledger.reached(),
    })
}

/// A ledger up to a moment.
struct UpTo<'a> {
    source: &'a Source,
    at: Option<At>,
    reached: Mutex<Reached>,
}

impl UpTo<'_> {
    fn reached(&self) -> Reached {
        // no code panics while it holds the lock
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is up to there; notes that the ledger was read so far.
    fn takes(&self, event: &Event) -> bool {
        if self.at.is_some_and(|at| !at.includes(event)) {
            return false;
        }
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = Reached {
            position: event.position,
            at_ms: reached.at_ms.max(event.at_ms),
        };
        true
    }

    /// The events of one account, numbered from 1.
    async fn events(
        &self,
        account: AccountId,
    ) -> Result<BoxStream<'_, Result<Placed, AuditError>>, AuditError> {
        let commits = self.source.commits_around(&account).await?;
        let events = commits
            .map(|item| {
                let events = events_of(&item?)?.into_iter();
                Ok::<_, AuditError>(stream::iter(events.map(Ok::<_, AuditError>)))
            })
            .try_flatten()
            .try_take_while(|event| ready(Ok(self.takes(event))));
        let mut version = 0_u32;
        let numbered = events.try_filter_map(move |event| {
            let ours = event.account == account && concerns(&event.body, version);
            version = version.saturating_add(u32::from(ours));
            let placed = ours.then(|| {
                Persisted::from(event.account.clone(), event)
                    .version(version)
                    // a position does not fit, and nobody reads it
                    .sequence_number(version)
            });
            ready(Ok(placed))
        });
        Ok(numbered.boxed())
    }
}

type Placed = Persisted<AccountId, Event>;

/// Whether an event changes the account that it names, of which so many came before.
fn concerns(body: &EventBody, before: u32) -> bool {
    match body {
        EventBody::Genesis(_) | EventBody::WriterStarted(_) | EventBody::PriceSet(_) => false,
        EventBody::Unknown { .. } => before > 0,
        _ => true,
    }
}

fn events_of(item: &Item) -> Result<Vec<Event>, AuditError> {
    let commit = Commit::read(&item.stored.payload);
    let commit = commit.map_err(|source| AuditError::Commit {
        partition: item.partition,
        at: item.stored.sequence,
        source,
    })?;
    Ok(commit
        .events
        .into_iter()
        .map(|stored| stored.event)
        .collect())
}

/// One that is read, an account at a time.
impl EventStore for &UpTo<'_> {
    type SourceId = AccountId;
    type Event = Event;
    type Error = AuditError;

    fn append(
        &mut self,
        _: AccountId,
        _: Expected,
        _: Vec<Event>,
    ) -> BoxFuture<'_, Result<u32, AuditError>> {
        ready(Err(AuditError::OnlyRead)).boxed()
    }

    fn stream(
        &self,
        account: AccountId,
        select: Select,
    ) -> BoxFuture<'_, Result<EventStream<'_, Self>, AuditError>> {
        let from = match select {
            Select::All => 0,
            Select::From(version) => version,
        };
        async move {
            let events = self.events(account).await?;
            let chosen = events.try_filter(move |event| ready(event.version() >= from));
            Ok(chosen.boxed())
        }
        .boxed()
    }

    fn stream_all(&self, _: Select) -> BoxFuture<'_, Result<EventStream<'_, Self>, AuditError>> {
        ready(Err(AuditError::OnlyRead)).boxed()
    }

    fn remove(&mut self, _: AccountId) -> BoxFuture<'_, Result<(), AuditError>> {
        ready(Err(AuditError::OnlyRead)).boxed()
    }
}

impl AppendError for AuditError {
    fn is_conflict_error(&self) -> bool {
        false
    }
}
