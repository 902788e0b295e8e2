//! The ledger as its callers see it: one trait, whether the partition's writer runs in this process
//! or is reached over NATS.

use std::time::Duration;

use futures::future::BoxFuture;
pub use seatbelt_schemas::command::{
    Ack, Admin, AdminOutcome, CommandError, Exchange, Read, Release, Reserve, ReserveOutcome,
    Resize, Resolution, Settle, Standing,
};
use seatbelt_schemas::{
    ids::{AccountId, KeyId, ReservationId},
    neuron::NeuronRecord,
    position::Partition,
    usage::UsageEvent,
};
use thiserror::Error;

/// What came of a call.
pub type Answer<T> = Result<T, CommandError>;

/// A settle that is in the writer's state: the first of its two answers, and the way to the second.
pub struct Taken {
    /// What was charged, and where.
    pub resolution: Resolution,
    /// Comes once the settle lasts. [`CommandError::Unavailable`] says that it may not have lasted, or
    /// that the answer was lost: only then is the same command to be sent again.
    pub lasting: BoxFuture<'static, Answer<Resolution>>,
}

impl Taken {
    /// A settle that lasts already.
    pub fn lasting(resolution: Resolution) -> Self {
        let lasting = Box::pin(std::future::ready(Ok(resolution)));
        Self {
            resolution,
            lasting,
        }
    }
}

impl std::fmt::Debug for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Taken")
            .field("resolution", &self.resolution)
            .finish_non_exhaustive()
    }
}

/// The gate. All calls are idempotent by command id and safe to send again after
/// [`CommandError::Unavailable`]. A caller that drops a `reserve` gives the hold back: the writer
/// releases what it cannot deliver.
pub trait Ledger: Send + Sync {
    /// Asks for a hold; answers once the decision is durable.
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>>;

    /// Changes an open hold; answers once durable.
    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>>;

    /// Replaces a hold by what was really used; answers once, as `ack` says.
    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>>;

    /// The same with two answers to one command: it is taken, and later it lasts. An error is the only
    /// answer. Whoever drops the second answer sends the command again with [`Ack::Durable`]. Where a
    /// ledger has nothing to say before, both answers come once the settle lasts.
    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        Box::pin(async move {
            let resolution = self.settle(command, Ack::Durable).await?;
            Ok(Taken::lasting(resolution))
        })
    }

    /// Gives a hold back; answers once durable.
    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>>;

    /// Puts a hold in the place of an open one; answers once durable. [`CommandError::Short`] where it does not
    /// fit: the open one stays, and is the caller's to end. A caller that drops the call gives the new one back, and ends
    /// the open one itself.
    /// As of a writer that knows no exchange where a ledger does not say otherwise.
    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let detail = format!(
            "hold {} stays: this ledger puts none in another's place",
            command.release
        );
        Box::pin(std::future::ready(Err(CommandError::invalid(detail))))
    }

    /// How an account stands now, in the writer's own state.
    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>>;

    /// An operator's change; answers once durable.
    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>>;

    /// How far the clock of this process is ahead of the server's, ms, by the partitions that it leads or
    /// would lead if that were less; nothing where it leads none.
    fn clock_offsets_ms(&self) -> Vec<(Partition, i64)> {
        Vec::new()
    }
}

/// How an account stood when the projector last wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStanding {
    /// The standing; its position and time are those of the snapshot.
    pub standing: Standing,
    /// How long ago the snapshot was known to be current, ms.
    pub age_ms: u64,
}

/// Snapshots could not be read: try again.
#[derive(Debug, Error)]
#[error("cannot read the snapshot of account {account}")]
pub struct SnapshotError {
    pub account: AccountId,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Spend for reading, never for deciding.
pub trait Snapshots: Send + Sync {
    /// How the account stood, with windows aged to `at_ms`; only the caps that apply to `key` where
    /// one is given. `None` where the projector has not seen the account.
    fn standing(
        &self,
        account: AccountId,
        key: Option<KeyId>,
        at_ms: u64,
    ) -> BoxFuture<'_, Result<Option<SnapshotStanding>, SnapshotError>>;
}

/// Usage events as neurons publish them.
pub trait UsageEvents: Send + Sync {
    /// Waits for the usage event of a reservation, at most `patience`. Call it before the request is
    /// dispatched or cancelled: an event published before the call may be missed.
    fn usage(
        &self,
        reservation: ReservationId,
        patience: Duration,
    ) -> BoxFuture<'static, Option<UsageEvent>>;
}

/// The neurons alive now, newest record of each; changes as they register, load up and leave.
pub type Neurons = tokio::sync::watch::Receiver<Vec<NeuronRecord>>;
