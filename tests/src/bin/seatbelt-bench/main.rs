//! Measures what a cap costs, and prints one table with ratios from one run.
//!
//! Gateway: a local static upstream reached directly, through the gateway without a key (cap off) and
//! with a capped key (cap on, every reservation on disk before the upstream is called). Ledger: a
//! reserve on an idle account against a raw compare-and-append of the same size, and decisions per
//! second on one hot account and over many. Size: the same with a million accounts and ten million
//! events on the journal. Takeover: a partition changes hands right after saturation. Crowd: one account
//! floods its partition, and what the others notice of it. Soak: a fixed rate for a long time. Verify: a large
//! exported copy proved. Names of parts (`gateway`, `ledger`, `size`, `takeover`, `crowd`, `verify`) as arguments measure
//! only those; `soak SECONDS RATE` that one.
//! Bounded in time. Absolute numbers move with the machine; ratios less.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a tool for people: prints its table, and stops at the first surprise"
)]

mod crowd;
mod gateway;
mod ledger;
mod load;
mod payer;
mod size;
mod soak;
mod takeover;
mod upstream;
mod verify;

use std::time::Duration;

use hdrhistogram::Histogram;

/// As in the product's own program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Latencies in nanoseconds, from 1 us to a minute, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).unwrap()
}

/// A quantile in milliseconds.
fn millis(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    Duration::from_nanos(histogram.value_at_quantile(quantile)).as_secs_f64() * 1000.0
}

/// Resident memory of a process in MiB.
fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

/// What a process and its threads have used of the processors since it began, to 10 ms.
fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // fields 14 and 15 in hundredths of a second; those after the name, which may hold blanks, begin with the third
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(10 * ticks)
}

#[tokio::main]
async fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let [part, url, accounts] = wanted.as_slice()
        && part == size::RESIDENT
    {
        return size::resident(url, accounts.parse().unwrap()).await;
    }
    if let [part, numbers @ ..] = wanted.as_slice()
        && part == "soak"
    {
        let number = |n: usize, or| numbers.get(n).map_or(or, |text| text.parse().unwrap());
        println!("machine: {}", machine());
        return soak::measure(number(0, soak::SECONDS), number(1, soak::RATE)).await;
    }
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    println!("machine: {}", machine());
    if wants("gateway") {
        gateway::measure().await;
    }
    if wants("ledger") {
        ledger::measure().await;
    }
    if wants("size") {
        size::measure().await;
    }
    if wants("takeover") {
        takeover::measure().await;
    }
    if wants("crowd") {
        crowd::measure().await;
    }
    if wanted.is_empty() {
        soak::measure(soak::SECONDS, soak::RATE).await;
    }
    if wants("verify") {
        verify::measure();
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown processor", |text| {
        text.trim_start_matches([' ', '\t', ':'])
    });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<u64>().ok());
    format!(
        "{cores} cores of {model}, {} GiB",
        kib.unwrap_or(0) / (1024 * 1024)
    )
}
