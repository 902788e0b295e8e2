//! The vocabulary of `eventually`: the account as an `Aggregate`, the journal as an `EventStore`, so
//! that a `Repository` loads an account by replay in the auditor and in tests.
//!
//! The adapter's `u32` is the account's own version: how many of its events came before. It is never
//! a stream sequence, and `remove` is an error, for nothing is ever removed. The hot path does not
//! come here: it calls the same `decide` and `apply` directly and clones no state.

use eventually::{
    aggregate::Aggregate,
    store::{AppendError as ConflictError, EventStore, EventStream, Expected, Persisted, Select},
    versioning::Versioned,
};
use futures::{
    FutureExt, StreamExt, TryFutureExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seatbelt_schemas::{
    command::{Change, CommandError},
    commit::Commit,
    event::{Event, EventBody, Report, StoredEvent},
    ids::{AccountId, Actor, CommandId, ReservationId},
    position::{Partition, Position},
};
use thiserror::Error;

use crate::{
    account::Account,
    decide::{self, Context, Cover, ReserveRequest, Verdict, follows::Follows},
    journal::{AppendError, Journal, ReadError, Sequence, strays},
    outcomes,
    partition::{ChainError, PartitionState},
    prices::PriceBook,
};

/// An account, with the prices that its decisions depend on.
#[derive(Debug, Clone, Default)]
pub struct AccountAggregate {
    /// The prices in force.
    pub prices: PriceBook,
}

/// What an account can be told to do.
#[derive(Debug, Clone)]
pub enum AccountAction {
    /// Asks for a hold; refused at once where it would have to wait.
    Reserve(seatbelt_schemas::command::Reserve),
    /// Replaces a hold by what was used.
    Settle(ReservationId, Report),
    /// Gives a hold back.
    Release(ReservationId, String),
    /// An operator's change.
    Change(Change),
}

/// A command to an account: when, by whom, what.
#[derive(Debug, Clone)]
pub struct AccountCommand {
    pub id: CommandId,
    pub actor: Actor,
    /// The time of the decision, unix ms.
    pub at_ms: u64,
    /// What to do.
    pub action: AccountAction,
}

impl AccountAggregate {
    fn decide(
        &self,
        account: &Account,
        command: &AccountCommand,
    ) -> Result<Option<EventBody>, CommandError> {
        let context = Context {
            at_ms: command.at_ms,
            prices: &self.prices,
            cover: Cover::WithinLimits,
        };
        match &command.action {
            AccountAction::Reserve(reserve) => {
                let request = ReserveRequest {
                    reservation: reserve.id.into(),
                    key: &reserve.key,
                    team: reserve.team.as_ref(),
                    model: reserve.model.as_ref(),
                    run: reserve.run.as_ref(),
                    end_user: reserve.end_user.as_ref(),
                    asked: outcomes::asked(reserve),
                    budget: reserve.budget.as_ref(),
                    within: reserve.within.as_ref(),
                    attempt: None,
                };
                Ok(match decide::reserve(account, context, request, true)? {
                    Verdict::Reserve(data) => Some(data.into()),
                    Verdict::Refuse(data) => Some(data.into()),
                    Verdict::Wait(_) => None,
                })
            }
            AccountAction::Settle(reservation, report) => {
                let report = report.clone();
                let settled = decide::settle(account, context, *reservation, report)?;
                Ok(Some(settled.into()))
            }
            AccountAction::Release(reservation, reason) => {
                Ok(Some(decide::release(account, *reservation, reason)?.into()))
            }
            AccountAction::Change(change) => decide::change(account, change),
        }
    }
}

impl Aggregate for AccountAggregate {
    type Id = AccountId;
    type State = Account;
    type Event = Event;
    type Command = AccountCommand;
    type Error = CommandError;

    fn apply(mut state: Account, event: Event) -> Result<Account, CommandError> {
        state.apply(&event);
        Ok(state)
    }

    /// The events of a command. Their positions are zero until the store places them.
    fn handle<'a, 's: 'a>(
        &'a self,
        id: &'s AccountId,
        state: &'s Account,
        command: AccountCommand,
    ) -> BoxFuture<'a, Result<Option<Vec<Event>>, CommandError>> {
        let place = move |command: &AccountCommand, body| Event {
            position: Position(0),
            at_ms: command.at_ms,
            account: id.clone(),
            cause: command.id,
            actor: command.actor.clone(),
            body,
        };
        let decided = self.decide(state, &command).map(|body| {
            let event = place(&command, body?);
            let (follows, mut after) = (Follows::of(Some(state), &event.body), state.clone());
            after.apply(&event);
            let following = follows.decided(&after, command.at_ms);
            let following = following.map(|body| place(&command, body));
            Some(std::iter::once(event).chain(following).collect())
        });
        futures::future::ready(decided).boxed()
    }
}

