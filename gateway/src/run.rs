//! A granted request, from its grant to its one end.
//!
//! Runs in a task of its own that outlives the client's connection. Settles before the last byte of an
//! answer is let go: the end of a stream is held back until the writer has taken the settle. A
//! dispatched request is never sent a second time, except one of which a neuron did nothing (`elsewhere`).

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode},
    response::Response,
};
use futures::future::BoxFuture;
use seatbelt_dialects::{Api, Ask, Dialect, Exact, Face, Fields, Sent};
use seatbelt_ledger::api::UsageEvents;
use seatbelt_schemas::{
    command::Grant,
    ids::ReservationId,
    neuron::signature::NeuronSecret,
    usage::{Usage, UsageEvent},
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::{
    bound::Bound,
    clock::{Clock, ms},
    config::{HOLD_GRACE, OnDisconnect, PricedClass, USAGE_EVENT_WAIT},
    error::{ApiError, Charged, X_POSITION, X_RESERVATION, ratelimit},
    gate::Reservation,
    metrics::Metrics,
    plan::{Instead, Plan, Planner},
    receive::shares::Share,
    repeats::{Named, Repeats},
    threads::{Binding, Followed},
    upstream::{
        Attempt, Candidate,
        catalog::{Catalog, Size},
        neuron::{Held, Pass},
    },
};

mod again;
mod anew;
mod attempts;
mod elsewhere;
mod fallback;
mod relay;
mod report;
mod slices;
mod whole;

use again::Again;
use anew::AlsoCharged;
use attempts::{Idle, Limits, Stop};
use elsewhere::Elsewhere;
use fallback::Turn;
use report::Known;
use slices::Slices;

/// The output maximum of one choice, where it was lowered.
const X_CLAMPED: HeaderName = HeaderName::from_static("x-seatbelt-clamped");

/// How the client gets its answer.
type Head = oneshot::Sender<Result<Response, ApiError>>;

/// Runs granted requests.
pub(crate) struct Runner {
    pub(crate) client: reqwest::Client,
    /// Usage as neurons report it.
    pub(crate) usage: Arc<dyn UsageEvents>,
    /// Neurons serve nobody who does not know it.
    pub(crate) neuron_secret: NeuronSecret,
    /// Where another neuron is found.
    pub(crate) catalog: Arc<Catalog>,
    /// Plans what another model is asked.
    pub(crate) planner: Arc<Planner>,
    /// Writes under a client's key what takes the place of a request.
    pub(crate) repeats: Arc<Repeats>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    pub(crate) request_timeout: Duration,
    pub(crate) upstream_idle: Duration,
    pub(crate) on_disconnect: OnDisconnect,
    /// How long a stream may be silent before its client is told that it goes on.
    pub(crate) ping: Duration,
    /// Counts the runs that are not at their end.
    pub(crate) tracker: TaskTracker,
    /// Runs may not wait any longer.
    pub(crate) cut: CancellationToken,
}

/// A request with all that it takes to end it.
struct Job {
    client: reqwest::Client,
    metrics: Arc<Metrics>,
    /// None for a request that is not metered.
    reservation: Option<Reservation>,
    /// Of one whose hold grows while it runs.
    slices: Option<Slices>,
    attempt: Option<Attempt>,
    /// For a request to a neuron, until that is known to have it.
    elsewhere: Option<Elsewhere>,
    /// For a request to an upstream that may be sent more than once.
    again: Option<Again>,
    /// For a request to a model that names others for when nothing was done.
    instead: Option<Instead>,
    /// For a request that another model is asked, what the client of the first would be told.
    first: Option<Box<anew::Ended>>,
    /// What it takes to begin anew, where nobody knows what was done.
    anew: Option<Box<Instead>>,
    /// The key under which its client may send it again.
    named: Option<Named>,
    /// The hold of which is not known what was used of it, once it has its end.
    unknown: Option<ReservationId>,
    /// A neuron counts as busy until the end.
    candidate: Candidate,
    upstream: String,
    /// What the neuron will report, awaited only if its answer does not tell.
    usage_event: Option<BoxFuture<'static, Option<UsageEvent>>>,
    api: Api,
    dialect: Dialect,
    face: Face,
    stream: bool,
    sent: Sent,
    /// Binds the response, where the upstream is to keep it.
    binding: Option<Binding>,
    /// The class of service that was asked for.
    class: Option<PricedClass>,
    /// An error that comes after work is charged, as the key says of what is not known.
    charges_errors: bool,
    limits: Limits,
    /// How long a stream may be silent before its client is told that it goes on.
    ping: Duration,
    began: Instant,
    /// From the reserve to the head of the answer.
    first_byte_ms: u64,
    /// What the hold came to, once it has its end.
    charged: Option<Charged>,
    /// What it is charged for, once that is known.
    billed: Option<Usage>,
    /// What is read again by whoever goes on with its response: never below what it can have been.
    size: Option<Usage>,
    /// Why an answer that was read already did not come whole.
    cut_short: Option<Stop>,
    /// Headers of the answer.
    headers: HeaderMap,
    /// For the body, until it is sent.
    room: Share,
    /// Among the requests in progress.
    place: Share,
}

impl Runner {
    /// Starts what was planned in a task of its own, which has the hold from here on. The receiver is
    /// told the answer, or nothing if the task dies.
    pub(crate) fn start(
        self: &Arc<Self>,
        plan: Plan,
        held: Option<(Reservation, Grant)>,
        named: Option<Named>,
    ) -> oneshot::Receiver<Result<Response, ApiError>> {
        let (head, answered) = oneshot::channel();
        let mut job = Box::new(self.job(plan, held));
        job.named = named;
        // boxed before it is handed on: each hand would copy all of it
        let run = Box::pin(drive(Arc::clone(self), job, head));
        self.tracker.spawn(run.in_current_span());
        answered
    }

    fn job(&self, plan: Plan, held: Option<(Reservation, Grant)>) -> Job {
        let in_slices = plan.in_slices();
        let Plan {
            mut body,
            exact,
            mut room,
            ask,
            bound,
            candidate,
            ..
        } = plan;
        let (mut reservation, grant) = held.unzip();
        let deadline_ms = (self.clock)().saturating_add(ms(self.request_timeout));
        let slices = match &mut reservation {
            Some(held) if in_slices && held.hold().output_tokens < bound.output_tokens => {
                Some(self.slices(held, bound.output_tokens))
            }
            _ => None,
        };
        let (max, headers) = self.as_granted(grant.as_ref(), slices.as_ref(), (&ask, &bound));
        let api = plan.api;
        finish(&mut body, api, max, (&candidate, plan.followed.as_ref()));
        let size = Size {
            input_tokens: bound.input_tokens,
            output_tokens: Some(max),
        };
        let held = (reservation.as_ref(), slices.as_ref());
        let pass = pass(&self.neuron_secret, held, deadline_ms);
        let body = written(&body, exact.as_ref());
        let attempt = Attempt::new(&candidate, api, &pass, &plan.headers, body);
        room.shrink_to(attempt.body.len());
        let began = Instant::now();
        Job {
            client: self.client.clone(),
            metrics: Arc::clone(&self.metrics),
            limits: self.limits(&candidate, reservation.is_some(), began),
            ping: self.ping,
            usage_event: self.usage_event(&candidate, reservation.as_ref()),
            reservation,
            slices,
            elsewhere: self.elsewhere(&candidate, &attempt, size, deadline_ms),
            instead: plan.instead,
            again: Again::of(&self.catalog, &candidate, &plan.headers, &attempt),
            attempt: Some(attempt),
            upstream: candidate.name(),
            api,
            dialect: plan.dialect,
            face: plan.face,
            stream: ask.stream,
            sent: ask.sent(),
            binding: plan.binding,
            class: plan.class,
            charges_errors: candidate.charges_errors(),
            candidate,
            began,
            first_byte_ms: 0,
            charged: None,
            billed: None,
            size: None,
            first: None,
            anew: None,
            named: None,
            unknown: None,
            cut_short: None,
            headers,
            room,
            place: plan.place,
        }
    }

    /// The output maximum of one choice that it is sent with, and what its answer says of its grant.
    fn as_granted(
        &self,
        grant: Option<&Grant>,
        slices: Option<&Slices>,
        (ask, bound): (&Ask, &Bound),
    ) -> (u64, HeaderMap) {
        let (mut max, mut headers) = (bound.output_tokens, HeaderMap::new());
        if let Some(grant) = grant {
            grant_headers(grant, (self.clock)(), &mut headers);
            if grant.clamped && slices.is_none() {
                let each = grant.hold.output_tokens.checked_div(ask.choices);
                max = each.unwrap_or(0).max(1);
                headers.insert(X_CLAMPED, max.into());
            }
        }
        (max, headers)
    }

    /// Holds a request slice by slice from now on.
    fn slices(&self, reservation: &mut Reservation, most: u64) -> Slices {
        let calls = slices::Calls {
            client: self.client.clone(),
            secret: self.neuron_secret.clone(),
            deadline_ms: until(reservation),
        };
        Slices::begin(reservation, most, calls)
    }

    fn limits(&self, candidate: &Candidate, is_metered: bool, began: Instant) -> Limits {
        let is_neuron = matches!(candidate, Candidate::Neuron(_));
        let cancels = self.on_disconnect == OnDisconnect::Cancel;
        Limits {
            ends_with_client: is_neuron || cancels || !is_metered,
            deadline: began + self.request_timeout,
            idle: Idle::of(self.upstream_idle),
            cut: self.cut.clone(),
            lost: match candidate {
                Candidate::Neuron(neuron) => neuron.lost.clone(),
                Candidate::Foreign(..) => CancellationToken::new(),
            },
        }
    }

    fn elsewhere(
        &self,
        candidate: &Candidate,
        attempt: &Attempt,
        size: Size,
        deadline_ms: u64,
    ) -> Option<Elsewhere> {
        matches!(candidate, Candidate::Neuron(_)).then(|| Elsewhere {
            catalog: Arc::clone(&self.catalog),
            secret: self.neuron_secret.clone(),
            body: attempt.body.clone(),
            size,
            deadline_ms,
            asked: Vec::new(),
        })
    }

    /// What a neuron will report of the reservation: ask for before the dispatch, or an early event
    /// would be missed.
    fn usage_event(
        &self,
        candidate: &Candidate,
        reservation: Option<&Reservation>,
    ) -> Option<BoxFuture<'static, Option<UsageEvent>>> {
        match (candidate, reservation) {
            (Candidate::Neuron(_), Some(reservation)) => {
                let wait = self.request_timeout + USAGE_EVENT_WAIT;
                Some(self.usage.usage(reservation.id, wait))
            }
            _ => None,
        }
    }
}

