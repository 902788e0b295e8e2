//! What an operator may say of the ledger's writers, with bounds and defaults.

use std::time::Duration;

use seatbelt_schemas::setting::Setting;

use crate::{
    audit::EXPIRY_GRACE_MS_MAX,
    host::skew::{SKEW_MAX_DEFAULT, SKEW_MAX_LEAST, SKEW_MAX_MOST},
};

/// How long after its deadline a reservation is left alone before it ends by its policy. The audit calls an
/// expiry missing only after the longest that can be set here.
pub const EXPIRY_GRACE_MS: Setting = Setting::new(0, EXPIRY_GRACE_MS_MAX, 5000);
/// How far this machine's clock may be from the server's for it to lead a partition.
pub const CLOCK_SKEW_MAX_MS: Setting = Setting::new(
    1000 * SKEW_MAX_LEAST.as_secs(),
    1000 * SKEW_MAX_MOST.as_secs(),
    1000 * SKEW_MAX_DEFAULT.as_secs(),
);

/// `[ledger]`
#[derive(Debug, Clone)]
pub struct LedgerSettings {
    /// [`EXPIRY_GRACE_MS`]
    pub expiry_grace_ms: u64,
    /// [`CLOCK_SKEW_MAX_MS`]
    pub clock_skew_max: Duration,
}
