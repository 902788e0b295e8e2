//! The outbox in motion: one thread writes the file, for all requests at once; one task offers what
//! was written to the sink.
//!
//! An event is [`Durable`] when it is synced; events that end together share one sync. If the disk
//! refuses, the outbox is broken for good and says so: without it no request may run.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use tokio::sync::{mpsc as channel, oneshot, watch};

use super::file::{OutboxFile, Record};

/// Most events that may wait for the sink before no more requests are taken.
pub(crate) const PENDING_MAX: usize = 100_000;
/// Most records written in one go.
const BATCH_MAX: usize = 512;

/// An event on its way to the sink.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) n: u64,
    pub(super) id: String,
    pub(super) event: Bytes,
}

/// Resolves when an event is on disk.
#[derive(Debug)]
pub(crate) struct Durable(oneshot::Receiver<()>);

impl Durable {
    /// False if the event could not be written.
    pub(crate) async fn wait(self) -> bool {
        self.0.await.is_ok()
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

    /// Takes the event of a request that ended.
    pub(super) fn end(&self, begun: Option<u64>, id: String, event: Bytes) -> Durable {
        let n = begun.unwrap_or_else(|| self.number());
        let (done, durable) = oneshot::channel();
        self.write(Record::Ended { n, id, event }, Some(done));
        Durable(durable)
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
    parcels: channel::UnboundedSender<Parcel>,
    pending: watch::Sender<usize>,
    shared: Arc<Shared>,
}

impl Writer {
    fn run(mut self) {
        let mut open = true;
        while open && let Ok(first) = self.inbox.recv() {
            let mut batch = Vec::new();
            open = gather(first, &self.inbox, &mut batch);
            if let Err(error) = self.write(batch) {
                tracing::error!(%error, "the usage outbox cannot be written: no more requests are taken");
                break;
            }
        }
        self.shared.broken.store(true, Ordering::Release);
    }

    fn write(&mut self, batch: Vec<Write>) -> io::Result<()> {
        let (records, dones): (Vec<Record>, Vec<_>) = batch
            .into_iter()
            .map(|write| (write.record, write.done))
            .unzip();
        // Only ends are promised to anyone; the rest may be lost with the power, not with the process.
        let sync = records
            .iter()
            .any(|record| matches!(record, Record::Ended { .. }));
        self.file.append(&records, sync)?;
        // Told before anyone is answered: who was answered and then waits for all to be published
        // must find this pending.
        let waiting = self.file.pending.len();
        self.shared.waiting.store(waiting, Ordering::Release);
        self.pending.send_replace(waiting);
        for record in records {
            if let Record::Ended { n, id, event } = record {
                // Without a publisher the event stays in the file for a later start.
                let _ = self.parcels.send(Parcel { n, id, event });
            }
        }
        for done in dones.into_iter().flatten() {
            // Nobody waits for the event of a caller who left.
            let _ = done.send(());
        }
        Ok(())
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
