//! Which process hosts a partition's writer: a lease per partition, renewed while the process lives.
//!
//! It only avoids duels and makes takeover quick; safety never depends on it. A lease that was not
//! seen renewed for [`LEASE_TTL`] by the watcher's own clock is taken by compare-and-swap, so that
//! no clock of another machine is believed and of two takers one wins.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};
use seatbelt_schemas::{chain::in_one_line, position::Partition, wire};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{debug, info, warn};

use crate::store::{Kept, Revision, StoreError, WriteError};

/// A lease not renewed for so long may be taken.
pub const LEASE_TTL: Duration = Duration::from_millis(1200);
/// How often a lease is renewed.
pub const LEASE_RENEW_EVERY: Duration = Duration::from_millis(300);
/// How much longer a process waits before it takes one more lease for each that it holds, so that
/// partitions spread over processes that wait for them together.
const MODESTY: Duration = Duration::from_millis(15);
const MODESTY_MAX: Duration = Duration::from_millis(300);
/// Pause before something that failed is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before leases are watched again.
const WATCH_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long giving a lease back may take.
const RELEASE_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(
    LEASE_TTL.as_millis() >= 3 * LEASE_RENEW_EVERY.as_millis(),
    "two late renewals must not cost the lease"
);
const _: () = assert!(
    LEASE_TTL.as_millis() + MODESTY_MAX.as_millis() < 2000,
    "a partition is taken over within two seconds"
);

/// Where leases are kept: compare-and-swap on every write, and all writes to be seen in their order.
pub trait LeaseStore: Debug + Send + Sync + 'static {
    /// The value of a key, deleted or not; revision zero where there never was one.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Kept, StoreError>>;

    /// Writes if the key still has the `expected` revision.
    fn write<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Revision, WriteError>>;

    /// Deletes if the key still has the `expected` revision.
    fn delete<'a>(
        &'a self,
        key: &'a str,
        expected: Revision,
    ) -> BoxFuture<'a, Result<(), WriteError>>;

    /// What stands under all keys, and then what is written. After an error it is of no more use.
    fn watch(&self) -> BoxStream<'static, Result<LeaseChange, StoreError>>;
}

/// A key as it was written.
#[derive(Debug, Clone)]
pub struct LeaseChange {
    /// Which.
    pub key: String,
    /// Its new revision.
    pub revision: Revision,
    /// Its value; empty where it was deleted.
    pub value: Bytes,
}

/// What stands under a partition's key.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    v: u8,
    holder: String,
}

/// A lease as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    /// `None` once it was given back.
    holder: Option<String>,
    revision: Revision,
    at: Instant,
}

type Table = BTreeMap<Partition, Seen>;

/// All leases, as one process sees and takes them. Clones share the watch.
#[derive(Debug, Clone)]
pub struct Leases {
    store: Arc<dyn LeaseStore>,
    holder: Arc<str>,
    table: Arc<watch::Sender<Table>>,
    held: Arc<AtomicU32>,
    _watcher: Arc<AbortOnDropHandle<()>>,
}

impl Leases {
    /// Begins to watch. `holder` names this process, unique among all that run.
    pub fn start(store: Arc<dyn LeaseStore>, holder: &str) -> Self {
        let table = Arc::new(watch::Sender::new(Table::new()));
        let watching = keep_watching(Arc::clone(&store), Arc::clone(&table));
        let watcher = tokio::spawn(watching);
        Self {
            store,
            holder: holder.into(),
            table,
            held: Arc::default(),
            _watcher: Arc::new(AbortOnDropHandle::new(watcher)),
        }
    }

    /// Who hosts the partition, as far as was seen.
    pub fn holder(&self, partition: Partition) -> Option<String> {
        let table = self.table.borrow();
        table.get(&partition).and_then(|seen| seen.holder.clone())
    }

    /// Who else holds the partition's lease, as far as was seen: nobody where it was given back or is this
    /// process's own, also one that it lost by its age alone.
    pub fn other_holder(&self, partition: Partition) -> Option<String> {
        let holder = self.holder(partition);
        holder.filter(|holder| **holder != *self.holder)
    }

