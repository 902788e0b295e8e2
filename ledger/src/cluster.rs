//! The ledger of many processes: each hosts the partitions whose leases it holds and reaches the
//! others by NATS request, through the same trait.
//!
//! A lease only says who should try. What a writer may append is decided by the journal's sequence
//! alone. On a planned stop requests are finished, the last commit is made durable, and only then is
//! the lease given back; after a kill the lease ends by its age.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use seatbelt_bus::{Bucket, Nats, ProvisionError, snapshot_bucket};
use seatbelt_schemas::{
    command::{CommandError, ReserveOutcome},
    ids::AccountId,
    names::Names,
    position::{Partition, Partitions},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Ledger, Read, Release, Reserve, Resize, Resolution,
        Settle, Standing, Taken,
    },
    host::{HostConfig, HostedPartition, PartitionHandle, PartitionStatus, describe},
    journal::seen::Seen,
    lease::{Lease, Leases},
    nats::{Known, LeaseBucket, NatsJournal, OpenError, Witnesses},
    remote::{LedgerService, RemoteLedger},
    store::SnapshotStore,
};

/// How long a call is tried again while a partition changes hands; a takeover takes two seconds.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How often a call is sent again after the writer in this process stepped down under it.
const LOCAL_TRIES_MAX: usize = 3;
/// First and longest pause before a partition whose journal cannot be opened or served is tried again.
/// The lease is given back meanwhile: another process may be luckier.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
const OPEN_PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// How long an opening that gets no answer is tried again, and the pause in between.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
const OPEN_AGAIN: Duration = Duration::from_millis(100);
/// How often it is asked whether another process serves a partition, and how long that may take.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How long a lease is waited for before it is believed that its holder serves.
const ELSEWHERE_AFTER: Duration = Duration::from_secs(2);
/// How long putting a journal's end on record may take.
const NOTE_MAX: Duration = Duration::from_secs(2);
/// How long a call waits to see a writer's seat change after the writer stepped down under it.
const SEAT_PAUSE: Duration = Duration::from_millis(20);

/// What the ledger of this process is made from.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// What its writers share. `host.writer` must be unique among all processes.
    pub host: HostConfig,
    /// Names of streams and subjects.
    pub names: Names,
    /// Copies of every stream.
    pub replicas: u8,
    /// What a checkpoint that is kept away from the server saw of each journal.
    pub checkpoint: BTreeMap<Partition, Known>,
}

