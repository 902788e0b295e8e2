//! One admitted request from its dispatch to its one end.
//!
//! Runs in a task of its own that outlives the client's connection, from the moment the hold is
//! granted. Settles before the last byte of an answer is let go: the end of a stream is held back
//! until the writer has taken the settle. A dispatched request is never sent a second time.

use std::{future::Future, sync::Arc};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, future::BoxFuture, stream};
use seatbelt_schemas::{
    command::Grant,
    event::{OnUnknown, Report, Timings, UsageSource},
    position::Position,
    usage::{Usage, UsageEvent},
};
use serde::de::IgnoredAny;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    app::Shared,
    clock::ms,
    config::{OnDisconnect, TRAILER_WAIT, USAGE_EVENT_WAIT},
    error::ratelimit,
    error::{ApiError, BY_UPSTREAM, Dialect, X_POSITION, X_REFUSED_BY},
    face::Face,
    gate::Reservation,
    messages::{error_from_chat, from_chat},
    metrics::Stage,
    plan::Plan,
    sse::{SseEvent, SseReader, write_event},
    upstream::catalog::{ChosenNeuron, Route},
    upstream::{Call, call, write_max},
    usage::{Answer, Api, Part, StreamTold},
};

/// Largest answer that is not a stream.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Pieces of a stream that wait for a slow client; then the upstream waits too.
const STREAM_PIECES_MAX: usize = 32;

/// Upstream headers that are passed on with its answer.
const PASSED_HEADERS: [&str; 6] = [
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "openai-processing-ms",
    "anthropic-organization-id",
];

/// The output maximum of one choice, where it was lowered.
const X_CLAMPED: HeaderName = HeaderName::from_static("x-seatbelt-clamped");
const X_RESERVATION: HeaderName = HeaderName::from_static("x-seatbelt-reservation");
/// How the client gets its answer.
pub(crate) type Head = oneshot::Sender<Result<Response, ApiError>>;

/// What may end a request before its upstream does.
pub(crate) struct Limits {
    /// The upstream's work ends when the client leaves.
    pub(crate) ends_with_client: bool,
    pub(crate) deadline: Instant,
    /// The gateway may not wait any longer.
    pub(crate) cut: CancellationToken,
}

/// A request with all that its driver needs.
pub(crate) struct Job {
    pub(crate) shared: Arc<Shared>,
    /// None for a request that is not metered.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) call: Option<Call>,
    pub(crate) upstream: String,
    /// Counts as busy until the end.
    pub(crate) neuron: Option<ChosenNeuron>,
    /// What the neuron will report, awaited only if its answer does not tell.
    pub(crate) usage_event: Option<BoxFuture<'static, Option<UsageEvent>>>,
    pub(crate) api: Api,
    pub(crate) dialect: Dialect,
    pub(crate) face: Face,
    pub(crate) answer_id: String,
    pub(crate) stream: bool,
    pub(crate) choices: u64,
    pub(crate) output_is_visible: bool,
    /// An error that comes after work is charged at the hold.
    pub(crate) charges_errors: bool,
    pub(crate) limits: Limits,
    pub(crate) began: Instant,
    /// From the reserve to the head of the answer.
    pub(crate) first_byte_ms: u64,
    /// Headers of the answer.
    pub(crate) headers: HeaderMap,
    pub(crate) _permit: OwnedSemaphorePermit,
}

