//! What bytes a token stands for: a vocabulary writes them as text, in one of two ways.
//!
//! Byte-level vocabularies have a character for each byte. The others have the text itself, with a mark for a
//! space, and a name for each byte that no other token has.

use std::collections::HashSet;

/// Stands for a space.
const SPACE: char = '\u{2581}';
/// Byte-level vocabularies write a byte that cannot be seen as one of the characters from here on.
const UNSEEN: u32 = 0x100;

/// How a vocabulary writes bytes.
#[derive(Debug)]
pub(crate) struct TokenBytes {
    pub(crate) byte_level: bool,
    /// Tokens that are written as they are.
    pub(crate) added: HashSet<u32>,
}

impl TokenBytes {
    /// The bytes of a token that is written so.
    pub(crate) fn of(&self, token: u32, text: &str) -> Vec<u8> {
        if self.added.contains(&token) {
            return text.as_bytes().to_vec();
        }
        if self.byte_level {
            let bytes: Option<Vec<u8>> = text.chars().map(byte_of).collect();
            return bytes.unwrap_or_else(|| text.as_bytes().to_vec());
        }
        match named_byte(text) {
            Some(byte) => vec![byte],
            None => text.replace(SPACE, " ").into_bytes(),
        }
    }
}

/// `<0x0A>`.
fn named_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// The byte that a character of a byte-level vocabulary stands for.
fn byte_of(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    match code.checked_sub(UNSEEN) {
        None => u8::try_from(code).ok().filter(|byte| is_seen(*byte)),
        Some(nth) => (0..=u8::MAX)
            .filter(|byte| !is_seen(*byte))
            .nth(usize::try_from(nth).ok()?),
    }
}

/// Whether a byte stands for itself.
fn is_seen(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(byte_level: bool, text: &str, expected: &[u8]) {
        let bytes = TokenBytes {
            byte_level,
            added: HashSet::from([7]),
        };
        assert_eq!(bytes.of(1, text), expected);
        assert_eq!(bytes.of(7, text), text.as_bytes(), "as it is");
    }

    #[test]
    fn byte_level_vocabularies_have_a_character_for_each_byte() {
        check(true, "\u{120}hi", b" hi");
        check(true, "\u{10A}", b"\n");
        check(true, "\u{c3}\u{a9}", "é".as_bytes());
        check(true, "\u{143}", &[0xAD]);
        check(true, "漢", "漢".as_bytes());
    }

    #[test]
    fn others_have_the_text_and_names_for_bytes() {
        check(false, "\u{2581}hi", b" hi");
        check(false, "<0x0A>", b"\n");
        check(false, "<0xFFF>", b"<0xFFF>");
        check(false, "é", "é".as_bytes());
    }
}
