//! What size costs: a journal of many events over many accounts is made, projected into snapshots, and
//! taken over by a writer; its idle reserve against that of an empty ledger, in turns on the same server;
//! the first use of an account; resident memory per account in use.
//!
//! `SEATBELT_BENCH_ACCOUNTS` and `SEATBELT_BENCH_EVENTS` set other sizes.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use hdrhistogram::Histogram;
use seatbelt_bus::{Nats, connect, snapshot_bucket};
use seatbelt_ledger::{
    api::{Ack, Ledger, Read},
    host::{LedgerHost, now_ms},
    journal::{Journal, Sequence},
    nats::NatsJournal,
    outcomes::HOT_MAX,
    resume::Resumed,
    snapshot::PartitionRecord,
    store::SnapshotStore,
    writer::{Caller, Next, Request, Writer, WriterConfig},
};
use seatbelt_projector::{
    ProjectorParts,
    feed::message::FeedMessage,
    store::{FeedEnd, FeedEntry, FeedPlace, FeedSequence, FeedStore, StoreError, WriteError},
};
use seatbelt_schemas::{names::Names, position::Partition};
use seatbelt_tests::{nats::TestNats, until_within};
use tokio_util::sync::CancellationToken;

use crate::{
    histogram,
    ledger::{config, nanos, open, timed},
    millis,
    payer::{Payer, account},
    resident_mib,
};

/// Name of the part that a process of its own plays.
pub(crate) const RESIDENT: &str = "resident";
const PREFIX: &str = "size";
const P: Partition = Partition(0);
/// Commits on their way to the server while the journal is made.
const IN_FLIGHT_MAX: usize = 64;
/// How long the projector may take.
const PROJECT_MAX: Duration = Duration::from_secs(1800);
const ROUNDS: usize = 10;
const PER_ROUND: usize = 100;
/// Accounts that are used to see what each costs in memory.
const SAMPLE: usize = 100_000;
/// Accounts loaded at once.
const LOADS: usize = 64;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

pub(crate) async fn measure() {
    let accounts = number("SEATBELT_BENCH_ACCOUNTS", 1_000_000);
    let events = number("SEATBELT_BENCH_EVENTS", 10_000_000);
    let server = TestNats::start().await;
    let nats = server.connect("bench").await;
    println!("\nledger, {accounts} accounts and {events} events on one journal");
    let begun = Instant::now();
    let commits = make(&nats, accounts, events).await;
    println!(
        "  journal made: {commits} commits in {:.0?}",
        begun.elapsed()
    );
    let begun = Instant::now();
    project(&nats, commits).await;
    println!("  snapshots projected in {:.0?}", begun.elapsed());
    compare(&nats, accounts).await;
    // in a process of its own, whose memory nothing else has stretched
    let program = std::env::current_exe().unwrap();
    let (url, sample) = (
        server.server.url(),
        accounts.saturating_sub(LOADS).min(SAMPLE).to_string(),
    );
    let mut child = std::process::Command::new(program);
    let ended = child.args([RESIDENT, &url, &sample]).status().unwrap();
    assert!(ended.success());
}

struct Nobody;

impl Caller for Nobody {
    fn is_gone(&self) -> bool {
        false
    }
}

/// Makes the journal with the writer itself, its commits landing in order.
async fn make(nats: &Nats, accounts: usize, events: usize) -> u64 {
    let journal = open(nats, PREFIX).await;
    let host = config();
    let config = WriterConfig {
        partition: P,
        partitions: host.partitions,
        ledger: host.ledger,
        writer: host.writer,
        expiry_grace_ms: host.expiry_grace_ms,
        single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
        accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
        settle_linger_ms: 0,
        commit_events_max: seatbelt_schemas::commit::COMMIT_EVENTS_MAX,
    };
    let resumed = Resumed::empty(P, HOT_MAX);
    let mut maker = Maker {
        writer: Writer::start(config, resumed, now_ms()),
        nats: nats.clone(),
        in_flight: VecDeque::new(),
        commits: 0,
    };
    // commands are made by payers of no ledger in particular
    let nowhere: Arc<dyn Ledger> = LedgerHost::start(
        &crate::ledger::config(),
        vec![seatbelt_ledger::journal::memory::MemoryJournal::new()],
    );
    for number in 0..accounts {
        let payer = Payer::new(&nowhere, number);
        for change in payer.changes() {
            maker.submit(Request::Admin(payer.admin(change))).await;
        }
    }
    for n in 0..events.saturating_sub(3 * accounts) / 2 {
        let payer = Payer::new(&nowhere, n % accounts);
        let reserve = payer.reserve_command();
        let settle = payer.settle_command(reserve.id);
        maker.submit(Request::Reserve(reserve)).await;
        maker.submit(Request::Settle(settle, Ack::Durable)).await;
    }
    maker.finish().await;
    let end = journal.end().await.unwrap();
    assert_eq!(end, Sequence(maker.commits), "every commit landed");
    maker.commits
}

