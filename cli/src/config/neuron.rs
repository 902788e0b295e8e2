//! `[neuron]`: the models this process serves itself.

use std::collections::BTreeSet;

use seatbelt_neuron::{
    AdminToken, Device, ModelConfig, NeuronConfig,
    config::{
        CACHE_BYTES_BOUNDS, CONTEXT_TOKENS_BOUNDS, DRAIN_MS, LOAD_WAIT_MS, MEMORY_BYTES_BOUNDS,
        MODELS_MAX, OUTPUT_TOKENS_BOUNDS, QUEUE, SLOTS_BOUNDS, THREADS_BOUNDS, url_mistake,
    },
};
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    price::Price,
};

use super::{
    Context, NatsConfig, cuda::read_cuda, price::read_price, reader::Section, upstreams::model_id,
};

/// Folder of usage events not yet published, inside the data folder.
const OUTBOX: &str = "neuron-outbox";

/// Fewer can be guessed.
const ADMIN_TOKEN_BYTES_MIN: usize = 16;

/// The neuron, and what its models cost.
pub(super) fn read(
    mut section: Section,
    context: &Context<'_>,
    nats: &NatsConfig,
) -> (NeuronConfig, Vec<Price>) {
    let id = section.text_with("id", |text| {
        NeuronId::new(text).map_err(|error| error.to_string())
    });
    let plain = NeuronConfig::new(nats.data_dir.join(OUTBOX));
    let listen = section.address("listen", plain.listen);
    let url = section.text_with("url", |text| match url_mistake(text) {
        None => Ok(text.to_owned()),
        Some(mistake) => Err(format!("{mistake}: write http://HOST:PORT")),
    });
    let open = section.flag("open").unwrap_or(plain.open);
    let onnxruntime = section.text("onnxruntime").map(|path| context.path(&path));
    let threads = number(&mut section, "threads", THREADS_BOUNDS).unwrap_or(plain.threads);
    let queue = section.count("queue", QUEUE);
    let memory_bytes_max = bytes(&mut section, "memory_bytes_max");
    let gpu_memory_bytes_max = bytes(&mut section, "gpu_memory_bytes_max");
    let load_wait = section.millis("load_wait_ms", LOAD_WAIT_MS);
    let admin_token = section.text_with("admin_token", |text| match text.len() {
        ..ADMIN_TOKEN_BYTES_MIN => Err("is shorter than 16 characters".to_owned()),
        _ => Ok(AdminToken::new(text)),
    });
    let drain = section.millis("drain_ms", DRAIN_MS);
    let (models, prices) = read_models(&mut section, context);
    section.finish();
    let neuron = NeuronConfig {
        id: id.unwrap_or(plain.id),
        listen,
        url,
        open,
        models,
        onnxruntime,
        threads,
        queue,
        memory_bytes_max,
        gpu_memory_bytes_max,
        load_wait,
        admin_token,
        replicas: nats.replicas,
        drain,
        ..plain
    };
    (neuron, prices)
}

fn number(section: &mut Section, name: &'static str, (least, most): (u64, u64)) -> Option<usize> {
    let number = section.number(name, least, most)?;
    usize::try_from(number).ok()
}

fn bytes(section: &mut Section, name: &'static str) -> Option<u64> {
    let (least, most) = MEMORY_BYTES_BOUNDS;
    section.number(name, least, most)
}

fn read_models(section: &mut Section, context: &Context<'_>) -> (Vec<ModelConfig>, Vec<Price>) {
    let parts = section.required("models", |section| {
        Some(section.sections("models", MODELS_MAX))
    });
    if parts.as_ref().is_some_and(Vec::is_empty) {
        section.mistake("models", "is empty: list at least one model");
    }
    let mut ids = BTreeSet::new();
    let (mut models, mut prices) = (Vec::new(), Vec::new());
    for part in parts.unwrap_or_default() {
        let (model, price) = read_model(part, context, &mut ids);
        models.extend(model);
        prices.extend(price);
    }
    (models, prices)
}

fn read_model(
    mut section: Section,
    context: &Context<'_>,
    ids: &mut BTreeSet<ModelId>,
) -> (Option<ModelConfig>, Option<Price>) {
    let id = model_id(&mut section, ids);
    let path = section.required("path", |section| section.text("path"));
    let devices = [("cpu", Device::Cpu), ("cuda", Device::Cuda)];
    let device = section.word("device", &devices).unwrap_or(Device::Cpu);
    let slots = number(&mut section, "slots", SLOTS_BOUNDS);
    let context_tokens = number(&mut section, "context", CONTEXT_TOKENS_BOUNDS);
    let cache_bytes_max = number(&mut section, "cache_bytes_max", CACHE_BYTES_BOUNDS);
    let output = number(&mut section, "output", OUTPUT_TOKENS_BOUNDS);
    let cuda = read_cuda(&mut section, device);
    let price = read_price(&mut section, id.as_ref(), false);
    section.finish();
    let model = id.zip(path).map(|(id, path)| ModelConfig {
        device,
        slots,
        context: context_tokens,
        cache_bytes_max,
        output,
        cuda,
        ..ModelConfig::new(id, context.path(&path))
    });
    (model, price)
}
