//! What an answer has to look like: a JSON schema or a grammar, as the tokens that may come next.
//!
//! A shape is read once for its request, beside the engine; what may come next is found on a thread of its own while
//! the step before is run ([`guide`]). Reading and each step have bounds in size and work. The only module that knows
//! `llguidance`.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{
        ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie, TokenizerEnv,
    },
};
use seatbelt_tokens::Tokenizer;
use serde_json::Value;
use thiserror::Error;

pub(crate) use self::guide::{Allowed, Guide, Guides};

mod guide;
mod sound;

/// Work of reading a shape, and of each step: fifty, and about twenty milliseconds.
const READING_FUEL: u64 = 2_500_000;
const STEP_FUEL: u64 = 200_000;
const STEP_ITEMS_MAX: usize = 50_000;
/// Memory of a shape, some kilobytes each.
const STATES_MAX: usize = 50_000;
/// Symbols of a grammar.
const GRAMMAR_SIZE_MAX: usize = 200_000;
/// Spaces between two parts of JSON: a small model that may write as many as it likes writes nothing else.
const SPACES: &str = r"[\x20\x0A\x0D\x09]{1,40}";
/// Before the text of a token that is no text: the mark of the library for those.
const SPECIAL: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// Most characters of the library's words that are shown.
const WORDS_MAX: usize = 300;

/// What an answer has to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// JSON after a schema.
    Json(Value),
    /// JSON after one of these schemas, between two texts.
    Wrapped {
        before: &'static str,
        schemas: Vec<Value>,
        after: &'static str,
    },
}

/// Why there is no such answer.
#[derive(Debug, Error)]
pub(crate) enum ShapeError {
    /// Nothing has this shape, or it cannot be followed here.
    #[error("{0}")]
    Impossible(String),
    /// The model's vocabulary cannot be read in this way.
    #[error("the model's vocabulary cannot be used for shapes: {0}")]
    Vocabulary(String),
}

/// Reads shapes for the vocabulary of one model.
pub(crate) struct Shapes {
    tokenizer: Tokenizer,
    vocab: u32,
    eos: Vec<u32>,
    /// Made for the first request that has a shape: it takes some tens of megabytes.
    factory: OnceLock<Result<ParserFactory, String>>,
    making: Mutex<()>,
}

impl Shapes {
    pub(crate) fn new(tokenizer: Tokenizer, vocab: u32, eos: Vec<u32>) -> Self {
        Self {
            tokenizer,
            vocab,
            eos,
            factory: OnceLock::new(),
            making: Mutex::new(()),
        }
    }

