//! Runs the writers of partitions in this process: one task each, fed by a bounded channel.
//!
//! A task recovers its partition from the journal, takes it over, and serves it until it loses its
//! place or is told to stop. It never decides anything itself. A partition whose journal cannot be
//! read or does not chain stops alone, with its reason; the others go on.

use std::sync::{Arc, Mutex};

use futures::{future::BoxFuture, stream::FuturesUnordered};
use seatbelt_schemas::{
    command::{CommandError, ReserveOutcome},
    ids::{AccountId, LedgerId},
    position::{Partition, Partitions},
};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Exchange, Ledger, Read, Release, Reserve, Resize,
        Resolution, Settle, Standing, Taken,
    },
    journal::Journal,
    recovery::{Base, RecoverySource},
    shares::Shares,
    store::SnapshotStore,
    writer::WriterConfig,
};

/// Commands that wait in a partition's channel; beyond it callers wait to hand theirs over.
pub const CHANNEL_MAX: usize = 4096;
/// Reserves of one account that wait in it or to get into it; a further one is turned away at once, as
/// it would only make the other accounts wait. What ends a hold is never turned away.
pub const CHANNEL_SHARE_MAX: usize = CHANNEL_MAX / 2;

mod appending;
pub mod bounds;
pub mod clock;
mod delivery;
mod fetching;
mod handle;
pub mod skew;
mod task;
mod timepiece;

use bounds::Bounds;
use clock::HostClock;
pub use clock::now_ms;
use handle::Handed;
pub use handle::PartitionHandle;
use task::Task;
use timepiece::Timepiece;

/// What all partitions of a process share.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// How many partitions there are.
    pub partitions: Partitions,
    /// The ledger's id.
    pub ledger: LedgerId,
    /// This process, by a name for people.
    pub writer: String,
    /// How long after its deadline a reservation is left alone, ms.
    pub expiry_grace_ms: u64,
    /// How many accounts of a partition stay in memory, where there are snapshots.
    pub accounts_max: usize,
    /// Where it reads the time.
    pub clock: HostClock,
}

/// How a partition stands in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionStatus {
    /// Its journal is being read.
    Recovering,
    /// Its writer serves.
    Serving,
    /// Its writer is over; the reason, for people.
    Stopped(String),
}

