//! Text to tokens, and tokens back to text while they come.
//!
//! A piece of text is given out only when its characters are complete: the bytes of one character
//! may be spread over several tokens.

use std::{collections::HashSet, path::Path, sync::Arc};

use thiserror::Error;

use crate::token_bytes::TokenBytes;

/// Tokens that may be held back for a character to complete. Four bytes make the longest
/// character; more tokens than this without one are no text, and are given out as they are.
const HELD_TOKENS_MAX: usize = 8;

/// A tokenizer that cannot be read, or text that it cannot take.
#[derive(Debug, Error)]
#[error("tokenizer: {0}")]
pub struct TokenizerError(String);

impl TokenizerError {
    pub(crate) fn new(detail: String) -> Self {
        Self(detail)
    }
}

/// A model's tokenizer. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    longest: usize,
    special: Arc<HashSet<u32>>,
    bytes: Arc<TokenBytes>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        let named =
            |error: String| TokenizerError(format!("cannot read {}: {error}", path.display()));
        let text = std::fs::read(path).map_err(|error| named(error.to_string()))?;
        Self::parse(&text).map_err(|TokenizerError(detail)| named(detail))
    }

    /// Takes the text of a `tokenizer.json`.
    pub fn parse(text: &[u8]) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(text)
            .map_err(|error| TokenizerError(error.to_string()))?;
        // What a file was trained with would cut a prompt, or bill what nobody wrote.
        let untruncated = inner.with_truncation(None);
        untruncated.map_err(|error| TokenizerError(error.to_string()))?;
        inner.with_padding(None);
        let longest = inner
            .get_vocab(true)
            .keys()
            .map(String::len)
            .max()
            .unwrap_or(1)
            .max(1);
        let added = inner.get_added_tokens_decoder();
        let bytes = TokenBytes {
            byte_level: serde_json::to_string(&inner.get_decoder())
                .is_ok_and(|decoder| decoder.contains(r#""ByteLevel""#)),
            added: added.keys().copied().collect(),
        };
        let special = added.into_iter().filter(|(_, token)| token.special);
        Ok(Self {
            longest,
            bytes: Arc::new(bytes),
            special: Arc::new(special.map(|(id, _)| id).collect()),
            inner: Arc::new(inner),
        })
    }

    /// Whether a token has a meaning of its own, such as `<|end|>`.
    pub fn is_special(&self, token: u32) -> bool {
        self.special.contains(&token)
    }

    /// The same, but special tokens are text to it like any other. Takes memory of its own.
    pub fn without_special(&self) -> Self {
        let mut inner = self.inner.as_ref().clone();
        inner.set_encode_special_tokens(true);
        Self {
            inner: Arc::new(inner),
            ..self.clone()
        }
    }

    /// The least number of tokens that a text of so many bytes can have: tells an endless text from a
    /// fitting one without tokenizing it.
    pub fn fewest(&self, bytes: usize) -> usize {
        bytes / self.longest
    }

    /// Tokens of a text that already holds all the special tokens it needs.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokens(text, false)
    }

    /// Tokens of a plain text, and around it those that the tokenizer adds by itself.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokens(text, true)
    }

    fn tokens(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special)
            .map_err(|error| TokenizerError(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of a special token, such as `<|end|>`.
    pub fn text_of(&self, token: u32) -> Option<String> {
        self.inner.id_to_token(token)
    }

    /// The bytes that a token stands for within a text; none for a number that is no token.
    pub fn bytes_of(&self, token: u32) -> Vec<u8> {
        let text = self.inner.id_to_token(token);
        text.map_or_else(Vec::new, |text| self.bytes.of(token, &text))
    }

    fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, true).unwrap_or_default()
    }
}

/// Turns the tokens of one answer into text, piece by piece.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    // Tokens since some border at which text was complete; a few before it give the decoder context.
    tokens: Vec<u32>,
    given: usize,
}

impl TextStream {
    /// An empty text.
    pub fn new(tokenizer: Tokenizer) -> Self {
        Self {
            tokenizer,
            tokens: Vec::new(),
            given: 0,
        }
    }

    /// A text that goes on after these tokens. Some tokenizers write a space before each word but the first
    /// of a text, which is not the first here.
    pub fn after(tokenizer: Tokenizer, before: &[u32]) -> Self {
        let tail = &before[before.len().saturating_sub(HELD_TOKENS_MAX)..];
        let incomplete = tokenizer
            .decode(tail)
            .ends_with(char::REPLACEMENT_CHARACTER);
        let tokens = if incomplete {
            Vec::new()
        } else {
            tail.to_vec()
        };
        Self {
            tokenizer,
            given: tokens.len(),
            tokens,
        }
    }

