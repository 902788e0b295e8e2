//! The tools that a client offers, and which of them the model has to call.

use serde_json::{Map, Value, json};

use crate::{
    fields::{FieldError, Fields, flag},
    translate::refuse::{no_counterpart, other_field},
};

/// Writes `tools` and `tool_choice`.
pub(super) fn definitions(body: &Fields, messages: &mut Fields) -> Result<(), FieldError> {
    let tools = match body.get("tools") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(tools)) => tools.as_slice(),
        Some(_) => return Err(FieldError::invalid("tools", "must be an array")),
    };
    let tools = tools
        .iter()
        .enumerate()
        .map(|(n, tool)| definition(n, tool));
    let tools = tools.collect::<Result<Vec<_>, _>>()?;
    let offered = !tools.is_empty();
    if offered {
        messages.insert("tools".to_owned(), Value::Array(tools));
    }
    // said only where it is not so
    let one_at_a_time = match body.get("parallel_tool_calls") {
        None | Some(Value::Null) => false,
        Some(_) => !flag(body, "parallel_tool_calls")?,
    };
    if let Some(choice) = choice(body, offered, one_at_a_time)? {
        messages.insert("tool_choice".to_owned(), choice);
    }
    Ok(())
}

fn definition(n: usize, tool: &Value) -> Result<Value, FieldError> {
    let param = format!("tools[{n}]");
    let kind = tool.get("type").and_then(Value::as_str);
    let function = tool.get("function").filter(|function| function.is_object());
    let (None | Some("function"), Some(function)) = (kind, function) else {
        let problem = "must be of type 'function' for this model's upstream";
        return Err(FieldError::invalid(param, problem));
    };
    if let Some(name) = other_field(tool, &["type", "function"]) {
        return Err(no_counterpart(format!("{param}.{name}")));
    }
    let known = ["name", "description", "parameters", "strict"];
    if let Some(name) = other_field(function, &known) {
        return Err(no_counterpart(format!("{param}.function.{name}")));
    }
    let said = |name: &str| function.get(name).filter(|value| !value.is_null());
    let mut tool = Map::new();
    let named = said("name").filter(|name| name.is_string());
    let named = named.ok_or_else(|| {
        let problem = "must be the name of the function";
        FieldError::invalid(format!("{param}.function.name"), problem)
    })?;
    tool.insert("name".to_owned(), named.clone());
    if let Some(description) = said("description") {
        tool.insert("description".to_owned(), description.clone());
    }
    let none = || json!({"type": "object", "properties": {}});
    tool.insert(
        "input_schema".to_owned(),
        said("parameters").cloned().unwrap_or_else(none),
    );
    if said("strict").is_some_and(|strict| *strict == true) {
        tool.insert("strict".to_owned(), json!(true));
    }
    Ok(Value::Object(tool))
}

/// Which tool has to be called. Without tools there is nothing to choose.
fn choice(body: &Fields, offered: bool, one: bool) -> Result<Option<Value>, FieldError> {
    let choice = body.get("tool_choice").filter(|choice| !choice.is_null());
    let mut written = match choice {
        None if one => json!({"type": "auto"}),
        None => return Ok(None),
        Some(choice) => match (choice.as_str(), choice.pointer("/function/name")) {
            (Some("none"), _) => return Ok(Some(json!({"type": "none"})).filter(|_| offered)),
            (Some("auto"), _) => json!({"type": "auto"}),
            (Some("required"), _) if offered => json!({"type": "any"}),
            (None, Some(Value::String(name))) if offered && choice["type"] == "function" => {
                json!({"type": "tool", "name": name})
            }
            _ if !offered => {
                let problem = "needs 'tools' to choose from";
                return Err(FieldError::invalid("tool_choice", problem));
            }
            _ => {
                let problem = "must be 'none', 'auto', 'required' or a function by its name";
                return Err(FieldError::invalid("tool_choice", problem));
            }
        },
    };
    if one {
        written["disable_parallel_tool_use"] = json!(true);
    }
    Ok(Some(written).filter(|_| offered))
}