/// A request that may be dispatched now.
pub(crate) struct Admitted {
    pub(crate) dialect: Dialect,
    pub(crate) plan: Plan,
    /// None for a request that is not metered.
    pub(crate) held: Option<(Reservation, Grant)>,
    pub(crate) client_headers: HeaderMap,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl Admitted {
    /// Makes it ready for its driver.
    pub(crate) fn into_job(self, shared: &Arc<Shared>) -> Job {
        let Plan {
            mut body,
            asked,
            bound,
            route,
            api,
            face,
            answer_id,
            ..
        } = self.plan;
        let (reservation, grant) = self.held.unzip();
        let mut max = bound.output_tokens;
        let mut headers = HeaderMap::new();
        if let Some(grant) = &grant {
            grant_headers(grant, (shared.clock)(), &mut headers);
            if grant.clamped {
                max = (grant.hold.output_tokens / asked.choices).max(1);
                headers.insert(X_CLAMPED, max.into());
            }
        }
        write_max(&mut body, max, &route, api);
        let call = call(&route, reservation.as_ref(), &self.client_headers, &body);
        let limit = shared.config.request_timeout;
        // asked for before the dispatch, or an early event would be missed
        let usage_event = match (&route, &reservation) {
            (Route::Neuron(_), Some(reservation)) => {
                Some(shared.usage.usage(reservation.id, limit + USAGE_EVENT_WAIT))
            }
            _ => None,
        };
        let free_when_unknown = reservation
            .as_ref()
            .is_some_and(|held| held.on_unknown == OnUnknown::Release);
        let charges_errors = match &route {
            Route::Foreign(upstream, _) => !upstream.errors_are_free && !free_when_unknown,
            Route::Neuron(_) => false, // those that come after work are told apart by its answers
        };
        let (upstream, neuron, output_is_visible) = match route {
            Route::Foreign(upstream, model) => {
                (upstream.name.clone(), None, model.output_is_visible)
            }
            Route::Neuron(neuron) => (neuron.neuron.to_string(), Some(neuron), false),
        };
        let cancels = shared.config.on_disconnect == OnDisconnect::Cancel;
        let began = Instant::now();
        Job {
            shared: Arc::clone(shared),
            limits: Limits {
                ends_with_client: neuron.is_some() || cancels || reservation.is_none(),
                deadline: began + limit,
                cut: shared.cut.clone(),
            },
            reservation,
            call: Some(call),
            upstream,
            neuron,
            usage_event,
            api,
            dialect: self.dialect,
            face,
            answer_id,
            stream: asked.stream,
            choices: asked.choices,
            output_is_visible,
            charges_errors,
            began,
            first_byte_ms: 0,
            headers,
            _permit: self.permit,
        }
    }
}

/// The reservation, its position, and the tightest caps.
fn grant_headers(grant: &Grant, now_ms: u64, headers: &mut HeaderMap) {
    let id = HeaderValue::try_from(grant.reservation.to_string());
    let id = id.expect("a reservation id is a valid header value");
    headers.insert(X_RESERVATION, id);
    headers.insert(X_POSITION, grant.position.0.into());
    ratelimit::show(&grant.caps, now_ms, headers);
}

/// Why the upstream was not heard to its end.
#[derive(Debug)]
enum Stop {
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

/// What is known of the usage at the end.
#[derive(Debug, Default)]
struct Known {
    usage: Option<Usage>,
    finish: Option<String>,
    /// A bound of the output, where all of it was seen.
    output_bytes: Option<u64>,
}

/// Drives a request to its end.
pub(crate) async fn drive(mut job: Job, mut head: Head) {
    let response = match job.dispatch(&mut head).await {
        Ok(answer) if job.is_stream(&answer) => return job.relay(answer, head).await,
        Ok(answer) => job.whole(answer, &mut head).await,
        Err(stop) => Err(job.stopped(stop, Known::default()).await),
    };
    let _ = head.send(response.map_err(|mut error| {
        error.headers.extend(std::mem::take(&mut job.headers));
        error
    }));
}

impl Job {
    async fn dispatch(&mut self, head: &mut Head) -> Result<reqwest::Response, Stop> {
        let call = self.call.take().expect("a job is dispatched once");
        let sent = self
            .shared
            .client
            .post(call.url)
            .headers(call.headers)
            .body(call.body)
            .send();
        match self.limits.unless_stopped(sent, head.closed()).await? {
            Ok(answer) => {
                self.first_byte_ms = ms(self.began.elapsed());
                self.shared
                    .metrics
                    .stage(Stage::UpstreamFirstByte, self.began.elapsed());
                Self::readable(answer)
            }
            Err(error) if error.is_connect() => Err(Stop::Unreachable(chain(&error))),
            Err(error) => Err(Stop::Broke(chain(&error))),
        }
    }

    /// Refuses an answer in an encoding that nobody asked for: it can be neither read nor shown.
    fn readable(answer: reqwest::Response) -> Result<reqwest::Response, Stop> {
        let encodings = answer.headers().get_all(header::CONTENT_ENCODING);
        let unasked = encodings.iter().find(|value| *value != "identity");
        match unasked {
            None => Ok(answer),
            Some(encoding) => Err(Stop::Broke(format!(
                "its answer is encoded as {encoding:?}, which was not asked for"
            ))),
        }
    }

    fn is_stream(&self, answer: &reqwest::Response) -> bool {
        self.stream && answer.status().is_success() && is_event_stream(answer)
    }

