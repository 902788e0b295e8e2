//! Answers in OpenAI's shapes, whole or as server-sent events.
//!
//! The last piece of an answer waits until its usage is on disk. After streaming began, a failure is
//! an `error` event, never a normal end.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};

use self::{
    calls::{Calls, Shown},
    likely::Told,
};
use super::{error::ErrorAnswer, request::Dialect};
use crate::engine::{EndReason, Ending, Event, Generation, Piece};

pub(super) mod calls;
pub(super) mod likely;

const DONE: &str = "data: [DONE]\n\n";

/// What all pieces of one answer have in common.
pub(super) struct Style {
    pub(super) dialect: Dialect,
    pub(super) id: String,
    pub(super) created_s: u64,
    pub(super) model: String,
    pub(super) prompt_tokens: usize,
    pub(super) include_usage: bool,
    /// Tells how likely the tokens were, where that was asked for.
    pub(super) told: Option<Told>,
    /// Finds calls of tools, where there are any.
    pub(super) calls: Option<Calls>,
}

/// The name of an answer to this request.
pub(super) fn id(dialect: Dialect, request: &str) -> String {
    let prefix = match dialect {
        Dialect::Chat => "chatcmpl",
        Dialect::Completion => "cmpl",
    };
    format!("{prefix}-{request}")
}

impl Style {
    fn usage(&self, used: Used) -> Value {
        let output_tokens = used.output_tokens;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
            "prompt_tokens_details": { "cached_tokens": used.cached_tokens },
        })
    }

    fn whole(&mut self, answer: &Piece, reason: &str, used: Used) -> Value {
        let (text, logprobs) = (&answer.text, self.logprobs(answer));
        let (object, choice) = match self.dialect {
            Dialect::Chat => {
                let (message, reason) = self.message(text, reason);
                let choice = json!({ "index": 0, "message": message, "logprobs": logprobs, "finish_reason": reason });
                ("chat.completion", choice)
            }
            Dialect::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason }),
            ),
        };
        let mut answer = self.envelope(object, &json!([choice]));
        answer["usage"] = self.usage(used);
        answer
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

    /// The events of a piece of a stream.
    fn chunks(&mut self, piece: &Piece) -> Vec<Bytes> {
        let Some(calls) = &mut self.calls else {
            return vec![self.chunk(&Delta::Text(piece))];
        };
        let shown = calls.push(&piece.text);
        let mut chunks = Vec::with_capacity(shown.len() + 1);
        if !piece.likely.is_empty() {
            let likely = Piece {
                text: String::new(),
                likely: piece.likely.clone(),
            };
            chunks.push(self.chunk(&Delta::Text(&likely)));
        }
        chunks.extend(shown.into_iter().map(|shown| self.shown(shown)));
        chunks
    }

    /// The events that close a stream.
    fn last_chunks(&mut self, reason: &str) -> Vec<Bytes> {
        let shown = self.calls.as_mut().map(Calls::finish).unwrap_or_default();
        let mut chunks: Vec<Bytes> = shown.into_iter().map(|shown| self.shown(shown)).collect();
        chunks.push(self.chunk(&Delta::Last(self.reason(reason))));
        chunks
    }

    fn shown(&mut self, shown: Shown) -> Bytes {
        match shown {
            Shown::Text(text) => self.chunk(&Delta::Text(&Piece {
                text,
                likely: Vec::new(),
            })),
            Shown::Call(call) => self.chunk(&Delta::Call(&call)),
        }
    }

    fn envelope(&self, object: &str, choices: &Value) -> Value {
        json!({ "id": self.id, "object": object, "created": self.created_s, "model": self.model, "choices": choices })
    }

    fn logprobs(&mut self, piece: &Piece) -> Value {
        let told = self.told.as_mut();
        told.map_or(Value::Null, |told| told.json(&piece.text, &piece.likely))
    }

    /// One event of a stream. The first of a chat names the role.
    fn chunk(&mut self, delta: &Delta<'_>) -> Bytes {
        let (text, reason) = match delta {
            Delta::First => ("", None),
            Delta::Text(piece) => (piece.text.as_str(), None),
            Delta::Call(_) => ("", None),
            Delta::Last(reason) => ("", Some(reason)),
        };
        let logprobs = match delta {
            Delta::Text(piece) if !piece.likely.is_empty() => self.logprobs(piece),
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
                let choice = json!({ "index": 0, "delta": content, "logprobs": logprobs, "finish_reason": reason });
                ("chat.completion.chunk", choice)
            }
            Dialect::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason }),
            ),
        };
        let mut chunk = self.envelope(object, &json!([choice]));
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        event(&chunk)
    }

    fn usage_chunk(&self, used: Used) -> Bytes {
        let object = match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        };
        let mut chunk = self.envelope(object, &json!([]));
        chunk["usage"] = self.usage(used);
        event(&chunk)
    }
}

