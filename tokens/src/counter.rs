//! Counts the tokens of texts, by a model's own tokenizer, for a bound: never below.

use std::{
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use crate::{Encoding, Tokenizer, TokenizerError};

/// A tokenizer that is asked for numbers alone. Cheap to clone.
#[derive(Clone)]
pub struct TextCounter(Kind);

#[derive(Clone)]
enum Kind {
    Encoding(Encoding),
    File(Arc<File>),
}

struct File {
    tokenizer: Tokenizer,
    /// The same, but special tokens are text to it: made once a text has one.
    plain: OnceLock<Tokenizer>,
}

impl TextCounter {
    /// One of OpenAI's encodings, read at once.
    pub fn encoding(encoding: Encoding) -> Self {
        encoding.load();
        Self(Kind::Encoding(encoding))
    }

    /// A `tokenizer.json`.
    pub fn file(path: &Path) -> Result<Self, TokenizerError> {
        let tokenizer = Tokenizer::load(path)?;
        let plain = OnceLock::new();
        Ok(Self(Kind::File(Arc::new(File { tokenizer, plain }))))
    }

    /// Which of OpenAI's encodings it is, if any.
    pub fn as_encoding(&self) -> Option<Encoding> {
        match self.0 {
            Kind::Encoding(encoding) => Some(encoding),
            Kind::File(_) => None,
        }
    }

    /// Tokens of a text at most, its special tokens taken for text or for themselves, whichever are more.
    /// Nothing where there are more than `most`, or none can be told.
    pub fn count(&self, text: &str, most: u64) -> Option<u64> {
        match &self.0 {
            // one token as itself is never more than its text
            Kind::Encoding(encoding) => encoding.count(text, most),
            Kind::File(file) => file.count(text).filter(|tokens| *tokens <= most),
        }
    }

    /// Tokens of a prompt as it is read, its special tokens for what they are.
    pub(crate) fn prompt(&self, text: &str) -> Option<u64> {
        match &self.0 {
            Kind::Encoding(encoding) => encoding.count(text, u64::MAX),
            Kind::File(file) => Some(file.tokenizer.encode(text).ok()?.len() as u64),
        }
    }
}

impl File {
    fn count(&self, text: &str) -> Option<u64> {
        let tokens = self.tokenizer.encode(text).ok()?;
        let mut count = tokens.len();
        if tokens.iter().any(|token| self.tokenizer.is_special(*token)) {
            let plain = self.plain.get_or_init(|| self.tokenizer.without_special());
            count = count.max(plain.encode(text).ok()?.len());
        }
        Some(count as u64)
    }
}

impl fmt::Debug for TextCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Encoding(encoding) => write!(f, "TextCounter({encoding:?})"),
            Kind::File(_) => f.write_str("TextCounter(file)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> TextCounter {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        TextCounter::file(&models.join("tiny/tokenizer.json")).unwrap()
    }

    #[test]
    fn special_tokens_count_as_whichever_is_more() {
        assert_eq!(tiny().count("hi", 9), Some(2));
        assert_eq!(tiny().count("hi<|end|>", 99), Some(9));
        assert_eq!(tiny().count("hi", 1), None);
        let encoding = TextCounter::encoding(Encoding::O200k);
        assert!(encoding.count("<|endoftext|>", 99).unwrap() > 1);
        assert_eq!(encoding.as_encoding(), Some(Encoding::O200k));
        assert_eq!(tiny().as_encoding(), None);
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let error = TextCounter::file(Path::new("/none/tokenizer.json")).unwrap_err();
        assert!(
            error.to_string().contains("/none/tokenizer.json"),
            "{error}"
        );
    }
}
