//! A whole answer of chat completions as one of `/v1/messages`.

use bytes::Bytes;
use seatbelt_schemas::{json, usage::Usage};
use serde::Serialize;
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::SIGNATURE;
use crate::{
    api::Api,
    raw::Pairs,
    told::Counts,
    translate::{
        Shown,
        pieces::{Piece, object},
        said::{CallPiece, Ending, first_choice, said},
    },
};

#[derive(Serialize)]
struct Message<'a> {
    id: &'a str,
    r#type: &'static str,
    role: &'static str,
    model: Option<&'a RawValue>,
    content: Vec<Block>,
    stop_reason: &'static str,
    stop_sequence: Option<&'a str>,
    usage: Value,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Block {
    Thinking {
        thinking: String,
        signature: &'static str,
    },
    Text {
        text: String,
    },
    ToolUse {
        id: String,
        name: String,
        input: Box<RawValue>,
    },
}

/// Nothing where it is not an answer. `usage` is what it is known to have used, or is charged for.
pub(crate) fn from_chat(body: &[u8], shown: &Shown, usage: Option<Usage>) -> Option<Bytes> {
    let text = String::from_utf8_lossy(body);
    let body = object(&text).ok()??;
    let choice = first_choice(&body).ok()??;
    let said = said(&choice, "message").ok().filter(|said| !said.is_odd)?;
    let whole = |piece: Option<Piece>| piece.map(|piece| piece.whole());
    let mut content = Vec::new();
    let thinking = whole(said.thought).map(|thinking| Block::Thinking {
        thinking,
        signature: SIGNATURE,
    });
    content.extend(thinking);
    let refused = said.refusal.is_some();
    let texts = [whole(said.text), whole(said.refusal)];
    content.extend(texts.into_iter().flatten().map(|text| Block::Text { text }));
    let called = !said.calls.is_empty();
    for (n, call) in said.calls.into_iter().enumerate() {
        content.push(tool_use(call, n, shown)?);
    }
    if content.is_empty() {
        let text = String::new(); // clients look for a first block
        content.push(Block::Text { text });
    }
    let mut ending = Ending::default();
    ending.note(&choice);
    let (stop_reason, stop_sequence) = ending.shown(&shown.stops, called, refused);
    let message = Message {
        id: &shown.id,
        r#type: "message",
        role: "assistant",
        model: body.last("model"),
        content,
        stop_reason,
        stop_sequence,
        usage: usage_shown(usage.or_else(|| reported(&body)).unwrap_or_default()),
    };
    serde_json::to_vec(&message).ok().map(Bytes::from)
}

fn reported(body: &Pairs<'_>) -> Option<Usage> {
    let report = json::from_str(body.last("usage")?.get()).ok()?;
    Counts::usage_of(Api::Chat, &report)
}

/// Nothing where it has no name: nobody could carry it out.
fn tool_use(call: CallPiece, n: usize, shown: &Shown) -> Option<Block> {
    let arguments = call
        .arguments
        .map_or_else(String::new, |piece| piece.whole());
    Some(Block::ToolUse {
        id: call.id.unwrap_or_else(|| call_id(shown, n)),
        name: call.name?,
        input: input(arguments),
    })
}

/// An id for a call that came without one.
pub(super) fn call_id(shown: &Shown, n: usize) -> String {
    format!("toolu_{}_{n}", shown.id)
}

/// The arguments as they came. What is no JSON object, such as one that was cut at the maximum, stands in
/// one: an input has to be an object.
fn input(arguments: String) -> Box<RawValue> {
    let arguments = match arguments.trim().is_empty() {
        true => "{}".to_owned(),
        false => arguments,
    };
    let is_object = Pairs::read(&arguments).is_some();
    let as_it_came = is_object.then(|| RawValue::from_string(arguments.clone()).ok());
    as_it_came.flatten().unwrap_or_else(|| {
        to_raw_value(&json!({ "unreadable_arguments": arguments }))
            .expect("JSON is written as JSON")
    })
}

/// Usage as the dialect shows it: cached and written input stand beside the rest.
pub(super) fn usage_shown(usage: Usage) -> Value {
    let beside = usage
        .cached_input_tokens
        .saturating_add(usage.cache_write_tokens);
    json!({
        "input_tokens": usage.input_tokens.saturating_sub(beside),
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    })
}
