//! Reads the folder of a model, and says how it is loaded and what that takes.
//!
//! A folder is read once, when the model is configured: tokenizer and template stay. The weights come and go.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use crate::{
    config::{Device, ModelConfig, NeuronConfig, SLOTS_FOLLOWING_MAX},
    embed::Embedder,
    encoder::{EncoderFolder, is_encoder},
    engine::{Decoder, Engine, Voice},
    error::NeuronError,
    http::{Embeds, Served},
    library,
    metrics::Metrics,
    model::Model,
    seat::{Load, Loaded, Memory, Resident, Seat},
    session::{OnnxDecoder, OnnxEncoder},
    shelf::Failed,
};

/// A model that is configured.
pub(crate) enum Entry {
    Writes(Arc<Served>),
    Embeds(Arc<Embeds>),
    Unread(Failed),
}

impl Entry {
    pub(crate) fn resident(&self) -> Option<Arc<dyn Resident>> {
        match self {
            Self::Writes(served) => Some(Arc::clone(&served.seat) as _),
            Self::Embeds(embeds) => Some(Arc::clone(&embeds.seat) as _),
            Self::Unread(_) => None,
        }
    }
}

/// The memory that models may take together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budgets {
    host: Option<u64>,
    gpu: Option<u64>,
}

impl Budgets {
    fn of_config(config: &NeuronConfig) -> Self {
        Self {
            host: config.memory_bytes_max,
            gpu: config.gpu_memory_bytes_max,
        }
    }

    /// What they may take there; nobody counts it where nothing is said.
    pub(crate) fn of(self, place: Memory) -> Option<u64> {
        match place {
            Memory::Host => self.host,
            Memory::Gpu(_) => self.gpu,
        }
    }
}

/// What a decoder has, once it was loaded: it has the same again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) slots: usize,
    pub(crate) context: usize,
}

/// What all models are loaded with.
#[derive(Clone)]
pub(crate) struct Loader {
    library: PathBuf,
    threads: usize,
    queue: usize,
    metrics: Arc<Metrics>,
    pub(crate) budgets: Budgets,
}

impl Loader {
    pub(crate) fn new(config: &NeuronConfig, metrics: &Arc<Metrics>) -> Result<Self, NeuronError> {
        Ok(Self {
            library: library::find(config.onnxruntime.as_deref())?,
            threads: config.threads,
            queue: config.queue,
            metrics: Arc::clone(metrics),
            budgets: Budgets::of_config(config),
        })
    }

    /// Reads a model's folder. Its weights are not touched.
    pub(crate) fn read(&self, wanted: &ModelConfig) -> Result<Entry, NeuronError> {
        match is_encoder(&wanted.path) {
            true => self.read_encoder(wanted).map(Entry::Embeds),
            false => self.read_decoder(wanted).map(Entry::Writes),
        }
    }

    fn read_encoder(&self, wanted: &ModelConfig) -> Result<Arc<Embeds>, NeuronError> {
        let folder = Arc::new(EncoderFolder::read(wanted)?);
        let bytes = weights(&folder.file);
        let (loader, config, read) = (self.clone(), wanted.clone(), Arc::clone(&folder));
        let load = move || {
            let encoder = OnnxEncoder::load(&loader.library, &config, &read, loader.threads)?;
            let metrics = loader.metrics.of_embedder(&config.id);
            let runner = Embedder::start(Box::new(encoder), loader.queue, metrics);
            let runner = runner.map_err(|error| no_thread(&config, &error))?;
            loader.metrics.loaded(&config.id);
            Ok(Loaded { runner, bytes })
        };
        Ok(Arc::new(Embeds {
            id: wanted.id.clone(),
            device: wanted.device,
            folder,
            seat: self.seat(wanted, bytes, Box::new(load)),
            wanted: wanted.clone(),
        }))
    }

    fn read_decoder(&self, wanted: &ModelConfig) -> Result<Arc<Served>, NeuronError> {
        let model = Arc::new(Model::load(wanted)?);
        let found = Arc::new(OnceLock::new());
        let weights = weights(&model.graph.file);
        let share = self.share(wanted, weights);
        let estimate = weights.saturating_add(caches(wanted, &model, share));
        let (loader, config) = (self.clone(), wanted.clone());
        let (read, told) = (Arc::clone(&model), Arc::clone(&found));
        let load = move || loader.load_decoder(&config, share, weights, &read, &told);
        Ok(Arc::new(Served {
            id: wanted.id.clone(),
            device: wanted.device,
            model,
            found,
            seat: self.seat(wanted, estimate, Box::new(load)),
            wanted: wanted.clone(),
        }))
    }

