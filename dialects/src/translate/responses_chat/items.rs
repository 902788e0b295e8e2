//! The items of an input as messages of chat completions.
//!
//! What the model thought, said and called in a row is one message there, and what tools gave follows it, each a
//! message of its own. Instructions at the beginning are one message, since templates of many models take one.

use serde_json::{Map, Value, json};

use super::{INPUT, flat};
use crate::{
    fields::{FieldError, Fields},
    translate::refuse::{no_counterpart, other_field},
};

/// Most items of one input.
const ITEMS_MAX: usize = 100_000;
/// Where a tool answered in images alone, which its message cannot hold.
const SEE_BELOW: &str = "The image follows.";

pub(super) fn history(body: &Fields) -> Result<Vec<Value>, FieldError> {
    let mut history = History::default();
    match body.get("instructions") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => history.instructions.push(text.clone()),
        Some(_) => return Err(FieldError::invalid("instructions", "must be a string")),
    }
    match body.get("input") {
        Some(Value::String(text)) => history.said("user", &json!(text)),
        Some(Value::Array(items)) if (1..=ITEMS_MAX).contains(&items.len()) => {
            for (n, item) in items.iter().enumerate() {
                history.item(&At {
                    param: format!("input[{n}]"),
                    item,
                })?;
            }
        }
        _ => {
            let problem = "must be a string or an array of at least one item";
            return Err(FieldError::invalid("input", problem));
        }
    }
    Ok(history.done())
}

/// What the model thought, said and called in a row.
#[derive(Default)]
struct Turn {
    thoughts: Vec<String>,
    texts: Vec<String>,
    calls: Vec<Value>,
}

impl Turn {
    /// Nothing where it is of thoughts alone: a message has to say something.
    fn message(self) -> Option<Value> {
        if self.texts.is_empty() && self.calls.is_empty() {
            return None;
        }
        let content = match self.texts.is_empty() {
            true => Value::Null,
            false => json!(self.texts.join("\n")),
        };
        let mut message = Map::from_iter([
            ("role".to_owned(), json!("assistant")),
            ("content".to_owned(), content),
        ]);
        if !self.thoughts.is_empty() {
            message.insert(
                "reasoning_content".to_owned(),
                json!(self.thoughts.join("\n")),
            );
        }
        if !self.calls.is_empty() {
            message.insert("tool_calls".to_owned(), Value::Array(self.calls));
        }
        Some(Value::Object(message))
    }
}

#[derive(Default)]
struct History {
    /// Those at the beginning.
    instructions: Vec<String>,
    chat: Vec<Value>,
    turn: Turn,
    /// Images that tools gave, which only a message of the user can hold, behind the answers of all tools.
    shown: Vec<Value>,
}

impl History {
    fn item(&mut self, at: &At<'_>) -> Result<(), FieldError> {
        match at.kind()? {
            "message" => self.message(at),
            "function_call" => self.call(at, "arguments"),
            "custom_tool_call" => self.call(at, "input"),
            "function_call_output" | "custom_tool_call_output" => self.result(at),
            "reasoning" => self.reasoning(at),
            _ => Err(at.no_place()),
        }
    }

    fn message(&mut self, at: &At<'_>) -> Result<(), FieldError> {
        at.only(&["role", "content", "phase"])?;
        let content = at.parts("content")?;
        match at.said("role").as_str() {
            Some("assistant") => {
                self.show();
                for part in content {
                    match part {
                        // not every server has a place for a refusal
                        Part::Text(text) | Part::Refusal(text) => self.turn.texts.push(text),
                        Part::Other(_) => return Err(at.no_part()),
                    }
                }
            }
            Some("system" | "developer") => {
                let mut texts = Vec::new();
                for part in content {
                    match part {
                        Part::Text(text) => texts.push(text),
                        Part::Refusal(_) | Part::Other(_) => return Err(at.no_part()),
                    }
                }
                self.instruct(texts.join("\n"));
            }
            Some("user") => {
                let content = joined(content).ok_or_else(|| at.no_part())?;
                self.said("user", &content);
            }
            _ => {
                let problem = "must be 'user', 'assistant', 'system' or 'developer'";
                return Err(FieldError::invalid(format!("{}.role", at.param), problem));
            }
        }
        Ok(())
    }

