//! JSON of others, read as what it says.
//!
//! `serde_json::Value` takes an object whose first field is named after its own raw values for the JSON
//! within that field's text: whoever writes such a text hides from every bound what it becomes, in size and
//! in depth. Here such an object is one like any other.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};

/// Any value.
#[derive(Debug, Clone, PartialEq)]
pub struct Json(pub Value);

/// A value from its bytes.
///
/// # Errors
///
/// As of [`serde_json::from_slice`].
pub fn from_slice(json: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice(json).map(|Json(value)| value)
}

/// A value from its text.
///
/// # Errors
///
/// As of [`serde_json::from_str`].
pub fn from_str(json: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(json).map(|Json(value)| value)
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Reading).map(Self)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Json(item)) = from.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some((name, Json(value))) = from.next_entry::<String, Json>()? {
            fields.insert(name, value);
        }
        Ok(Value::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `serde_json` takes for JSON within JSON.
    const RAW: &str = "$serde_json::private::RawValue";

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -2, 3.5, 1e400, 18446744073709551615, "\u00e9", true, null], "b": {}, "a": 2}"#,
            "\"text\"",
            "[[[]]]",
            "-0",
            "184467440737095516150",
            "{\"a\"",
            "1e999999",
        ] {
            let (plain, theirs) = (from_str(text), serde_json::from_str::<Value>(text));
            assert_eq!(plain.as_ref().ok(), theirs.as_ref().ok(), "{text}");
            let order = |value: Result<Value, _>| value.map(|value| value.to_string()).ok();
            assert_eq!(order(plain), order(theirs), "{text}");
        }
    }

    #[test]
    fn an_object_named_after_raw_values_is_one_like_any_other() {
        let hidden = serde_json::json!({ RAW: "[{},{},{}]" });
        let [first, escaped] = [RAW.to_owned(), RAW.replacen('$', "\\u0024", 1)];
        for name in [first, escaped] {
            let text = format!("{{\"{name}\": \"[{{}},{{}},{{}}]\"}}");
            assert_eq!(from_str(&text).unwrap(), hidden);
            assert_eq!(from_slice(text.as_bytes()).unwrap(), hidden);
        }
    }

    #[test]
    fn depth_has_the_bound_of_serde_json_wherever_it_hides() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(from_str(&deep(127)).is_ok());
        assert!(from_str(&deep(128)).is_err());
        let within = serde_json::json!({ RAW: deep(100) }).to_string();
        let Value::Object(fields) = from_str(&within).unwrap() else {
            panic!("an object")
        };
        assert!(fields[RAW].is_string());
    }
}