    /// Takes the next token and gives the text that it completes, often none.
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let (before, text) = self.texts();
        let incomplete = text.ends_with(char::REPLACEMENT_CHARACTER);
        if text.len() <= before.len()
            || (incomplete && self.tokens.len() - self.given < HELD_TOKENS_MAX)
        {
            return String::new();
        }
        let piece = piece(&before, &text);
        self.tokens.drain(..self.given);
        self.given = self.tokens.len();
        piece
    }

    /// What is left when no more tokens come; incomplete bytes become the replacement character.
    pub fn finish(&mut self) -> String {
        let (before, text) = self.texts();
        self.tokens.clear();
        self.given = 0;
        piece(&before, &text)
    }

    fn texts(&self) -> (String, String) {
        (
            self.tokenizer.decode(&self.tokens[..self.given]),
            self.tokenizer.decode(&self.tokens),
        )
    }
}

fn piece(before: &str, text: &str) -> String {
    text.get(before.len()..).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// The committed tiny model.
    fn tiny_folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
    }

    #[test]
    fn tokens_of_a_text_have_its_bytes() {
        let text = "Zürich: 5 漢字\n";
        let tokens = tokenizer().encode(text).unwrap();
        let bytes: Vec<u8> = (tokens.iter())
            .flat_map(|token| tokenizer().bytes_of(*token))
            .collect();
        assert_eq!(bytes, text.as_bytes());
        assert_eq!(tokenizer().bytes_of(257), b"<|end|>");
        assert_eq!(tokenizer().bytes_of(9_999_999), b"");
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&tiny_folder().join("tokenizer.json")).unwrap()
    }

    fn stream(tokens: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(tokenizer());
        let mut pieces: Vec<String> = tokens.iter().map(|token| stream.push(*token)).collect();
        pieces.push(stream.finish());
        pieces
    }

    #[test]
    fn every_byte_is_a_token_and_special_tokens_are_one_each() {
        let tokens = tokenizer().encode("<|user|>é!<|end|>").unwrap();
        assert_eq!(tokens, [260, 0xC3, 0xA9, u32::from(b'!'), 257]);
        assert_eq!(tokenizer().text_of(257).as_deref(), Some("<|end|>"));
    }

    #[test]
    fn a_text_never_has_fewer_tokens_than_its_bytes_allow() {
        for text in [
            "",
            "abc",
            "<|assistant|><|assistant|><|assistant|>",
            "<|user|>é",
        ] {
            let tokens = tokenizer().encode(text).unwrap().len();
            assert!(tokenizer().fewest(text.len()) <= tokens, "{text:?}");
        }
        assert!(tokenizer().fewest(1 << 20) > 1024);
    }

    #[test]
    fn a_character_is_held_back_until_its_last_byte() {
        assert_eq!(
            stream(&[0xE2, 0x82, 0xAC, u32::from(b'x')]),
            ["", "", "€", "x", ""]
        );
    }

    #[test]
    fn pieces_together_are_the_whole_text() {
        let text = "naïve 🦀 crabs, 東京\n";
        let tokens = tokenizer().encode(text).unwrap();
        assert_eq!(stream(&tokens).concat(), text);
    }

    #[test]
    fn a_character_cut_off_at_the_end_is_replaced_not_lost() {
        assert_eq!(stream(&[u32::from(b'a'), 0xE2, 0x82]).concat(), "a\u{FFFD}");
    }

    #[test]
    fn bytes_that_never_form_a_character_are_not_held_for_ever() {
        let pieces = stream(&[0xFF; 40]);
        assert!(
            pieces[..20].iter().any(|piece| !piece.is_empty()),
            "{pieces:?}"
        );
    }

    #[test]
    fn special_tokens_give_no_text() {
        assert_eq!(stream(&[257, 256]).concat(), "");
    }

    /// Writes a space before each word, as SentencePiece does, but the first of a text.
    fn of_words() -> Tokenizer {
        let file = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true },
            "model": { "type": "WordLevel", "unk_token": "?", "vocab": { "?": 0, "\u{2581}the": 1, "\u{2581}cat": 2, "s": 3 } },
        });
        Tokenizer::parse(file.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_text_that_goes_on_keeps_the_space_before_its_first_word() {
        let said = |mut stream: TextStream| [2, 3].map(|token| stream.push(token)).concat();
        assert_eq!(said(TextStream::after(of_words(), &[1])), " cats");
        assert_eq!(said(TextStream::after(of_words(), &[1; 40])), " cats");
        assert_eq!(said(TextStream::new(of_words())), "cats");
        let mut bytes = TextStream::after(tokenizer(), &[u32::from(b'a'), 0xC3]);
        assert_eq!(
            bytes.push(u32::from(b'x')),
            "x",
            "what is cut off is not gone on with"
        );
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_not_obeyed() {
        let text = std::fs::read_to_string(tiny_folder().join("tokenizer.json")).unwrap();
        let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
        file["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0,
        });
        file["padding"] = serde_json::json!({
            "strategy": { "Fixed": 64 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 258, "pad_type_id": 0, "pad_token": "<|pad|>",
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let tokenizer = Tokenizer::load(&path).unwrap();
        for length in [2, 20, 201] {
            let tokens = tokenizer.encode(&"a".repeat(length)).unwrap();
            assert_eq!(tokens, vec![u32::from(b'a'); length]);
        }
    }
}
