//! What the neuron counts and measures, and its Prometheus text.
//!
//! Labels are outcomes and model names from the configuration, never anything a request brought.

use std::{
    fmt::Write,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use seatbelt_schemas::usage::{NeuronUsage, Outcome};

/// Longest latency told apart, in microseconds: an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;
const DIGITS: u8 = 2;
const QUANTILES: [f64; 3] = [0.5, 0.9, 0.99];
const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Completed, "completed"),
    (Outcome::Aborted, "aborted"),
    (Outcome::Expired, "expired"),
    (Outcome::Rejected, "rejected"),
    (Outcome::Failed, "failed"),
];

/// Why a call was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// No gateway of this deployment signed it, or not for now.
    Unsigned,
    /// Its reservation was served before.
    Repeated,
    /// No more reservations can be remembered.
    Full,
}

const TURNED_AWAY: [(TurnedAway, &str); 3] = [
    (TurnedAway::Unsigned, "unsigned"),
    (TurnedAway::Repeated, "repeated"),
    (TurnedAway::Full, "full"),
];

/// Counters and histograms of one neuron.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: [AtomicU64; OUTCOMES.len()],
    turned_away: [AtomicU64; TURNED_AWAY.len()],
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    queued: Latency,
    prefill: Latency,
    decode_step: Latency,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Default::default(),
            turned_away: Default::default(),
            input_tokens: AtomicU64::new(0),
            output_tokens: AtomicU64::new(0),
            queued: Latency::new(),
            prefill: Latency::new(),
            decode_step: Latency::new(),
        }
    }

    /// A request ended.
    pub(crate) fn request(&self, outcome: Outcome, usage: NeuronUsage) {
        let at = OUTCOMES
            .iter()
            .position(|(known, _)| *known == outcome)
            .expect("every outcome is listed");
        self.requests[at].fetch_add(1, Ordering::Relaxed);
        self.input_tokens
            .fetch_add(usage.input_tokens, Ordering::Relaxed);
        self.output_tokens
            .fetch_add(usage.output_tokens, Ordering::Relaxed);
    }

    /// A call was not let in.
    pub(crate) fn turned_away(&self, why: TurnedAway) {
        let at = TURNED_AWAY.iter().position(|(known, _)| *known == why);
        let at = at.expect("every reason is listed");
        self.turned_away[at].fetch_add(1, Ordering::Relaxed);
    }

    /// A request waited so long for its slot.
    pub(crate) fn queued(&self, waited: Duration) {
        self.queued.record(waited);
    }

    /// A prompt took so long to read.
    pub(crate) fn prefill(&self, took: Duration) {
        self.prefill.record(took);
    }

    /// A step of all running answers took so long.
    pub(crate) fn decode_step(&self, took: Duration) {
        self.decode_step.record(took);
    }

    /// The Prometheus text, with the gauges of the moment.
    pub(crate) fn render(&self, gauges: &[Gauge<'_>]) -> String {
        let mut text = String::with_capacity(4096);
        head(
            &mut text,
            "seatbelt_neuron_requests_total",
            "counter",
            "Requests by how they ended.",
        );
        for ((_, name), count) in OUTCOMES.iter().zip(&self.requests) {
            let count = count.load(Ordering::Relaxed);
            line(
                &mut text,
                format_args!("seatbelt_neuron_requests_total{{outcome=\"{name}\"}} {count}"),
            );
        }
        head(
            &mut text,
            "seatbelt_neuron_turned_away_total",
            "counter",
            "Calls not let in, by why.",
        );
        for ((_, why), count) in TURNED_AWAY.iter().zip(&self.turned_away) {
            let count = count.load(Ordering::Relaxed);
            line(
                &mut text,
                format_args!("seatbelt_neuron_turned_away_total{{why=\"{why}\"}} {count}"),
            );
        }
        head(
            &mut text,
            "seatbelt_neuron_tokens_total",
            "counter",
            "Tokens run, by kind.",
        );
        for (kind, count) in [
            ("input", &self.input_tokens),
            ("output", &self.output_tokens),
        ] {
            let count = count.load(Ordering::Relaxed);
            line(
                &mut text,
                format_args!("seatbelt_neuron_tokens_total{{kind=\"{kind}\"}} {count}"),
            );
        }
        self.queued.render(
            &mut text,
            "seatbelt_neuron_queue_wait_seconds",
            "Time from arrival to a slot.",
        );
        self.prefill.render(
            &mut text,
            "seatbelt_neuron_prefill_seconds",
            "Time to read a prompt.",
        );
        self.decode_step.render(
            &mut text,
            "seatbelt_neuron_decode_step_seconds",
            "Time of one step of all running answers.",
        );
        for gauge in gauges {
            gauge.render(&mut text);
        }
        text
    }
}

/// A value of the moment, per model.
pub(crate) struct Gauge<'a> {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    /// Model and value; the empty model has no label.
    pub(crate) values: Vec<(&'a str, usize)>,
}

impl Gauge<'_> {
    fn render(&self, text: &mut String) {
        head(text, self.name, "gauge", self.help);
        for (model, value) in &self.values {
            if model.is_empty() {
                line(text, format_args!("{} {value}", self.name));
            } else {
                line(
                    text,
                    format_args!("{}{{model=\"{}\"}} {value}", self.name, escape(model)),
                );
            }
        }
    }
}

#[derive(Debug)]
struct Latency(Mutex<Histogram<u64>>);

impl Latency {
    fn new() -> Self {
        Self(Mutex::new(
            Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS).expect("the bounds are in order"),
        ))
    }

    fn record(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX_US);
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .saturating_record(micros);
    }

    #[expect(clippy::cast_precision_loss, reason = "a sum for people to read")]
    fn render(&self, text: &mut String, name: &str, help: &str) {
        let histogram = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        head(text, name, "summary", help);
        for quantile in QUANTILES {
            let seconds = histogram.value_at_quantile(quantile) as f64 / 1e6;
            line(
                text,
                format_args!("{name}{{quantile=\"{quantile}\"}} {seconds}"),
            );
        }
        let sum = histogram.mean() * histogram.len() as f64 / 1e6;
        line(text, format_args!("{name}_sum {sum}"));
        line(text, format_args!("{name}_count {}", histogram.len()));
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    line(
        text,
        format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"),
    );
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("writing to a string cannot fail");
}

fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_counts_quantiles_and_gauges() {
        let metrics = Metrics::new();
        let usage = NeuronUsage {
            input_tokens: 7,
            cached_input_tokens: 0,
            output_tokens: 3,
        };
        metrics.request(Outcome::Completed, usage);
        metrics.request(Outcome::Completed, usage);
        metrics.prefill(Duration::from_millis(20));
        let gauge = Gauge {
            name: "seatbelt_neuron_active",
            help: "Requests in slots.",
            values: vec![("a\"b", 2)],
        };
        let text = metrics.render(&[gauge]);
        for expected in [
            "seatbelt_neuron_requests_total{outcome=\"completed\"} 2",
            "seatbelt_neuron_requests_total{outcome=\"expired\"} 0",
            "seatbelt_neuron_tokens_total{kind=\"input\"} 14",
            "seatbelt_neuron_prefill_seconds_count 1",
            "seatbelt_neuron_active{model=\"a\\\"b\"} 2",
        ] {
            assert!(
                text.lines().any(|line| line == expected),
                "{expected} is not in\n{text}"
            );
        }
    }
}
