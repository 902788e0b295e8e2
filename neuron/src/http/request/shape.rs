//! What an answer has to look like, as a request says it: `response_format` and `tool_choice`.

use serde_json::{Value, json};

use super::{super::error::ErrorAnswer, Fields, counted};
use crate::{calls::CallFormat, shape::Shape};

/// What a request says.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in super::super) enum ShapeWish {
    #[default]
    Any,
    /// JSON after this schema.
    Json(Value),
    /// A call of any tool.
    SomeCall,
    /// A call of this tool.
    CallOf(String),
}

impl ShapeWish {
    pub(super) fn read(body: &Fields<'_>) -> Result<Self, ErrorAnswer> {
        let format = format(body)?;
        let choice = choice(body)?;
        let tools = body.get("tools").and_then(Value::as_array);
        let may_call = tools.is_some_and(|tools| !tools.is_empty());
        let none = body.get("tool_choice").and_then(Value::as_str) == Some("none");
        if format.is_some() && may_call && !none {
            let message = "response_format is not served together with tools: say tool_choice: none, or leave one of them out";
            return Err(ErrorAnswer::unsupported("response_format", message));
        }
        if choice.is_some() && !may_call {
            let wanted = "none or auto where there are no tools";
            return Err(ErrorAnswer::invalid_value("tool_choice", wanted));
        }
        let shape = format.or(choice).unwrap_or_default();
        if shape != Self::Any {
            shape.alone(body)?;
        }
        Ok(shape)
    }

    /// Where nothing but the end may come, an answer must be able to end.
    fn alone(&self, body: &Fields<'_>) -> Result<(), ErrorAnswer> {
        for name in ["ignore_eos", "min_tokens"] {
            let set = body.get(name).is_some_and(|value| {
                value.as_bool() == Some(true) || counted(value).is_some_and(|count| count > 0)
            });
            if set {
                let message =
                    format!("{name} is not served for an answer that has a shape: leave it out");
                return Err(ErrorAnswer::unsupported(name, message));
            }
        }
        Ok(())
    }

    /// Which field says it.
    pub(in super::super) fn field(&self) -> &'static str {
        match self {
            Self::Any | Self::Json(_) => "response_format",
            Self::SomeCall | Self::CallOf(_) => "tool_choice",
        }
    }

    /// As it is followed, with these tools, by a model that writes calls in this way.
    pub(in super::super) fn of(
        self,
        tools: Option<&Value>,
        format: Option<CallFormat>,
    ) -> Result<Option<Shape>, ErrorAnswer> {
        let name = match self {
            Self::Any => return Ok(None),
            Self::Json(schema) => return Ok(Some(Shape::Json(schema))),
            Self::SomeCall => None,
            Self::CallOf(name) => Some(name),
        };
        let named = |tool: &&Value| {
            name.as_ref()
                .is_none_or(|name| tool["function"]["name"] == **name)
        };
        let all = tools.and_then(Value::as_array).into_iter().flatten();
        let wanted: Vec<&Value> = all.filter(named).collect();
        if wanted.is_empty() {
            return Err(ErrorAnswer::invalid_value(
                "tool_choice",
                "one of the tools",
            ));
        }
        let calls = |key: &str| -> Result<Vec<Value>, ErrorAnswer> {
            wanted.iter().map(|tool| call(tool, key)).collect()
        };
        Ok(Some(match format {
            Some(CallFormat::Tagged) => Shape::Wrapped {
                before: "<tool_call>\n",
                schemas: calls("arguments")?,
                after: "\n</tool_call>",
            },
            Some(CallFormat::Json) => Shape::Wrapped {
                before: "",
                schemas: calls("parameters")?,
                after: "",
            },
            Some(CallFormat::Mistral) => Shape::Wrapped {
                before: "[",
                schemas: calls("arguments")?,
                after: "]",
            },
            Some(CallFormat::Pythonic) | None => {
                let message = "a call cannot be demanded of this model: say auto";
                return Err(ErrorAnswer::unsupported("tool_choice", message));
            }
        }))
    }
}

/// The schema of a call of a tool, with its arguments under this key.
fn call(tool: &Value, key: &str) -> Result<Value, ErrorAnswer> {
    let function = &tool["function"];
    let parameters = parameters(&function["parameters"], key);
    let parameters = parameters.ok_or_else(|| {
        let name = function["name"].as_str().unwrap_or_default();
        let message = format!(
            "the parameters of {name:?} are no object, so that a call of it cannot be demanded"
        );
        ErrorAnswer::unsupported("tools", message)
    })?;
    Ok(json!({
        "type": "object",
        "properties": { "name": { "const": function["name"] }, key: parameters },
        "required": ["name", key],
        "additionalProperties": false,
    }))
}

