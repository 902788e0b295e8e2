//! `/v1/completions`: a text that is gone on with, as OpenAI made it and many servers speak it.
//!
//! Its answers, streams and usage are those of chat completions but for the place of the text.

use seatbelt_schemas::{ids::EndUserId, usage::Usage};
use serde_json::{Value, json};

use super::{MaxField, chat};
use crate::{
    allow::{Found, Profile, Shape},
    ask::{Ask, Measure},
    fields::{self, FieldError, Fields, choices, flag, whole},
    sse::SseEvent,
    told::{Counts, Odd, Part, Report, StreamTold},
};

mod allowed;

/// Where an upstream serves it: its base URL ends in `/v1`.
pub(super) const PATH: &str = "completions";
/// No header of a client turns anything on.
pub(super) const VERSIONS: Option<&[&str]> = None;
pub(super) const BETAS: Option<&[&str]> = None;
pub(super) const USAGE_HAS_TO_BE_ASKED: bool = true;
pub(super) use allowed::WHY;

/// What the API gives where no maximum is named.
const MAX_DEFAULT: u64 = 16;
/// Most prompts of one request.
const PROMPTS_MAX: usize = 2048;

pub(super) fn shapes(profile: Profile) -> [Shape; 2] {
    match profile {
        Profile::OpenAi | Profile::Anthropic => [allowed::BODY, &[]],
        Profile::Generic => [allowed::BODY, allowed::GENERIC],
    }
}

/// Every listed field has a bound.
pub(super) fn unbounded(_body: &Fields, _output_max: u64) -> Option<Found> {
    None
}

pub(super) fn ask(body: &Fields, by: &mut dyn Measure) -> Result<Ask, FieldError> {
    let prompts = Prompts::read(body, "prompt", by)?;
    let choices = choices(body, &["n", "best_of"])? * prompts.count;
    let mut ask = Ask {
        text: prompts.tokens,
        framed: prompts.count,
        prompts: prompts.count,
        choices,
        max: Some(whole(body, "max_tokens")?.unwrap_or(MAX_DEFAULT)),
        keeps_max: choices > 1,
        stream: flag(body, "stream")?,
        include_usage: chat::include_usage(body)?,
        end_user: end_user(body),
        ..Ask::default()
    };
    match body.get("suffix") {
        None | Some(Value::Null) => {}
        // it stands behind each prompt
        Some(Value::String(text)) => ask.text += by.text(text) * prompts.count,
        Some(_) => return Err(FieldError::invalid("suffix", "must be a string")),
    }
    flag(body, "echo")?;
    ask.fields_besides(body, &["prompt", "suffix", "echo"], by);
    Ok(ask)
}

fn end_user(body: &Fields) -> Option<EndUserId> {
    fields::end_user(body.get("user"))
}

/// There is one field for it.
pub(super) fn set_max(body: &mut Fields, max: u64, _field: MaxField) {
    body.insert("max_tokens".to_owned(), json!(max));
}

pub(super) fn want_usage(body: &mut Fields) {
    chat::want_usage(body);
}

pub(super) fn counts(report: &Report<'_>) -> Result<Counts, Odd> {
    chat::counts(report)
}

pub(super) fn usage(counts: Counts) -> Option<Usage> {
    chat::usage(counts)
}

pub(super) fn event(told: &mut StreamTold, event: &SseEvent) -> Part {
    chat::event(told, event)
}

/// The texts of a body that are read apart, or the tokens that stand for them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Prompts {
    pub(super) count: u64,
    /// At most; a text has no more of them than bytes.
    pub(super) tokens: u64,
}

