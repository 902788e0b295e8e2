//! What lies between processes: a journal, a bucket and a feed that are slow, fail, lose, delay and
//! forget, as a server and a network do. Every process has its own wires to them, which end with it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use seatbelt_ledger::{
    host::clock::TimeSource,
    journal::{
        AppendError, Journal, ReadError, Sequence, Stored,
        memory::{JournalFault, MemoryJournal},
    },
    store::{
        Kept, Revision, SnapshotStore, StoreError, WriteError,
        memory::{MemorySnapshots, StoreFault},
    },
};
use seatbelt_projector::store::memory::MemoryFeed;
use seatbelt_schemas::{commit::Commit, ids::AccountId};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use crate::{chance::Chance, leases::Desk, post::Office};

/// When every run begins, unix ms.
pub(crate) const START_MS: u64 = 1_700_000_000_000;
/// How far a host's clock may be ahead, and what a look at the server's takes at most.
const AHEAD_MS_MAX: u64 = 8_000;
/// Longest that something read is on its way.
const TRAVELS_MS_MAX: u64 = 5_000;
/// How long a read waits that hears nothing.
const MUTE: Duration = Duration::from_secs(4);
/// How long a wire to a dead process takes to say that it is.
const DEAD: Duration = Duration::from_secs(1);

/// All that outlives processes.
pub(crate) struct Medium {
    pub(crate) chance: Chance,
    /// In every second run all clocks are, so that what is late can be told exactly.
    pub(crate) clocks_are_right: bool,
    pub(crate) callers_are_ahead: bool,
    pub(crate) journal: MemoryJournal,
    pub(crate) bucket: MemorySnapshots,
    /// The bucket as it was some time ago.
    older: Mutex<MemorySnapshots>,
    /// Values that came back, by their keys.
    came_back: Mutex<BTreeMap<String, Bytes>>,
    pub(crate) feed: MemoryFeed,
    pub(crate) office: Office,
    pub(crate) desk: Desk,
    /// Wakes in order, as a watch would not.
    landed: Notify,
    began: Instant,
    /// What a host's work between two readings of its clock takes.
    pub(crate) work_us: AtomicU64,
    calm: AtomicBool,
    /// The journal has lost its end: nobody may go on from there.
    pub(crate) shrunk: AtomicBool,
    frozen: AtomicBool,
    cut_off: AtomicBool,
    /// Whoever reads waits, and hears nothing.
    pub(crate) unreadable: AtomicBool,
    /// By how much the clock of the server that answers now is ahead of the others.
    pub(crate) server_ahead_ms: AtomicI64,
    broken: Mutex<Option<String>>,
    log: Option<Mutex<Vec<String>>>,
}

