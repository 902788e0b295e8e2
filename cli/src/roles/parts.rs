//! The parts that run beside each other, each with its own stop, ended one after another.

use std::{future::Future, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::RoleError;

/// Most parts of one process.
const PARTS_MAX: usize = 16;
/// How long each part may take to end, also where those before it took all the time there was.
const PART_MIN: Duration = Duration::from_secs(2);

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

    /// Stops all, the newest first, and cuts off what is not done `within` that time, whatever the store
    /// does; the first reason why one did not end well.
    pub(super) async fn stop(mut self, within: Duration) -> Result<(), RoleError> {
        let mut outcome = Ok(());
        let all_by = Instant::now() + within;
        while let Some(mut part) = self.parts.pop() {
            part.stop.cancel();
            let by = all_by.max(Instant::now() + PART_MIN);
            let ended = match timeout_at(by, &mut part.task).await {
                Ok(ended) => ended.unwrap_or_else(|source| {
                    Err(RoleError::Crashed {
                        part: part.name,
                        source,
                    })
                }),
                Err(_) => {
                    part.task.abort();
                    let part = part.name;
                    error!(part, "did not end in time and is cut off");
                    Err(RoleError::Late { part })
                }
            };
            if outcome.is_ok() {
                outcome = ended;
            }
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_part_that_does_not_end_is_cut_off_and_the_others_end_in_order() {
        let mut running = Running::new();
        let (told, mut ended) = mpsc::channel(1);
        let stop = CancellationToken::new();
        running.add("good", stop.clone(), async move {
            stop.cancelled().await;
            let _ = told.send(Instant::now()).await;
            Ok(())
        });
        running.add("stuck", CancellationToken::new(), std::future::pending());
        let begun = Instant::now();
        let within = Duration::from_secs(30);
        let outcome = running.stop(within).await;
        assert!(matches!(outcome, Err(RoleError::Late { part: "stuck" })));
        assert_eq!(ended.recv().await, Some(begun + within));
    }
}
