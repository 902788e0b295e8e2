//! Why a neuron could not start, by what the operator does next.
//!
//! What goes wrong with one request is not here: see `http` and `engine`.

use std::{io, net::SocketAddr, path::PathBuf};

use thiserror::Error;

/// Why a neuron could not start.
#[derive(Debug, Error)]
pub enum NeuronError {
    /// The configuration does not hold together: correct it.
    #[error("neuron configuration: {}", .0.join("; "))]
    Config(Vec<String>),
    /// There is no ONNX Runtime: run `make setup`, or say where the library is.
    #[error(
        "no ONNX Runtime library found (looked at {looked}): run `make setup`, or set neuron.onnxruntime"
    )]
    NoLibrary {
        /// The places looked at.
        looked: String,
    },
    /// ONNX Runtime cannot be used: install or point to the right library.
    #[error(
        "cannot load ONNX Runtime from {path}: {detail}; run `make setup` or set neuron.onnxruntime"
    )]
    Library {
        /// The library that was tried.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A model folder is not usable: repair the folder.
    #[error("model {model}: {detail}")]
    Model {
        /// The model's id.
        model: String,
        /// What is wrong.
        detail: String,
    },
    /// The device asked for is not there: install it, or ask for another.
    #[error(
        "model {model}: device \"cuda\" cannot be used: {detail}; install an NVIDIA driver, CUDA and the GPU build of ONNX Runtime and point neuron.onnxruntime to it, or set device = \"cpu\""
    )]
    Device {
        /// The model's id.
        model: String,
        /// What is missing, in ONNX Runtime's words.
        detail: String,
    },
    /// The outbox cannot be opened: its folder must be writable by this neuron alone.
    #[error("cannot open the usage outbox in {path}")]
    Outbox {
        /// The outbox folder.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The address cannot be listened on: choose another.
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    /// The stream of usage events or the bucket of registrations cannot be used.
    #[error(transparent)]
    Bus(#[from] seatbelt_bus::ProvisionError),
}

impl NeuronError {
    /// Whether it is one model's alone, and others may serve.
    pub(crate) fn is_of_one_model(&self) -> bool {
        matches!(self, Self::Model { .. } | Self::Device { .. })
    }
}
