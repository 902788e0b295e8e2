//! The tools of one gateway: what its routes reach for, made once at its start.
//!
//! Nothing is done here, and only routes and the server know of it.

use std::sync::{Arc, atomic::AtomicBool};

use seatbelt_ledger::api::{Neurons, Snapshots};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::Clock,
    config::{GatewayConfig, Prices},
    gate::Gate,
    metrics::Metrics,
    plan::Planner,
    ready::Readiness,
    receive::{Receiver, caller::Keyring},
    repeats::Repeats,
    run::Runner,
    upstream::catalog::Catalog,
};

/// What all requests share.
pub(crate) struct App {
    pub(crate) config: GatewayConfig,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) prices: watch::Receiver<Prices>,
    pub(crate) catalog: Arc<Catalog>,
    /// Those alive now.
    pub(crate) neurons: Neurons,
    pub(crate) gate: Arc<Gate>,
    pub(crate) snapshots: Arc<dyn Snapshots>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    /// The way of a request that costs, step by step.
    pub(crate) receiver: Receiver,
    pub(crate) repeats: Arc<Repeats>,
    pub(crate) planner: Arc<Planner>,
    pub(crate) runner: Arc<Runner>,
    /// Every task that outlives its connection.
    pub(crate) tracker: TaskTracker,
    /// Requests in progress may not wait any longer.
    pub(crate) cut: CancellationToken,
    pub(crate) draining: AtomicBool,
    pub(crate) ready: watch::Receiver<Readiness>,
}
