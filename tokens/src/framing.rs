//! What a chat template writes around texts, found by asking it.
//!
//! Chats of known texts are rendered once, and what they have beyond their texts is measured: so a bound by
//! texts has room for it, whatever a client sends, without rendering what he sends.

use serde_json::{Value, json};

use crate::{ChatMessage, ChatTemplate, TextCounter};

/// A text of one token in every vocabulary.
const TEXT: &str = "x";
/// Added to what was measured: texts that join with what is around them.
const JOINTS: u64 = 2;

/// Tokens that a template writes around texts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Framing {
    pub message: u64,
    /// Of a request with one message, a system prompt of the template's own among them.
    pub request: u64,
    /// Of the instructions that come with tools.
    pub tools: u64,
}

impl Framing {
    /// Measures a template. A chat that it refuses or cannot render tells nothing.
    pub fn of(template: &ChatTemplate, counter: &TextCounter) -> Self {
        let tokens = |roles: &[&str], tools: Option<&Value>| {
            let messages: Vec<ChatMessage> = roles.iter().map(|role| says(role)).collect();
            let prompt = template.render_with(&messages, tools).ok()?;
            counter.prompt(&prompt)
        };
        let Some(one) = tokens(&["user"], None) else {
            return Self::default();
        };
        let longer = [
            (["user", "assistant", "user"].as_slice(), 2),
            (&["user", "assistant", "user", "assistant", "user"], 4),
            (&["system", "user"], 1),
        ];
        let each = longer.into_iter().filter_map(|(roles, more)| {
            let added = tokens(roles, None)?.saturating_sub(one);
            Some(added.div_ceil(more))
        });
        let tools = tokens(&["user"], Some(&json!([tool()])));
        let printed = counter.prompt(&tool().to_string()).unwrap_or(0);
        let own = |tokens: u64| tokens.saturating_sub(one + printed) + JOINTS;
        Self {
            message: each.max().unwrap_or(0).saturating_sub(1) + JOINTS,
            request: one.saturating_sub(1) + JOINTS,
            tools: tools.map_or(0, own),
        }
    }
}

fn says(role: &str) -> ChatMessage {
    ChatMessage::says(role, TEXT)
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "f", "description": "f", "parameters": {
        "type": "object", "properties": {"x": {"type": "string"}}}}})
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Encoding, SpecialTokens, template_beside};

    fn framing(source: &str) -> Framing {
        let template = ChatTemplate::new(source.to_owned(), SpecialTokens::default()).unwrap();
        Framing::of(&template, &TextCounter::encoding(Encoding::O200k))
    }

    #[test]
    fn a_system_prompt_of_the_template_s_own_is_seen() {
        let source = "{% if messages[0].role != 'system' %}You are a helpful assistant, made to help.{% endif %}\
            {% if tools %}# Tools\nYou may call one of these functions:\n{{ tools | tojson }}{% endif %}\
            {% for m in messages %}\n\n{{ m.role }}: {{ m.content }}{% endfor %}\n\nassistant:";
        let framing = framing(source);
        assert!((12..20).contains(&framing.request), "{framing:?}");
        assert!((3..8).contains(&framing.message), "{framing:?}");
        assert!((10..40).contains(&framing.tools), "{framing:?}");
    }

    #[test]
    fn a_template_that_tells_nothing_frames_nothing() {
        assert_eq!(framing("{{ raise_exception('no') }}"), Framing::default());
    }

    #[test]
    fn the_tiny_model_frames_a_message_with_two_tokens() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny/tokenizer.json");
        let counter = TextCounter::file(&tiny).unwrap();
        let template = template_beside(&tiny).unwrap().unwrap();
        let framing = Framing::of(&template, &counter);
        assert_eq!(framing.message, 2 + JOINTS);
        assert_eq!(
            framing.request,
            4 + JOINTS,
            "a beginning, two around the message, one before the answer"
        );
    }
}