    /// Waits until the partition is free and takes its lease. Safe to drop half way: a lease taken
    /// but not delivered ends by its age.
    pub async fn acquire(&self, partition: Partition) -> Lease {
        loop {
            let free = self.wait_until_free(partition).await;
            self.be_modest().await;
            if let Some(lease) = self.try_take(partition, free).await {
                return lease;
            }
        }
    }

    /// The revision at which the lease may be taken: given back, never there, or grown old.
    async fn wait_until_free(&self, partition: Partition) -> Revision {
        let begun = Instant::now();
        let mut table = self.table.subscribe();
        loop {
            let seen = table.borrow_and_update().get(&partition).cloned();
            let (revision, ends) = match seen {
                Some(Seen {
                    holder: None,
                    revision,
                    ..
                }) => return revision,
                // our own, lost while the server was away: nobody else has it
                Some(Seen {
                    holder: Some(holder),
                    revision,
                    ..
                }) if *holder == *self.holder => return revision,
                Some(Seen { revision, at, .. }) => (revision, at + LEASE_TTL),
                // nothing seen may only mean nothing seen yet
                None => (Revision(0), begun + PAUSE),
            };
            tokio::select! {
                biased;
                changed = table.changed() => if changed.is_err() {
                    sleep(PAUSE).await;
                },
                () = sleep_until(ends) => return revision,
            }
        }
    }

    async fn be_modest(&self) {
        let held = self.held.load(Ordering::Relaxed);
        sleep((MODESTY * held).min(MODESTY_MAX)).await;
    }

    async fn try_take(&self, partition: Partition, revision: Revision) -> Option<Lease> {
        let taken = match self.write(partition, revision).await {
            // somebody was quicker, or what was seen is gone by its age: look at what stands there
            Err(WriteError::Moved) => match self.store.read(&key(partition)).await {
                Ok(kept) if kept.value.is_none() => self.write(partition, kept.revision).await,
                Ok(kept) => {
                    self.table
                        .send_modify(|table| found(table, partition, &kept));
                    Err(WriteError::Moved)
                }
                Err(error) => Err(error.into()),
            },
            other => other,
        };
        match taken {
            Ok(revision) => {
                info!(%partition, holder = &*self.holder, "lease taken");
                return Some(self.lease(partition, revision));
            }
            Err(WriteError::Moved) => debug!(%partition, "somebody else took the lease"),
            Err(WriteError::Unreachable(error)) => {
                warn!(%partition, error = %error.source, "lease not taken");
            }
        }
        sleep(PAUSE).await;
        None
    }

    async fn write(
        &self,
        partition: Partition,
        revision: Revision,
    ) -> Result<Revision, WriteError> {
        let record = self.record();
        self.store.write(&key(partition), revision, record).await
    }

    fn record(&self) -> Bytes {
        let holder = self.holder.to_string();
        wire::encode(&Record { v: 1, holder }).into()
    }

    fn lease(&self, partition: Partition, revision: Revision) -> Lease {
        self.held.fetch_add(1, Ordering::Relaxed);
        let (lost, release) = (CancellationToken::new(), CancellationToken::new());
        let renewal = Renewal {
            leases: self.clone(),
            partition,
            revision,
            lost: lost.clone(),
            release: release.clone(),
        };
        Lease {
            partition,
            lost,
            release,
            renewal: AbortOnDropHandle::new(tokio::spawn(renewal.run())),
        }
    }
}

fn key(partition: Partition) -> String {
    partition.to_string()
}

/// A lease that this process holds, renewed until it is dropped, given back, or lost.
#[derive(Debug)]
pub struct Lease {
    partition: Partition,
    lost: CancellationToken,
    release: CancellationToken,
    renewal: AbortOnDropHandle<()>,
}

impl Lease {
    /// Its partition.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Resolves once it is lost: another process took it, or it could not be renewed in time.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Gives it back, so that another process takes it at once. Stop the writer first.
    pub async fn release(self) {
        self.release.cancel();
        if timeout(RELEASE_MAX, self.renewal).await.is_err() {
            warn!(partition = %self.partition, "lease not given back: it ends by its age");
        }
    }
}