    fn instruct(&mut self, text: String) {
        let is_begun = !self.chat.is_empty() || !self.shown.is_empty() || self.is_turn();
        match is_begun {
            true => self.said("system", &json!(text)),
            false => self.instructions.push(text),
        }
    }

    fn is_turn(&self) -> bool {
        let turn = &self.turn;
        !(turn.texts.is_empty() && turn.calls.is_empty())
    }

    fn said(&mut self, role: &str, content: &Value) {
        self.end_turn();
        self.show();
        self.chat.push(json!({"role": role, "content": content}));
    }

    fn call(&mut self, at: &At<'_>, field: &str) -> Result<(), FieldError> {
        at.only(&["call_id", "name", "namespace", field])?;
        self.show();
        let (id, name, text) = (at.text("call_id")?, at.text("name")?, at.text(field)?);
        let name = match at.said("namespace") {
            Value::Null => name.to_owned(),
            _ => flat(at.text("namespace")?, name),
        };
        let arguments = match field {
            "arguments" => text.to_owned(),
            _ => json!({ INPUT: text }).to_string(),
        };
        self.turn.calls.push(json!({
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }));
        Ok(())
    }

    fn result(&mut self, at: &At<'_>) -> Result<(), FieldError> {
        at.only(&["call_id", "output"])?;
        let id = at.text("call_id")?;
        self.end_turn();
        let (mut texts, mut images) = (Vec::new(), Vec::new());
        for part in at.parts("output")? {
            match part {
                Part::Text(text) => texts.push(text),
                Part::Other(image) => images.push(image),
                Part::Refusal(_) => return Err(at.no_part()),
            }
        }
        let mut text = texts.join("\n");
        if !images.is_empty() {
            if text.is_empty() {
                SEE_BELOW.clone_into(&mut text);
            }
            let of = format!("Of tool call {id}:");
            self.shown.push(json!({"type": "text", "text": of}));
            self.shown.extend(images);
        }
        self.chat
            .push(json!({"role": "tool", "tool_call_id": id, "content": text}));
        Ok(())
    }

    /// What another model sealed is for that model alone to read, and a summary is not what was thought.
    fn reasoning(&mut self, at: &At<'_>) -> Result<(), FieldError> {
        at.only(&["summary", "content", "encrypted_content"])?;
        self.show();
        let is_sealed = at
            .said("encrypted_content")
            .as_str()
            .is_some_and(|sealed| !sealed.is_empty());
        let parts = at.said("content").as_array();
        let texts = parts
            .into_iter()
            .flatten()
            .filter_map(|part| part["text"].as_str());
        if !is_sealed {
            self.turn.thoughts.extend(texts.map(str::to_owned));
        }
        Ok(())
    }

    fn end_turn(&mut self) {
        let turn = std::mem::take(&mut self.turn);
        self.chat.extend(turn.message());
    }

    fn show(&mut self) {
        if !self.shown.is_empty() {
            let content = Value::Array(std::mem::take(&mut self.shown));
            self.chat.push(json!({"role": "user", "content": content}));
        }
    }

    fn done(mut self) -> Vec<Value> {
        self.end_turn();
        self.show();
        let mut messages = Vec::new();
        if !self.instructions.is_empty() {
            let text = self.instructions.join("\n");
            messages.push(json!({"role": "system", "content": text}));
        }
        messages.extend(self.chat);
        messages
    }
}

/// A part of a content.
enum Part {
    Text(String),
    Refusal(String),
    /// As chat completions write it.
    Other(Value),
}

/// Parts of the user: one string where all are texts, which every server takes. Nothing where one is a refusal.
fn joined(parts: Vec<Part>) -> Option<Value> {
    let is_text = |part: &Part| matches!(part, Part::Text(_));
    let all_texts = parts.iter().all(is_text);
    let mut texts = Vec::new();
    let mut list = Vec::new();
    for part in parts {
        match part {
            Part::Text(text) if all_texts => texts.push(text),
            Part::Text(text) => list.push(json!({"type": "text", "text": text})),
            Part::Other(part) => list.push(part),
            Part::Refusal(_) => return None,
        }
    }
    match all_texts {
        true => Some(json!(texts.join("\n"))),
        false => Some(Value::Array(list)),
    }
}

