//! A body of `/v1/chat/completions` as one of `/v1/messages`.

use serde_json::{Map, Value, json};

use super::{history::history, tools};
use crate::{
    fields::{FieldError, Fields},
    translate::refuse::{empty, no_counterpart, other_field},
};

/// Fields that are the same under another name or the same one.
const RENAMED: [(&str, &str); 5] = [
    ("model", "model"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("stream", "stream"),
];

/// A body without its output maximum, which is written when the bound is known.
pub(crate) fn to_messages(body: &Fields) -> Result<Fields, FieldError> {
    body.iter()
        .try_for_each(|(name, value)| known(name, value))?;
    let mut messages = Map::new();
    for (from, to) in RENAMED {
        if let Some(value) = body.get(from).filter(|value| !value.is_null()) {
            messages.insert(to.to_owned(), value.clone());
        }
    }
    let (system, history) = history(body)?;
    if let Some(system) = system {
        messages.insert("system".to_owned(), system);
    }
    messages.insert("messages".to_owned(), Value::Array(history));
    if let Some(stops) = stops(body)? {
        messages.insert("stop_sequences".to_owned(), stops);
    }
    if let Some(user) = user(body) {
        messages.insert("metadata".to_owned(), json!({ "user_id": user }));
    }
    if let Some(config) = output_config(body)? {
        messages.insert("output_config".to_owned(), config);
    }
    tools::definitions(body, &mut messages)?;
    Ok(messages)
}

/// Whether a field is translated, or changes nothing as it is.
fn known(name: &str, value: &Value) -> Result<(), FieldError> {
    let is = |values: &[Value]| values.contains(value);
    let harmless = match name {
        "messages" | "max_tokens" | "max_completion_tokens" | "stop" | "user" | "tools" => true,
        "tool_choice" | "parallel_tool_calls" | "response_format" | "reasoning_effort" => true,
        // hints of one vendor to itself
        "safety_identifier" | "prompt_cache_key" | "prompt_cache_retention" | "metadata" => true,
        "stream_options" => {
            let known = ["include_usage", "include_obfuscation"];
            if let Some(name) = other_field(value, &known) {
                return Err(no_counterpart(format!("stream_options.{name}")));
            }
            true
        }
        "temperature" if value.as_f64().is_some_and(|warm| warm > 1.0) => {
            let problem = "must be at most 1 for this model's upstream";
            return Err(FieldError::invalid("temperature", problem));
        }
        "n" => is(&[json!(1)]),
        "presence_penalty" | "frequency_penalty" => value.as_f64() == Some(0.0),
        "logit_bias" => is(&[json!({})]),
        "logprobs" | "store" => is(&[json!(false)]),
        "top_logprobs" => is(&[json!(0)]),
        "verbosity" => is(&[json!("medium")]),
        "service_tier" => is(&[json!("auto"), json!("default")]),
        "modalities" => is(&[json!(["text"])]),
        _ => RENAMED.iter().any(|(from, _)| *from == name),
    };
    match harmless || empty(value) {
        true => Ok(()),
        false => Err(no_counterpart(name)),
    }
}

fn stops(body: &Fields) -> Result<Option<Value>, FieldError> {
    let is_text = |stops: &[Value]| stops.iter().all(Value::is_string);
    match body.get("stop") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(stop)) => Ok(Some(json!([stop]))),
        Some(Value::Array(stops)) if stops.is_empty() => Ok(None),
        Some(Value::Array(stops)) if is_text(stops) => Ok(Some(json!(stops))),
        Some(_) => Err(FieldError::invalid(
            "stop",
            "must be a string or an array of strings",
        )),
    }
}

fn user(body: &Fields) -> Option<&str> {
    let named = |name| {
        body.get(name)
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    };
    named("user").or_else(|| named("safety_identifier"))
}

/// How hard to try, and the form of the answer.
fn output_config(body: &Fields) -> Result<Option<Value>, FieldError> {
    let mut config = Map::new();
    match body
        .get("reasoning_effort")
        .map(|effort| (effort, effort.as_str()))
    {
        None | Some((Value::Null, _) | (_, Some("none"))) => {}
        Some((effort, Some("low" | "medium" | "high" | "xhigh"))) => {
            config.insert("effort".to_owned(), effort.clone());
        }
        Some(_) => {
            return Err(FieldError::invalid(
                "reasoning_effort",
                "must be 'none', 'low', 'medium', 'high' or 'xhigh' for this model's upstream",
            ));
        }
    }
    if let Some(format) = format(body)? {
        config.insert("format".to_owned(), format);
    }
    Ok(Some(config)
        .filter(|config| !config.is_empty())
        .map(Value::Object))
}

fn format(body: &Fields) -> Result<Option<Value>, FieldError> {
    let Some(format) = body
        .get("response_format")
        .filter(|format| !format.is_null())
    else {
        return Ok(None);
    };
    let schema = format
        .pointer("/json_schema/schema")
        .filter(|schema| schema.is_object());
    match (format.get("type").and_then(Value::as_str), schema) {
        (Some("text"), _) => Ok(None),
        (Some("json_schema"), Some(schema)) => {
            Ok(Some(json!({"type": "json_schema", "schema": schema})))
        }
        _ => Err(FieldError::invalid(
            "response_format",
            "must be of type 'text', or of type 'json_schema' with a schema, for this model's upstream",
        )),
    }
}
