//! The neuron: serves ONNX models through ONNX Runtime over the OpenAI dialect.
//!
//! It promises that a request never yields more output than its ceiling, that it ends at its
//! deadline and within one step of its client's leaving, and that it leaves exactly one usage event.
//! No price, no cap and no ledger is known here: whoever calls has reserved before.
//!
//! Path of a request: [`server`] accepts, `http` reads and answers, `model` renders and tokenizes,
//! `engine` runs it in a slot of the `session`, `usage` keeps and publishes what it used.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
mod error;
pub mod server;

// the way of a request
mod calls;
mod http;
mod model;

mod embed;
mod encoder;
mod engine;
mod sampler;
mod seat;
mod session;
mod shape;
mod shelf;
mod stop;
mod thread;

pub mod usage;

// what they stand on
mod clock;
mod library;
mod load;
mod metrics;

pub use config::{AdminToken, Arena, CudaOptions, Device, ModelConfig, NeuronConfig};
pub use error::NeuronError;
pub use server::{Models, RunningNeuron, start, start_with_sink};
