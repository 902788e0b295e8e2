//! Upper bounds of what a request can use: what it asks for, within the limits of its model.
//!
//! Where the model's tokenizer is not known, the input bound is the bytes of all text plus an allowance
//! for framing: no byte-level tokenizer makes more tokens than bytes. It is never above the model's context,
//! since no upstream reads more. Pure. Not here: what a request
//! asks for and what it may say at all, which the dialects read; and exact counts, which a neuron gives.

use seatbelt_dialects::{Ask, Calls};
use seatbelt_schemas::amount::{TOKENS_PER_REQUEST_MAX, TOOL_CALLS_MAX};

use crate::{config::Limits, error::ApiError};

mod counted;

pub(crate) use counted::by_tokens;

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
pub(crate) fn by_bytes(ask: &Ask, limits: &Limits) -> Result<Bound, ApiError> {
    // each prompt is read within the context by itself
    let context = limits.context.saturating_mul(ask.prompts.max(1));
    if ask.text / TOKEN_BYTES_MAX >= context {
        return Err(ApiError::context_exceeded(
            ask.text / TOKEN_BYTES_MAX,
            context,
        ));
    }
    let text = ask.text.saturating_add(framing(ask, limits));
    let beside = beside(ask, limits);
    let read = beside.saturating_add(text / TOKEN_BYTES_GUESS);
    let left = context.saturating_sub(read);
    Ok(Bound {
        // a longer input is refused by the upstream, or cut
        input_tokens: text.saturating_add(beside).min(context),
        output_tokens: output(ask, limits, left),
    })
}

/// Tokens of what is no text of the request: images, sounds, and what the upstream keeps.
fn beside(ask: &Ask, limits: &Limits) -> u64 {
    ask.media_tokens(&limits.media).saturating_add(ask.before)
}

/// Tokens that are written around the texts.
fn framing(ask: &Ask, limits: &Limits) -> u64 {
    let tools = if ask.with_tools {
        limits.framing.tools
    } else {
        0
    };
    ask.framed
        .saturating_mul(limits.framing.message)
        .saturating_add(tools)
        .saturating_add(limits.framing.request)
}

/// The output maximum of one choice, where the context leaves so much.
fn output(ask: &Ask, limits: &Limits, left: u64) -> u64 {
    let default = left.min(limits.output_default.unwrap_or(u64::MAX));
    ask.max.unwrap_or(default).clamp(1, limits.output.max(1))
}

/// The bound where the input was counted by the model's own tokenizer.
pub(crate) fn exactly(
    ask: &Ask,
    input_tokens: u64,
    context: u64,
    output: u64,
) -> Result<Bound, ApiError> {
    // Several prompts are read apart, each in a context of its own, to which their neuron holds the longest.
    let each = input_tokens / ask.prompts.max(1);
    let left = context.saturating_sub(each);
    if left == 0 && ask.choices > 0 {
        return Err(ApiError::context_exceeded(each, context));
    }
    let most = left.min(output).max(1);
    Ok(Bound {
        input_tokens,
        output_tokens: ask.max.unwrap_or(most).clamp(1, most),
    })
}

