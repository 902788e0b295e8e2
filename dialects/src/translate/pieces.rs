//! Texts that come in pieces, and JSON that is read for them without being believed.
//!
//! An upstream that cuts its text by units of UTF-16 puts the halves of a surrogate pair into two pieces:
//! they are joined again. A half that stays alone becomes U+FFFD, since no text can hold it.

use std::fmt;

use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::value::RawValue;

use crate::{
    odd::{Unread, says_nothing},
    raw::Pairs,
};

/// Stands for what no text can hold.
const REPLACED: &str = "\u{fffd}";

/// A piece of a text: UTF-8 in which halves of surrogate pairs stand as three bytes each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Piece(Vec<u8>);

impl Piece {
    pub(crate) fn of(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }

    /// The text by itself, when no other piece follows.
    pub(crate) fn whole(&self) -> String {
        let mut joint = Joint::default();
        let text = joint.join(self);
        text + joint.rest()
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(PieceVisitor)
    }
}

struct PieceVisitor;

impl Visitor<'_> for PieceVisitor {
    type Value = Piece;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Piece, E> {
        Ok(Piece(bytes.to_vec()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Piece, E> {
        Ok(Piece::of(text))
    }
}

/// What joins the pieces of one text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joint {
    /// The first half of a pair, which the last piece ended in.
    high: Option<[u8; 3]>,
}

impl Joint {
    /// What of the text is known now; the first half of a pair at its end is kept back.
    pub(crate) fn join(&mut self, piece: &Piece) -> String {
        if piece.0.is_empty() {
            return String::new();
        }
        let kept = self.high.take();
        let kept = kept.as_ref().map_or(&[][..], |high| &high[..]);
        let bytes = [kept, &piece.0].concat();
        let mut text = String::with_capacity(bytes.len());
        let (mut from, mut at) = (0, 0);
        while at < bytes.len() {
            let Some(unit) = half(&bytes[at..]) else {
                at += 1;
                continue;
            };
            text.push_str(&String::from_utf8_lossy(&bytes[from..at]));
            let next = half(&bytes[at + 3..]);
            match next.and_then(|next| pair(unit, next)) {
                Some(whole) => {
                    text.push(whole);
                    at += 6;
                }
                None if is_high(unit) && at + 3 == bytes.len() => {
                    self.high = bytes[at..].try_into().ok();
                    at += 3;
                }
                None => {
                    text.push_str(REPLACED);
                    at += 3;
                }
            }
            from = at;
        }
        text.push_str(&String::from_utf8_lossy(&bytes[from..]));
        text
    }

    /// No piece follows: what stands for a half that was kept back.
    pub(crate) fn rest(&mut self) -> &'static str {
        match self.high.take() {
            Some(_) => REPLACED,
            None => "",
        }
    }
}

/// The half of a surrogate pair that some bytes begin with: no text in UTF-8 has such bytes.
fn half(bytes: &[u8]) -> Option<u32> {
    match *bytes {
        [0xED, second @ 0xA0..=0xBF, third @ 0x80..=0xBF, ..] => {
            Some(0xD000 | (u32::from(second & 0x3F) << 6) | u32::from(third & 0x3F))
        }
        _ => None,
    }
}

fn is_high(unit: u32) -> bool {
    (0xD800..0xDC00).contains(&unit)
}

fn pair(high: u32, low: u32) -> Option<char> {
    let is_pair = is_high(high) && (0xDC00..0xE000).contains(&low);
    let whole = || 0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    is_pair.then(whole).and_then(char::from_u32)
}

/// The fields of an object; nothing where the text says nothing.
pub(crate) fn object(text: &str) -> Result<Option<Pairs<'_>>, Unread> {
    match Pairs::read(text) {
        Some(fields) => Ok(Some(fields)),
        None if text.trim().is_empty() || says_nothing(text) => Ok(None),
        None => Err(Unread),
    }
}

/// The fields of an object within another; none where it says nothing.
pub(crate) fn within<'a>(fields: &Pairs<'a>, name: &str) -> Result<Pairs<'a>, Unread> {
    match fields.last(name) {
        None => Ok(Pairs::default()),
        Some(raw) => Ok(object(raw.get())?.unwrap_or_default()),
    }
}

