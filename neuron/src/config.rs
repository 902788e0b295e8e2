//! What a neuron is told at start, and the bounds that nobody needs to tell it.
//!
//! Reading files and environment is the caller's; here the values are only checked, all mistakes
//! at once.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::signature::NeuronSecret,
};
use serde::Deserialize;

/// Largest request body.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest time for a body to arrive.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Most requests waiting for a slot, per model, where the configuration names no other number.
pub const QUEUE_DEFAULT: usize = 64;
/// Most slots of one model.
pub const SLOTS_MAX: usize = 256;
/// Tokens of a prompt run in one go; between two goes the running requests take a step.
pub const PREFILL_CHUNK_TOKENS: usize = 256;
/// How long running requests may go on after shutdown was asked for, where not configured.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(10);
/// How long the last usage events may take to be published at shutdown; the rest stays in the outbox.
pub const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Where a model runs. What is asked for is what is used, or the start fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// ONNX Runtime's own kernels.
    Cpu,
    /// The CUDA execution provider.
    Cuda,
}

impl Device {
    /// The word for it in records, events and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// How the memory of a GPU grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arena {
    /// By what is asked for.
    #[default]
    Exact,
    /// By powers of two, which asks the driver less often and takes up to twice as much.
    Doubling,
}

/// How CUDA is used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CudaOptions {
    /// Which GPU, as CUDA counts them.
    pub device_id: i32,
    /// Most bytes for weights, caches and workspace together; all there are where not given.
    pub memory_bytes_max: Option<usize>,
    /// How the memory grows.
    pub arena: Arena,
    /// Records a step once for each number of slots and replays it: less work for the CPU in each
    /// step, attention over the whole context in each step.
    pub graphs: bool,
    /// Names or operators of nodes that may run on the CPU, besides those that work on shapes.
    pub cpu_nodes: Vec<String>,
    /// Compares the first logits with those of the CPU, which loads the graph there too for a moment.
    pub check_on_cpu: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            device_id: 0,
            memory_bytes_max: None,
            arena: Arena::Exact,
            graphs: false,
            cpu_nodes: Vec::new(),
            check_on_cpu: true,
        }
    }
}

/// Who is served.
#[derive(Debug, Clone)]
pub enum Access {
    /// Who shows that he knows the deployment's secret, each reservation once.
    Signed(NeuronSecret),
    /// Whoever reaches it: for tests, and where nothing but gateways does.
    Open,
}

/// A model to serve.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The name clients use.
    pub id: ModelId,
    /// Folder in the layout of the onnxruntime-genai model builder.
    pub path: PathBuf,
    /// Where it runs.
    #[serde(default = "device_default")]
    pub device: Device,
    /// Requests that run at once.
    #[serde(default = "slots_default")]
    pub slots: usize,
    /// Fewer tokens of context than the model could, to save memory.
    #[serde(default)]
    pub context: Option<usize>,
    /// Most output tokens of one request; the context where not given.
    #[serde(default)]
    pub output: Option<usize>,
    /// How CUDA is used, where it is.
    #[serde(default)]
    pub cuda: CudaOptions,
}

fn device_default() -> Device {
    Device::Cpu
}

fn slots_default() -> usize {
    1
}

/// Everything a neuron is told.
#[derive(Debug, Clone)]
pub struct NeuronConfig {
    /// Name under which it registers and reports.
    pub id: NeuronId,
    /// Address to listen on; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address under which gateways reach it, where it differs from the bound one.
    pub url: Option<String>,
    /// Who is served.
    pub access: Access,
    /// The models.
    pub models: Vec<ModelConfig>,
    /// `libonnxruntime.so`.
    pub ort_library: PathBuf,
    /// Threads of ONNX Runtime per model.
    pub threads: usize,
    /// Most requests waiting for a slot, per model.
    pub queue: usize,
    /// Folder of the outbox.
    pub outbox_dir: PathBuf,
    /// Copies of the usage stream and the registration bucket.
    pub replicas: u8,
    /// How long running requests may go on after shutdown was asked for.
    pub drain: Duration,
}

impl NeuronConfig {
    /// A configuration with defaults for all but what has none.
    pub fn new(
        id: NeuronId,
        access: Access,
        listen: SocketAddr,
        ort_library: PathBuf,
        outbox_dir: PathBuf,
    ) -> Self {
        Self {
            id,
            listen,
            url: None,
            access,
            models: Vec::new(),
            ort_library,
            threads: 1,
            queue: QUEUE_DEFAULT,
            outbox_dir,
            replicas: 1,
            drain: DRAIN_DEFAULT,
        }
    }

    /// Every mistake in it, in words.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.models.is_empty() {
            found.push("no model is configured: add at least one to neuron.models".to_owned());
        }
        if self.threads == 0 {
            found.push("threads is 0: give ONNX Runtime at least one".to_owned());
        }
        if self.queue == 0 {
            found.push("queue is 0: allow at least one request to wait".to_owned());
        }
        for (n, model) in self.models.iter().enumerate() {
            if !(1..=SLOTS_MAX).contains(&model.slots) {
                found.push(format!(
                    "model {}: slots is {}: use 1 to {SLOTS_MAX}",
                    model.id, model.slots
                ));
            }
            if model.context.is_some_and(|context| context < 2) {
                found.push(format!("model {}: context is below 2 tokens", model.id));
            }
            if model.output == Some(0) {
                found.push(format!(
                    "model {}: output is 0: use at least 1 token",
                    model.id
                ));
            }
            if model.cuda.device_id < 0 {
                found.push(format!("model {}: cuda.device_id is below 0", model.id));
            }
            if self.models[..n].iter().any(|other| other.id == model.id) {
                found.push(format!("model {} is configured twice", model.id));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, slots: usize) -> ModelConfig {
        let path = PathBuf::from("models/tiny");
        ModelConfig {
            id: ModelId::new(id).unwrap(),
            path,
            device: Device::Cpu,
            slots,
            context: None,
            output: None,
            cuda: CudaOptions::default(),
        }
    }

    fn config(models: Vec<ModelConfig>) -> NeuronConfig {
        let id = NeuronId::new("n1").unwrap();
        let listen = "127.0.0.1:0".parse().unwrap();
        NeuronConfig {
            models,
            ..NeuronConfig::new(id, Access::Open, listen, "lib.so".into(), "outbox".into())
        }
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let found = config(vec![model("a", 0), model("a", 1)]).mistakes();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("slots is 0"), "{found:?}");
        assert!(found[1].contains("configured twice"), "{found:?}");
        assert_eq!(config(vec![]).mistakes().len(), 1);
    }

    #[test]
    fn a_plain_configuration_has_no_mistakes() {
        assert!(
            config(vec![model("a", 8), model("b", 1)])
                .mistakes()
                .is_empty()
        );
    }
}
