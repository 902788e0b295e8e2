//! The encodings of OpenAI's models, which the crate carries.
//!
//! Their byte-pair encoding takes time that grows with the square of a piece, and their pattern goes back
//! over long ones. So a text is counted in chunks. A chunk ends where a word ends: both patterns end a piece
//! there whatever comes next, and the sum is exact. Where no word ends, the text is cut anyhow, and each such
//! cut counts as some tokens.

use std::sync::LazyLock;

use tiktoken_rs::CoreBPE;

/// Longest chunk. One of 4 KiB without a break takes half a millisecond, of 200 kB half a minute.
const CHUNK_BYTES_MAX: usize = 4096;
/// What a cut within a piece may hide: merging starts anew behind it, once for each doubling up to the longest
/// token of 128 bytes. Of 6,000,000 texts cut anywhere none had more than three tokens more than its parts.
const CUT_TOKENS: u64 = 8;

/// One of OpenAI's encodings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `cl100k_base`: GPT-3.5 and GPT-4.
    Cl100k,
    /// `o200k_base`: GPT-4o and later.
    O200k,
}

static CL100K: LazyLock<CoreBPE> = LazyLock::new(|| {
    tiktoken_rs::cl100k_base().expect("the vocabulary that comes with the crate is whole")
});
static O200K: LazyLock<CoreBPE> = LazyLock::new(|| {
    tiktoken_rs::o200k_base().expect("the vocabulary that comes with the crate is whole")
});

impl Encoding {
    /// The encoding of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "cl100k_base" => Some(Self::Cl100k),
            "o200k_base" => Some(Self::O200k),
            _ => None,
        }
    }

    /// Reads the vocabulary if that was not done before: it takes a fraction of a second.
    pub fn load(self) {
        let _ = self.bpe();
    }

    /// Tokens of a text at most, special ones taken for text; nothing where there are more than `most`.
    pub(crate) fn count(self, text: &str, most: u64) -> Option<u64> {
        let bpe = self.bpe();
        let mut tokens: u64 = 0;
        let mut left = text;
        while !left.is_empty() {
            let (end, is_exact) = chunk_end(left);
            let (chunk, rest) = left.split_at(end);
            tokens += bpe.count_ordinary(chunk) as u64;
            if !is_exact {
                tokens += CUT_TOKENS;
            }
            if tokens > most {
                return None;
            }
            left = rest;
        }
        Some(tokens)
    }

    fn bpe(self) -> &'static CoreBPE {
        match self {
            Self::Cl100k => &CL100K,
            Self::O200k => &O200K,
        }
    }
}

/// Where the first chunk of a text ends, and whether nothing is cut there.
fn chunk_end(text: &str) -> (usize, bool) {
    if text.len() <= CHUNK_BYTES_MAX {
        return (text.len(), true);
    }
    let most = floor_char_boundary(text, CHUNK_BYTES_MAX);
    let mut next = text[most..].chars().next();
    for (at, character) in text[..most].char_indices().rev() {
        if ends_word(character) && next.is_some_and(begins_anew) {
            return (at + character.len_utf8(), true);
        }
        next = Some(character);
    }
    (most, false)
}

fn floor_char_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// A letter or digit to both patterns, whatever Unicode calls the rest.
fn ends_word(character: char) -> bool {
    matches!(character, 'a'..='z' | 'A'..='Z' | '0'..='9' | '\u{3041}'..='\u{3096}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}')
}

/// Never part of the piece that a letter or digit before it is in. An apostrophe may be.
fn begins_anew(character: char) -> bool {
    (character.is_ascii() && !character.is_ascii_alphanumeric() && character != '\'')
        || matches!(character, '\u{3001}' | '\u{3002}' | '\u{ff0c}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: [Encoding; 2] = [Encoding::Cl100k, Encoding::O200k];

    fn whole(encoding: Encoding, text: &str) -> u64 {
        encoding.bpe().count_ordinary(text) as u64
    }

    fn count(encoding: Encoding, text: &str) -> u64 {
        encoding.count(text, u64::MAX).unwrap()
    }

    #[test]
    fn known_texts_have_their_known_counts() {
        // as OpenAI's own tiktoken counts them
        assert_eq!(count(Encoding::O200k, "hello world"), 2);
        assert_eq!(count(Encoding::Cl100k, "hello world"), 2);
        assert_eq!(count(Encoding::O200k, "antidisestablishmentarianism"), 6);
        assert_eq!(count(Encoding::Cl100k, "antidisestablishmentarianism"), 6);
        assert_eq!(Encoding::named("o200k_base"), Some(Encoding::O200k));
        assert_eq!(Encoding::named("gpt2"), None);
    }

    #[test]
    fn a_special_token_counts_as_its_text() {
        for encoding in BOTH {
            assert!(count(encoding, "<|endoftext|>") > 1);
        }
    }

    #[test]
    fn a_long_text_of_words_is_counted_exactly() {
        let english =
            "It was the best of times, it was 1859; don't ask (it's \"odd\").\n\n\tfn main() {}\n";
        for text in [
            english.repeat(200),
            "天地玄黄,宇宙洪荒。日月盈昃、辰宿列张。".repeat(300),
        ] {
            for encoding in BOTH {
                assert_eq!(count(encoding, &text), whole(encoding, &text));
            }
        }
    }

    #[test]
    fn a_long_text_without_words_is_never_counted_below() {
        for piece in [
            "a", "-", " ", "\n", " \n", "=-", "aA", "é", "\u{301}", "😀", "\u{fb9}", "'s", "\u{85}",
        ] {
            let text = piece.repeat(3 * CHUNK_BYTES_MAX / piece.len() + 7);
            for encoding in BOTH {
                let (counted, whole) = (count(encoding, &text), whole(encoding, &text));
                assert!(counted >= whole, "{piece:?} {encoding:?} {counted} {whole}");
                assert!(
                    counted <= whole + 5 * (CUT_TOKENS + 1),
                    "{piece:?} {counted} {whole}"
                );
            }
        }
    }

    #[test]
    fn counting_ends_where_the_count_is_over() {
        let text = "word ".repeat(10_000);
        assert_eq!(Encoding::O200k.count(&text, 9_999), None);
        assert_eq!(Encoding::O200k.count(&text, 10_001), Some(10_001));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_text_is_counted_below(
            pieces in proptest::collection::vec(
                prop_oneof!["[a-z]{1,9}", "[ \t\r\n]{1,9}", "\\PC{1,6}", "[-=*/_#<>|.,\"'{}]{1,30}", "[A-Za-z0-9+/]{80}"],
                1..400,
            ),
        ) {
            let text = pieces.concat();
            for encoding in BOTH {
                prop_assert!(count(encoding, &text) >= whole(encoding, &text));
            }
        }
    }
}
