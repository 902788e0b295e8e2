//! How many bytes something has at its widest on the way from a body to a tokenizer.
//!
//! A byte-level tokenizer makes no more tokens than bytes, but of the text that it is given, and that is not
//! the text that was sent. Two things make it longer, and both are bounded here:
//!
//! - **Normalisation.** Published tokenizers bring text into NFC or NFKC first; U+0FB9 becomes two characters
//!   of three bytes each, U+FDFA eighteen characters.
//! - **Printing.** Templates print JSON again: with spaces after separators or with an indent of four
//!   (Python's `json.dumps`), with everything outside ASCII escaped (`ensure_ascii`), with `<`, `>`, `&` and `'`
//!   escaped (Go's `encoding/json`, Jinja's own `tojson`), numbers in their longest form.

use icu_normalizer::ComposingNormalizerBorrowed;
use serde_json::Value;

/// Spaces of one level, at the widest indent that published templates use.
pub(crate) const INDENT: u64 = 4;
/// Tokens that a run of spaces makes at most, besides one for each [`RUN_SPACES`]. Every vocabulary that serves
/// chats has tokens of two, four, eight and sixteen spaces.
const RUN_TOKENS: u64 = 4;
const RUN_SPACES: u64 = 16;
/// A number that is no integer is printed in at most this many characters: `-2.2250738585072014e-308`.
pub(crate) const FLOAT_BYTES: u64 = 24;
/// One character escaped as JSON can: `\u003c`, for each unit of UTF-16.
const ESCAPED: u64 = 6;
/// Under these names a body carries JSON as text, which templates take apart and print again.
pub(crate) const JSON_AS_TEXT: [&str; 2] = ["arguments", "input"];

/// Bytes of a text in whichever of its forms is longest: as it is, in NFC, in NFKC.
pub(crate) fn text_bytes(text: &str) -> u64 {
    let as_it_is = text.len() as u64;
    if text.is_ascii() {
        return as_it_is;
    }
    let form = |normalizer: ComposingNormalizerBorrowed<'static>| -> u64 {
        normalizer.normalize_iter(text.chars()).map(utf8).sum()
    };
    as_it_is
        .max(form(ComposingNormalizerBorrowed::new_nfc()))
        .max(form(ComposingNormalizerBorrowed::new_nfkc()))
}

/// Tokens of a value at its widest printing: each byte of it counts as one, but for indents, which are runs
/// of spaces.
pub(crate) fn json_bytes(value: &Value) -> u64 {
    printed(value, 1)
}

/// Bytes of a text as a JSON string at its widest printing, quotes included.
pub(crate) fn string_bytes(text: &str) -> u64 {
    let inside: u64 = match text.is_ascii() {
        true => text.bytes().map(|byte| escaped_ascii(byte.into())).sum(),
        false => text.chars().map(escaped).sum(),
    };
    (inside + 2).max(text_bytes(text) + 2)
}

fn printed(value: &Value, depth: u64) -> u64 {
    match value {
        Value::Null => 4,
        Value::Bool(_) => 5,
        Value::Number(number) if number.is_f64() => FLOAT_BYTES,
        Value::Number(number) => number.to_string().len() as u64,
        Value::String(text) => string_bytes(text),
        Value::Array(values) => {
            let each = values.iter().map(|value| printed(value, depth + 1));
            container(values.len(), depth, each.sum())
        }
        Value::Object(fields) => {
            let each = fields.iter().map(|(name, value)| {
                // `"name": value`
                string_bytes(name) + 2 + field(name, value, depth + 1)
            });
            container(fields.len(), depth, each.sum())
        }
    }
}

fn field(name: &str, value: &Value, depth: u64) -> u64 {
    match value {
        Value::String(text) if JSON_AS_TEXT.contains(&name) => {
            string_bytes(text).max(unpacked_bytes(text, depth))
        }
        _ => printed(value, depth),
    }
}

/// Bytes of JSON that was carried as text and is printed again. It is not parsed: other parsers take
/// what ours does not (`NaN`, numbers of any length, any depth). So each character counts at its widest,
/// each separator with the line that may follow it, and each number that may be no integer in full.
fn unpacked_bytes(text: &str, mut depth: u64) -> u64 {
    let (mut bytes, mut in_text, mut is_escaped) = (0, false, false);
    for character in text.chars() {
        bytes += escaped(character);
        if in_text {
            in_text = is_escaped || character != '"';
            is_escaped = !is_escaped && character == '\\';
            continue;
        }
        match character {
            '"' => in_text = true,
            '[' | '{' => {
                depth += 1;
                bytes += line(depth);
            }
            ']' | '}' => {
                depth = depth.saturating_sub(1);
                bytes += line(depth);
            }
            ',' => bytes += line(depth),
            ':' => bytes += 1,
            '.' | 'e' | 'E' => bytes += FLOAT_BYTES,
            _ => {}
        }
    }
    bytes
}

/// Two brackets, and each of `items` on a line of its own with a comma after it.
fn container(items: usize, depth: u64, inside: u64) -> u64 {
    if items == 0 {
        return 2;
    }
    let lines = items as u64 * (1 + line(depth)) + line(depth - 1);
    2 + lines + inside
}

