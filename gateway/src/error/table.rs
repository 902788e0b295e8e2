//! The table: status, type and code of everything that can go wrong, and whether a retry can help.
//!
//! Never 402. The types and codes are those that the official SDKs know.

use axum::http::StatusCode;

const INVALID: &str = "invalid_request_error";
const API: &str = "api_error";
const RATE: &str = "rate_limit_error";
const ENCODING: &str = "encoding_not_taken";
const REUSED: &str = "idempotency_key_reused";

/// What went wrong, by the row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    BalanceSpent,
    WindowSpent,
    WindowUnsatisfiable,
    Held,
    HeldByRuns,
    InvalidApiKey,
    RunEnded,
    TeamNotAllowed,
    RunNotFound,
    TooManyRuns,
    ModelNotFound,
    ThreadNotFound,
    ServiceUnavailable,
    LedgerUnavailable,
    ContextLengthExceeded,
    CostUnbounded,
    UpstreamConnection,
    UpstreamTimeout,
    InvalidBody,
    IdempotencyKeyReused,
    RequestInProgress,
    RequestAnswered,
    TooManyFirstUses,
    MissingModelField,
    BodyTooLarge,
    BodyTimeout,
    EncodingNotTaken,
    RouteNotFound,
    RouteNotServed,
    MethodNotAllowed,
    Internal,
}

/// Whether the same request would meet the same answer again, so that no retry can cure it.
pub(crate) fn is_final(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        400 | 401 | 402 | 403 | 404 | 405 | 406 | 410 | 411 | 413 | 414 | 415 | 422 | 431
    )
}

/// One row of the table.
pub(super) struct Row {
    pub(super) status: StatusCode,
    pub(super) kind: &'static str,
    pub(super) code: &'static str,
    /// Where the status alone does not say it.
    pub(super) should_retry: Option<bool>,
}

impl Case {
    #[cfg(test)]
    pub(super) const ALL: [Self; 31] = [
        Self::BalanceSpent,
        Self::WindowSpent,
        Self::WindowUnsatisfiable,
        Self::Held,
        Self::HeldByRuns,
        Self::InvalidApiKey,
        Self::RunEnded,
        Self::TeamNotAllowed,
        Self::RunNotFound,
        Self::TooManyRuns,
        Self::ModelNotFound,
        Self::ThreadNotFound,
        Self::ServiceUnavailable,
        Self::LedgerUnavailable,
        Self::ContextLengthExceeded,
        Self::CostUnbounded,
        Self::UpstreamConnection,
        Self::UpstreamTimeout,
        Self::InvalidBody,
        Self::IdempotencyKeyReused,
        Self::RequestInProgress,
        Self::RequestAnswered,
        Self::TooManyFirstUses,
        Self::MissingModelField,
        Self::BodyTooLarge,
        Self::BodyTimeout,
        Self::EncodingNotTaken,
        Self::RouteNotFound,
        Self::RouteNotServed,
        Self::MethodNotAllowed,
        Self::Internal,
    ];

    pub(super) fn row(self) -> Row {
        use StatusCode as S;
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
            Self::WindowUnsatisfiable | Self::HeldByRuns => (
                S::TOO_MANY_REQUESTS,
                RATE,
                "rate_limit_exceeded",
                Some(false),
            ),
            Self::InvalidApiKey => (S::UNAUTHORIZED, INVALID, "invalid_api_key", None),
            Self::RunEnded => (S::FORBIDDEN, INVALID, "run_ended", None),
            Self::TeamNotAllowed => (S::FORBIDDEN, INVALID, "team_not_allowed", None),
            Self::RunNotFound => (S::NOT_FOUND, INVALID, "run_not_found", None),
            Self::TooManyRuns => (S::TOO_MANY_REQUESTS, RATE, "too_many_runs", Some(false)),
            Self::ModelNotFound => (S::NOT_FOUND, INVALID, "model_not_found", None),
            Self::ThreadNotFound => (S::NOT_FOUND, INVALID, "previous_response_not_found", None),
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
            Self::IdempotencyKeyReused => (S::UNPROCESSABLE_ENTITY, INVALID, REUSED, None),
            Self::RequestInProgress => (S::CONFLICT, INVALID, "request_in_progress", Some(true)),
            Self::RequestAnswered => (S::CONFLICT, INVALID, "request_answered", Some(false)),
            // no rate: some clients would ask again, whatever is said
            Self::TooManyFirstUses => (S::BAD_REQUEST, INVALID, "too_many_idempotency_keys", None),
            Self::MissingModelField => (S::BAD_REQUEST, INVALID, "missing_model_field", None),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, INVALID, "request_too_large", None),
            Self::BodyTimeout => (S::REQUEST_TIMEOUT, INVALID, "request_timeout", None),
            Self::EncodingNotTaken => (S::UNSUPPORTED_MEDIA_TYPE, INVALID, ENCODING, None),
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
