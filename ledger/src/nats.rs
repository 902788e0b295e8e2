//! Everything that knows NATS and JetStream: connection, journal, snapshots, feed, usage, neurons,
//! leases and the request path between processes.
//!
//! Promises: names are those of `seatbelt_schemas::names`; a setting of a stream that differs from
//! what the ledger relies on is an error that names it; every wait is bounded; no password or token
//! is ever part of an error or a log line. Not here: any decision.

pub mod connect;
pub mod journal;

mod cursor;
mod stream;

pub use connect::{ConnectError, Nats, connect};
pub use journal::NatsJournal;
pub use stream::ProvisionError;
