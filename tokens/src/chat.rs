//! Chats as a model reads them: messages from JSON, rendered and tokenized.
//!
//! One code for who serves a chat and who counts it before, so that both find the same number.

use seatbelt_schemas::json;
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
    /// The tools beside them are not as the API has them.
    #[error("must be {0}")]
    Tools(&'static str),
}

/// Why there is no prompt.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The model has no chat template: only plain completions work.
    #[error("the model has no chat template: use /v1/completions")]
    NoTemplate,
    /// The chat template has no place for tools.
    #[error("the model's chat template takes no tools")]
    NoTools,
    /// The template refused or broke.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer broke.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// A chat as it is asked for: its messages, and the tools that may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chat {
    /// At least one.
    pub messages: Vec<ChatMessage>,
    /// The definitions as they came, where there are any.
    pub tools: Option<Value>,
}

impl Chat {
    /// Reads the fields of a body that make the prompt. Tools that are not to be called are none.
    pub fn read<'a>(field: impl Fn(&str) -> Option<&'a Value>) -> Result<Self, MessagesError> {
        let called = field("tool_choice").and_then(Value::as_str) != Some("none");
        Ok(Self {
            messages: read_messages(field("messages"))?,
            tools: match field("tools") {
                Some(tools) if called => read_tools(tools)?,
                _ => None,
            },
        })
    }

    /// Bytes of its texts, without what a template adds.
    pub fn bytes(&self) -> usize {
        (self.messages.iter())
            .map(|message| message.content.len())
            .sum()
    }
}

/// Reads the messages of a chat.
fn read_messages(messages: Option<&Value>) -> Result<Vec<ChatMessage>, MessagesError> {
    let list = messages
        .and_then(Value::as_array)
        .filter(|list| !list.is_empty());
    let wanted = MessagesError::Invalid("a list of at least one message");
    list.ok_or(wanted)?.iter().map(message).collect()
}

fn read_tools(tools: &Value) -> Result<Option<Value>, MessagesError> {
    let wanted = MessagesError::Tools("a list of functions with a name each");
    let list = match tools {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        _ => return Err(wanted),
    };
    let is_function = |tool: &Value| tool["type"] == "function" && is_named(&tool["function"]);
    match list.iter().all(is_function) {
        true => Ok((!list.is_empty()).then(|| tools.clone())),
        false => Err(wanted),
    }
}

fn is_named(function: &Value) -> bool {
    function["name"]
        .as_str()
        .is_some_and(|name| !name.is_empty())
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
        tool_calls: value.get("tool_calls").map_or(Ok(None), tool_calls)?,
        tool_call_id: text("tool_call_id"),
    })
}

/// Calls with their arguments as objects: the API writes them as text, and templates write them as JSON.
fn tool_calls(calls: &Value) -> Result<Option<Value>, MessagesError> {
    let wanted = MessagesError::Invalid("messages whose tool_calls are calls of functions");
    let list = match calls {
        Value::Null => return Ok(None),
        Value::Array(list) => list,
        _ => return Err(wanted),
    };
    let mut list = list.clone();
    for call in &mut list {
        if !is_named(&call["function"]) {
            return Err(wanted);
        }
        let Some(arguments) = call["function"].get_mut("arguments") else {
            continue;
        };
        let read = arguments.as_str().map(json::from_str);
        if let Some(Ok(read @ Value::Object(_))) = read {
            *arguments = read;
        }
    }
    Ok((!list.is_empty()).then_some(Value::Array(list)))
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
    chat: &Chat,
) -> Result<Vec<u32>, PromptError> {
    let template = template.ok_or(PromptError::NoTemplate)?;
    if chat.tools.is_some() && !template.takes_tools() {
        return Err(PromptError::NoTools);
    }
    let text = template.render_with(&chat.messages, chat.tools.as_ref())?;
    Ok(tokenizer.encode(&text)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<Chat, MessagesError> {
        Chat::read(|name| body.get(name))
    }

    fn tool() -> Value {
        json!({ "type": "function", "function": { "name": "weather", "parameters": { "type": "object" } } })
    }

    #[test]
    fn calls_of_the_history_have_their_arguments_as_objects() {
        let call = |arguments: Value| {
            let call = json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": arguments } });
            let body = json!({ "messages": [
                { "role": "assistant", "content": null, "tool_calls": [call] },
                { "role": "tool", "tool_call_id": "1", "content": "5" },
            ] });
            read(&body).unwrap().messages
        };
        let messages = call(json!("{\"b\": 1, \"a\": 2}"));
        let calls = messages[0].tool_calls.as_ref().unwrap();
        let arguments = &calls[0]["function"]["arguments"];
        assert_eq!(arguments.to_string(), r#"{"b":1,"a":2}"#);
        assert_eq!(messages[1].tool_call_id.as_deref(), Some("1"));
        let odd = call(json!("no JSON"));
        let arguments = &odd[0].tool_calls.as_ref().unwrap()[0]["function"]["arguments"];
        assert_eq!(arguments, "no JSON");
        let none =
            json!({ "messages": [{ "role": "assistant", "content": "x", "tool_calls": [] }] });
        assert_eq!(read(&none).unwrap().messages[0].tool_calls, None);
        for odd in [
            json!([{}]),
            json!("x"),
            json!([{ "function": { "name": 5 } }]),
        ] {
            let body = json!({ "messages": [{ "role": "assistant", "tool_calls": odd }] });
            assert!(
                matches!(read(&body), Err(MessagesError::Invalid(_))),
                "{body}"
            );
        }
    }

    #[test]
    fn tools_are_functions_and_none_where_none_may_be_called() {
        let with = |tools: Value, choice: Value| {
            let messages = [json!({ "role": "user", "content": "x" })];
            let body = json!({ "messages": messages, "tools": tools, "tool_choice": choice });
            read(&body).map(|chat| chat.tools)
        };
        let tools = json!([tool()]);
        assert_eq!(with(tools.clone(), json!("auto")), Ok(Some(tools.clone())));
        assert_eq!(with(tools, json!("none")), Ok(None));
        assert_eq!(with(json!([]), Value::Null), Ok(None));
        assert_eq!(with(Value::Null, Value::Null), Ok(None));
        for odd in [
            json!({}),
            json!([{ "type": "custom" }]),
            json!([{ "type": "function" }]),
        ] {
            let refused = with(odd.clone(), Value::Null);
            assert!(matches!(refused, Err(MessagesError::Tools(_))), "{odd}");
        }
    }
}