struct Maker {
    writer: Writer<Nobody>,
    nats: Nats,
    in_flight: VecDeque<async_nats::jetstream::context::PublishAckFuture>,
    commits: u64,
}

impl Maker {
    async fn submit(&mut self, request: Request) {
        self.writer.submit(now_ms(), request, Nobody);
        if self.writer.pending() >= 256 {
            self.append().await;
        }
    }

    async fn append(&mut self) {
        let Some((_, payload)) = self.writer.take_append() else {
            return;
        };
        let subject = Names::new(PREFIX).unwrap().journal_subject(P);
        let sent = self.nats.jetstream().publish(subject, payload).await;
        self.in_flight.push_back(sent.unwrap());
        self.commits += 1;
        let landed = self.writer.appended(Ok(Sequence(self.commits)));
        assert!(matches!(landed, Next::Continue));
        for (Nobody, answer) in self.writer.answers() {
            answer.unwrap();
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            self.in_flight.pop_front().unwrap().await.unwrap();
        }
    }

    async fn finish(&mut self) {
        while self.writer.pending() > 0 {
            self.append().await;
        }
        for sent in self.in_flight.drain(..) {
            sent.await.unwrap();
        }
    }
}

/// A feed that takes everything and keeps nothing.
#[derive(Default)]
struct NoFeed(AtomicU64, Mutex<Option<String>>);

impl FeedStore for NoFeed {
    fn end(&self) -> BoxFuture<'_, Result<FeedEnd, StoreError>> {
        let sequence = FeedSequence(self.0.load(Ordering::SeqCst));
        let end = FeedEnd {
            sequence,
            ..FeedEnd::default()
        };
        async move { Ok(end) }.boxed()
    }

    /// Only the last one is ever asked for.
    fn entry(
        &self,
        sequence: FeedSequence,
    ) -> BoxFuture<'_, Result<Option<FeedEntry>, StoreError>> {
        let id = self.1.lock().unwrap().clone();
        async move { Ok(id.map(|id| FeedEntry { sequence, id })) }.boxed()
    }

    fn entries(
        &self,
        _: FeedSequence,
        _: FeedSequence,
    ) -> BoxStream<'_, Result<FeedEntry, StoreError>> {
        stream::empty().boxed()
    }

    fn append<'a>(
        &'a self,
        after: &'a FeedPlace,
        messages: &'a [FeedMessage],
    ) -> BoxFuture<'a, Result<FeedSequence, WriteError>> {
        let end = after.sequence.0 + messages.len() as u64;
        *self.1.lock().unwrap() = messages.last().map(|last| last.id.clone());
        self.0.store(end, Ordering::SeqCst);
        async move { Ok(FeedSequence(end)) }.boxed()
    }
}

async fn project(nats: &Nats, commits: u64) {
    let names = Names::new(PREFIX).unwrap();
    let journal = NatsJournal::open_existing(nats, &names, P).await.unwrap();
    let snapshots = Arc::new(snapshot_bucket(nats, &names, 1).await.unwrap());
    let parts = ProjectorParts {
        names,
        projector: "bench".to_owned(),
        journals: vec![(P, Arc::new(journal))],
        snapshots: snapshots.clone(),
        feed: Arc::new(NoFeed::default()),
    };
    let stop = CancellationToken::new();
    let projecting = tokio::spawn(seatbelt_projector::run(parts, stop.clone()));
    let key = Names::snapshot_partition_key(P);
    until_within(PROJECT_MAX, "the projector catches up", async || {
        let kept = snapshots.read(&key).await.unwrap();
        let record = PartitionRecord::decode(&kept.value?).unwrap();
        (record.sequence == commits).then_some(())
    })
    .await;
    stop.cancel();
    projecting.await.unwrap().unwrap();
}

