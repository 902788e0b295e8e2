//! A model of a foreign upstream, ready to be asked for: its tokenizer read, its limits decided.

use seatbelt_tokens::{Framing, TextCounter, TokenizerError, template_beside};

use crate::config::{Limits, TokenizerName, UpstreamConfig, UpstreamModel};

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) told: UpstreamModel,
    pub(crate) limits: Limits,
    /// Counts its tokens, where its tokenizer is known.
    pub(crate) counter: Option<TextCounter>,
}

impl Model {
    /// Reads the tokenizer that is told, and asks the template beside it for what it writes around texts.
    pub(crate) fn read(told: &UpstreamModel, of: &UpstreamConfig) -> Result<Self, TokenizerError> {
        let (counter, seen) = match &told.tokenizer {
            None => (None, Framing::default()),
            Some(TokenizerName::Encoding(encoding)) => {
                (Some(TextCounter::encoding(*encoding)), Framing::default())
            }
            Some(TokenizerName::File(path)) => {
                let counter = TextCounter::file(path)?;
                let template = template_beside(path)?;
                let seen = template.map(|template| Framing::of(&template, &counter));
                (Some(counter), seen.unwrap_or_default())
            }
        };
        Ok(Self {
            limits: Limits::of(told, of.request_allowance(), seen),
            counter,
            told: told.clone(),
        })
    }
}
