//! Which status an error within an answer names: the answer itself went out under one of success.

use serde_json::value::RawValue;

use super::whole::text;
use crate::raw::Pairs;

/// Fields that may hold a status as a number.
const NUMBERS: [&str; 4] = ["status", "status_code", "code", "http_status"];
/// Fields that may say in a word what it was.
const WORDS: [&str; 3] = ["type", "code", "status"];

/// The status that an answer or an event names for its error; nothing where it names none that may come
/// after work, as far as that can be told.
pub(crate) fn status_named(body: &Pairs<'_>) -> Option<u16> {
    let mut places: Vec<Pairs<'_>> = body.all("error").map(Pairs::of).collect();
    places.push(body.clone());
    let numbers = || {
        places
            .iter()
            .flat_map(|fields| NUMBERS.map(|name| fields.last(name)))
    };
    let words = || {
        places
            .iter()
            .flat_map(|fields| WORDS.map(|name| fields.last(name)))
    };
    let number = numbers().flatten().find_map(number);
    number.or_else(|| words().flatten().find_map(|raw| of_word(&text(Some(raw)))))
}

fn number(raw: &RawValue) -> Option<u16> {
    let digits = raw.get().trim_matches('"');
    digits
        .parse()
        .ok()
        .filter(|status| (100..600).contains(status))
}

/// The status that an error of this kind goes with.
fn of_word(word: &str) -> Option<u16> {
    let letters = word.chars().filter(char::is_ascii_alphanumeric);
    let word: String = letters.map(|c| c.to_ascii_lowercase()).collect();
    match word.strip_suffix("error").unwrap_or(&word) {
        "overloaded" | "engineoverloaded" => Some(529),
        "ratelimit" | "ratelimitexceeded" => Some(429),
        "serviceunavailable" => Some(503),
        "badrequest" | "invalidrequest" => Some(400),
        "api" | "server" | "internal" | "internalserver" => Some(500),
        "badgateway" => Some(502),
        "timeout" | "apitimeout" | "requesttimeout" | "gatewaytimeout" => Some(504),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_named_by_a_number_or_by_the_kind_of_error() {
        let named = |text: &str| status_named(&Pairs::read(text).unwrap());
        for (error, status) in [
            (
                r#"{"error": {"code": 429, "type": "server_error"}}"#,
                Some(429),
            ),
            (r#"{"error": {"code": "502"}}"#, Some(502)),
            (
                r#"{"type": "error", "error": {"type": "overloaded_error"}}"#,
                Some(529),
            ),
            (
                r#"{"type": "error", "error": {"type": "api_error"}}"#,
                Some(500),
            ),
            (r#"{"error": {"type": "InternalServerError"}}"#, Some(500)),
            (r#"{"error": {"code": "rate_limit_exceeded"}}"#, Some(429)),
            (r#"{"error": {"type": "timeout_error"}}"#, Some(504)),
            (r#"{"error": "no", "status": 503}"#, Some(503)),
            (r#"{"error": {"message": "no"}}"#, None),
            (r#"{"error": {"code": 7}}"#, None),
        ] {
            assert_eq!(named(error), status, "{error}");
        }
    }
}
