//! An answer that is no stream: read whole, settled, then shown; and every error of an upstream.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use seatbelt_dialects::{Told, response_id};
use seatbelt_schemas::usage::Usage;
use serde::de::IgnoredAny;

use super::{
    Head, Job,
    attempts::{Limits, Stop},
    report::Known,
};
use crate::{
    error::{
        ApiError, BY_UPSTREAM, Charged, RETRY_WORTH_S, X_CHARGED, X_POSITION, X_REFUSED_BY,
        X_SHOULD_RETRY, is_final,
    },
    metrics::Stage,
    upstream::{
        answer::{is_of_no_api, not_there, passed_headers, unreadable},
        neuron::Undone,
    },
};

/// Largest answer that is not a stream.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Job {
    /// An answer that is no stream: read whole, settled, then shown.
    pub(super) async fn whole(
        &mut self,
        mut answer: reqwest::Response,
        head: &mut Head,
    ) -> Result<Response, ApiError> {
        let status = answer.status();
        let headers = passed_headers(answer.headers());
        let undone = Undone::by(&answer).filter(|_| self.is_neurons());
        let (body, stop) = match unreadable(&answer) {
            None => self.limits.collect(&mut answer, head).await,
            Some(problem) => (Bytes::new(), Some(Stop::Broke(problem))),
        };
        let stop = stop.or_else(|| self.cut_short.take());
        drop(answer); // a connection that is closed now is what stops a neuron
        self.metrics
            .stage(Stage::UpstreamTotal, self.began.elapsed());
        let read = Told::read(self.api, self.sent, &body).filter(|_| stop.is_none());
        let unread = || Told::unread(self.api, self.sent, &body);
        if !status.is_success() {
            let told = read.unwrap_or_else(unread);
            self.end_error(status, undone, told).await?;
            if let Some(Undone::Fault(fault)) = undone {
                // the operator's matter, and not the client's
                let log = format!(
                    "neuron {} takes no call: {fault:?}, {status}",
                    self.upstream
                );
                return Err(ApiError::upstream_refused(&self.upstream, log));
            }
            return self.upstream_error(status, headers, body, stop);
        }
        if let Some(stop) = stop {
            let told = unread();
            let known = Known {
                least: told.least,
                served: told.served,
                ..Known::default()
            };
            return Err(self.stopped(stop, known).await);
        }
        if let Some(problem) = no_answer(&body, read.as_ref()) {
            let told = read.unwrap_or_else(unread);
            return Err(self.not_answered(problem, told).await);
        }
        // of what is no answer of its API, what it says of its use all the same
        let nothing_read = || Known {
            least: unread().least,
            ..Known::default()
        };
        let known = read.map_or_else(nothing_read, |read| Known {
            usage: read.usage,
            least: read.least,
            finish: read.finish,
            output_bytes: Some(read.output_bytes).filter(|bytes| *bytes > 0),
            served: read.served,
            client_left: false,
        });
        let told = known.usage;
        let position = self.settle(known).await?;
        self.bind(|| response_id(&body)).await;
        let shown = self.shown(body, told.or(self.billed))?;
        let mut response = self.response(status, self.typed(headers), Body::from(shown));
        if let Some(position) = position {
            response.headers_mut().insert(X_POSITION, position.0.into());
        }
        Ok(response)
    }

    /// Success was said and no answer came: an error is free unless it tells of usage, and the rest is
    /// not known.
    async fn not_answered(&mut self, problem: &str, read: Told) -> ApiError {
        let ended = match read.usage {
            usage
                if is_no_use(usage)
                    && read.is_error
                    && self.is_nothing(&read.least, &read.served) =>
            {
                self.release("upstream answered with an error").await;
                Ok(None)
            }
            usage => {
                let least = read.least;
                self.settle(Known {
                    usage,
                    least,
                    served: read.served,
                    ..Known::default()
                })
                .await
            }
        };
        match ended {
            Ok(_) => ApiError::upstream_gave_none(&self.upstream, problem),
            Err(error) => error,
        }
    }

    /// A whole answer in the client's dialect; an error where the client reads a stream, in which a whole
    /// answer has no event and would look like an empty one.
    fn shown(&self, body: Bytes, usage: Option<Usage>) -> Result<Bytes, ApiError> {
        let none = |problem| ApiError::upstream_gave_none(&self.upstream, problem);
        if self.stream {
            return Err(none("it answered whole where a stream was asked for"));
        }
        let shown = self.face.whole(body, usage);
        shown.ok_or_else(|| none("its answer is not one of its API"))
    }

    /// The headers of what is shown: a translation is JSON, whatever it was made of.
    fn typed(&self, mut headers: HeaderMap) -> HeaderMap {
        if self.face.translates_to().is_some() {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
        }
        headers
    }

    /// Gives the hold of an error its end, whatever came of its body. Without usage in it nothing was used,
    /// unless it is one that comes after work, which ends as the key says of unknown usage.
    async fn end_error(
        &mut self,
        status: StatusCode,
        undone: Option<Undone>,
        told: Told,
    ) -> Result<(), ApiError> {
        let worked = undone.is_none() && self.worked(status);
        let is_nothing = is_no_use(told.usage) && self.is_nothing(&told.least, &told.served);
        // that nothing was used it may say itself, whatever came before
        if is_nothing && (!worked || told.usage.is_some()) {
            let reason = format!("upstream answered {}", status.as_u16());
            let held = self.reservation.as_ref().map(|held| held.id);
            self.release(&reason).await;
            // that it is free says the operator; what was done nobody knows
            let unknown = told.usage.is_none() && comes_after_work(status) && !self.is_neurons();
            self.unknown = held.filter(|_| unknown);
            return Ok(());
        }
        let known = Known {
            usage: told.usage,
            least: told.least,
            served: told.served,
            ..Known::default()
        };
        self.settle(known).await.map(drop)
    }

    /// Whether an error of this status comes after work that is paid for.
    pub(super) fn worked(&self, status: StatusCode) -> bool {
        match self.is_neurons() {
            true => neuron_worked(status),
            false => self.charges_errors && comes_after_work(status),
        }
    }

    /// The upstream answered with an error: passed on as it is, or its status alone where the body could not
    /// be read to its end.
    pub(super) fn upstream_error(
        &self,
        status: StatusCode,
        mut headers: HeaderMap,
        body: Bytes,
        stop: Option<Stop>,
    ) -> Result<Response, ApiError> {
        // a redirect is not followed, and the operator's key and bill are not the client's matter
        let is_operators = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN
        );
        if !(status.is_client_error() || status.is_server_error()) || is_operators {
            let log = format!("upstream {} answered {status}", self.upstream);
            return Err(ApiError::upstream_refused(&self.upstream, log));
        }
        if stop.is_none() && is_of_no_api(status, &body) {
            return Err(not_there(&self.upstream, status));
        }
        if let Some(stop) = stop {
            headers.remove(header::CONTENT_TYPE);
            let log = format!("upstream {} answered {status}: {stop:?}", self.upstream);
            return Err(ApiError::upstream_error_lost(&self.upstream, status, headers).log(log));
        }
        let error = self.face.error(status.as_u16(), body);
        let mut response = self.response(status, self.typed(headers), Body::from(error));
        let headers = response.headers_mut();
        headers.insert(X_REFUSED_BY, BY_UPSTREAM);
        if let Some(charged) = self.charged {
            headers.insert(X_CHARGED, charged.header());
        }
        let is_charged = self
            .charged
            .is_some_and(|charged| charged != Charged::Nothing);
        let is_unsaid = !headers.contains_key(X_SHOULD_RETRY);
        // whatever its upstream says: each retry of what was charged costs again
        if is_charged || (is_final(status) && is_unsaid) || is_far(headers) {
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        Ok(response)
    }
}

