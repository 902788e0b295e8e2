//! What the ledger keeps on NATS, by means of `seatbelt_bus`: journals, snapshots, leases and the request
//! path between processes.
//!
//! Not here: any decision, nor how NATS is spoken.

pub mod adopt;
pub mod begin;
pub mod begun;
mod cluster;
pub mod journal;
pub mod rebuild;
pub mod skip;

mod fed;
mod leases;
mod post;
mod snapshots;
mod usage;

pub use begin::begin_journals;
pub use begun::{Doubt, OpenError, Sighting, Witnesses};
pub use cluster::ClusterConfig;
pub use journal::NatsJournal;
pub use leases::LeaseBucket;
