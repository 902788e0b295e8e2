//! What one account that floods its partition costs the others: the same three measurements while nobody
//! else is there and while an account has as many waiting as it may and sends thousands of requests a
//! second more. A reserve of another account; how far the patience of one who waits in vain is missed; how
//! long after its deadline a hold ends, as one who waits for it sees it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use seatbelt_ledger::{
    api::{Ledger, Reserve, ReserveOutcome},
    host::{HostConfig, LedgerHost, now_ms},
    testing::{Payer, balance, one_partition},
    writer::waiting::WAITERS_PER_ACCOUNT_MAX,
};
use seatbelt_schemas::{event::OnUnknown, scope::Scope};
use seatbelt_tests::nats::TestNats;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    histogram,
    ledger::{open, timed},
    millis,
};

/// Each of the two measurements, and the whole with opening and closing.
const SPAN: Duration = Duration::from_secs(15);
const WHOLE_MAX: Duration = Duration::from_secs(60);
/// Requests of the flooding account beside those that wait, a second, and how they come.
const FLOOD_PER_SECOND: usize = 5_000;
const FLOOD_EVERY: Duration = Duration::from_millis(10);
/// Requests of it that may be unanswered at once; those beyond are not sent, and are counted.
const UNANSWERED_MAX: usize = 8_192;
/// Tokens of a cap that is all held.
const ALL: u64 = 100;
const PATIENCE: Duration = Duration::from_millis(300);
const LIFE: Duration = Duration::from_millis(200);
const LONG_MS: u64 = 30_000;
/// Pause of one who should wait and was turned away.
const TURNED_AWAY: Duration = Duration::from_millis(50);

const _: () = assert!(
    2 * SPAN.as_secs() < WHOLE_MAX.as_secs(),
    "both measurements fit"
);

pub(crate) async fn measure() {
    let measured = tokio::time::timeout(WHOLE_MAX, both()).await;
    if measured.is_err() {
        println!("\ncrowd: gave up after {} s", WHOLE_MAX.as_secs());
    }
}

async fn both() {
    let server = TestNats::start().await;
    let nats = server.connect("bench").await;
    let config = HostConfig {
        expiry_grace_ms: 0,
        ..one_partition("bench")
    };
    let host = LedgerHost::start(&config, vec![open(&nats, "crowd").await]);
    host.ready().await.unwrap();
    let ledger: Arc<dyn Ledger> = host.clone();
    let others = Others::open(&ledger).await;
    let calm = others.measure().await;
    let flood = Flood::start(&ledger).await;
    let flooded = others.measure().await;
    let told = flood.stop().await;
    println!(
        "\ncrowd, one account with {WAITERS_PER_ACCOUNT_MAX} waiting and {FLOOD_PER_SECOND} requests a second more"
    );
    println!(
        "{:<30} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>8}",
        "ms", "calm p50", "calm p99", "calm max", "flood p50", "flood p99", "flood max", "p99 x"
    );
    for (name, calm, flooded) in [
        (
            "reserve of another account",
            &calm.reserves,
            &flooded.reserves,
        ),
        ("patience missed by", &calm.patience, &flooded.patience),
        (
            "hold ends after its deadline",
            &calm.expiries,
            &flooded.expiries,
        ),
    ] {
        row(name, calm, flooded);
    }
    println!("flood: {told}");
    host.stop().await;
}

fn row(name: &str, calm: &Histogram<u64>, flooded: &Histogram<u64>) {
    let of = |seen: &Histogram<u64>| [0.5, 0.99, 1.0].map(|quantile| millis(seen, quantile));
    let ([c50, c99, c100], [f50, f99, f100]) = (of(calm), of(flooded));
    println!(
        "{name:<30} {c50:>10.3} {c99:>10.3} {c100:>10.3} {f50:>10.3} {f99:>10.3} {f100:>10.3} {:>8.1}",
        f99 / c99
    );
}

/// One account whose cap counts tokens.
async fn opened(ledger: &Arc<dyn Ledger>, name: &str, limit: u64) -> Payer {
    let payer = Payer::new(name, &format!("key-{name}"));
    for change in payer.changes(balance("cap", Scope::Account, limit)) {
        ledger.admin(payer.admin(change)).await.unwrap();
    }
    payer
}

/// What was seen in one measurement.
struct Seen {
    reserves: Histogram<u64>,
    patience: Histogram<u64>,
    expiries: Histogram<u64>,
}

/// Three accounts that do not flood.
struct Others {
    ledger: Arc<dyn Ledger>,
    busy: Payer,
    patient: Payer,
    short: Payer,
}

impl Others {
    async fn open(ledger: &Arc<dyn Ledger>) -> Self {
        let others = Self {
            ledger: Arc::clone(ledger),
            busy: opened(ledger, "busy", 1 << 60).await,
            patient: opened(ledger, "patient", ALL).await,
            short: opened(ledger, "short", ALL).await,
        };
        let all = Reserve {
            deadline_ms: now_ms() + 3_600_000,
            ..others.patient.reserve(ALL)
        };
        let held = ledger.reserve(all).await.unwrap();
        assert!(matches!(held, ReserveOutcome::Reserved(_)));
        others
    }

    async fn measure(&self) -> Seen {
        let until = Instant::now() + SPAN;
        let (reserves, patience, expiries) = tokio::join!(
            self.reserves(until),
            self.patience(until),
            self.expiries(until)
        );
        Seen {
            reserves,
            patience,
            expiries,
        }
    }

