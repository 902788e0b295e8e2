//! Tokenizers and chat templates: how many tokens a text has, and which.
//!
//! What a neuron serves by and what a gateway counts by is the same code, so that both find the same
//! number. Nothing here waits, listens or asks.
#![cfg_attr(test, allow(clippy::unwrap_used))]

// what a text is cut into
mod encoding;
mod token_bytes;
mod tokenizer;

// what a chat becomes
mod builtins;
mod chat;
mod template;

// who only counts
mod counter;
mod framing;
mod recipe;

// where both are found
mod folder;
mod source;

pub use chat::{Chat, MessagesError, PromptError, chat_prompt};
pub use counter::TextCounter;
pub use encoding::Encoding;
pub use folder::{special_tokens, template_beside, template_source};
pub use framing::Framing;
pub use recipe::{ChatCounter, CountError, Recipe};
pub use template::{ChatMessage, ChatTemplate, SpecialTokens, TemplateError};
pub use tokenizer::{TextStream, Tokenizer, TokenizerError};