/// A text within an object; nothing where it says nothing.
pub(crate) fn piece(fields: &Pairs<'_>, name: &str) -> Result<Option<Piece>, Unread> {
    fields.last(name).map_or(Ok(None), piece_of)
}

pub(crate) fn piece_of(raw: &RawValue) -> Result<Option<Piece>, Unread> {
    match serde_json::from_str::<Piece>(raw.get()) {
        Ok(piece) => Ok(Some(piece).filter(|piece| !piece.0.is_empty())),
        Err(_) if says_nothing(raw.get()) => Ok(None),
        Err(_) => Err(Unread),
    }
}

/// A word within an object, such as a name; nothing where it is none.
pub(crate) fn word(fields: &Pairs<'_>, name: &str) -> Option<String> {
    let piece = piece(fields, name).ok().flatten();
    piece.map(|piece| piece.whole())
}

/// The objects of a list within an object; none where it says nothing.
pub(crate) fn each<'a>(fields: &Pairs<'a>, name: &str) -> Result<Vec<Pairs<'a>>, Unread> {
    let Some(raw) = fields.last(name) else {
        return Ok(Vec::new());
    };
    match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
        Ok(items) => {
            let items = items.into_iter().map(|item| object(item.get()));
            items.filter_map(Result::transpose).collect()
        }
        Err(_) if says_nothing(raw.get()) => Ok(Vec::new()),
        Err(_) => Err(Unread),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Piece {
        serde_json::from_str(json).unwrap()
    }

    fn joined(pieces: &[&str]) -> String {
        let mut joint = Joint::default();
        let mut text: String = pieces.iter().map(|json| joint.join(&read(json))).collect();
        text.push_str(joint.rest());
        text
    }

    #[test]
    fn halves_of_a_pair_are_joined_and_a_lone_one_is_replaced() {
        assert_eq!(joined(&[r#""a\ud83d""#, r#""\ude00b""#]), "a\u{1f600}b");
        assert_eq!(
            joined(&[r#""\ud83d""#, r#""""#, r#""\uDE00""#]),
            "\u{1f600}"
        );
        assert_eq!(joined(&[r#""\ud83d\ude00""#]), "\u{1f600}");
        assert_eq!(joined(&[r#""\ud83d""#, r#""x""#]), "\u{fffd}x");
        assert_eq!(joined(&[r#""\ude00\ud83d""#]), "\u{fffd}\u{fffd}");
        assert_eq!(
            joined(&[r#""\ud83d\ud83d""#, r#""\ude00""#]),
            "\u{fffd}\u{1f600}"
        );
        assert_eq!(
            joined(&["\"\u{d7ff}\u{e000}\u{e9}\""]),
            "\u{d7ff}\u{e000}\u{e9}"
        );
    }

    #[test]
    fn nothing_is_told_apart_from_what_cannot_be_read() {
        let fields =
            r#"{"a": null, "b": {}, "c": 5, "d": ["x"], "e": [{"f": "g"}, null], "h": {"i": "j"}}"#;
        let fields = object(fields).unwrap().unwrap();
        assert_eq!(piece(&fields, "a"), Ok(None));
        assert_eq!(piece(&fields, "b"), Ok(None));
        assert_eq!(piece(&fields, "c"), Err(Unread));
        assert_eq!(word(&fields, "c"), None);
        assert!(each(&fields, "d").is_err() && within(&fields, "d").is_err());
        assert_eq!(each(&fields, "e").unwrap().len(), 1);
        assert_eq!(word(&within(&fields, "h").unwrap(), "i").unwrap(), "j");
        assert!(object("").unwrap().is_none() && object("[1]").is_err());
    }

    proptest! {
        #[test]
        fn a_text_cut_anywhere_by_units_is_whole_again(text in "\\PC{0,20}", cuts in prop::collection::vec(0_usize..40, 0..6)) {
            let units: Vec<u16> = text.encode_utf16().collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(units.len())).collect();
            cuts.extend([0, units.len()]);
            cuts.sort_unstable();
            let json = |units: &[u16]| {
                let escaped: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
                format!("\"{escaped}\"")
            };
            let pieces: Vec<String> = cuts.windows(2).map(|pair| json(&units[pair[0]..pair[1]])).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(joined(&pieces), text);
        }
    }
}
