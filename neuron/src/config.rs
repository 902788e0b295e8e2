//! What a neuron is told at start, each setting with its bounds and its default, and the bounds that nobody
//! needs to tell it.
//!
//! Reading files and environment is the caller's; here the values are only checked, all mistakes
//! at once.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use seatbelt_schemas::{
    amount::TOKENS_PER_REQUEST_MAX,
    ids::{ModelId, NeuronId},
    neuron::signature::NeuronSecret,
    setting::Setting,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Largest request body.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest time for a body to arrive.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Most models of one neuron.
pub const MODELS_MAX: usize = 64;
/// Threads of ONNX Runtime per model.
pub const THREADS_BOUNDS: (u64, u64) = (1, 1024);
/// Most threads where nobody says how many: beyond these a step of decoding gains little.
const THREADS_DEFAULT_MAX: usize = 8;
/// Requests waiting for a slot, per model; more are answered 503.
pub const QUEUE: Setting = Setting::new(1, 100_000, 64);
/// Bytes that all models may take of a memory: less holds none.
pub const MEMORY_BYTES_BOUNDS: (u64, u64) = (64 * 1024, u64::MAX);
/// How long a request may wait until its model is loaded, ms.
pub const LOAD_WAIT_MS: Setting = Setting::new(0, 600_000, 30_000);
/// How long running requests may go on after shutdown was asked for, ms.
pub const DRAIN_MS: Setting = Setting::new(0, 600_000, 10_000);
/// Requests of one model that run at once.
pub const SLOTS_BOUNDS: (u64, u64) = (1, 256);
/// Most slots of a model whose slots nobody configured.
pub const SLOTS_FOLLOWING_MAX: usize = 8;
/// Fewer tokens of context than the model could: the least and the most that may be said.
pub const CONTEXT_TOKENS_BOUNDS: (u64, u64) = (2, TOKENS_PER_REQUEST_MAX);
/// Fewest tokens that a context is cut to by itself, for want of memory.
pub const CONTEXT_FOLLOWING_MIN: usize = 1024;
/// Bytes of a model's caches that may be said: less holds no request.
pub const CACHE_BYTES_BOUNDS: (u64, u64) = (64 * 1024, u64::MAX);
/// The same of output tokens.
pub const OUTPUT_TOKENS_BOUNDS: (u64, u64) = (1, TOKENS_PER_REQUEST_MAX);
/// Which GPU of a machine.
pub const CUDA_DEVICE_ID: Setting = Setting::new(0, 63, 0);
/// Bytes of a GPU that may be said: less holds no model.
pub const CUDA_MEMORY_BYTES_BOUNDS: (u64, u64) = (16 * 1024 * 1024, u64::MAX);
/// Most nodes that may be listed for the CPU.
pub const CUDA_CPU_NODES_MAX: usize = 1024;
/// Most tokens of a prompt run in one go on a slow device; between two goes the running requests take a step.
pub const PREFILL_CHUNK_TOKENS: usize = 256;
/// The same on the fastest.
pub const READ_TOKENS_MAX: usize = 2048;
/// A step that takes longer hangs: its model is taken out of the register.
pub const STEP_TIME_MAX: Duration = Duration::from_secs(120);
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
    /// Which GPU, as CUDA counts them ([`CUDA_DEVICE_ID`]).
    pub device_id: i32,
    /// Most bytes for weights, caches and workspace together ([`CUDA_MEMORY_BYTES_BOUNDS`]); all there are where
    /// not given.
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
pub(crate) enum Access {
    /// Who shows that he knows the deployment's secret, each reservation once.
    Signed(NeuronSecret),
    /// Whoever reaches it: for tests, and where nothing but gateways does.
    Open,
}

/// Token of who loads and unloads models by name; kept as its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminToken([u8; 32]);

impl AdminToken {
    /// Of the token's text.
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    /// Whether this is its text. How long it takes says nothing of the token, but of hashes.
    pub(crate) fn is(&self, told: &[u8]) -> bool {
        let told: [u8; 32] = Sha256::digest(told).into();
        self.0 == told
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}

/// A model to serve.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The name clients use.
    pub id: ModelId,
    /// Folder in the layout of the onnxruntime-genai model builder.
    pub path: PathBuf,
    /// Where it runs.
    #[serde(default = "device_default")]
    pub device: Device,
    /// Requests that run at once ([`SLOTS_BOUNDS`]); as many as fit the memory, up to
    /// [`SLOTS_FOLLOWING_MAX`], where not given.
    #[serde(default)]
    pub slots: Option<usize>,
    /// Most tokens of input and output together, where not the model's own ([`CONTEXT_TOKENS_BOUNDS`]); what
    /// fits the memory where not given.
    #[serde(default)]
    pub context: Option<usize>,
    /// Most bytes of its caches ([`CACHE_BYTES_BOUNDS`]); half of the free memory where not given.
    #[serde(default)]
    pub cache_bytes_max: Option<usize>,
    /// Most output tokens of one request ([`OUTPUT_TOKENS_BOUNDS`]); the context where not given.
    #[serde(default)]
    pub output: Option<usize>,
    /// How CUDA is used, where it is.
    #[serde(default)]
    pub cuda: CudaOptions,
}

