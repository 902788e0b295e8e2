//! A body of `/v1/responses` as one of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::{items, tools};
use crate::{
    ask::Ask,
    fields::{FieldError, Fields, end_user, whole},
    translate::refuse::{empty, no_counterpart, other_field},
};

/// Fields that are the same under another name or the same one.
const RENAMED: [(&str, &str); 6] = [
    ("model", "model"),
    ("max_output_tokens", "max_tokens"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("stream", "stream"),
    ("user", "user"),
];
/// What may be asked of an answer beside it that no translated one has anything of.
const INCLUDED: [&str; 6] = [
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "file_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
];

/// What the client's own body says of the answer that no other can.
pub(crate) fn asked(body: &Fields) -> Result<Ask, FieldError> {
    Ok(Ask {
        max: whole(body, "max_output_tokens")?,
        end_user: end_user(body.get("user")),
        ..Ask::default()
    })
}

pub(crate) fn to_chat(body: &Fields) -> Result<Fields, FieldError> {
    body.iter()
        .try_for_each(|(name, value)| known(name, value))?;
    let mut chat = Map::new();
    for (from, to) in RENAMED {
        if let Some(value) = body.get(from).filter(|value| !value.is_null()) {
            chat.insert(to.to_owned(), value.clone());
        }
    }
    text(body, &mut chat)?;
    reasoning(body, &mut chat)?;
    tools::definitions(body, &mut chat)?;
    chat.insert("messages".to_owned(), Value::Array(items::history(body)?));
    Ok(chat)
}

/// Whether a field is translated, or changes nothing as it is.
fn known(name: &str, value: &Value) -> Result<(), FieldError> {
    let is = |values: &[Value]| values.contains(value);
    let harmless = match name {
        "input" | "instructions" | "text" | "reasoning" | "tools" | "tool_choice" => true,
        "parallel_tool_calls" | "metadata" | "client_metadata" => true,
        // hints of one vendor to itself, and a bound of tools that are not there
        "safety_identifier" | "prompt_cache_key" | "prompt_cache_retention" => true,
        "prompt_cache_options" | "max_tool_calls" => true,
        "store" | "background" => return nothing_kept(name, value),
        "previous_response_id" | "conversation" | "prompt" if !value.is_null() => {
            return Err(kept(name));
        }
        "include" => return include(value),
        "stream_options" => {
            if let Some(name) = other_field(value, &["include_obfuscation"]) {
                return Err(no_counterpart(format!("stream_options.{name}")));
            }
            true
        }
        "truncation" => is(&[json!("disabled")]),
        "service_tier" => is(&[json!("auto"), json!("default")]),
        "top_logprobs" => is(&[json!(0)]),
        _ => RENAMED.iter().any(|(from, _)| *from == name),
    };
    match harmless || empty(value) {
        true => Ok(()),
        false => Err(no_counterpart(name)),
    }
}

fn kept(name: &str) -> FieldError {
    let problem = "names what is kept, and this model's upstream keeps nothing: send the whole conversation in 'input'";
    FieldError::invalid(name, problem)
}

fn nothing_kept(name: &str, value: &Value) -> Result<(), FieldError> {
    match value {
        Value::Null | Value::Bool(false) => Ok(()),
        _ => {
            let problem = "must be false or left out: this model's upstream keeps nothing";
            Err(FieldError::invalid(name, problem))
        }
    }
}

/// What is let go has nothing of these; logprobs would be missed.
fn include(value: &Value) -> Result<(), FieldError> {
    let is_known = |one: &Value| one.as_str().is_some_and(|one| INCLUDED.contains(&one));
    match value {
        Value::Null => Ok(()),
        Value::Array(list) => match list.iter().position(|one| !is_known(one)) {
            None => Ok(()),
            Some(n) => Err(no_counterpart(format!("include[{n}]"))),
        },
        _ => Err(FieldError::invalid("include", "must be an array")),
    }
}

/// The form of the answer, and how much is to be said.
fn text(body: &Fields, chat: &mut Fields) -> Result<(), FieldError> {
    let text = match body.get("text") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(text)) => text,
        Some(_) => return Err(FieldError::invalid("text", "must be an object")),
    };
    for (name, value) in text.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "format" => {
                if let Some(format) = format(value)? {
                    chat.insert("response_format".to_owned(), format);
                }
            }
            "verbosity" if value == "medium" => {}
            "verbosity" => {
                chat.insert("verbosity".to_owned(), value.clone());
            }
            _ => return Err(no_counterpart(format!("text.{name}"))),
        }
    }
    Ok(())
}

fn format(format: &Value) -> Result<Option<Value>, FieldError> {
    let schema = format.get("schema").filter(|schema| schema.is_object());
    match (format.get("type").and_then(Value::as_str), schema) {
        (Some("text" | "json_object"), _) if other_field(format, &["type"]).is_some() => {
            let name = other_field(format, &["type"]).unwrap_or_default();
            Err(no_counterpart(format!("text.format.{name}")))
        }
        (Some("text"), _) => Ok(None),
        (Some("json_object"), _) => Ok(Some(json!({"type": "json_object"}))),
        (Some("json_schema"), Some(schema)) => {
            let known = ["type", "name", "schema", "strict", "description"];
            if let Some(name) = other_field(format, &known) {
                return Err(no_counterpart(format!("text.format.{name}")));
            }
            let name = format.get("name").filter(|name| name.is_string());
            let mut named = Map::from_iter([
                ("name".to_owned(), name.cloned().unwrap_or(json!("answer"))),
                ("schema".to_owned(), schema.clone()),
            ]);
            for name in ["strict", "description"] {
                if let Some(value) = format.get(name).filter(|value| !value.is_null()) {
                    named.insert(name.to_owned(), value.clone());
                }
            }
            Ok(Some(json!({"type": "json_schema", "json_schema": named})))
        }
        _ => Err(FieldError::invalid(
            "text.format",
            "must be of type 'text', 'json_object', or 'json_schema' with a 'schema'",
        )),
    }
}

/// How hard to think. What is thought is shown whole, whatever summary of it was asked for.
fn reasoning(body: &Fields, chat: &mut Fields) -> Result<(), FieldError> {
    let reasoning = match body.get("reasoning") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(reasoning)) => reasoning,
        Some(_) => return Err(FieldError::invalid("reasoning", "must be an object")),
    };
    for (name, value) in reasoning.iter().filter(|(_, value)| !value.is_null()) {
        match name.as_str() {
            "effort" if value.is_string() => {
                chat.insert("reasoning_effort".to_owned(), value.clone());
            }
            "effort" => return Err(FieldError::invalid("reasoning.effort", "must be a string")),
            "summary" | "generate_summary" if value.is_string() => {}
            "summary" | "generate_summary" => {
                let problem = "must be a string";
                return Err(FieldError::invalid(format!("reasoning.{name}"), problem));
            }
            _ => return Err(no_counterpart(format!("reasoning.{name}"))),
        }
    }
    Ok(())
}
