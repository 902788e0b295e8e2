//! Chats as a model reads them: messages from JSON, rendered and tokenized.
//!
//! One code for who serves a chat and who counts it before, so that both find the same number.

use serde_json::Value;
use thiserror::Error;

use crate::{ChatMessage, ChatTemplate, TemplateError, Tokenizer, TokenizerError};

/// Messages that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessagesError {
    /// They are not as the API has them.
    #[error("must be {0}")]
    Invalid(&'static str),
    /// They have what only other models take.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Why there is no prompt.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The model has no chat template: only plain completions work.
    #[error("the model has no chat template: use /v1/completions")]
    NoTemplate,
    /// The template refused or broke.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer broke.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Reads the messages of a chat.
pub fn read_messages(messages: Option<&Value>) -> Result<Vec<ChatMessage>, MessagesError> {
    let list = messages
        .and_then(Value::as_array)
        .filter(|list| !list.is_empty());
    let wanted = MessagesError::Invalid("a list of at least one message");
    list.ok_or(wanted)?.iter().map(message).collect()
}

fn message(value: &Value) -> Result<ChatMessage, MessagesError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let role = text("role").ok_or(MessagesError::Invalid("messages with a role each"))?;
    let content = match value.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(content)) => content.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(part)
            .collect::<Result<Vec<_>, _>>()?
            .concat(),
        Some(_) => {
            let wanted = "messages whose content is text or a list of parts";
            return Err(MessagesError::Invalid(wanted));
        }
    };
    Ok(ChatMessage {
        role,
        content,
        name: text("name"),
    })
}

fn part(value: &Value) -> Result<String, MessagesError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    match (text("type"), text("text")) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err(MessagesError::Invalid("text parts with a text each")),
        _ => Err(MessagesError::Unsupported(
            "this model takes text only: another kind of content part was sent",
        )),
    }
}

/// The tokens of a chat, up to where the answer begins.
pub fn chat_prompt(
    template: Option<&ChatTemplate>,
    tokenizer: &Tokenizer,
    messages: &[ChatMessage],
) -> Result<Vec<u32>, PromptError> {
    let template = template.ok_or(PromptError::NoTemplate)?;
    Ok(tokenizer.encode(&template.render(messages)?)?)
}
