//! The ledger of many processes: each hosts the partitions whose leases it holds and reaches the
//! others by request, through the same trait.
//!
//! A lease only says who should try. What a writer may append is decided by the journal's sequence
//! alone. On a planned stop requests are finished, the last commit is made durable, and only then is
//! the lease given back; after a kill the lease ends by its age.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use seatbelt_schemas::{
    command::{CommandError, ReserveOutcome},
    ids::AccountId,
    names::Names,
    position::{Partition, Partitions},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Exchange, Ledger, Read, Release, Reserve, Resize,
        Resolution, Settle, Standing, Taken,
    },
    host::{HostConfig, PartitionStatus, bounds::Bounds},
    lease::Leases,
    remote::RemoteLedger,
};

pub mod ground;
pub mod owed;
mod place;
mod seat;

use ground::Ground;
use owed::Owed;
use place::{Places, WriterPlace};
use seat::Seat;

/// How long a call is tried again while a partition changes hands; a takeover takes two seconds.
pub const PATIENCE: Duration = Duration::from_secs(4);
/// How often a call is sent again after the writer in this process stepped down under it.
const LOCAL_TRIES_MAX: usize = 3;
/// How often it is asked whether another process serves a partition, and how long that may take.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_MAX: Duration = Duration::from_secs(2);
/// How long a call waits to see a writer's seat change after the writer stepped down under it.
const SEAT_PAUSE: Duration = Duration::from_millis(20);

/// What its partitions share, beside the ground that it stands on.
#[derive(Debug, Clone)]
pub struct ClusterPart {
    /// What its writers share. `host.writer` must be unique among all processes.
    pub host: HostConfig,
    /// Names of streams and subjects.
    pub names: Names,
    /// Bounds of each writer.
    pub bounds: Bounds,
    /// What it has yet to declare.
    pub owed: Owed,
}

/// The ledger as one process takes part in it.
#[derive(Debug)]
pub struct ClusterLedger {
    partitions: Partitions,
    slots: Vec<Slot>,
    owed: Owed,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// The ways to one partition.
#[derive(Debug)]
struct Slot {
    partition: Partition,
    local: Arc<Places>,
    /// How far the clock here was from the server's when hosting ended.
    offset_ms: watch::Receiver<Option<i64>>,
    /// Why nobody elsewhere is known to serve it; none where somebody answered.
    elsewhere: watch::Sender<Option<String>>,
    remote: RemoteLedger,
}

/// Asks again and again whether a partition that is not hosted here is served by anybody: a lease in
/// the bucket proves nothing, an answer does.
async fn probe(
    local: Arc<Places>,
    remote: RemoteLedger,
    told: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) {
    let probing = async {
        loop {
            local
                .until(|place| matches!(place, WriterPlace::Elsewhere))
                .await;
            let answer = remote.read(Read {
                account: AccountId::system(),
                key: None,
                run: None,
                reservation: None,
            });
            told.send_replace(match answer.await {
                Err(error @ CommandError::Unavailable { .. }) => Some(error.to_string()),
                Ok(_) | Err(_) => None,
            });
            tokio::time::sleep(PROBE_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = probing => {}
    }
}

impl ClusterLedger {
    /// Begins to take part: every partition that nobody hosts will be hosted here.
    pub fn take_part<G: Ground>(ground: &G, leases: &Leases, part: &ClusterPart) -> Arc<Self> {
        let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
        let slots = part.host.partitions.iter().map(|partition| {
            let local = Arc::new(Places::default());
            let (offset, offset_ms) = watch::channel(None);
            let seat = Seat {
                ground: ground.clone(),
                part: part.clone(),
                leases: leases.clone(),
                partition,
                local: Arc::clone(&local),
                offset_ms: offset,
                seen: None,
                shutdown: shutdown.clone(),
            };
            tasks.spawn(seat.keep());
            let (elsewhere, _) = watch::channel(Some("no writer has answered yet".to_owned()));
            let reached =
                |patience| RemoteLedger::new(ground.post(), &part.names, partition, patience);
            tasks.spawn(probe(
                Arc::clone(&local),
                reached(PROBE_MAX),
                elsewhere.clone(),
                shutdown.clone(),
            ));
            Slot {
                partition,
                local,
                offset_ms,
                elsewhere,
                remote: reached(PATIENCE),
            }
        });
        let slots = slots.collect();
        Arc::new(Self {
            partitions: part.host.partitions,
            slots,
            owed: part.owed.clone(),
            shutdown,
            tasks,
        })
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
            let reason = match slot.local.now() {
                WriterPlace::Here(handle) => match handle.status() {
                    PartitionStatus::Serving => None,
                    PartitionStatus::Recovering => Some("its journal is being read".to_owned()),
                    PartitionStatus::Stopped(reason) => Some(reason),
                },
                WriterPlace::Elsewhere => slot.elsewhere.borrow().clone(),
                WriterPlace::Unserved(reason) => Some(reason),
            };
            Some((slot.partition, reason?))
        });
        reasons.flatten().collect()
    }

    /// The partitions whose journals this process could not go on from, until it has declared to them: they may
    /// have been put back from before something that it knows of.
    pub fn owed(&self) -> &Owed {
        &self.owed
    }

    /// The partitions hosted here.
    pub fn hosted(&self) -> Vec<Partition> {
        let here = self
            .slots
            .iter()
            .filter(|slot| matches!(slot.local.now(), WriterPlace::Here(_)));
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
        loop {
            let probe = self.remote.read(Read {
                account: AccountId::system(),
                key: None,
                run: None,
                reservation: None,
            });
            tokio::select! {
                biased;
                place = self.local.until(|place| !matches!(place, WriterPlace::Elsewhere)) => {
                    return match place {
                        WriterPlace::Unserved(reason) => Err(reason),
                        WriterPlace::Here(_) | WriterPlace::Elsewhere => Ok(()),
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
            let handle = match self.local.now() {
                WriterPlace::Here(handle) => handle,
                WriterPlace::Elsewhere => break,
                WriterPlace::Unserved(reason) => return Err(CommandError::unavailable(reason)),
            };
            match call(&handle).await {
                Err(CommandError::Unavailable { .. })
                    if handle.status() != PartitionStatus::Serving =>
                {
                    // its seat learns of it at once and takes the handle away
                    let moved = self.local.until(|place| !place.is(&handle));
                    let _ = tokio::time::timeout(SEAT_PAUSE, moved).await;
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
        Box::pin(async move {
            self.owed.lets_in(slot.partition)?;
            slot.call(|ledger| ledger.reserve(command.clone())).await
        })
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let slot = self.of(&command.reserve.account);
        Box::pin(async move {
            self.owed.lets_in(slot.partition)?;
            slot.call(|ledger| ledger.exchange(command.clone())).await
        })
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
                if !matches!(slot.local.now(), WriterPlace::Unserved(_)) {
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
            let offset_ms = match slot.local.now() {
                WriterPlace::Here(handle) => handle.clock_offset_ms(),
                WriterPlace::Unserved(_) => *slot.offset_ms.borrow(),
                WriterPlace::Elsewhere => None,
            };
            Some((slot.partition, offset_ms?))
        });
        known.flatten().collect()
    }
}
