//! What a body asks for, as far as a bound needs it: how much can reach the prompt, and how much output
//! may come of it.
//!
//! The input is everything that can reach a prompt: its bytes at their widest ([`crate::printed`]), since no
//! byte-level tokenizer makes more tokens than bytes, or what another [`Measure`] makes of it. Both take the
//! same walk through a body. Not here: the bound itself, which a model's limits are part of.

use std::borrow::Cow;

use seatbelt_schemas::ids::EndUserId;
use serde_json::Value;

use crate::{
    fields::{FieldError, Fields},
    media::{MediaLimits, Medium},
    printed::{json_bytes, text_bytes},
};

/// In what texts and printed JSON are measured. A bound needs both at their widest.
pub trait Measure {
    /// A text that reaches the prompt as it is.
    fn text(&mut self, text: &str) -> u64;
    /// A value that is printed again, nobody knows how.
    fn json(&mut self, value: &Value) -> u64;
}

/// In bytes at their widest.
pub(crate) struct Bytes;

impl Measure for Bytes {
    fn text(&mut self, text: &str) -> u64 {
        text_bytes(text)
    }

    fn json(&mut self, value: &Value) -> u64 {
        json_bytes(value)
    }
}

/// Tokens of the description that a provider adds for a tool it knows by its type (735 at most are
/// documented).
const KNOWN_TOOL_TOKENS: u64 = 1024;
/// Servers join the texts of a message's parts with a new line.
const PART_JOINT: u64 = 1;

/// Fields that never reach a prompt and cannot raise the cost, of any API: each has its own meaning in
/// one of them, and is refused or ignored in the other.
const PLAIN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "metadata",
    "store",
    "parallel_tool_calls",
    "service_tier",
    "modalities",
    "tools",
    "ignore_eos",
    "min_tokens",
];

/// Words for how much is to be thought or said.
const LEVELS: &[&str] = &[
    "auto", "default", "high", "low", "max", "medium", "minimal", "none", "xhigh",
];

/// What a request asks for, as far as its bound depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// All text that can reach the prompt: its bytes, or its tokens where those were measured.
    pub text: u64,
    /// What is no text.
    pub(crate) media: Vec<Medium>,
    /// Things that are framed: messages, tools, calls and what they gave.
    pub framed: u64,
    /// Tools are offered: instructions come with them.
    pub with_tools: bool,
    /// Of the names of functions that were called so far, the longest: templates write it again before
    /// each answer of a tool.
    pub(crate) longest_call: u64,
    /// Tools that are named again where they were looked for and found: each may be written out there.
    pub(crate) named_again: u64,
    /// Of the tools that are offered, the longest as it is printed.
    pub(crate) longest_tool: u64,
    /// Tokens of what the upstream keeps and reads before all of it.
    pub before: u64,
    /// Prompts that are read apart, each within the model's context; 0 counts as one.
    pub prompts: u64,
    /// Generations: each can use the whole output maximum.
    pub choices: u64,
    /// The output maximum of one choice, where the client gave one.
    pub max: Option<u64>,
    /// The maximum may not be lowered: several choices share one, which cannot be lowered fairly; and a
    /// maximum that was lowered could fall to a thinking budget, which then is none.
    pub keeps_max: bool,
    /// The answer is to come piece by piece.
    pub stream: bool,
    /// The client wants the usage chunk of its stream.
    pub include_usage: bool,
    /// Some of the prompt is to stay in the provider's cache for longer than the shortest time.
    pub long_writes: bool,
    /// Whom the client names as its end user.
    pub end_user: Option<EndUserId>,
}

