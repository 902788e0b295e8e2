//! `[ledger]`: how the writers of this process treat what nobody ends.

use std::time::Duration;

// the audit calls an expiry missing only after the longest grace that can be set here
use seatbelt_ledger::audit::EXPIRY_GRACE_MS_MAX;

use super::{gateway::millis, reader::Section};

/// `[ledger]`
#[derive(Debug, Clone)]
pub struct Ledger {
    /// How long after its deadline a reservation is left alone before it ends by its policy.
    pub expiry_grace: Duration,
}

impl Ledger {
    pub(super) fn read(mut section: Section) -> Self {
        let ledger = Self {
            expiry_grace: millis(
                &mut section,
                "expiry_grace_ms",
                0,
                EXPIRY_GRACE_MS_MAX,
                5000,
            ),
        };
        section.finish();
        ledger
    }
}
