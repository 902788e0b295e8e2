//! The clocks, read in one place: the wall clock for what is told to others, the time that deadlines are told in,
//! and one that never goes back for what is measured. Tests bring their own of the latter.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use seatbelt_bus::ServerTime;

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

/// The time that gateways name deadlines in: nats-server's. This machine's own where there is no such server: a
/// neuron whose clock is off would take every call for one that is late, or that nobody can mean.
#[derive(Debug, Clone)]
pub(crate) enum SharedTime {
    Server(Arc<ServerTime>),
    Own,
}

impl SharedTime {
    /// Milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> u64 {
        match self {
            Self::Server(time) => time.now_ms(),
            Self::Own => unix_ms(),
        }
    }

    /// When it will be `at_ms`, by a clock that nobody sets; none beyond what can be told.
    pub(crate) fn moment(&self, at_ms: u64) -> Option<Instant> {
        let left = Duration::from_millis(at_ms.saturating_sub(self.now_ms()));
        Instant::now().checked_add(left)
    }

    /// That this machine's clock is off, for people.
    pub(crate) fn warning(&self) -> Option<String> {
        match self {
            Self::Server(time) => time.warning(),
            Self::Own => None,
        }
    }
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
