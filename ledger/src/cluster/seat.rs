//! The place of a process at one partition: it waits for the lease, opens the journal, hosts while it holds
//! the lease, and gives it back.

use std::{sync::Arc, time::Duration};

use seatbelt_schemas::position::Partition;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    ClusterPart,
    ground::{Ground, Met, Unopened},
    owed::Door,
    place::{Places, WriterPlace},
};
use crate::{
    api::Ledger,
    host::HostedPartition,
    journal::seen::Seen,
    lease::{Lease, Leases},
    remote::LedgerService,
};

/// First and longest pause before a partition whose journal cannot be opened or served is tried again.
/// The lease is given back meanwhile: another process may be luckier.
const OPEN_PAUSE: Duration = Duration::from_millis(500);
const OPEN_PAUSE_LONGEST: Duration = Duration::from_secs(10);
/// How long an opening that gets no answer is tried again, and the pause in between.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);
const OPEN_AGAIN: Duration = Duration::from_millis(100);
/// How long a lease is waited for before it is believed that its holder serves.
const ELSEWHERE_AFTER: Duration = Duration::from_secs(2);
/// How long putting a journal's end on record may take.
const NOTE_MAX: Duration = Duration::from_secs(2);
/// How long a look at what others found of a journal may take.
const LOOK_MAX: Duration = Duration::from_secs(20);
/// How often the end of a journal that grew is put on record while it is served, and what others found of it
/// is heard: so much may be forgotten at most where the journal and all that was derived from it are put back
/// from a moment before.
const NOTE_EVERY: Duration = Duration::from_secs(2);