/// With what a neuron is called; `deadline_ms` is for what nobody reserved.
fn pass<'a>(
    secret: &'a NeuronSecret,
    (reservation, slices): (Option<&'a Reservation>, Option<&Slices>),
    deadline_ms: u64,
) -> Pass<'a> {
    Pass {
        secret,
        held: reservation.map(|reservation| Held {
            reservation: reservation.id,
            account: &reservation.account,
            key: &reservation.key,
            input_tokens: reservation.hold().input_tokens,
            output_tokens: slices.map_or(reservation.hold().output_tokens, |slices| slices.first),
            grows_to: slices.map(|slices| slices.most),
        }),
        deadline_ms: reservation.map_or(deadline_ms, until),
    }
}

/// Until when a neuron may serve it.
fn until(held: &Reservation) -> u64 {
    held.deadline_ms.saturating_sub(ms(HOLD_GRACE))
}

/// Writes into a body what is decided last: its output maximum, and what it has of a conversation that is kept.
fn finish(
    body: &mut Fields,
    api: Api,
    max: u64,
    (candidate, followed): (&Candidate, Option<&Followed>),
) {
    api.set_max(body, max, candidate.max_field());
    if let Some(followed) = followed {
        followed.write(body);
    }
}

/// A body as it goes out, its numbers as they came.
fn written(body: &Fields, exact: Option<&Exact>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    serde_json::to_writer(&mut bytes, body).expect("a JSON object is written to memory");
    match exact {
        None => bytes,
        Some(exact) => exact.unmarked(&bytes),
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

/// Drives a request to its end, and where that is not known, and the operator wants it, the same one once more.
async fn drive(runner: Arc<Runner>, mut job: Box<Job>, mut head: Head) {
    loop {
        let ended = match led(&runner, job, &mut head).await {
            Led::Streams(mut job, answer) => return job.relay(answer, head).await,
            Led::Ended(same, ended) => {
                job = same;
                ended
            }
        };
        if let Some(anew) = job.anew(&ended, &head)
            && let Some(next) = Box::pin(runner.begins_anew(&mut job, anew)).await
        {
            job = next;
            continue;
        }
        let also_charged = AlsoCharged::before(&job.headers);
        let ended = job.of_whom_was_named(ended);
        let ended = ended.map_err(|mut error| {
            error.headers.extend(std::mem::take(&mut job.headers));
            match job.charged {
                Some(charged) => error.charged(charged),
                None => error,
            }
        });
        let _ = head.send(also_charged.told_with(ended));
        return;
    }
}

/// How far a request was led.
enum Led {
    /// To the head of a stream, all else of which is still to come.
    Streams(Box<Job>, reqwest::Response),
    /// To its end.
    Ended(Box<Job>, anew::Ended),
}

/// Asks until there is an answer to stay with, and gives that its end where it is no stream.
async fn led(runner: &Runner, mut job: Box<Job>, head: &mut Head) -> Led {
    let mut answered = job.attempts(head).await;
    while let Some(instead) = job.instead.take() {
        // boxed, since it is large and seldom
        let turn = Box::pin(runner.falls_back(job, (instead, answered), head)).await;
        (job, answered) = match turn {
            Turn::Stays(same, told) => (same, told),
            Turn::Next(mut next) => {
                let told = Box::pin(next.attempts(head)).await;
                (next, told)
            }
        };
    }
    job.room.shrink_to(0);
    let ended = match answered {
        Ok(answer) if job.is_stream(&answer) => {
            job.anew = None; // what was shown is asked for by nobody again
            return Led::Streams(job, answer);
        }
        Ok(answer) => job.whole(answer, head).await,
        Err(stop) => Err(job.stopped(stop, Known::default()).await),
    };
    Led::Ended(job, ended)
}

impl Job {
    /// Asks for the model, of whoever serves it, until one did something or nobody is left to ask.
    async fn attempts(&mut self, head: &mut Head) -> Result<reqwest::Response, Stop> {
        loop {
            let answered = self.dispatch(head).await;
            if !self.turns_elsewhere(&answered) {
                let (answered, tries_again) = self.tries_again(answered, head).await;
                if !tries_again {
                    return answered;
                }
            }
            // a connection that is not read to its end is not used again
        }
    }

    /// Takes the hold, to end it: nothing of it changes from now on.
    async fn take_hold(&mut self) -> Option<Reservation> {
        if let Some(slices) = self.slices.take() {
            slices.stop().await;
        }
        self.reservation.take()
    }

    fn is_neurons(&self) -> bool {
        matches!(self.candidate, Candidate::Neuron(_))
    }

    fn response(&self, status: StatusCode, headers: HeaderMap, body: Body) -> Response {
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response.headers_mut().extend(self.headers.clone());
        response
    }
}
