//! The parts that run beside each other, each with its own stop, ended one after another.

use std::future::Future;

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use super::RoleError;

/// Most parts of one process.
const PARTS_MAX: usize = 16;

/// One part.
struct Part {
    name: &'static str,
    stop: CancellationToken,
    task: JoinHandle<Result<(), RoleError>>,
}

/// All parts of this process, in the order in which they are stopped.
pub(super) struct Running {
    parts: Vec<Part>,
    ended: mpsc::Sender<&'static str>,
    endings: mpsc::Receiver<&'static str>,
}

impl Running {
    pub(super) fn new() -> Self {
        let (ended, endings) = mpsc::channel(PARTS_MAX);
        Self {
            parts: Vec::new(),
            ended,
            endings,
        }
    }

    /// Starts a part, to be stopped by its own token before all that were started earlier.
    pub(super) fn add<F>(&mut self, name: &'static str, stop: CancellationToken, part: F)
    where
        F: Future<Output = Result<(), RoleError>> + Send + 'static,
    {
        let ended = self.ended.clone();
        let task = tokio::spawn(async move {
            let outcome = part.await;
            // nobody listens any more once the end was asked for
            let _ = ended.try_send(name);
            outcome
        });
        self.parts.push(Part { name, stop, task });
    }

    /// Waits until a part ends that was not asked to, and names it.
    pub(super) async fn any_ended(&mut self) -> &'static str {
        let name = self.endings.recv().await;
        name.expect("a sender lives here, in the same value")
    }

    /// Stops all, the newest first; the first reason why one did not end well.
    pub(super) async fn stop(mut self) -> Result<(), RoleError> {
        let mut outcome = Ok(());
        while let Some(part) = self.parts.pop() {
            part.stop.cancel();
            let ended = part.task.await.unwrap_or_else(|source| {
                Err(RoleError::Crashed {
                    part: part.name,
                    source,
                })
            });
            if outcome.is_ok() {
                outcome = ended;
            }
        }
        outcome
    }
}
