//! What a gateway says in headers: who pays, and what was reserved.

use axum::http::HeaderMap;
use seatbelt_schemas::neuron::{
    HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_GROWS_TO, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
    HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
};

use super::error::ErrorAnswer;
use crate::usage::Caller;

/// Longest reservation id: it becomes a message id.
const RESERVATION_LEN_MAX: usize = 128;

/// Bounds that the caller reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) input_tokens: Option<usize>,
    /// None are reserved for embeddings.
    pub(super) output_tokens: Option<usize>,
    /// What may come to be reserved of output while it runs, where more than that may.
    pub(super) grows_to: Option<usize>,
    pub(super) deadline_ms: Option<u64>,
}

/// Who is asking. A malformed name is left out here and refused by [`limits`], so that the refusal
/// can still be reported under the names that are sound.
pub(super) fn caller(headers: &HeaderMap) -> Caller {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    Caller {
        reservation: text(HEADER_RESERVATION)
            .filter(|id| is_reservation(id))
            .map(str::to_owned),
        account: text(HEADER_ACCOUNT).and_then(|id| id.parse().ok()),
        key: text(HEADER_KEY).and_then(|id| id.parse().ok()),
    }
}

/// The bounds, or what is wrong with any of the headers.
pub(super) fn limits(headers: &HeaderMap) -> Result<Limits, ErrorAnswer> {
    let caller = caller(headers);
    let sound = [
        (HEADER_RESERVATION, caller.reservation.is_some()),
        (HEADER_ACCOUNT, caller.account.is_some()),
        (HEADER_KEY, caller.key.is_some()),
    ];
    for (name, read) in sound {
        if headers.contains_key(name) && !read {
            return Err(ErrorAnswer::invalid_header(name, "an id"));
        }
    }
    let tokens = |name| {
        number(headers, name).map(|tokens| tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    Ok(Limits {
        input_tokens: tokens(HEADER_MAX_INPUT_TOKENS)?,
        output_tokens: tokens(HEADER_MAX_OUTPUT_TOKENS)?,
        grows_to: tokens(HEADER_GROWS_TO)?,
        deadline_ms: number(headers, HEADER_DEADLINE_MS)?,
    })
}

fn is_reservation(id: &str) -> bool {
    (1..=RESERVATION_LEN_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

pub(super) fn number(headers: &HeaderMap, name: &'static str) -> Result<Option<u64>, ErrorAnswer> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let read = value.to_str().ok().and_then(|text| text.parse().ok());
    read.map(Some)
        .ok_or_else(|| ErrorAnswer::invalid_header(name, "a whole number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn bounds_and_names_are_read() {
        let all = headers(&[
            (HEADER_RESERVATION, "r-1"),
            (HEADER_ACCOUNT, "acct"),
            (HEADER_KEY, "key-1"),
            (HEADER_MAX_INPUT_TOKENS, "10"),
            (HEADER_MAX_OUTPUT_TOKENS, "20"),
            (HEADER_GROWS_TO, "30"),
            (HEADER_DEADLINE_MS, "1700000000000"),
        ]);
        let expected = Limits {
            input_tokens: Some(10),
            output_tokens: Some(20),
            grows_to: Some(30),
            deadline_ms: Some(1_700_000_000_000),
        };
        assert_eq!(limits(&all).unwrap(), expected);
        let caller = caller(&all);
        assert_eq!(caller.reservation.as_deref(), Some("r-1"));
        assert_eq!(caller.account.unwrap().as_str(), "acct");
    }

    #[test]
    fn absent_headers_set_no_bounds() {
        assert_eq!(limits(&HeaderMap::new()).unwrap(), Limits::default());
    }

    #[test]
    fn malformed_headers_are_refused() {
        for bad in [
            (HEADER_MAX_INPUT_TOKENS, "-1"),
            (HEADER_MAX_OUTPUT_TOKENS, "1.5"),
            (HEADER_DEADLINE_MS, "soon"),
            (HEADER_GROWS_TO, "more"),
            (HEADER_ACCOUNT, "a b"),
            (HEADER_RESERVATION, ""),
        ] {
            assert!(limits(&headers(&[bad])).is_err(), "{bad:?}");
        }
    }
}
