//! `/v1/responses` over an upstream that speaks chat completions: requests, answers, streams.
//!
//! Nothing is kept, so a conversation comes whole with each request. A custom tool is a function of one text
//! there. A field that has no counterpart is refused by name; what is let go because it changes nothing is listed
//! in `docs/dialects.md`. Not here: upstreams with `responses = true`, which are passed what came.

mod answer;
mod items;
mod output;
mod request;
mod stream;
mod thoughts;
mod tools;

pub(crate) use answer::from_chat;
pub(super) use request::{asked, to_chat};
pub use stream::ResponsesStream;
pub(crate) use stream::error_event;
pub use thoughts::without_thoughts_of_others;
use tools::flat;
pub(crate) use tools::{KnownTools, known_tools};

/// The one argument of the function that stands for a custom tool.
const INPUT: &str = "input";
