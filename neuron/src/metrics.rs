//! What the neuron counts and measures, and its text in OpenMetrics, as Prometheus reads it.
//!
//! Labels are outcomes and model names from the configuration, never anything a request brought. The buckets of
//! histograms are fixed, so that those of several neurons add up. What is counted often is looked up once, here.

use std::time::Duration;

use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::{counter::Counter, family::Family, gauge, histogram::Histogram},
    registry::Registry,
};
use seatbelt_schemas::{
    ids::ModelId,
    usage::{NeuronOutcome, NeuronUsage},
};

pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper bounds of the buckets of every histogram, seconds: from a step of a small model to the longest prompt.
const BUCKETS_S: [f64; 18] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0,
    120.0, 600.0,
];
/// The same of rows in a step.
const BUCKETS_ROWS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];
const OUTCOMES: [(NeuronOutcome, &str); 5] = [
    (NeuronOutcome::Completed, "completed"),
    (NeuronOutcome::Aborted, "aborted"),
    (NeuronOutcome::Expired, "expired"),
    (NeuronOutcome::Rejected, "rejected"),
    (NeuronOutcome::Failed, "failed"),
];

/// Why a call was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnedAway {
    /// No gateway of this deployment signed it.
    Unsigned,
    /// Its deadline lies where none can.
    Untimely,
    /// Its reservation was served before.
    Repeated,
    /// No more reservations can be remembered.
    Full,
}

const TURNED_AWAY: [(TurnedAway, &str); 4] = [
    (TurnedAway::Unsigned, "unsigned"),
    (TurnedAway::Untimely, "untimely"),
    (TurnedAway::Repeated, "repeated"),
    (TurnedAway::Full, "full"),
];

