//! What is asked of every answer of an upstream, before anything reads it.

use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use seatbelt_schemas::json;
use serde_json::Value;

use crate::error::ApiError;

/// Upstream headers that are passed on with its answer.
const PASSED_HEADERS: [&str; 5] = [
    "content-type",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "openai-processing-ms",
];

/// Whether what answered that there is nothing speaks no API: a web server at a wrong address.
pub(crate) fn is_of_no_api(status: StatusCode, body: &[u8]) -> bool {
    let nothing_there = matches!(
        status,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED
    );
    nothing_there && !matches!(json::from_slice(body), Ok(Value::Object(_)))
}

/// Says so, and where to look.
pub(crate) fn not_there(upstream: &str, status: StatusCode) -> ApiError {
    let log = format!(
        "upstream {upstream} answered {status} with what is no error of its API: look at its base_url, which ends in /v1 where kind is \"openai\", and has no path where it is \"anthropic\""
    );
    ApiError::upstream_not_there(upstream, log)
}

/// What of an upstream's headers is for its client.
pub(crate) fn passed_headers(from: &HeaderMap) -> HeaderMap {
    let mut to = HeaderMap::new();
    for name in PASSED_HEADERS {
        if let Some(value) = from.get(name) {
            to.insert(HeaderName::from_static(name), value.clone());
        }
    }
    to
}

/// Why an answer can be neither read nor shown: it is in an encoding that nobody asked for.
pub(crate) fn unreadable(answer: &reqwest::Response) -> Option<String> {
    let encodings = answer.headers().get_all(header::CONTENT_ENCODING);
    let unasked = encodings.iter().find(|value| *value != "identity")?;
    Some(format!(
        "its answer is encoded as {unasked:?}, which was not asked for"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_upstreams_headers_only_those_for_the_client_pass() {
        let mut from = HeaderMap::new();
        for name in ["retry-after", "set-cookie", "server", "content-type"] {
            from.insert(name, "x".parse().unwrap());
        }
        let passed = passed_headers(&from);
        assert_eq!(passed.len(), 2);
        assert!(passed.contains_key("retry-after") && passed.contains_key("content-type"));
    }
}
