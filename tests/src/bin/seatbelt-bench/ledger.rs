//! The ledger's price: a reserve on an idle account against a raw compare-and-append of the same
//! size, in turns; then decisions per second on one hot account. All on one server that fsyncs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use seatbelt_ledger::{
    api::{Ack, Admin, Ledger, Release, Reserve, ReserveOutcome, Settle},
    host::{HostConfig, LedgerHost, now_ms},
    journal::{Journal, Sequence},
    nats::NatsJournal,
};
use seatbelt_schemas::{
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::{Change, Grant},
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId},
    meter::Meter,
    names::Names,
    position::{Partition, Partitions},
    scope::Scope,
    usage::Usage,
    window::Window,
};
use seatbelt_tests::nats::TestNats;

use crate::{histogram, millis};

const IDLE_ROUNDS: usize = 10;
const IDLE_PER_ROUND: usize = 200;
/// Requests in flight when saturated.
const HOT_CALLERS: usize = 2048;
const HOT: Duration = Duration::from_secs(5);
const HOT_WARM_UP: Duration = Duration::from_secs(1);

struct Bench {
    host: Arc<LedgerHost>,
    account: AccountId,
    key: KeyId,
}

pub(crate) async fn measure() {
    let server = TestNats::start().await;
    let nats = server.connect("bench").await;
    let names = Names::default();
    let journal = NatsJournal::open(&nats, &names, Partition(0), 1)
        .await
        .unwrap();
    let raw = Names::new("raw").unwrap();
    let raw = NatsJournal::open(&nats, &raw, Partition(0), 1)
        .await
        .unwrap();
    let bench = Bench::start(journal.clone()).await;
    idle(&bench, &journal, &raw).await;
    hot(Arc::new(bench)).await;
}

impl Bench {
    async fn start(journal: NatsJournal) -> Self {
        let config = HostConfig {
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("bench").unwrap(),
            writer: "bench".to_owned(),
            expiry_grace_ms: 60_000,
        };
        let host = LedgerHost::start(&config, vec![journal]);
        host.ready().await.unwrap();
        let bench = Self {
            host,
            account: AccountId::new("acct-bench").unwrap(),
            key: KeyId::new("key-bench").unwrap(),
        };
        bench.open().await;
        bench
    }

    async fn open(&self) {
        let cap = CapSpec {
            cap: CapId::new("key/key-bench/tokens/balance").unwrap(),
            scope: Scope::Key(self.key.clone()),
            meter: Meter::Tokens,
            window: Window::Balance,
            limit: 1 << 60,
            hard: true,
            thresholds: THRESHOLDS_DEFAULT.to_vec(),
        };
        let issued = KeyIssued {
            key: self.key.clone(),
            team: None,
            secret_sha256: None,
        };
        for change in [
            Change::OpenAccount,
            Change::IssueKey(issued),
            Change::SetCap(cap),
        ] {
            let command = Admin {
                id: command_id(),
                account: self.account.clone(),
                actor: Actor::operator("bench"),
                change,
            };
            self.host.admin(command).await.unwrap();
        }
    }

    async fn reserve(&self) -> Grant {
        let outcome = self.host.reserve(Reserve {
            id: command_id(),
            account: self.account.clone(),
            key: self.key.clone(),
            model: None,
            run: None,
            end_user: None,
            input_tokens: 20,
            output_tokens: 64,
            deadline_ms: now_ms() + 600_000,
            wait_ms: 2000,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
        });
        match outcome.await.unwrap() {
            ReserveOutcome::Reserved(grant) => grant,
            ReserveOutcome::Refused(refusal) => panic!("refused: {refusal:?}"),
        }
    }

    async fn release(&self, grant: &Grant) {
        let command = Release {
            id: command_id(),
            account: self.account.clone(),
            reservation: grant.reservation,
            reason: "bench".to_owned(),
            actor: Actor::key(&self.key),
        };
        self.host.release(command).await.unwrap();
    }

    async fn settle(&self, grant: &Grant) {
        let report = Report {
            usage: Usage {
                input_tokens: 10,
                output_tokens: 5,
                ..Usage::default()
            },
            upstream: "static".to_owned(),
            source: UsageSource::Upstream,
            finish: Some("stop".to_owned()),
            timings: Timings::default(),
        };
        let command = Settle {
            id: command_id(),
            account: self.account.clone(),
            reservation: grant.reservation,
            report,
            actor: Actor::key(&self.key),
        };
        self.host.settle(command, Ack::Durable).await.unwrap();
    }
}

fn command_id() -> CommandId {
    ulid::Ulid::new().into()
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap()
}

/// Both in turns on the same server; the raw one appends the very bytes of the reserve's commit.
async fn idle(bench: &Bench, journal: &NatsJournal, raw: &NatsJournal) {
    let (mut reserves, mut appends) = (histogram(), histogram());
    let mut sequence = Sequence(0);
    let mut bytes = 0;
    for round in 0..=IDLE_ROUNDS {
        if round == 1 {
            // the first round only warms up
            reserves.reset();
            appends.reset();
        }
        let mut payload = bytes::Bytes::new();
        for n in 0..IDLE_PER_ROUND {
            let begun = Instant::now();
            let grant = bench.reserve().await;
            reserves.saturating_record(nanos(begun));
            if n == 0 {
                let end = journal.end().await.unwrap();
                payload = journal.get(end).await.unwrap().unwrap().payload;
            }
            bench.release(&grant).await;
        }
        bytes = payload.len();
        for _ in 0..IDLE_PER_ROUND {
            let begun = Instant::now();
            sequence = raw.append(sequence, payload.clone()).await.unwrap();
            appends.saturating_record(nanos(begun));
        }
    }
    println!("\nledger, one account, nothing else running ({bytes} bytes a commit)");
    println!(
        "{:<28} {:>9} {:>9} {:>8} {:>8}",
        "operation", "p50 ms", "p99 ms", "p50 x", "p99 x"
    );
    row("raw compare-and-append", &appends, &appends);
    row("reserve, durable", &reserves, &appends);
}

fn row(name: &str, seen: &Histogram<u64>, base: &Histogram<u64>) {
    let (p50, p99) = (millis(seen, 0.5), millis(seen, 0.99));
    println!(
        "{name:<28} {p50:>9.3} {p99:>9.3} {:>8.2} {:>8.2}",
        p50 / millis(base, 0.5),
        p99 / millis(base, 0.99)
    );
}

/// As many callers as keep every commit full; each reserves and settles, durably, without pause.
async fn hot(bench: Arc<Bench>) {
    let begun = Instant::now();
    let callers = (0..HOT_CALLERS).map(|_| {
        let bench = Arc::clone(&bench);
        tokio::spawn(async move {
            let mut decisions = 0_u32;
            while begun.elapsed() < HOT_WARM_UP + HOT {
                let counts = begun.elapsed() >= HOT_WARM_UP;
                let grant = bench.reserve().await;
                bench.settle(&grant).await;
                decisions += if counts { 2 } else { 0 };
            }
            decisions
        })
    });
    let ended = futures::future::join_all(callers).await;
    let elapsed = begun.elapsed() - HOT_WARM_UP;
    let decisions: u32 = ended.into_iter().map(Result::unwrap).sum();
    println!(
        "\nledger, one hot account, {HOT_CALLERS} callers: {:.0} decisions/s (reserve and settle, durable)",
        f64::from(decisions) / elapsed.as_secs_f64()
    );
}
