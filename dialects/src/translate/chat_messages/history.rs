//! The messages of a chat as turns of `/v1/messages`: instructions apart, what tools gave with the user.
//!
//! Turns alternate there, so messages of the same side that follow each other are one turn.

use seatbelt_schemas::json;
use serde_json::{Value, json};

use crate::{
    exact::Exact,
    fields::{FieldError, Fields, messages},
    translate::refuse::{no_counterpart, other_field},
};

/// Most values in the arguments of all calls, which are texts until they are parsed here: what a body holds
/// in values of its own was bounded before.
const VALUES_MAX: u64 = 100_000;

/// The instructions, wherever they stood, and the turns.
pub(super) fn history(body: &Fields) -> Result<(Option<Value>, Vec<Value>), FieldError> {
    let mut system = Vec::new();
    let mut turns = Turns::default();
    let mut values = 0;
    for (n, message) in messages(body)?.iter().enumerate() {
        values += values_called_with(message);
        if values > VALUES_MAX {
            let problem = format!("calls functions with more than {VALUES_MAX} values so far");
            return Err(FieldError::invalid(format!("messages[{n}]"), problem));
        }
        let at = At {
            param: format!("messages[{n}]"),
            message,
        };
        match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => system.extend(at.instructions()?),
            Some("user") => turns.add("user", at.user()?),
            Some("assistant") => turns.add("assistant", at.assistant()?),
            Some("tool") => turns.add("user", vec![at.result()?]),
            _ => {
                let problem = "must be 'system', 'developer', 'user', 'assistant' or 'tool'";
                return Err(FieldError::invalid(format!("{}.role", at.param), problem));
            }
        }
    }
    let system = match system.as_slice() {
        [] => None,
        [one] => one.get("text").cloned(),
        _ => Some(Value::Array(system)),
    };
    Ok((system, turns.done()))
}

/// No fewer than the values in what a message calls functions with: each stands behind one of these signs, but
/// for the first.
fn values_called_with(message: &Value) -> u64 {
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let arguments = calls
        .into_iter()
        .flatten()
        .filter_map(|call| call.pointer("/function/arguments")?.as_str());
    let signs = |text: &str| {
        let signs = text.bytes().filter(|byte| b"[{,:".contains(byte));
        signs.count() as u64 + 1
    };
    arguments.map(signs).sum()
}