/// A bound with what calls of the provider's tools add to the input.
///
/// A model reads all of its prompt again after each call, with what it wrote and what the calls found so far. The
/// instructions that come with the tools are taken to be no longer than what a call adds.
pub(crate) fn with_calls(bound: Bound, calls: Calls, context: u64) -> Result<Bound, ApiError> {
    if calls.input_max == 0 || calls.all == 0 {
        return Ok(bound);
    }
    let reading = |call: u64| {
        let found = (call + 1).saturating_mul(calls.input_max);
        let written = if call == 0 { 0 } else { bound.output_tokens };
        let read = bound.input_tokens.saturating_add(written);
        read.saturating_add(found).min(context)
    };
    let too_often = || {
        let why = "may be called so often that one request cannot hold what they read; lower their maximum";
        ApiError::unbounded("tools", why)
    };
    if calls.all > TOOL_CALLS_MAX {
        return Err(too_often());
    }
    let first_at_context = (0..calls.all).find(|call| reading(*call) == context);
    let below = first_at_context.unwrap_or(calls.all + 1);
    let read = (0..below).map(reading).fold(0u64, u64::saturating_add);
    let input_tokens = context
        .saturating_mul(calls.all + 1 - below)
        .saturating_add(read);
    if input_tokens > TOKENS_PER_REQUEST_MAX {
        return Err(too_often());
    }
    Ok(Bound {
        input_tokens,
        ..bound
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seatbelt_dialects::{Api, Fields};
    use serde_json::{Value, json};

    use super::*;

    fn object(value: Value) -> Fields {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn model() -> Limits {
        Limits::new(8192, 4096)
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
    fn a_client_that_gives_no_maximum_gets_the_default_of_the_model() {
        let model = Limits {
            output_default: Some(300),
            ..model()
        };
        let output = |extra| {
            let ask = Api::Chat.ask(&hi(extra)).unwrap();
            by_bytes(&ask, &model).unwrap().output_tokens
        };
        assert_eq!(output(json!({})), 300);
        assert_eq!(output(json!({"max_tokens": null})), 300);
        assert_eq!(output(json!({"max_tokens": 2000})), 2000);
        let long = json!([{"role": "user", "content": "x".repeat(8192 * 3)}]);
        assert_eq!(output(json!({"messages": long})), 1);
    }

    #[test]
    fn no_prompt_is_held_above_the_context() {
        let mut body = hi(json!({}));
        body["messages"][0]["content"] = json!("word ".repeat(5600));
        assert_eq!(bound(&body).input_tokens, 8192, "28,016 by their bytes");
    }

    #[test]
    fn several_prompts_have_a_context_each() {
        let body = object(json!({"model": "m", "prompt": vec!["x".repeat(20_000); 3]}));
        let bound = by_bytes(&Api::Completions.ask(&body).unwrap(), &model()).unwrap();
        assert_eq!((bound.input_tokens, bound.output_tokens), (3 * 8192, 16));
        let body = object(json!({"model": "m", "input": ["abc", "de"]}));
        let ask = Api::Embeddings.ask(&body).unwrap();
        let bound = by_bytes(&ask, &model()).unwrap();
        assert_eq!((bound.input_tokens, ask.choices), (5 + 2 * 8 + 8, 0));
    }

    #[test]
    fn what_templates_add_and_print_again_counts() {
        let input = |body: Value| {
            let model = Limits {
                context: 1 << 20,
                ..model()
            };
            let ask = Api::Chat.ask(&object(body)).unwrap();
            by_bytes(&ask, &model).unwrap().input_tokens
        };
        let messages = |messages: Value| input(json!({"model": "m", "messages": messages}));
        let grown = "\u{fb9}".repeat(1000);
        assert!(messages(json!([{"role": "user", "content": grown}])) >= 6008);
        let parts = vec![json!({"type": "text", "text": ""}); 1000];
        assert!(messages(json!([{"role": "user", "content": parts}])) >= 1000);
        let ones = json!({"x": {"enum": vec![1; 1000]}});
        let tool = json!([{"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": ones}}}]);
        let user = json!([{"role": "user", "content": "hi"}]);
        // measured: 3,127 with the template of Qwen3, 4,058 with that of Llama 3.1
        assert!(input(json!({"model": "m", "messages": user, "tools": tool})) >= 4058);
        let arguments = json!(vec![1; 1000]).to_string();
        let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}});
        let history = json!([{"role": "assistant", "content": null, "tool_calls": [call]}]);
        assert!(messages(history) >= 3000);
        let quoted = "\"\n".repeat(1000);
        assert!(
            messages(json!([{"role": "tool", "tool_call_id": "c", "content": quoted}])) >= 4000
        );
        let name = "f".repeat(1000);
        let call =
            json!({"id": "c", "type": "function", "function": {"name": name, "arguments": "{}"}});
        let mut history = vec![json!({"role": "assistant", "content": null, "tool_calls": [call]})];
        history.extend(vec![
            json!({"role": "tool", "tool_call_id": "c", "content": ""});
            100
        ]);
        assert!(
            messages(json!(history)) >= 101 * 1000,
            "a name before each answer"
        );
        let none = input(json!({"model": "m", "messages": user, "tools": []}));
        let one = input(json!({"model": "m", "messages": user, "tools": [{"type": "function"}]}));
        assert!(one >= none + 512, "{one} {none}");
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
    fn each_of_several_prompts_has_a_context_of_its_own() {
        let body = json!({"model": "m", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 50});
        let ask = Api::Completions.ask(body.as_object().unwrap()).unwrap();
        let bound = exactly(&ask, 240, 100, 64).unwrap();
        assert_eq!(
            (bound.input_tokens, bound.output_tokens, ask.choices),
            (240, 20, 6)
        );
        assert!(exactly(&ask, 300, 100, 64).is_err());
        let body = json!({"model": "m", "input": ["a", "b"]});
        let ask = Api::Embeddings.ask(body.as_object().unwrap()).unwrap();
        let bound = exactly(&ask, 200, 100, 0).unwrap();
        assert_eq!((bound.input_tokens, ask.choices), (200, 0));
    }

    #[test]
    fn calls_of_the_providers_tools_have_the_prompt_read_again() {
        let bound = Bound {
            input_tokens: 100,
            output_tokens: 40,
        };
        let calls = |all, input_max| Calls {
            all,
            charged: all,
            input_max,
        };
        let input = |all, input_max, context| {
            let bound = with_calls(bound, calls(all, input_max), context);
            bound.unwrap().input_tokens
        };
        assert_eq!(input(0, 1000, 8192), 100);
        assert_eq!(input(1, 1000, 8192), (100 + 1000) + (140 + 2000));
        assert_eq!(input(3, 1000, 2500), 1100 + 2140 + 2500 + 2500);
        assert_eq!(input(1_000_000, 1000, 2500), 1100 + 2140 + 999_999 * 2500);
        assert!(with_calls(bound, calls(TOOL_CALLS_MAX, 1 << 38), 1 << 40).is_err());
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
