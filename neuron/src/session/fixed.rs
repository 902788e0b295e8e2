//! Steps of decoding whose tensors keep their shapes and addresses, so that a GPU can replay them.
//!
//! A replayed step costs one launch in the place of one for every node. For that the mask is as wide
//! as the context whatever is in it, and what a step takes and gives lies in the same tensors each
//! time, copied to and from the host by themselves.

use ort::{
    session::{IoBinding, RunOptions, Session},
    value::{DynTensor, Tensor, TensorElementType},
};

use super::{caches, logits, memory::Memory, view};
use crate::{engine::Row, model::GraphSpec};

/// Names the recording of a run; "-1" is none.
const RECORDING: &str = "gpu_graph_id";

/// What all steps have in common.
pub(super) struct Sizes {
    pub(super) slots: usize,
    pub(super) context: usize,
    pub(super) vocab: usize,
    pub(super) element: TensorElementType,
}

/// One recording for each number of slots that can take part.
pub(super) struct FixedSteps {
    // Bindings hold views of the tensors below: they are declared, and so dropped, first.
    lanes: Vec<(IoBinding, RunOptions)>,
    ids: DynTensor,
    mask: DynTensor,
    logits: DynTensor,
    answer: DynTensor,
    context: usize,
    vocab: usize,
}

impl FixedSteps {
    pub(super) fn new(
        session: &Session,
        graph: &GraphSpec,
        cached: &[DynTensor],
        memory: &Memory,
        sizes: &Sizes,
    ) -> ort::Result<Self> {
        let numbers = TensorElementType::Int64;
        let answers = [sizes.slots, 1, sizes.vocab];
        let mut steps = Self {
            lanes: Vec::with_capacity(sizes.slots),
            ids: DynTensor::new(&memory.device, numbers, [sizes.slots, 1])?,
            mask: DynTensor::new(&memory.device, numbers, [sizes.slots, sizes.context])?,
            logits: DynTensor::new(&memory.device, sizes.element, answers)?,
            answer: DynTensor::new(&memory.host, sizes.element, answers)?,
            context: sizes.context,
            vocab: sizes.vocab,
        };
        for count in 1..=sizes.slots {
            let mut lane = caches::lane(session, graph, cached, 0, count)?;
            lane.bind_input(&graph.input_ids, &view::rows(&steps.ids, 0, count)?)?;
            lane.bind_input(&graph.attention_mask, &view::rows(&steps.mask, 0, count)?)?;
            lane.bind_output(&graph.logits, view::rows(&steps.logits, 0, count)?)?;
            let mut options = RunOptions::new()?;
            options.set(RECORDING, count.to_string())?;
            steps.lanes.push((lane, options));
        }
        Ok(steps)
    }

    pub(super) fn run(
        &mut self,
        session: &mut Session,
        rows: &[Row],
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        let count = rows.len();
        let ids: Vec<i64> = rows.iter().map(|row| i64::from(row.token)).collect();
        let mut mask = vec![0i64; count * self.context];
        for (row, line) in rows.iter().zip(mask.chunks_exact_mut(self.context)) {
            line[..=row.position].fill(1);
        }
        put([count, 1], ids, &self.ids)?;
        put([count, self.context], mask, &self.mask)?;
        let (lane, options) = &self.lanes[count - 1];
        drop(session.run_binding_with_options(lane, options)?);
        let mut answer = view::rows(&self.answer, 0, count)?;
        view::rows(&self.logits, 0, count)?.copy_into(&mut answer)?;
        logits::read(&answer, count * self.vocab, logits)
    }
}

/// Options of the runs that are not to be recorded.
pub(super) fn unrecorded() -> ort::Result<RunOptions> {
    let mut options = RunOptions::new()?;
    options.set(RECORDING, "-1")?;
    Ok(options)
}

fn put(shape: [usize; 2], values: Vec<i64>, target: &DynTensor) -> ort::Result<()> {
    let values = Tensor::from_array((shape, values))?.upcast();
    values.copy_into(&mut view::rows(target, 0, shape[0])?)
}