    /// An answer that is no stream: read whole, settled, then shown.
    async fn whole(
        &mut self,
        mut answer: reqwest::Response,
        head: &mut Head,
    ) -> Result<Response, ApiError> {
        let status = answer.status();
        let headers = passed_headers(answer.headers());
        let collected = self.limits.collect(&mut answer, head).await;
        drop(answer); // a connection that is closed now is what stops a neuron
        let body = match collected {
            Ok(body) => body,
            Err(stop) => return Err(self.stopped(stop, Known::default()).await),
        };
        self.shared
            .metrics
            .stage(Stage::UpstreamTotal, self.began.elapsed());
        let read = Answer::read(self.api, &body);
        if !status.is_success() {
            return self
                .upstream_error(status, headers, body, read.unwrap_or_default())
                .await;
        }
        if let Some(problem) = no_answer(&body, read.as_ref()) {
            return Err(self.not_answered(problem, read.unwrap_or_default()).await);
        }
        let known = read.map_or_else(Known::default, |read| Known {
            usage: read.usage,
            finish: read.finish,
            output_bytes: Some(read.output_bytes).filter(|bytes| *bytes > 0),
        });
        let position = self.settle(known).await?;
        let mut response = self.response(status, headers, Body::from(self.shown(body)?));
        if let Some(position) = position {
            response.headers_mut().insert(X_POSITION, position.0.into());
        }
        Ok(response)
    }

    /// Success was said and no answer came: an error is free unless it tells of usage, and the rest is
    /// not known.
    async fn not_answered(&mut self, problem: &str, read: Answer) -> ApiError {
        let ended = match read.usage {
            None if read.is_error => {
                self.release("upstream answered with an error").await;
                Ok(None)
            }
            usage => {
                let finish = None;
                let output_bytes = None;
                self.settle(Known {
                    usage,
                    finish,
                    output_bytes,
                })
                .await
            }
        };
        match ended {
            Ok(_) => ApiError::upstream_broke(&self.upstream, problem),
            Err(error) => error,
        }
    }

    /// A whole answer in the client's dialect.
    fn shown(&self, body: Bytes) -> Result<Bytes, ApiError> {
        match self.face {
            Face::Same { .. } => Ok(body),
            Face::Messages(_) => from_chat(&body, &self.answer_id)
                .map(|message| message.to_string().into())
                .ok_or_else(|| {
                    ApiError::upstream_broke(&self.upstream, "answer is no chat completion")
                }),
        }
    }

    /// The upstream answered with an error: passed on as it is. Without usage in it nothing was used,
    /// unless it is one that comes after work, which ends as the key says of unknown usage.
    async fn upstream_error(
        &mut self,
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
        read: Answer,
    ) -> Result<Response, ApiError> {
        // a neuron that turns a request away answers 4xx or 503; other errors come after work
        let failed_midway = self.neuron.is_some()
            && status.is_server_error()
            && status != StatusCode::SERVICE_UNAVAILABLE;
        let charged = self.charges_errors && comes_after_work(status);
        if read.usage.is_some() || failed_midway || charged {
            let known = Known {
                usage: read.usage,
                ..Known::default()
            };
            self.settle(known).await?;
        } else {
            self.release(&format!("upstream answered {}", status.as_u16()))
                .await;
        }
        // a redirect is not followed, and the operator's key and bill are not the client's matter
        let is_operators = matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::PAYMENT_REQUIRED | StatusCode::FORBIDDEN
        );
        if !(status.is_client_error() || status.is_server_error()) || is_operators {
            let log = format!("upstream {} answered {status}", self.upstream);
            return Err(ApiError::upstream_refused(&self.upstream, log));
        }
        let body = match self.face {
            Face::Messages(_) => {
                error_from_chat(&body).map_or(body, |error| error.to_string().into())
            }
            Face::Same { .. } => body,
        };
        let mut response = self.response(status, headers, Body::from(body));
        response.headers_mut().insert(X_REFUSED_BY, BY_UPSTREAM);
        Ok(response)
    }

