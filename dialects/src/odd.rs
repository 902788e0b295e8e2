//! JSON as upstreams really write it: read field by field, so that an odd one spoils no other.
//!
//! Bytes that are no text, halves of surrogate pairs, keys that come twice and numbers beyond any are no
//! reason to lose the text beside them. What cannot be read and may hold content says so: it is left to
//! the caller and never taken for nothing.

use std::{borrow::Cow, collections::BTreeMap};

use seatbelt_schemas::json;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use thiserror::Error;

/// Something that may hold content and cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the upstream's answer has content that cannot be read")]
pub struct Unread;

/// The fields of an object, each as it came; of those that come twice the last.
pub(crate) type Raws<'a> = BTreeMap<String, &'a RawValue>;

/// JSON without what no text can hold.
pub(crate) fn readable(data: &[u8]) -> Cow<'_, str> {
    let has_surrogates = data
        .windows(3)
        .any(|three| matches!(three, br"\ud" | br"\uD"));
    if has_surrogates {
        let mended = mended(data);
        return Cow::Owned(String::from_utf8_lossy(&mended).into_owned());
    }
    String::from_utf8_lossy(data)
}

/// The fields of an object; nothing where the text says nothing.
pub(crate) fn fields(text: &str) -> Result<Option<Raws<'_>>, Unread> {
    match text.trim().is_empty() {
        true => Ok(None),
        false => read_text(text),
    }
}

pub(crate) fn read_text<'a, T: Deserialize<'a>>(text: &'a str) -> Result<Option<T>, Unread> {
    match serde_json::from_str(text) {
        Ok(read) => Ok(Some(read)),
        Err(_) if says_nothing(text) => Ok(None),
        Err(_) => Err(Unread),
    }
}

/// Whether JSON is there as if it were not.
pub(crate) fn says_nothing(text: &str) -> bool {
    match json::from_str(text) {
        Ok(Value::Null | Value::Bool(false)) => true,
        Ok(Value::String(text)) => text.is_empty(),
        Ok(Value::Array(items)) => items.is_empty(),
        Ok(Value::Object(fields)) => fields.is_empty(),
        _ => false,
    }
}

/// JSON with its lone surrogates replaced: an upstream that cuts its text by UTF-16 units makes them,
/// and no text can hold them.
fn mended(data: &[u8]) -> Vec<u8> {
    let unit = |at: usize| {
        let escape = data.get(at..at + 6)?;
        let hex = escape.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    let mut out = Vec::with_capacity(data.len());
    let mut at = 0;
    while at < data.len() {
        let len = match (unit(at), unit(at + 6)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => 12,
            (Some(0xD800..=0xDFFF), _) => {
                out.extend_from_slice(b"\\ufffd");
                at += 6;
                continue;
            }
            _ if data[at] == b'\\' => 2, // an escaped backslash begins no escape
            _ => 1,
        };
        let end = data.len().min(at + len);
        out.extend_from_slice(&data[at..end]);
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_odd_field_spoils_no_other() {
        let text = readable(
            b"{\"a\":1e400,\"b\":\"x\xFF\",\"c\":\"\\ud83d\",\"c\":\"\\uD83D!\",\"d\":{}}",
        );
        let object = fields(&text).unwrap().unwrap();
        let string = |name: &str| read_text::<String>(object[name].get());
        assert_eq!(string("a"), Err(Unread));
        assert_eq!(string("b"), Ok(Some("x\u{fffd}".to_owned())));
        assert_eq!(string("c"), Ok(Some("\u{fffd}!".to_owned())));
        assert_eq!(string("d"), Ok(None));
    }

    #[test]
    fn what_is_whole_is_not_mended() {
        for whole in [r#""\ud83d\ude00""#, r#""\\ud83d""#, "\"\u{e9}\""] {
            assert_eq!(readable(whole.as_bytes()), whole);
        }
    }

    #[test]
    fn nothing_is_told_apart_from_what_cannot_be_read() {
        for nothing in ["", " ", "null", "false", "\"\"", "{ }", "[]"] {
            assert!(
                fields(nothing)
                    .unwrap()
                    .is_none_or(|fields| fields.is_empty())
            );
        }
        for something in ["text", "7", "0", "true", "\" \"", "[1]", "{\"a\":"] {
            assert_eq!(fields(something).unwrap_err(), Unread, "{something}");
        }
    }
}
