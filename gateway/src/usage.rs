//! What upstreams report of their usage, and what one event of their stream means to the gate.
//!
//! Reports are read leniently in shape and strictly in effect: a report that lacks its counts is no
//! report, and a total above its parts counts in full.

use std::borrow::Cow;

use bytes::Bytes;
use seatbelt_schemas::usage::Usage;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, value::RawValue};

use crate::sse::SseEvent;

/// Usage as the OpenAI dialect reports it.
pub(crate) fn openai_usage(usage: &Value) -> Option<Usage> {
    let count = |pointer: &str| usage.pointer(pointer).and_then(Value::as_u64);
    let input_tokens = count("/prompt_tokens")?;
    let output_tokens = count("/completion_tokens").unwrap_or(0);
    // some count reasoning in the total alone
    let above = count("/total_tokens")
        .unwrap_or(0)
        .saturating_sub(input_tokens);
    Some(Usage {
        input_tokens,
        cached_input_tokens: count("/prompt_tokens_details/cached_tokens").unwrap_or(0),
        cache_write_tokens: 0,
        output_tokens: output_tokens.max(above),
        reasoning_tokens: count("/completion_tokens_details/reasoning_tokens").unwrap_or(0),
    })
}

/// Usage as the Anthropic dialect reports it: cached and written input stand beside `input_tokens`.
/// `known` is what earlier events of the same answer reported.
pub(crate) fn anthropic_usage(usage: &Value, known: Option<Usage>) -> Option<Usage> {
    let count = |name: &str| usage.get(name).and_then(Value::as_u64);
    let known_usage = known.unwrap_or_default();
    let cached = count("cache_read_input_tokens").unwrap_or(known_usage.cached_input_tokens);
    let written = count("cache_creation_input_tokens").unwrap_or(known_usage.cache_write_tokens);
    let fresh_before = known_usage
        .input_tokens
        .saturating_sub(known_usage.cached_input_tokens)
        .saturating_sub(known_usage.cache_write_tokens);
    let fresh = count("input_tokens").or(known.map(|_| fresh_before))?;
    Some(Usage {
        input_tokens: fresh.saturating_add(cached).saturating_add(written),
        cached_input_tokens: cached,
        cache_write_tokens: written,
        output_tokens: count("output_tokens").unwrap_or(known_usage.output_tokens),
        reasoning_tokens: 0,
    })
}

/// The API in which an upstream answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    OpenAi,
    Anthropic,
}

/// A whole answer, as far as the gate cares.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) usage: Option<Usage>,
    pub(crate) finish: Option<String>,
    /// Bytes of the choices as JSON: a bound of the tokens in them.
    pub(crate) output_bytes: u64,
}

#[derive(Deserialize)]
struct WholeBody<'a> {
    usage: Option<Value>,
    #[serde(borrow, default)]
    choices: Option<Vec<WholeChoice<'a>>>,
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(default)]
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct WholeChoice<'a> {
    #[serde(default)]
    finish_reason: Option<String>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
}

impl Answer {
    /// Reads a whole answer; `None` where it is not the shape of one.
    pub(crate) fn read(api: Api, body: &[u8]) -> Option<Self> {
        let whole: WholeBody<'_> = serde_json::from_slice(body).ok()?;
        let usage = whole.usage.as_ref();
        let choices = whole.choices.unwrap_or_default();
        let bytes = |raw: Option<&RawValue>| raw.map_or(0, |raw| raw.get().len() as u64);
        Some(Self {
            usage: match api {
                Api::OpenAi => usage.and_then(openai_usage),
                Api::Anthropic => usage.and_then(|usage| anthropic_usage(usage, None)),
            },
            output_bytes: choices
                .iter()
                .map(|choice| bytes(choice.message))
                .sum::<u64>()
                + bytes(whole.content),
            finish: choices
                .into_iter()
                .find_map(|choice| choice.finish_reason)
                .or(whole.stop_reason),
        })
    }
}

/// What one event of a stream is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Something for the client.
    Content,
    /// The usage chunk of the OpenAI dialect: it carries nothing else.
    UsageOnly,
    /// An error, after which no normal end may follow.
    Error,
    /// The end as the dialect marks it.
    End,
}

/// What a stream has told so far.
#[derive(Debug, Default)]
pub(crate) struct StreamTold {
    pub(crate) usage: Option<Usage>,
    /// Nothing can be added to the usage any more.
    pub(crate) usage_is_final: bool,
    pub(crate) finish: Option<String>,
    pub(crate) output_bytes: u64,
}

#[derive(Deserialize)]
struct ChunkBody<'a> {
    #[serde(default)]
    usage: Option<Value>,
    #[serde(borrow, default)]
    choices: Option<Vec<ChunkChoice<'a>>>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(borrow, default)]
    finish_reason: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct AnthropicBody<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    message: Option<AnthropicMessage>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct AnthropicMessage {
    #[serde(default)]
    usage: Option<Value>,
}