    /// The upstream was not heard to its end: gives the hold its end and says what happened.
    async fn stopped(&mut self, stop: Stop, known: Known) -> ApiError {
        if let Stop::Unreachable(log) = stop {
            self.release("upstream cannot be reached").await;
            return ApiError::upstream_unreachable(&self.upstream, log);
        }
        if let Err(error) = self.settle(known).await {
            return error;
        }
        match stop {
            Stop::Unreachable(log) | Stop::Broke(log) => {
                ApiError::upstream_broke(&self.upstream, log)
            }
            Stop::Failed => ApiError::upstream_broke(&self.upstream, "error within the stream"),
            Stop::Deadline => ApiError::upstream_timeout(&self.upstream),
            Stop::ClientLeft => ApiError::busy("the client left"),
            Stop::Cut => ApiError::busy("the gateway is stopping"),
        }
    }

    /// Settles with the best that is known: what was reported, else what the neuron's event says, else
    /// what was counted where that is a bound, else the hold.
    async fn settle(&mut self, known: Known) -> Result<Option<Position>, ApiError> {
        let Some(reservation) = self.reservation.take() else {
            return Ok(None);
        };
        let event = match (known.usage, self.usage_event.take()) {
            (None, Some(event)) => timeout(USAGE_EVENT_WAIT, event).await.ok().flatten(),
            _ => None,
        };
        if let Some(event) = &event
            && event.usage.input_tokens == 0
            && event.usage.output_tokens == 0
        {
            reservation.release("neuron reported no usage").await;
            return Ok(None);
        }
        let (usage, source) = self.account_for(&reservation, &known, event.as_ref());
        let report = Report {
            usage,
            upstream: self.upstream.clone(),
            source,
            finish: known.finish,
            timings: Timings {
                first_byte_ms: self.first_byte_ms,
                total_ms: ms(reservation.reserved_at.elapsed()),
            },
        };
        reservation.settle(report).await.map(Some)
    }

    fn account_for(
        &self,
        reservation: &Reservation,
        known: &Known,
        event: Option<&UsageEvent>,
    ) -> (Usage, UsageSource) {
        if let Some(usage) = known.usage {
            let neuron = self.neuron.is_some();
            return (
                usage,
                if neuron {
                    UsageSource::Neuron
                } else {
                    UsageSource::Upstream
                },
            );
        }
        if let Some(event) = event {
            return (event.usage.into(), UsageSource::Neuron);
        }
        let hold = Usage {
            input_tokens: reservation.hold.input_tokens,
            output_tokens: reservation.hold.output_tokens,
            ..Usage::default()
        };
        match known.output_bytes {
            // one more each for the token that ends a choice
            Some(bytes) if self.output_is_visible => {
                let output_tokens = hold.output_tokens.min(bytes + self.choices);
                (
                    Usage {
                        output_tokens,
                        ..hold
                    },
                    UsageSource::Counted,
                )
            }
            _ => (hold, UsageSource::Hold),
        }
    }

    async fn release(&mut self, reason: &str) {
        if let Some(reservation) = self.reservation.take() {
            reservation.release(reason).await;
        }
    }

    fn response(&self, status: StatusCode, headers: HeaderMap, body: Body) -> Response {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().extend(self.headers.clone());
        response
    }

    /// Passes a stream on, event by event, holding its end back until the settle is taken.
    async fn relay(&mut self, mut answer: reqwest::Response, head: Head) {
        let (pieces, body) = mpsc::channel::<Bytes>(STREAM_PIECES_MAX);
        let mut headers = HeaderMap::new();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        );
        let _ = head.send(Ok(self.response(StatusCode::OK, headers, streamed(body))));
        let mut relay = Relay::new(self.api, pieces);
        let stopped = self.pump(&mut answer, &mut relay).await;
        self.shared
            .metrics
            .stage(Stage::UpstreamTotal, self.began.elapsed());
        // a connection that is closed now is what stops a neuron: only then it reports
        let ended = stopped.is_ok().then_some(answer);
        self.finish(relay, stopped).await;
        // read the end of the body, so that the connection goes back to the pool
        if let Some(mut answer) = ended {
            let _ = timeout(TRAILER_WAIT, answer.chunk()).await;
        }
    }

    /// Reads the upstream until its end, sending on all but the end itself.
    async fn pump(
        &mut self,
        answer: &mut reqwest::Response,
        relay: &mut Relay,
    ) -> Result<(), Stop> {
        loop {
            let chunk = self.limits.chunk(answer, relay.gone()).await?;
            let last = chunk.is_none();
            let out = relay.take(chunk.as_ref(), &mut self.face)?;
            if !out.is_empty() {
                self.limits.send(relay, out).await?;
            }
            match relay.state {
                State::Failed => return Err(Stop::Failed),
                State::Ended => return Ok(()),
                // some upstreams close without the mark of the end
                State::Open if last && relay.told.final_usage(self.api, false).is_some() => {
                    return Ok(());
                }
                State::Open if last => {
                    return Err(Stop::Broke("stream ended without its end".to_owned()));
                }
                State::Open => {}
            }
        }
    }