/// One partition's writer in this process, and the way to it.
#[derive(Debug)]
pub struct HostedPartition {
    handle: PartitionHandle,
    handing_over: CancellationToken,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl HostedPartition {
    /// Starts a writer over the journal of `partition`, from its snapshots where there are any.
    pub fn start<J: Journal>(
        config: &HostConfig,
        partition: Partition,
        journal: J,
        snapshots: Option<Arc<dyn SnapshotStore>>,
    ) -> Self {
        Self::start_within(config, partition, journal, snapshots, &Bounds::default())
    }

    /// The same, within bounds of its own.
    pub fn start_within<J: Journal>(
        config: &HostConfig,
        partition: Partition,
        journal: J,
        snapshots: Option<Arc<dyn SnapshotStore>>,
        bounds: &Bounds,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(bounds.channel_max);
        let (report, status) = watch::channel(PartitionStatus::Recovering);
        let handed = Arc::new(Handed {
            shares: Shares::new(CHANNEL_SHARE_MAX),
            left: Mutex::default(),
            skew: Mutex::default(),
        });
        let (shutdown, handing_over) = (CancellationToken::new(), CancellationToken::new());
        let tasks = TaskTracker::new();
        let time = Timepiece::new(config.clock.clone());
        let config = WriterConfig {
            partition,
            partitions: config.partitions,
            ledger: config.ledger.clone(),
            writer: config.writer.clone(),
            expiry_grace_ms: config.expiry_grace_ms,
            single_refusals_per_second: bounds.single_refusals_per_second,
            accounts_max: config.accounts_max,
            settle_linger_ms: bounds.settle_linger_ms,
            commit_events_max: bounds.commit_events_max,
        };
        let source = RecoverySource {
            journal: Arc::new(journal),
            snapshots,
            partition,
            hot_max: bounds.hot_max,
        };
        let task = Task {
            config,
            source,
            base: Base::default(),
            fetches: FuturesUnordered::new(),
            fetches_max: bounds.fetches_max,
            clear_at: time.clock().instant(),
            short_looks: 0,
            time,
            handed: Arc::clone(&handed),
            receiver,
            report,
            handing_over: handing_over.clone(),
            shutdown: shutdown.clone(),
        };
        tasks.spawn(task.run());
        Self {
            handle: PartitionHandle {
                partition,
                sender,
                handed,
                status,
            },
            handing_over,
            shutdown,
            tasks,
        }
    }

    /// The way to the writer.
    pub fn handle(&self) -> &PartitionHandle {
        &self.handle
    }

    /// Lets nobody wait for room any more: whoever does is told at once to ask the next host. All else is
    /// served as before.
    pub fn hand_over(&self) {
        self.handing_over.cancel();
    }

    /// Stops taking commands, makes what was decided durable, and ends.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The writers of a ledger of which this process hosts every partition.
#[derive(Debug)]
pub struct LedgerHost {
    partitions: Partitions,
    hosted: Vec<HostedPartition>,
}

impl LedgerHost {
    /// Starts a writer over each journal; `journals` are those of partition 0, 1, 2, ... in order.
    pub fn start<J: Journal>(config: &HostConfig, journals: Vec<J>) -> Arc<Self> {
        Self::start_from(config, journals, None)
    }

    /// The same, from the snapshots of the partitions where there are any.
    pub fn start_from<J: Journal>(
        config: &HostConfig,
        journals: Vec<J>,
        snapshots: Option<&Arc<dyn SnapshotStore>>,
    ) -> Arc<Self> {
        let partitions = config.partitions;
        assert_eq!(
            journals.len(),
            usize::from(u8::from(partitions)),
            "one journal per partition"
        );
        let hosted = partitions.iter().zip(journals);
        let hosted = hosted.map(|(partition, journal)| {
            HostedPartition::start(config, partition, journal, snapshots.cloned())
        });
        Arc::new(Self {
            partitions,
            hosted: hosted.collect(),
        })
    }

    /// The handle of one partition.
    pub fn partition(&self, partition: Partition) -> &PartitionHandle {
        self.hosted[usize::from(partition.0)].handle()
    }

    /// All handles, by partition.
    pub fn handles(&self) -> impl Iterator<Item = &PartitionHandle> {
        self.hosted.iter().map(HostedPartition::handle)
    }

    /// Waits until every partition serves; the first reason why one does not otherwise.
    pub async fn ready(&self) -> Result<(), CommandError> {
        for handle in self.handles() {
            handle.ready().await?;
        }
        Ok(())
    }

    /// Stops taking commands, makes what was decided durable, and ends.
    pub async fn stop(&self) {
        futures::future::join_all(self.hosted.iter().map(HostedPartition::stop)).await;
    }

    fn of(&self, account: &AccountId) -> &PartitionHandle {
        self.partition(self.partitions.of(account))
    }
}

impl Ledger for LedgerHost {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        self.of(&command.account).reserve(command)
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        self.of(&command.reserve.account).exchange(command)
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).resize(command)
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).settle(command, ack)
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        self.of(&command.account).settle_early(command)
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).release(command)
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.of(&query.account).read(query)
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        Box::pin(async move {
            if !command.account.is_system() {
                return self.of(&command.account).admin(command).await;
            }
            // the price book is kept in every partition: each decides with its own
            let mut outcome = Ok(AdminOutcome { position: None });
            for handle in self.handles() {
                // one in trouble keeps it from nobody else; the caller tries again
                outcome = outcome.and(handle.admin(command.clone()).await);
            }
            outcome
        })
    }
}
