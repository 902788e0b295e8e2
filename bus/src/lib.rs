//! Everything that knows NATS and JetStream: the connection, streams and buckets with the settings of each,
//! publishing, reading in order, who may do what, and what only exists there (the feed, usage events,
//! registrations of neurons, the ledger's facts).
//!
//! Promises: names are those of `seatbelt_schemas::names`; a setting of a stream that differs from
//! what the ledger relies on is an error that names it; every wait is bounded; no password or token
//! is ever part of an error or a log line. Not here: any decision, and what a journal is.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// the connection, and who may do what over it
pub mod connect;
pub mod roles;

// streams and buckets: their settings, and how each is made
pub mod bucket;
pub mod buckets;
pub mod kept;
pub mod provision;
pub mod settings;
pub mod stream;

// to write, to read, to ask, to try again
pub mod cursor;
pub mod pauses;
pub mod post;
pub mod publish;

// whether what is written stays, and by whose clock
mod ailing;
pub mod durability;
mod left_over;
pub mod server_time;
pub mod store_look;
pub mod vital;

// what there is on NATS alone
pub mod feed;
pub mod feed_look;
pub mod first_uses;
pub mod neuron_secret;
pub mod neurons;
pub mod register;
pub mod report;
pub mod threads;
pub mod usage;

pub use bucket::Bucket;
pub use buckets::{lease_bucket, meta_bucket, neuron_bucket, snapshot_bucket};
pub use connect::{
    ConnectError, Denied, Identity, InvalidLogin, Nats, connect, connect_as, is_ready,
};
pub use durability::{Durability, DurabilityError, Proof, prove};
pub use feed::{FeedEntry, FeedMessage, FeedState, FeedStream};
pub use feed_look::{FedMessage, FeedLook};
pub use first_uses::{FirstUseError, FirstUses};
pub use neuron_secret::neuron_secret;
pub use neurons::watch_neurons;
pub use pauses::Pauses;
pub use provision::{GenesisError, Layout, Meta, meta, provision};
pub use register::{Register, Twin, Unseen};
pub use report::UsageReports;
pub use roles::{NatsRole, Permissions};
pub use server_time::ServerTime;
pub use settings::Settings;
pub use store_look::{StoreFill, StoreLook, StoreSeen, Writes};
pub use stream::ProvisionError;
pub use threads::{ThreadError, Threads};
pub use usage::{NatsUsageEvents, follow_usage, usage_end};
