//! The clocks, read in one place: the wall clock for what is told to others, and one that never goes
//! back for what is measured. Tests bring their own of the latter.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Tells moments to measure by.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Instant + Send + Sync>);

impl Clock {
    pub(crate) fn system() -> Self {
        Self(Arc::new(Instant::now))
    }

    #[cfg(test)]
    pub(crate) fn of(tell: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn now(&self) -> Instant {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    millis(since)
}

/// When the wall clock will show `at_ms`, by a clock that nobody sets; none beyond what can be told.
pub(crate) fn moment(at_ms: u64) -> Option<Instant> {
    let left = Duration::from_millis(at_ms.saturating_sub(unix_ms()));
    Instant::now().checked_add(left)
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
