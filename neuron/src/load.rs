//! Loads the models that are configured.
//!
//! One that does not load is left out and told, and the others serve. Where none loads, and where what all
//! need is missing, there is no neuron.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use seatbelt_schemas::ids::ModelId;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{ModelConfig, NeuronConfig},
    embed::Embedder,
    encoder::{EncoderFolder, is_encoder},
    engine::{Decoder, Engine, Voice},
    error::NeuronError,
    http::{App, Embeds, Served},
    library,
    metrics::Metrics,
    model::Model,
    session::{OnnxDecoder, OnnxEncoder},
    thread::Health,
};

/// How often engines are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest time between two tries to load a model again.
const RELOAD_WAIT_MAX: Duration = Duration::from_secs(60);

/// The engine of a model, which may be another after a breakdown.
pub(crate) struct Seat {
    engine: RwLock<Arc<Engine>>,
    library: PathBuf,
    /// What it was loaded by, with the slots and context that were found.
    wanted: ModelConfig,
}

impl Seat {
    pub(crate) fn engine(&self) -> Arc<Engine> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&engine)
    }

    fn put(&self, engine: Engine) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(engine);
    }
}

/// A model that is configured and does not serve.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    pub(crate) id: ModelId,
    pub(crate) reason: String,
}

/// What came of the models of a configuration.
pub(crate) struct Loaded {
    pub(crate) served: Vec<Served>,
    pub(crate) embedders: Vec<Embeds>,
    pub(crate) failed: Vec<Failed>,
}

/// Loads models one after another, off the runtime: reading weights takes its time.
pub(crate) async fn load_models(
    config: &NeuronConfig,
    metrics: &Arc<Metrics>,
) -> Result<Loaded, NeuronError> {
    let library = library::find(config.onnxruntime.as_deref())?;
    let (config, metrics) = (config.clone(), Arc::clone(metrics));
    let load = move || load_all(&config, &library, &metrics);
    let loaded = tokio::task::spawn_blocking(load).await;
    loaded.unwrap_or_else(|error| {
        Err(NeuronError::Model {
            model: "all".to_owned(),
            detail: format!("loading broke off: {error}"),
        })
    })
}

