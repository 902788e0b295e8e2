//! The gateway: OpenAI- and Anthropic-compatible HTTP in front of any upstream, with hard spend caps.
//!
//! A request is bounded, reserved, and only then dispatched; it is settled before the last byte of
//! its answer is let go. Every decision is the ledger's: here is no counter that could disagree with
//! it. Not here: NATS, TOML, vendor JSON, the process.
//!
//! A request passes rooms, in this order: `receive`, `plan` (with `upstream` and `bound`), `gate`, `run`.
//! `routes` leads it through them, `server` puts them together in `app`; `config`, `clock`, `metrics`,
//! `error` and `ready` know none of them. `scripts/check_layers.py` proves who looks into whom.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// the way of a request
mod receive;

mod bound;
mod plan;
mod threads;
mod upstream;

mod gate;
mod repeats;

mod run;

// who leads it there
mod app;
mod routes;
mod server;

// what all of them may look into
mod clock;
pub mod config;
mod error;
mod metrics;
mod ready;

pub use clock::{Clock, system_clock};
pub use config::{
    Aspect, AudioLimit, Class, DeploymentConfig, Dialect, GatewayConfig, ImageLimit, ImageRule,
    KeyEntry, KeySecret, KeyTable, MaxField, MediaLimits, OnDisconnect, PricedClass, Prices,
    Profile, Provided, TokenizerName, UpstreamConfig, UpstreamModel,
};
pub use ready::{Cause, Readiness, Reason, Room};
pub use repeats::{FirstUseFailure, FirstUseStore};
pub use server::{Gateway, GatewayError, Parts};
pub use threads::{ThreadFailure, ThreadStore};
pub use upstream::catalog::UnreadTokenizer;
