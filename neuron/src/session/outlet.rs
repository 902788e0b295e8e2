//! How the logits of a run reach the host.
//!
//! A graph gives a row of logits for each token of a prompt, and only the last is wanted: from a GPU
//! the rest must not cross the bus, 25 MB for a piece of 256 tokens and 50,000 words. So they stay on
//! the device, and the last row is copied from there.

use ort::{
    session::{IoBinding, RunOptions, Session},
    value::{DynTensor, TensorElementType},
};

use super::{logits, memory::Memory, view};
use crate::config::PREFILL_CHUNK_TOKENS;

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
}

/// Rows that stay on the device, and the one that leaves it.
struct Apart {
    all: DynTensor,
    last: DynTensor,
}

impl Outlet {
    /// `apart` keeps the rows of a prompt on the device, where the graph gives more than the last.
    pub(super) fn new(
        memory: &Memory,
        element: TensorElementType,
        vocab: usize,
        apart: bool,
    ) -> ort::Result<Self> {
        let tensors = || -> ort::Result<Apart> {
            Ok(Apart {
                all: DynTensor::new(&memory.device, element, [PREFILL_CHUNK_TOKENS, vocab])?,
                last: DynTensor::new(&memory.host, element, [1, vocab])?,
            })
        };
        Ok(Self {
            host: memory.host_info().to_owned(),
            apart: apart.then(tensors).transpose()?,
            vocab,
        })
    }

    /// Runs a piece of a prompt of `length` tokens; the row of its last.
    pub(super) fn last_row(
        &mut self,
        run: Run<'_>,
        length: usize,
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        match &mut self.apart {
            Some(apart) if length <= PREFILL_CHUNK_TOKENS => {
                apart.run(run, length, self.vocab, logits)
            }
            _ => self.all_rows(run, 1, logits),
        }
    }

    /// Runs; the last `rows` rows.
    pub(super) fn all_rows(
        &self,
        run: Run<'_>,
        rows: usize,
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
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
        logits::read(&given.downcast()?, rows * self.vocab, logits)
    }
}

impl Apart {
    fn run(
        &mut self,
        run: Run<'_>,
        length: usize,
        vocab: usize,
        logits: &mut Vec<f32>,
    ) -> ort::Result<()> {
        let sides = [1, length, vocab].map(|side| i64::try_from(side).unwrap_or(i64::MAX));
        let given = view::shaped(&self.all, 0, length, &sides)?;
        let Run {
            session,
            lane,
            options,
            logits: name,
        } = run;
        lane.bind_output(name, given)?;
        drop(session.run_binding_with_options(lane, options)?);
        view::rows(&self.all, length - 1, 1)?.copy_into(&mut self.last)?;
        logits::read(&self.last, vocab, logits)
    }
}
