//! Metrics in Prometheus text: requests, refusals, what is held and spent, latencies by stage.
//!
//! Held and spent are this gateway's own: holds of its open requests, usage of its settles since it
//! started. How accounts stand is in the ledger. No account, key or secret is a label.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use seatbelt_dialects::Aspect;
use seatbelt_schemas::{event::RefusalReason, meter::Amounts, position::Partition, usage::Usage};

/// Longest latency that is told apart: one hour, in microseconds.
const LATENCY_US_MAX: u64 = 3_600_000_000;
/// Significant digits of latencies.
const LATENCY_DIGITS: u8 = 2;

/// A stage of a request whose time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Auth,
    Bound,
    Reserve,
    UpstreamFirstByte,
    UpstreamTotal,
    Settle,
}

const STAGES: [(Stage, &str); 6] = [
    (Stage::Auth, "auth"),
    (Stage::Bound, "bound"),
    (Stage::Reserve, "reserve"),
    (Stage::UpstreamFirstByte, "upstream_first_byte"),
    (Stage::UpstreamTotal, "upstream_total"),
    (Stage::Settle, "settle"),
];
const REASONS: [RefusalReason; 4] = [
    RefusalReason::Spent,
    RefusalReason::Unsatisfiable,
    RefusalReason::Held,
    RefusalReason::Unpriced,
];

/// Why a settle was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// So many are kept already.
    Full,
    /// The ledger would not take it any more.
    Late,
    /// The reservation has ended otherwise: reconciled, or expired too long ago to be corrected.
    Ended,
    /// The ledger refuses it.
    Refused,
    /// The gateway stopped first.
    Stopped,
}

impl GivenUp {
    pub(crate) const ALL: [Self; 5] = [
        Self::Full,
        Self::Late,
        Self::Ended,
        Self::Refused,
        Self::Stopped,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Late => "late",
            Self::Ended => "ended",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
        }
    }
}

struct StageTimes {
    times: Histogram<u64>,
    sum_us: u64,
}

/// All counters of one gateway.
pub(crate) struct Metrics {
    stages: [Mutex<StageTimes>; STAGES.len()],
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    refusals: [AtomicU64; REASONS.len()],
    ledger_unavailable: AtomicU64,
    settles_given_up: [AtomicU64; GivenUp::ALL.len()],
    other_class: [AtomicU64; Aspect::ALL.len()],
    settles_kept: AtomicU64,
    held_requests: AtomicU64,
    held_tokens: AtomicU64,
    held_cost: AtomicU64,
    spent_input_tokens: AtomicU64,
    spent_output_tokens: AtomicU64,
    spent_cost: AtomicU64,
    clocks: OnceLock<Clocks>,
}

/// Tells how far the clock of this process is ahead of the server's, ms, by partition.
pub(crate) type Clocks = Box<dyn Fn() -> Vec<(Partition, i64)> + Send + Sync>;

impl Metrics {
    pub(crate) fn new() -> Self {
        let stage = |_| {
            let times = Histogram::new_with_max(LATENCY_US_MAX, LATENCY_DIGITS)
                .expect("one hour at two digits is a valid histogram");
            Mutex::new(StageTimes { times, sum_us: 0 })
        };
        Self {
            stages: std::array::from_fn(stage),
            requests: Mutex::default(),
            refusals: Default::default(),
            ledger_unavailable: AtomicU64::new(0),
            settles_given_up: Default::default(),
            other_class: Default::default(),
            settles_kept: AtomicU64::new(0),
            held_requests: AtomicU64::new(0),
            held_tokens: AtomicU64::new(0),
            held_cost: AtomicU64::new(0),
            spent_input_tokens: AtomicU64::new(0),
            spent_output_tokens: AtomicU64::new(0),
            spent_cost: AtomicU64::new(0),
            clocks: OnceLock::new(),
        }
    }

    /// Asks there for the clocks from now on; the first to say so is asked.
    pub(crate) fn ask_clocks(&self, clocks: Clocks) {
        let _ = self.clocks.set(clocks);
    }

