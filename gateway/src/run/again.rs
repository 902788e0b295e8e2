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
use seatbelt_schemas::json;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{Head, Job, attempts::Stop};
use crate::{
    error::Seldom,
    plan::Instead,
    upstream::{
        Attempt, Candidate,
        answer::unreadable,
        catalog::Catalog,
        deployments::Chosen,
        health::{Outcome, Who},
    },
};

/// How often the request was sent, where that was more than once.
const X_ATTEMPTS: HeaderName = HeaderName::from_static("x-seatbelt-attempts");
/// How long to wait for one that names no time, before it is asked the second time; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// Longest time that an upstream may name.
const RETRY_AFTER_S_MAX: u64 = 86_400;
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
            let before = self.headers.clone();
            sent_once_more(&before, &mut self.headers);
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
        if self.cut_short.is_some() || unreadable(&answer).is_some() {
            return (Ok(answer), false);
        }
        let (body, stop) = self.limits.collect(&mut answer, head).await;
        let read = || Told::read(self.api, self.sent, &body);
        let told = read().unwrap_or_else(|| Told::unread(self.api, self.sent, &body));
        let is_nothing = told.usage.is_none() && self.is_nothing(&told.least, &told.served);
        let unused = stop.is_none() && is_nothing && !tells_of_use(&body);
        // what it is worth is told by whoever shows it
        self.cut_short = stop;
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
            // who is asked next is in order, as far as is known
            None if self.names_others() => return false,
            None => {
                let another = places.choose(&again.tried, Instant::now());
                let pause = self.pause_before(&another, again.tried.len(), answered);
                if !self.waits(pause, head).await {
                    return false;
                }
                another
            }
        };
        if head.is_closed() {
            return false;
        }
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

    fn names_others(&self) -> bool {
        self.instead.as_ref().is_some_and(Instead::names_others)
    }

    /// How long to wait for one that is asked although it failed: as it said itself, where it is the one that answered
    /// last.
    fn pause_before(&self, another: &Chosen, tried: usize, answered: &Answered) -> Duration {
        let is_same = another.name == self.upstream;
        let answer = answered.as_ref().ok().filter(|_| is_same);
        let told = answer.and_then(|answer| retry_after(answer.headers()));
        let doubled = PAUSE_FIRST.saturating_mul(1 << (tried.max(1) - 1).min(8));
        // what is only thought to be ill keeps nobody from an answer
        told.unwrap_or(doubled)
    }

    /// Waits, if the request's time leaves room for it; not for a client that leaves, whatever becomes of work:
    /// there is none.
    async fn waits(&mut self, pause: Duration, head: &mut Head) -> bool {
        let left = self
            .limits
            .deadline
            .saturating_duration_since(Instant::now());
        if pause.saturating_add(WORTH) > left {
            return false;
        }
        let waited = self
            .limits
            .unless_stopped(sleep(pause), std::future::pending());
        tokio::select! {
            biased;
            () = head.closed() => false,
            waited = waited => waited.is_ok(),
        }
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
        let account = self.reservation.as_ref().map(|held| &held.account);
        chosen.told(outcome, Who::of(account), Instant::now());
    }
}

/// Says that a request is sent once more than it was before.
pub(super) fn sent_once_more(before: &HeaderMap, now: &mut HeaderMap) {
    let sent = before.get(X_ATTEMPTS).and_then(|sent| sent.to_str().ok());
    let sent: u64 = sent.and_then(|sent| sent.parse().ok()).unwrap_or(1);
    now.insert(X_ATTEMPTS, sent.saturating_add(1).into());
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

/// The time that an upstream names, where it is in seconds: a day at most, so that it can be computed with.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let told = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let told: u64 = told.trim().parse().ok()?;
    Some(Duration::from_secs(told.min(RETRY_AFTER_S_MAX)))
}

/// Whether a body may tell that something was used, in whatever words: another attempt wants certainty.
fn tells_of_use(body: &[u8]) -> bool {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    match json::from_slice(body) {
        Ok(value) => names_use(&value),
        // JSON that is cut, or events
        Err(_) => {
            let begins = body.trim_ascii_start().first();
            let is_event = |line: &[u8]| line.starts_with(b"data:");
            begins.is_some_and(|first| b"{[".contains(first))
                || body.split(|byte| b"\r\n".contains(byte)).any(is_event)
                || body.windows(6).any(|part| part == b"usage\"")
        }
    }
}

/// Whether any field, at any depth, has the name of a report or of a count.
fn names_use(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, value)| {
            let name = name.to_ascii_lowercase();
            let counts = name.contains("usage") || name.contains("tokens");
            (counts && !value.is_null()) || names_use(value)
        }),
        Value::Array(items) => items.iter().any(names_use),
        _ => false,
    }
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
        let most = Duration::from_secs(RETRY_AFTER_S_MAX);
        assert_eq!(read("18446744073709551615"), Some(most));
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

    #[test]
    fn whatever_may_be_a_report_of_use_is_taken_for_one() {
        for told in [
            r#"{"message":{"usage":{"input_tokens":3}}}"#,
            r#"{"error":{"message":"busy","usage":{"prompt_tokens":3}}}"#,
            r#"{"usage":{"input_tokens":"50"}}"#,
            r#"{"usageMetadata":{"totalTokenCount":50}}"#,
            r#"[{"output_tokens":50.0}]"#,
            r#"{"error":{"message":"busy"},"usage":{"prompt_tokens":3"#,
            "data: {\"usage\":{\"prompt_tokens\":3}}",
            "event: error\ndata: {\"us\\u0061ge\":{\"prompt_tokens\":3}}",
            "data: {\"prompt_tokens\":3}",
        ] {
            assert!(tells_of_use(told.as_bytes()), "{told}");
        }
        for told in [
            "",
            "<html>503 Service Unavailable</html>",
            r#"{"error":{"message":"limit of tokens per minute reached, see usage"},"usage":null}"#,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
        ] {
            assert!(!tells_of_use(told.as_bytes()), "{told}");
        }
    }
}
