//! The tools that a client offers, and which of them the model has to call.

use serde_json::{Map, Value, json};

use super::INPUT;
use crate::{
    fields::{FieldError, Fields, flag},
    translate::refuse::{no_counterpart, other_field, other_fields},
};

/// Between the names of a namespace and of a function in it, where all functions stand in one list.
const WITHIN: &str = "__";

/// The name of a function in a namespace, in one word.
pub(super) fn flat(namespace: &str, name: &str) -> String {
    format!("{namespace}{WITHIN}{name}")
}

/// Tools that are no plain functions to the client.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownTools {
    /// Names of those that are called with a plain text.
    pub(super) custom: Vec<String>,
    /// Functions in a namespace: the name in one word, and both.
    pub(super) spaced: Vec<(String, [String; 2])>,
}

/// Those of a body.
pub(crate) fn known_tools(body: &Fields) -> KnownTools {
    let mut known = KnownTools::default();
    for tool in body
        .get("tools")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let Some(name) = tool["name"].as_str() else {
            continue;
        };
        match tool["type"].as_str() {
            Some("custom") => known.custom.push(name.to_owned()),
            Some("namespace") => {
                let within = tool["tools"].as_array().into_iter().flatten();
                let names = within.filter_map(|function| function["name"].as_str());
                known.spaced.extend(
                    names.map(|inner| (flat(name, inner), [name, inner].map(str::to_owned))),
                );
            }
            _ => {}
        }
    }
    known
}

/// Writes `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn definitions(body: &Fields, chat: &mut Fields) -> Result<(), FieldError> {
    let tools = match body.get("tools") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(tools)) => tools.as_slice(),
        Some(_) => return Err(FieldError::invalid("tools", "must be an array")),
    };
    let mut functions = Vec::new();
    for (n, tool) in tools.iter().enumerate() {
        let param = format!("tools[{n}]");
        match tool.get("type").and_then(Value::as_str) {
            Some("namespace") => functions.extend(within(&param, tool)?),
            _ => functions.push(function(&param, tool)?),
        }
    }
    told_apart(body, &functions)?;
    let offered = !functions.is_empty();
    if offered {
        chat.insert("tools".to_owned(), Value::Array(functions));
    }
    if let Some(choice) = choice(body, offered)? {
        chat.insert("tool_choice".to_owned(), choice);
    }
    let said = body
        .get("parallel_tool_calls")
        .is_some_and(|said| !said.is_null());
    if said && !flag(body, "parallel_tool_calls")? && offered {
        chat.insert("parallel_tool_calls".to_owned(), json!(false));
    }
    Ok(())
}

/// Refuses names that are one and the same in one word: whose call would it be?
fn told_apart(body: &Fields, functions: &[Value]) -> Result<(), FieldError> {
    let spaced = known_tools(body).spaced;
    let name = |function: &Value| function["function"]["name"].as_str().map(str::to_owned);
    let names: Vec<_> = functions.iter().filter_map(name).collect();
    let is_twice = |flat: &&String| names.iter().filter(|name| name == flat).count() > 1;
    match spaced.iter().map(|(flat, _)| flat).find(is_twice) {
        None => Ok(()),
        Some(flat) => {
            let problem = format!(
                "have two functions that are both '{flat}' in one word, as this model's upstream needs them: rename one"
            );
            Err(FieldError::invalid("tools", problem))
        }
    }
}

/// The functions of a namespace, each under both names.
fn within(param: &str, space: &Value) -> Result<Vec<Value>, FieldError> {
    let known = ["type", "name", "description", "tools"];
    if let Some(name) = other_field(space, &known) {
        return Err(no_counterpart(format!("{param}.{name}")));
    }
    let name = named(param, space)?;
    let tools = space.get("tools").and_then(Value::as_array);
    let tools = tools.ok_or_else(|| {
        FieldError::invalid(format!("{param}.tools"), "must be an array of functions")
    })?;
    let mut functions = Vec::new();
    for (n, tool) in tools.iter().enumerate() {
        let param = format!("{param}.tools[{n}]");
        if tool["type"] != "function" {
            let problem = "must be 'function' within a namespace";
            return Err(FieldError::invalid(format!("{param}.type"), problem));
        }
        let mut function = function(&param, tool)?;
        let inner = named(&param, tool)?;
        function["function"]["name"] = json!(flat(name, inner));
        functions.push(function);
    }
    Ok(functions)
}

fn named<'a>(param: &str, tool: &'a Value) -> Result<&'a str, FieldError> {
    let name = tool.get("name").and_then(Value::as_str);
    name.filter(|name| !name.is_empty())
        .ok_or_else(|| FieldError::invalid(format!("{param}.name"), "must be the name of the tool"))
}

fn function(param: &str, tool: &Value) -> Result<Value, FieldError> {
    let kind = tool.get("type").and_then(Value::as_str);
    let known: &[&str] = match kind {
        Some("function") => &["type", "name", "description", "parameters", "strict"],
        Some("custom") => &["type", "name", "description", "format"],
        _ => {
            let problem =
                "must be 'function' or 'custom': this model's upstream runs no tools itself";
            return Err(FieldError::invalid(format!("{param}.type"), problem));
        }
    };
    let harmless = |name: &str| name == "defer_loading" && tool[name] == false;
    if let Some(name) = other_fields(tool, known).find(|name| !harmless(name)) {
        return Err(no_counterpart(format!("{param}.{name}")));
    }
    let name = named(param, tool)?;
    let mut function = Map::from_iter([("name".to_owned(), json!(name))]);
    match kind {
        Some("custom") => custom(param, tool, &mut function)?,
        _ => {
            for name in ["description", "parameters", "strict"] {
                if let Some(value) = tool.get(name).filter(|value| !value.is_null()) {
                    function.insert(name.to_owned(), value.clone());
                }
            }
        }
    }
    Ok(json!({"type": "function", "function": function}))
}

