//! Every error a client can meet: its status, type, code and headers, in one table, in both dialects.
//!
//! What the client reads (`message`) and what the log says (`log`) are two fields. Never 402. An
//! upstream's own error is passed on elsewhere and is not made here.

use std::ops::{Deref, DerefMut};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use seatbelt_schemas::{
    amount::usd_text,
    command::{CommandError, Refusal},
    event::RefusalReason,
    ids::ModelId,
    meter::Meter,
    time::rfc3339_ms,
};
use serde_json::{Map, Value, json};

pub(crate) mod ratelimit;

/// Says to the official SDKs whether a retry can help.
pub(crate) const X_SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Position of the last event of the request that was known when the headers were sent.
pub(crate) const X_POSITION: HeaderName = HeaderName::from_static("x-seatbelt-position");
/// Who refused: a cap of the ledger, or the upstream itself.
pub(crate) const X_REFUSED_BY: HeaderName = HeaderName::from_static("x-seatbelt-refused-by");
pub(crate) const BY_UPSTREAM: HeaderValue = HeaderValue::from_static("upstream");
/// Longest wait that the official SDKs are told to sit out: they sleep for as long as they are told.
const RETRY_WORTH_S: u64 = 60;
/// Longest piece of a client's own text that is shown back to it.
const ECHO_CHARS_MAX: usize = 120;
/// Seconds after which to try again when the ledger or an upstream is away.
const RETRY_AWAY_S: u64 = 2;

/// How errors are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `{"error":{"message","type","code","param",...}}`
    OpenAi,
    /// `{"type":"error","error":{"type","message",...}}`
    Anthropic,
}

/// What went wrong, by the row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    BalanceSpent,
    WindowSpent,
    WindowUnsatisfiable,
    Held,
    InvalidApiKey,
    ModelNotFound,
    ServiceUnavailable,
    LedgerUnavailable,
    ContextLengthExceeded,
    CostUnbounded,
    UpstreamConnection,
    UpstreamTimeout,
    InvalidBody,
    MissingModelField,
    BodyTooLarge,
    BodyTimeout,
    RouteNotFound,
    RouteNotServed,
    MethodNotAllowed,
    Internal,
}

/// One row of the table.
struct Row {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    should_retry: Option<bool>,
}

impl Case {
    fn row(self) -> Row {
        use StatusCode as S;
        const INVALID: &str = "invalid_request_error";
        const API: &str = "api_error";
        const RATE: &str = "rate_limit_error";
        let (status, kind, code, should_retry) = match self {
            Self::BalanceSpent => (
                S::TOO_MANY_REQUESTS,
                "insufficient_quota",
                "insufficient_quota",
                Some(false),
            ),
            Self::WindowSpent | Self::Held => (
                S::TOO_MANY_REQUESTS,
                RATE,
                "rate_limit_exceeded",
                Some(true),
            ),
            Self::WindowUnsatisfiable => (
                S::TOO_MANY_REQUESTS,
                RATE,
                "rate_limit_exceeded",
                Some(false),
            ),
            Self::InvalidApiKey => (S::UNAUTHORIZED, INVALID, "invalid_api_key", Some(false)),
            Self::ModelNotFound => (S::NOT_FOUND, INVALID, "model_not_found", None),
            Self::ServiceUnavailable => (
                S::SERVICE_UNAVAILABLE,
                API,
                "service_unavailable",
                Some(true),
            ),
            Self::LedgerUnavailable => (
                S::SERVICE_UNAVAILABLE,
                API,
                "ledger_unavailable",
                Some(true),
            ),
            Self::ContextLengthExceeded => {
                (S::BAD_REQUEST, INVALID, "context_length_exceeded", None)
            }
            Self::CostUnbounded => (S::BAD_REQUEST, INVALID, "cost_unbounded", None),
            Self::UpstreamConnection => (S::BAD_GATEWAY, API, "upstream_connection_error", None),
            Self::UpstreamTimeout => (S::GATEWAY_TIMEOUT, API, "upstream_timeout", Some(false)),
            Self::InvalidBody => (S::BAD_REQUEST, INVALID, "invalid_body", None),
            Self::MissingModelField => (S::BAD_REQUEST, INVALID, "missing_model_field", None),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", None),
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, INVALID, "request_timeout", None),
            Self::RouteNotFound => (S::NOT_FOUND, INVALID, "route_not_found", None),
            Self::RouteNotServed => (S::NOT_FOUND, INVALID, "route_not_served", None),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed", None),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, API, "internal_error", None),
        };
        Row {
            status,
            kind,
            code,
            should_retry,
        }
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

