//! Names and shapes that Seatbelt puts on the wire: ids, amounts, caps, prices, events, commits,
//! commands and their outcomes, and the names of streams, subjects and buckets.
//!
//! What is written here is forever: a field once named keeps its name, new fields are optional, and
//! unknown fields and kinds are skipped by readers while the stored bytes keep them. No client, no
//! clock, no decision lives here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// who, how much, and when
pub mod amount;
pub mod ids;
pub mod meter;
pub mod scope;
pub mod time;
pub mod window;

// what limits, and what costs
pub mod budget;
pub mod cap;
pub mod price;

// what is asked of a ledger, and what it writes
pub mod claim;
pub mod command;
pub mod commit;
pub mod event;
pub mod position;
pub mod skipped;
pub mod usage;

// how all of it is named and written
pub mod chain;
pub mod first_use;
pub mod json;
pub mod names;
pub mod neuron;
pub mod setting;
pub mod thread;
pub mod wire;
