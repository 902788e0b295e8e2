//! The JSON of answers.

use bytes::Bytes;
use seatbelt_schemas::usage::NeuronUsage;
use serde_json::{Value, json};

use super::{
    calls::{Calls, Shown},
    event,
    likely::Told,
};
use crate::{engine::Piece, http::request::Dialect};

/// What all pieces of one answer have in common.
pub(in super::super) struct Style {
    pub(in super::super) dialect: Dialect,
    pub(in super::super) id: String,
    pub(in super::super) created_s: u64,
    pub(in super::super) model: String,
    pub(in super::super) prompt_tokens: usize,
    pub(in super::super) stream: bool,
    pub(in super::super) include_usage: bool,
    pub(in super::super) choices: Vec<Choice>,
}

/// What is apart for each choice.
#[derive(Default)]
pub(in super::super) struct Choice {
    /// The prompt, where it stands before the answer.
    pub(in super::super) echo: String,
    /// Tells how likely the tokens were, where that was asked for.
    pub(in super::super) told: Option<Told>,
    /// Finds calls of tools, where there are any.
    pub(in super::super) calls: Option<Calls>,
}

pub(super) enum Delta<'a> {
    First,
    Text(&'a Piece),
    Call(&'a Value),
    Last(&'a str),
}

impl Style {
    fn usage(&self, used: NeuronUsage) -> Value {
        let output_tokens = used.output_tokens;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.prompt_tokens as u64 + output_tokens,
            "prompt_tokens_details": { "cached_tokens": used.cached_input_tokens },
        })
    }

    pub(super) fn whole(&mut self, answers: &[(Piece, &str)], used: NeuronUsage) -> Value {
        let choices: Vec<Value> = (answers.iter().enumerate())
            .map(|(index, (answer, reason))| self.whole_choice(index, answer, reason))
            .collect();
        let object = match self.dialect {
            Dialect::Chat => "chat.completion",
            Dialect::Completion => "text_completion",
        };
        let mut answer = self.envelope(object, &json!(choices));
        answer["usage"] = self.usage(used);
        answer
    }

    fn whole_choice(&mut self, index: usize, answer: &Piece, reason: &str) -> Value {
        let dialect = self.dialect;
        let choice = &mut self.choices[index];
        let logprobs = choice.logprobs(answer);
        match dialect {
            Dialect::Chat => {
                let (message, reason) = choice.message(&answer.text, reason);
                json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
            }
            Dialect::Completion => {
                let text = format!("{}{}", choice.echo, answer.text);
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
            }
        }
    }

    /// The events of a piece of a stream.
    pub(super) fn chunks(&mut self, index: usize, piece: &Piece) -> Vec<Bytes> {
        let Some(calls) = &mut self.choices[index].calls else {
            return vec![self.chunk(index, &Delta::Text(piece))];
        };
        let shown = calls.push(&piece.text);
        let mut chunks = Vec::with_capacity(shown.len() + 1);
        if !piece.likely.is_empty() {
            let likely = Piece {
                text: String::new(),
                likely: piece.likely.clone(),
            };
            chunks.push(self.chunk(index, &Delta::Text(&likely)));
        }
        chunks.extend(shown.into_iter().map(|shown| self.shown(index, shown)));
        chunks
    }

    /// The events that close a choice of a stream.
    pub(super) fn last_chunks(&mut self, index: usize, reason: &str) -> Vec<Bytes> {
        let choice = &mut self.choices[index];
        let shown = choice.calls.as_mut().map(Calls::finish).unwrap_or_default();
        let mut chunks: Vec<Bytes> = (shown.into_iter())
            .map(|shown| self.shown(index, shown))
            .collect();
        let reason = self.choices[index].reason(reason);
        chunks.push(self.chunk(index, &Delta::Last(reason)));
        chunks
    }

    fn shown(&mut self, index: usize, shown: Shown) -> Bytes {
        match shown {
            Shown::Text(text) => {
                let piece = Piece {
                    text,
                    likely: Vec::new(),
                };
                self.chunk(index, &Delta::Text(&piece))
            }
            Shown::Call(call) => self.chunk(index, &Delta::Call(&call)),
        }
    }

    fn envelope(&self, object: &str, choices: &Value) -> Value {
        json!({ "id": self.id, "object": object, "created": self.created_s, "model": self.model, "choices": choices })
    }

    /// One event of a stream. The first of a chat names the role, that of a completion has the prompt, where that is
    /// wanted.
    pub(super) fn chunk(&mut self, index: usize, delta: &Delta<'_>) -> Bytes {
        let choice = &mut self.choices[index];
        let (text, reason) = match delta {
            Delta::First => (choice.echo.clone(), None),
            Delta::Text(piece) => (piece.text.clone(), None),
            Delta::Call(_) => (String::new(), None),
            Delta::Last(reason) => (String::new(), Some(reason)),
        };
        let logprobs = match delta {
            Delta::Text(piece) if !piece.likely.is_empty() => choice.logprobs(piece),
            _ => Value::Null,
        };
        let (object, choice) = match self.dialect {
            Dialect::Chat => {
                let content = match delta {
                    Delta::First => json!({ "role": "assistant", "content": "", "refusal": null }),
                    Delta::Text(_) => json!({ "content": text }),
                    Delta::Call(call) => json!({ "tool_calls": [call] }),
                    Delta::Last(_) => json!({}),
                };
                let choice = json!({ "index": index, "delta": content, "logprobs": logprobs, "finish_reason": reason });
                ("chat.completion.chunk", choice)
            }
            Dialect::Completion => (
                "text_completion",
                json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason }),
            ),
        };
        let mut chunk = self.envelope(object, &json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }

    pub(super) fn usage_chunk(&self, used: NeuronUsage) -> Bytes {
        let object = match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        };
        let mut chunk = self.envelope(object, &json!([]));
        chunk["usage"] = self.usage(used);
        event(&chunk)
    }
}

impl Choice {
    fn logprobs(&mut self, piece: &Piece) -> Value {
        let told = self.told.as_mut();
        told.map_or(Value::Null, |told| told.json(&piece.text, &piece.likely))
    }

    /// A whole message, and why it ended.
    fn message<'a>(&mut self, text: &str, reason: &'a str) -> (Value, &'a str) {
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        let Some(found) = &mut self.calls else {
            return (message, reason);
        };
        let (mut said, mut calls) = (String::new(), Vec::new());
        for shown in found.push(text).into_iter().chain(found.finish()) {
            match shown {
                Shown::Text(text) => said.push_str(&text),
                Shown::Call(mut call) => {
                    // Of streams alone.
                    if let Some(fields) = call.as_object_mut() {
                        fields.shift_remove("index");
                    }
                    calls.push(call);
                }
            }
        }
        if calls.is_empty() {
            return (message, reason);
        }
        message["content"] = if said.is_empty() {
            Value::Null
        } else {
            json!(said)
        };
        message["tool_calls"] = Value::Array(calls);
        (message, self.reason(reason))
    }

    fn reason<'a>(&self, reason: &'a str) -> &'a str {
        let called = self.calls.as_ref().is_some_and(Calls::any);
        if called && reason == "stop" {
            "tool_calls"
        } else {
            reason
        }
    }
}