#[derive(Deserialize)]
struct StopReason {
    #[serde(default)]
    stop_reason: Option<String>,
}

impl StreamTold {
    /// Takes note of an event.
    pub(crate) fn note(&mut self, api: Api, event: &SseEvent) -> Part {
        match api {
            Api::OpenAi => self.note_openai(event),
            Api::Anthropic => self.note_anthropic(event),
        }
    }

    fn note_openai(&mut self, event: &SseEvent) -> Part {
        if is_done(&event.data) {
            return Part::End;
        }
        let Ok(chunk) = serde_json::from_slice::<ChunkBody<'_>>(&event.data) else {
            return Part::Content; // a comment, or what only the client can make sense of
        };
        if chunk.error.is_some() || event.name.as_deref() == Some("error") {
            return Part::Error;
        }
        let choices = chunk.choices.unwrap_or_default();
        for choice in &choices {
            if let Some(finish) = &choice.finish_reason {
                self.finish = Some(finish.clone().into_owned());
            }
            self.output_bytes += choice.delta.map_or(0, |delta| delta.get().len() as u64);
        }
        let Some(usage) = chunk.usage.as_ref().and_then(openai_usage) else {
            return Part::Content;
        };
        self.usage = Some(usage);
        self.usage_is_final |= choices.is_empty() || self.finish.is_some();
        if choices.is_empty() {
            Part::UsageOnly
        } else {
            Part::Content
        }
    }

    fn note_anthropic(&mut self, event: &SseEvent) -> Part {
        let Ok(body) = serde_json::from_slice::<AnthropicBody<'_>>(&event.data) else {
            return Part::Content;
        };
        let reported = body
            .message
            .and_then(|message| message.usage)
            .or(body.usage);
        if let Some(usage) = reported.and_then(|usage| anthropic_usage(&usage, self.usage)) {
            self.usage = Some(usage);
            self.usage_is_final |= body.kind == "message_delta";
        }
        if let Some(delta) = body.delta {
            self.output_bytes += delta.get().len() as u64;
            if let Ok(StopReason {
                stop_reason: Some(reason),
            }) = serde_json::from_str(delta.get())
            {
                self.finish = Some(reason);
            }
        }
        match body.kind.as_ref() {
            "message_stop" => Part::End,
            "error" => Part::Error,
            _ => Part::Content,
        }
    }
}

fn is_done(data: &Bytes) -> bool {
    data.trim_ascii() == b"[DONE]"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(api: Api, data: &[Value]) -> (StreamTold, Vec<Part>) {
        let mut told = StreamTold::default();
        let parts = data
            .iter()
            .map(|data| {
                let text = data
                    .as_str()
                    .map_or_else(|| data.to_string(), str::to_owned);
                let event = SseEvent {
                    raw: Bytes::new(),
                    name: None,
                    data: text.into(),
                };
                told.note(api, &event)
            })
            .collect();
        (told, parts)
    }

    #[test]
    fn openai_usage_counts_hidden_totals_in_full() {
        let usage =
            openai_usage(&json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}))
                .unwrap();
        assert_eq!((usage.input_tokens, usage.output_tokens), (10, 30));
        assert_eq!(openai_usage(&json!({"completion_tokens": 5})), None);
        assert_eq!(openai_usage(&json!({"prompt_tokens": -1})), None);
    }

    #[test]
    fn anthropic_usage_is_gathered_over_the_stream() {
        let (told, parts) = told(
            Api::Anthropic,
            &[
                json!({"type": "message_start", "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1, "output_tokens": 1}}}),
                json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}),
                json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
                json!({"type": "message_stop"}),
            ],
        );
        let usage = told.usage.unwrap();
        assert_eq!(
            (
                usage.input_tokens,
                usage.cached_input_tokens,
                usage.cache_write_tokens
            ),
            (10, 2, 1)
        );
        assert_eq!((usage.output_tokens, told.usage_is_final), (5, true));
        assert_eq!(told.finish.as_deref(), Some("end_turn"));
        assert_eq!(parts.last(), Some(&Part::End));
    }

    #[test]
    fn running_usage_is_not_the_final_one() {
        let running = json!({"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
        let (early, _) = told(Api::OpenAi, std::slice::from_ref(&running));
        assert!(early.usage.is_some() && !early.usage_is_final);
        let last = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}});
        let (whole, parts) = told(Api::OpenAi, &[running, last, json!("[DONE]")]);
        assert_eq!(whole.usage.unwrap().output_tokens, 9);
        assert!(whole.usage_is_final);
        assert_eq!(parts, [Part::Content, Part::UsageOnly, Part::End]);
    }

    #[test]
    fn an_error_in_the_stream_is_seen() {
        let (_, parts) = told(Api::OpenAi, &[json!({"error": {"message": "boom"}})]);
        assert_eq!(parts, [Part::Error]);
        let (_, parts) = told(Api::OpenAi, &[json!({"choices": [], "error": null})]);
        assert_eq!(parts, [Part::Content]);
    }
}