    async fn finish(&mut self, mut relay: Relay, stopped: Result<(), Stop>) {
        let known = relay.known();
        let usage = known.usage.unwrap_or_default();
        let failed = match stopped {
            Ok(()) => self.settle(known).await.err(),
            Err(Stop::Failed) => {
                // the upstream's own error was passed on already
                let _ = self.stopped(Stop::Failed, known).await;
                return;
            }
            Err(stop) => Some(self.stopped(stop, known).await),
        };
        let mut last = BytesMut::new();
        match (failed, &mut self.face) {
            (Some(error), _) => {
                tracing::warn!(upstream = %self.upstream, code = error.code(), detail = error.log.as_deref(), "stream failed");
                let envelope = error.envelope(self.dialect).to_string();
                write_event(&mut last, Some("error"), envelope.as_bytes());
            }
            (None, Face::Same { .. }) => last = std::mem::take(&mut relay.end),
            (None, Face::Messages(stream)) => stream.end(usage, &mut last),
        }
        // a client too slow for its last piece loses it, never the ledger
        let _ = self.limits.send(&mut relay, last.freeze()).await;
    }
}

impl Limits {
    /// Waits for `work`, at most until the client is gone (where that ends the work), the deadline has
    /// passed, or the gateway may not wait.
    async fn unless_stopped<T>(
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
        }
    }

    async fn collect(
        &self,
        answer: &mut reqwest::Response,
        head: &mut Head,
    ) -> Result<Bytes, Stop> {
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        while let Some(chunk) = self.chunk(answer, head.closed()).await? {
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
                return Err(Stop::Broke(format!(
                    "answer is larger than {ANSWER_BYTES_MAX} bytes"
                )));
            }
        }
        Ok(if rest.is_empty() {
            first.unwrap_or_default()
        } else {
            rest.freeze()
        })
    }

    async fn chunk(
        &self,
        answer: &mut reqwest::Response,
        gone: impl Future<Output = ()>,
    ) -> Result<Option<Bytes>, Stop> {
        let chunk = self.unless_stopped(answer.chunk(), gone).await?;
        chunk.map_err(|error| Stop::Broke(chain(&error)))
    }

    async fn send(&self, relay: &mut Relay, piece: Bytes) -> Result<(), Stop> {
        let Some(client) = &relay.client else {
            return Ok(());
        };
        let sent = self
            .unless_stopped(client.send(piece), std::future::pending())
            .await?;
        if sent.is_err() {
            if self.ends_with_client {
                return Err(Stop::ClientLeft);
            }
            relay.client = None; // drained from here on
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Failed,
}

/// A stream on its way through.
struct Relay {
    api: Api,
    reader: SseReader,
    told: StreamTold,
    state: State,
    /// What is held back until the settle is taken.
    end: BytesMut,
    /// None once the client is gone.
    client: Option<mpsc::Sender<Bytes>>,
}

impl Relay {
    fn new(api: Api, client: mpsc::Sender<Bytes>) -> Self {
        Self {
            api,
            reader: SseReader::default(),
            told: StreamTold::default(),
            state: State::Open,
            end: BytesMut::new(),
            client: Some(client),
        }
    }

    async fn gone(&self) {
        match &self.client {
            Some(client) => client.closed().await,
            None => std::future::pending().await,
        }
    }

    /// Takes a chunk, or the end of the body, and gives what the client may see of it now.
    fn take(&mut self, chunk: Option<&Bytes>, face: &mut Face) -> Result<Bytes, Stop> {
        let mut out = BytesMut::new();
        if let Some(chunk) = chunk {
            self.reader.push(chunk);
        }
        while self.state == State::Open {
            match self.reader.next_event() {
                Ok(Some(event)) => self.event(&event, face, &mut out),
                Ok(None) => break,
                Err(error) => return Err(Stop::Broke(error.to_string())),
            }
        }
        if chunk.is_none()
            && self.state == State::Open
            && let Some(event) = self.reader.last_event()
        {
            self.event(&event, face, &mut out);
        }
        Ok(out.freeze())
    }

    fn event(&mut self, event: &SseEvent, face: &mut Face, out: &mut BytesMut) {
        let part = self.told.note(self.api, event);
        match part {
            Part::End => self.state = State::Ended,
            Part::Error => self.state = State::Failed,
            Part::Content | Part::UsageOnly => {}
        }
        match (face, part) {
            (Face::Same { .. }, Part::End) => self.end.extend_from_slice(&event.raw),
            (Face::Same { hide_usage: true }, Part::UsageOnly) => {}
            (Face::Same { .. }, Part::UsageOnly) => self.end.extend_from_slice(&event.raw),
            (Face::Same { .. }, Part::Error) => out.extend_from_slice(&event.raw),
            // nothing overtakes a usage chunk that is held back
            (Face::Same { .. }, Part::Content) if !self.end.is_empty() => {
                self.end.extend_from_slice(&event.raw);
            }
            (Face::Same { hide_usage }, Part::Content) => pass(&event.raw, *hide_usage, out),
            (Face::Messages(_), Part::End) => {}
            (Face::Messages(_), Part::Error) => {
                if let Some(error) = error_from_chat(&event.data) {
                    write_event(out, Some("error"), error.to_string().as_bytes());
                }
            }
            (Face::Messages(stream), Part::Content | Part::UsageOnly) => stream.content(event, out),
        }
    }

    fn known(&self) -> Known {
        let told = &self.told;
        Known {
            usage: match self.state {
                State::Failed => told.usage_so_far(self.api),
                State::Ended | State::Open => {
                    told.final_usage(self.api, self.state == State::Ended)
                }
            },
            finish: told.finish.clone(),
            output_bytes: (self.state == State::Ended).then_some(told.output_bytes),
        }
    }
}

/// Passes an event on; without the `usage: null` that only the gateway's own question brought.
fn pass(raw: &[u8], hide_usage: bool, out: &mut BytesMut) {
    let found = hide_usage
        .then(|| std::str::from_utf8(raw).ok())
        .flatten()
        .and_then(|text| {
            // quotes inside JSON strings are escaped, so this can only be the field itself
            [",\"usage\":null", ", \"usage\": null"]
                .into_iter()
                .find_map(|field| Some((text.find(field)?, field.len())))
        });
    match found {
        Some((at, len)) => {
            out.extend_from_slice(&raw[..at]);
            out.extend_from_slice(&raw[at + len..]);
        }
        None => out.extend_from_slice(raw),
    }
}

fn streamed(mut pieces: mpsc::Receiver<Bytes>) -> Body {
    let pieces = stream::poll_fn(move |cx| pieces.poll_recv(cx));
    Body::from_stream(pieces.map(Ok::<_, std::convert::Infallible>))
}

/// Why a body under a status of success is no answer.
fn no_answer(body: &Bytes, read: Option<&Answer>) -> Option<&'static str> {
    match read {
        Some(read) if read.is_error => Some("it answered with an error under a status of success"),
        Some(_) => None,
        None if serde_json::from_slice::<IgnoredAny>(body).is_err() => {
            Some("its answer is empty or no JSON")
        }
        None => None, // odd, and the client's to read
    }
}