    fn seat<R: crate::seat::Runs>(
        &self,
        wanted: &ModelConfig,
        bytes: u64,
        load: Load<R>,
    ) -> Arc<Seat<R>> {
        // Where nobody counts, nothing is too large.
        let place = Memory::of(wanted);
        let bytes = self.budgets.of(place).map_or(0, |_| bytes);
        Arc::new(Seat::new(wanted.id.clone(), place, bytes, load))
    }

    /// Most bytes of a model's caches where only the memory of all models is told: half of what its weights leave, so
    /// that a second model may stay beside it.
    fn share(&self, wanted: &ModelConfig, weights: u64) -> Option<usize> {
        let budget = self.budgets.of(Memory::of(wanted))?;
        let follows = wanted.cache_bytes_max.is_none()
            && (wanted.slots.is_none() || wanted.context.is_none());
        follows.then(|| usize::try_from(budget.saturating_sub(weights) / 2).unwrap_or(usize::MAX))
    }

    fn load_decoder(
        &self,
        wanted: &ModelConfig,
        share: Option<usize>,
        weights: u64,
        model: &Model,
        found: &OnceLock<Found>,
    ) -> Result<Loaded<Engine>, NeuronError> {
        let before = found.get();
        let config = ModelConfig {
            slots: before.map(|found| found.slots).or(wanted.slots),
            context: before.map(|found| found.context).or(wanted.context),
            cache_bytes_max: wanted.cache_bytes_max.or(share),
            ..wanted.clone()
        };
        let decoder = OnnxDecoder::load(&self.library, &config, model, self.threads)?;
        let now = Found {
            slots: decoder.slots(),
            context: decoder.context(),
        };
        if before.is_none() && now.context < model.context {
            tracing::warn!(
                model = %wanted.id, own = model.context, context = now.context,
                "there is no memory for the model's whole context: set context, fewer slots or cache_bytes_max"
            );
        }
        let bytes = weights.saturating_add(decoder.cache_bytes());
        let voice = Voice {
            tokenizer: model.tokenizer.clone(),
        };
        let metrics = self.metrics.of_engine(&wanted.id);
        let runner = Engine::start(Box::new(decoder), voice, self.queue, metrics);
        let runner = runner.map_err(|error| no_thread(wanted, &error))?;
        let _ = found.set(now);
        self.metrics.loaded(&wanted.id);
        Ok(Loaded { runner, bytes })
    }
}

fn no_thread(wanted: &ModelConfig, error: &std::io::Error) -> NeuronError {
    NeuronError::Model {
        model: wanted.id.to_string(),
        detail: format!("no thread for it: {error}"),
    }
}

/// Bytes of a graph and of what lies beside it under its name.
fn weights(graph: &Path) -> u64 {
    let name = graph.file_name().unwrap_or_default().to_string_lossy();
    let files = graph.parent().and_then(|folder| fs::read_dir(folder).ok());
    let of_it = |file: &fs::DirEntry| {
        let file = file.file_name();
        let file = file.to_string_lossy();
        file.starts_with(&*name) || file.ends_with(".data") || file.ends_with("_data")
    };
    let files = files.into_iter().flatten().flatten().filter(of_it);
    // Weights may be links into a store.
    files
        .filter_map(|file| fs::metadata(file.path()).ok())
        .map(|file| file.len())
        .sum()
}

/// About what caches will take, before the graph says what it keeps: numbers of four bytes on a CPU, of two on a GPU.
fn caches(wanted: &ModelConfig, model: &Model, share: Option<usize>) -> u64 {
    let number = match wanted.device {
        Device::Cpu => 4,
        Device::Cuda => 2,
    };
    let graph = &model.graph;
    let slots = wanted.slots.unwrap_or(SLOTS_FOLLOWING_MAX);
    let sides = [
        slots,
        model.context,
        2,
        graph.layers,
        graph.kv_heads,
        graph.head_size,
    ];
    let whole = sides
        .iter()
        .fold(number, |all: u64, side| all.saturating_mul(*side as u64));
    match wanted.cache_bytes_max.or(share) {
        Some(most) => whole.min(most as u64),
        None => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tests::{tiny_config, tiny_folder};

    #[test]
    fn what_a_model_takes_is_known_before_it_is_loaded() {
        let graph = tiny_folder().join("model.onnx");
        let file = fs::metadata(&graph).unwrap().len();
        assert_eq!(weights(&graph), file);
        let model = Model::load(&tiny_config(2)).unwrap();
        let of = |config: &ModelConfig, share| caches(config, &model, share);
        let two = of(&tiny_config(2), None);
        assert_eq!(of(&tiny_config(4), None), 2 * two);
        assert_eq!(of(&tiny_config(2), Some(100)), 100);
    }
}