impl Limits {
    /// The body as far as it came, and why it did not come whole.
    pub(super) async fn collect(
        &self,
        answer: &mut reqwest::Response,
        head: &mut Head,
    ) -> (Bytes, Option<Stop>) {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let stop = loop {
            let chunk = match self.chunk(answer, head.closed()).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break None,
                Err(stop) => break Some(stop),
            };
            match &first {
                None => first = Some(chunk),
                Some(first) => {
                    if rest.is_empty() {
                        rest.extend_from_slice(first);
                    }
                    rest.extend_from_slice(&chunk);
                }
            }
            if rest.len() > ANSWER_BYTES_MAX {
                let problem = format!("answer is larger than {ANSWER_BYTES_MAX} bytes");
                break Some(Stop::Broke(problem));
            }
        };
        let body = if rest.is_empty() {
            first.unwrap_or_default()
        } else {
            rest.freeze()
        };
        (body, stop)
    }
}

/// Whether a time is named that no client should sleep over, whatever else is said.
fn is_far(headers: &HeaderMap) -> bool {
    let told = headers.get(header::RETRY_AFTER);
    let told = told.and_then(|told| told.to_str().ok()?.trim().parse::<u64>().ok());
    told.is_some_and(|told| told > RETRY_WORTH_S)
}

