//! `/v1/embeddings`: numbers for texts, as OpenAI made it. There is no output that would be charged.

use seatbelt_schemas::{ids::EndUserId, usage::Usage};

use super::{MaxField, completions::Prompts};
use crate::{
    allow::{Found, Profile, Shape},
    ask::{Ask, Measure},
    ends::of_unread,
    fields::{self, FieldError, Fields},
    sse::SseEvent,
    told::{Counts, Odd, Part, Report, StreamTold},
};

mod allowed;

/// Where an upstream serves it: its base URL ends in `/v1`.
pub(super) const PATH: &str = "embeddings";
/// No header of a client turns anything on.
pub(super) const VERSIONS: Option<&[&str]> = None;
pub(super) const BETAS: Option<&[&str]> = None;
pub(super) const USAGE_HAS_TO_BE_ASKED: bool = false;
pub(super) use allowed::WHY;

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

/// Nothing is generated, so nothing can be lowered either.
pub(super) fn ask(body: &Fields, by: &mut dyn Measure) -> Result<Ask, FieldError> {
    if body.get("input").is_none_or(serde_json::Value::is_null) {
        let problem = "is missing: give the text, or an array of texts";
        return Err(FieldError::invalid("input", problem));
    }
    let inputs = Prompts::read(body, "input", by)?;
    let mut ask = Ask {
        text: inputs.tokens,
        framed: inputs.count,
        prompts: inputs.count,
        choices: 0,
        keeps_max: true,
        end_user: end_user(body),
        ..Ask::default()
    };
    ask.fields_besides(body, &["input", "encoding_format", "dimensions"], by);
    Ok(ask)
}

fn end_user(body: &Fields) -> Option<EndUserId> {
    fields::end_user(body.get("user"))
}

/// There is none.
pub(super) fn set_max(_body: &mut Fields, _max: u64, _field: MaxField) {}

/// There are no streams.
pub(super) fn want_usage(_body: &mut Fields) {}

/// Some report the total alone.
pub(super) fn counts(report: &Report<'_>) -> Result<Counts, Odd> {
    Ok(Counts {
        input: report
            .count("prompt_tokens")?
            .max(report.count("total_tokens")?),
        output: report.count("completion_tokens")?,
        ..Counts::default()
    })
}

/// Output that is reported all the same counts.
pub(super) fn usage(counts: Counts) -> Option<Usage> {
    Some(counts.parts_of(Usage {
        input_tokens: counts.input?,
        output_tokens: counts.output.unwrap_or(0),
        ..Usage::default()
    }))
}

/// A stream that nobody asked for says nothing that is believed.
pub(super) fn event(told: &mut StreamTold, event: &SseEvent) -> Part {
    told.unread(event);
    of_unread(event)
}

#[cfg(test)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a case is a literal that is used once"
)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::ask::Bytes;
    use crate::{api::Api, told::Told};

    fn asked(input: Value) -> Ask {
        let body = json!({ "model": "m", "input": input });
        ask(body.as_object().unwrap(), &mut Bytes).unwrap()
    }

    #[test]
    fn texts_and_tokens_are_counted_and_nothing_comes_out() {
        let of = |input| {
            let ask = asked(input);
            (ask.prompts, ask.text, ask.choices)
        };
        assert_eq!(of(json!("abc")), (1, 3, 0));
        assert_eq!(of(json!(["abc", "d"])), (2, 4, 0));
        assert_eq!(of(json!([1, 2, 3])), (1, 3, 0));
        assert_eq!(of(json!([[1, 2], [3]])), (2, 3, 0));
        for odd in [json!(null), json!([]), json!([{"type": "text"}]), json!(5)] {
            let body = json!({ "model": "m", "input": odd });
            assert_eq!(
                ask(body.as_object().unwrap(), &mut Bytes)
                    .unwrap_err()
                    .param,
                "input"
            );
        }
    }

    #[test]
    fn a_report_is_the_input_alone() {
        let told = |usage: Value| {
            let body = json!({"object": "list", "data": [{"embedding": [0.1]}], "usage": usage});
            let sent = asked(json!("abc")).sent();
            Told::read(Api::Embeddings, sent, body.to_string().as_bytes())
                .unwrap()
                .usage
        };
        let usage = told(json!({"prompt_tokens": 5, "total_tokens": 5})).unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (5, 0));
        assert_eq!(told(json!({"total_tokens": 7})).unwrap().input_tokens, 7);
        assert_eq!(told(json!({"prompt_tokens": 0, "total_tokens": 0})), None);
        assert_eq!(told(json!({"prompt_tokens": 1.5})), None);
        assert_eq!(told(json!(null)), None);
    }
}
