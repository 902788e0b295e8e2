//! How the logits of a run reach the host.
//!
//! A graph gives a row of logits for each token of a prompt, and only the last is wanted: from a GPU
//! the rest must not cross the bus, 25 MB for a piece of 256 tokens and 50,000 words. So they stay on
//! the device, and the last rows are copied from there.

use ort::{
    session::{IoBinding, RunOptions, Session},
    value::{DynTensor, TensorElementType},
};

use super::{logits, memory::Memory, view};

/// One run, all bound but its logits.
pub(super) struct Run<'a> {
    pub(super) session: &'a mut Session,
    pub(super) lane: &'a mut IoBinding,
    pub(super) options: &'a RunOptions,
    /// Name of the output.
    pub(super) logits: &'a str,
}

/// Where logits go.
pub(super) struct Outlet {
    host: ort::memory::MemoryInfo<'static>,
    apart: Option<Apart>,
    vocab: usize,
    /// The graph gives the row of the last token alone.
    pruned: bool,
}

/// Rows that stay on the device, and the one that leaves it.
struct Apart {
    all: DynTensor,
    one: DynTensor,
    rows_max: usize,
}

/// How the rows of a run are given.
pub(super) struct Rows {
    pub(super) vocab: usize,
    pub(super) element: TensorElementType,
    pub(super) pruned: bool,
    /// So many stay on the device; none where all go to the host.
    pub(super) apart: Option<usize>,
}

impl Outlet {
    pub(super) fn new(memory: &Memory, rows: &Rows) -> ort::Result<Self> {
        let tensors = |rows_max: usize| -> ort::Result<Apart> {
            Ok(Apart {
                all: DynTensor::new(&memory.device, rows.element, [rows_max, rows.vocab])?,
                one: DynTensor::new(&memory.host, rows.element, [1, rows.vocab])?,
                rows_max,
            })
        };
        Ok(Self {
            host: memory.host_info().to_owned(),
            apart: rows.apart.map(tensors).transpose()?,
            vocab: rows.vocab,
            pruned: rows.pruned,
        })
    }

    /// Runs prompts of these lengths, as wide as the longest; the rows of their last tokens in order.
    pub(super) fn last_rows(
        &mut self,
        run: Run<'_>,
        lengths: &[usize],
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        let width = lengths.iter().copied().max().unwrap_or(0);
        let last: Vec<usize> = match self.pruned {
            true => (0..lengths.len()).collect(),
            false => (lengths.iter().enumerate())
                .map(|(row, length)| row * width + length - 1)
                .collect(),
        };
        match &mut self.apart {
            Some(apart) if lengths.len() * width <= apart.rows_max => {
                let sides = [lengths.len(), width, self.vocab];
                apart.run(run, sides, &last, logits)
            }
            _ => logits::pick(&self.on_host(run)?, &last, self.vocab, logits),
        }
    }

    /// Runs; the last `rows` rows.
    pub(super) fn all_rows(
        &self,
        run: Run<'_>,
        rows: usize,
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        logits::read(&self.on_host(run)?, rows * self.vocab, logits)
    }

    fn on_host(&self, run: Run<'_>) -> ort::Result<DynTensor> {
        let Run {
            session,
            lane,
            options,
            logits: name,
        } = run;
        // Bound anew each time: a bound output keeps the shape of its last run.
        lane.bind_output_to_device(name, &self.host)?;
        let mut outputs = session.run_binding_with_options(lane, options)?;
        let given =
            (outputs.remove(name)).ok_or_else(|| ort::Error::new("the run gave no logits"))?;
        given.downcast()
    }
}

impl Apart {
    fn run(
        &mut self,
        run: Run<'_>,
        sides: [usize; 3],
        last: &[usize],
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        let [count, width, vocab] = sides;
        let sides = sides.map(|side| i64::try_from(side).unwrap_or(i64::MAX));
        let given = view::shaped(&self.all, 0, count * width, &sides)?;
        let Run {
            session,
            lane,
            options,
            logits: name,
        } = run;
        lane.bind_output(name, given)?;
        drop(session.run_binding_with_options(lane, options)?);
        logits.clear();
        for row in last {
            view::rows(&self.all, *row, 1)?.copy_into(&mut self.one)?;
            logits::append(&self.one, 0..vocab, logits)?;
        }
        Ok(())
    }
}