impl Ask {
    pub(crate) fn message(
        &mut self,
        n: usize,
        message: &Value,
        by: &mut dyn Measure,
    ) -> Result<(), FieldError> {
        let param = || format!("messages[{n}]");
        let fields = message.as_object().ok_or_else(|| {
            FieldError::invalid(param(), "must be an object with a role and content")
        })?;
        self.framed += 1;
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("content", content) => {
                    self.content(&format!("messages[{n}].content"), content, by)?;
                }
                ("role", Value::String(role)) if is_known_role(role) => {}
                (_, Value::Null) => {}
                (name, other) => self.text += name.len() as u64 + by.json(other),
            }
        }
        let calls = fields.get("tool_calls").and_then(Value::as_array);
        for call in calls.into_iter().flatten() {
            self.framed += 1;
            let name = call
                .pointer("/function/name")
                .or_else(|| call.pointer("/custom/name"));
            self.longest_call = self.longest_call.max(name.map_or(0, |name| by.json(name)));
        }
        let role = fields.get("role").and_then(Value::as_str);
        if matches!(role, Some("tool" | "function")) {
            self.framed += 1;
            let content = fields.get("content");
            self.text += content.map_or(0, |content| printing_adds(&texts_of(content), by));
            self.text += self.longest_call;
        }
        Ok(())
    }

    pub(crate) fn content(
        &mut self,
        param: &str,
        content: &Value,
        by: &mut dyn Measure,
    ) -> Result<(), FieldError> {
        match content {
            Value::Null => {}
            Value::String(text) => self.text += by.text(text),
            Value::Array(parts) => {
                for (n, part) in parts.iter().enumerate() {
                    self.part(&format!("{param}[{n}]"), part, by)?;
                }
            }
            _ => {
                return Err(FieldError::invalid(
                    param,
                    "must be a string or an array of parts",
                ));
            }
        }
        Ok(())
    }

    fn part(&mut self, param: &str, part: &Value, by: &mut dyn Measure) -> Result<(), FieldError> {
        let (fields, kind) = part
            .as_object()
            .and_then(|fields| Some((fields, fields.get("type")?.as_str()?)))
            .ok_or_else(|| FieldError::invalid(param, "must be an object with a type"))?;
        self.text += PART_JOINT;
        if let Some(medium) = Medium::of(part) {
            self.medium(medium, fields, by);
            return Ok(());
        }
        match kind {
            "text" | "refusal" => self.text_part(kind, fields, by),
            "tool_result" => {
                let id = part.get("tool_use_id").map_or(0, |id| by.json(id));
                self.text += id;
                self.framed += 1;
                if let Some(content) = part.get("content") {
                    self.content(&format!("{param}.content"), content, by)?;
                }
            }
            "tool_use" => {
                self.framed += 1;
                self.text += by.json(part);
            }
            "tool_reference" => {
                self.framed += 1;
                self.named_again += 1;
                self.text += by.json(part);
            }
            _ => self.text += by.json(part),
        }
        Ok(())
    }

    /// What is no text counts by the model's rule; any field beside it as it is printed.
    pub(crate) fn medium(&mut self, medium: Medium, fields: &Fields, by: &mut dyn Measure) {
        self.media.push(medium);
        let own = ["type", "image_url", "detail", "source", "input_audio"];
        for (name, value) in fields
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()))
        {
            self.text += name.len() as u64 + by.json(value);
        }
    }

    /// Tokens of all that is no text.
    pub fn media_tokens(&self, limits: &MediaLimits) -> u64 {
        let each = self.media.iter().map(|medium| limits.tokens(medium));
        each.fold(0, u64::saturating_add)
    }

    /// The text itself goes into the prompt as it is; any other field as it is printed.
    fn text_part(&mut self, kind: &str, fields: &Fields, by: &mut dyn Measure) {
        for (name, value) in fields {
            self.text += match value {
                _ if name == "type" => 0,
                Value::String(text) if name == kind => by.text(text),
                other => name.len() as u64 + by.json(other),
            };
        }
    }

    pub(crate) fn tools(&mut self, body: &Fields, by: &mut dyn Measure) -> Result<(), FieldError> {
        let tools = match body.get("tools") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Array(tools)) => tools,
            Some(_) => return Err(FieldError::invalid("tools", "must be an array")),
        };
        self.with_tools |= !tools.is_empty();
        for tool in tools {
            self.framed += 1;
            let printed = by.json(tool);
            self.text += printed;
            self.longest_tool = self.longest_tool.max(printed);
            let kind = tool.get("type").and_then(Value::as_str);
            if !matches!(kind, None | Some("function" | "custom")) {
                self.text += KNOWN_TOOL_TOKENS;
            }
            // those that stand under one name are framed one by one
            let within = tool.get("tools").and_then(Value::as_array);
            self.framed += within.map_or(0, |tools| tools.len() as u64);
        }
        Ok(())
    }

    /// Whatever else is in the body may reach the prompt (`response_format`, `documents`, template
    /// arguments, fields not known here), so its bytes count.
    pub(crate) fn other_fields(&mut self, body: &Fields, by: &mut dyn Measure) {
        self.fields_besides(body, &["system"], by);
    }

    /// The same besides `counted`, which were counted already or add nothing.
    pub(crate) fn fields_besides(&mut self, body: &Fields, counted: &[&str], by: &mut dyn Measure) {
        let functions = body.get("functions").and_then(Value::as_array);
        self.with_tools |= functions.is_some_and(|functions| !functions.is_empty());
        for (name, value) in body {
            let plain = PLAIN_FIELDS.contains(&name.as_str())
                || counted.contains(&name.as_str())
                || is_level(name, value);
            if !value.is_null() && !plain {
                self.text += name.len() as u64 + by.json(value);
            }
        }
    }
}

/// Whether a field is a level by one of the words that are known: a template prints it within what is
/// allowed for framing. Another word counts as any field does.
fn is_level(name: &str, value: &Value) -> bool {
    matches!(name, "reasoning_effort" | "verbosity")
        && value.as_str().is_some_and(|word| LEVELS.contains(&word))
}

/// A content without what is no text, which no template prints.
fn texts_of(content: &Value) -> Cow<'_, Value> {
    match content {
        Value::Array(parts) if parts.iter().any(|part| Medium::of(part).is_some()) => {
            let texts = parts.iter().filter(|part| Medium::of(part).is_none());
            Cow::Owned(texts.cloned().collect())
        }
        _ => Cow::Borrowed(content),
    }
}

/// What a tool answered is printed as JSON by templates, a text too: what that adds to its text.
fn printing_adds(content: &Value, by: &mut dyn Measure) -> u64 {
    let counted = match content {
        Value::String(text) => by.text(text),
        _ => 0, // of parts both the texts and the printing count: tools rarely answer in parts
    };
    by.json(content).saturating_sub(counted)
}

pub(crate) fn is_known_role(role: &str) -> bool {
    matches!(
        role,
        "system" | "developer" | "user" | "assistant" | "tool" | "function"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::api::Api;

    #[test]
    fn a_level_is_free_and_any_other_word_counts() {
        let bytes = |effort: &str| {
            let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "reasoning_effort": effort});
            Api::Chat.ask(body.as_object().unwrap()).unwrap().text
        };
        assert_eq!(bytes("high"), 2);
        assert!(bytes(&"x".repeat(31)) >= 2 + 31);
    }
}
