//! What the binary `seatbelt` is made of: configuration, the embedded server, the roles and the audit.
//!
//! The only crate that knows all the others, and starts each of them in one place. It decides nothing
//! about spend and speaks no dialect; reading the command line and printing errors are the binary's.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// what it is told
pub mod config;

// what it runs
pub mod roles;

pub mod declared;
pub mod logging;
pub mod login;
pub mod nats_server;
pub mod signals;

// what an operator asks
pub mod audit;
pub mod ledger;
pub mod nats;
pub mod prices;
