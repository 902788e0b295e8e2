//! The ledger's price: a reserve on an idle account, in process and through NATS requests, against a
//! raw compare-and-append of the same size, in turns; then decisions per second on one hot account and
//! over many, against one event per message. All on one server that fsyncs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use hdrhistogram::Histogram;
use seatbelt_bus::Nats;
use seatbelt_ledger::{
    api::Ledger,
    host::{HostConfig, LedgerHost},
    journal::{Journal, Sequence},
    nats::NatsJournal,
    remote::{LedgerService, RemoteLedger},
    testing::one_partition,
};
use seatbelt_schemas::{commit::Commit, names::Names, position::Partition};
use seatbelt_tests::nats::TestNats;

use crate::{histogram, millis, payer::Payer};

const IDLE_ROUNDS: usize = 10;
const IDLE_PER_ROUND: usize = 200;
/// Requests in flight when saturated.
pub(crate) const HOT_CALLERS: usize = 2048;
const HOT: Duration = Duration::from_secs(5);
const HOT_WARM_UP: Duration = Duration::from_secs(1);
/// Messages in flight without group commit: more would wait longer than a client waits for an
/// acknowledgement.
const SINGLE_IN_FLIGHT: usize = 256;
/// Accounts when the load is spread.
const ACCOUNTS: usize = 10_000;
/// How long a caller of a remote writer waits.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn measure() {
    let server = TestNats::start().await;
    let nats = server.connect("bench").await;
    let journal = open(&nats, "hot").await;
    let raw = open(&nats, "raw").await;
    let host = host_of(journal.clone()).await;
    let ledger: Arc<dyn Ledger> = host.clone();
    let payer = Payer::new(&ledger, 0);
    payer.open().await;
    idle(&nats, &server, &payer, (&journal, &raw)).await;
    let hot = saturated(vec![payer.clone()]).await;
    let spread = saturated(open_many(&ledger).await).await;
    let single = one_event_per_message(&nats, &journal).await;
    println!("\nledger, saturated, {HOT_CALLERS} callers, reserve and settle, all durable");
    println!("{:<36} {:>14} {:>8}", "what", "decisions/s", "x");
    for (name, rate) in [
        ("one event per message, pipelined".to_owned(), single),
        ("one hot account".to_owned(), hot),
        (format!("{ACCOUNTS} accounts"), spread),
    ] {
        println!("{name:<36} {rate:>14.0} {:>8.1}", rate / single);
    }
    host.stop().await;
}

pub(crate) async fn open(nats: &Nats, prefix: &str) -> NatsJournal {
    let names = Names::new(prefix).unwrap();
    NatsJournal::open(nats, &names, Partition(0), 1)
        .await
        .unwrap()
}

pub(crate) fn config() -> HostConfig {
    HostConfig {
        expiry_grace_ms: 60_000,
        ..one_partition("bench")
    }
}

async fn host_of(journal: NatsJournal) -> Arc<LedgerHost> {
    let host = LedgerHost::start(&config(), vec![journal]);
    host.ready().await.unwrap();
    host
}

pub(crate) fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap()
}

/// Waits for something and notes how long it took.
pub(crate) async fn timed<T>(into: &mut Histogram<u64>, what: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = what.await;
    into.saturating_record(nanos(begun));
    done
}

/// All in turns on the same server; the raw append has the very bytes of the reserve's commit, and the
/// bare request about those of a reserve and its answer.
async fn idle(
    nats: &Nats,
    server: &TestNats,
    payer: &Payer,
    (journal, raw): (&NatsJournal, &NatsJournal),
) {
    let (_service, remote) = remote_of(server, payer).await;
    let echo = Echo::start(server).await;
    let mut seen = [(); 4].map(|()| histogram());
    let [appends, reserves, requests, remotes] = &mut seen;
    let (mut sequence, mut payload) = (Sequence(0), bytes::Bytes::new());
    for round in 0..=IDLE_ROUNDS {
        if round == 1 {
            // the first round only warms up
            for histogram in [&mut *appends, reserves, requests, remotes] {
                histogram.reset();
            }
        }
        for n in 0..IDLE_PER_ROUND {
            let grant = timed(reserves, payer.reserve()).await;
            if n == 0 {
                let end = journal.end().await.unwrap();
                payload = journal.get(end).await.unwrap().unwrap().payload;
            }
            payer.release(&grant).await;
        }
        for _ in 0..IDLE_PER_ROUND {
            let append = raw.append(sequence, payload.clone());
            sequence = timed(appends, append).await.unwrap();
        }
        for _ in 0..IDLE_PER_ROUND {
            let grant = timed(remotes, remote.reserve()).await;
            payer.release(&grant).await;
        }
        for _ in 0..IDLE_PER_ROUND {
            timed(requests, echo.ask(nats)).await;
        }
    }
    let bytes = payload.len();
    println!("\nledger, one account, nothing else running ({bytes} bytes a commit)");
    println!(
        "{:<28} {:>9} {:>9} {:>8} {:>8}",
        "operation", "p50 ms", "p99 ms", "p50 x", "p99 x"
    );
    let [appends, reserves, requests, remotes] = &seen;
    row("raw compare-and-append", appends, appends);
    row("reserve, durable", reserves, appends);
    row("bare request and reply", requests, appends);
    row("reserve by NATS request", remotes, appends);
    let bound = millis(appends, 0.5) + 1.5 * millis(requests, 0.5);
    println!(
        "by NATS request, p50 against raw append + 1.5 bare requests ({bound:.3} ms): {:.2}",
        millis(remotes, 0.5) / bound
    );
}