/// A function of one text. Its grammar is told: nothing keeps the model to it.
fn custom(param: &str, tool: &Value, function: &mut Fields) -> Result<(), FieldError> {
    let mut description = match tool.get("description") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(_) => {
            let param = format!("{param}.description");
            return Err(FieldError::invalid(param, "must be a string"));
        }
    };
    if let Some(grammar) = grammar(param, tool)? {
        if !description.is_empty() {
            description.push('\n');
        }
        description.push_str(&grammar);
    }
    if !description.is_empty() {
        function.insert("description".to_owned(), json!(description));
    }
    let parameters = json!({
        "type": "object",
        "properties": {INPUT: {"type": "string"}},
        "required": [INPUT],
        "additionalProperties": false,
    });
    function.insert("parameters".to_owned(), parameters);
    Ok(())
}

fn grammar(param: &str, tool: &Value) -> Result<Option<String>, FieldError> {
    let format = match tool.get("format") {
        None | Some(Value::Null) => return Ok(None),
        Some(format) => format,
    };
    let said = |name: &str| format.get(name).and_then(Value::as_str);
    match (said("type"), said("syntax"), said("definition")) {
        (Some("text"), ..) => match other_field(format, &["type"]) {
            None => Ok(None),
            Some(name) => Err(no_counterpart(format!("{param}.format.{name}"))),
        },
        (Some("grammar"), Some(syntax @ ("lark" | "regex")), Some(definition)) => {
            let known = ["type", "syntax", "definition"];
            if let Some(name) = other_field(format, &known) {
                return Err(no_counterpart(format!("{param}.format.{name}")));
            }
            Ok(Some(format!(
                "The '{INPUT}' has to follow this {syntax} grammar:\n{definition}"
            )))
        }
        _ => {
            let problem = "must be of type 'text', or 'grammar' with a 'syntax' and a 'definition'";
            Err(FieldError::invalid(format!("{param}.format"), problem))
        }
    }
}

/// Without tools there is nothing to choose, and servers refuse a choice.
fn choice(body: &Fields, offered: bool) -> Result<Option<Value>, FieldError> {
    let choice = match body.get("tool_choice") {
        None | Some(Value::Null) => return Ok(None),
        Some(choice) => choice,
    };
    if let Some(name) = other_field(choice, &["type", "name", "namespace"]) {
        return Err(no_counterpart(format!("tool_choice.{name}")));
    }
    let said = |name: &str| choice.get(name).and_then(Value::as_str);
    let named = said("name").map(|name| match said("namespace") {
        Some(space) => flat(space, name),
        None => name.to_owned(),
    });
    let of_one = matches!(choice["type"].as_str(), Some("function" | "custom"));
    let written = match (choice.as_str(), named) {
        (Some("auto" | "none"), _) => choice.clone(),
        (Some("required"), _) if offered => choice.clone(),
        (None, Some(name)) if of_one && offered => {
            json!({"type": "function", "function": {"name": name}})
        }
        _ if !offered => {
            let problem = "needs 'tools' to choose from";
            return Err(FieldError::invalid("tool_choice", problem));
        }
        _ => {
            let problem = "must be 'none', 'auto', 'required', or a function or custom tool by its name, for this model's upstream";
            return Err(FieldError::invalid("tool_choice", problem));
        }
    };
    Ok(Some(written).filter(|_| offered))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(name: &str, inner: &str) -> Value {
        let function = json!({"type": "function", "name": inner});
        json!({"type": "namespace", "name": name, "tools": [function]})
    }

    fn written(body: &Value) -> Result<Fields, FieldError> {
        let mut chat = Map::new();
        definitions(body.as_object().unwrap(), &mut chat).map(|()| chat)
    }

    #[test]
    fn functions_that_would_be_one_by_name_are_told_apart_or_refused() {
        let plain = json!({"type": "function", "name": "a__b__c"});
        for tools in [
            json!([space("a", "b__c"), space("a__b", "c")]),
            json!([plain, space("a", "b__c")]),
        ] {
            let error = written(&json!({ "tools": tools })).unwrap_err();
            assert_eq!(error.param, "tools");
            assert!(error.problem.contains("a__b__c"), "{}", error.problem);
        }
        assert!(written(&json!({"tools": [space("a", "b"), space("b", "a"), plain]})).is_ok());
    }

    #[test]
    fn a_function_in_a_namespace_is_chosen_by_the_name_that_it_goes_by() {
        let choice = json!({"type": "function", "namespace": "a", "name": "b"});
        let chat = written(&json!({"tools": [space("a", "b")], "tool_choice": choice}));
        let chosen = &chat.unwrap()["tool_choice"]["function"]["name"];
        assert_eq!(chosen, "a__b");
    }
}