impl Prompts {
    /// One text, or one list of tokens, or several of either.
    pub(super) fn read(
        body: &Fields,
        name: &str,
        by: &mut dyn Measure,
    ) -> Result<Self, FieldError> {
        let wrong = || {
            let problem = format!(
                "must be a string, token ids, or up to {PROMPTS_MAX} of either in an array"
            );
            FieldError::invalid(name, problem)
        };
        let one = |tokens| Self { count: 1, tokens };
        match body.get(name) {
            None | Some(Value::Null) => Ok(one(1)), // the token that begins a text
            Some(Value::String(text)) => Ok(one(by.text(text))),
            Some(Value::Array(items)) if !items.is_empty() => {
                if items.iter().all(Value::is_u64) {
                    return Ok(one(items.len() as u64));
                }
                if items.len() > PROMPTS_MAX {
                    return Err(wrong());
                }
                let tokens = items
                    .iter()
                    .map(|item| tokens(item, by))
                    .sum::<Option<u64>>();
                let count = items.len() as u64;
                Ok(Self {
                    count,
                    tokens: tokens.ok_or_else(wrong)?,
                })
            }
            Some(_) => Err(wrong()),
        }
    }
}

fn tokens(prompt: &Value, by: &mut dyn Measure) -> Option<u64> {
    match prompt {
        Value::String(text) => Some(by.text(text)),
        Value::Array(ids) if ids.iter().all(Value::is_u64) => Some(ids.len() as u64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Bytes;

    fn asked(body: &Value) -> Ask {
        ask(body.as_object().unwrap(), &mut Bytes).unwrap()
    }

    #[track_caller]
    fn refused(body: &Value, param: &str) {
        let error = ask(body.as_object().unwrap(), &mut Bytes).unwrap_err();
        assert_eq!(error.param, param, "{body}");
    }

    #[test]
    fn choices_are_those_of_every_prompt() {
        let of = |body: Value| {
            let ask = asked(&body);
            (ask.prompts, ask.choices, ask.text, ask.keeps_max)
        };
        assert_eq!(of(json!({"prompt": "abc"})), (1, 1, 3, false));
        assert_eq!(of(json!({"prompt": ["abc", "de"]})), (2, 2, 5, true));
        assert_eq!(of(json!({"prompt": [1, 2, 3]})), (1, 1, 3, false));
        assert_eq!(of(json!({"prompt": [[1, 2], [3]]})), (2, 2, 3, true));
        assert_eq!(
            of(json!({"prompt": ["a", "b"], "n": 2, "best_of": 5})),
            (2, 10, 2, true)
        );
        assert_eq!(of(json!({})), (1, 1, 1, false));
        assert_eq!(
            of(json!({"prompt": "a", "suffix": "bcd", "echo": true})),
            (1, 1, 4, false)
        );
        assert_eq!(of(json!({"prompt": ["a", "b"], "suffix": "cd"})).2, 6);
    }

    #[test]
    fn a_maximum_that_is_not_named_is_the_one_of_the_api() {
        assert_eq!(asked(&json!({"prompt": "a"})).max, Some(16));
        assert_eq!(asked(&json!({"prompt": "a", "max_tokens": 5})).max, Some(5));
        let mut body = json!({"prompt": "a"}).as_object().unwrap().clone();
        set_max(&mut body, 16, MaxField::MaxCompletionTokens);
        assert_eq!(body["max_tokens"], 16);
    }

    #[test]
    fn what_is_no_prompt_is_refused_by_name() {
        for odd in [
            json!(5),
            json!([]),
            json!([-1]),
            json!(["a", 1]),
            json!([["a"]]),
            json!({}),
        ] {
            refused(&json!({ "prompt": odd }), "prompt");
        }
        refused(&json!({"prompt": vec!["a"; PROMPTS_MAX + 1]}), "prompt");
        refused(&json!({"prompt": "a", "max_tokens": 0}), "max_tokens");
        refused(&json!({"prompt": "a", "suffix": 5}), "suffix");
        refused(&json!({"prompt": "a", "echo": 5}), "echo");
        refused(&json!({"prompt": "a", "best_of": 129}), "best_of");
    }

    #[test]
    fn what_is_not_known_here_counts_as_text() {
        let long = "x".repeat(100);
        assert!(asked(&json!({"prompt": "a", "unheard_of": long})).text > 100);
    }
}