/// An item with where it stands.
struct At<'a> {
    param: String,
    item: &'a Value,
}

impl<'a> At<'a> {
    /// What is no message says what it is.
    fn kind(&self) -> Result<&'a str, FieldError> {
        let problem = match self.item {
            Value::Object(fields) => match fields.get("type") {
                None | Some(Value::Null) if fields.contains_key("role") => return Ok("message"),
                Some(Value::String(kind)) => return Ok(kind),
                _ => "must be a message with a 'role', or an item with a 'type'",
            },
            _ => "must be an object",
        };
        Err(FieldError::invalid(self.param.clone(), problem))
    }

    /// Refuses what the item says besides these. Its id and its status say nothing here.
    fn only(&self, known: &[&str]) -> Result<(), FieldError> {
        let known = [known, &["type", "id", "status"]].concat();
        match other_field(self.item, &known) {
            Some(name) => Err(no_counterpart(format!("{}.{name}", self.param))),
            None => Ok(()),
        }
    }

    fn said(&self, name: &str) -> &'a Value {
        self.item.get(name).unwrap_or(&Value::Null)
    }

    fn text(&self, name: &str) -> Result<&'a str, FieldError> {
        self.said(name).as_str().ok_or_else(|| {
            FieldError::invalid(format!("{}.{name}", self.param), "must be a string")
        })
    }

    fn no_place(&self) -> FieldError {
        no_place(&self.param, self.item)
    }

    fn no_part(&self) -> FieldError {
        let problem = "has a part that this role cannot have for this model's upstream";
        FieldError::invalid(self.param.clone(), problem)
    }

    fn parts(&self, name: &str) -> Result<Vec<Part>, FieldError> {
        let param = format!("{}.{name}", self.param);
        match self.said(name) {
            Value::String(text) => Ok(vec![Part::Text(text.clone())]),
            Value::Array(parts) => {
                let parts = parts.iter().enumerate();
                let parts = parts.map(|(n, part)| read_part(&format!("{param}[{n}]"), part));
                parts.collect()
            }
            _ => {
                let problem = "must be a string or an array of parts";
                Err(FieldError::invalid(param, problem))
            }
        }
    }
}

fn no_place(param: &str, value: &Value) -> FieldError {
    let kind = value.get("type").and_then(Value::as_str).unwrap_or("");
    let kind: String = kind.chars().take(40).collect();
    let problem = match kind.as_str() {
        "item_reference" => {
            "names what is kept, and this model's upstream keeps nothing: send its content"
                .to_owned()
        }
        _ => format!(
            "is of type '{kind}', which cannot be translated for this model's upstream: leave it out"
        ),
    };
    FieldError::invalid(param, problem)
}

fn read_part(param: &str, part: &Value) -> Result<Part, FieldError> {
    let only = |known: &[&str]| match other_field(part, &[known, &["type"]].concat()) {
        Some(name) => Err(no_counterpart(format!("{param}.{name}"))),
        None => Ok(()),
    };
    let text = |name: &str| {
        let text = part.get(name).and_then(Value::as_str).map(str::to_owned);
        text.ok_or_else(|| FieldError::invalid(format!("{param}.{name}"), "must be a string"))
    };
    match part.get("type").and_then(Value::as_str) {
        Some("input_text" | "text") => {
            only(&["text"])?;
            Ok(Part::Text(text("text")?))
        }
        // where a text is from, and how likely it was, is no part of it
        Some("output_text") => {
            only(&["text", "annotations", "logprobs", "parsed"])?;
            Ok(Part::Text(text("text")?))
        }
        Some("refusal") => {
            only(&["refusal"])?;
            Ok(Part::Refusal(text("refusal")?))
        }
        Some("input_image") => {
            only(&["image_url", "detail"])?;
            let mut image = Map::from_iter([("url".to_owned(), json!(text("image_url")?))]);
            if let Some(detail) = part.get("detail").filter(|detail| !detail.is_null()) {
                image.insert("detail".to_owned(), detail.clone());
            }
            Ok(Part::Other(
                json!({"type": "image_url", "image_url": image}),
            ))
        }
        Some("input_audio") => {
            only(&["input_audio"])?;
            Ok(Part::Other(part.clone()))
        }
        _ => Err(no_place(param, part)),
    }
}
