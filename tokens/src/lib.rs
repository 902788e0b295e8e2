//! Tokenizers and chat templates: how many tokens a text has, and which.
//!
//! What a neuron serves by and what a gateway counts by is the same code, so that both find the same
//! number. Nothing here waits, listens or asks.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod builtins;
mod chat;
mod counter;
mod encoding;
mod folder;
mod framing;
mod recipe;
mod source;
mod template;
mod tokenizer;

pub use chat::{MessagesError, PromptError, chat_prompt, read_messages};
pub use counter::TextCounter;
pub use encoding::Encoding;
pub use folder::{special_tokens, template_beside, template_source};
pub use framing::Framing;
pub use recipe::{ChatCounter, CountError, Recipe};
pub use template::{ChatMessage, ChatTemplate, SpecialTokens, TemplateError};
pub use tokenizer::{TextStream, Tokenizer, TokenizerError};
