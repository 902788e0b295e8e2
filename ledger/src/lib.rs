//! The spend ledger: pure decisions, the partition writer, and the journals it appends to.
//!
//! `decide`, `account` and what they look into are pure: no async, no clock, no client. `writer` is a state
//! machine without I/O, driven by `host`. `nats` implements the traits of this crate on NATS, by means
//! of `seatbelt_bus`. No HTTP and no vendor format is known here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// what is asked of it
pub mod api;
pub mod settings;

// what decides
pub mod account;
pub mod counter;
pub mod decide;
mod hashing;
pub mod outcomes;
pub mod partition;
pub mod prices;

// who decides, and where
pub mod cluster;
pub mod host;
pub mod lease;
pub mod remote;
mod shares;
pub mod writer;

// what is kept
pub mod directory;
pub mod journal;
pub mod lookup;
pub mod nats;
pub mod recovery;
pub mod resume;
pub mod snapshot;
pub mod store;

// who reads along
pub mod audit;
pub mod repository;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use seatbelt_bus::Pauses;
