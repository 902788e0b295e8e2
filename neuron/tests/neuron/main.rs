//! The neuron from outside, with the real ONNX Runtime and the committed tiny model.
//!
//! NATS is not here: usage events go to a sink that remembers. The end-to-end tests have NATS.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

mod answers;
mod reports;
mod start;
