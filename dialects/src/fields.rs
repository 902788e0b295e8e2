//! The fields of a body, read one by one; a field that cannot be read is named, with what would do.

use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, ids::EndUserId};
use serde_json::{Map, Value};
use thiserror::Error;

/// The fields of a body, in their order.
pub type Fields = Map<String, Value>;

/// Most choices (`n`) of one request.
const CHOICES_MAX: u64 = 128;
/// Up to here every whole number is a float.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;
/// Most messages of one request.
const MESSAGES_MAX: usize = 100_000;

/// A field that is not taken, and why.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{param}' {problem}")]
pub struct FieldError {
    /// Where in the body.
    pub param: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
    /// Whose business it is.
    pub fault: Fault,
}

/// What a caller makes of a [`FieldError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is wrong for everybody.
    Invalid,
    /// It may cost more than anything in the request says: wrong where a cap needs a bound.
    Unbounded,
}

impl FieldError {
    /// A field that is wrong for everybody.
    pub fn invalid(param: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            param: param.into(),
            problem: problem.into(),
            fault: Fault::Invalid,
        }
    }

    /// A field that may cost more than anything in the request says.
    pub fn unbounded(param: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            fault: Fault::Unbounded,
            ..Self::invalid(param, problem)
        }
    }
}

/// A name without case and separators, as far as its first characters go.
pub(crate) fn folded(name: &str, chars_max: usize) -> String {
    if name.is_ascii() {
        let letters = name.bytes().take(chars_max);
        let letters = letters.filter(u8::is_ascii_alphanumeric);
        return letters
            .map(|c| char::from(c.to_ascii_lowercase()))
            .collect();
    }
    // upper case first: some letters share theirs with an ASCII one
    let letters = name.chars().take(chars_max);
    letters
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// The messages of a body: at least one.
pub(crate) fn messages(body: &Fields) -> Result<&[Value], FieldError> {
    match body.get("messages") {
        Some(Value::Array(messages)) if (1..=MESSAGES_MAX).contains(&messages.len()) => {
            Ok(messages)
        }
        _ => Err(FieldError::invalid(
            "messages",
            "must be an array of at least one message",
        )),
    }
}

/// A whole number of at least 1, or nothing.
pub(crate) fn whole(body: &Fields, name: &str) -> Result<Option<u64>, FieldError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match counted(value) {
            Some(number) if (1..=TOKENS_PER_REQUEST_MAX).contains(&number) => Ok(Some(number)),
            _ => Err(FieldError::invalid(
                name,
                format!("must be a whole number from 1 to {TOKENS_PER_REQUEST_MAX}"),
            )),
        },
    }
}

/// A whole number, written as one or as a fraction of none: `10.0`, as languages without integers write it.
pub(crate) fn counted(value: &Value) -> Option<u64> {
    let of_float = || {
        let float = value.as_f64()?;
        let is_exact = float.fract() == 0.0 && (0.0..=WHOLE_FLOAT_MAX).contains(&float);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole, not negative, and within what a float holds exactly"
        )]
        is_exact.then_some(float as u64)
    };
    value.as_u64().or_else(of_float)
}

/// A switch; off where it is not there.
pub(crate) fn flag(body: &Fields, name: &str) -> Result<bool, FieldError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(_) => Err(FieldError::invalid(name, "must be true or false")),
    }
}

/// Whether a body has its model think, as far as its output maximum matters for that.
pub(crate) fn thinks(body: &Fields) -> bool {
    let thinking = body.get("thinking").filter(|thinking| !thinking.is_null());
    thinking.is_some_and(|thinking| thinking.get("type").is_none_or(|kind| kind != "disabled"))
}

/// The largest number of choices under any of these names, at least 1.
pub(crate) fn choices(body: &Fields, names: &[&str]) -> Result<u64, FieldError> {
    let mut most = 1;
    for name in names {
        let choices = whole(body, name)?.unwrap_or(1);
        if choices > CHOICES_MAX {
            let problem = format!("must be at most {CHOICES_MAX}");
            return Err(FieldError::invalid(*name, problem));
        }
        most = most.max(choices);
    }
    Ok(most)
}

/// A name that cannot be one is nobody's: the API gives it no meaning of its own.
pub(crate) fn end_user(named: Option<&Value>) -> Option<EndUserId> {
    let named = named.and_then(Value::as_str)?;
    EndUserId::new(named).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_is_folded_to_what_a_careless_server_takes_it_for() {
        for (name, expected) in [
            ("Max_Tokens", "maxtokens"),
            ("file-ID", "fileid"),
            ("maxToken\u{17f}", "maxtokens"),
            ("\u{212a}ey", "key"),
            ("", ""),
        ] {
            assert_eq!(folded(name, 40), expected, "{name}");
        }
        let all_ascii: String = (0u8..128).map(char::from).collect();
        let slowly = folded(&format!("{all_ascii}\u{e9}"), 128);
        assert_eq!(folded(&all_ascii, 128), slowly, "both ways");
        assert_eq!(folded("ABCDEF", 3), "abc");
        assert_eq!(folded("\u{c4}BCDEF", 3), "\u{e4}bc");
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_float() {
        let read = |value: Value| {
            let body = json!({ "max_tokens": value });
            whole(body.as_object().unwrap(), "max_tokens")
        };
        assert_eq!(read(json!(10.0)).unwrap(), Some(10));
        assert_eq!(read(json!(1e3)).unwrap(), Some(1000));
        for odd in [
            json!(0.0),
            json!(-1.0),
            json!(1.5),
            json!(1e15),
            json!(1e300),
            json!("10"),
            json!([10]),
        ] {
            assert!(read(odd.clone()).is_err(), "{odd}");
        }
    }
}
