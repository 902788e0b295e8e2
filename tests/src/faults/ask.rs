//! One request: which key pays, what the provider shall do with it, and when its client leaves.
//!
//! The orders to the provider travel as the text of the prompt, the only thing that a gateway hands
//! on as it is.

use serde_json::{Value, json};

use crate::foreign::MODEL;

/// A model whose upstream refuses every connection.
pub(super) const DEAD_MODEL: &str = "dead-model";
/// Output maximum of every request.
const MAX_TOKENS: u64 = 20;

/// What the provider does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Answers in one piece.
    Whole,
    /// Answers as a stream.
    Stream,
    /// An error of the server's own, by its status.
    Error(u16),
    /// Begins an answer and breaks the connection.
    Reset,
    /// Never answers.
    Hang,
    /// Answers what is no JSON.
    Garbage,
    /// Is not there at all.
    Dead,
}

impl How {
    fn name(self) -> String {
        match self {
            Self::Whole => "whole".to_owned(),
            Self::Stream => "stream".to_owned(),
            Self::Error(status) => status.to_string(),
            Self::Reset => "reset".to_owned(),
            Self::Hang => "hang".to_owned(),
            Self::Garbage => "garbage".to_owned(),
            Self::Dead => "dead".to_owned(),
        }
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "whole" => Self::Whole,
            "stream" => Self::Stream,
            "reset" => Self::Reset,
            "hang" => Self::Hang,
            "garbage" => Self::Garbage,
            status => Self::Error(status.parse().ok()?),
        })
    }
}

/// When the client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// It stays to the end.
    Never,
    /// Before it has sent its whole body.
    MidBody,
    /// After so many milliseconds, wherever the request is then.
    After(u64),
    /// After the first piece of the answer.
    MidAnswer,
}

/// A request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    /// Its own number, from which everything about it is found again.
    pub(super) number: u64,
    /// The place of its key in the scene's list.
    pub(super) key: usize,
    /// What the provider does.
    pub(super) how: How,
    /// Input tokens that the provider reports.
    pub(super) input: u64,
    /// Output tokens that the provider reports; above the maximum is an overrun.
    pub(super) output: u64,
    /// How long the provider takes for each piece of its answer.
    pub(super) delay_ms: u64,
    /// When the client leaves.
    pub(super) leave: Leave,
}

impl Ask {
    /// What the provider reports.
    pub(super) fn tokens(&self) -> u64 {
        self.input + self.output
    }

    /// The body to send.
    pub(super) fn body(&self) -> String {
        let orders = json!({
            "number": self.number, "how": self.how.name(), "input": self.input, "output": self.output,
            "delay": self.delay_ms,
        });
        let model = if self.how == How::Dead {
            DEAD_MODEL
        } else {
            MODEL
        };
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": orders.to_string()}],
            "max_tokens": MAX_TOKENS,
            "stream": self.how == How::Stream,
        });
        body.to_string()
    }
}

/// The provider's side of an [`Ask`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Orders {
    pub(super) number: u64,
    pub(super) how: How,
    pub(super) input: u64,
    pub(super) output: u64,
    pub(super) delay_ms: u64,
}

impl Orders {
    /// Finds them in a forwarded body.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let text = body["messages"][0]["content"].as_str()?;
        let orders: Value = serde_json::from_str(text).ok()?;
        let number = |name: &str| orders[name].as_u64();
        Some(Self {
            number: number("number")?,
            how: How::named(orders["how"].as_str()?)?,
            input: number("input")?,
            output: number("output")?,
            delay_ms: number("delay")?,
        })
    }
}
