//! `[ledger]`: how the writers of this process treat what nobody ends.

use std::time::Duration;

// the audit calls an expiry missing only after the longest grace that can be set here
use seatbelt_ledger::{
    audit::EXPIRY_GRACE_MS_MAX,
    host::skew::{SKEW_MAX_DEFAULT, SKEW_MAX_LEAST, SKEW_MAX_MOST},
};

use super::{gateway::millis, reader::Section};

/// `[ledger]`
#[derive(Debug, Clone)]
pub struct Ledger {
    /// How long after its deadline a reservation is left alone before it ends by its policy.
    pub expiry_grace: Duration,
    /// How far this machine's clock may be from the server's for it to lead a partition.
    pub clock_skew_max: Duration,
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
            clock_skew_max: millis(
                &mut section,
                "clock_skew_max_ms",
                whole_ms(SKEW_MAX_LEAST),
                whole_ms(SKEW_MAX_MOST),
                whole_ms(SKEW_MAX_DEFAULT),
            ),
        };
        section.finish();
        ledger
    }
}

fn whole_ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
