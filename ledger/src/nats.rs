//! Everything that knows NATS and JetStream: connection, journal, snapshots, feed, usage, neurons.
//!
//! Promises: names are those of `seatbelt_schemas::names`; a setting of a stream that differs from
//! what the ledger relies on is an error that names it; every wait is bounded; no password or token
//! is ever part of an error or a log line. Not here: any decision.

pub mod adopt;
pub mod begun;
pub mod bucket;
pub mod connect;
pub mod durability;
pub mod feed;
pub mod journal;
pub mod neurons;
pub mod provision;
pub mod rebuild;
pub mod roles;
pub mod skip;
pub mod snapshots;
pub mod store_look;
pub mod usage;
pub mod vital;

mod cursor;
mod leases;
mod neuron_secret;
mod post;
mod publish;
mod stream;

pub use begun::{Doubt, Known, OpenError, Witnesses};
pub use bucket::Bucket;
pub use connect::{ConnectError, Denied, Identity, InvalidLogin, Nats, connect, connect_as};
pub use durability::{Durability, DurabilityError, Proof, prove};
pub use feed::{FeedEntry, FeedMessage, FeedState, FeedStream};
pub use journal::NatsJournal;
pub use leases::LeaseBucket;
pub use neuron_secret::neuron_secret;
pub use neurons::watch_neurons;
pub use provision::{GenesisError, Layout, Meta, meta, provision};
pub use roles::{NatsRole, Permissions};
pub use snapshots::snapshot_bucket;
pub use store_look::{Look, StoreLook, Stored, Writes};
pub use stream::ProvisionError;
pub use usage::{NatsUsageEvents, follow_usage, usage_end};
