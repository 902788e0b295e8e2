//! Runs a decoder graph with ONNX Runtime. The only module that knows `ort`.
//!
//! The key and value caches are `[slots, kv_heads, context, head]`, one tensor per layer and part,
//! bound as input and output at once, so that no step copies them. A prompt runs on the view of one
//! slot; a step of decoding runs over the first slots together. What is asked for in a configuration
//! is what is used: CUDA that is not there fails the load.

use std::path::Path;

use ort::{
    environment::Environment,
    ep,
    logging::LogLevel,
    memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType},
    session::{IoBinding, Session, builder::GraphOptimizationLevel},
    value::{DynTensor, DynValue, Tensor, TensorElementType},
};

use crate::{
    config::{Device, ModelConfig},
    engine::{Decoder, Row, StepError},
    error::NeuronError,
    model::{GraphSpec, Model},
};

mod library;
mod slot_view;

/// How far the logits of two ways to the same token may lie apart, as a share of their range.
const SELF_CHECK_TOLERANCE: f32 = 0.02;
/// Prompt of the self-check: any tokens do, and every vocabulary has these.
const SELF_CHECK_TOKENS: [u32; 4] = [1, 2, 3, 4];

/// A loaded graph with its caches.
pub(crate) struct OnnxDecoder {
    // Bindings hold views of the caches: they are declared, and so dropped, first.
    slot_lanes: Vec<IoBinding>,
    prefix_lanes: Vec<IoBinding>,
    _caches: Vec<DynTensor>,
    session: Session,
    graph: GraphSpec,
    host: MemoryInfo<'static>,
    vocab: usize,
}

impl OnnxDecoder {
    /// Loads the graph of `model` and checks that its caches work as this module relies on.
    pub(crate) fn load(
        library: &Path,
        config: &ModelConfig,
        model: &Model,
        threads: usize,
    ) -> Result<Self, NeuronError> {
        let environment = library::runtime(library)?;
        let session = open(&environment, config, model, threads)?;
        let vocab = check(&session, &model.graph).map_err(|error| model_error(config, &error))?;
        let mut decoder =
            Self::bind(session, config, model, vocab).map_err(|error| match config.device {
                Device::Cpu => model_error(config, &error),
                Device::Cuda => device_error(config, &error),
            })?;
        decoder.self_check().map_err(|detail| NeuronError::Model {
            model: config.id.to_string(),
            detail,
        })?;
        Ok(decoder)
    }

    fn bind(
        session: Session,
        config: &ModelConfig,
        model: &Model,
        vocab: usize,
    ) -> ort::Result<Self> {
        let graph = model.graph.clone();
        let caches = allocate_caches(&session, config, model)?;
        let mut slot_lanes = Vec::with_capacity(config.slots);
        let mut prefix_lanes = Vec::with_capacity(config.slots);
        for slot in 0..config.slots {
            slot_lanes.push(lane(&session, &graph, &caches, slot, 1)?);
            prefix_lanes.push(lane(&session, &graph, &caches, 0, slot + 1)?);
        }
        let host = MemoryInfo::new(
            AllocationDevice::CPU,
            0,
            AllocatorType::Device,
            MemoryType::CPUOutput,
        )?;
        Ok(Self {
            slot_lanes,
            prefix_lanes,
            _caches: caches,
            session,
            graph,
            host,
            vocab,
        })
    }

    /// Goes to the same token by two ways, whole and step by step. They agree only if the caches are
    /// written in place, which a step reads back.
    fn self_check(&mut self) -> Result<(), String> {
        let (mut whole, mut stepped) = (Vec::new(), Vec::new());
        let fail = |error: StepError| format!("the first run failed: {error}");
        let last = SELF_CHECK_TOKENS.len() - 1;
        self.prefill(0, 0, &SELF_CHECK_TOKENS, &mut whole)
            .map_err(fail)?;
        self.prefill(0, 0, &SELF_CHECK_TOKENS[..last], &mut stepped)
            .map_err(fail)?;
        self.decode(
            &[Row {
                token: SELF_CHECK_TOKENS[last],
                position: last,
            }],
            &mut stepped,
        )
        .map_err(fail)?;
        if agree(&whole, &stepped) {
            return Ok(());
        }
        Err("a step on the cache does not give what the whole prompt gives: the graph does not share its past and \
             present caches in place; build it with past_present_share_buffer and GroupQueryAttention"
            .to_owned())
    }
}

