//! What the ledger keeps on NATS, by means of `seatbelt_bus`: journals, snapshots, leases and the request
//! path between processes.
//!
//! Not here: any decision, nor how NATS is spoken.

pub mod adopt;
pub mod begin;
pub mod begun;
pub mod journal;
pub mod rebuild;
pub mod skip;

mod leases;
mod post;
mod snapshots;
mod usage;

pub use begin::begin_journals;
pub use begun::{Doubt, Known, OpenError, Witnesses};
pub use journal::NatsJournal;
pub use leases::LeaseBucket;
pub use seatbelt_bus::{
    Bucket, ConnectError, Denied, Durability, DurabilityError, FeedEntry, FeedMessage, FeedState,
    FeedStream, GenesisError, Identity, InvalidLogin, Layout, Look, Meta, Nats, NatsRole,
    NatsUsageEvents, Permissions, Proof, ProvisionError, StoreLook, Stored, Writes, bucket,
    connect, connect_as, cursor, durability, feed, follow_usage, lease_bucket, meta, neuron_secret,
    neurons, prove, provision, publish, roles, snapshot_bucket, store_look, stream, usage_end,
    vital, watch_neurons,
};
