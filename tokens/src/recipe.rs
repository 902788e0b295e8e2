//! What it takes to count chats for a model as its neuron does: handed out by the neuron, cached by gateways.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{
    Chat, ChatTemplate, MessagesError, PromptError, SpecialTokens, Tokenizer, TokenizerError,
    chat_prompt,
};

/// A model's tokenizer and chat template, as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// `tokenizer.json`.
    pub tokenizer: String,
    /// The chat template; only plain completions work without.
    pub template: Option<String>,
    /// What the template calls `bos_token`.
    pub bos: String,
    /// What it calls `eos_token`.
    pub eos: String,
}

impl Recipe {
    /// As it is handed out.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts are written to memory")
    }

    /// The name of what is handed out: its SHA-256, in hexadecimal digits.
    pub fn name_of(encoded: &[u8]) -> String {
        hex::encode(Sha256::digest(encoded))
    }
}

/// Why a chat was not counted.
#[derive(Debug, Error)]
pub enum CountError {
    /// The request is at fault, in its messages.
    #[error(transparent)]
    Messages(#[from] MessagesError),
    /// The messages are no prompt of this model.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// For certain more than the model can read: told without tokenizing it.
    #[error("the prompt has at least {0} tokens")]
    TooLong(u64),
}

/// Counts chats by a recipe.
#[derive(Debug)]
pub struct ChatCounter {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl ChatCounter {
    /// Reads what a neuron handed out.
    pub fn read(encoded: &[u8]) -> Result<Self, TokenizerError> {
        let recipe: Recipe = serde_json::from_slice(encoded)
            .map_err(|error| TokenizerError::new(error.to_string()))?;
        let tokens = SpecialTokens {
            bos: recipe.bos,
            eos: recipe.eos,
        };
        let template = recipe
            .template
            .map(|source| ChatTemplate::new(source, tokens));
        Ok(Self {
            tokenizer: Tokenizer::parse(recipe.tokenizer.as_bytes())?,
            template: template
                .transpose()
                .map_err(|error| TokenizerError::new(error.to_string()))?,
        })
    }

    /// The exact tokens of the chat of a body, for a model of this context.
    pub fn count<'a>(
        &self,
        field: impl Fn(&str) -> Option<&'a Value>,
        context: u64,
    ) -> Result<u64, CountError> {
        let chat = Chat::read(field)?;
        self.may_fit(chat.bytes(), context)?;
        let prompt = chat_prompt(self.template.as_ref(), &self.tokenizer, &chat)?;
        Ok(prompt.len() as u64)
    }

    /// The exact tokens of a text that is to be gone on with.
    pub fn count_text(&self, text: &str, context: u64) -> Result<u64, CountError> {
        self.may_fit(text.len(), context)?;
        let prompt = self
            .tokenizer
            .encode_plain(text)
            .map_err(PromptError::from)?;
        Ok(prompt.len() as u64)
    }

    fn may_fit(&self, bytes: usize, context: u64) -> Result<(), CountError> {
        let fewest = self.tokenizer.fewest(bytes) as u64;
        match fewest >= context {
            true => Err(CountError::TooLong(fewest)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::template_source;

    fn tiny() -> Recipe {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
        Recipe {
            tokenizer: std::fs::read_to_string(folder.join("tokenizer.json")).unwrap(),
            template: template_source(&folder).unwrap(),
            bos: "<|bos|>".to_owned(),
            eos: "<|end|>".to_owned(),
        }
    }

    #[test]
    fn a_chat_is_counted_as_its_neuron_reads_it() {
        let counter = ChatCounter::read(&tiny().encode()).unwrap();
        let count =
            |messages: Value| counter.count(|name| (name == "messages").then_some(&messages), 1024);
        // a beginning, two around the message, its text, one before the answer
        let hi = json!([{"role": "user", "content": "hi"}]);
        assert_eq!(count(hi).unwrap(), 6);
        assert_eq!(counter.count_text("hi", 1024).unwrap(), 2);
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]);
        assert_eq!(count(parts).unwrap(), 6);
        let long = json!([{"role": "user", "content": "x".repeat(100_000)}]);
        assert!(matches!(count(long), Err(CountError::TooLong(_))));
        let odd = json!([{"role": "oracle", "content": "hi"}]);
        assert!(matches!(
            count(odd),
            Err(CountError::Prompt(PromptError::Template(_)))
        ));
        let picture = json!([{"role": "user", "content": [{"type": "image_url"}]}]);
        assert!(matches!(
            count(picture),
            Err(CountError::Messages(MessagesError::Unsupported(_)))
        ));
        assert!(matches!(
            counter.count(|_| None, 9),
            Err(CountError::Messages(MessagesError::Invalid(_)))
        ));
    }

    #[test]
    fn tools_count_as_the_template_writes_them() {
        let source = "{{ tools | tojson if tools }}{{ messages[0].content }}";
        let recipe = Recipe {
            template: Some(source.to_owned()),
            ..tiny()
        };
        let counter = ChatCounter::read(&recipe.encode()).unwrap();
        let tool = json!({"type": "function", "function": {"name": "f"}});
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "tools": [tool]});
        let written = r#"[{"type": "function", "function": {"name": "f"}}]hi"#;
        let count = |body: &Value| counter.count(|name| body.get(name), 1024);
        assert_eq!(count(&body).unwrap(), written.len() as u64);
        let without = ChatCounter::read(&tiny().encode()).unwrap();
        assert!(matches!(
            without.count(|name| body.get(name), 1024),
            Err(CountError::Prompt(PromptError::NoTools))
        ));
        body["tool_choice"] = json!("none");
        assert_eq!(count(&body).unwrap(), 2);
    }

    #[test]
    fn without_a_template_no_chat_is_counted() {
        let recipe = Recipe {
            template: None,
            ..tiny()
        };
        let counter = ChatCounter::read(&recipe.encode()).unwrap();
        let hi = json!([{"role": "user", "content": "hi"}]);
        let none = counter.count(|name| (name == "messages").then_some(&hi), 9);
        assert!(matches!(
            none,
            Err(CountError::Prompt(PromptError::NoTemplate))
        ));
    }

    #[test]
    fn what_is_no_recipe_is_refused() {
        assert!(ChatCounter::read(b"{}").is_err());
        let broken = Recipe {
            tokenizer: "{}".to_owned(),
            ..tiny()
        };
        assert!(ChatCounter::read(&broken.encode()).is_err());
        let broken = Recipe {
            template: Some("{% for".to_owned()),
            ..tiny()
        };
        assert!(ChatCounter::read(&broken.encode()).is_err());
        assert_eq!(Recipe::name_of(b"").len(), 64);
    }
}
