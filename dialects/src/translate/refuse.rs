//! What is said of what has no counterpart, in any pair.

use serde_json::Value;

use crate::fields::FieldError;

/// A field that the upstream's API has no place for.
pub(crate) fn no_counterpart(param: impl Into<String>) -> FieldError {
    let problem = "cannot be translated for this model's upstream: leave it out";
    FieldError::invalid(param, problem)
}

/// Whether a field says nothing.
pub(crate) fn empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// The first field of an object that is none of these and says something.
pub(crate) fn other_field<'a>(object: &'a Value, known: &[&str]) -> Option<&'a str> {
    other_fields(object, known).next()
}

/// All of them.
pub(crate) fn other_fields<'a>(object: &'a Value, known: &[&str]) -> impl Iterator<Item = &'a str> {
    let fields = object.as_object().into_iter().flatten();
    let others = fields.filter(|(name, value)| !known.contains(&name.as_str()) && !empty(value));
    others.map(|(name, _)| name.as_str())
}
