//! The neuron role: its configuration in its own words, and where its native library is.

use std::path::PathBuf;

use seatbelt_neuron::{Access, Device, ModelConfig, NeuronConfig};
use seatbelt_schemas::{ids::NeuronId, neuron::signature::NeuronSecret};

use super::RoleError;
use crate::config::{self, Config, Neuron};

/// Names the library instead of searching for it.
const VARIABLE: &str = "SEATBELT_ONNXRUNTIME";
/// Where `make setup` puts it, seen from the repository's root.
const SET_UP: &str = ".deps/onnxruntime/libonnxruntime.so";
/// Folder of usage events not yet published, inside the data folder.
const OUTBOX: &str = "neuron-outbox";

/// What the neuron is told.
pub(super) fn config(
    config: &Config,
    neuron: &Neuron,
    secret: NeuronSecret,
) -> Result<NeuronConfig, RoleError> {
    let library = match &neuron.onnxruntime {
        Some(path) => existing("neuron.onnxruntime", path.clone())?,
        None => find_library()?,
    };
    let id = neuron.id.clone().unwrap_or_else(own_name);
    let outbox = config.nats.data_dir.join(OUTBOX);
    let access = match neuron.open {
        true => Access::Open,
        false => Access::Signed(secret),
    };
    Ok(NeuronConfig {
        url: neuron.url.clone(),
        models: neuron.models.iter().map(model).collect(),
        threads: neuron.threads,
        queue: neuron.queue,
        replicas: config.nats.replicas,
        drain: neuron.drain,
        ..NeuronConfig::new(id, access, neuron.listen, library, outbox)
    })
}

fn model(model: &config::NeuronModel) -> ModelConfig {
    ModelConfig {
        id: model.id.clone(),
        path: model.path.clone(),
        device: match model.device {
            config::Device::Cpu => Device::Cpu,
            config::Device::Cuda => Device::Cuda,
        },
        slots: model.slots,
        context: model.context,
        output: model.output,
        cuda: model.cuda.clone(),
    }
}

/// `neuron-<host>`: unique where each host runs one, and the same after a restart.
fn own_name() -> NeuronId {
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

fn existing(setting: &'static str, path: PathBuf) -> Result<PathBuf, RoleError> {
    match path.is_file() {
        true => Ok(path),
        false => Err(RoleError::NoLibrary {
            looked: format!("{setting}: {}", path.display()),
        }),
    }
}

/// `SEATBELT_ONNXRUNTIME`, else `.deps/` beneath the current folder or above this executable.
fn find_library() -> Result<PathBuf, RoleError> {
    if let Some(told) = std::env::var_os(VARIABLE) {
        return existing(VARIABLE, told.into());
    }
    let executable = std::env::current_exe().unwrap_or_default();
    let above = executable.ancestors().skip(1);
    let here = std::env::current_dir().unwrap_or_default();
    let mut looked = Vec::new();
    for folder in std::iter::once(here.as_path()).chain(above) {
        let candidate = folder.join(SET_UP);
        if candidate.is_file() {
            return Ok(candidate);
        }
        looked.push(candidate.display().to_string());
    }
    Err(RoleError::NoLibrary {
        looked: looked.join(", "),
    })
}
