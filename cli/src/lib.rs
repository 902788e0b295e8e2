//! What the binary `seatbelt` is made of: configuration, the embedded server, the roles and the audit.
//!
//! The only crate that knows all the others, and starts each of them in one place. It decides nothing
//! about spend and speaks no dialect; reading the command line and printing errors are the binary's.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod audit;
pub mod config;
pub mod declared;
pub mod ledger;
pub mod logging;
pub mod login;
pub mod nats;
pub mod nats_server;
pub mod prices;
pub mod roles;
pub mod signals;
