//! The errors within a stream: which events are one, and how a client's SDK is told.
//!
//! After an error no normal end follows, so a client that does not see it would take what it has for all
//! there is. An event that its SDK takes for an error passes as it came; any other is told again.

use bytes::BytesMut;
use seatbelt_schemas::json;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    api::Api,
    dialect::Dialect,
    odd::{fields, readable, says_nothing},
    sse::{SseEvent, write_event},
    told::Part,
};

/// Most characters of an error that is no JSON.
const MESSAGE_CHARS_MAX: usize = 4096;

impl Api {
    /// Whether a stream may be whole without the mark of its end: some servers of chat completions close
    /// after the usage. Whoever reads messages takes one without its mark for whole, so none may be.
    pub fn may_end_unmarked(self) -> bool {
        match self {
            Self::Chat | Self::Completions => true,
            Self::Messages | Self::Embeddings | Self::Responses => false,
        }
    }
}

/// Whether the field of an error says that there is one.
fn is_error(raw: Option<&RawValue>) -> bool {
    raw.is_some_and(|raw| !says_nothing(raw.get()))
}

/// Whether an event is an error by its name.
pub(crate) fn named_error(event: &SseEvent) -> bool {
    event.name.as_deref() == Some("error")
}

/// What an event is whose data cannot be read: a comment, or what only the client can make sense of.
pub(crate) fn of_unread(event: &SseEvent) -> Part {
    match named_error(event) {
        true => Part::Error,
        false => Part::Content,
    }
}

/// Passes an upstream's error on, as an event that a client of this dialect takes for one.
pub(crate) fn pass_error(dialect: Dialect, event: &SseEvent, out: &mut BytesMut) {
    match is_told(dialect, event) {
        true => out.extend_from_slice(&event.raw),
        false => write_error(dialect, event, out),
    }
}

/// Writes an upstream's error in this dialect.
fn write_error(dialect: Dialect, event: &SseEvent, out: &mut BytesMut) {
    let error = error_in(dialect, &event.data).to_string();
    write_event(out, Some("error"), error.as_bytes());
}

/// Whether an SDK takes an event for an error as it is: OpenAI's look for the field, Anthropic's for the
/// name.
fn is_told(dialect: Dialect, event: &SseEvent) -> bool {
    let text = readable(&event.data);
    let Ok(Some(fields)) = fields(&text) else {
        return false;
    };
    let error = fields.get("error").copied();
    match dialect {
        Dialect::OpenAi => is_error(error) && error.is_some_and(is_object_or_text),
        Dialect::Anthropic => {
            named_error(event) && error.is_some_and(|error| error.get().starts_with('{'))
        }
    }
}

/// Whether an event is an error of `/v1/responses` as it is: it has no envelope, and says what went wrong itself.
pub(crate) fn says_error_itself(event: &SseEvent) -> bool {
    let text = readable(&event.data);
    let Ok(Some(fields)) = fields(&text) else {
        return false;
    };
    let is_text = |name: &str| {
        fields
            .get(name)
            .is_some_and(|raw| raw.get().starts_with('"'))
    };
    fields
        .get("type")
        .is_some_and(|raw| raw.get() == "\"error\"")
        && is_text("message")
}

/// A zero is no error to an SDK.
fn is_object_or_text(raw: &RawValue) -> bool {
    raw.get().starts_with(['{', '"'])
}

/// An upstream's error in the envelope of this dialect, its own fields kept.
pub(crate) fn error_in(dialect: Dialect, data: &[u8]) -> Value {
    let mut inner = said(&readable(data));
    let message = inner.entry("message").or_insert(Value::Null);
    if message.is_null() || *message == "" {
        *message = json!("the upstream failed and did not say why");
    }
    let kind = match dialect {
        Dialect::OpenAi => "server_error",
        Dialect::Anthropic => "api_error",
    };
    inner.entry("type").or_insert_with(|| json!(kind));
    match dialect {
        Dialect::OpenAi => json!({ "error": inner }),
        Dialect::Anthropic => json!({ "type": "error", "error": inner }),
    }
}

/// What is said of an error, wherever it stands.
fn said(text: &str) -> Map<String, Value> {
    let message = |text: Value| Map::from_iter([("message".to_owned(), text)]);
    match json::from_str(text) {
        Ok(Value::Object(mut fields)) => match fields.shift_remove("error") {
            Some(Value::Object(inner)) if !inner.is_empty() => inner,
            Some(Value::String(text)) if !text.is_empty() => message(json!(text)),
            Some(other) if !says_nothing(&other.to_string()) => message(json!(other.to_string())),
            _ => {
                fields.retain(|name, value| name != "type" || value != "error");
                fields
            }
        },
        Ok(Value::String(text)) => message(json!(text)),
        _ => message(
            text.trim()
                .chars()
                .take(MESSAGE_CHARS_MAX)
                .collect::<String>()
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn event(name: Option<&str>, data: &str) -> SseEvent {
        SseEvent {
            raw: Bytes::from_static(b"raw\n\n"),
            name: name.map(str::to_owned),
            data: data.to_owned().into(),
        }
    }

    #[track_caller]
    fn check(dialect: Dialect, name: Option<&str>, data: &str, expected: &str) {
        let mut out = BytesMut::new();
        pass_error(dialect, &event(name, data), &mut out);
        let expected = match expected {
            "raw" => "raw\n\n".to_owned(),
            error => format!("event: error\ndata: {error}\n\n"),
        };
        assert_eq!(out, expected.as_bytes(), "{data}");
    }

    #[test]
    fn an_error_that_its_sdk_sees_passes_as_it_came() {
        for data in [
            r#"{"error":{"code":7}}"#,
            r#"{"error":"no"}"#,
            r#"{"error":"\ud83d"}"#,
        ] {
            check(Dialect::OpenAi, None, data, "raw");
        }
        let data = r#"{"type":"error","error":{"type":"overloaded_error"}}"#;
        check(Dialect::Anthropic, Some("error"), data, "raw");
    }

    #[test]
    fn any_other_is_told_again_with_all_that_it_said() {
        let name = Some("error");
        let openai = |data, expected| check(Dialect::OpenAi, name, data, expected);
        openai(
            r#"{"message":"no","code":7}"#,
            r#"{"error":{"message":"no","code":7,"type":"server_error"}}"#,
        );
        openai(
            r#"{"error":0}"#,
            r#"{"error":{"message":"0","type":"server_error"}}"#,
        );
        openai("no", r#"{"error":{"message":"no","type":"server_error"}}"#);
        openai(
            r#"{"message":{"$serde_json::private::RawValue":"[[{}]]"}}"#,
            r#"{"error":{"message":{"$serde_json::private::RawValue":"[[{}]]"},"type":"server_error"}}"#,
        );
        openai(
            r#"{"error":false,"message":"no"}"#,
            r#"{"error":{"message":"no","type":"server_error"}}"#,
        );
        let anthropic = |name, data, expected| check(Dialect::Anthropic, name, data, expected);
        let error = r#"{"type":"error","error":{"type":"t","message":"no"}}"#;
        anthropic(None, error, error);
        anthropic(
            name,
            "[1e400]",
            r#"{"type":"error","error":{"message":"[1e400]","type":"api_error"}}"#,
        );
        let none = r#"{"type":"error","error":{"message":"the upstream failed and did not say why","type":"api_error"}}"#;
        anthropic(name, "", none);
        anthropic(name, r#"{"type":"error"}"#, none);
    }
}
