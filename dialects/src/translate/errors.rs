//! An upstream's error in the envelope of another dialect, with a type that its SDKs know.

use serde_json::{Value, json};

use crate::{dialect::Dialect, ends::error_in};

/// An error under a status, or within a stream. Its own fields are kept; a type that the dialect does not know
/// becomes the code, where it has none.
pub(crate) fn translated(dialect: Dialect, status: Option<u16>, data: &[u8]) -> Value {
    let mut error = error_in(dialect, data);
    let Some(inner) = error.get_mut("error").and_then(Value::as_object_mut) else {
        return error;
    };
    let told = inner
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("")
        .to_owned();
    let kind = match dialect {
        Dialect::Anthropic => anthropic(status, &told),
        Dialect::OpenAi => openai(status, &told),
    };
    if told != kind {
        inner.insert("type".to_owned(), json!(kind));
        let says_more = !matches!(told.as_str(), "" | "api_error");
        if inner.get("code").is_none_or(Value::is_null) && says_more {
            inner.insert("code".to_owned(), json!(told));
        }
    }
    error
}

/// A type as Anthropic's SDKs know it: the status tells it, where there is one.
pub(crate) fn anthropic(status: Option<u16>, told: &str) -> &'static str {
    match (status, told) {
        (Some(401), _) => "authentication_error",
        (Some(402), _) => "billing_error",
        (Some(403), _) => "permission_error",
        (Some(404), _) => "not_found_error",
        (Some(413), _) => "request_too_large",
        (Some(429), _)
        | (None, "rate_limit_error" | "insufficient_quota" | "rate_limit_exceeded") => {
            "rate_limit_error"
        }
        (Some(503 | 529), _) | (None, "overloaded_error") => "overloaded_error",
        (Some(408 | 504), _) | (None, "timeout_error") => "timeout_error",
        (Some(400..=499), _) | (None, "invalid_request_error") => "invalid_request_error",
        _ => "api_error",
    }
}

/// A type as OpenAI's SDKs know it.
fn openai(status: Option<u16>, told: &str) -> &'static str {
    match (status, told) {
        (Some(429), _) | (None, "rate_limit_error") => "rate_limit_error",
        (Some(401), _) => "authentication_error",
        (Some(403), _) => "permission_error",
        (Some(400..=499), _) => "invalid_request_error",
        (None, "invalid_request_error" | "not_found_error" | "request_too_large") => {
            "invalid_request_error"
        }
        _ => "server_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(dialect: Dialect, status: Option<u16>, inner: &str, expected: &Value) {
        let data = format!(r#"{{"error":{inner}}}"#);
        assert_eq!(
            translated(dialect, status, data.as_bytes())["error"],
            *expected
        );
    }

    #[test]
    fn a_type_is_one_that_the_clients_sdk_knows_and_the_upstreams_own_is_kept() {
        let to = Dialect::Anthropic;
        check(
            to,
            Some(500),
            r#"{"message":"no","type":"server_error"}"#,
            &json!({"message": "no", "type": "api_error", "code": "server_error"}),
        );
        check(
            to,
            Some(429),
            r#"{"message":"slow","type":"tokens","code":"rate_limit_exceeded"}"#,
            &json!({"message": "slow", "type": "rate_limit_error", "code": "rate_limit_exceeded"}),
        );
        check(
            to,
            None,
            r#"{"message":"no","type":"invalid_request_error","code":null}"#,
            &json!({"message": "no", "type": "invalid_request_error", "code": null}),
        );
        let to = Dialect::OpenAi;
        check(
            to,
            Some(529),
            r#"{"type":"overloaded_error","message":"Overloaded"}"#,
            &json!({"type": "server_error", "message": "Overloaded", "code": "overloaded_error"}),
        );
        check(
            to,
            Some(404),
            r#"{"type":"not_found_error","message":"model: m"}"#,
            &json!({"type": "invalid_request_error", "message": "model: m", "code": "not_found_error"}),
        );
    }

    #[test]
    fn what_is_no_json_is_said_in_the_envelope() {
        let html = translated(Dialect::Anthropic, Some(502), b"<html>bad gateway</html>");
        assert_eq!(html["type"], "error");
        assert_eq!(html["error"]["type"], "api_error");
        assert_eq!(html["error"]["message"], "<html>bad gateway</html>");
    }
}
