//! Metrics: requests, refusals, what is held and spent, latencies by stage; in OpenMetrics, as Prometheus reads it.
//!
//! Held and spent are this gateway's own: holds of its open requests, usage of its settles since it started. How
//! accounts stand is in the ledger. The buckets of histograms are fixed, so that those of several gateways add up. What
//! a request counts costs no allocation; keys are labels in `keys` alone, no secret is one.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode_registry},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use seatbelt_dialects::Aspect;
use seatbelt_schemas::{
    event::RefusalReason,
    ids::{AccountId, KeyId},
    meter::Amounts,
    position::Partition,
    usage::Usage,
};

mod keys;

use keys::Keys;
pub(crate) use keys::OfKey;

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The last line of the text.
pub(crate) const END: &str = "# EOF\n";
/// Upper bounds of the buckets of every stage, seconds: from a look at a key to the longest answer.
const BUCKETS_S: [f64; 22] = [
    0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
    0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0, 600.0,
];

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

/// What became of a hold that is taken slice by slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slice {
    /// The first one.
    Begun,
    /// A whole one more.
    Grown,
    /// What a cap had left.
    Short,
    /// No more comes.
    Last,
}

impl Slice {
    const ALL: [Self; 4] = [Self::Begun, Self::Grown, Self::Short, Self::Last];

    fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Grown => "grown",
            Self::Short => "short",
            Self::Last => "last",
        }
    }
}

/// Why a neuron did nothing for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NothingDone {
    Busy,
    Unreachable,
    TurnsUsAway,
    NotThere,
}

