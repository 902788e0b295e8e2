//! Waiting on conditions, never for a fixed time.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a condition may take to hold, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` finds something; fails the test with `what` after [`PATIENCE`].
#[track_caller]
pub fn until<T, F: Future<Output = Option<T>>>(
    what: impl Into<String>,
    look: impl FnMut() -> F,
) -> impl Future<Output = T> {
    until_within(PATIENCE, what, look)
}

/// As [`until`], with another patience.
#[track_caller]
pub fn until_within<T, F: Future<Output = Option<T>>>(
    patience: Duration,
    what: impl Into<String>,
    mut look: impl FnMut() -> F,
) -> impl Future<Output = T> {
    let what = what.into();
    let caller = std::panic::Location::caller();
    let deadline = Instant::now() + patience;
    async move {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "waited {patience:?} at {caller} until {what}"
            );
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
