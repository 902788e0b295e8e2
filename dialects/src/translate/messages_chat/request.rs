//! A body of `/v1/messages` as one of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::{blocks, tools};
use crate::{
    fields::{FieldError, Fields, flag, messages},
    translate::refuse::{empty, no_counterpart, other_field},
};

/// Longest name of an end user that servers of chat completions take.
const USER_BYTES_MAX: usize = 64;

/// Fields that are the same under another name.
const RENAMED: [(&str, &str); 6] = [
    ("model", "model"),
    ("max_tokens", "max_tokens"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("stop_sequences", "stop"),
    ("stream", "stream"),
];

pub(crate) fn to_chat(body: &Fields) -> Result<Fields, FieldError> {
    body.iter()
        .try_for_each(|(name, value)| known(name, value))?;
    let mut chat = Map::new();
    for (from, to) in RENAMED {
        if let Some(value) = body.get(from).filter(|value| !empty(value)) {
            chat.insert(to.to_owned(), value.clone());
        }
    }
    if !chat.contains_key("max_tokens") {
        return Err(FieldError::invalid(
            "max_tokens",
            "is missing: set the output maximum, at least 1",
        ));
    }
    if let Some(user) = user(body)? {
        chat.insert("user".to_owned(), user.clone());
    }
    output_config(body, &mut chat)?;
    tools::definitions(body, &mut chat)?;
    chat.insert("messages".to_owned(), Value::Array(history(body)?));
    Ok(chat)
}

/// Whether a field is translated, or changes nothing as it is.
fn known(name: &str, value: &Value) -> Result<(), FieldError> {
    let harmless = match name {
        "messages" | "system" | "metadata" | "output_config" | "tools" | "tool_choice" => true,
        // hints: what is cached and at which class is the upstream's own matter
        "cache_control" | "service_tier" => true,
        // how much a model thinks within the output maximum is for its server to say
        "thinking" => {
            let kind = value.get("type").and_then(Value::as_str);
            matches!(kind, Some("enabled" | "adaptive" | "disabled"))
        }
        "speed" => value == "standard",
        "context_management" => clears_thoughts_alone(value),
        _ => RENAMED.iter().any(|(from, _)| *from == name),
    };
    match harmless || empty(value) {
        true => Ok(()),
        false => Err(no_counterpart(name)),
    }
}

/// Whether all that is to be cleared are thoughts of earlier turns, which a server of chat completions takes
/// out by itself where its model does not want them.
fn clears_thoughts_alone(management: &Value) -> bool {
    let clears_thoughts = |edit: &Value| {
        let kind = edit.get("type").and_then(Value::as_str);
        kind.is_some_and(|kind| kind.starts_with("clear_thinking_"))
    };
    let edits = management.get("edits").and_then(Value::as_array);
    other_field(management, &["edits"]).is_none()
        && edits.is_some_and(|edits| edits.iter().all(clears_thoughts))
}

/// The end user, where the upstream would take the name.
fn user(body: &Fields) -> Result<Option<&Value>, FieldError> {
    let Some(Value::Object(metadata)) = body.get("metadata") else {
        return Ok(None);
    };
    let other = metadata
        .iter()
        .find(|(name, value)| *name != "user_id" && !empty(value));
    if let Some((name, _)) = other {
        return Err(no_counterpart(format!("metadata.{name}")));
    }
    let short = |user: &&Value| {
        user.as_str()
            .is_some_and(|user| user.len() <= USER_BYTES_MAX)
    };
    Ok(metadata.get("user_id").filter(short))
}

/// How hard to try, and the form of the answer.
fn output_config(body: &Fields, chat: &mut Fields) -> Result<(), FieldError> {
    let config = match body.get("output_config") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(config)) => config,
        Some(_) => return Err(FieldError::invalid("output_config", "must be an object")),
    };
    for (name, value) in config.iter().filter(|(_, value)| !value.is_null()) {
        match (name.as_str(), value.as_str()) {
            ("effort", Some("low" | "medium" | "high" | "xhigh")) => {
                chat.insert("reasoning_effort".to_owned(), value.clone());
            }
            ("effort", _) => {
                return Err(FieldError::invalid(
                    "output_config.effort",
                    "must be 'low', 'medium', 'high' or 'xhigh' for this model's upstream",
                ));
            }
            ("format", _) => {
                chat.insert("response_format".to_owned(), format(value)?);
            }
            _ => return Err(no_counterpart(format!("output_config.{name}"))),
        }
    }
    Ok(())
}

fn format(format: &Value) -> Result<Value, FieldError> {
    let schema = format.get("schema").filter(|schema| schema.is_object());
    match (format.get("type").and_then(Value::as_str), schema) {
        (Some("json_schema"), Some(schema)) => Ok(json!({
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": true},
        })),
        _ => Err(FieldError::invalid(
            "output_config.format",
            "must be of type 'json_schema' with a 'schema'",
        )),
    }
}

fn history(body: &Fields) -> Result<Vec<Value>, FieldError> {
    let mut chat = Vec::new();
    match body.get("system") {
        None | Some(Value::Null) => {}
        Some(system) => {
            let text = blocks::text_only("system", system)?;
            chat.push(json!({"role": "system", "content": text}));
        }
    }
    for (n, message) in messages(body)?.iter().enumerate() {
        let param = format!("messages[{n}]");
        if let Some(fields) = message.as_object() {
            let other = fields.iter().find(|(name, value)| {
                !matches!(name.as_str(), "role" | "content") && !empty(value)
            });
            if let Some((name, _)) = other {
                return Err(no_counterpart(format!("{param}.{name}")));
            }
        }
        let content = message.get("content").unwrap_or(&Value::Null);
        match message.get("role").and_then(Value::as_str) {
            Some("user") => chat.extend(blocks::user(&format!("{param}.content"), content)?),
            Some("assistant") => {
                chat.push(blocks::assistant(&format!("{param}.content"), content)?);
            }
            // said in the midst of a conversation
            Some("system") => {
                let text = blocks::text_only(&format!("{param}.content"), content)?;
                chat.push(json!({"role": "system", "content": text}));
            }
            _ => {
                let problem = "must be 'user', 'assistant' or 'system'";
                return Err(FieldError::invalid(format!("{param}.role"), problem));
            }
        }
    }
    Ok(chat)
}

/// Whether the tools of a request may be called at once; said only where it is not so.
pub(super) fn one_call_at_a_time(choice: &Fields) -> Result<bool, FieldError> {
    flag(choice, "disable_parallel_tool_use").map_err(|error| FieldError {
        param: format!("tool_choice.{}", error.param),
        ..error
    })
}
