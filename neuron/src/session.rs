//! Runs a decoder graph with ONNX Runtime. The only module that knows `ort`.
//!
//! The key and value caches are `[slots, kv_heads, context, head]`, one tensor per layer and part,
//! bound as input and output at once, so that no step copies them. A prompt runs on the view of one
//! slot; a step of decoding runs over the first slots together. What is asked for in a configuration
//! is what is used: CUDA that is not there, or not for all of the graph, fails the load.

use std::path::Path;

use ort::{
    environment::Environment,
    session::{IoBinding, RunOptions, Session},
    value::{DynTensor, Tensor},
};

pub(crate) use self::encoder::{OnnxEncoder, normalised};
use self::{
    budget::{Budget, Room, Wanted},
    fixed::{FixedSteps, Sizes},
    memory::Memory,
    outlet::{Outlet, Rows},
};
use crate::{
    config::{Device, ModelConfig, PREFILL_CHUNK_TOKENS, READ_TOKENS_MAX},
    engine::{Decoder, Reach, Row, Shift, StepError, Together},
    error::NeuronError,
    model::{GraphSpec, Model},
};

mod budget;
mod caches;
mod encoder;
mod fixed;
mod host;
pub(crate) mod library;
mod logits;
mod memory;
mod open;
mod outlet;
mod placement;
mod self_check;
mod shift;
mod view;

/// A loaded graph with its caches.
pub(crate) struct OnnxDecoder {
    // Bindings hold views of the tensors below: they are declared, and so dropped, first.
    slot_lanes: Vec<IoBinding>,
    prefix_lanes: Vec<IoBinding>,
    fixed: Option<FixedSteps>,
    outlet: Outlet,
    caches: Vec<DynTensor>,
    session: Session,
    options: RunOptions,
    graph: GraphSpec,
    vocab: usize,
    context: usize,
    reach: Reach,
    /// What the caches take.
    cache_bytes: u64,
    /// What a token takes in a slot; 0 where slots cannot be reached.
    token_bytes: usize,
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
        let mut decoder = Self::unchecked(&environment, config, model, threads)?;
        let reference = match config.device {
            Device::Cuda if config.cuda.check_on_cpu => {
                Some(on_the_cpu(&environment, config, model, threads)?)
            }
            _ => None,
        };
        let context = decoder.context;
        self_check::check(&mut decoder, context, reference.as_deref())
            .map_err(|detail| unfit(config, detail))?;
        match self_check::together(&mut decoder, context) {
            Ok(()) => {
                let spare = self_check::spare(&mut decoder, context);
                decoder.reach.spare = spare.map_err(|detail| unfit(config, detail))?;
            }
            Err(detail) => {
                tracing::warn!(model = %config.id, detail, "prompts are read one by one");
                decoder.reach.together = Together::Never;
            }
        }
        Ok(decoder)
    }

    /// What the caches of all slots take.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache_bytes
    }

    /// Most tokens in a slot.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    fn unchecked(
        environment: &Environment,
        config: &ModelConfig,
        model: &Model,
        threads: usize,
    ) -> Result<Self, NeuronError> {
        let session = open::session(environment, config, &model.graph.file, threads)?;
        let given =
            open::check(&session, &model.graph).map_err(|error| model_error(config, &error))?;
        let ways = Ways::of(config, &given);
        let room = room(&session, config, model)?;
        Self::bind(session, config, &model.graph, room, &given, ways).map_err(|error| match config
            .device
        {
            Device::Cpu => model_error(config, &error),
            Device::Cuda => device_error(config, &error),
        })
    }

    fn bind(
        session: Session,
        config: &ModelConfig,
        graph: &GraphSpec,
        room: Room,
        given: &open::Given,
        ways: Ways,
    ) -> ort::Result<Self> {
        let graph = graph.clone();
        let memory = Memory::of(&session, config)?;
        let caches = caches::allocate(&session, config, &graph, room, &memory)?;
        let mut slot_lanes = Vec::with_capacity(room.slots);
        let mut prefix_lanes = Vec::with_capacity(room.slots);
        for slot in 0..room.slots {
            slot_lanes.push(caches::lane(&session, &graph, &caches, slot, 1)?);
            prefix_lanes.push(caches::lane(&session, &graph, &caches, 0, slot + 1)?);
        }
        let kept = caches::bytes_token(caches::element(&session, &graph)?, &graph)?;
        let cache_bytes = (room.slots as u64)
            .saturating_mul(room.context as u64)
            .saturating_mul(kept as u64);
        let token_bytes = match shift::can(&caches) {
            true => kept,
            false => 0,
        };
        let reach = reach(config, given)?;
        let rows = Rows {
            vocab: given.vocab,
            element: given.element,
            pruned: given.last_row_alone,
            apart: ways.rows_apart.then_some(reach.tokens_max),
        };
        let outlet = Outlet::new(&memory, &rows)?;
        let sizes = Sizes {
            slots: room.slots,
            context: room.context,
            vocab: given.vocab,
            element: given.element,
        };
        let fixed = ways
            .replayed
            .then(|| FixedSteps::new(&session, &graph, &caches, &memory, &sizes))
            .transpose()?;
        Ok(Self {
            slot_lanes,
            prefix_lanes,
            fixed,
            outlet,
            caches,
            session,
            options: if ways.replayed {
                fixed::unrecorded()?
            } else {
                RunOptions::new()?
            },
            graph,
            vocab: given.vocab,
            context: room.context,
            reach,
            cache_bytes,
            token_bytes,
        })
    }
}

