//! The tools of one gateway: what its routes reach for, made once at its start.
//!
//! Nothing is done here, and only routes and the server know of it.

use std::sync::{Arc, atomic::AtomicBool};

use seatbelt_ledger::api::{Snapshots, UsageEvents};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Clock, config::GatewayConfig, gate::Gate, metrics::Metrics, receive::caller::Keyring,
    upstream::catalog::Catalog,
};

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) keyring: Keyring,
    pub(crate) catalog: Catalog,
    pub(crate) gate: Arc<Gate>,
    pub(crate) client: reqwest::Client,
    pub(crate) snapshots: Arc<dyn Snapshots>,
    pub(crate) usage: Arc<dyn UsageEvents>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) tracker: TaskTracker,
    /// Requests in progress may not wait any longer.
    pub(crate) cut: CancellationToken,
    pub(crate) draining: AtomicBool,
    pub(crate) ready: watch::Receiver<Vec<String>>,
}

/// The id of a request, in its answer and in the log.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);