impl Medium {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            chance: Chance::new(seed),
            clocks_are_right: seed.is_multiple_of(2),
            callers_are_ahead: seed.is_multiple_of(3),
            journal: MemoryJournal::new(),
            bucket: MemorySnapshots::default(),
            older: Mutex::default(),
            came_back: Mutex::default(),
            feed: MemoryFeed::default(),
            office: Office::default(),
            desk: Desk::default(),
            landed: Notify::new(),
            began: Instant::now(),
            work_us: AtomicU64::new(5),
            calm: AtomicBool::new(true),
            shrunk: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            cut_off: AtomicBool::new(false),
            unreadable: AtomicBool::new(false),
            server_ahead_ms: AtomicI64::new(0),
            broken: Mutex::default(),
            log: std::env::var_os("SEATBELT_SIM_LOG").map(|_| Mutex::default()),
        })
    }

    /// The true time, unix ms.
    pub(crate) fn now_ms(&self) -> u64 {
        START_MS + u64::try_from(self.began.elapsed().as_millis()).unwrap()
    }

    /// From here on all goes well, or nothing is certain.
    pub(crate) fn be_calm(&self, calm: bool) {
        self.calm.store(calm, Ordering::Relaxed);
        if calm {
            self.freeze(false);
            self.cut_off(false);
            self.office.break_down(false);
            self.server_ahead_ms.store(0, Ordering::Relaxed);
        }
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Relaxed);
    }

    /// Whether the bucket answers.
    pub(crate) fn cut_off(&self, cut_off: bool) {
        self.cut_off.store(cut_off, Ordering::Relaxed);
    }

    /// A promise is broken: the first one is told.
    pub(crate) fn fail(&self, what: impl Into<String>) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.get_or_insert_with(|| what.into());
    }

    pub(crate) fn broken(&self) -> Option<String> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.clone()
    }

    /// What the bucket holds now may come back later.
    pub(crate) fn copy_bucket(&self) {
        *self.older.lock().unwrap() = self.bucket.copy();
    }

    /// A key is again what it was when the bucket was copied.
    pub(crate) fn go_back(&self, key: &str) {
        self.bucket.go_back(key, &self.older.lock().unwrap());
        if let Some(value) = self.bucket.peek(key) {
            let mut came_back = self.came_back.lock().unwrap();
            came_back.insert(key.to_owned(), value);
        }
    }

    /// Whether a key still has the value that came back.
    pub(crate) fn is_back(&self, key: &str) -> bool {
        let came_back = self.came_back.lock().unwrap();
        let value = came_back.get(key);
        value.is_some() && value == self.bucket.peek(key).as_ref()
    }

    /// Writes down what happens, where somebody wants to know.
    pub(crate) fn note(&self, what: impl FnOnce() -> String) {
        if let Some(log) = &self.log {
            let line = format!("{} {}", self.now_ms() - START_MS, what());
            log.lock().unwrap().push(line);
        }
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log
            .as_ref()
            .map_or_else(Vec::new, |log| log.lock().unwrap().clone())
    }

    /// By how much the clock of a machine that is started is ahead, ms: kept right to half a second, or an
    /// hour off.
    pub(crate) fn clock_is_off(&self) -> i64 {
        if self.clocks_are_right {
            return 0;
        }
        let off = i64::try_from(self.chance.below(1_000)).unwrap() - 500;
        match self.strikes(12) {
            true => *self.chance.pick(&[-3_600_000, -55_000, 55_000, 3_600_000]),
            false => off,
        }
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Whether misfortune strikes, one time in so many.
    pub(crate) fn strikes(&self, odds: u64) -> bool {
        !self.is_calm() && self.chance.one_in(odds)
    }

    /// How long something takes: mostly a few ms, now and then long.
    async fn takes(&self, whose: &str) {
        let takes = match self.strikes(40) {
            true => self.chance.ms(2_500),
            false => self.chance.ms(6),
        };
        self.note(|| format!("{whose} takes {takes:?}"));
        sleep(takes).await;
    }

    /// What was read is on its way back, now and then for so long that it is no longer so when it comes.
    async fn travels(&self) {
        if self.strikes(30) {
            sleep(self.chance.ms(TRAVELS_MS_MAX)).await;
        }
    }
}

/// How long a process lives: until it is killed, or until so many of its operations have begun.
#[derive(Debug)]
pub(crate) struct Life {
    dead: AtomicBool,
    /// Wakes in order, as a watch would not.
    died: Notify,
    fuse: Mutex<Option<u64>>,
    /// It cannot open a journal: its disk, its rights, its version.
    pub(crate) blind: AtomicBool,
}

impl Life {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            dead: AtomicBool::new(false),
            died: Notify::new(),
            fuse: Mutex::default(),
            blind: AtomicBool::new(false),
        })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(crate) fn kill(&self) {
        self.dead.store(true, Ordering::Relaxed);
        self.died.notify_waiters();
    }

    /// It dies in the middle of an operation, after so many.
    pub(crate) fn light(&self, operations: u64) {
        *self.fuse.lock().unwrap() = Some(operations);
    }

    pub(crate) async fn over(&self) {
        let died = self.died.notified();
        if !self.is_over() {
            died.await;
        }
    }

    fn burn(&self) {
        let mut fuse = self.fuse.lock().unwrap();
        let left = fuse.map(|left| left.saturating_sub(1));
        *fuse = left;
        if left == Some(0) {
            self.kill();
        }
    }
}