struct Renewal {
    leases: Leases,
    partition: Partition,
    revision: Revision,
    lost: CancellationToken,
    release: CancellationToken,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.leases.held.fetch_sub(1, Ordering::Relaxed);
        self.lost.cancel();
    }
}

impl Renewal {
    async fn run(mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                biased;
                () = self.release.cancelled() => return self.give_back().await,
                () = sleep_until(renewed + LEASE_RENEW_EVERY) => {}
            }
            let ends = renewed + LEASE_TTL;
            match self.renew_until(ends).await {
                Some(at) => renewed = at,
                None => {
                    warn!(partition = %self.partition, "lease lost");
                    return;
                }
            }
        }
    }

    /// When it was renewed; `None` once it is lost.
    async fn renew_until(&mut self, ends: Instant) -> Option<Instant> {
        let key = key(self.partition);
        while Instant::now() < ends {
            let at = Instant::now();
            let written = self.leases.write(self.partition, self.revision);
            match tokio::time::timeout_at(ends, written).await {
                Ok(Ok(revision)) => {
                    self.revision = revision;
                    return Some(at);
                }
                Ok(Err(WriteError::Moved)) => self.revision = self.still_ours(&key).await?,
                Ok(Err(WriteError::Unreachable(_))) => sleep(PAUSE).await,
                Err(_) => return None,
            }
        }
        None
    }

    /// An earlier renewal may have landed without an answer, or the bucket may have been made anew.
    async fn still_ours(&self, key: &str) -> Option<Revision> {
        let kept = self.leases.store.read(key).await.ok()?;
        let Some(value) = kept.value else {
            return (kept.revision == Revision(0)).then_some(Revision(0));
        };
        let record: Record = wire::decode("lease", &value).ok()?;
        (record.holder == *self.leases.holder).then_some(kept.revision)
    }

    async fn give_back(self) {
        let key = key(self.partition);
        match self.leases.store.delete(&key, self.revision).await {
            Ok(()) => info!(partition = %self.partition, "lease given back"),
            Err(error) => warn!(partition = %self.partition, %error, "lease not given back"),
        }
    }
}

/// Keeps the table current. The watch begins anew where it got lost, so silence for longer
/// than leases last is answered by reading it from its start.
async fn keep_watching(store: Arc<dyn LeaseStore>, sender: Arc<watch::Sender<Table>>) {
    let mut pause = PAUSE;
    loop {
        let mut changes = store.watch();
        loop {
            match timeout(LEASE_TTL * 4, changes.next()).await {
                Ok(Some(Ok(change))) => {
                    pause = PAUSE;
                    sender.send_modify(|table| note(table, &change));
                }
                Ok(Some(Err(error))) => {
                    warn!(error = in_one_line(&error), "leases cannot be watched");
                    pause = (pause * 2).min(WATCH_PAUSE_MAX);
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        sleep(pause).await;
    }
}

/// Takes up what stands under a key where that is not what was seen of it. A server that was killed may
/// have lost the last of what nobody synced, and whoever goes on watching never meets what is older.
fn found(table: &mut Table, partition: Partition, kept: &Kept) {
    let known = table.get(&partition).map(|seen| seen.revision);
    if known != Some(kept.revision) {
        let value = kept.value.as_deref().unwrap_or_default();
        table.insert(partition, seen_now(value, kept.revision));
    }
}

fn seen_now(value: &[u8], revision: Revision) -> Seen {
    let record = wire::decode::<Record>("lease", value);
    Seen {
        holder: record.ok().map(|record| record.holder),
        revision,
        at: Instant::now(),
    }
}

fn note(table: &mut Table, change: &LeaseChange) {
    let Ok(partition) = change.key.parse().map(Partition) else {
        return;
    };
    let known = table.get(&partition).map(|seen| seen.revision);
    if known == Some(change.revision) {
        // read again from the start: its age goes on counting
        return;
    }
    table.insert(partition, seen_now(&change.value, change.revision));
}
