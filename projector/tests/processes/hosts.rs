//! The processes of a run: hosts that follow a lease as they do in a cluster, zombies that ignore it,
//! and projectors. Each can be killed at any of its operations.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use seatbelt_ledger::{
    host::{
        HostConfig, HostedPartition, PartitionHandle, PartitionStatus, bounds::Bounds,
        clock::HostClock,
    },
    store::SnapshotStore,
};
use seatbelt_projector::Parts;
use seatbelt_schemas::{
    commit::Commit,
    event::{EventBody, StoredEvent},
    ids::LedgerId,
    names::Names,
    position::{Partition, Partitions},
};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::medium::{Life, MachineTime, Medium, Wire};

/// After this a lease whose holder died is another's.
const LEASE: Duration = Duration::from_millis(1_500);
/// Longest that an orderly stop may take: it flushes for 10 s, and every wait in it is bounded.
const STOP_MAX: Duration = Duration::from_secs(20);
/// How long after its deadline a hold is left alone.
pub(crate) const GRACE_MS: u64 = 500;

/// A process that hosts the partition.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) handle: PartitionHandle,
    pub(crate) life: Arc<Life>,
    /// Whether it holds the lease; a zombie does not.
    seated: bool,
    /// By how much its clock is ahead.
    pub(crate) offset_ms: Arc<AtomicI64>,
    stop: CancellationToken,
}

/// Who may host: one at a time, as long as nobody takes it away. It does not hinder whoever lost it.
#[derive(Default)]
struct Lease {
    /// The number of the term, and whether it is over.
    term: Mutex<(u64, bool)>,
    changed: Notify,
}

impl Lease {
    /// Waits for a term of one's own.
    async fn take(&self) -> u64 {
        loop {
            let changed = self.changed.notified();
            {
                let mut term = self.term.lock().unwrap();
                if term.0 == 0 || term.1 {
                    *term = (term.0 + 1, false);
                    return term.0;
                }
            }
            changed.await;
        }
    }

    fn give_back(&self, term: u64) {
        if self.term.lock().unwrap().0 == term {
            self.end();
        }
    }

    fn end(&self) {
        self.term.lock().unwrap().1 = true;
        self.changed.notify_waiters();
    }

    /// Waits until a term is over; for ever where there is none.
    async fn over(&self, term: Option<u64>) {
        let Some(term) = term else {
            return std::future::pending().await;
        };
        loop {
            let changed = self.changed.notified();
            if *self.term.lock().unwrap() != (term, false) {
                return;
            }
            changed.await;
        }
    }
}

/// All hosts of a run.
pub(crate) struct Hosts {
    medium: Arc<Medium>,
    up: Mutex<Vec<Arc<Host>>>,
    lease: Lease,
    closing: CancellationToken,
    accounts_max: usize,
    bounds: Bounds,
    mark_every: u64,
    number: AtomicU64,
}

impl Hosts {
    pub(crate) fn new(medium: &Arc<Medium>) -> Arc<Self> {
        Arc::new(Self {
            medium: Arc::clone(medium),
            up: Mutex::default(),
            lease: Lease::default(),
            closing: CancellationToken::new(),
            accounts_max: usize::try_from(1 + medium.chance.below(4)).unwrap(),
            bounds: tiny(medium),
            mark_every: *medium.chance.pick(&[3, 10, 1_000]),
            number: AtomicU64::new(1),
        })
    }

    /// Any host that is up, whether it serves or not; when all is well, the one that has the partition.
    pub(crate) fn any(&self) -> Option<Arc<Host>> {
        let mut up = self.up.lock().unwrap().clone();
        up.retain(|host| !host.life.is_over());
        if self.medium.is_calm() {
            up.retain(|host| host.leads(&self.medium));
        }
        (!up.is_empty()).then(|| Arc::clone(self.medium.chance.pick(&up)))
    }

    /// The one that serves, and that nobody takes over from while all is well: a zombie may serve as long
    /// as the holder of the lease takes to stop.
    pub(crate) fn serving(&self) -> Option<Arc<Host>> {
        let up = self.up.lock().unwrap();
        let serves = |host: &&Arc<Host>| {
            host.seated
                && host.handle.status() == PartitionStatus::Serving
                && host.leads(&self.medium)
        };
        up.iter().find(serves).cloned()
    }