/// This process's place at one partition: waits for the lease, hosts while it holds it.
pub(super) struct Seat<G> {
    pub(super) ground: G,
    pub(super) part: ClusterPart,
    pub(super) leases: Leases,
    pub(super) partition: Partition,
    pub(super) local: Arc<Places>,
    pub(super) offset_ms: watch::Sender<Option<i64>>,
    /// The last commit that a writer of this process met.
    pub(super) seen: Option<Met>,
    pub(super) shutdown: CancellationToken,
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

impl<G: Ground> Seat<G> {
    pub(super) async fn keep(mut self) {
        let mut failures = 0;
        loop {
            let lease = tokio::select! {
                biased;
                lease = self.acquire() => lease,
                () = self.shutdown.cancelled() => return,
            };
            let partition = self.partition;
            let end = self.reign(lease).await;
            if let End::SteppedDown(reason) | End::Damaged(reason) = &end {
                self.ground.reign_ended(partition, reason);
            }
            let pause = match end {
                End::Shutdown => return,
                End::LeaseLost => {
                    match self.leases.other_holder(partition) {
                        Some(holder) => {
                            warn!(%partition, holder, "lease lost: another process hosts the partition");
                        }
                        None => {
                            warn!(%partition, "lease lost: it was not renewed in time, as on a machine or a server that is slow; it is taken again where it is free");
                        }
                    }
                    Duration::ZERO
                }
                End::SteppedDown(reason) => {
                    warn!(%partition, reason, "writer stepped down, trying again");
                    failures = 0;
                    OPEN_PAUSE
                }
                End::Damaged(reason) => {
                    error!(%partition, reason, "partition cannot be served");
                    // before anybody can find it served again
                    self.part.owed.owes(partition);
                    self.local.set(WriterPlace::Unserved(reason));
                    failures += 1;
                    growing(failures)
                }
            };
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Takes the lease. Whoever holds it for longer than one that is in trouble itself would is luckier
    /// than this process: calls go there until we host again.
    async fn acquire(&self) -> Lease {
        let acquired = self.leases.acquire(self.partition);
        tokio::pin!(acquired);
        tokio::select! {
            biased;
            lease = &mut acquired => return lease,
            () = tokio::time::sleep(ELSEWHERE_AFTER) => {}
        }
        self.local.set(WriterPlace::Elsewhere);
        acquired.await
    }

    async fn reign(&mut self, lease: Lease) -> End {
        let journal = tokio::select! {
            biased;
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
                return match failure {
                    Unopened::Unanswered(reason) => End::SteppedDown(reason),
                    Unopened::Doubted(reason) => End::Damaged(reason),
                };
            }
        };
        let hosted = HostedPartition::start_within(
            &self.part.host,
            self.partition,
            journal.clone(),
            Some(self.ground.snapshots()),
            &self.part.bounds,
        );
        let (end, service) = self.host(&lease, &hosted, &journal).await;
        if let Some(service) = service {
            match end {
                // callers turn elsewhere at once, those that wait for room too, and what is being worked
                // on is answered first
                End::Shutdown => {
                    hosted.hand_over();
                    service.stop().await;
                }
                End::LeaseLost | End::SteppedDown(_) | End::Damaged(_) => drop(service),
            }
        }
        hosted.stop().await;
        self.offset_ms
            .send_replace(hosted.handle().clock_offset_ms());
        self.local.set(WriterPlace::Elsewhere);
        // nobody who takes over waits for what only a later opening reads
        lease.release().await;
        self.remember(&journal).await;
        end
    }

    /// Puts on record how far the journal is known to go: no later look may find it shorter.
    async fn remember(&mut self, journal: &Seen<G::Journal>) {
        if let Some(last) = journal.last() {
            self.seen = Some(last);
            if let Err(failure) = self.note(journal, last).await {
                self.not_noted(&failure);
            }
        }
    }

    async fn note(&self, journal: &Seen<G::Journal>, last: Met) -> Result<(), String> {
        let noted = self.ground.note(self.partition, journal.inner(), last);
        match tokio::time::timeout(NOTE_MAX, noted).await {
            Ok(noted) => noted.map_err(|failure| failure.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        }
    }

    fn not_noted(&self, failure: &str) {
        warn!(partition = %self.partition, failure, "the journal's end is not on record");
    }

    /// Puts the journal's end on record as it grows, until somebody found that it is not what it was: gives
    /// what. A record that cannot be written stops nothing; it is tried again, and told once.
    async fn watch(&self, journal: &Seen<G::Journal>) -> String {
        let (mut noted, mut told) = (None, false);
        loop {
            let last = journal.last();
            if let Some(last) = last.filter(|last| noted != Some(last.0)) {
                match self.note(journal, last).await {
                    Ok(()) => (noted, told) = (Some(last.0), false),
                    Err(failure) if !told => {
                        self.not_noted(&failure);
                        told = true;
                    }
                    Err(_) => {}
                }
            }
            let looked = self.ground.look(self.partition, journal.inner());
            if let Ok(Err(Unopened::Doubted(reason))) = tokio::time::timeout(LOOK_MAX, looked).await
            {
                return reason;
            }
            tokio::time::sleep(NOTE_EVERY).await;
        }
    }

    async fn host(
        &self,
        lease: &Lease,
        hosted: &HostedPartition,
        journal: &Seen<G::Journal>,
    ) -> (End, Option<LedgerService>) {
        let handle = hosted.handle();
        let ready = tokio::select! {
            biased;
            ready = handle.ready() => ready,
            () = lease.lost() => return (End::LeaseLost, None),
            () = self.shutdown.cancelled() => return (End::Shutdown, None),
        };
        if let Err(refused) = ready {
            return (End::Damaged(refused.to_string()), None);
        }
        let ledger: Arc<dyn Ledger> = Arc::new(Door {
            ledger: handle.clone(),
            partition: self.partition,
            owed: self.part.owed.clone(),
        });
        let service =
            LedgerService::start(self.ground.post(), &self.part.names, self.partition, ledger)
                .await;
        let service = match service {
            Ok(service) => service,
            Err(failure) => return (End::SteppedDown(failure.to_string()), None),
        };
        info!(partition = %self.partition, "hosting");
        self.local.set(WriterPlace::Here(handle.clone()));
        let serving = async {
            let end = tokio::select! {
                biased;
                () = lease.lost() => End::LeaseLost,
                reason = handle.ended() => End::SteppedDown(reason),
                () = self.shutdown.cancelled() => End::Shutdown,
            };
            end
        };
        // nobody waits for what only a later opening reads
        let end = tokio::select! {
            biased;
            end = serving => end,
            reason = self.watch(journal) => End::Damaged(reason),
        };
        if !matches!(end, End::Shutdown) {
            self.local.set(WriterPlace::Elsewhere);
        }
        (end, Some(service))
    }

    /// The journal, if it is what it was. A server that does not answer now, as while a leader is elected,
    /// is asked again before the lease goes back.
    async fn open(&self) -> Result<G::Journal, Unopened> {
        let give_up = tokio::time::Instant::now() + OPEN_PATIENCE;
        loop {
            match self.ground.open(self.partition, self.seen).await {
                Err(Unopened::Unanswered(failure)) if tokio::time::Instant::now() < give_up => {
                    let partition = self.partition;
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
