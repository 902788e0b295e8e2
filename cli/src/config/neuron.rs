//! `[neuron]`: the models this process serves itself.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, time::Duration};

use seatbelt_neuron::CudaOptions;
use seatbelt_schemas::{
    amount::TOKENS_PER_REQUEST_MAX,
    ids::{ModelId, NeuronId},
    price::Price,
};

use super::{
    Context,
    cuda::read_cuda,
    gateway::{address, millis},
    price::read_price,
    reader::Section,
    upstreams::model_id,
};

/// Most models of one neuron.
const MODELS_MAX: usize = 64;
/// Most requests of one model that run at once.
const SLOTS_MAX: u64 = 256;
/// Most requests of one model that may wait.
const QUEUE_MAX: u64 = 100_000;
/// Most threads of one model.
const THREADS_MAX: u64 = 1024;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// On the CPU.
    Cpu,
    /// On a GPU, with CUDA.
    Cuda,
}

/// `[neuron]`
#[derive(Debug, Clone)]
pub struct Neuron {
    /// Its id; made from the host's name where not given.
    pub id: Option<NeuronId>,
    /// Address it listens on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address under which gateways reach it, where that is not the one it listens on.
    pub url: Option<String>,
    /// Serves whoever reaches it, not gateways of its deployment alone.
    pub open: bool,
    /// ONNX Runtime's library; found by itself where not given.
    pub onnxruntime: Option<PathBuf>,
    /// Threads per model.
    pub threads: usize,
    /// Most requests that wait, per model.
    pub queue: usize,
    /// How long running requests may go on after a stop was asked for.
    pub drain: Duration,
    /// Its models.
    pub models: Vec<NeuronModel>,
}

/// A model that the neuron serves.
#[derive(Debug, Clone)]
pub struct NeuronModel {
    /// As clients name it.
    pub id: ModelId,
    /// Its folder.
    pub path: PathBuf,
    /// Where it runs.
    pub device: Device,
    /// Requests that run at once.
    pub slots: usize,
    /// Most tokens of input and output together, where less than the model's own.
    pub context: Option<usize>,
    /// Most output tokens of one request.
    pub output: Option<usize>,
    /// How its GPU is used.
    pub cuda: CudaOptions,
    /// What it costs; none where unpriced.
    pub price: Option<Price>,
}

impl Neuron {
    pub(super) fn read(mut section: Section, context: &Context<'_>) -> Self {
        let id = section.text_with("id", |text| {
            NeuronId::new(text).map_err(|error| error.to_string())
        });
        let count = |section: &mut Section, name, most, default| {
            let count = section.number(name, 1, most).unwrap_or(default);
            usize::try_from(count).unwrap_or(usize::MAX)
        };
        let neuron = Self {
            id,
            listen: address(&mut section, "listen", 0),
            url: section.text("url"),
            open: section.flag("open").unwrap_or(false),
            onnxruntime: section.text("onnxruntime").map(|path| context.path(&path)),
            threads: count(&mut section, "threads", THREADS_MAX, 1),
            queue: count(&mut section, "queue", QUEUE_MAX, 64),
            drain: millis(&mut section, "drain_ms", 0, 600_000, 10_000),
            models: read_models(&mut section, context),
        };
        section.finish();
        neuron
    }
}

fn read_models(section: &mut Section, context: &Context<'_>) -> Vec<NeuronModel> {
    let parts = section.required("models", |section| {
        Some(section.sections("models", MODELS_MAX))
    });
    let given = parts.is_some();
    let mut ids = BTreeSet::new();
    let mut models = Vec::new();
    let mut listed = 0;
    for part in parts.unwrap_or_default() {
        listed += 1;
        models.extend(read_model(part, context, &mut ids));
    }
    if given && listed == 0 {
        section.mistake("models", "is empty: list at least one model");
    }
    models
}

fn read_model(
    mut section: Section,
    context: &Context<'_>,
    ids: &mut BTreeSet<ModelId>,
) -> Option<NeuronModel> {
    let id = model_id(&mut section, ids);
    let path = section.required("path", |section| section.text("path"));
    let devices = [("cpu", Device::Cpu), ("cuda", Device::Cuda)];
    let device = section.word("device", &devices).unwrap_or(Device::Cpu);
    let number = |section: &mut Section, name, least, most| {
        let number = section.number(name, least, most)?;
        usize::try_from(number).ok()
    };
    let slots = number(&mut section, "slots", 1, SLOTS_MAX).unwrap_or(1);
    let context_tokens = number(&mut section, "context", 2, TOKENS_PER_REQUEST_MAX);
    let output = number(&mut section, "output", 1, TOKENS_PER_REQUEST_MAX);
    let cuda = read_cuda(&mut section, device);
    let price = read_price(&mut section, id.as_ref(), false);
    section.finish();
    Some(NeuronModel {
        id: id?,
        path: context.path(&path?),
        device,
        slots,
        context: context_tokens,
        output,
        cuda,
        price,
    })
}