/// What the caches of a model may have, found before any of it is taken.
fn room(session: &Session, config: &ModelConfig, model: &Model) -> Result<Room, NeuronError> {
    let element = caches::element(session, &model.graph);
    let bytes = element.and_then(|element| caches::bytes_token(element, &model.graph));
    let wanted = Wanted {
        slots: config.slots,
        context: config.context,
        context_max: model.context,
        bytes_token: bytes.map_err(|error| model_error(config, &error))?,
    };
    let room = Budget::of(config).room(wanted);
    room.map_err(|error| unfit(config, error.to_string()))
}

/// Most bytes of the logits that one run over prompts gives.
const LOGITS_BYTES_MAX: usize = 256 << 20;

/// What one run may read. A CPU gains nothing from more than a piece, and needs memory for it; a GPU is idle without.
fn reach(config: &ModelConfig, given: &open::Given) -> ort::Result<Reach> {
    let row = given.element.byte_size(given.vocab);
    let row = row.ok_or_else(|| ort::Error::new("logits are numbers"))?;
    let tokens_max = match config.device {
        Device::Cpu => PREFILL_CHUNK_TOKENS,
        Device::Cuda if given.last_row_alone => READ_TOKENS_MAX,
        Device::Cuda => {
            (LOGITS_BYTES_MAX / row.max(1)).clamp(PREFILL_CHUNK_TOKENS, READ_TOKENS_MAX)
        }
    };
    let together = match given.last_row_alone {
        true => Together::OfOneLength,
        false => Together::Padded,
    };
    Ok(Reach {
        tokens_max,
        together,
        // Found out once it runs.
        spare: 0,
    })
}

/// What only a device with memory of its own gains from. The CPU can do it too, which tests use.
#[derive(Clone, Copy, Default)]
struct Ways {
    /// Rows of logits stay on the device but for the last of a prompt.
    rows_apart: bool,
    /// Steps keep their shapes and addresses.
    replayed: bool,
}

impl Ways {
    fn of(config: &ModelConfig, given: &open::Given) -> Self {
        match config.device {
            Device::Cpu => Self::default(),
            Device::Cuda => Self {
                rows_apart: !given.last_row_alone,
                replayed: config.cuda.graphs,
            },
        }
    }
}

/// What the CPU says to the prompt of the self-check, with a graph of its own that is let go again.
fn on_the_cpu(
    environment: &Environment,
    config: &ModelConfig,
    model: &Model,
    threads: usize,
) -> Result<Vec<f32>, NeuronError> {
    let config = ModelConfig {
        device: Device::Cpu,
        slots: Some(1),
        ..config.clone()
    };
    let mut decoder = OnnxDecoder::unchecked(environment, &config, model, threads)?;
    self_check::whole(&mut decoder, model.context).map_err(|detail| {
        let way = "set cuda.check_on_cpu = false to go on without comparing the GPU with the CPU";
        unfit(&config, format!("on the CPU {detail}; {way}"))
    })
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
        let step = Step {
            ids: tokens.iter().map(|token| i64::from(*token)).collect(),
            rows: 1,
            mask: vec![1; position + tokens.len()],
        };
        let lane = &mut self.slot_lanes[slot];
        let ran = step.bind(lane, &self.graph).and_then(|()| {
            let run = outlet::Run {
                session: &mut self.session,
                lane,
                options: &self.options,
                logits: &self.graph.logits,
            };
            self.outlet.last_rows(run, &[tokens.len()], logits)
        });
        ran.map_err(|error| StepError(error.to_string()))
    }

    fn reach(&self) -> Reach {
        self.reach
    }

    fn prefill_together(
        &mut self,
        first: usize,
        prompts: &[&[u32]],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        let ran = self.read_together(first, prompts, logits);
        ran.map_err(|error| StepError(error.to_string()))
    }

    fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError> {
        let ran = match &mut self.fixed {
            Some(fixed) => fixed.run(&mut self.session, rows, logits),
            None => self.decode_freely(rows, logits),
        };
        ran.map_err(|error| StepError(error.to_string()))
    }

    fn movable(&self, bytes: usize) -> usize {
        match self.token_bytes {
            0 => 0,
            each => bytes / each,
        }
    }

    fn shift(&mut self, shift: Shift) -> Result<(), StepError> {
        (self.caches.iter_mut())
            .try_for_each(|cache| shift::within(cache, shift))
            .map_err(|error| StepError(error.to_string()))
    }
}