impl Decoder for OnnxDecoder {
    fn slots(&self) -> usize {
        self.slot_lanes.len()
    }

    fn vocab(&self) -> usize {
        self.vocab
    }

    fn prefill(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        let ids = tokens.iter().map(|token| i64::from(*token)).collect();
        let width = position + tokens.len();
        let step = Step {
            ids,
            rows: 1,
            mask: vec![1; width],
            width,
            wanted: self.vocab,
        };
        run(
            &mut self.session,
            &mut self.slot_lanes[slot],
            &self.graph,
            &self.host,
            step,
            logits,
        )
    }

    fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError> {
        let ids = rows.iter().map(|row| i64::from(row.token)).collect();
        let width = rows.iter().map(|row| row.position + 1).max().unwrap_or(1);
        let mut mask = vec![0; rows.len() * width];
        for (row, line) in rows.iter().zip(mask.chunks_exact_mut(width)) {
            line[..=row.position].fill(1);
        }
        let wanted = rows.len() * self.vocab;
        let step = Step {
            ids,
            rows: rows.len(),
            mask,
            width,
            wanted,
        };
        run(
            &mut self.session,
            &mut self.prefix_lanes[rows.len() - 1],
            &self.graph,
            &self.host,
            step,
            logits,
        )
    }
}

/// What one run takes besides the caches.
struct Step {
    ids: Vec<i64>,
    rows: usize,
    mask: Vec<i64>,
    width: usize,
    /// Logits to take from the end of what the graph gives.
    wanted: usize,
}

fn run(
    session: &mut Session,
    lane: &mut IoBinding,
    graph: &GraphSpec,
    host: &MemoryInfo<'_>,
    step: Step,
    logits: &mut Vec<f32>,
) -> Result<(), StepError> {
    run_lane(session, lane, graph, host, step, logits).map_err(|error| StepError(error.to_string()))
}

fn run_lane(
    session: &mut Session,
    lane: &mut IoBinding,
    graph: &GraphSpec,
    host: &MemoryInfo<'_>,
    step: Step,
    logits: &mut Vec<f32>,
) -> ort::Result<()> {
    let length = step.ids.len() / step.rows;
    lane.bind_input(
        &graph.input_ids,
        &Tensor::from_array(([step.rows, length], step.ids))?,
    )?;
    lane.bind_input(
        &graph.attention_mask,
        &Tensor::from_array(([step.rows, step.width], step.mask))?,
    )?;
    // Bound anew each time: a bound output keeps the shape of its last run.
    lane.bind_output_to_device(&graph.logits, host)?;
    let outputs = session.run_binding(lane)?;
    let rows = outputs
        .get(&graph.logits)
        .ok_or_else(|| ort::Error::new("the run gave no logits"))?;
    logits.clear();
    match rows.dtype().tensor_type() {
        Some(TensorElementType::Float16) => {
            let values = tail(rows.try_extract_tensor::<half::f16>()?.1, step.wanted)?;
            logits.extend(values.iter().map(|value| value.to_f32()));
        }
        _ => logits.extend_from_slice(tail(rows.try_extract_tensor::<f32>()?.1, step.wanted)?),
    }
    Ok(())
}

/// The last `wanted` values: of a prompt, only the row of its last token says what comes next.
fn tail<T>(values: &[T], wanted: usize) -> ort::Result<&[T]> {
    let skipped = values.len().checked_sub(wanted);
    skipped
        .map(|skipped| &values[skipped..])
        .ok_or_else(|| ort::Error::new("the run gave too few logits"))
}

fn open(
    environment: &Environment,
    config: &ModelConfig,
    model: &Model,
    threads: usize,
) -> Result<Session, NeuronError> {
    let builder =
        plain_builder(environment, threads).map_err(|error| model_error(config, &error))?;
    let mut builder = match config.device {
        Device::Cpu => builder,
        Device::Cuda => builder
            .with_execution_providers([ep::CUDA::default().build().error_on_failure()])
            .map_err(|error| device_error(config, &error.into()))?,
    };
    builder
        .commit_from_file(&model.graph.file)
        .map_err(|error| load_error(config, &error))
}

