//! Another attempt at an upstream, after one for which nothing was done: it was not reached, or turned the
//! request away (429, 503, 529) without telling of any use. The reservation stays as it is: all deployments
//! serve the model at the same price, and only one attempt can have used something.
//!
//! Nothing has reached the client by then. What may have been worked on is sent to nobody else. Another
//! deployment is asked at once; where there is none in order, the time that the upstream named is waited
//! for, if the request's own deadline leaves room for it.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, StatusCode, header},
};
use seatbelt_dialects::Told;
use tokio::time::{Instant, sleep};

use super::{Head, Job, attempts::Stop};
use crate::{
    error::Seldom,
    upstream::{Attempt, Candidate, catalog::Catalog, health::Outcome},
};

/// How often the request was sent, where that was more than once.
const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-seatbelt-attempts");
/// How long to wait for one that names no time, before it is asked the second time; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// What has to be left of the request's time after a pause.
pub(super) const WORTH: Duration = Duration::from_secs(1);

/// What it takes to send a request again.
pub(super) struct Again {
    catalog: Arc<Catalog>,
    /// The client's.
    headers: HeaderMap,
    body: Bytes,
    most: u8,
    /// Who was asked, in order.
    tried: Vec<String>,
}

impl Again {
    pub(super) fn of(
        catalog: &Arc<Catalog>,
        candidate: &Candidate,
        headers: &HeaderMap,
        first: &Attempt,
    ) -> Option<Self> {
        let Candidate::Foreign(upstream, _) = candidate else {
            return None;
        };
        (upstream.attempts > 1).then(|| Self {
            catalog: Arc::clone(catalog),
            headers: headers.clone(),
            body: first.body.clone(),
            most: upstream.attempts,
            tried: Vec::new(),
        })
    }
}

pub(super) type Answered = Result<reqwest::Response, Stop>;

impl Job {
    /// Whether the request is to be sent once more; what came of the last time is given back as it was.
    pub(super) async fn tries_again(
        &mut self,
        answered: Answered,
        head: &mut Head,
    ) -> (Answered, bool) {
        let Some(mut again) = self.again.take() else {
            return (answered, false);
        };
        again.tried.push(self.upstream.clone());
        if again.tried.len() >= usize::from(again.most) {
            return (answered, false);
        }
        let (answered, unused) = self.is_unused(answered, head).await;
        let tries_again = unused && self.turns_to_another(&mut again, &answered, head).await;
        if tries_again {
            self.metrics.attempt_again();
            let attempts = again.tried.len() + 1;
            self.headers.insert(X_ATTEMPTS, attempts.into());
            self.again = Some(again);
        }
        (answered, tries_again)
    }

    /// Whether nothing was done for the request, for certain; what told it, with its body read.
    pub(super) async fn is_unused(
        &mut self,
        answered: Answered,
        head: &mut Head,
    ) -> (Answered, bool) {
        let mut answer = match answered {
            Ok(answer) if turns_away(answer.status()) => answer,
            Ok(answer) => return (Ok(answer), false),
            Err(stop) => {
                let unused = matches!(stop, Stop::Unreachable(_));
                return (Err(stop), unused);
            }
        };
        let (body, stop) = self.limits.collect(&mut answer, head).await;
        let read = || Told::read(self.api, self.sent, &body);
        let told = read().unwrap_or_else(|| Told::unread(self.api, self.sent, &body));
        let unused = stop.is_none() && told.usage.is_none() && told.least.is_nothing();
        (Ok(with_body(&answer, body)), unused)
    }

