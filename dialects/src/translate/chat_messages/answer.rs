//! A whole answer of `/v1/messages` as a chat completion.

use bytes::Bytes;
use seatbelt_schemas::{json, usage::Usage};
use serde_json::{Map, Value, json};

use crate::{
    api::Api,
    raw::Pairs,
    told::Counts,
    translate::{
        Shown,
        pieces::{each, object, piece, word},
    },
};

/// Nothing where it is not an answer. `usage` is what it is known to have used, or is charged for.
pub(crate) fn from_messages(body: &[u8], shown: &Shown, usage: Option<Usage>) -> Option<Bytes> {
    let text = String::from_utf8_lossy(body);
    let body = object(&text).ok()??;
    body.last("content")?;
    let (mut thought, mut said, mut calls) = (String::new(), None::<String>, Vec::new());
    for block in each(&body, "content").ok()? {
        let text = |name| {
            piece(&block, name)
                .ok()
                .map(|piece| piece.unwrap_or_default().whole())
        };
        match word(&block, "type")?.as_str() {
            "text" => said.get_or_insert_default().push_str(&text("text")?),
            "thinking" => thought.push_str(&text("thinking")?),
            "redacted_thinking" => {} // nobody but the model can read it
            "tool_use" => calls.push(call(&block)?),
            _ => return None,
        }
    }
    let mut message = Map::from_iter([
        ("role".to_owned(), json!("assistant")),
        ("content".to_owned(), json!(said)),
        ("refusal".to_owned(), Value::Null),
    ]);
    if !thought.is_empty() {
        message.insert("reasoning_content".to_owned(), json!(thought));
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    let reason = word(&body, "stop_reason");
    let mut answer = json!({
        "id": shown.id,
        "object": "chat.completion",
        "created": shown.created_s,
        "model": word(&body, "model").unwrap_or_else(|| shown.model.clone()),
        "choices": [{
            "index": 0,
            "message": message,
            "logprobs": null,
            "finish_reason": finish_reason(reason.as_deref()),
        }],
    });
    if let Some(usage) = usage.or_else(|| reported(&body)) {
        answer["usage"] = usage_shown(usage);
    }
    Some(answer.to_string().into())
}

fn reported(body: &Pairs<'_>) -> Option<Usage> {
    let report = json::from_str(body.last("usage")?.get()).ok()?;
    Counts::usage_of(Api::Messages, &report)
}

/// The input as it came, printed.
fn call(block: &Pairs<'_>) -> Option<Value> {
    let input = block.last("input").map_or("{}", |input| input.get());
    Some(json!({
        "id": word(block, "id")?,
        "type": "function",
        "function": {"name": word(block, "name")?, "arguments": input},
    }))
}

pub(super) fn finish_reason(reason: Option<&str>) -> &'static str {
    match reason {
        Some("max_tokens" | "model_context_window_exceeded") => "length",
        Some("tool_use") => "tool_calls",
        Some("refusal") => "content_filter",
        _ => "stop",
    }
}

/// Usage as the dialect shows it: cached input is a part of the whole.
pub(super) fn usage_shown(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens.saturating_add(usage.output_tokens),
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    })
}