    pub(crate) fn stage(&self, stage: Stage, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(LATENCY_US_MAX);
        let mut times = self.stages[stage as usize]
            .lock()
            .expect("no holder of the lock panics");
        times.times.saturating_record(us);
        times.sum_us = times.sum_us.saturating_add(us);
    }

    pub(crate) fn request(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().expect("no holder of the lock panics");
        *requests.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn refused(&self, reason: RefusalReason) {
        if let Some(n) = REASONS.iter().position(|one| *one == reason) {
            self.refusals[n].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn ledger_unavailable(&self) {
        self.ledger_unavailable.fetch_add(1, Relaxed);
    }

    pub(crate) fn settle_given_up(&self, why: GivenUp) {
        if let Some(n) = GivenUp::ALL.iter().position(|one| *one == why) {
            self.settles_given_up[n].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn other_class(&self, aspect: Aspect) {
        if let Some(n) = Aspect::ALL.iter().position(|one| *one == aspect) {
            self.other_class[n].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn settle_kept(&self) {
        self.settles_kept.fetch_add(1, Relaxed);
    }

    pub(crate) fn settle_not_kept(&self) {
        self.settles_kept.fetch_sub(1, Relaxed);
    }

    pub(crate) fn held(&self, hold: &Amounts) {
        self.held_requests.fetch_add(1, Relaxed);
        self.held_tokens.fetch_add(hold.tokens, Relaxed);
        self.held_cost.fetch_add(hold.cost.unwrap_or(0), Relaxed);
    }

    pub(crate) fn not_held(&self, hold: &Amounts) {
        self.held_requests.fetch_sub(1, Relaxed);
        self.held_tokens.fetch_sub(hold.tokens, Relaxed);
        self.held_cost.fetch_sub(hold.cost.unwrap_or(0), Relaxed);
    }

    pub(crate) fn spent(&self, usage: &Usage, cost: Option<u64>) {
        self.spent_input_tokens
            .fetch_add(usage.input_tokens, Relaxed);
        self.spent_output_tokens
            .fetch_add(usage.output_tokens, Relaxed);
        self.spent_cost.fetch_add(cost.unwrap_or(0), Relaxed);
    }

    /// All of it as Prometheus text.
    pub(crate) fn text(&self) -> String {
        let mut out = String::with_capacity(8192);
        self.write(&mut out)
            .expect("writing to a string does not fail");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        head(
            out,
            "seatbelt_gateway_requests_total",
            "counter",
            "Requests answered, by route and status.",
        )?;
        for ((route, status), count) in self
            .requests
            .lock()
            .expect("no holder of the lock panics")
            .iter()
        {
            writeln!(
                out,
                "seatbelt_gateway_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
            )?;
        }
        head(
            out,
            "seatbelt_gateway_refusals_total",
            "counter",
            "Requests refused by a cap, by reason.",
        )?;
        for (reason, count) in REASONS.iter().zip(&self.refusals) {
            let (reason, count) = (reason.as_str(), count.load(Relaxed));
            writeln!(
                out,
                "seatbelt_gateway_refusals_total{{reason=\"{reason}\"}} {count}"
            )?;
        }
        self.write_given_up(out)?;
        self.write_other_class(out)?;
        self.write_plain(out)?;
        self.write_stages(out)
    }

    fn write_plain(&self, out: &mut String) -> std::fmt::Result {
        let plain = [
            (
                "settles_kept",
                "gauge",
                "Settles that are not known to last yet.",
                &self.settles_kept,
            ),
            (
                "ledger_unavailable_total",
                "counter",
                "Ledger calls that were not answered.",
                &self.ledger_unavailable,
            ),
            (
                "held_requests",
                "gauge",
                "Open reservations of this gateway.",
                &self.held_requests,
            ),
            (
                "held_tokens",
                "gauge",
                "Tokens held by open reservations of this gateway.",
                &self.held_tokens,
            ),
            (
                "held_nano_usd",
                "gauge",
                "Cost held by open reservations of this gateway.",
                &self.held_cost,
            ),
            (
                "spent_input_tokens_total",
                "counter",
                "Input tokens settled by this gateway.",
                &self.spent_input_tokens,
            ),
            (
                "spent_output_tokens_total",
                "counter",
                "Output tokens settled by this gateway.",
                &self.spent_output_tokens,
            ),
            (
                "spent_nano_usd_total",
                "counter",
                "Cost settled by this gateway.",
                &self.spent_cost,
            ),
        ];
        for (name, kind, help, value) in plain {
            let name = format!("seatbelt_gateway_{name}");
            head(out, &name, kind, help)?;
            writeln!(out, "{name} {}", value.load(Relaxed))?;
        }
        self.write_clocks(out)
    }

    fn write_clocks(&self, out: &mut String) -> std::fmt::Result {
        let name = "seatbelt_clock_offset_ms";
        let help = "How far this machine's clock is ahead of nats-server's, by partition led here.";
        head(out, name, "gauge", help)?;
        let offsets = self.clocks.get().map(|clocks| clocks());
        for (partition, offset_ms) in offsets.into_iter().flatten() {
            writeln!(out, "{name}{{partition=\"{partition}\"}} {offset_ms}")?;
        }
        Ok(())
    }

    fn write_given_up(&self, out: &mut String) -> std::fmt::Result {
        let name = "seatbelt_gateway_settles_given_up_total";
        let help =
            "Settles that the ledger will not hear of, by reason; the log has their numbers.";
        head(out, name, "counter", help)?;
        for (why, count) in GivenUp::ALL.iter().zip(&self.settles_given_up) {
            let (why, count) = (why.as_str(), count.load(Relaxed));
            writeln!(out, "{name}{{reason=\"{why}\"}} {count}")?;
        }
        Ok(())
    }

    fn write_other_class(&self, out: &mut String) -> std::fmt::Result {
        let name = "seatbelt_gateway_other_class_total";
        let help = "Answers served in another class than was priced, charged at the hold at least, by what differs.";
        head(out, name, "counter", help)?;
        for (aspect, count) in Aspect::ALL.iter().zip(&self.other_class) {
            let (aspect, count) = (aspect.as_str(), count.load(Relaxed));
            writeln!(out, "{name}{{by=\"{aspect}\"}} {count}")?;
        }
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds below 2^53")]
    fn write_stages(&self, out: &mut String) -> std::fmt::Result {
        let name = "seatbelt_gateway_stage_seconds";
        head(
            out,
            name,
            "summary",
            "Time by stage of a request, since start.",
        )?;
        for ((_, stage), times) in STAGES.iter().zip(&self.stages) {
            let times = times.lock().expect("no holder of the lock panics");
            for quantile in [0.5, 0.9, 0.99, 0.999] {
                let seconds = times.times.value_at_quantile(quantile) as f64 / 1e6;
                writeln!(
                    out,
                    "{name}{{stage=\"{stage}\",quantile=\"{quantile}\"}} {seconds}"
                )?;
            }
            writeln!(
                out,
                "{name}_sum{{stage=\"{stage}\"}} {}",
                times.sum_us as f64 / 1e6
            )?;
            writeln!(
                out,
                "{name}_count{{stage=\"{stage}\"}} {}",
                times.times.len()
            )?;
        }
        Ok(())
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) -> std::fmt::Result {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Metrics::new();
        metrics.ask_clocks(Box::new(|| vec![(Partition(1), -7)]));
        metrics.request("/v1/chat/completions", 200);
        metrics.refused(RefusalReason::Held);
        let hold = Amounts::request(3, 4, None);
        metrics.held(&hold);
        metrics.held(&hold);
        metrics.not_held(&hold);
        metrics.stage(Stage::Settle, Duration::from_millis(2));
        let text = metrics.text();
        for line in [
            "seatbelt_gateway_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
            "seatbelt_gateway_refusals_total{reason=\"held\"} 1",
            "seatbelt_gateway_held_tokens 7",
            "seatbelt_clock_offset_ms{partition=\"01\"} -7",
            "seatbelt_gateway_stage_seconds_count{stage=\"settle\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
    }

    #[test]
    fn stages_stand_where_their_number_says() {
        for (n, (stage, _)) in STAGES.iter().enumerate() {
            assert_eq!(*stage as usize, n);
        }
    }
}