    async fn reserves(&self, until: Instant) -> Histogram<u64> {
        let mut seen = histogram();
        while Instant::now() < until {
            let asked = timed(&mut seen, self.ledger.reserve(self.busy.reserve(1))).await;
            self.release(&self.busy, asked.unwrap()).await;
        }
        seen
    }

    async fn patience(&self, until: Instant) -> Histogram<u64> {
        let mut seen = histogram();
        while Instant::now() < until {
            let begun = Instant::now();
            let command = waiting(&self.patient, 1, PATIENCE);
            let refused = self.ledger.reserve(command).await.unwrap();
            assert!(matches!(refused, ReserveOutcome::Refused(_)));
            let took = begun.elapsed();
            // too early would be as wrong, by less than a millisecond it is the clock's
            assert!(took + Duration::from_millis(2) > PATIENCE, "{took:?}");
            seen.saturating_record(nanos(took.saturating_sub(PATIENCE)));
        }
        seen
    }

    async fn expiries(&self, until: Instant) -> Histogram<u64> {
        let mut seen = histogram();
        while Instant::now() < until {
            let deadline = Instant::now() + LIFE;
            let life_ms = u64::try_from(LIFE.as_millis()).unwrap();
            let all = Reserve {
                deadline_ms: now_ms() + life_ms,
                on_unknown: OnUnknown::Release,
                ..self.short.reserve(ALL)
            };
            let held = self.ledger.reserve(all).await.unwrap();
            assert!(matches!(held, ReserveOutcome::Reserved(_)));
            let command = waiting(&self.short, 1, Duration::from_secs(10));
            let next = self.ledger.reserve(command).await.unwrap();
            let late = Instant::now().saturating_duration_since(deadline);
            seen.saturating_record(nanos(late));
            self.release(&self.short, next).await;
        }
        seen
    }

    async fn release(&self, payer: &Payer, outcome: ReserveOutcome) {
        let ReserveOutcome::Reserved(grant) = outcome else {
            panic!("refused: {outcome:?}");
        };
        let command = payer.release(grant.reservation);
        self.ledger.release(command).await.unwrap();
    }
}

fn waiting(payer: &Payer, tokens: u64, patience: Duration) -> Reserve {
    Reserve {
        wait_ms: u64::try_from(patience.as_millis()).unwrap(),
        ..payer.reserve(tokens)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap()
}

/// The account that floods.
struct Flood {
    stop: CancellationToken,
    tasks: TaskTracker,
    sent: Arc<AtomicU64>,
    kept_back: Arc<AtomicU64>,
    begun: Instant,
}

impl Flood {
    async fn start(ledger: &Arc<dyn Ledger>) -> Self {
        let payer = opened(ledger, "flood", ALL).await;
        let all = Reserve {
            deadline_ms: now_ms() + 3_600_000,
            ..payer.reserve(ALL)
        };
        ledger.reserve(all).await.unwrap();
        let flood = Self {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            sent: Arc::default(),
            kept_back: Arc::default(),
            begun: Instant::now(),
        };
        for _ in 0..WAITERS_PER_ACCOUNT_MAX {
            flood.wait_in_line(ledger, &payer);
        }
        flood.send(ledger, payer);
        flood
    }

    /// One who waits, and begins again when turned away.
    fn wait_in_line(&self, ledger: &Arc<dyn Ledger>, payer: &Payer) {
        let (ledger, payer) = (Arc::clone(ledger), payer.clone());
        let waits = async move {
            loop {
                let command = waiting(&payer, 1, Duration::from_millis(LONG_MS));
                let _ = ledger.reserve(command).await;
                // its place may have gone to one of the others
                tokio::time::sleep(TURNED_AWAY).await;
            }
        };
        self.tasks
            .spawn(self.stop.clone().run_until_cancelled_owned(waits));
    }

    /// Sends at an even pace, whether or not answers come.
    fn send(&self, ledger: &Arc<dyn Ledger>, payer: Payer) {
        let (ledger, stop, tasks) = (Arc::clone(ledger), self.stop.clone(), self.tasks.clone());
        let (sent, kept_back) = (Arc::clone(&self.sent), Arc::clone(&self.kept_back));
        let unanswered = Arc::new(AtomicUsize::new(0));
        let sends = async move {
            let mut ticks = tokio::time::interval(FLOOD_EVERY);
            let per_tick = FLOOD_PER_SECOND / (1_000 / FLOOD_EVERY.as_millis() as usize);
            loop {
                ticks.tick().await;
                for _ in 0..per_tick {
                    if unanswered.load(Relaxed) >= UNANSWERED_MAX {
                        kept_back.fetch_add(1, Relaxed);
                        continue;
                    }
                    unanswered.fetch_add(1, Relaxed);
                    sent.fetch_add(1, Relaxed);
                    let (ledger, unanswered) = (Arc::clone(&ledger), Arc::clone(&unanswered));
                    let command = waiting(&payer, 1, Duration::from_millis(LONG_MS));
                    tasks.spawn(async move {
                        let _ = ledger.reserve(command).await;
                        unanswered.fetch_sub(1, Relaxed);
                    });
                }
            }
        };
        self.tasks.spawn(stop.run_until_cancelled_owned(sends));
    }

    async fn stop(self) -> String {
        self.stop.cancel();
        let took = self.begun.elapsed().as_secs_f64();
        let (sent, kept_back) = (self.sent.load(Relaxed), self.kept_back.load(Relaxed));
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = sent as f64 / took;
        format!("{rate:.0} requests/s sent over {took:.1} s, {kept_back} kept back")
    }
}
