//! Calls written as JSON, without a tag around each.

use serde_json::{Deserializer, Value};

use super::{Call, MISTRAL, MISTRAL_ARGUMENTS, call_of};

/// What stands between objects.
const BETWEEN: [char; 3] = [';', ',', '\n'];

/// Objects one after the other, or a list of them, each naming a tool; none if it is anything else.
pub(super) fn json_calls(text: &str, tools: &[String]) -> Option<Vec<Call>> {
    let known = |call: Value| call_of(call).filter(|call| tools.contains(&call.name));
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (value, after) = value(rest)?;
        match value {
            Value::Array(list) => {
                for call in list {
                    calls.push(known(call)?);
                }
            }
            value => calls.push(known(value)?),
        }
        rest = after
            .trim_start_matches(|letter: char| letter.is_whitespace() || BETWEEN.contains(&letter));
    }
    (!calls.is_empty()).then_some(calls)
}

/// `name{}` or `name[ARGS]{}`, again and again.
pub(super) fn named_calls(text: &str, tools: &[String]) -> Option<Vec<Call>> {
    let mut calls = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['{', '['])?;
        let (name, after) = rest.split_at(end);
        let name = name.trim();
        let (arguments, after) = value(after.strip_prefix(MISTRAL_ARGUMENTS).unwrap_or(after))?;
        if !arguments.is_object() || !tools.iter().any(|tool| tool == name) {
            return None;
        }
        calls.push(Call {
            name: name.to_owned(),
            arguments,
        });
        let after = after.trim_start();
        rest = after.strip_prefix(MISTRAL).unwrap_or(after).trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}

/// The value that a text begins with, and what comes after it.
fn value(text: &str) -> Option<(Value, &str)> {
    let mut values = Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    let after = values.byte_offset();
    Some((value, &text[after..]))
}
