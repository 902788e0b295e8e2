//! The body of a request for embeddings.

use serde_json::Value;

use super::{Fields, Prompt};
use crate::http::error::ErrorAnswer;

/// Texts of one request.
const TEXTS_MAX: usize = 2_048;
/// Fields that say nothing of the vectors.
const BESIDE: [&str; 4] = ["user", "metadata", "service_tier", "safety_identifier"];
const OBEYED: [&str; 4] = ["model", "input", "encoding_format", "dimensions"];

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct EmbeddingWish {
    pub(in super::super) model: String,
    pub(in super::super) texts: Vec<Prompt>,
    /// Vectors as text of their bytes.
    pub(in super::super) base64: bool,
    /// So many numbers, where not the model's own.
    pub(in super::super) dimensions: Option<usize>,
}

impl EmbeddingWish {
    pub(in super::super) fn read(body: &[u8]) -> Result<Self, ErrorAnswer> {
        let body = super::object(body)?;
        let fields = Fields(&body);
        let strange = body.iter().find(|(name, value)| {
            let name = name.as_str();
            !value.is_null() && !OBEYED.contains(&name) && !BESIDE.contains(&name)
        });
        if let Some((name, _)) = strange {
            let shown: String = name.chars().take(80).collect();
            let message = format!("{shown} is not known here: leave it out");
            return Err(ErrorAnswer::unsupported(shown, message));
        }
        let base64 = match fields.get("encoding_format").map(Value::as_str) {
            None | Some(Some("float")) => false,
            Some(Some("base64")) => true,
            Some(_) => {
                return Err(ErrorAnswer::invalid_value(
                    "encoding_format",
                    "float or base64",
                ));
            }
        };
        let dimensions = fields.whole("dimensions")?;
        let dimensions = dimensions.map(|count| usize::try_from(count).unwrap_or(usize::MAX));
        if dimensions == Some(0) {
            return Err(ErrorAnswer::invalid_value("dimensions", "at least 1"));
        }
        let model = fields.model()?;
        let texts = fields.texts("input")?;
        if texts.len() > TEXTS_MAX {
            let wanted = format!("up to {TEXTS_MAX} texts");
            return Err(ErrorAnswer::invalid_value("input", &wanted));
        }
        Ok(Self {
            model,
            texts,
            base64,
            dimensions,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(change: &Value) -> Result<EmbeddingWish, String> {
        let mut body = json!({ "model": "m", "input": "hi" });
        let fields = change.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        EmbeddingWish::read(body.to_string().as_bytes()).map_err(|error| {
            error.json()["error"]["param"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    }

    #[test]
    fn texts_tokens_and_several_of_either_are_taken() {
        let count = |input: Value| read(&json!({ "input": input })).unwrap().texts.len();
        assert_eq!(count(json!("hi")), 1);
        assert_eq!(count(json!(["a", "b", "c"])), 3);
        assert_eq!(count(json!([1, 2])), 1);
        assert_eq!(count(json!([[1, 2], [3]])), 2);
        let wish =
            read(&json!({ "encoding_format": "base64", "dimensions": 7, "user": "ann" })).unwrap();
        assert_eq!((wish.base64, wish.dimensions), (true, Some(7)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (change, field) in [
            (json!({ "input": [] }), "input"),
            (json!({ "input": vec!["a"; TEXTS_MAX + 1] }), "input"),
            (json!({ "encoding_format": "hex" }), "encoding_format"),
            (json!({ "dimensions": 0 }), "dimensions"),
            (json!({ "dimensions": 1.5 }), "dimensions"),
            (json!({ "truncate": true }), "truncate"),
        ] {
            assert_eq!(read(&change), Err(field.to_owned()), "{change}");
        }
    }
}