/// A new line and its indent.
fn line(depth: u64) -> u64 {
    let spaces = INDENT * depth;
    1 + spaces.min(RUN_TOKENS + spaces / RUN_SPACES)
}

fn escaped_ascii(character: char) -> u64 {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '<' | '>' | '&' | '\'' => ESCAPED,
        character if character.is_ascii_control() => ESCAPED,
        _ => 1,
    }
}

fn escaped(character: char) -> u64 {
    if character.is_ascii() {
        return escaped_ascii(character);
    }
    let alone = character.len_utf16() as u64 * ESCAPED;
    let nfkc = ComposingNormalizerBorrowed::new_nfkc();
    alone.max(
        nfkc.normalize_iter(std::iter::once(character))
            .map(utf8)
            .sum(),
    )
}

fn utf8(character: char) -> u64 {
    character.len_utf8() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{json, ser::PrettyFormatter};

    use super::*;

    /// As Python prints it with an indent of four, escaped to ASCII or not, each run of spaces at what it costs.
    fn indented(value: &Value, to_ascii: bool) -> u64 {
        let mut out = Vec::new();
        let formatter = PrettyFormatter::with_indent(b"    ");
        let mut writer = serde_json::Serializer::with_formatter(&mut out, formatter);
        serde::Serialize::serialize(value, &mut writer).unwrap();
        let printed = String::from_utf8(out).unwrap();
        let mut tokens = 0;
        for line in printed.split_inclusive('\n') {
            let text = line.trim_start_matches(' ');
            let spaces = (line.len() - text.len()) as u64;
            tokens += spaces.min(RUN_TOKENS + spaces / RUN_SPACES);
            tokens += match to_ascii {
                true => text
                    .chars()
                    .map(|c| {
                        if c.is_ascii() {
                            1
                        } else {
                            6 * c.len_utf16() as u64
                        }
                    })
                    .sum(),
                false => text.len() as u64,
            };
        }
        tokens
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
            "[<>&'\"\\\\\n]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    #[test]
    fn text_that_grows_when_it_is_normalised_counts_as_grown() {
        assert_eq!(text_bytes("hi"), 2);
        assert_eq!(text_bytes("é"), 2);
        assert_eq!(text_bytes("e\u{301}"), 3, "NFC is shorter here");
        assert_eq!(text_bytes(&"\u{fb9}".repeat(1000)), 6000);
        assert_eq!(text_bytes("\u{fdfa}"), 33);
    }

    #[test]
    fn a_value_counts_as_the_widest_known_printer_prints_it() {
        assert_eq!(json_bytes(&json!([])), 2);
        assert_eq!(json_bytes(&json!(1e300)), FLOAT_BYTES);
        assert_eq!(string_bytes("a<b"), 2 + 1 + 6 + 1);
        assert_eq!(string_bytes("é"), 2 + 6);
        assert_eq!(string_bytes("😀"), 2 + 12);
        let ones = json!({"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {"x": {"enum": vec![1; 1000]}}}}});
        // counted by the tokenizers of Qwen3 and Llama 3.1 as 3,127 and 4,058
        assert!(
            (4058..9000).contains(&json_bytes(&ones)),
            "{}",
            json_bytes(&ones)
        );
    }

    #[test]
    fn json_inside_a_text_counts_as_it_is_and_as_it_is_printed_again() {
        let call = |arguments: &str| json_bytes(&json!({ "arguments": arguments }));
        let flat = r#"{"a":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}"#;
        assert!(call(flat) > string_bytes(flat) + 60);
        let quoted = r#"{"a":"\"\"\"\"\"\"\"\"\"\"\"\""}"#;
        assert!(call(quoted) >= string_bytes(quoted));
        assert!(call("no json {") >= 9);
        let ones = |first: &str| format!("[{first}{}]", ",1".repeat(1000));
        let plain = call(&ones("1"));
        let deep = "[".repeat(130) + &"1,".repeat(1000);
        let long = format!("[{}]", vec!["1".repeat(30); 1000].join(","));
        for (odd, least) in [
            (ones("NaN"), plain),
            (ones("1e400"), plain),
            (deep, plain),
            (long, 32_020),
        ] {
            assert!(call(&odd) >= least, "{} of {odd:.20}", call(&odd));
        }
    }

    proptest! {
        #[test]
        fn no_known_printing_is_wider(value in values()) {
            let bound = json_bytes(&value);
            prop_assert!(serde_json::to_string(&value).unwrap().len() as u64 <= bound);
            prop_assert!(indented(&value, false) <= bound);
            prop_assert!(indented(&value, true) <= bound);
        }

        #[test]
        fn no_form_of_a_text_is_longer(text in "\\PC{0,40}") {
            let nfc = ComposingNormalizerBorrowed::new_nfc().normalize(&text).len() as u64;
            let nfkc = ComposingNormalizerBorrowed::new_nfkc().normalize(&text).len() as u64;
            prop_assert!(text_bytes(&text) >= nfc.max(nfkc).max(text.len() as u64));
            prop_assert!(string_bytes(&text) >= text_bytes(&text) + 2);
        }
    }
}
