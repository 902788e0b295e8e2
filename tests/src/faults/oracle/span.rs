//! Over which time a key's limit counts, as the oracle understands it: the rule of docs and no code of
//! the product.

/// Slots of a rolling window: what is spent in one leaves with its end.
const SLOTS: u64 = 60;
const DAY_MS: u64 = 86_400_000;

/// Over which time a limit counts. Spend belongs to the moment of its reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::faults) enum Span {
    /// For ever.
    Balance,
    /// The last so many milliseconds.
    Rolling(u64),
    /// The day by UTC.
    Day,
}

impl Span {
    /// Whether spend of `reserved_ms` must still count at `at_ms`.
    pub(super) fn counts(self, reserved_ms: u64, at_ms: u64) -> bool {
        match self {
            Self::Balance => true,
            Self::Rolling(length_ms) => reserved_ms + length_ms > at_ms,
            Self::Day => reserved_ms / DAY_MS >= at_ms / DAY_MS,
        }
    }

    /// Whether it may, so that a refusal may rest on it: a slot leaves as a whole.
    pub(super) fn may_count(self, reserved_ms: u64, at_ms: u64) -> bool {
        match self {
            Self::Rolling(length_ms) => {
                Self::Rolling(length_ms + length_ms.div_ceil(SLOTS)).counts(reserved_ms, at_ms)
            }
            Self::Balance | Self::Day => self.counts(reserved_ms, at_ms),
        }
    }

    /// Whether what is shown as spent does not depend on when somebody looks.
    pub(in crate::faults) fn stands_still(self) -> bool {
        !matches!(self, Self::Rolling(_))
    }
}
