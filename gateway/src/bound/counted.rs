//! The input of a request by its model's own tokenizer, where only the upstream knows how it will print it.
//!
//! Each text is counted by itself, JSON at its widest printing; what a template writes around them is the
//! allowances' matter, as with bytes. What cannot be counted, or takes too long to, is bounded by its bytes.

use seatbelt_dialects::{Api, Ask, Escapes, Fields, Measure, Printed};
use seatbelt_tokens::TextCounter;
use serde_json::Value;

use super::{Bound, beside, by_bytes, framing, output};
use crate::{
    config::{COUNTED_BYTES_MAX, COUNTED_BYTES_PER_TOKEN, Limits},
    error::ApiError,
};

/// A template may write a text's lines each with a mark before it (`// ` in tools as OpenAI prints them).
const BREAK_TOKENS: u64 = 3;
/// What printing as a type and not as JSON may add for each field or item, at OpenAI.
const ENTRY_TOKENS: u64 = 1;
/// The same for open models, some of whose templates print tools as XML: an element with two tags, and elements
/// within it for its name and type.
const ENTRY_TOKENS_XML: u64 = 4;
/// A text within JSON may be counted as itself and as printed, and a tool's answer is; this many times
/// the bound in all, and it is no bound any more.
const TIMES_MAX: u64 = 4;

/// The bound for an upstream whose tokenizer is known: never above that by bytes.
pub(crate) fn by_tokens(
    api: Api,
    ask: &Ask,
    body: &Fields,
    limits: &Limits,
    counter: &TextCounter,
) -> Result<Bound, ApiError> {
    let loose = by_bytes(ask, limits)?;
    let context = limits.context.saturating_mul(ask.prompts.max(1));
    let longest = context.saturating_mul(COUNTED_BYTES_PER_TOKEN);
    if ask.text > longest.min(COUNTED_BYTES_MAX) {
        return Ok(loose);
    }
    let mut tokens = Tokens::new(counter, loose.input_tokens);
    let counted = api.ask_by(body, &mut tokens)?;
    if tokens.gave_up {
        return Ok(loose);
    }
    let around = framing(&counted, limits).saturating_add(beside(ask, limits));
    let tight = counted.text.saturating_add(around);
    let input_tokens = tight.min(loose.input_tokens);
    let left = context.saturating_sub(input_tokens);
    Ok(Bound {
        input_tokens,
        output_tokens: output(ask, limits, left),
    })
}

/// Measures in tokens, up to a bound.
struct Tokens<'a> {
    counter: &'a TextCounter,
    escapes: Escapes,
    entry: u64,
    most: u64,
    /// What may still be counted in all.
    left: u64,
    gave_up: bool,
}

impl<'a> Tokens<'a> {
    fn new(counter: &'a TextCounter, most: u64) -> Self {
        // OpenAI's own servers escape no more than they must
        let (escapes, entry) = match counter.as_encoding() {
            Some(_) => (Escapes::Needed, ENTRY_TOKENS),
            None => (Escapes::Every, ENTRY_TOKENS_XML),
        };
        Self {
            counter,
            escapes,
            entry,
            most,
            left: most.saturating_mul(TIMES_MAX),
            gave_up: false,
        }
    }

    fn count(&mut self, text: &str) -> u64 {
        if self.gave_up {
            return 0;
        }
        let most = self.left.min(self.most);
        let counted = self.counter.count(text, most);
        self.gave_up = counted.is_none();
        let tokens = counted.unwrap_or(0);
        self.left -= tokens;
        tokens
    }
}

impl Measure for Tokens<'_> {
    fn text(&mut self, text: &str) -> u64 {
        self.count(text)
    }

    fn json(&mut self, value: &Value) -> u64 {
        if self.gave_up {
            return 0;
        }
        let printed = Printed::of(value, self.escapes);
        let mut tokens = self.count(&printed.text) + printed.more;
        tokens += printed.entries * self.entry + printed.breaks * BREAK_TOKENS;
        for carried in &printed.carried {
            let as_text = self.count(&carried.as_text);
            let apart = self.count(&carried.apart) + carried.more;
            tokens += as_text.max(apart);
        }
        tokens
    }
}

#[cfg(test)]
mod tests;
