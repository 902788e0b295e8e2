//! How likely the tokens of an answer were, in OpenAI's shapes.

use seatbelt_tokens::Tokenizer;
use serde_json::{Map, Value, json};

use super::super::request::Dialect;
use crate::sampler::{Chosen, Likely};

/// Tells it piece by piece.
pub(in super::super) struct Told {
    dialect: Dialect,
    tokenizer: Tokenizer,
    /// Characters of the answer before the next token.
    offset: usize,
}

impl Told {
    pub(in super::super) fn new(dialect: Dialect, tokenizer: Tokenizer) -> Self {
        Self {
            dialect,
            tokenizer,
            offset: 0,
        }
    }

    /// Of a piece with this text and these tokens. Text is given out when its characters are whole, so that of the
    /// tokens of a piece only the first need begin where it begins.
    pub(super) fn json(&mut self, text: &str, tokens: &[Chosen]) -> Value {
        match self.dialect {
            Dialect::Chat => {
                let content: Vec<Value> = (tokens.iter().filter_map(with_likely))
                    .map(|(token, likely)| self.of_chat(token, likely))
                    .collect();
                json!({ "content": content, "refusal": null })
            }
            Dialect::Completion => self.of_completion(text, tokens),
        }
    }

    fn of_chat(&self, token: u32, likely: &Likely) -> Value {
        let mut told = self.one(token, likely.logprob);
        let top = likely.likeliest.iter();
        told["top_logprobs"] = top
            .map(|(token, logprob)| self.one(*token, *logprob))
            .collect();
        told
    }

    fn one(&self, token: u32, logprob: f64) -> Value {
        let bytes = self.tokenizer.bytes_of(token);
        json!({ "token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes })
    }

    fn of_completion(&mut self, text: &str, tokens: &[Chosen]) -> Value {
        let mut told =
            json!({ "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": [] });
        let mut offset = self.offset;
        for (token, likely) in tokens.iter().filter_map(with_likely) {
            let name = self.name(token);
            let length = name.chars().count();
            let top: Map<String, Value> = (likely.likeliest.iter())
                .map(|(token, logprob)| (self.name(*token), json!(logprob)))
                .collect();
            let columns = [
                ("tokens", json!(name)),
                ("token_logprobs", json!(likely.logprob)),
                ("top_logprobs", Value::Object(top)),
                ("text_offset", json!(offset)),
            ];
            for (column, value) in columns {
                if let Some(column) = told[column].as_array_mut() {
                    column.push(value);
                }
            }
            offset += length;
        }
        self.offset += text.chars().count();
        told
    }

    fn name(&self, token: u32) -> String {
        String::from_utf8_lossy(&self.tokenizer.bytes_of(token)).into_owned()
    }
}

fn with_likely(chosen: &Chosen) -> Option<(u32, &Likely)> {
    Some((chosen.token, chosen.likely.as_deref()?))
}