/// Parameters as the arguments of a call: an object, and what they refer to found where they stand in the call; nothing
/// where no object has them.
fn parameters(told: &Value, key: &str) -> Option<Value> {
    let mut parameters = match told {
        Value::Null | Value::Bool(true) => json!({}),
        Value::Object(_) => told.clone(),
        _ => return None,
    };
    let is_object = match &parameters["type"] {
        Value::Null => true,
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "object"),
        kind => kind == "object",
    };
    parameters["type"] = json!("object");
    refer(&mut parameters, &format!("#/properties/{key}"));
    is_object.then_some(parameters)
}

/// Has references that begin at the top begin here.
fn refer(schema: &mut Value, here: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(reference) if name == "$ref" => {
                        if let Some(path) = reference.strip_prefix('#')
                            && (path.is_empty() || path.starts_with('/'))
                        {
                            *reference = format!("{here}{path}");
                        }
                    }
                    _ if matches!(name.as_str(), "const" | "enum" | "default" | "examples") => {}
                    value => refer(value, here),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| refer(item, here)),
        _ => {}
    }
}

fn format(body: &Fields<'_>) -> Result<Option<ShapeWish>, ErrorAnswer> {
    let wanted = || {
        let wanted = "an object with the type text, json_object or json_schema";
        ErrorAnswer::invalid_value("response_format", wanted)
    };
    let Some(format) = body.get("response_format") else {
        return Ok(None);
    };
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(ShapeWish::Json(json!({ "type": "object" })))),
        Some("json_schema") => match &format["json_schema"]["schema"] {
            schema @ Value::Object(_) => Ok(Some(ShapeWish::Json(schema.clone()))),
            _ => Err(ErrorAnswer::invalid_value(
                "response_format",
                "with a json_schema that has a schema",
            )),
        },
        _ => Err(wanted()),
    }
}

fn choice(body: &Fields<'_>) -> Result<Option<ShapeWish>, ErrorAnswer> {
    let wanted = || {
        let wanted = "none, auto, required or a function by its name";
        ErrorAnswer::invalid_value("tool_choice", wanted)
    };
    let Some(choice) = body.get("tool_choice") else {
        return Ok(None);
    };
    match choice.as_str() {
        Some("none" | "auto") => Ok(None),
        Some("required") => Ok(Some(ShapeWish::SomeCall)),
        Some(_) => Err(wanted()),
        None => {
            let name = choice["function"]["name"].as_str().ok_or_else(wanted)?;
            let known = choice["type"] == "function";
            known
                .then(|| Some(ShapeWish::CallOf(name.to_owned())))
                .ok_or_else(wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(told: &Value) -> Option<Value> {
        let tool = json!({ "function": { "name": "f", "parameters": told } });
        let schema = call(&tool, "arguments").ok()?;
        Some(schema["properties"]["arguments"].clone())
    }

    #[test]
    fn arguments_of_a_demanded_call_are_an_object() {
        let object = Some(json!({ "type": "object" }));
        for told in [
            json!(null),
            json!({}),
            json!(true),
            json!({ "type": ["object", "null"] }),
        ] {
            assert_eq!(called(&told), object, "{told}");
        }
        for told in [
            json!(false),
            json!({ "type": "array" }),
            json!({ "type": ["string", "null"] }),
            json!(7),
        ] {
            assert_eq!(called(&told), None, "{told}");
        }
    }

    #[test]
    fn references_of_parameters_begin_at_the_parameters() {
        let told = json!({
            "properties": {
                "a": { "$ref": "#/properties/b" }, "b": { "$ref": "#" }, "c": { "items": [{ "$ref": "#/$defs/d" }] },
                "e": { "const": { "$ref": "#" } }, "f": { "$ref": "other.json#/x" },
            },
            "$defs": { "d": { "type": "string" } },
        });
        let properties = &called(&told).unwrap()["properties"];
        let expected = json!({
            "a": { "$ref": "#/properties/arguments/properties/b" }, "b": { "$ref": "#/properties/arguments" },
            "c": { "items": [{ "$ref": "#/properties/arguments/$defs/d" }] },
            "e": { "const": { "$ref": "#" } }, "f": { "$ref": "other.json#/x" },
        });
        assert_eq!(*properties, expected);
    }
}
