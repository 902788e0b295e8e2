//! Answers in OpenAI's shapes, whole or as server-sent events.
//!
//! A request has one choice or several, which run by themselves and come mixed in a stream, each with its index. The last
//! piece of an answer waits until its usage is on disk. After streaming began, a failure is an `error` event, never a normal
//! end.

use std::{collections::VecDeque, convert::Infallible};

use axum::{
    Json,
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use seatbelt_schemas::usage::NeuronUsage;
use serde_json::Value;

use self::style::Delta;
pub(super) use self::style::{Choice, Style};
use super::{error::ErrorAnswer, limit::Listed, request::Dialect};
use crate::engine::{EndReason, Ending, Event, Generation, Piece};

pub(super) mod calls;
pub(super) mod likely;
mod style;

const DONE: &str = "data: [DONE]\n\n";

/// The name of an answer to this request.
pub(super) fn id(dialect: Dialect, request: &str) -> String {
    let prefix = match dialect {
        Dialect::Chat => "chatcmpl",
        Dialect::Completion => "cmpl",
    };
    format!("{prefix}-{request}")
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

/// What of a request's choices comes next.
enum Next {
    Text(usize, Piece),
    /// A choice has ended, and this is why.
    Ended(usize, &'static str),
    /// All have ended, with this use or this mistake.
    Over(Result<NeuronUsage, ErrorAnswer>),
}

/// The choices of one request while they run. Dropping it stops them.
pub(super) struct Running {
    generations: Vec<Option<Generation>>,
    used: NeuronUsage,
    failed: Option<Failed>,
    /// Whether any of them ran, so that no other neuron may be asked.
    ran: bool,
    /// While it is there, they may be let write more.
    _grows: Option<Listed>,
}

/// Why there is no whole answer.
enum Failed {
    /// This choice never had a turn.
    NotRun,
    Told(ErrorAnswer),
}

impl Running {
    pub(super) fn new(generations: Vec<Generation>, grows: Option<Listed>) -> Self {
        Self {
            generations: generations.into_iter().map(Some).collect(),
            used: NeuronUsage::default(),
            failed: None,
            ran: false,
            _grows: grows,
        }
    }

    async fn next(&mut self) -> Next {
        while let Some((index, event)) = Generation::next_of(&mut self.generations).await {
            match event {
                Some(Event::Text(piece)) => return Next::Text(index, piece),
                Some(Event::End(ending)) => {
                    self.generations[index] = None;
                    if let Some(reason) = self.closing(ending).await {
                        return Next::Ended(index, reason);
                    }
                }
                None => {
                    self.generations[index] = None;
                    self.fails(Failed::Told(engine_died()));
                }
            }
        }
        Next::Over(match self.failed.take() {
            None => Ok(self.used),
            Some(Failed::NotRun) if self.ran => Err(ErrorAnswer::broken_off()),
            Some(Failed::NotRun) => Err(ErrorAnswer::closed("the neuron is stopping")),
            Some(Failed::Told(error)) => Err(error),
        })
    }

    /// How a choice closes: the finish reason, or nothing where it failed. Waits until the usage is on disk, where
    /// it is the last.
    async fn closing(&mut self, ending: Ending) -> Option<&'static str> {
        let durable = ending.durable.wait().await;
        self.ran |= ending.reason != EndReason::NotRun;
        // Of several the last tells all, and the order in which they are heard is not that of their ends.
        if ending.used.output_tokens >= self.used.output_tokens {
            self.used = ending.used;
        }
        let failed = match ending.reason {
            EndReason::Stop if durable => return Some("stop"),
            EndReason::Length if durable => return Some("length"),
            EndReason::Stop | EndReason::Length => Failed::Told(ErrorAnswer::not_recorded()),
            EndReason::Expired => Failed::Told(ErrorAnswer::expired()),
            EndReason::NotRun => Failed::NotRun,
            EndReason::Left | EndReason::Stopping => Failed::Told(ErrorAnswer::broken_off()),
            EndReason::Misshapen(words) => Failed::Told(ErrorAnswer::misshapen(&words)),
            EndReason::Failed(detail) => {
                tracing::error!(%detail, "a step failed");
                Failed::Told(ErrorAnswer::engine("the model could not be run"))
            }
        };
        self.fails(failed);
        None
    }

    /// The first failure is told, and one that is told before one that is not.
    fn fails(&mut self, failed: Failed) {
        if !matches!(self.failed, Some(Failed::Told(_))) {
            self.failed = Some(failed);
        }
    }
}

fn engine_died() -> ErrorAnswer {
    ErrorAnswer::engine("the engine stopped in the middle of the request")
}

/// The whole answer in one piece.
pub(super) async fn whole(mut style: Style, mut running: Running) -> Response {
    let mut answers = vec![(Piece::default(), ""); style.choices.len()];
    loop {
        match running.next().await {
            Next::Text(index, piece) => answers[index].0.append(piece),
            Next::Ended(index, reason) => answers[index].1 = reason,
            Next::Over(Ok(used)) => return Json(style.whole(&answers, used)).into_response(),
            Next::Over(Err(error)) => return error.into_response(),
        }
    }
}

/// The answer as it comes. What fails before its first text gets a status of its own.
pub(super) async fn stream(style: Style, running: Running) -> Response {
    let mut streaming = Streaming {
        style,
        running,
        frames: VecDeque::new(),
        over: false,
    };
    let first = streaming.running.next().await;
    if let Next::Over(Err(error)) = first {
        return error.into_response();
    }
    let begin =
        (0..streaming.style.choices.len()).map(|index| streaming.style.chunk(index, &Delta::First));
    streaming.frames = begin.collect();
    streaming.show(first);
    let body = futures::stream::unfold(streaming, next_frame);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// A stream under way. Dropped with the connection, and with it what runs.
struct Streaming {
    style: Style,
    running: Running,
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
        let next = streaming.running.next().await;
        streaming.show(next);
    }
}

impl Streaming {
    fn show(&mut self, next: Next) {
        let (style, frames) = (&mut self.style, &mut self.frames);
        match next {
            Next::Text(index, piece) => frames.extend(style.chunks(index, &piece)),
            Next::Ended(index, reason) => frames.extend(style.last_chunks(index, reason)),
            Next::Over(Ok(used)) => {
                if style.include_usage {
                    frames.push_back(style.usage_chunk(used));
                }
                frames.push_back(Bytes::from_static(DONE.as_bytes()));
                self.over = true;
            }
            Next::Over(Err(error)) => {
                frames.push_back(event(&error.json()));
                self.over = true;
            }
        }
    }
}
