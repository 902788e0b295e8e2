//! Whose manner of speaking: what wraps an error, and what a client's SDK expects to read.

use serde_json::{Map, Value, json};

use crate::translate::errors::{anthropic, translated};

/// A vendor's dialect. An API belongs to one, an upstream speaks one, and errors are wrapped in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error":{"message","type","code","param",...}}`
    OpenAi,
    /// `{"type":"error","error":{"type","message",...}}`
    Anthropic,
}

/// What an error says in any dialect.
#[derive(Debug)]
pub struct ErrorBody<'a> {
    /// The status it goes out under.
    pub status: u16,
    /// The class that OpenAI's SDKs tell errors apart by; Anthropic's go by the status.
    pub kind: &'a str,
    /// The one thing that went wrong.
    pub code: &'a str,
    /// For people.
    pub message: &'a str,
    /// The field at fault.
    pub param: Option<&'a str>,
    /// What neither dialect knows, such as the numbers of a cap.
    pub extras: &'a Map<String, Value>,
}

impl Dialect {
    /// An error in the envelope of this dialect.
    pub fn error(self, body: &ErrorBody<'_>) -> Value {
        let mut inner = Map::new();
        match self {
            Self::OpenAi => {
                inner.insert("message".into(), json!(body.message));
                inner.insert("type".into(), json!(body.kind));
                inner.insert("code".into(), json!(body.code));
                inner.insert("param".into(), json!(body.param));
            }
            Self::Anthropic => {
                let kind = anthropic(Some(body.status), body.kind);
                inner.insert("type".into(), json!(kind));
                inner.insert("message".into(), json!(body.message));
                inner.insert("code".into(), json!(body.code));
                if let Some(param) = body.param {
                    inner.insert("param".into(), json!(param));
                }
            }
        }
        inner.extend(body.extras.clone());
        match self {
            Self::OpenAi => json!({ "error": inner }),
            Self::Anthropic => json!({ "type": "error", "error": inner }),
        }
    }

    /// An error that came in the OpenAI envelope under a status, in this one.
    pub fn rewrapped(self, status: u16, openai: &Value) -> Value {
        match self {
            Self::OpenAi => openai.clone(),
            Self::Anthropic => translated(self, Some(status), openai.to_string().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(dialect: Dialect, param: Option<&str>) -> String {
        let extras = Map::from_iter([("limit".to_owned(), json!(5))]);
        let body = ErrorBody {
            status: 429,
            kind: "k",
            code: "c",
            message: "m",
            param,
            extras: &extras,
        };
        dialect.error(&body).to_string()
    }

    #[test]
    fn each_dialect_has_its_own_envelope() {
        assert_eq!(
            shown(Dialect::OpenAi, None),
            r#"{"error":{"message":"m","type":"k","code":"c","param":null,"limit":5}}"#
        );
        assert_eq!(
            shown(Dialect::Anthropic, None),
            r#"{"type":"error","error":{"type":"rate_limit_error","message":"m","code":"c","limit":5}}"#
        );
        assert!(shown(Dialect::Anthropic, Some("p")).contains(r#""param":"p""#));
    }

    #[test]
    fn an_envelope_of_another_keeps_all_that_is_in_it() {
        let error = json!({"error": {"message": "m", "own": [1]}});
        assert_eq!(Dialect::OpenAi.rewrapped(404, &error), error);
        assert_eq!(
            Dialect::Anthropic.rewrapped(404, &error),
            json!({"type": "error", "error":
                {"message": "m", "own": [1], "type": "not_found_error"}})
        );
    }
}
