//! Every error a client can meet: its status, type, code and headers, in one table, in both dialects.
//!
//! What the client reads (`message`) and what the log says (`log`) are two fields. Never 402. An
//! upstream's own error is passed on elsewhere and is not made here.

use std::{
    borrow::Cow,
    ops::{Deref, DerefMut},
    sync::LazyLock,
    time::Instant,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use seatbelt_dialects::{Dialect, ErrorBody, Fault, FieldError};
use seatbelt_schemas::{
    command::CommandError,
    ids::{ModelId, RunId, TeamId},
    json,
};
use serde_json::{Map, Value, json};

pub(crate) mod ratelimit;
mod refusal;
mod repeated;
mod seldom;
mod table;

pub(crate) use seldom::Seldom;
pub(crate) use table::{Case, is_final};

/// Says to the official SDKs whether a retry can help.
pub(crate) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Position of the last event of the request that was known when the headers were sent.
pub(crate) const X_POSITION: HeaderName = HeaderName::from_static("x-seatbelt-position");
/// The hold that a request is let through with.
pub(crate) const X_RESERVATION: HeaderName = HeaderName::from_static("x-seatbelt-reservation");
/// What a request was charged that is sent again, by meter.
const X_CHARGE: HeaderName = HeaderName::from_static("x-seatbelt-charge");
/// Who refused: a cap of the ledger, or the upstream itself.
pub(crate) const X_REFUSED_BY: HeaderName = HeaderName::from_static("x-seatbelt-refused-by");
pub(crate) const BY_UPSTREAM: HeaderValue = HeaderValue::from_static("upstream");
/// What a request that failed is charged.
pub(crate) const X_CHARGED: HeaderName = HeaderName::from_static("x-seatbelt-charged");
/// Longest wait that the official SDKs are told to sit out: they sleep for as long as they are told.
pub(crate) const RETRY_WORTH_S: u64 = 60;
/// Longest piece of a client's own text that is shown back to it.
const ECHO_CHARS_MAX: usize = 120;
/// Seconds after which to try again when the ledger or an upstream is away.
const RETRY_AWAY_S: u64 = 2;

/// What the hold of a request that failed came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Charged {
    Nothing,
    /// What was reported, or counted.
    Usage,
    Hold,
}

impl Charged {
    pub(crate) fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Nothing => "nothing",
            Self::Usage => "usage",
            Self::Hold => "hold",
        })
    }
}

/// An error on its way to a client. Boxed: it is rare, and travels through every result.
#[derive(Debug, Clone)]
pub(crate) struct ApiError(Box<Details>);

/// What an error says, and to whom.
#[derive(Debug, Clone)]
pub(crate) struct Details {
    case: Case,
    message: String,
    param: Option<String>,
    retry_after_s: Option<u64>,
    extras: Map<String, Value>,
    /// Headers besides those of the table.
    pub(crate) headers: HeaderMap,
    /// What the log says; the client never sees it.
    pub(crate) log: Option<String>,
    /// Instead of that of the table.
    status: Option<StatusCode>,
    /// A neuron's own words about the request, shown instead: its status and OpenAI envelope.
    verbatim: Option<(StatusCode, Value)>,
}

impl Deref for ApiError {
    type Target = Details;
    fn deref(&self) -> &Details {
        &self.0
    }
}

impl DerefMut for ApiError {
    fn deref_mut(&mut self) -> &mut Details {
        &mut self.0
    }
}

