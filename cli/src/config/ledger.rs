//! `[ledger]`: how the writers of this process treat what nobody ends.

use seatbelt_ledger::settings::{CLOCK_SKEW_MAX_MS, EXPIRY_GRACE_MS, LedgerSettings};

use super::reader::Section;

pub(super) fn read(mut section: Section) -> LedgerSettings {
    let ledger = LedgerSettings {
        expiry_grace_ms: section.setting("expiry_grace_ms", EXPIRY_GRACE_MS),
        clock_skew_max: section.millis("clock_skew_max_ms", CLOCK_SKEW_MAX_MS),
    };
    section.finish();
    ledger
}
