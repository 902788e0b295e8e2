//! The tools that a client offers, and which of them the model has to call.

use serde_json::{Map, Value, json};

use super::request::one_call_at_a_time;
use crate::{
    fields::{FieldError, Fields},
    translate::refuse::{no_counterpart, other_field},
};

/// Writes `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn definitions(body: &Fields, chat: &mut Fields) -> Result<(), FieldError> {
    let tools = match body.get("tools") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(tools)) => tools.as_slice(),
        Some(_) => return Err(FieldError::invalid("tools", "must be an array")),
    };
    let functions = tools.iter().enumerate().map(|(n, tool)| function(n, tool));
    let functions = functions.collect::<Result<Vec<_>, _>>()?;
    let offered = !functions.is_empty();
    if offered {
        chat.insert("tools".to_owned(), Value::Array(functions));
    }
    match body.get("tool_choice") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(fields)) => choice(fields, offered, chat),
        Some(_) => Err(FieldError::invalid("tool_choice", "must be an object")),
    }
}

/// Fields of a tool that are translated, and those that change neither prompt nor answer.
const TOOL_FIELDS: &[&str] = &[
    "type",
    "name",
    "description",
    "input_schema",
    "strict",
    "cache_control",
    "eager_input_streaming",
];

fn function(n: usize, tool: &Value) -> Result<Value, FieldError> {
    let param = format!("tools[{n}]");
    match tool.get("type").unwrap_or(&Value::Null) {
        Value::Null => {}
        Value::String(kind) if kind == "custom" => {}
        _ => {
            let problem = "must be 'custom': this model's upstream knows no tool by its type";
            return Err(FieldError::invalid(format!("{param}.type"), problem));
        }
    }
    let harmless = |name: &str| match name {
        "defer_loading" => tool["defer_loading"] == false,
        "allowed_callers" => tool["allowed_callers"] == json!(["direct"]),
        _ => false,
    };
    if let Some(name) = other_field(tool, TOOL_FIELDS).filter(|name| !harmless(name)) {
        return Err(no_counterpart(format!("{param}.{name}")));
    }
    let name = tool.get("name").and_then(Value::as_str);
    let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
        FieldError::invalid(format!("{param}.name"), "must be the name of the tool")
    })?;
    let schema = tool.get("input_schema").filter(|schema| schema.is_object());
    let schema = schema.ok_or_else(|| {
        FieldError::invalid(format!("{param}.input_schema"), "must be a JSON schema")
    })?;
    let mut function = Map::from_iter([("name".to_owned(), json!(name))]);
    for (from, to) in [("description", "description"), ("strict", "strict")] {
        if let Some(value) = tool.get(from).filter(|value| !value.is_null()) {
            function.insert(to.to_owned(), value.clone());
        }
    }
    function.insert("parameters".to_owned(), schema.clone());
    Ok(json!({"type": "function", "function": function}))
}

/// Without tools there is nothing to choose, and servers refuse a choice.
fn choice(choice: &Fields, offered: bool, chat: &mut Fields) -> Result<(), FieldError> {
    let known = |name: &str| matches!(name, "type" | "name" | "disable_parallel_tool_use");
    if let Some(name) = choice.keys().find(|name| !known(name)) {
        return Err(no_counterpart(format!("tool_choice.{name}")));
    }
    let kind = choice.get("type").and_then(Value::as_str);
    let name = choice.get("name").and_then(Value::as_str);
    let written = match (kind, name) {
        (Some("auto"), _) => json!("auto"),
        (Some("none"), _) => json!("none"),
        (Some("any"), _) if offered => json!("required"),
        (Some("tool"), Some(name)) if offered => {
            json!({"type": "function", "function": {"name": name}})
        }
        (Some("any" | "tool"), _) if !offered => {
            return Err(FieldError::invalid(
                "tool_choice",
                "needs 'tools' to choose from",
            ));
        }
        _ => {
            let problem = "must be of type 'auto', 'any', 'tool' with a 'name', or 'none'";
            return Err(FieldError::invalid("tool_choice", problem));
        }
    };
    let one = one_call_at_a_time(choice)?;
    if offered {
        chat.insert("tool_choice".to_owned(), written);
        if one {
            chat.insert("parallel_tool_calls".to_owned(), json!(false));
        }
    }
    Ok(())
}
