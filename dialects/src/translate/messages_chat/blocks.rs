//! The blocks of a message as messages of chat completions: texts, images, calls of tools and what they gave.

use serde_json::{Map, Value, json};

use super::SIGNATURE;
use crate::{
    fields::{FieldError, Fields},
    translate::refuse::{no_counterpart, other_field},
};

/// Before what a tool said of its failure: a message of a tool has no field for it.
const FAILED: &str = "Error: ";
/// Where a tool answered in images alone, which its message cannot hold.
const SEE_BELOW: &str = "The image follows.";

/// A block with where it stands.
struct Block<'a> {
    param: String,
    kind: &'a str,
    fields: &'a Fields,
    value: &'a Value,
}

fn blocks<'a>(param: &str, list: &'a [Value]) -> Result<Vec<Block<'a>>, FieldError> {
    let block = |(n, value): (usize, &'a Value)| {
        let param = format!("{param}[{n}]");
        let read = || {
            let fields = value.as_object()?;
            Some((fields, fields.get("type")?.as_str()?))
        };
        match read() {
            Some((fields, kind)) => Ok(Block {
                param,
                kind,
                fields,
                value,
            }),
            None => Err(FieldError::invalid(param, "must be a block with a type")),
        }
    };
    list.iter().enumerate().map(block).collect()
}

impl<'a> Block<'a> {
    /// Refuses what the block says besides these. What is cached changes nothing.
    fn only(&self, known: &[&str]) -> Result<(), FieldError> {
        let known = [known, &["type", "cache_control"]].concat();
        match other_field(self.value, &known) {
            Some(name) => Err(no_counterpart(format!("{}.{name}", self.param))),
            None => Ok(()),
        }
    }

    fn text(&self, name: &str) -> Result<&'a str, FieldError> {
        let text = self.fields.get(name).and_then(Value::as_str);
        text.ok_or_else(|| {
            FieldError::invalid(format!("{}.{name}", self.param), "must be a string")
        })
    }

    fn no_place(&self) -> FieldError {
        let kind: String = self.kind.chars().take(40).collect();
        let problem = format!(
            "is of type '{kind}', which cannot be translated for this model's upstream: leave it out"
        );
        FieldError::invalid(self.param.clone(), problem)
    }
}

/// Content that is a string, or blocks of text, as one string: servers join them with a new line too.
pub(super) fn text_only(param: &str, content: &Value) -> Result<String, FieldError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(list) => {
            let texts = blocks(param, list)?;
            let texts = texts.iter().map(text_of).collect::<Result<Vec<_>, _>>()?;
            Ok(texts.join("\n"))
        }
        _ => Err(not_content(param)),
    }
}

/// A citation says where a text is from, and is no part of it.
fn text_of<'a>(block: &Block<'a>) -> Result<&'a str, FieldError> {
    match block.kind {
        "text" => {
            block.only(&["text", "citations"])?;
            block.text("text")
        }
        _ => Err(block.no_place()),
    }
}

fn not_content(param: &str) -> FieldError {
    FieldError::invalid(param, "must be a string or an array of blocks")
}

/// A turn of the user: what tools gave, each a message of its own right behind the calls, then the rest.
pub(super) fn user(param: &str, content: &Value) -> Result<Vec<Value>, FieldError> {
    let list = match content {
        Value::String(text) => return Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(list) => list,
        _ => return Err(not_content(param)),
    };
    let mut turn = Vec::new();
    let mut shown = Vec::new();
    let mut rest = Vec::new();
    for block in blocks(param, list)? {
        match block.kind {
            "tool_result" => turn.push(result(&block, &mut shown)?),
            "text" => rest.push(json!({"type": "text", "text": text_of(&block)?})),
            "image" => rest.push(image(&block)?),
            _ => return Err(block.no_place()),
        }
    }
    shown.extend(rest);
    if !shown.is_empty() || turn.is_empty() {
        turn.push(json!({"role": "user", "content": joined(shown)}));
    }
    Ok(turn)
}

/// Parts of a message: one string where all are texts, which every server takes.
fn joined(parts: Vec<Value>) -> Value {
    let texts: Option<Vec<&str>> = parts.iter().map(|part| part["text"].as_str()).collect();
    match texts {
        Some(texts) => Value::String(texts.join("\n")),
        None => Value::Array(parts),
    }
}