async fn compare(nats: &Nats, accounts: usize) {
    let empty = LedgerHost::start(&config(), vec![open(nats, "empty").await]);
    empty.ready().await.unwrap();
    let journal = open(nats, PREFIX).await;
    let names = Names::new(PREFIX).unwrap();
    let snapshots = snapshot_bucket(nats, &names, 1).await.unwrap();
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(snapshots);
    let begun = Instant::now();
    let large = LedgerHost::start_from(&config(), vec![journal], Some(&snapshots));
    large.ready().await.unwrap();
    println!(
        "  a writer serves after {:.2} s",
        begun.elapsed().as_secs_f64()
    );

    let (small, many): (Arc<dyn Ledger>, Arc<dyn Ledger>) = (empty.clone(), large.clone());
    let payer = Payer::new(&small, 0);
    payer.open().await;
    let mut seen = [(); 3].map(|()| histogram());
    let [base, used, first] = &mut seen;
    let mut next = 0;
    for round in 0..=ROUNDS {
        for _ in 0..PER_ROUND {
            let grant = timed(base, payer.reserve()).await;
            payer.release(&grant).await;
        }
        for _ in 0..PER_ROUND {
            next = (next + 7919) % accounts;
            let payer = Payer::new(&many, next);
            let grant = timed(first, payer.reserve()).await;
            payer.release(&grant).await;
            let grant = timed(used, payer.reserve()).await;
            payer.release(&grant).await;
        }
        if round == 0 {
            for histogram in [&mut *base, used, first] {
                histogram.reset();
            }
        }
    }
    println!(
        "  {:<34} {:>9} {:>9} {:>8}",
        "reserve, durable", "p50 ms", "p99 ms", "p50 x"
    );
    let [base, used, first] = &seen;
    for (name, seen) in [
        ("empty ledger", base),
        ("account in use", used),
        ("first use of an account", first),
    ] {
        println!(
            "  {name:<34} {:>9.3} {:>9.3} {:>8.2}",
            millis(seen, 0.5),
            millis(seen, 0.99),
            millis(seen, 0.5) / millis(base, 0.5)
        );
    }
    large.stop().await;
    empty.stop().await;
}

/// The part that a process of its own plays: prints its resident memory before and after `sample`
/// accounts have been used once.
pub(crate) async fn resident(url: &str, sample: usize) {
    let nats = connect(url, "bench", Duration::from_secs(10))
        .await
        .unwrap();
    let names = Names::new(PREFIX).unwrap();
    let snapshots = snapshot_bucket(&nats, &names, 1).await.unwrap();
    let snapshots: Arc<dyn SnapshotStore> = Arc::new(snapshots);
    let journal = open(&nats, PREFIX).await;
    let host = LedgerHost::start_from(&config(), vec![journal], Some(&snapshots));
    host.ready().await.unwrap();
    let ledger: Arc<dyn Ledger> = host.clone();
    // what only the first loads need is there before anything is counted
    load(&ledger, 0..LOADS).await;
    let before = resident_mib(std::process::id());
    let begun = Instant::now();
    let loads = load(&ledger, LOADS..LOADS + sample).await;
    let seconds = begun.elapsed().as_secs_f64();
    let grown = (resident_mib(std::process::id()) - before) * 1024.0 * 1024.0;
    #[expect(clippy::cast_precision_loss, reason = "a count of accounts, for show")]
    let count = sample as f64;
    println!(
        "  {sample} accounts loaded, {LOADS} at once, in {seconds:.1} s (p50 {:.3} ms): {:.0} bytes resident each",
        millis(&loads, 0.5),
        grown / count
    );
    host.stop().await;
}

async fn load(ledger: &Arc<dyn Ledger>, numbers: std::ops::Range<usize>) -> Histogram<u64> {
    let mut loads = histogram();
    let mut reads = stream::iter(numbers)
        .map(async |number| {
            let query = Read {
                account: account(number),
                key: None,
                run: None,
                reservation: None,
            };
            let begun = Instant::now();
            ledger.read(query).await.unwrap();
            nanos(begun)
        })
        .buffer_unordered(LOADS);
    while let Some(nanos) = reads.next().await {
        loads.saturating_record(nanos);
    }
    loads
}