    /// Guides for so many answers, of one reading. Takes its time.
    ///
    /// On a thread of its own, since the library calls itself for each level of a schema and the stacks of others are
    /// made for other work.
    pub(crate) fn guides(&self, shape: &Shape, count: usize) -> Result<Vec<Guide>, ShapeError> {
        let all = || {
            let (matcher, first) = self.read(shape)?;
            let guide = |_| Guide::new(matcher.clone(), first.clone());
            Ok((0..count).map(guide).collect())
        };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new()
                .name("shape".to_owned())
                .stack_size(sound::STACK_BYTES);
            let reading = builder.spawn_scoped(scope, all);
            let broke = |words: &str| ShapeError::Vocabulary(words.to_owned());
            let reading = reading.map_err(|error| broke(&error.to_string()))?;
            let read = reading.join();
            read.unwrap_or_else(|_| Err(broke("reading the shape broke off")))
        })
    }

    /// At its beginning, with the tokens that may be the first.
    fn read(&self, shape: &Shape) -> Result<(Matcher, SimpleVob), ShapeError> {
        let factory = self.factory()?;
        let grammar = grammar(shape)?;
        let mut matcher = Matcher::new(factory.create_parser(grammar));
        let impossible = |words: String| ShapeError::Impossible(shortened(&words));
        if let Some(words) = matcher.get_error() {
            return Err(impossible(words));
        }
        // What cannot even begin is found here and not in the middle of an answer.
        let first = matcher
            .compute_mask_or_eos()
            .map_err(|error| impossible(error.to_string()))?;
        if first.is_zero() {
            return Err(impossible("no token of this model may begin it".to_owned()));
        }
        Ok((matcher, first))
    }

    fn factory(&self) -> Result<&ParserFactory, ShapeError> {
        let made = match self.factory.get() {
            Some(made) => made,
            None => {
                let _one = self.making.lock().unwrap_or_else(PoisonError::into_inner);
                self.factory.get_or_init(|| self.make())
            }
        };
        made.as_ref()
            .map_err(|words| ShapeError::Vocabulary(words.clone()))
    }

    fn make(&self) -> Result<ParserFactory, String> {
        let eos = self.eos.first().ok_or("no token ends a text")?;
        if self.eos.iter().any(|token| *token >= self.vocab) {
            return Err("a token that ends a text is not in it".to_owned());
        }
        let words: Vec<Vec<u8>> = (0..self.vocab).map(|token| self.bytes(token)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(self.vocab, *eos), &words);
        let trie = trie.with_eos_tokens(&self.eos);
        let env: Arc<dyn TokenizerEnv + Sync> = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| error.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.initial_lexer_fuel = READING_FUEL;
        limits.step_lexer_fuel = STEP_FUEL;
        limits.step_max_items = STEP_ITEMS_MAX;
        limits.max_items_in_row = STEP_ITEMS_MAX;
        limits.max_lexer_states = STATES_MAX;
        limits.max_grammar_size = GRAMMAR_SIZE_MAX;
        limits.verbose_errors = false;
        Ok(factory)
    }

    fn bytes(&self, token: u32) -> Vec<u8> {
        let mut bytes = self.tokenizer.bytes_of(token);
        if self.tokenizer.is_special(token) || self.eos.contains(&token) {
            bytes.insert(0, SPECIAL);
        }
        bytes
    }
}

impl std::fmt::Debug for Shapes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shapes(..)")
    }
}

fn grammar(shape: &Shape) -> Result<TopLevelGrammar, ShapeError> {
    match shape {
        Shape::Json(schema) => Ok(TopLevelGrammar::from_json_schema(sound(schema)?)),
        Shape::Wrapped {
            before,
            schemas,
            after,
        } => {
            let mut lark = String::new();
            let mut choices = Vec::with_capacity(schemas.len());
            for (n, schema) in schemas.iter().enumerate() {
                lark.push_str(&format!("call{n}: %json {}\n", sound(schema)?));
                choices.push(format!("call{n}"));
            }
            let quoted = |text: &str| match text {
                "" => String::new(),
                text => Value::from(text).to_string(),
            };
            let (before, after) = (quoted(before), quoted(after));
            let start = format!("start: {before} ({}) {after}\n", choices.join(" | "));
            Ok(TopLevelGrammar::from_lark(format!("{start}{lark}")))
        }
    }
}

/// A schema within the bounds, with how spaces may be written.
fn sound(schema: &Value) -> Result<Value, ShapeError> {
    let no = |words: &str| Err(ShapeError::Impossible(words.to_owned()));
    let Value::Object(_) = schema else {
        return no("the schema is not an object");
    };
    if let Some(words) = sound::beyond(schema) {
        return Err(ShapeError::Impossible(words));
    }
    let mut schema = schema.clone();
    let options = JsonCompileOptions {
        whitespace_pattern: Some(SPACES.to_owned()),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut schema);
    Ok(schema)
}

fn shortened(words: &str) -> String {
    // The library catches its own panics, whose words help nobody.
    if words.contains("panic") {
        return "its numbers or its depth are more than can be followed".to_owned();
    }
    // Of what was made of a schema here nobody but us knows anything.
    let words = words.rsplit("failed to compile JSON schema: ").next();
    let words = words
        .and_then(|words| words.lines().next())
        .unwrap_or_default();
    let words = words.replace("<non-verbose/>", "");
    words.trim().chars().take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests;