    /// Every clock is right again.
    pub(crate) fn right_clocks(&self) {
        for host in self.up.lock().unwrap().iter() {
            host.offset_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Whoever hosts without the lease ends.
    pub(crate) fn lay_zombies(&self) {
        let up = self.up.lock().unwrap();
        let zombies = up.iter().filter(|host| !host.seated);
        zombies.for_each(|zombie| zombie.life.kill());
    }

    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// One process that hosts whenever it has the lease, dies, and is started again.
    pub(crate) async fn seat(self: Arc<Self>) {
        while !self.closing.is_cancelled() {
            let term = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                term = self.lease.take() => term,
            };
            if self.reign(Some(term)).await {
                sleep(LEASE).await;
            }
            self.lease.give_back(term);
            sleep(Duration::from_millis(50) + self.medium.chance.ms(400)).await;
        }
    }

    /// A process that ignores the lease.
    pub(crate) async fn haunt(self: Arc<Self>) {
        self.reign(None).await;
    }

    /// The lease of whoever holds the partition is lost: another may take it at once, while this one still
    /// stops, with whatever it has in flight.
    pub(crate) fn lose_lease(&self) {
        self.lease.end();
    }

    /// Hosts until it is over; says whether the process died.
    async fn reign(&self, term: Option<u64>) -> bool {
        let life = Life::new();
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let name = format!("h{number}");
        let offset_ms = Arc::new(AtomicI64::new(self.medium.clock_is_off()));
        let hosted = self.start(&life, &name, &offset_ms);
        let host = Arc::new(Host {
            name,
            seated: term.is_some(),
            offset_ms,
            handle: hosted.handle().clone(),
            life: Arc::clone(&life),
            stop: CancellationToken::new(),
        });
        self.up.lock().unwrap().push(Arc::clone(&host));
        let died = tokio::select! {
            biased;
            () = life.over() => true,
            () = self.closing.cancelled() => false,
            () = host.stop.cancelled() => false,
            () = self.lease.over(term) => false,
            reason = host.handle.ended() => {
                self.is_no_defect(&reason);
                false
            }
        };
        self.up
            .lock()
            .unwrap()
            .retain(|other| !Arc::ptr_eq(other, &host));
        if died {
            // what is left of it here ends by itself, and reaches nothing any more
            tokio::spawn(async move { hosted.stop().await });
        } else if timeout(STOP_MAX, hosted.stop()).await.is_err() {
            self.medium.fail("an orderly stop does not end");
        }
        died
    }

    fn is_no_defect(&self, reason: &str) {
        let expected = [
            "another writer has taken",
            "the journal refuses appends",
            "clock",
        ];
        let shrunk = self.medium.shrunk.load(Ordering::Relaxed) && reason.contains("journal");
        if !shrunk && !expected.iter().any(|expected| reason.contains(expected)) {
            self.medium.fail(format!("a host ended: {reason}"));
        }
    }

    fn start(&self, life: &Arc<Life>, name: &str, offset_ms: &Arc<AtomicI64>) -> HostedPartition {
        let config = HostConfig {
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("sim").unwrap(),
            writer: name.to_owned(),
            expiry_grace_ms: GRACE_MS,
            accounts_max: self.accounts_max,
            clock: HostClock::of(MachineTime::new(&self.medium, offset_ms)),
        };
        let wire = self.wire(life, name.to_owned());
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(wire.clone());
        let (first, bounds) = (Partition(0), &self.bounds);
        HostedPartition::start_within(&config, first, wire, Some(snapshots), bounds)
    }

    fn wire(&self, life: &Arc<Life>, name: String) -> Wire {
        Wire {
            medium: Arc::clone(&self.medium),
            life: Arc::clone(life),
            name,
        }
    }

    /// One projector after the other, each until it dies.
    pub(crate) async fn project(self: Arc<Self>, name: &'static str, lives: Arc<Mutex<Arc<Life>>>) {
        while !self.closing.is_cancelled() {
            let life = Life::new();
            *lives.lock().unwrap() = Arc::clone(&life);
            let wire = self.wire(&life, name.to_owned());
            let parts = Parts {
                names: Names::new("sim").unwrap(),
                projector: name.to_owned(),
                journals: vec![(Partition(0), Arc::new(wire.clone()))],
                snapshots: Arc::new(wire),
                feed: Arc::new(self.medium.feed.clone()),
            };
            tokio::select! {
                biased;
                () = life.over() => {}
                ended = seatbelt_projector::run_marking(parts, self.mark_every, self.closing.child_token()) => {
                    let shrunk = self.medium.shrunk.load(Ordering::Relaxed);
                    if let (Err(error), false) = (ended, shrunk) {
                        self.medium.fail(format!("a projector ended: {error:?}"));
                    }
                    return;
                }
            }
            sleep(self.medium.chance.ms(1_000)).await;
        }
    }
}

/// Bounds that a short story meets, in most runs.
fn tiny(medium: &Medium) -> Bounds {
    let chance = &medium.chance;
    let usual = Bounds::default();
    Bounds {
        channel_max: *chance.pick(&[1, 4, usual.channel_max]),
        fetches_max: *chance.pick(&[1, 2, usual.fetches_max]),
        commit_events_max: *chance.pick(&[1, 2, 5, usual.commit_events_max]),
        hot_max: *chance.pick(&[1, 4, 16, usual.hot_max]),
        single_refusals_per_second: *chance.pick(&[1, usual.single_refusals_per_second]),
        settle_linger_ms: *chance.pick(&[0, 3, 50]),
    }
}

impl Host {
    /// Whether no other has taken the partition over since.
    pub(crate) fn leads(&self, medium: &Medium) -> bool {
        let commits = medium.journal.commits();
        let events = commits
            .iter()
            .rev()
            .flat_map(|commit| Commit::decode(commit).unwrap().events);
        let started = |event: StoredEvent| match event.event.body {
            EventBody::WriterStarted(data) => Some(data.writer),
            _ => None,
        };
        events.filter_map(started).next() == Some(self.name.clone())
    }

    /// An orderly stop, as on an upgrade.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}
