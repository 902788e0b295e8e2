//! Names and shapes that Seatbelt puts on the wire: ids, amounts, caps, prices, events, commits,
//! commands and their outcomes, and the names of streams, subjects and buckets.
//!
//! What is written here is forever: a field once named keeps its name, new fields are optional, and
//! unknown fields and kinds are skipped by readers while the stored bytes keep them. No client, no
//! clock, no decision lives here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod amount;
pub mod budget;
pub mod cap;
pub mod chain;
pub mod claim;
pub mod command;
pub mod commit;
pub mod event;
pub mod ids;
pub mod meter;
pub mod names;
pub mod neuron;
pub mod position;
pub mod price;
pub mod scope;
pub mod setting;
pub mod skipped;
pub mod time;
pub mod usage;
pub mod window;
pub mod wire;