    fn log(mut self, log: impl Into<String>) -> Self {
        self.log = Some(log.into());
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

    pub(crate) fn invalid_key() -> Self {
        Self::new(
            Case::InvalidApiKey,
            "no valid API key was given: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'",
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
        error.verbatim = serde_json::from_slice(body)
            .ok()
            .filter(|body: &Value| body.get("error").is_some_and(Value::is_object))
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
            format!("upstream '{upstream}' cannot be reached; nothing was charged"),
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

    /// A refusal of the ledger, in the client's words.
    pub(crate) fn refused(refusal: &Refusal, now_ms: u64) -> Self {
        let reason = refusal.reason;
        let resets = refusal.cap.window.resets();
        let case = match reason {
            RefusalReason::Unpriced => Case::CostUnbounded,
            RefusalReason::Held => Case::Held,
            _ if !resets => Case::BalanceSpent,
            RefusalReason::Spent => Case::WindowSpent,
            RefusalReason::Unsatisfiable => Case::WindowUnsatisfiable,
        };
        let now_ms = now_ms.max(refusal.at_ms);
        let until = |at_ms: u64| at_ms.saturating_sub(now_ms).div_ceil(1000).max(1);
        let window_s = refusal
            .cap
            .window
            .length_ms(now_ms)
            .map(|ms| ms.div_ceil(1000));
        let retry_after_s = match case {
            Case::Held => Some(1),
            Case::WindowSpent | Case::WindowUnsatisfiable => {
                refusal.resets_at_ms.map(until).or(window_s)
            }
            _ => None,
        };
        let mut error = Self::new(case, refusal_message(case, refusal, retry_after_s));
        error.retry_after_s = retry_after_s;
        error.extras = refusal_extras(refusal);
        error.headers.insert(X_POSITION, refusal.position.0.into());
        let by_cap = HeaderValue::from_static("cap");
        error.headers.insert(X_REFUSED_BY, by_cap);
        let caps = std::slice::from_ref(&refusal.cap);
        ratelimit::show(caps, now_ms, &mut error.headers);
        error
    }

    /// A command that was not carried out, in the client's words.
    pub(crate) fn from_command(error: &CommandError) -> Self {
        match error {
            CommandError::UnknownAccount { .. }
            | CommandError::UnknownKey { .. }
            | CommandError::KeyRevoked { .. } => Self::invalid_key().log(error.to_string()),
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

    pub(crate) fn status(&self) -> StatusCode {
        match &self.verbatim {
            Some((status, _)) => *status,
            None => self.case.row().status,
        }
    }

    pub(crate) fn code(&self) -> &'static str {
        self.case.row().code
    }

    /// Writes the log's side of the error, once, where the error is answered.
    pub(crate) fn note(&self) {
        let (status, code, detail) = (self.status().as_u16(), self.code(), self.log.as_deref());
        if self.status().is_server_error() {
            tracing::warn!(status, code, detail, "request failed");
        } else {
            tracing::debug!(status, code, detail, "request refused");
        }
    }

    /// The envelope of the dialect.
    pub(crate) fn envelope(&self, dialect: Dialect) -> Value {
        if let Some((_, body)) = &self.verbatim {
            return match dialect {
                Dialect::OpenAi => body.clone(),
                Dialect::Anthropic => json!({ "type": "error", "error": body.get("error") }),
            };
        }
        let row = self.case.row();
        let mut inner = Map::new();
        match dialect {
            Dialect::OpenAi => {
                inner.insert("message".into(), json!(self.message));
                inner.insert("type".into(), json!(row.kind));
                inner.insert("code".into(), json!(row.code));
                inner.insert("param".into(), json!(self.param));
            }
            Dialect::Anthropic => {
                inner.insert("type".into(), json!(row.kind));
                inner.insert("message".into(), json!(self.message));
                inner.insert("code".into(), json!(row.code));
                if let Some(param) = &self.param {
                    inner.insert("param".into(), json!(param));
                }
            }
        }
        inner.extend(self.extras.clone());
        match dialect {
            Dialect::OpenAi => json!({ "error": inner }),
            Dialect::Anthropic => json!({ "type": "error", "error": inner }),
        }
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
        if let Some(should) = row.should_retry {
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

fn refusal_extras(refusal: &Refusal) -> Map<String, Value> {
    let cap = &refusal.cap;
    let extras = json!({
        "reason": refusal.reason.as_str(),
        "cap": cap.cap,
        "scope": cap.scope.kind(),
        "meter": cap.meter,
        "limit": cap.limit,
        "spent": cap.spent,
        "held": cap.held,
        "requested": refusal.requested,
        "resets_at": refusal.resets_at_ms.map(rfc3339_ms),
    });
    match extras {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// An amount with its unit, for people.
fn amount(meter: Meter, value: u64) -> String {
    match meter {
        Meter::Cost => format!("{} USD", usd_text(value)),
        Meter::Concurrency => format!("{value} open requests"),
        Meter::Requests | Meter::Tokens => format!("{value} {meter}"),
        Meter::InputTokens => format!("{value} input tokens"),
        Meter::OutputTokens => format!("{value} output tokens"),
    }
}

fn refusal_message(case: Case, refusal: &Refusal, retry_after_s: Option<u64>) -> String {
    let cap = &refusal.cap;
    if case == Case::CostUnbounded {
        return format!(
            "cap '{}' of {} counts money and this model has no price: use another model, or have its price set",
            cap.cap, cap.scope
        );
    }
    let of = |value| amount(cap.meter, value);
    let numbers = format!(
        "the request needs up to {}; cap '{}' of {} allows {}, of which {} spent and {} held",
        of(refusal.requested),
        cap.cap,
        cap.scope,
        of(cap.limit),
        of(cap.spent),
        of(cap.held),
    );
    let seconds = retry_after_s.unwrap_or(1);
    let remedy = match case {
        Case::BalanceSpent => {
            "it does not refill by itself: ask for a smaller maximum, or have the cap credited"
                .to_owned()
        }
        Case::WindowUnsatisfiable => "it can never fit: ask for a smaller maximum".to_owned(),
        Case::Held => "requests in progress hold the rest: try again in 1 s".to_owned(),
        _ => format!(
            "enough of it frees up in {seconds} s: try again then, or ask for a smaller maximum"
        ),
    };
    format!("{numbers}; {remedy}")
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{
        cap::CapStanding,
        ids::{CapId, KeyId},
        position::Position,
        scope::Scope,
        window::Window,
    };

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn refusal(reason: RefusalReason, window: Window, resets_at_ms: Option<u64>) -> Refusal {
        Refusal {
            position: Position(7),
            at_ms: NOW,
            reason,
            cap: CapStanding {
                cap: CapId::new("key/k/tokens/x").unwrap(),
                scope: Scope::Key(KeyId::new("k").unwrap()),
                meter: Meter::Tokens,
                window,
                limit: 100,
                spent: 60,
                held: 10,
                resets_at_ms: None,
            },
            requested: 50,
            resets_at_ms,
        }
    }

    /// Status, type, code, Retry-After, x-should-retry.
    fn shown(error: ApiError) -> (u16, String, String, Option<String>, Option<String>) {
        let body = error.envelope(Dialect::OpenAi);
        let response = error.into_response(Dialect::OpenAi);
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        (
            response.status().as_u16(),
            body["error"]["type"].as_str().unwrap().to_owned(),
            body["error"]["code"].as_str().unwrap().to_owned(),
            header("retry-after"),
            header("x-should-retry"),
        )
    }

    #[track_caller]
    fn check(
        error: ApiError,
        status: u16,
        kind: &str,
        code: &str,
        retry: Option<&str>,
        should: Option<&str>,
    ) {
        let expected = (
            status,
            kind.to_owned(),
            code.to_owned(),
            retry.map(str::to_owned),
            should.map(str::to_owned),
        );
        assert_eq!(shown(error), expected);
    }

    #[test]
    fn refusals_follow_the_table() {
        let rolling = Window::Rolling { seconds: 3600 };
        let refused =
            |reason, window, resets| ApiError::refused(&refusal(reason, window, resets), NOW);
        let (quota, rate, limit) = (
            "insufficient_quota",
            "rate_limit_error",
            "rate_limit_exceeded",
        );
        let soon = Some(NOW + 1500);
        check(
            refused(RefusalReason::Spent, Window::Balance, None),
            429,
            quota,
            quota,
            None,
            Some("false"),
        );
        check(
            refused(RefusalReason::Spent, rolling, soon),
            429,
            rate,
            limit,
            Some("2"),
            Some("true"),
        );
        check(
            refused(RefusalReason::Spent, rolling, Some(NOW + 61_000)),
            429,
            rate,
            limit,
            Some("61"),
            Some("false"),
        );
        check(
            refused(RefusalReason::Spent, rolling, Some(NOW - 5)),
            429,
            rate,
            limit,
            Some("1"),
            Some("true"),
        );
        check(
            refused(RefusalReason::Unsatisfiable, rolling, Some(NOW + 3_600_000)),
            429,
            rate,
            limit,
            Some("3600"),
            Some("false"),
        );
        check(
            refused(RefusalReason::Unsatisfiable, rolling, None),
            429,
            rate,
            limit,
            Some("3600"),
            Some("false"),
        );
        check(
            refused(RefusalReason::Held, rolling, None),
            429,
            rate,
            limit,
            Some("1"),
            Some("true"),
        );
        check(
            refused(RefusalReason::Held, Window::Balance, None),
            429,
            rate,
            limit,
            Some("1"),
            Some("true"),
        );
        check(
            refused(RefusalReason::Unpriced, Window::Balance, None),
            400,
            "invalid_request_error",
            "cost_unbounded",
            None,
            None,
        );
    }

    #[test]
    fn all_other_errors_follow_the_table() {
        let model = ModelId::new("m").unwrap();
        let (invalid, api) = ("invalid_request_error", "api_error");
        let again = Some("true");
        check(
            ApiError::invalid_key(),
            401,
            invalid,
            "invalid_api_key",
            None,
            Some("false"),
        );
        check(
            ApiError::model_not_found("x"),
            404,
            invalid,
            "model_not_found",
            None,
            None,
        );
        check(
            ApiError::no_upstream(&model, ""),
            503,
            api,
            "service_unavailable",
            Some("2"),
            again,
        );
        check(
            ApiError::busy("full"),
            503,
            api,
            "service_unavailable",
            Some("1"),
            again,
        );
        check(
            ApiError::ledger_unavailable(""),
            503,
            api,
            "ledger_unavailable",
            Some("2"),
            again,
        );
        check(
            ApiError::not_recorded(""),
            503,
            api,
            "ledger_unavailable",
            Some("2"),
            again,
        );
        check(
            ApiError::context_exceeded(9, 8),
            400,
            invalid,
            "context_length_exceeded",
            None,
            None,
        );
        check(
            ApiError::unbounded("a", "b"),
            400,
            invalid,
            "cost_unbounded",
            None,
            None,
        );
        check(
            ApiError::upstream_unreachable("u", ""),
            502,
            api,
            "upstream_connection_error",
            None,
            None,
        );
        check(
            ApiError::upstream_broke("u", ""),
            502,
            api,
            "upstream_connection_error",
            None,
            None,
        );
        check(
            ApiError::upstream_timeout("u"),
            504,
            api,
            "upstream_timeout",
            None,
            Some("false"),
        );
        check(
            ApiError::invalid_body("x"),
            400,
            invalid,
            "invalid_body",
            None,
            None,
        );
        check(
            ApiError::missing_model(),
            400,
            invalid,
            "missing_model_field",
            None,
            None,
        );
        check(
            ApiError::new(Case::BodyTooLarge, ""),
            413,
            invalid,
            "request_too_large",
            None,
            None,
        );
        check(
            ApiError::new(Case::BodyTimeout, ""),
            408,
            invalid,
            "request_timeout",
            None,
            None,
        );
        check(
            ApiError::new(Case::RouteNotFound, ""),
            404,
            invalid,
            "route_not_found",
            None,
            None,
        );
        check(
            ApiError::route_not_served("/x", "y"),
            404,
            invalid,
            "route_not_served",
            None,
            None,
        );
        check(
            ApiError::new(Case::MethodNotAllowed, ""),
            405,
            invalid,
            "method_not_allowed",
            None,
            None,
        );
        check(
            ApiError::new(Case::Internal, ""),
            500,
            api,
            "internal_error",
            None,
            None,
        );
    }

    #[test]
    fn a_ledger_that_says_no_is_told_apart_from_one_that_says_nothing() {
        let key = KeyId::new("k").unwrap();
        let status = |error: CommandError| ApiError::from_command(&error).status().as_u16();
        assert_eq!(status(CommandError::KeyRevoked { key: key.clone() }), 401);
        assert_eq!(status(CommandError::UnknownKey { key }), 401);
        assert_eq!(status(CommandError::unavailable("away")), 503);
        assert_eq!(status(CommandError::invalid("odd")), 400);
    }

    #[test]
    fn a_refusal_carries_its_numbers_in_both_dialects() {
        let rolling = Window::Rolling { seconds: 60 };
        let error = ApiError::refused(&refusal(RefusalReason::Spent, rolling, Some(NOW)), NOW);
        let openai = error.envelope(Dialect::OpenAi);
        assert_eq!(
            openai["error"],
            json!({
                "message": "the request needs up to 50 tokens; cap 'key/k/tokens/x' of key k allows 100 tokens, of which 60 tokens spent and 10 tokens held; enough of it frees up in 1 s: try again then, or ask for a smaller maximum",
                "type": "rate_limit_error", "code": "rate_limit_exceeded", "param": null,
                "reason": "spent", "cap": "key/k/tokens/x", "scope": "key", "meter": "tokens",
                "limit": 100, "spent": 60, "held": 10, "requested": 50, "resets_at": "2023-11-14T22:13:20.000Z",
            })
        );
        let anthropic = error.envelope(Dialect::Anthropic);
        assert_eq!(anthropic["type"], "error");
        assert_eq!(anthropic["error"]["type"], "rate_limit_error");
        assert_eq!(anthropic["error"]["requested"], 50);
    }
}