/// The same account, reached as another process does it: over a connection of its own.
async fn remote_of(server: &TestNats, payer: &Payer) -> (LedgerService, Payer) {
    let (names, partition) = (Names::new("hot").unwrap(), Partition(0));
    let (host, caller) = (server.connect("host").await, server.connect("caller").await);
    let service = LedgerService::start(&host, &names, partition, payer.ledger()).await;
    let remote: Arc<dyn Ledger> = Arc::new(RemoteLedger::new(&caller, &names, partition, PATIENCE));
    (service.unwrap(), payer.through(&remote))
}

/// Answers requests with a reply of a grant's size, and does nothing else.
struct Echo {
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Echo {
    const SUBJECT: &str = "bench.echo";

    async fn start(server: &TestNats) -> Self {
        let nats = server.connect("echo").await;
        let mut requests = nats.client().subscribe(Self::SUBJECT).await.unwrap();
        nats.client().flush().await.unwrap();
        let task = tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let reply = request.reply.unwrap();
                nats.client()
                    .publish(reply, vec![0; 400].into())
                    .await
                    .unwrap();
            }
        });
        Self {
            _task: tokio_util::task::AbortOnDropHandle::new(task),
        }
    }

    async fn ask(&self, nats: &Nats) {
        let asked = nats.client().request(Self::SUBJECT, vec![0; 300].into());
        asked.await.unwrap();
    }
}

fn row(name: &str, seen: &Histogram<u64>, base: &Histogram<u64>) {
    let (p50, p99) = (millis(seen, 0.5), millis(seen, 0.99));
    println!(
        "{name:<28} {p50:>9.3} {p99:>9.3} {:>8.2} {:>8.2}",
        p50 / millis(base, 0.5),
        p99 / millis(base, 0.99)
    );
}

/// That many accounts, open.
pub(crate) async fn open_many(ledger: &Arc<dyn Ledger>) -> Vec<Payer> {
    let payers: Vec<_> = (1..=ACCOUNTS).map(|n| Payer::new(ledger, n)).collect();
    for some in payers.chunks(HOT_CALLERS) {
        join_all(some.iter().map(Payer::open)).await;
    }
    payers
}

/// Callers that reserve and settle, durably and without pause, each going from account to account.
/// Decisions per second.
pub(crate) async fn saturated(payers: Vec<Payer>) -> f64 {
    let payers: Arc<[Payer]> = payers.into();
    let begun = Instant::now();
    let callers = (0..HOT_CALLERS).map(|caller| {
        let payers = Arc::clone(&payers);
        tokio::spawn(async move {
            let (mut decisions, mut next) = (0_u32, caller);
            while begun.elapsed() < HOT_WARM_UP + HOT {
                let counts = begun.elapsed() >= HOT_WARM_UP;
                let payer = &payers[next % payers.len()];
                next += HOT_CALLERS + 1;
                let grant = payer.reserve().await;
                payer.settle(&grant).await;
                decisions += if counts { 2 } else { 0 };
            }
            decisions
        })
    });
    let ended = join_all(callers.collect::<Vec<_>>()).await;
    let elapsed = begun.elapsed() - HOT_WARM_UP;
    let decisions: u32 = ended.into_iter().map(Result::unwrap).sum();
    f64::from(decisions) / elapsed.as_secs_f64()
}

/// The same events as messages of their own, many in flight: what a ledger without group commit could
/// reach at most, if it never had to check a place.
async fn one_event_per_message(nats: &Nats, journal: &NatsJournal) -> f64 {
    let end = journal.end().await.unwrap();
    let stored = journal.get(end).await.unwrap().unwrap();
    let event = Commit::decode(&stored.payload).unwrap().events[0]
        .bytes
        .clone();
    open(nats, "single").await;
    let subject = Names::new("single").unwrap().journal_subject(Partition(0));
    let begun = Instant::now();
    let mut in_flight = FuturesUnordered::new();
    let mut landed = 0_u32;
    while begun.elapsed() < HOT {
        while in_flight.len() < SINGLE_IN_FLIGHT {
            let sent = nats.jetstream().publish(subject.clone(), event.clone());
            in_flight.push(sent.await.unwrap().into_future());
        }
        if let Some(ack) = in_flight.next().await {
            ack.unwrap();
            landed += 1;
        }
    }
    f64::from(landed) / begun.elapsed().as_secs_f64()
}