/// A process's wire to the journal, the bucket and the feed.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) medium: Arc<Medium>,
    pub(crate) life: Arc<Life>,
    pub(crate) name: String,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a wire of {}", self.name)
    }
}

impl Wire {
    /// One operation begins; says whether its process lives to see it begin.
    async fn begins(&self) -> bool {
        if self.life.is_over() {
            sleep(DEAD).await;
            return false;
        }
        self.medium.takes(&self.name).await;
        if !self.medium.is_calm() {
            self.life.burn();
        }
        !self.life.is_over()
    }

    /// Whether nothing can be read now; that takes its time.
    async fn is_mute(&self) -> bool {
        let is_mute = self.medium.unreadable.load(Ordering::Relaxed);
        if is_mute {
            sleep(MUTE).await;
        }
        is_mute
    }

    pub(crate) fn store_error(&self, action: &str) -> StoreError {
        StoreError {
            action: action.to_owned(),
            source: "misfortune".into(),
        }
    }

    async fn reads(&self, at: Sequence) -> Result<(), ReadError> {
        self.medium
            .note(|| format!("{} reads journal {at}", self.name));
        if self.begins().await && !self.is_mute().await && !self.medium.strikes(60) {
            return Ok(());
        }
        let source = "misfortune".into();
        Err(ReadError::Unreachable { at, source })
    }

    /// The journal's time is never further ahead than a host's clock may be.
    fn in_time(&self) {
        let last = self.medium.journal.commits().pop();
        let ahead_ms = last.map_or(0, |last| {
            let at_ms = Commit::decode(&last).unwrap().at_ms;
            at_ms.saturating_sub(self.medium.now_ms())
        });
        if ahead_ms > AHEAD_MS_MAX {
            self.medium
                .fail(format!("the journal is {ahead_ms} ms ahead of time"));
        }
    }

    /// The commit at a place, once it is there.
    async fn lands(&self, at: Sequence) -> Result<Stored, ReadError> {
        loop {
            let landed = self.medium.landed.notified();
            self.reads(at).await?;
            if let Some(stored) = self.medium.journal.get(at).await? {
                return Ok(stored);
            }
            landed.await;
        }
    }

    /// What befalls an append that is sent now.
    fn fate(&self) -> JournalFault {
        if self.medium.frozen.load(Ordering::Relaxed) {
            return JournalFault::Refused;
        }
        if !self.medium.strikes(8) {
            return JournalFault::None;
        }
        *self.medium.chance.pick(&[
            JournalFault::UnknownLanded,
            JournalFault::UnknownLost,
            JournalFault::UnknownDelayed,
            JournalFault::Replicating,
            JournalFault::Refused,
        ])
    }
}

impl Journal for Wire {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        if !self.begins().await {
            let source = "dead".into();
            return Err(AppendError::Unknown { expected, source });
        }
        let fate = self.fate();
        self.medium
            .note(|| format!("{} appends after {expected}: {fate:?}", self.name));
        // nothing else runs between the two: the fate is this append's
        self.medium.journal.script([fate]);
        let appended = self.medium.journal.append(expected, payload);
        let outcome = appended.now_or_never().expect("it is in memory");
        self.in_time();
        self.medium.landed.notify_waiters();
        self.medium.takes(&self.name).await;
        outcome
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        self.reads(Sequence(0)).await?;
        let end = self.medium.journal.end().await;
        self.medium.travels().await;
        end
    }

    async fn server_ms(&self) -> Result<Option<u64>, ReadError> {
        self.reads(Sequence(0)).await?;
        let ahead_ms = self.medium.server_ahead_ms.load(Ordering::Relaxed);
        Ok(Some(self.medium.now_ms().saturating_add_signed(ahead_ms)))
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        self.reads(sequence).await?;
        let stored = self.medium.journal.get(sequence).await;
        self.medium.travels().await;
        stored
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        let begun = async move {
            match self.reads(after.next()).await {
                Ok(()) => self.medium.journal.replay(after, to),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        };
        begun.flatten_stream().boxed()
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        stream::unfold(after.next(), move |at| async move {
            let found = self.lands(at).await;
            Some((found, at.next()))
        })
        .boxed()
    }
}

