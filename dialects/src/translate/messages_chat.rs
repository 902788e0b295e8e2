//! The Anthropic dialect over an upstream that speaks the OpenAI one: requests, answers, streams.
//!
//! Text only. A field that has no counterpart is refused by name and never dropped in silence; hints
//! that change nothing (`cache_control`, `service_tier`) are let go. Not here: calls to upstreams that
//! speak the Anthropic dialect themselves, which are passed through.

use bytes::BytesMut;
use seatbelt_schemas::usage::Usage;
use serde_json::{Map, Value, json, value::RawValue};

use crate::{
    api::Api,
    dialect::Dialect,
    ends::error_in,
    fields::{FieldError, Fields},
    odd::{Raws, Unread, fields, read, read_text, readable},
    sse::{SseEvent, write_event},
    told::Counts,
};

/// Fields of a request that are translated below or change nothing.
const KNOWN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "system",
    "stop_sequences",
    "temperature",
    "top_p",
    "stream",
    "metadata",
    "service_tier",
    "thinking",
    "tools",
    "tool_choice",
];

/// A body of `/v1/messages` as one of `/v1/chat/completions`.
pub(super) fn to_chat(body: &Fields) -> Result<Fields, FieldError> {
    refuse_untranslatable(body)?;
    let mut chat = Map::new();
    for (from, to) in [
        ("model", "model"),
        ("max_tokens", "max_tokens"),
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("stop_sequences", "stop"),
        ("stream", "stream"),
    ] {
        if let Some(value) = body.get(from).filter(|value| !value.is_null()) {
            chat.insert(to.to_owned(), value.clone());
        }
    }
    if !chat.contains_key("max_tokens") {
        return Err(FieldError::invalid(
            "max_tokens",
            "is missing: set the output maximum, at least 1",
        ));
    }
    if let Some(user) = body
        .get("metadata")
        .and_then(|metadata| metadata.get("user_id"))
    {
        chat.insert("user".to_owned(), user.clone());
    }
    let mut messages = Vec::new();
    match body.get("system") {
        None | Some(Value::Null) => {}
        Some(system) => {
            messages.push(json!({"role": "system", "content": text("system", system)?}));
        }
    }
    messages.extend(chat_messages(body)?);
    chat.insert("messages".to_owned(), Value::Array(messages));
    Ok(chat)
}

fn refuse_untranslatable(body: &Fields) -> Result<(), FieldError> {
    let cannot = "cannot be translated for this model's upstream: leave it out";
    for (name, value) in body {
        let known = KNOWN_FIELDS.contains(&name.as_str());
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let fits = match name.as_str() {
            "tools" | "tool_choice" => empty,
            "thinking" => value.get("type").is_some_and(|kind| kind == "disabled"),
            _ => known,
        };
        if !fits && !empty {
            return Err(FieldError::invalid(name.as_str(), cannot));
        }
    }
    Ok(())
}

fn chat_messages(body: &Fields) -> Result<Vec<Value>, FieldError> {
    let messages = match body.get("messages") {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        _ => {
            return Err(FieldError::invalid(
                "messages",
                "must be an array of at least one message",
            ));
        }
    };
    let translate = |(n, message): (usize, &Value)| {
        let role = message.get("role").and_then(Value::as_str);
        let role = role
            .filter(|role| matches!(*role, "user" | "assistant"))
            .ok_or_else(|| {
                FieldError::invalid(
                    format!("messages[{n}].role"),
                    "must be 'user' or 'assistant'",
                )
            })?;
        let content = message.get("content").unwrap_or(&Value::Null);
        let content = text(&format!("messages[{n}].content"), content)?;
        Ok(json!({"role": role, "content": content}))
    };
    messages.iter().enumerate().map(translate).collect()
}

/// Content that is a string, or blocks of text, as one string.
fn text(param: &str, content: &Value) -> Result<String, FieldError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let mut all = String::new();
            for (n, block) in blocks.iter().enumerate() {
                let kind = block.get("type").and_then(Value::as_str).unwrap_or("");
                let text = block.get("text").and_then(Value::as_str);
                match (kind, text) {
                    ("text", Some(text)) => all.push_str(text),
                    ("image" | "document", _) => {
                        return Err(FieldError::unbounded(
                            format!("{param}[{n}]"),
                            "images and documents have no configured maximum; send text instead",
                        ));
                    }
                    _ => {
                        return Err(FieldError::invalid(
                            format!("{param}[{n}]"),
                            "must be a text block",
                        ));
                    }
                }
            }
            Ok(all)
        }
        _ => Err(FieldError::invalid(
            param,
            "must be a string or an array of text blocks",
        )),
    }
}

