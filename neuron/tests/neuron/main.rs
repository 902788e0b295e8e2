//! The neuron from outside, with the real ONNX Runtime and the committed tiny model; `real_model` has
//! real weights.
//!
//! Usage events go to a sink that remembers, except in `nats`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

mod access;
mod answers;
mod arrivals;
mod choices;
mod embeddings;
mod limits;
mod loading;
mod nats;
mod real_model;
mod reports;
mod sampling;
mod shapes;
mod start;
mod tools;