/// What a tool gave; its images are added to `shown`, since only a user's message can hold them.
fn result(block: &Block<'_>, shown: &mut Vec<Value>) -> Result<Value, FieldError> {
    block.only(&["tool_use_id", "content", "is_error"])?;
    let id = block.text("tool_use_id")?;
    let mut texts: Vec<&str> = Vec::new();
    let mut images = Vec::new();
    let param = format!("{}.content", block.param);
    match block.fields.get("content") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => texts.push(text),
        Some(Value::Array(list)) => {
            for block in blocks(&param, list)? {
                match block.kind {
                    "image" => images.push(image(&block)?),
                    _ => texts.push(text_of(&block)?),
                }
            }
        }
        Some(_) => return Err(not_content(&param)),
    }
    let mut text = texts.join("\n");
    if !images.is_empty() {
        if text.is_empty() {
            SEE_BELOW.clone_into(&mut text);
        }
        shown.push(json!({"type": "text", "text": format!("Of tool call {id}:")}));
        shown.extend(images);
    }
    let failed = match block.fields.get("is_error") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(failed)) => *failed,
        Some(_) => {
            let param = format!("{}.is_error", block.param);
            return Err(FieldError::invalid(param, "must be true or false"));
        }
    };
    if failed {
        text.insert_str(0, FAILED);
    }
    Ok(json!({"role": "tool", "tool_call_id": id, "content": text}))
}

fn image(block: &Block<'_>) -> Result<Value, FieldError> {
    block.only(&["source"])?;
    let source = block.fields.get("source").unwrap_or(&Value::Null);
    let said = |name: &str| source.get(name).and_then(Value::as_str);
    let url = match (said("type"), said("media_type"), said("data"), said("url")) {
        (Some("base64"), Some(kind), Some(data), _) => format!("data:{kind};base64,{data}"),
        (Some("url"), _, _, Some(url)) => url.to_owned(),
        _ => {
            return Err(FieldError::invalid(
                format!("{}.source", block.param),
                "must be of type 'base64' with 'media_type' and 'data', or of type 'url' with 'url'",
            ));
        }
    };
    Ok(json!({"type": "image_url", "image_url": {"url": url}}))
}

/// A turn of the model: what it thought, said and called.
pub(super) fn assistant(param: &str, content: &Value) -> Result<Value, FieldError> {
    let list = match content {
        Value::String(text) => return Ok(json!({"role": "assistant", "content": text})),
        Value::Array(list) => list,
        _ => return Err(not_content(param)),
    };
    let (mut thoughts, mut texts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks(param, list)? {
        match block.kind {
            "text" => texts.push(text_of(&block)?),
            "thinking" => {
                block.only(&["thinking", "signature"])?;
                let thought = block.text("thinking")?;
                // what another model signed is for that model alone to read
                let signed = block.fields.get("signature").and_then(Value::as_str);
                if matches!(signed, None | Some("" | SIGNATURE)) {
                    thoughts.push(thought);
                }
            }
            "redacted_thinking" => block.only(&["data"])?,
            "tool_use" => calls.push(call(&block)?),
            _ => return Err(block.no_place()),
        }
    }
    let said = texts.join("\n");
    let content = match said.is_empty() && !calls.is_empty() {
        true => Value::Null,
        false => Value::String(said),
    };
    let mut message = Map::from_iter([
        ("role".to_owned(), json!("assistant")),
        ("content".to_owned(), content),
    ]);
    if !thoughts.is_empty() {
        message.insert("reasoning_content".to_owned(), json!(thoughts.join("\n")));
    }
    if !calls.is_empty() {
        message.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    Ok(Value::Object(message))
}

fn call(block: &Block<'_>) -> Result<Value, FieldError> {
    block.only(&["id", "name", "input", "caller"])?;
    let is_direct = |caller: &Value| caller.is_null() || caller["type"] == "direct";
    if !block.fields.get("caller").is_none_or(is_direct) {
        return Err(no_counterpart(format!("{}.caller", block.param)));
    }
    let (id, name) = (block.text("id")?, block.text("name")?);
    let input = block.fields.get("input").filter(|input| input.is_object());
    let input = input.ok_or_else(|| {
        FieldError::invalid(format!("{}.input", block.param), "must be an object")
    })?;
    Ok(json!({
        "id": id,
        "type": "function",
        "function": {"name": name, "arguments": input.to_string()},
    }))
}