impl ApiError {
    pub(crate) fn new(case: Case, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            case,
            message: message.into(),
            param: None,
            retry_after_s: None,
            extras: Map::new(),
            headers: HeaderMap::new(),
            log: None,
            status: None,
            verbatim: None,
        }))
    }

    fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    pub(crate) fn log(mut self, log: impl Into<String>) -> Self {
        self.log = Some(log.into());
        self
    }

    /// Says what it is charged, and that a retry of what was charged costs again.
    pub(crate) fn charged(mut self, charged: Charged) -> Self {
        self.message += match charged {
            Charged::Nothing => "; nothing was charged",
            Charged::Usage => "; what it used is charged",
            Charged::Hold => "; what it used is not known, so all that it held is charged",
        };
        self.headers.insert(X_CHARGED, charged.header());
        if charged != Charged::Nothing {
            let never = HeaderValue::from_static("false");
            self.headers.insert(X_SHOULD_RETRY, never);
        }
        self
    }

    /// A field of the body that cannot be accepted, and what would be.
    pub(crate) fn invalid_field(param: &str, problem: &str) -> Self {
        Self::new(Case::InvalidBody, format!("'{param}' {problem}")).param(param)
    }

    /// A body that is no JSON object.
    pub(crate) fn invalid_body(problem: impl std::fmt::Display) -> Self {
        Self::new(
            Case::InvalidBody,
            format!("the request body is not valid: {problem}"),
        )
    }

    pub(crate) fn missing_model() -> Self {
        Self::new(
            Case::MissingModelField,
            "the request names no model: set 'model' to one of those listed by GET /v1/models",
        )
        .param("model")
    }

    pub(crate) fn model_not_found(model: &str) -> Self {
        let model: String = model.chars().take(ECHO_CHARS_MAX).collect();
        Self::new(
            Case::ModelNotFound,
            format!("model '{model}' is not served here: GET /v1/models lists those that are"),
        )
        .param("model")
    }

    /// A response that nobody keeps, or that is another account's: which of the two is nobody's business.
    pub(crate) fn thread_not_found(id: &str) -> Self {
        let id: String = id.chars().take(ECHO_CHARS_MAX).collect();
        Self::new(
            Case::ThreadNotFound,
            format!("previous response with id '{id}' not found: send the whole conversation"),
        )
        .param("previous_response_id")
    }

    /// Whose a response is cannot be read now.
    pub(crate) fn threads_unread(log: impl Into<String>) -> Self {
        Self::busy("whose 'previous_response_id' is cannot be read").log(log)
    }

    pub(crate) fn invalid_key() -> Self {
        Self::new(
            Case::InvalidApiKey,
            "no valid API key was given: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'",
        )
    }

    /// A run that is over, and so is whatever was handed out for it.
    pub(crate) fn run_ended(run: &RunId, why: &str) -> Self {
        Self::new(
            Case::RunEnded,
            format!("run {run} has ended: {why}; whoever handed out this key can open another run"),
        )
    }

    pub(crate) fn run_not_found(run: &str) -> Self {
        let run: String = run.chars().take(ECHO_CHARS_MAX).collect();
        Self::new(
            Case::RunNotFound,
            format!(
                "run '{run}' is not one of this key's that are open: it is closed, its time is up, or it never was"
            ),
        )
    }

    /// What was asked cannot be bounded, so it cannot be held.
    pub(crate) fn unbounded(param: &str, problem: &str) -> Self {
        Self::new(
            Case::CostUnbounded,
            format!("the cost of '{param}' cannot be bounded: {problem}"),
        )
        .param(param)
    }

    pub(crate) fn context_exceeded(input: u64, context: u64) -> Self {
        Self::new(
            Case::ContextLengthExceeded,
            format!(
                "the prompt has {input} tokens and the model's context {context}, of which at least 1 is for output: shorten the prompt"
            ),
        )
        .param("messages")
    }

    /// A neuron would not take the request and said why.
    pub(crate) fn passed_on(status: StatusCode, body: &[u8]) -> Self {
        let mut error = Self::new(
            Case::InvalidBody,
            "the model's neuron does not accept the request",
        );
        error.verbatim = json::from_slice(body)
            .ok()
            .filter(|body| body.get("error").is_some_and(Value::is_object))
            .map(|body| (status, body));
        error
    }

    /// No usable upstream now.
    pub(crate) fn no_upstream(model: &ModelId, log: impl Into<String>) -> Self {
        Self::new(
            Case::ServiceUnavailable,
            format!(
                "no upstream serves model '{model}' at the moment: try again in {RETRY_AWAY_S} s"
            ),
        )
        .retry_after(RETRY_AWAY_S)
        .log(log)
    }

    /// The gateway itself has no room, or is about to stop.
    pub(crate) fn busy(why: &str) -> Self {
        Self::new(Case::ServiceUnavailable, format!("{why}: try again in 1 s")).retry_after(1)
    }

    pub(crate) fn ledger_unavailable(log: impl Into<String>) -> Self {
        Self::new(
            Case::LedgerUnavailable,
            format!(
                "the spend ledger cannot be reached, so the request was not let through: try again in {RETRY_AWAY_S} s"
            ),
        )
        .retry_after(RETRY_AWAY_S)
        .log(log)
    }

    /// The answer came, but its cost could not be recorded in time, so it is withheld.
    pub(crate) fn not_recorded(log: impl Into<String>) -> Self {
        Self::new(
            Case::LedgerUnavailable,
            format!(
                "the answer's cost could not be recorded, so the answer is withheld; it stays charged: try again in {RETRY_AWAY_S} s"
            ),
        )
        .retry_after(RETRY_AWAY_S)
        .log(log)
    }

    /// The upstream could not be reached: nothing was used.
    pub(crate) fn upstream_unreachable(upstream: &str, log: impl Into<String>) -> Self {
        Self::new(
            Case::UpstreamConnection,
            format!("upstream '{upstream}' cannot be reached"),
        )
        .log(log)
    }

    /// The upstream broke off: what it used so far is charged.
    pub(crate) fn upstream_broke(upstream: &str, log: impl Into<String>) -> Self {
        Self::new(
            Case::UpstreamConnection,
            format!("upstream '{upstream}' broke off before the answer was complete"),
        )
        .log(log)
    }

    /// What the upstream sent is no answer, though it came whole.
    pub(crate) fn upstream_gave_none(upstream: &str, problem: &str) -> Self {
        let message = format!("upstream '{upstream}' gave no answer: {problem}");
        Self::new(Case::UpstreamConnection, message).log(problem)
    }

    /// The upstream refused the operator's own key or bill, or sent the request elsewhere: nothing that
    /// the client or a retry could cure.
    pub(crate) fn upstream_refused(upstream: &str, log: impl Into<String>) -> Self {
        let mut error = Self::new(
            Case::UpstreamConnection,
            format!(
                "upstream '{upstream}' does not serve this gateway at the moment; its operator has to see to it"
            ),
        );
        let no = HeaderValue::from_static("false");
        error.headers.insert(X_SHOULD_RETRY, no);
        error.headers.insert(X_REFUSED_BY, BY_UPSTREAM);
        error.log(log)
    }

    /// Where the upstream should be, something else answered that there is nothing.
    pub(crate) fn upstream_not_there(upstream: &str, log: impl Into<String>) -> Self {
        let mut error = Self::upstream_refused(upstream, log);
        error.message = format!(
            "upstream '{upstream}' was not found where it is configured; its operator has to look at its base_url"
        );
        error
    }

    /// The upstream answered with an error of which only the head came.
    pub(crate) fn upstream_error_lost(
        upstream: &str,
        status: StatusCode,
        headers: HeaderMap,
    ) -> Self {
        let message = format!("upstream '{upstream}' answered {status}; what it said was lost");
        let mut error = Self::new(Case::UpstreamConnection, message);
        error.status = Some(status);
        error.headers = headers;
        error.headers.insert(X_REFUSED_BY, BY_UPSTREAM);
        error
    }

    pub(crate) fn upstream_timeout(upstream: &str) -> Self {
        Self::new(
            Case::UpstreamTimeout,
            format!("upstream '{upstream}' did not finish within the time a request may take"),
        )
        .log("request deadline passed")
    }

    pub(crate) fn route_not_served(path: &str, instead: &str) -> Self {
        Self::new(
            Case::RouteNotServed,
            format!("{path} is not served by this version of the gateway: {instead}"),
        )
    }

    /// A team that the caller's key may not name.
    pub(crate) fn team_not_allowed(team: &TeamId) -> Self {
        let message = format!(
            "the key may not name team '{team}': leave x-seatbelt-team out, or have the operator list it in the key's teams"
        );
        Self::new(Case::TeamNotAllowed, message)
    }

    /// A command that was not carried out, in the client's words.
    pub(crate) fn from_command(error: &CommandError) -> Self {
        match error {
            CommandError::UnknownAccount { .. }
            | CommandError::UnknownKey { .. }
            | CommandError::KeyRevoked { .. } => Self::invalid_key().log(error.to_string()),
            CommandError::RunEnded { run } => Self::run_ended(run, "it is not open any more"),
            CommandError::TooManyRuns { .. } => Self::new(Case::TooManyRuns, error.to_string()),
            CommandError::Unavailable { .. } => Self::ledger_unavailable(error.to_string()),
            CommandError::Invalid { detail } => {
                Self::invalid_body(format_args!("the ledger does not accept it: {detail}"))
            }
            other => Self::new(
                Case::Internal,
                "the request could not be reserved; it was not let through",
            )
            .log(other.to_string()),
        }
    }

    /// Names the field that is wrong in other words.
    pub(crate) fn naming(mut self, named: impl Fn(&str) -> String) -> Self {
        let Some(param) = self.param.take() else {
            return self;
        };
        let other = named(&param);
        let (quoted, instead) = (format!("'{param}'"), format!("'{other}'"));
        self.message = self.message.replacen(&quoted, &instead, 1);
        self.param = Some(other);
        self
    }

    pub(crate) fn status(&self) -> StatusCode {
        match &self.verbatim {
            Some((status, _)) => *status,
            None => self.status.unwrap_or(self.case.row().status),
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.case.row().code
    }

    /// Writes the log's side of the error, once, where the error is answered.
    pub(crate) fn note(&self) {
        let (status, code, detail) = (self.status().as_u16(), self.code(), self.log.as_deref());
        if !self.status().is_server_error() {
            return tracing::debug!(status, code, detail, "request refused");
        }
        // while something is out, all requests meet it alike
        static FAILURES: LazyLock<Seldom> = LazyLock::new(Seldom::default);
        if let Some(left_out) = FAILURES.note(detail.unwrap_or(code), Instant::now()) {
            tracing::warn!(status, code, detail, left_out, "request failed");
        }
    }

    /// The envelope of the dialect.
    pub(crate) fn envelope(&self, dialect: Dialect) -> Value {
        if let Some((status, body)) = &self.verbatim {
            return dialect.rewrapped(status.as_u16(), body);
        }
        let row = self.case.row();
        dialect.error(&ErrorBody {
            status: row.status.as_u16(),
            kind: row.kind,
            code: row.code,
            message: &self.message,
            param: self.param.as_deref(),
            extras: &self.extras_in(dialect),
        })
    }

    /// What the body says besides. Anthropic's SDKs ask for a conversation that the provider keeps wherever they run
    /// tools by themselves, and go on without one only where they are told in these words that there is none.
    fn extras_in(&self, dialect: Dialect) -> Cow<'_, Map<String, Value>> {
        let mut extras = Cow::Borrowed(&self.extras);
        if dialect == Dialect::Anthropic && self.param.as_deref() == Some("thread") {
            let details =
                json!({"error_code": "thread_unsupported_request", "unsupported": ["thread"]});
            extras.to_mut().insert("details".to_owned(), details);
        }
        extras
    }

    /// The whole response.
    pub(crate) fn into_response(self, dialect: Dialect) -> Response {
        let row = self.case.row();
        let mut response = Response::new(Body::from(self.envelope(dialect).to_string()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        let never = || is_final(self.status()).then_some(false);
        if let Some(should) = row.should_retry.or_else(never) {
            let soon = self
                .retry_after_s
                .is_none_or(|after| after <= RETRY_WORTH_S);
            let text = if should && soon { "true" } else { "false" };
            headers.insert(X_SHOULD_RETRY, HeaderValue::from_static(text));
        }
        headers.extend(self.0.headers);
        response
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        match error.fault {
            Fault::Invalid => Self::invalid_field(&error.param, &error.problem),
            Fault::Unbounded => Self::unbounded(&error.param, &error.problem),
        }
    }
}

#[cfg(test)]
mod tests;