fn load_all(
    config: &NeuronConfig,
    library: &Path,
    metrics: &Arc<Metrics>,
) -> Result<Loaded, NeuronError> {
    let mut loaded = Loaded {
        served: Vec::new(),
        embedders: Vec::new(),
        failed: Vec::new(),
    };
    let mut first = None;
    for model in &config.models {
        let done =
            match is_encoder(&model.path) {
                true => load_embedder(config, library, model)
                    .map(|embeds| loaded.embedders.push(embeds)),
                false => load_model(config, library, model, metrics)
                    .map(|served| loaded.served.push(served)),
            };
        match done {
            Ok(()) => {}
            Err(error @ (NeuronError::Model { .. } | NeuronError::Device { .. })) => {
                let reason = error.to_string();
                tracing::error!(model = %model.id, %reason, "the model does not load and is not served");
                loaded.failed.push(Failed {
                    id: model.id.clone(),
                    reason,
                });
                first.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match first {
        Some(error) if loaded.served.is_empty() && loaded.embedders.is_empty() => Err(error),
        _ => Ok(loaded),
    }
}

fn load_embedder(
    config: &NeuronConfig,
    library: &Path,
    wanted: &ModelConfig,
) -> Result<Embeds, NeuronError> {
    let folder = EncoderFolder::read(wanted)?;
    let encoder = OnnxEncoder::load(library, wanted, &folder, config.threads)?;
    let embedder = Embedder::start(Box::new(encoder), config.queue);
    let embedder = embedder.map_err(|error| NeuronError::Model {
        model: wanted.id.to_string(),
        detail: format!("no thread for it: {error}"),
    })?;
    Ok(Embeds {
        id: wanted.id.clone(),
        device: wanted.device,
        tokenizer: folder.tokenizer,
        context: folder.context,
        vocab: folder.vocab,
        embedder,
    })
}

fn load_model(
    config: &NeuronConfig,
    library: &Path,
    wanted: &ModelConfig,
    metrics: &Arc<Metrics>,
) -> Result<Served, NeuronError> {
    let model = Model::load(wanted)?;
    let (engine, slots, context) = load_engine(config, library, wanted, &model, metrics)?;
    if context < model.context {
        tracing::warn!(
            model = %wanted.id, own = model.context, context,
            "there is no memory for the model's whole context: set context, fewer slots or cache_bytes_max"
        );
    }
    let wanted = ModelConfig {
        slots: Some(slots),
        context: Some(context),
        ..wanted.clone()
    };
    Ok(Served {
        id: wanted.id.clone(),
        device: wanted.device,
        slots,
        model: model.within(context),
        seat: Seat {
            engine: RwLock::new(Arc::new(engine)),
            library: library.to_owned(),
            wanted,
        },
    })
}

/// The engine, its slots and its context.
fn load_engine(
    config: &NeuronConfig,
    library: &Path,
    wanted: &ModelConfig,
    model: &Model,
    metrics: &Arc<Metrics>,
) -> Result<(Engine, usize, usize), NeuronError> {
    let decoder = OnnxDecoder::load(library, wanted, model, config.threads)?;
    let (slots, context) = (decoder.slots(), decoder.context());
    let voice = Voice {
        tokenizer: model.tokenizer.clone(),
    };
    let engine = Engine::start(
        Box::new(decoder),
        voice,
        config.queue,
        metrics.of_engine(&wanted.id),
    );
    let engine = engine.map_err(|error| NeuronError::Model {
        model: wanted.id.to_string(),
        detail: format!("no thread for it: {error}"),
    })?;
    Ok((engine, slots, context))
}

/// Loads models again whose engines broke down, until `stop`; ever more slowly where that does not help.
pub(crate) async fn keep_loaded(app: Arc<App>, config: NeuronConfig, stop: CancellationToken) {
    let mut tries: Vec<Tries> = app.models.iter().map(|_| Tries::default()).collect();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = stop.cancelled() => return,
        }
        for (at, tries) in tries.iter_mut().enumerate() {
            if tries.is_due(app.models[at].engine().health()) {
                let (app, config) = (Arc::clone(&app), config.clone());
                let again = move || load_again(&app, at, &config);
                drop(tokio::task::spawn_blocking(again).await);
            }
        }
    }
}

/// When a model may be tried again, counted in looks at it.
#[derive(Debug, Default)]
struct Tries {
    count: u32,
    left: u64,
}

impl Tries {
    fn is_due(&mut self, health: Health) -> bool {
        match health {
            // A step that hangs may end; its memory is not to be had before.
            Health::Stuck => false,
            Health::Well => {
                // What breaks down after every load is not to be loaded every second.
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    self.count = 0;
                }
                false
            }
            Health::Dead if self.left > 0 => {
                self.left -= 1;
                false
            }
            Health::Dead => {
                self.left = (1 << self.count.min(16)).min(RELOAD_WAIT_MAX.as_secs());
                self.count += 1;
                true
            }
        }
    }
}

fn load_again(app: &App, at: usize, config: &NeuronConfig) {
    let served = &app.models[at];
    served.engine().stop(LOOK_EVERY);
    let (seat, metrics) = (&served.seat, &app.office.metrics);
    match load_engine(config, &seat.library, &seat.wanted, &served.model, metrics) {
        Ok((engine, ..)) => {
            tracing::warn!(model = %served.id, "the model broke down and was loaded again");
            seat.put(engine);
        }
        Err(error) => {
            tracing::error!(model = %served.id, %error, "the model broke down and cannot be loaded again: it will be tried again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_down_is_tried_at_once_and_then_ever_more_seldom() {
        let mut tries = Tries::default();
        let due: Vec<usize> = (0..300).filter(|_| tries.is_due(Health::Dead)).collect();
        assert_eq!(due[..6], [0, 2, 5, 10, 19, 36]);
        assert!(
            due.windows(2).all(|pair| pair[1] - pair[0] <= 61),
            "{due:?}"
        );
        for _ in 0..61 {
            assert!(!tries.is_due(Health::Well));
        }
        assert!(tries.is_due(Health::Dead), "it was well for long enough");
        assert!(!Tries::default().is_due(Health::Stuck));
    }
}