/// Threads are given, not guessed, and do not spin: cores are shared with the rest of the process.
/// Memory patterns are off because every step has another shape.
fn plain_builder(
    environment: &Environment,
    threads: usize,
) -> ort::Result<ort::session::builder::SessionBuilder> {
    let builder = Session::builder(environment)?
        .with_intra_threads(threads)?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_memory_pattern(false)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_log_level(LogLevel::Warning)?;
    Ok(builder)
}

/// That the graph takes and gives what this module binds; the size of its vocabulary.
fn check(session: &Session, graph: &GraphSpec) -> ort::Result<usize> {
    let caches = (0..graph.layers).flat_map(|layer| {
        [
            numbered(&graph.past_key, layer),
            numbered(&graph.past_value, layer),
        ]
    });
    let known: Vec<String> = caches
        .chain([graph.input_ids.clone(), graph.attention_mask.clone()])
        .collect();
    match session
        .inputs()
        .iter()
        .find(|input| !known.iter().any(|name| name == input.name()))
    {
        Some(input) => Err(ort::Error::new(format!(
            "the graph wants an input {:?} that this neuron does not know: build it with GroupQueryAttention and fused \
             rotary embedding",
            input.name()
        ))),
        None => vocabulary(session, graph),
    }
}

fn vocabulary(session: &Session, graph: &GraphSpec) -> ort::Result<usize> {
    let output = session
        .outputs()
        .iter()
        .find(|output| output.name() == graph.logits);
    let shape = output.and_then(|output| output.dtype().tensor_shape());
    let size = shape
        .and_then(|shape| shape.last().copied())
        .and_then(|size| usize::try_from(size).ok());
    size.filter(|size| *size > 0).ok_or_else(|| {
        ort::Error::new(format!(
            "the graph's output {:?} does not say its vocabulary size",
            graph.logits
        ))
    })
}

fn allocate_caches(
    session: &Session,
    config: &ModelConfig,
    model: &Model,
) -> ort::Result<Vec<DynTensor>> {
    let graph = &model.graph;
    let first = numbered(&graph.past_key, 0);
    let input = session.inputs().iter().find(|input| input.name() == first);
    let element = input
        .and_then(|input| input.dtype().tensor_type())
        .ok_or_else(|| ort::Error::new(format!("the graph has no tensor input {first:?}")))?;
    let allocator = match config.device {
        Device::Cpu => Allocator::default(),
        Device::Cuda => {
            let info = MemoryInfo::new(
                AllocationDevice::CUDA,
                0,
                AllocatorType::Device,
                MemoryType::Default,
            )?;
            Allocator::new(session, info)?
        }
    };
    let shape = [config.slots, graph.kv_heads, model.context, graph.head_size];
    let elements = 2 * graph.layers * shape.iter().product::<usize>();
    let bytes = element.byte_size(elements);
    tracing::info!(model = %config.id, device = config.device.as_str(), bytes, "caches are allocated: fewer slots or a smaller context take less");
    (0..2 * graph.layers)
        .map(|_| DynTensor::new(&allocator, element, shape))
        .collect()
}

/// A binding whose caches are `count` slots from `first` on, as input and output at once.
fn lane(
    session: &Session,
    graph: &GraphSpec,
    caches: &[DynTensor],
    first: usize,
    count: usize,
) -> ort::Result<IoBinding> {
    let mut binding = session.create_binding()?;
    for (layer, pair) in caches.chunks_exact(2).enumerate() {
        let names = [
            (&graph.past_key, &graph.present_key),
            (&graph.past_value, &graph.present_value),
        ];
        for (cache, (past, present)) in pair.iter().zip(names) {
            let view: DynValue = slot_view::slots(cache, first, count)?;
            binding.bind_input(numbered(past, layer), &view)?;
            binding.bind_output(numbered(present, layer), view)?;
        }
    }
    Ok(binding)
}

fn numbered(pattern: &str, layer: usize) -> String {
    pattern.replace("%d", &layer.to_string())
}

fn agree(a: &[f32], b: &[f32]) -> bool {
    let range = a
        .iter()
        .fold(0.0f32, |widest, value| widest.max(value.abs()))
        .max(f32::MIN_POSITIVE);
    a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(x, y)| (x - y).abs() <= SELF_CHECK_TOLERANCE * range)
}

fn model_error(config: &ModelConfig, error: &ort::Error) -> NeuronError {
    NeuronError::Model {
        model: config.id.to_string(),
        detail: words(error),
    }
}

