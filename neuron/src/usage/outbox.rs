//! The outbox in motion: one thread writes the file, for all requests at once; one task offers what
//! was written to the sink.
//!
//! An event is [`Durable`] when it is synced; events that end together share one sync. While the disk
//! refuses, no request may run: those whose ends are not on disk hear so, and their events follow once
//! the disk takes them.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{mpsc as channel, oneshot, watch};

use super::file::{OutboxFile, Record};

/// Most events that may wait for the sink before no more requests are taken.
pub(crate) const PENDING_MAX: usize = 100_000;
/// Most records written in one go.
const BATCH_MAX: usize = 512;
/// How often a disk that refused is tried again.
const HEAL_EVERY: Duration = Duration::from_secs(1);

/// An event on its way to the sink.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) n: u64,
    pub(super) id: String,
    pub(super) event: Bytes,
}

/// Resolves when an event is on disk.
#[derive(Debug)]
pub(crate) struct Durable(Option<oneshot::Receiver<()>>);

impl Durable {
    /// There is nothing to wait for.
    pub(super) fn nothing() -> Self {
        Self(None)
    }

    /// False if the event could not be written.
    pub(crate) async fn wait(self) -> bool {
        match self.0 {
            Some(written) => written.await.is_ok(),
            None => true,
        }
    }
}

enum Order {
    Write(Write),
    Close,
}

struct Write {
    record: Record,
    done: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    next: AtomicU64,
    waiting: AtomicUsize,
    broken: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Handle of the outbox. The file is closed by [`Outbox::close`], or when the last handle is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
    pending: watch::Receiver<usize>,
}

impl Outbox {
    /// Opens the outbox and starts its thread. What an earlier run left comes first out of the
    /// receiver.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, channel::UnboundedReceiver<Parcel>)> {
        let file = OutboxFile::open(folder)?;
        let (parcels, outgoing) = channel::unbounded_channel();
        for (n, left) in &file.pending {
            let _ = parcels.send(Parcel {
                n: *n,
                id: left.id.clone(),
                event: left.event.clone(),
            });
        }
        let waiting = AtomicUsize::new(file.pending.len());
        let shared = Arc::new(Shared {
            next: AtomicU64::new(file.next),
            waiting,
            broken: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let (orders, inbox) = mpsc::channel();
        let (pending_tx, pending) = watch::channel(file.pending.len());
        let writer = Writer {
            file,
            inbox,
            unsent: Vec::new(),
            heal_every: HEAL_EVERY,
            parcels,
            pending: pending_tx,
            shared: Arc::clone(&shared),
        };
        let builder = std::thread::Builder::new().name("usage-outbox".to_owned());
        let thread = builder.spawn(move || writer.run())?;
        *shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok((
            Self {
                orders,
                shared,
                pending,
            },
            outgoing,
        ))
    }

    /// Notes that a request is about to run, and what to report should its end never be written.
    pub(super) fn begin(&self, id: String, event: Bytes) -> u64 {
        let n = self.number();
        self.write(Record::Begun { n, id, event }, None);
        n
    }

    /// Notes that what is to report should an end never be written is something else by now. Waits for that to be on
    /// file: what it allows may begin only then.
    pub(super) fn begin_again(&self, n: u64, id: String, event: Bytes) -> Durable {
        let (done, written) = oneshot::channel();
        self.write(Record::Begun { n, id, event }, Some(done));
        Durable(Some(written))
    }

    /// Takes the event of a request that ended.
    pub(super) fn end(&self, begun: Option<u64>, id: String, event: Bytes) -> Durable {
        let n = begun.unwrap_or_else(|| self.number());
        let (done, durable) = oneshot::channel();
        self.write(Record::Ended { n, id, event }, Some(done));
        Durable(Some(durable))
    }

    /// Notes that the sink has an event.
    pub(super) fn taken(&self, n: u64) {
        self.write(Record::Taken { n }, None);
    }

    /// Whether requests may be taken: the disk works and the sink is not too far behind.
    pub(crate) fn open_for_requests(&self) -> bool {
        !self.shared.broken.load(Ordering::Acquire) && self.waiting() < PENDING_MAX
    }

    /// Events not yet taken by the sink, and requests under way.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Acquire)
    }

    /// Waits until nothing is pending.
    pub(crate) async fn drained(&self) {
        let mut pending = self.pending.clone();
        // An error means that the writer is gone: nothing more will drain.
        let _ = pending.wait_for(|left| *left == 0).await;
    }

    /// Writes what is left and lets go of the folder, before this returns. Nothing can be written after.
    pub(crate) fn close(&self) {
        // A failed send means that the thread is gone already.
        let _ = self.orders.send(Order::Close);
        let thread = self
            .shared
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the usage outbox thread had panicked");
        }
    }

    fn number(&self) -> u64 {
        self.shared.next.fetch_add(1, Ordering::AcqRel)
    }

    fn write(&self, record: Record, done: Option<oneshot::Sender<()>>) {
        if self
            .orders
            .send(Order::Write(Write { record, done }))
            .is_err()
        {
            self.shared.broken.store(true, Ordering::Release);
        }
    }
}