impl ModelConfig {
    /// A model in a folder, with defaults for the rest.
    pub fn new(id: ModelId, path: PathBuf) -> Self {
        Self {
            id,
            path,
            device: device_default(),
            slots: None,
            context: None,
            cache_bytes_max: None,
            output: None,
            cuda: CudaOptions::default(),
        }
    }
}

fn device_default() -> Device {
    Device::Cpu
}

/// All cores, up to what a step of decoding gains from.
fn threads_default() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.min(THREADS_DEFAULT_MAX)
}

/// Everything a neuron is told: `[neuron]`, and where its files and its streams are.
#[derive(Debug, Clone)]
pub struct NeuronConfig {
    /// Name under which it registers and reports; made from the host's name where not given.
    pub id: NeuronId,
    /// Address to listen on; port 0 picks a free one, and is the default, on loopback.
    pub listen: SocketAddr,
    /// Address under which gateways reach it, where it differs from the bound one.
    pub url: Option<String>,
    /// Serves whoever reaches it, and not gateways of its deployment alone: no, where not given.
    pub open: bool,
    /// The models: at least one, at most [`MODELS_MAX`].
    pub models: Vec<ModelConfig>,
    /// `libonnxruntime.so`; looked for where not given.
    pub onnxruntime: Option<PathBuf>,
    /// Threads of ONNX Runtime per model ([`THREADS_BOUNDS`]); all cores, at most 8, where not given.
    pub threads: usize,
    /// Most requests waiting for a slot, per model ([`QUEUE`]).
    pub queue: usize,
    /// Most bytes that weights and caches of all models on the CPU take together ([`MEMORY_BYTES_BOUNDS`]): those
    /// that do not fit are loaded when they are asked for, in the place of others. All are loaded where not given.
    pub memory_bytes_max: Option<u64>,
    /// The same of each GPU.
    pub gpu_memory_bytes_max: Option<u64>,
    /// How long a request may wait until its model is loaded ([`LOAD_WAIT_MS`]).
    pub load_wait: Duration,
    /// Whose token loads and unloads models by name, besides the gateways of the deployment.
    pub admin_token: Option<AdminToken>,
    /// Folder of the outbox.
    pub outbox_dir: PathBuf,
    /// Copies of the usage stream and the registration bucket.
    pub replicas: u8,
    /// How long running requests may go on after shutdown was asked for ([`DRAIN_MS`]).
    pub drain: Duration,
}

impl NeuronConfig {
    /// A configuration with defaults for all but what has none.
    pub fn new(outbox_dir: PathBuf) -> Self {
        Self {
            id: name_of_host(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            url: None,
            open: false,
            models: Vec::new(),
            onnxruntime: None,
            threads: threads_default(),
            queue: QUEUE.default_count(),
            memory_bytes_max: None,
            gpu_memory_bytes_max: None,
            load_wait: LOAD_WAIT_MS.default_ms(),
            admin_token: None,
            outbox_dir,
            replicas: 1,
            drain: DRAIN_MS.default_ms(),
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
        if let Some(mistake) = self.url.as_deref().and_then(url_mistake) {
            found.push(format!("url {mistake}: write http://HOST:PORT"));
        }
        let (least, most) = SLOTS_BOUNDS;
        for (n, model) in self.models.iter().enumerate() {
            let slots = model.slots.map(|slots| slots as u64);
            if let Some(slots) = slots.filter(|slots| !(least..=most).contains(slots)) {
                found.push(format!(
                    "model {}: slots is {slots}: use {least} to {most}",
                    model.id
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

/// Why gateways on other machines cannot call a neuron at this url, if so.
pub fn url_mistake(url: &str) -> Option<&'static str> {
    let everywhere = ["//0.0.0.0", "//[::]"];
    match seatbelt_schemas::neuron::url_mistake(url) {
        None if everywhere.iter().any(|host| url.contains(host)) => {
            Some("names no machine, but every address of whoever calls it")
        }
        mistake => mistake,
    }
}

/// `neuron-<host>`: unique where each host runs one, and the same after a restart.
fn name_of_host() -> NeuronId {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = host
        .trim()
        .chars()
        .map(|letter| match letter.is_ascii_alphanumeric() {
            true => letter,
            false => '-',
        });
    let name: String = "neuron-".chars().chain(plain).take(64).collect();
    NeuronId::new(name).expect("letters, digits and dashes, at most 64")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, slots: usize) -> ModelConfig {
        let id = ModelId::new(id).unwrap();
        ModelConfig {
            slots: Some(slots),
            ..ModelConfig::new(id, PathBuf::from("models/tiny"))
        }
    }

    fn config(models: Vec<ModelConfig>) -> NeuronConfig {
        NeuronConfig {
            models,
            ..NeuronConfig::new("outbox".into())
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
    fn a_url_that_nobody_can_call_is_a_mistake() {
        let of = |url: &str| {
            let config = NeuronConfig {
                url: Some(url.to_owned()),
                ..config(vec![model("a", 1)])
            };
            config.mistakes().len()
        };
        assert_eq!((of("gpu-box:9100"), of("http://0.0.0.0:9100")), (1, 1));
        assert_eq!(
            (of("http://gpu-box:9100"), of("https://h/neuron/1")),
            (0, 0)
        );
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