/// Whether a status may come after work that the provider charges for; all others turn a request away.
fn comes_after_work(status: StatusCode) -> bool {
    match status.as_u16() {
        529 => false,
        408 | 499 | 500 | 502 | 504 | 520..=528 => true,
        _ => false,
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

fn passed_headers(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    for name in PASSED_HEADERS {
        if let Some(value) = from.get(name) {
            to.insert(HeaderName::from_static(name), value.clone());
        }
    }
    to
}

/// An error with its causes. Addresses of upstreams are for the log alone.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(raw: &str, hide_usage: bool) -> String {
        let mut out = BytesMut::new();
        pass(raw.as_bytes(), hide_usage, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn only_the_usage_null_that_was_asked_for_here_is_hidden() {
        let chunk = "data: {\"id\":1,\"choices\":[],\"usage\":null}\n\n";
        assert_eq!(passed(chunk, false), chunk);
        assert_eq!(passed(chunk, true), "data: {\"id\":1,\"choices\":[]}\n\n");
        let spaced = "data: {\"id\": 1, \"usage\": null, \"x\": 2}\n\n";
        assert_eq!(passed(spaced, true), "data: {\"id\": 1, \"x\": 2}\n\n");
        let quoted = r#"data: {"content":"say ,\"usage\":null"}"#;
        assert_eq!(passed(quoted, true), quoted);
    }
}