/// Why the store cannot do what it was asked.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// The account has moved on: load it again and decide anew.
    #[error("account {account} is at version {found}, not {expected}")]
    Conflict {
        account: AccountId,
        /// The version that the caller decided on.
        expected: u32,
        /// The version it is at.
        found: u32,
    },
    /// The journal could not be read.
    #[error("cannot read the journal")]
    Read(#[from] ReadError),
    /// The journal could not be appended to.
    #[error("cannot append to the journal")]
    Append(#[from] AppendError),
    /// The journal is damaged.
    #[error("the journal does not chain")]
    Chain(#[from] ChainError),
    /// Nothing is ever removed from a journal.
    #[error("account {0} cannot be removed: the journal only grows")]
    Remove(AccountId),
    /// More events than the adapter's numbers can count.
    #[error("position {0} is beyond what this adapter can count: use the journal itself")]
    Uncountable(Position),
}

impl ConflictError for RepositoryError {
    fn is_conflict_error(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::Append(AppendError::WrongSequence { .. })
        )
    }
}

/// One partition's journal as an event store per account.
#[derive(Debug, Clone)]
pub struct JournalStore<J> {
    journal: J,
    partition: Partition,
}

type Placed = Persisted<AccountId, Event>;

impl<J: Journal> JournalStore<J> {
    /// A store over the journal of `partition`.
    pub fn new(journal: J, partition: Partition) -> Self {
        Self { journal, partition }
    }

    /// Every event so far with the account version it led to, and the fold of all.
    async fn load(&self) -> Result<(Vec<Placed>, PartitionState, Sequence), RepositoryError> {
        let mut state = PartitionState::new(self.partition);
        let end = self.journal.end().await?;
        let mut placed = Vec::new();
        let mut commits = self.journal.replay(Sequence(0), end);
        let mut stepped = Sequence(0);
        while let Some(stored) = commits.next().await.transpose()? {
            if stored.sequence <= stepped {
                continue;
            }
            match state.accept(&stored.payload) {
                Ok(commit) => placed.extend(commit.events.into_iter().map(|stored| stored.event)),
                Err(error) => {
                    let last = strays::step_over(&self.journal, state.head(), &stored).await?;
                    stepped = last.ok_or(error)?;
                }
            }
        }
        Ok((versioned(placed)?, state, end))
    }

    async fn place(
        &self,
        account: AccountId,
        version: Expected,
        events: Vec<Event>,
    ) -> Result<u32, RepositoryError> {
        let (_, state, end) = self.load().await?;
        let found = state.account(&account).map_or(0, Account::version);
        if let Expected::Exact(expected) = version
            && expected != found
        {
            return Err(RepositoryError::Conflict {
                account,
                expected,
                found,
            });
        }
        let first_position = state.position().next();
        let at_ms = events
            .iter()
            .map(|event| event.at_ms)
            .fold(state.at_ms(), u64::max);
        let stored = events
            .into_iter()
            .zip(first_position.0..)
            .map(|(event, position)| {
                StoredEvent::new(Event {
                    position: Position(position),
                    at_ms,
                    ..event
                })
            });
        let commit = Commit {
            partition: self.partition,
            epoch: state.epoch(),
            first_position,
            prev: state.chain(),
            at_ms,
            events: stored.collect(),
            unknown: None,
        };
        let added = u32::try_from(commit.events.len())
            .map_err(|_| RepositoryError::Uncountable(first_position))?;
        self.journal.append(end, commit.encode()).await?;
        found
            .checked_add(added)
            .ok_or(RepositoryError::Uncountable(first_position))
    }
}

/// Numbers each event within its own account.
fn versioned(events: Vec<Event>) -> Result<Vec<Placed>, RepositoryError> {
    let mut versions = std::collections::HashMap::<AccountId, u32>::new();
    let number = |event: Event| {
        let position = event.position;
        let version = versions.entry(event.account.clone()).or_default();
        *version = version
            .checked_add(1)
            .ok_or(RepositoryError::Uncountable(position))?;
        let sequence =
            u32::try_from(position.0).map_err(|_| RepositoryError::Uncountable(position))?;
        let account = event.account.clone();
        Ok(Persisted::from(account, event)
            .version(*version)
            .sequence_number(sequence))
    };
    events.into_iter().map(number).collect()
}

impl<J: Journal> EventStore for JournalStore<J> {
    type SourceId = AccountId;
    type Event = Event;
    type Error = RepositoryError;

    fn append(
        &mut self,
        source_id: AccountId,
        version: Expected,
        events: Vec<Event>,
    ) -> BoxFuture<'_, Result<u32, RepositoryError>> {
        self.place(source_id, version, events).boxed()
    }

    fn stream(
        &self,
        source_id: AccountId,
        select: Select,
    ) -> BoxFuture<'_, Result<EventStream<'_, Self>, RepositoryError>> {
        let wanted = move |placed: &Placed| *placed.source_id() == source_id;
        self.load()
            .map_ok(move |(placed, ..)| selected(placed, select, wanted))
            .boxed()
    }

    fn stream_all(
        &self,
        select: Select,
    ) -> BoxFuture<'_, Result<EventStream<'_, Self>, RepositoryError>> {
        self.load()
            .map_ok(move |(placed, ..)| selected(placed, select, |_| true))
            .boxed()
    }

    fn remove(&mut self, source_id: AccountId) -> BoxFuture<'_, Result<(), RepositoryError>> {
        futures::future::ready(Err(RepositoryError::Remove(source_id))).boxed()
    }
}

fn selected<'a>(
    placed: Vec<Placed>,
    select: Select,
    wanted: impl Fn(&Placed) -> bool + Send + 'a,
) -> BoxStream<'a, Result<Placed, RepositoryError>> {
    let after = match select {
        Select::All => 0,
        Select::From(version) => version,
    };
    let chosen = move |placed: &Placed| placed.version() >= after && wanted(placed);
    stream::iter(placed.into_iter().filter(chosen).map(Ok)).boxed()
}