/// Usage as the dialect shows it: cached input stands beside the rest.
fn shown(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens.saturating_sub(usage.cached_input_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "output_tokens": usage.output_tokens,
    })
}

fn stop_reason(finish: &str) -> &'static str {
    match finish {
        "length" => "max_tokens",
        "tool_calls" | "function_call" => "tool_use",
        "content_filter" => "refusal",
        _ => "end_turn",
    }
}

/// Why the output ended: some upstreams name the stop string that ended it.
#[derive(Debug, Default)]
struct Ending {
    finish_reason: Option<String>,
    stop_reason: Option<String>,
}

impl Ending {
    /// A reason that is no word is a reason all the same.
    fn of(choice: &Raws<'_>) -> Self {
        let unknown = |Unread| Some("unknown".to_owned());
        Self {
            finish_reason: read(choice, "finish_reason").unwrap_or_else(unknown),
            stop_reason: read(choice, "stop_reason").unwrap_or_default(),
        }
    }

    /// The dialect's `stop_reason` and `stop_sequence`.
    fn shown(&self) -> (&'static str, Option<&str>) {
        match self.stop_reason.as_deref() {
            Some(stop) => ("stop_sequence", Some(stop)),
            None => (
                stop_reason(self.finish_reason.as_deref().unwrap_or("stop")),
                None,
            ),
        }
    }
}

/// A whole answer of the OpenAI dialect in the Anthropic one; `None` where it is not an answer.
pub(crate) fn from_chat(body: &[u8], id: &str) -> Option<Value> {
    let text = readable(body);
    let body = fields(&text).ok()??;
    let choice = first_choice(&body).ok()??;
    let (text, refused) = said(&choice, "message").ok()?;
    let ending = Ending::of(&choice);
    let usage: Option<Value> = read(&body, "usage").unwrap_or_default();
    let model: Option<Value> = read(&body, "model").unwrap_or_default();
    let (mut reason, sequence) = ending.shown();
    if refused {
        reason = "refusal";
    }
    Some(json!({
        "id": id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": shown(usage.and_then(|report| Counts::usage_of(Api::Chat, &report)).unwrap_or_default()),
    }))
}

/// The first choice of an answer or a chunk: no other is ever asked for.
fn first_choice<'a>(body: &Raws<'a>) -> Result<Option<Raws<'a>>, Unread> {
    let choices: Option<Vec<&RawValue>> = read(body, "choices")?;
    match choices.and_then(|choices| choices.into_iter().next()) {
        None => Ok(None),
        Some(choice) => read_text(choice.get()),
    }
}

/// The text of the message or the delta of a choice, and whether it is a refusal.
fn said(choice: &Raws<'_>, field: &str) -> Result<(String, bool), Unread> {
    let message: Raws<'_> = read(choice, field)?.unwrap_or_default();
    let text = content(&message)?;
    let refusal: String = read(&message, "refusal")?.unwrap_or_default();
    match text.is_empty() && !refusal.is_empty() {
        true => Ok((refusal, true)),
        false => Ok((text, false)),
    }
}

fn content(message: &Raws<'_>) -> Result<String, Unread> {
    let is_list = |raw: &&RawValue| raw.get().starts_with('[');
    if !message.get("content").is_some_and(is_list) {
        return Ok(read(message, "content")?.unwrap_or_default());
    }
    let parts: Vec<&RawValue> = read(message, "content")?.unwrap_or_default();
    let mut text = String::new();
    for part in parts {
        let part: Raws<'_> = read_text(part.get())?.unwrap_or_default();
        text += &read::<String>(&part, "text")?.unwrap_or_default();
    }
    Ok(text)
}

