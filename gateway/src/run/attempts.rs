//! One sending of a request, and what may end it before its upstream does.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use axum::http::header;
use bytes::Bytes;
use seatbelt_schemas::chain::in_one_line;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{Head, Job};
use crate::{
    clock::ms,
    metrics::Stage,
    upstream::{Candidate, answer::unreadable, handed::with_body},
};

const LOST: &str = "it is not registered any more and does not answer";

/// What may end a request before its upstream does.
pub(super) struct Limits {
    /// The upstream's work ends when the client leaves.
    pub(super) ends_with_client: bool,
    pub(super) deadline: Instant,
    /// The upstream has been silent for too long.
    pub(super) idle: Idle,
    /// The gateway may not wait any longer.
    pub(super) cut: CancellationToken,
    /// Nothing is to be heard from the upstream any more.
    pub(super) lost: CancellationToken,
}

/// How long an upstream may be silent, and since when it is; whoever waits for it may turn to something else
/// in between.
#[derive(Debug)]
pub(super) struct Idle {
    most: Duration,
    heard: Mutex<Instant>,
}

impl Idle {
    pub(super) fn of(most: Duration) -> Self {
        Self {
            most,
            heard: Mutex::new(Instant::now()),
        }
    }

    fn heard_now(&self) {
        *self.lock() = Instant::now();
    }

    /// When it is over.
    fn ends(&self) -> Instant {
        *self.lock() + self.most
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.heard.lock().expect("no holder of the lock panics")
    }
}

/// Why the upstream was not heard to its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// It was never reached: nothing was used.
    Unreachable(String),
    Broke(String),
    ClientLeft,
    Deadline,
    /// The gateway stops and may not wait any longer.
    Cut,
    /// It said so itself, within its stream.
    Failed,
}

impl Job {
    /// Sends what is to be sent, once.
    pub(super) async fn dispatch(&mut self, head: &mut Head) -> Result<reqwest::Response, Stop> {
        let attempt = self.attempt.take().expect("an attempt is dispatched once");
        if let Candidate::Foreign(chosen, _) = &self.candidate {
            chosen.asked(Instant::now());
        }
        if let (Some(slices), Candidate::Neuron(neuron)) = (&self.slices, &self.candidate) {
            slices.runs_at(neuron);
        }
        let request = self.client.post(attempt.url).headers(attempt.headers);
        let (request, left) = with_body(request, attempt.body);
        let sent = request.send();
        let answered = self.limits.unless_stopped(sent, head.closed()).await;
        self.tell_outcome(&answered);
        match answered? {
            Ok(answer) => {
                self.limits.idle.heard_now();
                self.first_byte_ms = ms(self.began.elapsed());
                self.metrics
                    .stage(Stage::UpstreamFirstByte, self.began.elapsed());
                Ok(answer)
            }
            // whoever never had all of a request did nothing for it
            Err(error) if error.is_connect() || left.any() => {
                Err(Stop::Unreachable(in_one_line(&error)))
            }
            Err(error) => Err(Stop::Broke(in_one_line(&error))),
        }
    }

    pub(super) fn is_stream(&self, answer: &reqwest::Response) -> bool {
        self.stream
            && answer.status().is_success()
            && is_event_stream(answer)
            && unreadable(answer).is_none()
    }
}

impl Limits {
    /// Waits for `work`, at most until the client is gone (where that ends the work), the deadline has
    /// passed, or the gateway may not wait.
    pub(super) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = T>,
        gone: impl Future<Output = ()>,
    ) -> Result<T, Stop> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = gone, if self.ends_with_client => Err(Stop::ClientLeft),
            () = sleep_until(self.deadline) => Err(Stop::Deadline),
            () = self.cut.cancelled() => Err(Stop::Cut),
            () = self.lost.cancelled() => Err(Stop::Broke(LOST.to_owned())),
        }
    }

    /// The next piece of an answer; nothing at its end.
    pub(super) async fn chunk(
        &self,
        answer: &mut reqwest::Response,
        gone: impl Future<Output = ()>,
    ) -> Result<Option<Bytes>, Stop> {
        let silence = sleep_until(self.idle.ends());
        let chunk = tokio::select! {
            biased;
            chunk = self.unless_stopped(answer.chunk(), gone) => chunk?,
            () = silence => {
                let silent_s = self.idle.most.as_secs_f64();
                return Err(Stop::Broke(format!("it sent nothing for {silent_s} s")));
            }
        };
        self.idle.heard_now();
        chunk.map_err(|error| Stop::Broke(in_one_line(&error)))
    }
}

fn is_event_stream(answer: &reqwest::Response) -> bool {
    answer
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| {
            kind.trim_start()
                .to_ascii_lowercase()
                .starts_with("text/event-stream")
        })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    fn limits(ends_with_client: bool) -> Limits {
        Limits {
            ends_with_client,
            deadline: Instant::now() + Duration::from_secs(3600),
            idle: Idle::of(Duration::from_secs(3600)),
            cut: CancellationToken::new(),
            lost: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_only_what_ends_with_it() {
        let ended = limits(true)
            .unless_stopped(pending::<()>(), ready(()))
            .await;
        assert!(matches!(ended, Err(Stop::ClientLeft)));
        let mut past = limits(false);
        past.deadline = Instant::now();
        let goes_on = past.unless_stopped(pending::<()>(), ready(())).await;
        assert!(matches!(goes_on, Err(Stop::Deadline)));
    }

    #[tokio::test]
    async fn what_is_cut_waits_no_longer_and_what_is_done_counts_all_the_same() {
        let limits = limits(true);
        limits.cut.cancel();
        let cut = limits.unless_stopped(pending::<()>(), pending()).await;
        assert!(matches!(cut, Err(Stop::Cut)));
        let done = limits.unless_stopped(ready(5), ready(())).await;
        assert!(matches!(done, Ok(5)), "an answer that is there is taken");
    }
}