struct Writer {
    file: OutboxFile,
    inbox: mpsc::Receiver<Order>,
    /// Ended, and not on disk yet.
    unsent: Vec<Parcel>,
    heal_every: Duration,
    parcels: channel::UnboundedSender<Parcel>,
    pending: watch::Sender<usize>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self) {
        let mut open = true;
        while open {
            let Some(first) = self.next() else {
                break;
            };
            let mut batch = Vec::new();
            open = gather(first, &self.inbox, &mut batch);
            self.write(batch);
        }
        if self.is_broken() {
            self.heal();
        }
        self.shared.broken.store(true, Ordering::Release);
    }

    /// The next order. Meanwhile a disk that refused is tried again.
    fn next(&mut self) -> Option<Order> {
        while self.is_broken() {
            match self.inbox.recv_timeout(self.heal_every) {
                Ok(order) => return Some(order),
                Err(mpsc::RecvTimeoutError::Timeout) => self.heal(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            }
        }
        self.inbox.recv().ok()
    }

    fn is_broken(&self) -> bool {
        self.shared.broken.load(Ordering::Acquire)
    }

    fn write(&mut self, batch: Vec<Write>) {
        let (records, dones): (Vec<Record>, Vec<_>) = batch
            .into_iter()
            .map(|write| (write.record, write.done))
            .unzip();
        // Only what somebody waits for is promised; the rest may be lost with the power, not with the process.
        let sync = dones.iter().any(Option::is_some);
        let written = self.file.append(&records, sync);
        if let Err(error) = &written
            && !self.is_broken()
        {
            tracing::error!(%error, "the usage outbox cannot be written: no requests are taken until it can");
            self.shared.broken.store(true, Ordering::Release);
        }
        // Told before anyone is answered: who was answered and then waits for all to be published
        // must find this pending.
        self.tell_pending();
        self.unsent
            .extend(records.into_iter().filter_map(|record| match record {
                Record::Ended { n, id, event } => Some(Parcel { n, id, event }),
                _ => None,
            }));
        if written.is_ok() {
            self.send();
            for done in dones.into_iter().flatten() {
                // Nobody waits for the event of a caller who left.
                let _ = done.send(());
            }
        }
    }

    fn heal(&mut self) {
        match self.file.heal() {
            Ok(()) => {
                tracing::warn!("the usage outbox can be written again");
                self.shared.broken.store(false, Ordering::Release);
                self.send();
            }
            Err(error) => {
                tracing::debug!(%error, "the usage outbox still cannot be written");
            }
        }
    }

    fn tell_pending(&self) {
        let waiting = self.file.pending.len();
        self.shared.waiting.store(waiting, Ordering::Release);
        self.pending.send_replace(waiting);
    }

    /// Hands on what is on disk. Without a publisher it stays in the file for a later start.
    fn send(&mut self) {
        for parcel in self.unsent.drain(..) {
            let _ = self.parcels.send(parcel);
        }
    }
}

/// Collects what can be written in one go. False if the outbox is to be closed after that.
fn gather(first: Order, inbox: &mpsc::Receiver<Order>, batch: &mut Vec<Write>) -> bool {
    let mut next = Some(first);
    while let Some(order) = next.take() {
        match order {
            Order::Close => return false,
            Order::Write(write) => batch.push(write),
        }
        if batch.len() < BATCH_MAX {
            next = inbox.try_recv().ok();
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_that_is_freed_is_healed_and_its_events_follow() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = OutboxFile::open(folder.path()).unwrap();
        file.fill_disk();
        let (orders, inbox) = mpsc::channel();
        let (parcels, mut outgoing) = channel::unbounded_channel();
        let shared = Arc::new(Shared {
            next: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            thread: Mutex::new(None),
        });
        let writer = Writer {
            file,
            inbox,
            unsent: Vec::new(),
            heal_every: Duration::from_millis(1),
            parcels,
            pending: watch::channel(0).0,
            shared: Arc::clone(&shared),
        };
        let (_, pending) = watch::channel(0);
        let outbox = Outbox {
            orders,
            shared,
            pending,
        };
        let thread = std::thread::spawn(move || writer.run());
        let event = || Bytes::from_static(b"event");
        let durable = outbox.end(None, "a".to_owned(), event());
        assert!(
            durable.0.unwrap().blocking_recv().is_err(),
            "nobody promised it"
        );
        assert!(!outbox.open_for_requests());
        assert!(outgoing.try_recv().is_err());

        OutboxFile::free_disk(folder.path());
        assert_eq!(outgoing.blocking_recv().unwrap().id, "a");
        let durable = outbox.end(None, "b".to_owned(), event());
        assert_eq!(durable.0.unwrap().blocking_recv(), Ok(()));
        assert!(outbox.open_for_requests());
        drop(outbox);
        thread.join().unwrap();
        assert_eq!(OutboxFile::open(folder.path()).unwrap().pending.len(), 2);
    }
}