/// An upstream's error in the Anthropic envelope, its own fields kept.
pub(crate) fn error_from_chat(body: &[u8]) -> Option<Value> {
    let text = readable(body);
    let body = fields(&text).ok()??;
    let is_error = body.contains_key("error");
    is_error.then(|| error_in(Dialect::Anthropic, text.as_bytes()))
}

/// Translates a stream, event by event.
#[derive(Debug)]
pub struct MessagesStream {
    id: String,
    model: String,
    /// Known before the answer where the model's own tokenizer counted it.
    input_tokens: u64,
    begun: bool,
    refused: bool,
    ending: Ending,
}

impl MessagesStream {
    pub(crate) fn new(id: String, model: String, input_tokens: u64) -> Self {
        Self {
            id,
            model,
            input_tokens,
            begun: false,
            refused: false,
            ending: Ending::default(),
        }
    }

    /// The id of the answer.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Writes what `event` comes to.
    pub(crate) fn content(&mut self, event: &SseEvent, out: &mut BytesMut) -> Result<(), Unread> {
        let text = readable(&event.data);
        let chunk = fields(&text)?.unwrap_or_default();
        let Some(choice) = first_choice(&chunk)? else {
            return Ok(());
        };
        let (text, refused) = said(&choice, "delta")?;
        self.begin(out);
        self.refused |= refused;
        if !text.is_empty() {
            emit(
                out,
                &json!({
                    "type": "content_block_delta", "index": 0,
                    "delta": {"type": "text_delta", "text": text},
                }),
            );
        }
        let ending = Ending::of(&choice);
        if ending.finish_reason.is_some() {
            self.ending = ending;
        }
        Ok(())
    }

    fn begin(&mut self, out: &mut BytesMut) {
        if self.begun {
            return;
        }
        self.begun = true;
        let usage = Usage {
            input_tokens: self.input_tokens,
            ..Usage::default()
        };
        emit(
            out,
            &json!({
                "type": "message_start",
                "message": {
                    "id": self.id, "type": "message", "role": "assistant", "model": self.model,
                    "content": [], "stop_reason": null, "stop_sequence": null, "usage": shown(usage),
                },
            }),
        );
        emit(
            out,
            &json!({
                "type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""},
            }),
        );
    }

    /// Writes the normal end.
    pub(crate) fn end(&mut self, usage: Usage, out: &mut BytesMut) {
        self.begin(out);
        let (mut reason, sequence) = self.ending.shown();
        if self.refused {
            reason = "refusal";
        }
        emit(out, &json!({"type": "content_block_stop", "index": 0}));
        emit(
            out,
            &json!({
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": shown(usage),
            }),
        );
        emit(out, &json!({"type": "message_stop"}));
    }
}

/// Writes an event that is named by its own type.
fn emit(out: &mut BytesMut, data: &Value) {
    let name = data.get("type").and_then(Value::as_str);
    write_event(out, name, data.to_string().as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Fault;

    fn map(value: Value) -> Fields {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    #[test]
    fn what_has_no_counterpart_is_refused_by_name() {
        let refused = |extra: Value| {
            let mut body = map(
                json!({"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
            );
            body.extend(map(extra));
            let error = to_chat(&body).unwrap_err();
            (error.fault, error.param)
        };
        let invalid = |param: &str| (Fault::Invalid, param.to_owned());
        assert_eq!(refused(json!({"tools": [{"name": "t"}]})), invalid("tools"));
        assert_eq!(refused(json!({"top_k": 5})), invalid("top_k"));
        assert_eq!(
            refused(json!({"thinking": {"type": "enabled"}})),
            invalid("thinking")
        );
        assert_eq!(refused(json!({"max_tokens": null})), invalid("max_tokens"));
        assert_eq!(
            refused(json!({"messages": [{"role": "tool"}]})),
            invalid("messages[0].role")
        );
        let image = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
        assert_eq!(
            refused(image),
            (Fault::Unbounded, "messages[0].content[0]".to_owned())
        );
    }

    #[test]
    fn an_upstream_error_keeps_its_fields() {
        let error =
            error_from_chat(br#"{"error":{"message":"no","type":"server_error","code":7}}"#)
                .unwrap();
        assert_eq!(
            error,
            json!({"type": "error", "error": {"message": "no", "type": "server_error", "code": 7}})
        );
    }
}
