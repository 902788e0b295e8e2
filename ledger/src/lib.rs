//! The spend ledger: pure decisions, the partition writer, and the journals it appends to.
//!
//! `decide`, `state` and `account` are pure: no async, no clock, no client. `writer` is a state
//! machine without I/O, driven by `host`. `nats` implements the traits of this crate on NATS, by means
//! of `seatbelt_bus`. No HTTP and no vendor format is known here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod account;
pub mod api;
pub mod audit;
pub mod cluster;
pub mod counter;
pub mod decide;
pub mod directory;
pub mod host;
pub mod journal;
pub mod lease;
pub mod lookup;
pub mod nats;
pub mod outcomes;
pub mod partition;
pub mod prices;
pub mod recovery;
pub mod remote;
pub mod repository;
pub mod resume;
pub mod settings;
mod shares;
pub mod snapshot;
pub mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod writer;

pub use seatbelt_bus::Pauses;