/// What an answer took, besides its prompt.
#[derive(Clone, Copy)]
struct Used {
    output_tokens: usize,
    /// Of the prompt.
    cached_tokens: usize,
}

enum Delta<'a> {
    First,
    Text(&'a Piece),
    Call(&'a Value),
    Last(&'a str),
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// How an answer closes: the finish reason, or an error. Waits until the usage is on disk.
async fn closing(ending: Ending) -> Result<(&'static str, Used), ErrorAnswer> {
    let durable = ending.durable.wait().await;
    let reason = match ending.reason {
        EndReason::Stop => "stop",
        EndReason::Length => "length",
        EndReason::Expired => return Err(ErrorAnswer::expired()),
        EndReason::NotRun => return Err(ErrorAnswer::closed("the neuron is stopping")),
        EndReason::Left | EndReason::Stopping => return Err(ErrorAnswer::broken_off()),
        EndReason::Misshapen(words) => return Err(ErrorAnswer::misshapen(&words)),
        EndReason::Failed(detail) => {
            tracing::error!(%detail, "a step failed");
            return Err(ErrorAnswer::engine("the model could not be run"));
        }
    };
    if durable {
        let used = Used {
            output_tokens: ending.output_tokens,
            cached_tokens: ending.cached_tokens,
        };
        Ok((reason, used))
    } else {
        Err(ErrorAnswer::not_recorded())
    }
}

fn engine_died() -> ErrorAnswer {
    ErrorAnswer::engine("the engine stopped in the middle of the request")
}

/// The whole answer in one piece.
pub(super) async fn whole(mut style: Style, mut generation: Generation) -> Response {
    let mut answer = Piece::default();
    loop {
        match generation.next().await {
            Some(Event::Text(piece)) => answer.append(piece),
            Some(Event::End(ending)) => {
                return match closing(ending).await {
                    Ok((reason, used)) => Json(style.whole(&answer, reason, used)).into_response(),
                    Err(error) => error.into_response(),
                };
            }
            None => return engine_died().into_response(),
        }
    }
}

/// The answer as it comes. What ends before its first text gets a status of its own.
pub(super) async fn stream(mut style: Style, mut generation: Generation) -> Response {
    let mut frames = VecDeque::from([style.chunk(&Delta::First)]);
    let mut over = false;
    match generation.next().await {
        Some(Event::Text(piece)) => frames.extend(style.chunks(&piece)),
        Some(Event::End(ending)) => match closing(ending).await {
            Ok((reason, used)) => {
                close(&mut style, &mut frames, reason, used);
                over = true;
            }
            Err(error) => return error.into_response(),
        },
        None => return engine_died().into_response(),
    }
    let body = futures::stream::unfold(
        Streaming {
            style,
            generation,
            frames,
            over,
        },
        next_frame,
    );
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// A stream under way. Dropped with the connection, and with it the generation.
struct Streaming {
    style: Style,
    generation: Generation,
    frames: VecDeque<Bytes>,
    over: bool,
}

async fn next_frame(mut streaming: Streaming) -> Option<(Result<Bytes, Infallible>, Streaming)> {
    loop {
        if let Some(frame) = streaming.frames.pop_front() {
            return Some((Ok(frame), streaming));
        }
        if streaming.over {
            return None;
        }
        streaming.pull().await;
    }
}

impl Streaming {
    async fn pull(&mut self) {
        let closed = match self.generation.next().await {
            Some(Event::Text(piece)) => {
                self.frames.extend(self.style.chunks(&piece));
                return;
            }
            Some(Event::End(ending)) => closing(ending).await,
            None => Err(engine_died()),
        };
        self.over = true;
        match closed {
            Ok((reason, used)) => close(&mut self.style, &mut self.frames, reason, used),
            Err(error) => self.frames.push_back(event(&error.json())),
        }
    }
}

fn close(style: &mut Style, frames: &mut VecDeque<Bytes>, reason: &str, used: Used) {
    frames.extend(style.last_chunks(reason));
    if style.include_usage {
        frames.push_back(style.usage_chunk(used));
    }
    frames.push_back(Bytes::from_static(DONE.as_bytes()));
}