/// A provider that could be loaded may still find no device when the graph is: its words name CUDA.
fn load_error(config: &ModelConfig, error: &ort::Error) -> NeuronError {
    let of_device =
        config.device == Device::Cuda && error.message().to_ascii_uppercase().contains("CUD");
    if of_device {
        device_error(config, error)
    } else {
        model_error(config, error)
    }
}

fn device_error(config: &ModelConfig, error: &ort::Error) -> NeuronError {
    NeuronError::Device {
        model: config.id.to_string(),
        detail: words(error),
    }
}

/// What ONNX Runtime said, to stand within a sentence.
fn words(error: &ort::Error) -> String {
    error
        .message()
        .trim_end_matches(['.', '\n', ' '])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::library::tests::fetched;
    use super::*;
    use crate::model::tests::tiny_config;

    fn decoder(slots: usize) -> OnnxDecoder {
        let config = tiny_config(slots);
        let model = Model::load(&config).unwrap();
        OnnxDecoder::load(&fetched(), &config, &model, 1).unwrap()
    }

    fn best(logits: &[f32]) -> u32 {
        let best = (0u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
        best.map(|(token, _)| token).unwrap()
    }

    /// Greedy, reading everything again for every token.
    fn recomputed(decoder: &mut OnnxDecoder, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut all = prompt.to_vec();
        let mut logits = Vec::new();
        for _ in 0..count {
            decoder.prefill(0, 0, &all, &mut logits).unwrap();
            all.push(best(&logits));
        }
        all.split_off(prompt.len())
    }

    /// Greedy in `slot`, on the cache, the prompt in pieces; the slots below take idle part in it.
    fn stepped(
        decoder: &mut OnnxDecoder,
        slot: usize,
        prompt: &[u32],
        piece: usize,
        count: usize,
    ) -> Vec<u32> {
        let mut logits = Vec::new();
        let mut position = 0;
        for piece in prompt.chunks(piece) {
            decoder.prefill(slot, position, piece, &mut logits).unwrap();
            position += piece.len();
        }
        let mut out = vec![best(&logits)];
        while out.len() < count {
            let mut rows = vec![
                Row {
                    token: 0,
                    position: 0
                };
                slot + 1
            ];
            rows[slot] = Row {
                token: out[out.len() - 1],
                position,
            };
            decoder.decode(&rows, &mut logits).unwrap();
            assert_eq!(logits.len(), rows.len() * decoder.vocab());
            out.push(best(&logits[slot * decoder.vocab()..]));
            position += 1;
        }
        out
    }

    #[test]
    fn steps_on_the_cache_give_what_reading_everything_again_gives() {
        let mut decoder = decoder(3);
        let prompt: Vec<u32> = (0..37).map(|n| 97 + n * 7 % 26).collect();
        let expected = recomputed(&mut decoder, &prompt, 48);
        for (slot, piece) in [(0, 64), (1, 64), (2, 5), (1, 1)] {
            assert_eq!(
                stepped(&mut decoder, slot, &prompt, piece, 48),
                expected,
                "slot {slot}, pieces of {piece}"
            );
        }
    }

    #[test]
    fn a_slot_keeps_nothing_of_who_had_it_before() {
        let mut decoder = decoder(2);
        let expected = stepped(&mut decoder, 1, &[100, 101, 102], 64, 20);
        stepped(&mut decoder, 1, &[65; 300], 64, 100);
        assert_eq!(stepped(&mut decoder, 1, &[100, 101, 102], 64, 20), expected);
    }

    #[test]
    fn the_whole_context_can_be_used() {
        let mut decoder = decoder(2);
        let mut logits = Vec::new();
        decoder.prefill(1, 0, &[97; 1023], &mut logits).unwrap();
        let rows = [
            Row {
                token: 0,
                position: 0,
            },
            Row {
                token: 98,
                position: 1023,
            },
        ];
        decoder.decode(&rows, &mut logits).unwrap();
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }

    #[test]
    fn rows_agree_only_within_a_share_of_their_range() {
        assert!(agree(&[100.0, -3.0], &[100.5, -2.5]));
        assert!(!agree(&[100.0, -3.0], &[100.0, 3.0]));
        assert!(!agree(&[1.0], &[1.0, 2.0]));
    }
}
