//! Upper bounds of what a request can use: what it asks for, within the limits of its model.
//!
//! Where the model's tokenizer is not known, the input bound is the bytes of all text plus an allowance
//! for framing: no byte-level tokenizer makes more tokens than bytes. Pure. Not here: what a request
//! asks for and what it may say at all, which the dialects read; and exact counts, which a neuron gives.

use seatbelt_dialects::Ask;

use crate::{config::UpstreamModel, error::ApiError};

/// No token of a known vocabulary is longer. A prompt of more bytes than this times the context is
/// over the context for certain; below it only the upstream can tell.
const TOKEN_BYTES_MAX: u64 = 128;
/// Bytes that a token has at least on average in any common language, for the default maximum alone,
/// where a wrong guess costs an error of the upstream and no money.
const TOKEN_BYTES_GUESS: u64 = 3;

/// What will be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) input_tokens: u64,
    /// Of one choice.
    pub(crate) output_tokens: u64,
}

/// The bound for an upstream whose tokenizer is not known.
pub(crate) fn by_bytes(ask: &Ask, model: &UpstreamModel) -> Result<Bound, ApiError> {
    if ask.text_bytes / TOKEN_BYTES_MAX >= model.context {
        return Err(ApiError::context_exceeded(
            ask.text_bytes / TOKEN_BYTES_MAX,
            model.context,
        ));
    }
    let framing = ask.framed.saturating_mul(model.message_allowance);
    let input_tokens = ask.text_bytes + framing + model.request_allowance;
    let left = model
        .context
        .saturating_sub(input_tokens / TOKEN_BYTES_GUESS);
    Ok(Bound {
        input_tokens,
        output_tokens: ask.max.unwrap_or(left).clamp(1, model.output.max(1)),
    })
}

/// The bound where the input was counted by the model's own tokenizer.
pub(crate) fn exactly(
    ask: &Ask,
    input_tokens: u64,
    context: u64,
    output: u64,
) -> Result<Bound, ApiError> {
    let left = context.saturating_sub(input_tokens);
    if left == 0 {
        return Err(ApiError::context_exceeded(input_tokens, context));
    }
    let most = left.min(output.max(1));
    Ok(Bound {
        input_tokens,
        output_tokens: ask.max.unwrap_or(most).clamp(1, most),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seatbelt_dialects::{Api, Fields};
    use seatbelt_schemas::ids::ModelId;
    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> Fields {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn model() -> UpstreamModel {
        UpstreamModel::new(ModelId::new("m").unwrap(), 8192, 4096)
    }

    fn hi(extra: Value) -> Fields {
        let mut body =
            object(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}));
        body.extend(object(extra));
        body
    }

    fn bound(body: &Fields) -> Bound {
        by_bytes(&Api::Chat.ask(body).unwrap(), &model()).unwrap()
    }

    #[test]
    fn a_short_prompt_has_a_small_bound() {
        let bound = bound(&hi(json!({"max_tokens": 20})));
        assert_eq!(
            bound,
            Bound {
                input_tokens: 18,
                output_tokens: 20
            }
        );
    }

    #[test]
    fn the_output_maximum_is_read_in_both_spellings() {
        let output = |extra| bound(&hi(extra)).output_tokens;
        assert_eq!(output(json!({"max_completion_tokens": 7})), 7);
        assert_eq!(
            output(json!({"max_tokens": 9, "max_completion_tokens": 7})),
            7
        );
        assert_eq!(
            output(json!({"max_tokens": 9, "max_completion_tokens": null})),
            9
        );
        assert_eq!(output(json!({})), 4096);
        assert_eq!(output(json!({"max_tokens": null})), 4096);
        assert_eq!(output(json!({"max_tokens": 1_000_000})), 4096);
    }

    #[test]
    fn a_long_prompt_leaves_room_for_its_answer() {
        let mut body = hi(json!({}));
        body["messages"][0]["content"] = json!("x".repeat(15_000));
        assert_eq!(bound(&body).output_tokens, 8192 - 15_016 / 3);
        body["messages"][0]["content"] = json!("x".repeat(100_000));
        assert_eq!(bound(&body).output_tokens, 1);
        body["messages"][0]["content"] = json!("x".repeat(8192 * 128));
        let error = by_bytes(&Api::Chat.ask(&body).unwrap(), &model()).unwrap_err();
        assert_eq!(error.code(), "context_length_exceeded");
    }

    #[test]
    fn an_exact_count_leaves_what_the_context_leaves() {
        let ask = Api::Chat.ask(&hi(json!({}))).unwrap();
        assert_eq!(exactly(&ask, 5, 100, 64).unwrap().output_tokens, 64);
        assert_eq!(exactly(&ask, 90, 100, 64).unwrap().output_tokens, 10);
        assert_eq!(
            exactly(&ask, 100, 100, 64).unwrap_err().code(),
            "context_length_exceeded"
        );
        let ask = Api::Chat.ask(&hi(json!({"max_tokens": 30}))).unwrap();
        assert_eq!(exactly(&ask, 90, 100, 64).unwrap().output_tokens, 10);
    }

    #[test]
    fn everything_that_can_reach_the_prompt_counts() {
        let plain = bound(&hi(json!({}))).input_tokens;
        let more = |extra: Value| bound(&hi(extra)).input_tokens - plain;
        let long = "x".repeat(500);
        assert!(more(json!({"tools": [{"type": "function", "function": {"name": long}}]})) > 500);
        assert!(more(json!({"functions": [{"name": long}]})) > 500);
        assert!(more(json!({"response_format": {"json_schema": {"title": long}}})) > 500);
        assert!(more(json!({"documents": [long]})) > 500);
        assert!(more(json!({"unheard_of": long})) > 500);
        assert_eq!(
            more(json!({"user": long, "stop": [long], "metadata": {"a": long}})),
            0
        );
        for field in ["name", "role", "tool_call_id", "reasoning_content"] {
            let mut body = hi(json!({}));
            body["messages"][0][field] = json!(long);
            assert!(bound(&body).input_tokens - plain >= 500, "{field}");
        }
    }

    proptest! {
        #[test]
        fn the_bound_is_never_below_a_byte_level_count(
            texts in proptest::collection::vec(".{0,40}", 1..5),
            name in ".{0,10}",
            as_parts in any::<bool>(),
        ) {
            let content = |text: &String| if as_parts { json!([{"type": "text", "text": text}]) } else { json!(text) };
            let messages: Vec<Value> = texts
                .iter()
                .map(|text| json!({"role": "user", "name": name, "content": content(text)}))
                .collect();
            let body = hi(json!({ "messages": messages }));
            // the worst byte-level tokenizer: one token a byte, and markers of 3 tokens around each message
            let worst: u64 = texts.iter().map(|text| (text.len() + name.len() + 6) as u64).sum();
            prop_assert!(bound(&body).input_tokens >= worst + 3);
        }
    }
}

#[cfg(test)]
mod worst;