/// The ledger as one process takes part in it.
#[derive(Debug)]
pub struct ClusterLedger {
    partitions: Partitions,
    slots: Vec<Slot>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// Where a partition's writer is, as this process knows.
#[derive(Debug, Clone)]
enum Place {
    /// In another process, or nowhere yet.
    Elsewhere,
    /// Here.
    Here(PartitionHandle),
    /// It should be here, and its journal cannot be served: the reason.
    Trouble(String),
}

/// The ways to one partition.
#[derive(Debug)]
struct Slot {
    partition: Partition,
    local: watch::Receiver<Place>,
    /// How far the clock here was from the server's when hosting ended.
    offset_ms: watch::Receiver<Option<i64>>,
    /// Why nobody elsewhere is known to serve it; none where somebody answered.
    elsewhere: watch::Sender<Option<String>>,
    remote: RemoteLedger,
}

/// Asks again and again whether a partition that is not hosted here is served by anybody: a lease in
/// the bucket proves nothing, an answer does.
async fn probe(
    mut local: watch::Receiver<Place>,
    remote: RemoteLedger,
    told: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) {
    let probing = async {
        while local
            .wait_for(|place| matches!(place, Place::Elsewhere))
            .await
            .is_ok()
        {
            let answer = remote.read(Read {
                account: AccountId::system(),
                key: None,
            });
            told.send_replace(match answer.await {
                Err(error @ CommandError::Unavailable { .. }) => Some(error.to_string()),
                Ok(_) | Err(_) => None,
            });
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    tokio::select! {
        () = probing => {}
        () = shutdown.cancelled() => {}
    }
}

impl ClusterLedger {
    /// Begins to take part: every partition that nobody hosts will be hosted here.
    pub async fn start(nats: &Nats, config: ClusterConfig) -> Result<Arc<Self>, ProvisionError> {
        let ClusterConfig {
            host,
            names,
            replicas,
            checkpoint: _,
        } = &config;
        let snapshots = snapshot_bucket(nats, names, *replicas).await?;
        let leases = LeaseBucket::open(nats, names, *replicas).await?;
        let leases = Leases::start(Arc::new(leases), &host.writer);
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let slots = host.partitions.iter().map(|partition| {
            let (local, watched) = watch::channel(Place::Elsewhere);
            let (offset, offset_ms) = watch::channel(None);
            let seat = Seat {
                nats: nats.clone(),
                config: config.clone(),
                leases: leases.clone(),
                snapshots: snapshots.clone(),
                partition,
                local,
                offset_ms: offset,
                seen: None,
                shutdown: shutdown.clone(),
            };
            tasks.spawn(seat.keep());
            let (elsewhere, _) = watch::channel(Some("no writer has answered yet".to_owned()));
            tasks.spawn(probe(
                watched.clone(),
                RemoteLedger::new(nats, names, partition, PROBE_MAX),
                elsewhere.clone(),
                shutdown.clone(),
            ));
            let remote = RemoteLedger::new(nats, names, partition, PATIENCE);
            Slot {
                partition,
                local: watched,
                offset_ms,
                elsewhere,
                remote,
            }
        });
        let slots = slots.collect();
        Ok(Arc::new(Self {
            partitions: host.partitions,
            slots,
            shutdown,
            tasks,
        }))
    }

    /// Waits until every partition is served, here or elsewhere; gives those whose journal cannot be
    /// served, with the reason. The others go on without them.
    pub async fn ready(&self) -> Vec<(Partition, String)> {
        let served = self
            .slots
            .iter()
            .map(async |slot| (slot.partition, slot.served().await));
        let served = futures::future::join_all(served).await;
        served
            .into_iter()
            .filter_map(|(partition, served)| Some((partition, served.err()?)))
            .collect()
    }

    /// The partitions whose commands would be turned away now, each with its reason.
    pub fn unserved(&self) -> Vec<(Partition, String)> {
        let reasons = self.slots.iter().map(|slot| {
            let reason = match &*slot.local.borrow() {
                Place::Here(handle) => match handle.status() {
                    PartitionStatus::Serving => None,
                    PartitionStatus::Recovering => Some("its journal is being read".to_owned()),
                    PartitionStatus::Stopped(reason) => Some(reason),
                },
                Place::Elsewhere => slot.elsewhere.borrow().clone(),
                Place::Trouble(reason) => Some(reason.clone()),
            };
            Some((slot.partition, reason?))
        });
        reasons.flatten().collect()
    }

    /// The partitions hosted here.
    pub fn hosted(&self) -> Vec<Partition> {
        let here = self
            .slots
            .iter()
            .filter(|slot| matches!(*slot.local.borrow(), Place::Here(_)));
        here.map(|slot| slot.partition).collect()
    }

    /// Hands every partition over: requests are finished, commits durable, leases given back.
    pub async fn stop(&self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn of(&self, account: &AccountId) -> &Slot {
        &self.slots[usize::from(self.partitions.of(account).0)]
    }
}

impl Slot {
    /// Waits until somebody answers for the partition (any answer but "not now" tells), or until it
    /// is known that nobody can.
    async fn served(&self) -> Result<(), String> {
        let mut local = self.local.clone();
        loop {
            let probe = self.remote.read(Read {
                account: AccountId::system(),
                key: None,
            });
            tokio::select! {
                place = local.wait_for(|place| !matches!(place, Place::Elsewhere)) => {
                    return match place.as_deref() {
                        Ok(Place::Trouble(reason)) => Err(reason.clone()),
                        Ok(_) | Err(_) => Ok(()),
                    };
                }
                answer = probe => match answer {
                    Err(CommandError::Unavailable { .. }) => {}
                    Ok(_) | Err(_) => {
                        self.elsewhere.send_replace(None);
                        return Ok(());
                    }
                },
            }
        }
    }

    /// Calls the writer here, or the one elsewhere. A writer that stepped down under the call leaves
    /// its outcome open: the same command goes to its successor, which knows what became of it.
    async fn call<T>(
        &self,
        call: impl for<'l> Fn(&'l dyn Ledger) -> BoxFuture<'l, Answer<T>>,
    ) -> Answer<T> {
        for _ in 0..LOCAL_TRIES_MAX {
            let place = self.local.borrow().clone();
            let handle = match place {
                Place::Here(handle) => handle,
                Place::Elsewhere => break,
                Place::Trouble(reason) => return Err(CommandError::unavailable(reason)),
            };
            match call(&handle).await {
                Err(CommandError::Unavailable { .. })
                    if handle.status() != PartitionStatus::Serving =>
                {
                    // its seat learns of it at once and takes the handle away
                    let mut local = self.local.clone();
                    let _ = tokio::time::timeout(SEAT_PAUSE, local.changed()).await;
                }
                answer => return answer,
            }
        }
        call(&self.remote).await
    }
}

impl Ledger for ClusterLedger {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let slot = self.of(&command.account);
        Box::pin(async move { slot.call(|ledger| ledger.reserve(command.clone())).await })
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        let slot = self.of(&command.account);
        Box::pin(async move { slot.call(|ledger| ledger.resize(command.clone())).await })
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        let slot = self.of(&command.account);
        Box::pin(async move {
            slot.call(|ledger| ledger.settle(command.clone(), ack))
                .await
        })
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        let slot = self.of(&command.account);
        Box::pin(async move {
            slot.call(|ledger| ledger.settle_early(command.clone()))
                .await
        })
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        let slot = self.of(&command.account);
        Box::pin(async move { slot.call(|ledger| ledger.release(command.clone())).await })
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        let slot = self.of(&query.account);
        Box::pin(async move { slot.call(|ledger| ledger.read(query.clone())).await })
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        Box::pin(async move {
            if !command.account.is_system() {
                let slot = self.of(&command.account);
                return slot.call(|ledger| ledger.admin(command.clone())).await;
            }
            // the price book is kept in every partition: each decides with its own
            let mut outcome = Ok(AdminOutcome { position: None });
            for slot in &self.slots {
                // a partition in trouble decides nothing: it needs no price now
                if !matches!(*slot.local.borrow(), Place::Trouble(_)) {
                    // one that does not answer keeps it from nobody else; the caller tries again
                    let answer = slot.call(|ledger| ledger.admin(command.clone())).await;
                    outcome = outcome.and(answer);
                }
            }
            outcome
        })
    }

    fn clock_offsets_ms(&self) -> Vec<(Partition, i64)> {
        let known = self.slots.iter().map(|slot| {
            let offset_ms = match &*slot.local.borrow() {
                Place::Here(handle) => handle.clock_offset_ms(),
                Place::Trouble(_) => *slot.offset_ms.borrow(),
                Place::Elsewhere => None,
            };
            Some((slot.partition, offset_ms?))
        });
        known.flatten().collect()
    }
}

/// This process's place at one partition: waits for the lease, hosts while it holds it.
struct Seat {
    nats: Nats,
    config: ClusterConfig,
    leases: Leases,
    snapshots: Bucket,
    partition: Partition,
    local: watch::Sender<Place>,
    offset_ms: watch::Sender<Option<i64>>,
    /// The last commit that a writer of this process met.
    seen: Option<Known>,
    shutdown: CancellationToken,
}

/// Why a reign ended.
enum End {
    Shutdown,
    LeaseLost,
    /// The writer served and lost its place: whoever took it may serve, or we may again.
    SteppedDown(String),
    /// The journal cannot be served, by us or by anybody.
    Damaged(String),
}

impl Seat {
    async fn keep(mut self) {
        let mut failures = 0;
        loop {
            let lease = tokio::select! {
                lease = self.acquire() => lease,
                () = self.shutdown.cancelled() => return,
            };
            let partition = self.partition;
            let pause = match self.reign(lease).await {
                End::Shutdown => return,
                End::LeaseLost => {
                    warn!(%partition, "lease lost: another process hosts the partition");
                    Duration::ZERO
                }
                End::SteppedDown(reason) => {
                    warn!(%partition, reason, "writer stepped down, trying again");
                    failures = 0;
                    OPEN_PAUSE
                }
                End::Damaged(reason) => {
                    error!(%partition, reason, "partition cannot be served");
                    self.local.send_replace(Place::Trouble(reason));
                    failures += 1;
                    growing(failures)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    /// Takes the lease. Whoever holds it for longer than one that is in trouble itself would is luckier
    /// than this process: calls go there until we host again.
    async fn acquire(&self) -> Lease {
        let acquired = self.leases.acquire(self.partition);
        tokio::pin!(acquired);
        tokio::select! {
            lease = &mut acquired => return lease,
            () = tokio::time::sleep(ELSEWHERE_AFTER) => {}
        }
        self.local.send_replace(Place::Elsewhere);
        acquired.await
    }

    async fn reign(&mut self, lease: Lease) -> End {
        let journal = tokio::select! {
            journal = self.open() => journal,
            () = lease.lost() => return End::LeaseLost,
            () = self.shutdown.cancelled() => {
                lease.release().await;
                return End::Shutdown;
            }
        };
        let journal = match journal {
            Ok(journal) => Seen::new(journal),
            Err(failure) => {
                lease.release().await;
                let reason = describe(&failure);
                return match failure.passes() {
                    true => End::SteppedDown(reason),
                    false => End::Damaged(reason),
                };
            }
        };
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(self.snapshots.clone());
        let hosted = HostedPartition::start(
            &self.config.host,
            self.partition,
            journal.clone(),
            Some(snapshots),
        );
        let (end, service) = self.host(&lease, &hosted, &journal).await;
        if let Some(service) = service {
            match end {
                // callers turn elsewhere at once, and what is being worked on is answered first
                End::Shutdown => service.stop().await,
                End::LeaseLost | End::SteppedDown(_) | End::Damaged(_) => drop(service),
            }
        }
        hosted.stop().await;
        self.offset_ms
            .send_replace(hosted.handle().clock_offset_ms());
        self.local.send_replace(Place::Elsewhere);
        // nobody who takes over waits for what only a later opening reads
        lease.release().await;
        self.remember(&journal).await;
        end
    }

    /// Puts on record how far the journal is known to go: no later look may find it shorter.
    async fn remember(&mut self, journal: &Seen<NatsJournal>) {
        let Some((at, hash)) = journal.last() else {
            return;
        };
        let by = "this process";
        self.seen = Some(Known { by, at, hash });
        self.note(journal).await;
    }

    async fn note(&self, journal: &Seen<NatsJournal>) {
        let Some(last) = journal.last() else {
            return;
        };
        let witnesses = self.witnesses();
        let noted = witnesses.note(journal.inner(), last);
        let failure = match tokio::time::timeout(NOTE_MAX, noted).await {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => describe(&failure),
            Err(_) => "no answer in time".to_owned(),
        };
        warn!(partition = %self.partition, failure, "the journal's end is not on record");
    }

    fn witnesses(&self) -> Witnesses {
        let ClusterConfig {
            names,
            host,
            checkpoint,
            ..
        } = &self.config;
        Witnesses::new(&self.nats, names, self.partition, &host.ledger)
            .and_checkpoint(checkpoint.get(&self.partition).copied())
    }

    async fn host(
        &self,
        lease: &Lease,
        hosted: &HostedPartition,
        journal: &Seen<NatsJournal>,
    ) -> (End, Option<LedgerService>) {
        let handle = hosted.handle();
        let ready = tokio::select! {
            ready = handle.ready() => ready,
            () = lease.lost() => return (End::LeaseLost, None),
            () = self.shutdown.cancelled() => return (End::Shutdown, None),
        };
        if let Err(refused) = ready {
            return (End::Damaged(refused.to_string()), None);
        }
        let ledger: Arc<dyn Ledger> = Arc::new(handle.clone());
        let service =
            LedgerService::start(&self.nats, &self.config.names, self.partition, ledger).await;
        let service = match service {
            Ok(service) => service,
            Err(failure) => return (End::SteppedDown(failure.to_string()), None),
        };
        info!(partition = %self.partition, "hosting");
        self.local.send_replace(Place::Here(handle.clone()));
        let serving = async {
            let end = tokio::select! {
                () = lease.lost() => End::LeaseLost,
                reason = handle.ended() => End::SteppedDown(reason),
                () = self.shutdown.cancelled() => End::Shutdown,
            };
            if !matches!(end, End::Shutdown) {
                self.local.send_replace(Place::Elsewhere);
            }
            end
        };
        // nobody waits for what only a later opening reads
        let (end, ()) = futures::future::join(serving, self.note(journal)).await;
        (end, Some(service))
    }

    /// The journal, if it is what it was. A server that does not answer now, as while a leader is elected,
    /// is asked again before the lease goes back.
    async fn open(&self) -> Result<NatsJournal, OpenError> {
        let give_up = tokio::time::Instant::now() + OPEN_PATIENCE;
        let witnesses = self.witnesses();
        loop {
            let opened = witnesses.open(self.config.replicas, self.seen);
            match opened.await {
                Err(failure) if failure.passes() && tokio::time::Instant::now() < give_up => {
                    let (partition, failure) = (self.partition, describe(&failure));
                    warn!(%partition, failure, "journal cannot be opened, trying again");
                    tokio::time::sleep(OPEN_AGAIN).await;
                }
                other => return other,
            }
        }
    }
}

fn growing(failures: u32) -> Duration {
    let doubled = OPEN_PAUSE.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    doubled.min(OPEN_PAUSE_LONGEST)
}
