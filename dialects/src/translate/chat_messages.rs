//! The OpenAI dialect over an upstream that speaks the Anthropic one: requests, answers, streams.
//!
//! A field that has no counterpart is refused by name; what is let go because it changes nothing is listed in
//! `docs/dialects.md`. Not here: calls to upstreams that speak the OpenAI dialect themselves, which are passed
//! through.

mod answer;
mod history;
mod request;
mod stream;
mod tools;

pub(crate) use answer::from_messages;
pub(super) use request::to_messages;
pub use stream::ChatStream;
