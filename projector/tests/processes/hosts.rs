//! The processes of a run: ledgers that take part as they do in a cluster, zombies that ignore leases,
//! and projectors. Each can be killed at any of its operations.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use seatbelt_ledger::{
    api::Ledger,
    cluster::{
        ClusterLedger, ClusterPart,
        ground::{Ground, Met, Unopened},
    },
    host::{HostConfig, HostedPartition, bounds::Bounds, clock::HostClock},
    lease::Leases,
    store::SnapshotStore,
};
use seatbelt_projector::ProjectorParts;
use seatbelt_schemas::{
    commit::Commit,
    event::{EventBody, StoredEvent},
    ids::LedgerId,
    names::Names,
    position::{Partition, Partitions},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::medium::{Life, MachineTime, Medium, Wire};

/// Longest that an orderly stop may take: it drains for 10 s, flushes for 10 s, gives its lease back and puts
/// its journal's end on record.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(26);
/// Processes that take part.
pub(crate) const SEATS: usize = 2;
/// What a process says whose journal cannot be opened from where it is.
const CANNOT_OPEN: &str = "no way to the journal from here";
/// How long after its deadline a hold is left alone.
pub(crate) const GRACE_MS: u64 = 500;

/// A process that hosts the partition, or reaches whoever does.
pub(crate) struct Host {
    pub(crate) name: String,
    /// What its callers have.
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) life: Arc<Life>,
    /// How it takes part; a zombie does not.
    cluster: Option<Arc<ClusterLedger>>,
    /// By how much its clock is ahead.
    pub(crate) offset_ms: Arc<AtomicI64>,
    stop: CancellationToken,
}