impl OnnxDecoder {
    /// Whole prompts, the shorter ones with padding behind them: what that leaves in their slots lies where their
    /// next tokens go, and no mask shows it before.
    fn read_together(
        &mut self,
        first: usize,
        prompts: &[&[u32]],
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        let mut made;
        let lane = match first {
            0 => &mut self.prefix_lanes[prompts.len() - 1],
            _ => {
                let (graph, count) = (&self.graph, prompts.len());
                made = caches::lane(&self.session, graph, &self.caches, first, count)?;
                &mut made
            }
        };
        Step::of_prompts(prompts).bind(lane, &self.graph)?;
        let run = outlet::Run {
            session: &mut self.session,
            lane,
            options: &self.options,
            logits: &self.graph.logits,
        };
        self.outlet.last_rows(run, &lengths, logits)
    }

    /// A step as wide as its longest row.
    fn decode_freely(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> ort::Result<()> {
        let width = rows.iter().map(|row| row.position + 1).max().unwrap_or(1);
        let step = Step {
            ids: rows.iter().map(|row| i64::from(row.token)).collect(),
            rows: rows.len(),
            mask: mask(rows, width),
        };
        let lane = &mut self.prefix_lanes[rows.len() - 1];
        step.bind(lane, &self.graph)?;
        let run = outlet::Run {
            session: &mut self.session,
            lane,
            options: &self.options,
            logits: &self.graph.logits,
        };
        self.outlet.all_rows(run, rows.len(), logits)
    }
}

/// What one run takes besides the caches.
struct Step {
    ids: Vec<i64>,
    rows: usize,
    mask: Vec<i64>,
}

impl Step {
    fn of_prompts(prompts: &[&[u32]]) -> Self {
        let width = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let mut step = Self {
            ids: vec![0; prompts.len() * width],
            rows: prompts.len(),
            mask: vec![0; prompts.len() * width],
        };
        let ids = step.ids.chunks_exact_mut(width);
        let lines = ids.zip(step.mask.chunks_exact_mut(width));
        for (prompt, (ids, mask)) in prompts.iter().zip(lines) {
            for (id, token) in ids.iter_mut().zip(*prompt) {
                *id = i64::from(*token);
            }
            mask[..prompt.len()].fill(1);
        }
        step
    }

    fn bind(self, lane: &mut IoBinding, graph: &GraphSpec) -> ort::Result<()> {
        let length = self.ids.len() / self.rows;
        let width = self.mask.len() / self.rows;
        lane.bind_input(
            &graph.input_ids,
            &Tensor::from_array(([self.rows, length], self.ids))?,
        )?;
        lane.bind_input(
            &graph.attention_mask,
            &Tensor::from_array(([self.rows, width], self.mask))?,
        )
    }
}

/// Ones for each row up to its position.
fn mask(rows: &[Row], width: usize) -> Vec<i64> {
    let mut mask = vec![0; rows.len() * width];
    for (row, line) in rows.iter().zip(mask.chunks_exact_mut(width)) {
        line[..=row.position].fill(1);
    }
    mask
}

fn unfit(config: &ModelConfig, detail: String) -> NeuronError {
    NeuronError::Model {
        model: config.id.to_string(),
        detail,
    }
}

fn model_error(config: &ModelConfig, error: &ort::Error) -> NeuronError {
    NeuronError::Model {
        model: config.id.to_string(),
        detail: words(error),
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
mod tests;
