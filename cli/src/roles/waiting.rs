//! A start that waits says so: whoever looks at the log sees for what.

use std::{future::Future, time::Duration};

use tracing::warn;

/// How often it is said.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Waits for `done`, and says every [`TOLD_EVERY`] that it does.
pub(super) async fn told<T>(what: &str, done: impl Future<Output = T>) -> T {
    let telling = async {
        loop {
            tokio::time::sleep(TOLD_EVERY).await;
            warn!("the start still waits for {what}");
        }
    };
    tokio::select! {
        done = done => done,
        never = telling => never,
    }
}