/// Turns as they come.
#[derive(Default)]
struct Turns(Vec<(&'static str, Vec<Value>)>);

impl Turns {
    fn add(&mut self, role: &'static str, blocks: Vec<Value>) {
        match self.0.last_mut() {
            Some((last, turn)) if *last == role => turn.extend(blocks),
            _ => self.0.push((role, blocks)),
        }
    }

    /// A turn of one text is that text.
    fn done(self) -> Vec<Value> {
        let turn = |(role, blocks): (&str, Vec<Value>)| {
            let content = match blocks.as_slice() {
                [] => json!(""),
                [one] if one["type"] == "text" => one["text"].clone(),
                _ => Value::Array(blocks),
            };
            json!({"role": role, "content": content})
        };
        self.0.into_iter().map(turn).collect()
    }
}

/// A message with where it stands.
struct At<'a> {
    param: String,
    message: &'a Value,
}

impl<'a> At<'a> {
    fn only(&self, known: &[&str]) -> Result<(), FieldError> {
        match other_field(self.message, known) {
            Some(name) => Err(no_counterpart(format!("{}.{name}", self.param))),
            None => Ok(()),
        }
    }

    fn said(&self, name: &str) -> &'a Value {
        self.message.get(name).unwrap_or(&Value::Null)
    }

    fn instructions(&self) -> Result<Vec<Value>, FieldError> {
        self.only(&["role", "content"])?;
        self.content(&|_, _, _| Ok(None))
    }

    fn user(&self) -> Result<Vec<Value>, FieldError> {
        self.only(&["role", "content"])?;
        self.content(&|param, kind, part| match kind {
            "image_url" => image(param, part).map(Some),
            _ => Ok(None),
        })
    }

    /// What the model thought cannot be given back: it would have to be signed.
    fn assistant(&self) -> Result<Vec<Value>, FieldError> {
        self.only(&[
            "role",
            "content",
            "refusal",
            "tool_calls",
            "reasoning_content",
            "reasoning",
            "annotations",
        ])?;
        let mut blocks = self.content(&|_, kind, part| match (kind, &part["refusal"]) {
            ("refusal", Value::String(text)) => Ok(Some(text_block(text))),
            _ => Ok(None),
        })?;
        if let Value::String(refusal) = self.said("refusal") {
            blocks.push(text_block(refusal));
        }
        let calls = match self.said("tool_calls") {
            Value::Null => &[],
            Value::Array(calls) => calls.as_slice(),
            _ => {
                let param = format!("{}.tool_calls", self.param);
                return Err(FieldError::invalid(param, "must be an array"));
            }
        };
        for (n, call) in calls.iter().enumerate() {
            blocks.push(tool_use(&format!("{}.tool_calls[{n}]", self.param), call)?);
        }
        Ok(blocks)
    }

    /// The name of a tool is known by its call.
    fn result(&self) -> Result<Value, FieldError> {
        self.only(&["role", "content", "tool_call_id", "name"])?;
        let id = self.said("tool_call_id").as_str().ok_or_else(|| {
            let param = format!("{}.tool_call_id", self.param);
            FieldError::invalid(param, "must be the id of a call")
        })?;
        let content = match self.said("content") {
            Value::String(text) => json!(text),
            _ => Value::Array(self.content(&|_, _, _| Ok(None))?),
        };
        Ok(json!({"type": "tool_result", "tool_use_id": id, "content": content}))
    }

    /// The texts of a message as blocks, and its other parts as `other` has them. An upstream refuses empty
    /// texts, which say nothing.
    fn content(&self, other: &Other) -> Result<Vec<Value>, FieldError> {
        let param = format!("{}.content", self.param);
        let parts = match self.said("content") {
            Value::Null => return Ok(Vec::new()),
            Value::String(text) if text.is_empty() => return Ok(Vec::new()),
            Value::String(text) => return Ok(vec![text_block(text)]),
            Value::Array(parts) => parts,
            _ => {
                let problem = "must be a string or an array of parts";
                return Err(FieldError::invalid(param, problem));
            }
        };
        let mut blocks = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let param = format!("{param}[{n}]");
            let kind = part.get("type").and_then(Value::as_str).unwrap_or("");
            let block = match (kind, &part["text"]) {
                ("text", Value::String(text)) if text.is_empty() => continue,
                ("text", Value::String(text)) => Some(text_block(text)),
                _ => other(&param, kind, part)?,
            };
            let kind: String = kind.chars().take(40).collect();
            let no_place = || {
                let problem = format!(
                    "is of type '{kind}', which cannot be translated for this model's upstream: leave it out"
                );
                FieldError::invalid(param, problem)
            };
            blocks.push(block.ok_or_else(no_place)?);
        }
        Ok(blocks)
    }
}

/// What a part comes to that is no text, by where it stands and its type; nothing where it has no place.
type Other = dyn Fn(&str, &str, &Value) -> Result<Option<Value>, FieldError>;

fn text_block(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// How closely an image is looked at is for the model to say.
fn image(param: &str, part: &Value) -> Result<Value, FieldError> {
    let url = part
        .pointer("/image_url/url")
        .and_then(Value::as_str)
        .unwrap_or("");
    let source = match url.strip_prefix("data:") {
        Some(data) => {
            let inline = data
                .split_once(";base64,")
                .filter(|(kind, _)| !kind.is_empty());
            inline.map(|(kind, data)| json!({"type": "base64", "media_type": kind, "data": data}))
        }
        None if url.starts_with("https://") || url.starts_with("http://") => {
            Some(json!({"type": "url", "url": url}))
        }
        None => None,
    };
    let source = source.ok_or_else(|| {
        let problem = "must be an address, or 'data:' with a type and base64";
        FieldError::invalid(format!("{param}.image_url.url"), problem)
    })?;
    Ok(json!({"type": "image", "source": source}))
}

fn tool_use(param: &str, call: &Value) -> Result<Value, FieldError> {
    let said = |place: &str| call.pointer(place).and_then(Value::as_str);
    let (Some(id), Some(name)) = (said("/id"), said("/function/name")) else {
        let problem = "must be the call of a function, with its 'id'";
        return Err(FieldError::invalid(param, problem));
    };
    let arguments = said("/function/arguments").unwrap_or("").trim();
    if Exact::marked(arguments.as_bytes(), || "mark".to_owned()).is_some() {
        let problem = "has a number that would arrive as another: write it as a text";
        let param = format!("{param}.function.arguments");
        return Err(FieldError::invalid(param, problem));
    }
    let input = match arguments {
        "" => Some(json!({})),
        text => json::from_str(text).ok().filter(Value::is_object),
    };
    let input = input.ok_or_else(|| {
        let param = format!("{param}.function.arguments");
        FieldError::invalid(param, "must be a JSON object for this model's upstream")
    })?;
    Ok(json!({"type": "tool_use", "id": id, "name": name, "input": input}))
}