/// Counters and histograms of one neuron.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: [Counter; OUTCOMES.len()],
    turned_away: [Counter; TURNED_AWAY.len()],
    tokens: Family<[(&'static str, String); 2], Counter>,
    loads: Family<[(&'static str, String); 1], Counter>,
    engines: [ByModel; 7],
}

/// Histograms of one kind, one for each model.
type ByModel = Family<[(&'static str, String); 1], Histogram, fn() -> Histogram>;

/// What the engine of one model measures.
#[derive(Debug, Clone)]
pub(crate) struct EngineMetrics {
    /// From arrival to a slot.
    pub(crate) queued: Stopwatch,
    /// To read a prompt.
    pub(crate) prefill: Stopwatch,
    /// From arrival to the first token.
    pub(crate) first_token: Stopwatch,
    /// From one token of an answer to the next.
    pub(crate) between_tokens: Stopwatch,
    /// One step of all answers under way.
    pub(crate) decode_step: Stopwatch,
    batch: Histogram,
    /// For more output to be held.
    pub(crate) waited: Stopwatch,
}

impl EngineMetrics {
    /// A step was taken by so many answers.
    #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
    pub(crate) fn batch(&self, answers: usize) {
        self.batch.observe(answers as f64);
    }
}

/// What the embedder of one model measures, in the same histograms as engines.
#[derive(Debug, Clone)]
pub(crate) struct EmbedderMetrics {
    /// From arrival to the first run with a text of it.
    pub(crate) queued: Stopwatch,
    /// From there to its last vector.
    pub(crate) prefill: Stopwatch,
    batch: Histogram,
}

impl EmbedderMetrics {
    /// A run was over so many texts.
    #[expect(clippy::cast_precision_loss, reason = "a few thousand at most")]
    pub(crate) fn batch(&self, texts: usize) {
        self.batch.observe(texts as f64);
    }
}

/// Takes times.
#[derive(Debug, Clone)]
pub(crate) struct Stopwatch(Histogram);

impl Stopwatch {
    pub(crate) fn took(&self, time: Duration) {
        self.0.observe(time.as_secs_f64());
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let all = &mut registry;
        let requests = counters(
            all,
            "requests",
            "Requests by how they ended.",
            "outcome",
            OUTCOMES.map(|(_, word)| word),
        );
        let turned_away = counters(
            all,
            "turned_away",
            "Calls not let in, by why.",
            "why",
            TURNED_AWAY.map(|(_, word)| word),
        );
        let tokens = Family::default();
        let about = help("Tokens run, by kind and model.");
        all.register("seatbelt_neuron_tokens", about, Family::clone(&tokens));
        let loads = Family::default();
        let about = help("Loads of a model into memory.");
        all.register("seatbelt_neuron_loads", about, Family::clone(&loads));
        let batch = by_model(|| Histogram::new(BUCKETS_ROWS));
        let about = help("Answers that took part in a step, or texts in a run of an encoder.");
        all.register("seatbelt_neuron_batch", about, ByModel::clone(&batch));
        let engines = [
            seconds(
                all,
                "queue_wait",
                "Time from arrival to a slot, or to the first run of an encoder.",
            ),
            seconds(
                all,
                "prefill",
                "Time to read a prompt, or all texts of a request.",
            ),
            seconds(all, "first_token", "Time from arrival to the first token."),
            seconds(
                all,
                "between_tokens",
                "Time from one token of an answer to the next.",
            ),
            seconds(
                all,
                "decode_step",
                "Time of one step of all running answers.",
            ),
            batch,
            seconds(
                all,
                "limit_wait",
                "Time an answer at its limit waited for more to be held.",
            ),
        ];
        Self {
            requests,
            turned_away,
            tokens,
            loads,
            engines,
            registry,
        }
    }

    /// For the engine of a model.
    pub(crate) fn of_engine(&self, model: &ModelId) -> EngineMetrics {
        let labels = [("model", escape(model.as_str()))];
        let [
            queued,
            prefill,
            first_token,
            between_tokens,
            decode_step,
            batch,
            waited,
        ] = (self.engines.each_ref()).map(|family| family.get_or_create(&labels).clone());
        EngineMetrics {
            queued: Stopwatch(queued),
            prefill: Stopwatch(prefill),
            first_token: Stopwatch(first_token),
            between_tokens: Stopwatch(between_tokens),
            decode_step: Stopwatch(decode_step),
            batch,
            waited: Stopwatch(waited),
        }
    }

    /// For the embedder of a model.
    pub(crate) fn of_embedder(&self, model: &ModelId) -> EmbedderMetrics {
        let labels = [("model", escape(model.as_str()))];
        let [queued, prefill, _, _, _, batch, _] = &self.engines;
        let of = |family: &ByModel| family.get_or_create(&labels).clone();
        EmbedderMetrics {
            queued: Stopwatch(of(queued)),
            prefill: Stopwatch(of(prefill)),
            batch: of(batch),
        }
    }

    /// A request ended, which named this model if any.
    pub(crate) fn request(
        &self,
        outcome: NeuronOutcome,
        model: Option<&ModelId>,
        usage: NeuronUsage,
    ) {
        let at = OUTCOMES
            .iter()
            .position(|(known, _)| *known == outcome)
            .expect("every outcome is listed");
        self.requests[at].inc();
        let Some(model) = model else {
            return;
        };
        for (kind, tokens) in [
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
        ] {
            let labels = [("kind", kind.to_owned()), ("model", escape(model.as_str()))];
            self.tokens.get_or_create(&labels).inc_by(tokens);
        }
    }

    /// A model was loaded.
    pub(crate) fn loaded(&self, model: &ModelId) {
        let labels = [("model", escape(model.as_str()))];
        self.loads.get_or_create(&labels).inc();
    }

    /// A call was not let in.
    pub(crate) fn turned_away(&self, why: TurnedAway) {
        let at = TURNED_AWAY.iter().position(|(known, _)| *known == why);
        self.turned_away[at.expect("every reason is listed")].inc();
    }

    /// The text, with the gauges of the moment.
    pub(crate) fn render(&self, gauges: &[Gauge<'_>]) -> String {
        let mut moment = Registry::default();
        for gauge in gauges {
            gauge.register(&mut moment);
        }
        let mut text = String::with_capacity(8192);
        encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &moment))
            .and_then(|()| encode_eof(&mut text))
            .expect("writing to a string cannot fail");
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

type Number = gauge::Gauge<u64, std::sync::atomic::AtomicU64>;

impl Gauge<'_> {
    fn register(&self, registry: &mut Registry) {
        let by_model = Family::<[(&str, String); 1], Number>::default();
        for (model, value) in &self.values {
            let value = u64::try_from(*value).unwrap_or(u64::MAX);
            if model.is_empty() {
                let whole = Number::default();
                whole.set(value);
                registry.register(self.name, help(self.help), whole);
                return;
            }
            let labels = [("model", escape(model))];
            by_model.get_or_create(&labels).set(value);
        }
        registry.register(self.name, help(self.help), by_model);
    }
}

/// `seatbelt_neuron_NAME_total`, by the words of one label.
fn counters<const N: usize>(
    registry: &mut Registry,
    name: &str,
    about: &str,
    label: &'static str,
    words: [&'static str; N],
) -> [Counter; N] {
    let family = Family::<[(&str, &str); 1], Counter>::default();
    let counters = words.map(|word| family.get_or_create(&[(label, word)]).clone());
    registry.register(format!("seatbelt_neuron_{name}"), help(about), family);
    counters
}

/// `seatbelt_neuron_NAME_seconds`, by model.
fn seconds(registry: &mut Registry, name: &str, about: &str) -> ByModel {
    let family = by_model(|| Histogram::new(BUCKETS_S));
    let name = format!("seatbelt_neuron_{name}_seconds");
    registry.register(name, help(about), ByModel::clone(&family));
    family
}

fn by_model(make: fn() -> Histogram) -> ByModel {
    ByModel::new_with_constructor(make)
}

/// The library writes labels as they are.
fn escape(label: &str) -> String {
    label
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The registry ends it with a full stop.
fn help(about: &str) -> &str {
    about.trim_end_matches('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_counts_buckets_and_gauges() {
        let metrics = Metrics::new();
        let usage = NeuronUsage {
            input_tokens: 7,
            cached_input_tokens: 0,
            output_tokens: 3,
        };
        let model = ModelId::new("m").unwrap();
        metrics.request(NeuronOutcome::Completed, Some(&model), usage);
        metrics.request(NeuronOutcome::Completed, Some(&model), usage);
        metrics.request(NeuronOutcome::Rejected, None, NeuronUsage::default());
        let engine = metrics.of_engine(&model);
        engine.prefill.took(Duration::from_millis(20));
        engine.batch(3);
        let gauge = Gauge {
            name: "seatbelt_neuron_active",
            help: "Requests in slots.",
            values: vec![("a\"b", 2)],
        };
        let whole = Gauge {
            name: "seatbelt_neuron_usage_pending",
            help: "Pending.",
            values: vec![("", 5)],
        };
        let text = metrics.render(&[gauge, whole]);
        for expected in [
            "seatbelt_neuron_requests_total{outcome=\"completed\"} 2",
            "seatbelt_neuron_requests_total{outcome=\"expired\"} 0",
            "seatbelt_neuron_tokens_total{kind=\"input\",model=\"m\"} 14",
            "seatbelt_neuron_prefill_seconds_count{model=\"m\"} 1",
            "seatbelt_neuron_prefill_seconds_bucket{le=\"0.01\",model=\"m\"} 0",
            "seatbelt_neuron_prefill_seconds_bucket{le=\"0.02\",model=\"m\"} 1",
            "seatbelt_neuron_batch_bucket{le=\"2.0\",model=\"m\"} 0",
            "seatbelt_neuron_batch_bucket{le=\"4.0\",model=\"m\"} 1",
            "seatbelt_neuron_first_token_seconds_count{model=\"m\"} 0",
            "seatbelt_neuron_active{model=\"a\\\"b\"} 2",
            "seatbelt_neuron_usage_pending 5",
            "# TYPE seatbelt_neuron_prefill_seconds histogram",
            "# HELP seatbelt_neuron_prefill_seconds Time to read a prompt, or all texts of a request.",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|line| line == expected),
                "{expected} is not in\n{text}"
            );
        }
    }
}
