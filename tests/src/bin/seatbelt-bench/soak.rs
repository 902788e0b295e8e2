//! A long time at a fixed rate: whether memory stays flat, and what a request leaves on the disk.
//!
//! Requests are sent when they are due, whatever became of those before (an open loop), and timed from then.
//! Those that would be more than [`UNANSWERED_MAX`] at once are not sent, and counted. `soak SECONDS RATE` sets
//! both.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use seatbelt_tests::{Key, Running, Stack};
use tokio::sync::Semaphore;

use crate::{
    histogram,
    load::{Target, body, once},
    millis, resident_mib, upstream,
};

/// How long and how many a second, where it is not said.
pub(crate) const SECONDS: u64 = 400;
pub(crate) const RATE: u64 = 6_500;
/// Accounts that share them.
const ACCOUNTS: usize = 64;
const UNANSWERED_MAX: usize = 1_024;
const CLIENTS: usize = 16;
/// Rows of the table.
const ROWS: u64 = 10;
/// How often what is due is sent.
const TICK: Duration = Duration::from_millis(5);

/// What was seen since the last row.
struct Seen {
    latencies: Mutex<Histogram<u64>>,
    answered: AtomicU64,
    left_out: AtomicU64,
}

struct Soak {
    clients: Vec<reqwest::Client>,
    targets: Vec<Target>,
    body: bytes::Bytes,
    places: Arc<Semaphore>,
    seen: Arc<Seen>,
    sent: usize,
}

pub(crate) async fn measure(seconds: u64, rate: u64) {
    let address = upstream::start();
    let mut stack = Stack::new()
        .upstream_at(&format!("http://{address}/v1"))
        .quiet();
    for account in 0..ACCOUNTS {
        stack = stack.key(Key::new(&format!("soak-{account}")).hard_cap(1 << 50));
    }
    let stack = stack.start().await;
    println!("\nsoak, durable: {rate} requests a second over {ACCOUNTS} accounts for {seconds} s");
    println!(
        "{:>7} {:>9} {:>9} {:>9} {:>9} {:>12} {:>10} {:>16}",
        "at s",
        "req/s",
        "left out",
        "p50 ms",
        "p99 ms",
        "gateway MiB",
        "nats MiB",
        "disk B a request"
    );
    let mut soak = Soak::new(&stack.gateway);
    let begun = Instant::now();
    let mut answered = 0;
    for row in 1..=ROWS {
        let until = Duration::from_millis(seconds * 1_000 * row / ROWS);
        let since = begun.elapsed();
        soak.send(begun, until, rate).await;
        answered += soak.row(&stack, begun.elapsed(), since, answered);
    }
    soak.answered().await;
    for (name, bytes) in streams(&stack.home().data()) {
        println!("{:>7} {name}", bytes / answered.max(1));
    }
    stack.stop().await;
}

impl Soak {
    fn new(gateway: &str) -> Self {
        let url = format!("{gateway}/v1/chat/completions");
        let targets = (0..ACCOUNTS).map(|account| Target {
            url: url.clone(),
            secret: Some(format!("sk-soak-{account}")),
        });
        Self {
            clients: (0..CLIENTS)
                .map(|_| seatbelt_tests::http_client())
                .collect(),
            targets: targets.collect(),
            body: body(),
            places: Arc::new(Semaphore::new(UNANSWERED_MAX)),
            seen: Arc::new(Seen {
                latencies: Mutex::new(histogram()),
                answered: AtomicU64::new(0),
                left_out: AtomicU64::new(0),
            }),
            sent: 0,
        }
    }

    /// Sends what is due until then, and waits for no answer.
    async fn send(&mut self, begun: Instant, until: Duration, rate: u64) {
        let mut ticks = tokio::time::interval(TICK);
        while begun.elapsed() < until {
            ticks.tick().await;
            let due = begun.elapsed().as_micros() * u128::from(rate) / 1_000_000;
            while (self.sent as u128) < due {
                self.one();
            }
        }
    }

    fn one(&mut self) {
        self.sent += 1;
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            self.seen.left_out.fetch_add(1, Relaxed);
            return;
        };
        let client = self.clients[self.sent % CLIENTS].clone();
        let target = self.targets[self.sent % ACCOUNTS].clone();
        let (body, seen) = (self.body.clone(), Arc::clone(&self.seen));
        tokio::spawn(async move {
            let nanos = once(&client, &target, body).await;
            seen.latencies.lock().unwrap().saturating_record(nanos);
            seen.answered.fetch_add(1, Relaxed);
            drop(place);
        });
    }

    /// Waits for the answers that are still to come.
    async fn answered(&self) {
        let all = u32::try_from(UNANSWERED_MAX).unwrap();
        drop(self.places.acquire_many(all).await.unwrap());
    }

    /// Prints what was seen since the last one, and returns how many were answered in it.
    fn row(&self, stack: &Running, at: Duration, since: Duration, before: u64) -> u64 {
        let answered = self.seen.answered.swap(0, Relaxed);
        let latencies = std::mem::replace(&mut *self.seen.latencies.lock().unwrap(), histogram());
        let disk: u64 = streams(&stack.home().data())
            .iter()
            .map(|(_, bytes)| bytes)
            .sum();
        println!(
            "{:>7.0} {:>9.0} {:>9} {:>9.3} {:>9.3} {:>12.0} {:>10.0} {:>16}",
            at.as_secs_f64(),
            answered as f64 / (at - since).as_secs_f64(),
            self.seen.left_out.swap(0, Relaxed),
            millis(&latencies, 0.5),
            millis(&latencies, 0.99),
            resident_mib(stack.pid()),
            resident_mib(stack.server_pid()),
            disk / (before + answered).max(1),
        );
        answered
    }
}

/// What each stream takes of the disk, in bytes.
fn streams(data: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("jetstream")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path
                .parent()
                .is_some_and(|parent| parent.ends_with("streams"))
            {
                let name = entry.file_name().to_string_lossy().into_owned();
                found.push((name, taken(&path)));
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Blocks of all files below; those that go away meanwhile take nothing.
fn taken(path: &Path) -> u64 {
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    let below: u64 = below.map(|entry| taken(&entry.path())).sum();
    let own = path.symlink_metadata();
    below
        + own
            .ok()
            .filter(fs::Metadata::is_file)
            .map_or(0, |file| file.blocks() * 512)
}