impl NothingDone {
    const ALL: [Self; 4] = [
        Self::Busy,
        Self::Unreachable,
        Self::TurnsUsAway,
        Self::NotThere,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::TurnsUsAway => "turns_us_away",
            Self::NotThere => "not_there",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    status: u16,
}

/// All that one gateway counts.
pub(crate) struct Metrics {
    registry: Registry,
    stages: [Histogram; STAGES.len()],
    requests: Family<Answered, Counter>,
    refusals: [Counter; REASONS.len()],
    ledger_unavailable: Counter,
    attempts_again: Counter,
    settles_given_up: [Counter; GivenUp::ALL.len()],
    other_class: [Counter; Aspect::ALL.len()],
    neuron_faults: [Counter; NothingDone::ALL.len()],
    slices: [Counter; Slice::ALL.len()],
    settles_kept: Gauge,
    held_requests: Gauge,
    held_tokens: Gauge,
    held_cost: Gauge,
    spent_input_tokens: Counter,
    spent_output_tokens: Counter,
    spent_cost: Counter,
    clock_offsets: Family<[(&'static str, String); 1], Gauge>,
    clocks: OnceLock<Clocks>,
    /// None where keys are to be no labels.
    keys: Option<Keys>,
}

/// Tells how far the clock of this process is ahead of the server's, ms, by partition.
pub(crate) type Clocks = Box<dyn Fn() -> Vec<(Partition, i64)> + Send + Sync>;

impl Metrics {
    pub(crate) fn new(by_key: bool) -> Self {
        let mut registry = Registry::default();
        let mut all = Names(&mut registry);
        Self {
            requests: all.family("requests", "Requests answered, by route and status"),
            refusals: all.counters(
                "refusals",
                "Requests refused by a cap, by reason",
                "reason",
                REASONS.map(|reason| reason.as_str()),
            ),
            settles_given_up: all.counters(
                "settles_given_up",
                "Settles that the ledger will not hear of, by reason; the log has their numbers",
                "reason",
                GivenUp::ALL.map(GivenUp::as_str),
            ),
            other_class: all.counters(
                "other_class",
                "Answers served in another class than was priced, charged at the hold at least, by what differs",
                "by",
                Aspect::ALL.map(Aspect::as_str),
            ),
            slices: all.counters(
                "slices",
                "Holds taken slice by slice while a neuron writes, and the slices: begun, grown by a whole one, by what a cap had left, and told that no more comes",
                "what",
                Slice::ALL.map(Slice::as_str),
            ),
            neuron_faults: all.counters(
                "neuron_faults",
                "Neurons that did nothing for a request, by why; another is asked where there is one",
                "why",
                NothingDone::ALL.map(NothingDone::as_str),
            ),
            settles_kept: all.level("settles_kept", "Settles that are not known to last yet"),
            ledger_unavailable: all.counter(
                "ledger_unavailable",
                "Ledger calls that were not answered",
            ),
            attempts_again: all.counter(
                "attempts_again",
                "Requests sent once more after an attempt for which nothing was done",
            ),
            held_requests: all.level("held_requests", "Open reservations of this gateway"),
            held_tokens: all.level(
                "held_tokens",
                "Tokens held by open reservations of this gateway",
            ),
            held_cost: all.level(
                "held_nano_usd",
                "Cost held by open reservations of this gateway",
            ),
            spent_input_tokens: all.counter(
                "spent_input_tokens",
                "Input tokens settled by this gateway",
            ),
            spent_output_tokens: all.counter(
                "spent_output_tokens",
                "Output tokens settled by this gateway",
            ),
            spent_cost: all.counter("spent_nano_usd", "Cost settled by this gateway"),
            stages: all.stages(),
            clock_offsets: all.clock_offsets(),
            keys: by_key.then(|| Keys::new(&mut registry)),
            clocks: OnceLock::new(),
            registry,
        }
    }

    /// Asks there for the clocks from now on; the first to say so is asked.
    pub(crate) fn ask_clocks(&self, clocks: Clocks) {
        let _ = self.clocks.set(clocks);
    }

    pub(crate) fn stage(&self, stage: Stage, took: Duration) {
        self.stages[stage as usize].observe(took.as_secs_f64());
    }

    pub(crate) fn request(&self, route: &'static str, status: u16) {
        self.requests
            .get_or_create(&Answered { route, status })
            .inc();
    }

    /// What is counted of one key besides; nothing where keys are no labels.
    pub(crate) fn of_key(&self, account: &AccountId, key: &KeyId) -> Option<Arc<OfKey>> {
        self.keys.as_ref().map(|keys| keys.of(account, key))
    }

    pub(crate) fn refused(&self, reason: RefusalReason) {
        if let Some(n) = reason_at(reason) {
            self.refusals[n].inc();
        }
    }

    pub(crate) fn attempt_again(&self) {
        self.attempts_again.inc();
    }

    pub(crate) fn ledger_unavailable(&self) {
        self.ledger_unavailable.inc();
    }

    pub(crate) fn settle_given_up(&self, why: GivenUp) {
        if let Some(n) = GivenUp::ALL.iter().position(|one| *one == why) {
            self.settles_given_up[n].inc();
        }
    }

    pub(crate) fn other_class(&self, aspect: Aspect) {
        if let Some(n) = Aspect::ALL.iter().position(|one| *one == aspect) {
            self.other_class[n].inc();
        }
    }

    pub(crate) fn neuron_fault(&self, why: NothingDone) {
        if let Some(n) = NothingDone::ALL.iter().position(|one| *one == why) {
            self.neuron_faults[n].inc();
        }
    }

    pub(crate) fn slice(&self, what: Slice) {
        if let Some(n) = Slice::ALL.iter().position(|one| *one == what) {
            self.slices[n].inc();
        }
    }

    pub(crate) fn settle_kept(&self) {
        self.settles_kept.inc();
    }

    pub(crate) fn settle_not_kept(&self) {
        self.settles_kept.dec();
    }

    pub(crate) fn held(&self, hold: &Amounts) {
        self.held_requests.inc();
        self.held_tokens.inc_by(level(hold.tokens));
        self.held_cost.inc_by(level(hold.cost.unwrap_or(0)));
    }

    pub(crate) fn not_held(&self, hold: &Amounts) {
        self.held_requests.dec();
        self.held_tokens.dec_by(level(hold.tokens));
        self.held_cost.dec_by(level(hold.cost.unwrap_or(0)));
    }

    pub(crate) fn spent(&self, usage: &Usage, cost: Option<u64>) {
        self.spent_input_tokens.inc_by(usage.input_tokens);
        self.spent_output_tokens.inc_by(usage.output_tokens);
        self.spent_cost.inc_by(cost.unwrap_or(0));
    }

    /// All of it but [`END`], before which others may write theirs.
    pub(crate) fn text(&self) -> String {
        // a partition that is led elsewhere now has no clock here
        self.clock_offsets.clear();
        let offsets = self.clocks.get().map(|clocks| clocks());
        for (partition, offset_ms) in offsets.into_iter().flatten() {
            let labels = [("partition", partition.to_string())];
            self.clock_offsets.get_or_create(&labels).set(offset_ms);
        }
        let mut out = String::with_capacity(16 * 1024);
        encode_registry(&mut out, &self.registry).expect("writing to a string does not fail");
        out
    }
}

fn reason_at(reason: RefusalReason) -> Option<usize> {
    REASONS.iter().position(|one| *one == reason)
}

/// An amount as gauges hold it. Amounts end far below.
fn level(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

/// Registers under `seatbelt_gateway_`. The registry ends each text with a full stop, and counters with `_total`.
struct Names<'a>(&'a mut Registry);

impl Names<'_> {
    fn counter(&mut self, name: &str, about: &str) -> Counter {
        let counter = Counter::default();
        self.0
            .register(format!("seatbelt_gateway_{name}"), about, counter.clone());
        counter
    }

    fn level(&mut self, name: &str, about: &str) -> Gauge {
        let level = Gauge::default();
        self.0
            .register(format!("seatbelt_gateway_{name}"), about, level.clone());
        level
    }

    fn family(&mut self, name: &str, about: &str) -> Family<Answered, Counter> {
        let family = Family::default();
        self.0
            .register(format!("seatbelt_gateway_{name}"), about, family.clone());
        family
    }

    /// By the words of one label: all of them are there from the start.
    fn counters<const N: usize>(
        &mut self,
        name: &str,
        about: &str,
        label: &'static str,
        words: [&'static str; N],
    ) -> [Counter; N] {
        let family = Family::<[(&str, &str); 1], Counter>::default();
        let counters = words.map(|word| family.get_or_create(&[(label, word)]).clone());
        self.0
            .register(format!("seatbelt_gateway_{name}"), about, family);
        counters
    }

    fn stages(&mut self) -> [Histogram; STAGES.len()] {
        let new: fn() -> Histogram = || Histogram::new(BUCKETS_S);
        let family =
            Family::<[(&str, &str); 1], Histogram, fn() -> Histogram>::new_with_constructor(new);
        let stages = STAGES.map(|(_, stage)| family.get_or_create(&[("stage", stage)]).clone());
        let about = "Time by stage of a request";
        self.0
            .register("seatbelt_gateway_stage_seconds", about, family);
        stages
    }

    fn clock_offsets(&mut self) -> Family<[(&'static str, String); 1], Gauge> {
        let offsets = Family::default();
        let about = "How far this machine's clock is ahead of nats-server's, by partition led here";
        self.0
            .register("seatbelt_clock_offset_ms", about, offsets.clone());
        offsets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_shown() {
        let metrics = Metrics::new(false);
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
            "seatbelt_gateway_stage_seconds_bucket{le=\"0.001\",stage=\"settle\"} 0",
            "seatbelt_gateway_stage_seconds_bucket{le=\"0.002\",stage=\"settle\"} 1",
            "# TYPE seatbelt_gateway_stage_seconds histogram",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        let (account, key) = ("a".parse().unwrap(), "k".parse().unwrap());
        assert!(metrics.of_key(&account, &key).is_none(), "switched off");
    }

    #[test]
    fn stages_stand_where_their_number_says() {
        for (n, (stage, _)) in STAGES.iter().enumerate() {
            assert_eq!(*stage as usize, n);
        }
    }

    /// What recording costs a request: `cargo test --release -p seatbelt-gateway recording -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures"]
    fn recording_takes_well_below_a_microsecond() {
        let metrics = Metrics::new(true);
        let (account, key) = ("acct".parse().unwrap(), "key".parse().unwrap());
        let hold = Amounts::request(3, 4, None);
        let began = std::time::Instant::now();
        for n in 0..1_000_000_u64 {
            for (stage, _) in STAGES {
                metrics.stage(stage, Duration::from_nanos(n));
            }
            metrics.held(&hold);
            let own = metrics.of_key(&account, &key).unwrap();
            own.held(&hold, &[]);
            own.not_held(&hold);
            metrics.not_held(&hold);
            metrics.request("/v1/chat/completions", 200);
        }
        let each = began.elapsed() / 1_000_000;
        tracing::info!(?each, "recording of one request");
        assert!(each < Duration::from_micros(10), "{each:?}");
    }
}
