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

use super::{error::ErrorAnswer, request::Dialect};
use crate::{
    clock::unix_ms,
    engine::{EndReason, Ending, Event, Generation},
};

const DONE: &str = "data: [DONE]\n\n";

/// What all pieces of one answer have in common.
pub(super) struct Style {
    dialect: Dialect,
    id: String,
    created_s: u64,
    model: String,
    prompt_tokens: usize,
    include_usage: bool,
}

impl Style {
    pub(super) fn new(
        dialect: Dialect,
        id: &str,
        model: String,
        prompt_tokens: usize,
        include_usage: bool,
    ) -> Self {
        let prefix = match dialect {
            Dialect::Chat => "chatcmpl",
            Dialect::Completion => "cmpl",
        };
        Self {
            dialect,
            id: format!("{prefix}-{id}"),
            created_s: unix_ms() / 1000,
            model,
            prompt_tokens,
            include_usage,
        }
    }

    fn usage(&self, used: Used) -> Value {
        let output_tokens = used.output_tokens;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": self.prompt_tokens + output_tokens,
            "prompt_tokens_details": { "cached_tokens": used.cached_tokens },
        })
    }

    fn whole(&self, text: &str, reason: &str, used: Used) -> Value {
        let (object, choice) = match self.dialect {
            Dialect::Chat => {
                let message = json!({ "role": "assistant", "content": text, "refusal": null });
                let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reason });
                ("chat.completion", choice)
            }
            Dialect::Completion => (
                "text_completion",
                json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }),
            ),
        };
        let mut answer = self.envelope(object, &json!([choice]));
        answer["usage"] = self.usage(used);
        answer
    }

    fn envelope(&self, object: &str, choices: &Value) -> Value {
        json!({ "id": self.id, "object": object, "created": self.created_s, "model": self.model, "choices": choices })
    }

    /// One event of a stream. The first of a chat names the role.
    fn chunk(&self, delta: &Delta<'_>) -> Bytes {
        let (object, choice) = match self.dialect {
            Dialect::Chat => {
                let (content, reason) = match delta {
                    Delta::First => (
                        json!({ "role": "assistant", "content": "", "refusal": null }),
                        None,
                    ),
                    Delta::Text(text) => (json!({ "content": text }), None),
                    Delta::Last(reason) => (json!({}), Some(reason)),
                };
                let choice = json!({ "index": 0, "delta": content, "logprobs": null, "finish_reason": reason });
                ("chat.completion.chunk", choice)
            }
            Dialect::Completion => {
                let (text, reason) = match delta {
                    Delta::First => ("", None),
                    Delta::Text(text) => (*text, None),
                    Delta::Last(reason) => ("", Some(reason)),
                };
                (
                    "text_completion",
                    json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": reason }),
                )
            }
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
    Text(&'a str),
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
pub(super) async fn whole(style: Style, mut generation: Generation) -> Response {
    let mut answer = String::new();
    loop {
        match generation.next().await {
            Some(Event::Text(text)) => answer.push_str(&text),
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
pub(super) async fn stream(style: Style, mut generation: Generation) -> Response {
    let mut frames = VecDeque::from([style.chunk(&Delta::First)]);
    let mut over = false;
    match generation.next().await {
        Some(Event::Text(text)) => frames.push_back(style.chunk(&Delta::Text(&text))),
        Some(Event::End(ending)) => match closing(ending).await {
            Ok((reason, used)) => {
                close(&style, &mut frames, reason, used);
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
            Some(Event::Text(text)) => {
                self.frames.push_back(self.style.chunk(&Delta::Text(&text)));
                return;
            }
            Some(Event::End(ending)) => closing(ending).await,
            None => Err(engine_died()),
        };
        self.over = true;
        match closed {
            Ok((reason, used)) => close(&self.style, &mut self.frames, reason, used),
            Err(error) => self.frames.push_back(event(&error.json())),
        }
    }
}

fn close(style: &Style, frames: &mut VecDeque<Bytes>, reason: &str, used: Used) {
    frames.push_back(style.chunk(&Delta::Last(reason)));
    if style.include_usage {
        frames.push_back(style.usage_chunk(used));
    }
    frames.push_back(Bytes::from_static(DONE.as_bytes()));
}