    /// Chooses who is asked next, and waits for it where it has to be; false where nobody is.
    async fn turns_to_another(
        &mut self,
        again: &mut Again,
        answered: &Answered,
        head: &mut Head,
    ) -> bool {
        static TOLD: LazyLock<Seldom> = LazyLock::new(Seldom::default);
        let Candidate::Foreign(_, model) = &self.candidate else {
            return false;
        };
        let model = Arc::clone(model);
        let catalog = Arc::clone(&again.catalog);
        let Some(places) = catalog.deployments(&model.told.id) else {
            return false;
        };
        let another = match places.another(&again.tried, Instant::now()) {
            Some(another) => another,
            None => {
                let told = answered
                    .as_ref()
                    .ok()
                    .and_then(|answer| retry_after(answer.headers()));
                let doubled = PAUSE_FIRST.saturating_mul(1 << (again.tried.len() - 1).min(8));
                let pause = told.unwrap_or(doubled);
                if Instant::now() + pause + WORTH > self.limits.deadline {
                    return false;
                }
                let waited = self.limits.unless_stopped(sleep(pause), head.closed());
                if waited.await.is_err() || head.is_closed() {
                    return false;
                }
                places.choose(&again.tried, Instant::now())
            }
        };
        if let Some(left_out) = TOLD.note(&self.upstream, std::time::Instant::now()) {
            tracing::warn!(
                upstream = %self.upstream, next = %another.name, left_out,
                "an upstream did nothing for a request: it is sent again"
            );
        }
        let body = again.body.clone();
        self.attempt = Some(Attempt::to(&another, self.api, &again.headers, body));
        self.candidate = Candidate::Foreign(another, model);
        self.upstream = self.candidate.name();
        true
    }

    /// Tells what came of an attempt to whoever chooses the next.
    pub(super) fn tell_outcome(
        &self,
        answered: &Result<Result<reqwest::Response, reqwest::Error>, Stop>,
    ) {
        let Candidate::Foreign(chosen, _) = &self.candidate else {
            return;
        };
        let outcome = match answered {
            Ok(Ok(answer)) => outcome(answer.status(), answer.headers()),
            Ok(Err(_)) | Err(Stop::Deadline) => Outcome::Ill { retry_after: None },
            Err(_) => Outcome::Unknown,
        };
        chosen.told(outcome, Instant::now());
    }
}

/// Whether an answer of this status comes before any work.
fn turns_away(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 503 | 529)
}

/// What an answer says of who gave it: errors of a request are well said, and what is wrong with the
/// operator's key is wrong with every request.
fn outcome(status: StatusCode, headers: &HeaderMap) -> Outcome {
    if turns_away(status) {
        let retry_after = retry_after(headers);
        return Outcome::Ill { retry_after };
    }
    let is_ill = status.is_server_error() || matches!(status.as_u16(), 401..=403 | 408);
    match is_ill {
        true => Outcome::Ill { retry_after: None },
        false => Outcome::Well,
    }
}

/// The time that an upstream names, where it is in seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let told = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    told.trim().parse().ok().map(Duration::from_secs)
}

/// An answer as it came, its body read.
fn with_body(answer: &reqwest::Response, body: Bytes) -> reqwest::Response {
    let mut read = axum::http::Response::new(body);
    *read.status_mut() = answer.status();
    *read.headers_mut() = answer.headers().clone();
    read.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_named_is_read_where_it_is_seconds() {
        let read = |told: &str| {
            let value = told.parse().unwrap();
            retry_after(&HeaderMap::from_iter([(header::RETRY_AFTER, value)]))
        };
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read(" 0 "), Some(Duration::ZERO));
        for odd in ["-1", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT", ""] {
            assert_eq!(read(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn an_answer_says_something_of_the_request_or_of_who_gave_it() {
        let none = HeaderMap::new();
        let of = |status: u16| outcome(StatusCode::from_u16(status).unwrap(), &none);
        for well in [200, 400, 404, 413, 422] {
            assert_eq!(of(well), Outcome::Well, "{well}");
        }
        for ill in [401, 402, 403, 408, 429, 500, 502, 503, 504, 529] {
            assert_eq!(of(ill), Outcome::Ill { retry_after: None }, "{ill}");
        }
    }
}