/// All hosts of a run.
pub(crate) struct Hosts {
    medium: Arc<Medium>,
    up: Mutex<Vec<Arc<Host>>>,
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
            closing: CancellationToken::new(),
            accounts_max: usize::try_from(1 + medium.chance.below(4)).unwrap(),
            bounds: tiny(medium),
            mark_every: *medium.chance.pick(&[3, 10, 1_000]),
            number: AtomicU64::new(1),
        })
    }

    /// Any process that is up, whether it serves or not; when all is well, one that takes part.
    pub(crate) fn any(&self) -> Option<Arc<Host>> {
        let mut up = self.up.lock().unwrap().clone();
        up.retain(|host| !host.life.is_over());
        if self.medium.is_calm() {
            up.retain(|host| host.cluster.is_some());
        }
        (!up.is_empty()).then(|| Arc::clone(self.medium.chance.pick(&up)))
    }

    /// A process whose callers reach the writer of another by post.
    pub(crate) fn elsewhere(&self) -> Option<Arc<Host>> {
        let up = self.up.lock().unwrap();
        let mut others = up.iter().filter(|host| host.is_elsewhere());
        others.next().cloned()
    }

    /// Whether all processes are there, and each knows who serves.
    pub(crate) fn agree(&self) -> bool {
        let up = self.up.lock().unwrap();
        let seated: Vec<_> = up.iter().filter_map(|host| host.cluster.as_ref()).collect();
        seated.len() == SEATS && seated.iter().all(|cluster| cluster.unserved().is_empty())
    }

    /// The one that serves, and that nobody takes over from while all is well: a zombie may serve as long
    /// as the holder of the lease takes to stop.
    pub(crate) fn serving(&self) -> Option<Arc<Host>> {
        let up = self.up.lock().unwrap();
        let serves = |host: &&Arc<Host>| host.claims() && host.leads(&self.medium);
        up.iter().find(serves).cloned()
    }

    /// One that says that it serves, whatever the journal says by now.
    pub(crate) fn claiming(&self) -> Option<Arc<Host>> {
        let up = self.up.lock().unwrap();
        up.iter().find(|host| host.claims()).cloned()
    }

    /// Every clock is right again, and every journal can be opened.
    pub(crate) fn put_right(&self) {
        for host in self.up.lock().unwrap().iter() {
            host.offset_ms.store(0, Ordering::Relaxed);
            host.life.blind.store(false, Ordering::Relaxed);
        }
    }

    /// Whoever hosts without the lease ends.
    pub(crate) fn lay_zombies(&self) {
        let up = self.up.lock().unwrap();
        let zombies = up.iter().filter(|host| host.cluster.is_none());
        zombies.for_each(|zombie| zombie.life.kill());
    }

    pub(crate) fn close(&self) {
        self.closing.cancel();
    }

    /// One process after the other, each until it dies or is stopped.
    pub(crate) async fn seat(self: Arc<Self>) {
        while !self.closing.is_cancelled() {
            self.take_part().await;
            sleep(Duration::from_millis(50) + self.medium.chance.ms(400)).await;
        }
    }

    /// The lease of whoever holds the partition is lost: another may take it at once, while this one still
    /// stops, with whatever it has in flight.
    pub(crate) fn lose_lease(&self) {
        self.medium.desk.take_away();
    }

    async fn take_part(&self) {
        let (life, name, offset_ms) = self.born();
        let wire = self.wire(&life, name.clone());
        let leases = Leases::start(Arc::new(wire.clone()), &name);
        let part = ClusterPart {
            host: self.config(&name, &offset_ms),
            names: names(),
            bounds: self.bounds.clone(),
            owed: Default::default(),
        };
        let cluster = ClusterLedger::take_part(&wire, &leases, &part);
        let host = Arc::new(Host {
            name,
            cluster: Some(Arc::clone(&cluster)),
            offset_ms,
            ledger: Arc::clone(&cluster) as _,
            life,
            stop: CancellationToken::new(),
        });
        let died = self.live(&host, std::future::pending()).await;
        if died {
            // what is left of it here ends by itself, and reaches nothing any more
            tokio::spawn(async move { cluster.stop().await });
        } else if timeout(STOP_MAX, cluster.stop()).await.is_err() {
            self.medium.fail("an orderly stop does not end");
        }
    }

    /// A process that ignores leases.
    pub(crate) async fn haunt(self: Arc<Self>) {
        let (life, name, offset_ms) = self.born();
        let wire = self.wire(&life, name.clone());
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(wire.clone());
        let (first, config) = (Partition(0), self.config(&name, &offset_ms));
        let hosted =
            HostedPartition::start_within(&config, first, wire, Some(snapshots), &self.bounds);
        let handle = hosted.handle().clone();
        let host = Arc::new(Host {
            name,
            cluster: None,
            offset_ms,
            ledger: Arc::new(handle.clone()),
            life,
            stop: CancellationToken::new(),
        });
        let ended = async { is_no_defect(&self.medium, &handle.ended().await) };
        let died = self.live(&host, ended).await;
        if died {
            tokio::spawn(async move { hosted.stop().await });
        } else if timeout(STOP_MAX, hosted.stop()).await.is_err() {
            self.medium.fail("an orderly stop does not end");
        }
    }

    fn born(&self) -> (Arc<Life>, String, Arc<AtomicI64>) {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let offset_ms = Arc::new(AtomicI64::new(self.medium.clock_is_off()));
        (Life::new(), format!("h{number}"), offset_ms)
    }

    /// Is up until it is over; says whether the process died.
    async fn live(&self, host: &Arc<Host>, ended: impl Future<Output = ()>) -> bool {
        self.up.lock().unwrap().push(Arc::clone(host));
        let died = tokio::select! {
            biased;
            () = host.life.over() => true,
            () = self.closing.cancelled() => false,
            () = host.stop.cancelled() => false,
            () = ended => false,
        };
        self.up
            .lock()
            .unwrap()
            .retain(|other| !Arc::ptr_eq(other, host));
        died
    }

    fn config(&self, name: &str, offset_ms: &Arc<AtomicI64>) -> HostConfig {
        HostConfig {
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("sim").unwrap(),
            writer: name.to_owned(),
            expiry_grace_ms: GRACE_MS,
            accounts_max: self.accounts_max,
            clock: HostClock::of(MachineTime::new(&self.medium, offset_ms)),
        }
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
            let parts = ProjectorParts {
                names: names(),
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

/// Why a writer may end without anybody having done wrong.
fn is_no_defect(medium: &Medium, reason: &str) {
    let expected = [
        "another writer has taken",
        "the journal refuses appends",
        "clock",
        // by its process, or by its post
        "it was told to stop",
        "cannot subscribe",
        CANNOT_OPEN,
    ];
    let shrunk = medium.shrunk.load(Ordering::Relaxed) && reason.contains("journal");
    if !shrunk && !expected.iter().any(|expected| reason.contains(expected)) {
        medium.fail(format!("a host ended: {reason}"));
    }
}

fn names() -> Names {
    Names::new("sim").unwrap()
}

impl Ground for Wire {
    type Journal = Self;
    type Post = Self;

    fn open(&self, _: Partition, _: Option<Met>) -> BoxFuture<'_, Result<Self, Unopened>> {
        async move {
            sleep(self.medium.chance.ms(20)).await;
            match self.life.blind.load(Ordering::Relaxed) {
                true => Err(Unopened::Doubted(CANNOT_OPEN.to_owned())),
                false => Ok(self.clone()),
            }
        }
        .boxed()
    }

    fn note<'a>(
        &'a self,
        _: Partition,
        _: &'a Self,
        _: Met,
    ) -> BoxFuture<'a, Result<(), Unopened>> {
        // what is on record beside the snapshots has tests of its own, on a server
        std::future::ready(Ok(())).boxed()
    }

    fn snapshots(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.clone())
    }

    fn post(&self) -> &Self {
        self
    }

    fn reign_ended(&self, _: Partition, reason: &str) {
        if !self.life.is_over() {
            is_no_defect(&self.medium, reason);
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

    /// Whether it lives and says that it serves.
    fn claims(&self) -> bool {
        let cluster = self.cluster.as_ref().filter(|_| !self.life.is_over());
        cluster.is_some_and(|cluster| !cluster.hosted().is_empty() && cluster.unserved().is_empty())
    }

    /// Whether its callers reach the writer by post.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let cluster = self.cluster.as_ref();
        cluster.is_some_and(|cluster| cluster.hosted().is_empty()) && !self.life.is_over()
    }

    /// An orderly stop, as on an upgrade.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }
}
