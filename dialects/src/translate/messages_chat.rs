//! The Anthropic dialect over an upstream that speaks the OpenAI one: requests, answers, streams.
//!
//! Tools, images and thinking are translated too. A field that has no counterpart is refused by name; what is
//! let go because it changes nothing is listed in `docs/dialects.md`. Not here: calls to upstreams that speak
//! the Anthropic dialect themselves, which are passed through.

mod answer;
mod blocks;
mod request;
mod said;
mod stream;
mod tools;

pub(crate) use answer::from_chat;
pub(super) use request::to_chat;
pub use stream::MessagesStream;

/// Stands where Anthropic's own models sign what they thought. A block that carries it was made here, of an
/// upstream's reasoning, and goes back as such.
const SIGNATURE: &str = "seatbelt";