/// Whether an error tells of no use, or that there was none.
fn is_no_use(usage: Option<Usage>) -> bool {
    usage.is_none_or(|usage| usage == Usage::default())
}

/// Why a body under a status of success is no answer.
fn no_answer(body: &Bytes, read: Option<&Told>) -> Option<&'static str> {
    match read {
        Some(read) if read.is_error => Some("it answered with an error under a status of success"),
        Some(_) => None,
        None if serde_json::from_slice::<IgnoredAny>(body).is_err() => {
            Some("its answer is empty or no JSON")
        }
        None => None, // odd, and the client's to read
    }
}

/// Whether a neuron worked before it failed: one that turns a request away answers 4xx or 503.
fn neuron_worked(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE
}

/// Whether a status may come after work that the provider charges for; all others turn a request away.
fn comes_after_work(status: StatusCode) -> bool {
    match status.as_u16() {
        529 => false,
        408 | 499 | 500 | 502 | 504 | 520..=528 => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_dialects::{Api, Sent};

    use super::*;

    fn statuses(worked: fn(StatusCode) -> bool) -> Vec<u16> {
        let all = (100..600).filter_map(|code| StatusCode::from_u16(code).ok());
        let worked = all.filter(|status| worked(*status));
        worked.map(|status| status.as_u16()).collect()
    }

    #[test]
    fn only_some_errors_of_a_provider_come_after_work() {
        let expected = [
            408, 499, 500, 502, 504, 520, 521, 522, 523, 524, 525, 526, 527, 528,
        ];
        assert_eq!(statuses(comes_after_work), expected);
    }

    #[test]
    fn a_neuron_that_turns_a_request_away_did_not_work() {
        let worked = statuses(neuron_worked);
        assert!(worked.iter().all(|status| *status >= 500));
        assert!(worked.contains(&500) && !worked.contains(&503));
    }

    #[test]
    fn a_success_without_an_answer_is_told_apart_from_one_that_is_odd() {
        let problem = |body: &'static str| {
            let body = Bytes::from_static(body.as_bytes());
            let sent = Sent {
                choices: 1,
                long_writes: false,
            };
            no_answer(&body, Told::read(Api::Chat, sent, &body).as_ref())
        };
        assert!(problem("").unwrap().contains("empty"));
        assert!(problem("<html>").unwrap().contains("no JSON"));
        assert!(
            problem(r#"{"error":{"message":"no"}}"#)
                .unwrap()
                .contains("error")
        );
        assert_eq!(problem("[1]"), None, "odd, and the client's to read");
        assert_eq!(problem(r#"{"choices":[]}"#), None);
    }
}