impl SnapshotStore for Wire {
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>> {
        async move {
            let answers = self.begins().await && !self.medium.cut_off.load(Ordering::Relaxed);
            let answers = answers && !self.is_mute().await;
            self.medium
                .note(|| format!("{} reads {key}: {answers}", self.name));
            if !answers || self.medium.strikes(60) {
                return Err(self.store_error(&format!("read {key}")));
            }
            let read = self.medium.bucket.read(key).await;
            self.medium.travels().await;
            read
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>> {
        async move {
            let answers = self.begins().await && !self.medium.cut_off.load(Ordering::Relaxed);
            if !answers {
                return Err(self.store_error(&format!("write {key}")).into());
            }
            let fate = match self.medium.strikes(30) {
                true => *self
                    .medium
                    .chance
                    .pick(&[StoreFault::Lost, StoreFault::Unacknowledged]),
                false => StoreFault::None,
            };
            self.medium
                .note(|| format!("{} writes {key}: {fate:?}", self.name));
            self.medium.bucket.script([fate]);
            self.medium.bucket.write(key, expected, value).await
        }
        .boxed()
    }

    fn accounts(&self) -> BoxFuture<'_, Result<Vec<AccountId>, StoreError>> {
        async move {
            let answers = self.begins().await && !self.medium.cut_off.load(Ordering::Relaxed);
            if !answers || self.medium.strikes(60) {
                return Err(self.store_error("list accounts"));
            }
            let accounts = self.medium.bucket.accounts().await;
            self.medium.travels().await;
            accounts
        }
        .boxed()
    }
}

/// The clocks of one machine: off by some time, set now and then, and going on while it works. Reading the
/// time stands for the work between two readings: without it, simulated time would stand still under
/// commands that never end, and nobody could be late for anything.
pub(crate) struct MachineTime {
    medium: Arc<Medium>,
    offset_ms: Arc<AtomicI64>,
    /// How far its monotonic clock has come.
    went_us: AtomicU64,
}

impl MachineTime {
    pub(crate) fn new(medium: &Arc<Medium>, offset_ms: &Arc<AtomicI64>) -> Self {
        Self {
            medium: Arc::clone(medium),
            offset_ms: Arc::clone(offset_ms),
            went_us: AtomicU64::new(0),
        }
    }

    /// Since the run began: as simulated time says, or further where there was work since.
    fn went(&self) -> Duration {
        let true_us = u64::try_from(self.medium.began.elapsed().as_micros()).unwrap();
        let worked_us =
            self.went_us.load(Ordering::Relaxed) + self.medium.work_us.load(Ordering::Relaxed);
        let went_us = true_us.max(worked_us);
        self.went_us.store(went_us, Ordering::Relaxed);
        Duration::from_micros(went_us)
    }
}

impl fmt::Debug for MachineTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a clock of its own")
    }
}

impl TimeSource for MachineTime {
    fn wall_ms(&self) -> u64 {
        let now_ms = START_MS + u64::try_from(self.went().as_millis()).unwrap();
        now_ms.saturating_add_signed(self.offset_ms.load(Ordering::Relaxed))
    }

    fn instant(&self) -> Instant {
        self.medium.began + self.went()
    }

    fn timer(&self, span: Duration) -> Duration {
        span
    }
}
