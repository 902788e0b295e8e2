//! JSON as it is printed at its widest, as text: for those who can count its tokens.
//!
//! [`crate::printed`] says how many bytes a printing has at most, and that bounds tokens too. Here is the text
//! itself, and what in it no single printing shows: how many entries a template may frame with words of its
//! own, how many line breaks it may turn into lines of their own.

use std::fmt::Write as _;

use serde_json::Value;

use crate::printed::{FLOAT_BYTES, INDENT, JSON_AS_TEXT};

/// Spaces of one level.
const LEVEL: &str = "    ";

const _: () = assert!(LEVEL.len() as u64 == INDENT);

/// Levels of indent that are written out; of deeper ones four make a token at most (see [`crate::printed`]).
const LEVELS_MAX: usize = 16;
const LEVELS_PER_TOKEN: usize = 4;

/// How the texts within JSON are escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// As JSON asks for.
    Needed,
    /// All that any printer is known to escape: what is outside ASCII, and `<`, `>`, `&`, `'`.
    Every,
}

/// A value as it is printed at its widest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Printed {
    /// Indented by four; JSON that is carried as text is left out.
    pub text: String,
    /// Fields of objects and items of arrays.
    pub entries: u64,
    /// Line breaks within texts.
    pub breaks: u64,
    /// Tokens besides, for what is not written out.
    pub more: u64,
    /// Texts that carry JSON, which some templates print as they are and others take apart.
    pub carried: Vec<Carried>,
}

/// JSON that was carried as text, in both ways of printing it: the wider one counts.
#[derive(Debug, PartialEq, Eq)]
pub struct Carried {
    /// As a text within JSON.
    pub as_text: String,
    /// Taken apart and printed again.
    pub apart: String,
    /// Tokens besides, for what is not written out: numbers in full, deep indents.
    pub more: u64,
}

impl Printed {
    /// Prints a value.
    pub fn of(value: &Value, escapes: Escapes) -> Self {
        let mut printed = Self::default();
        printed.value(value, 1, escapes);
        printed
    }

    fn value(&mut self, value: &Value, depth: usize, escapes: Escapes) {
        match value {
            Value::Null => self.text.push_str("null"),
            Value::Bool(value) => self.write(value),
            Value::Number(number) if number.is_f64() => {
                // the shortest form is not the longest
                let value = number.as_f64().unwrap_or_default();
                let _ = write!(self.text, "{value:.17e}");
            }
            Value::Number(number) => self.write(number),
            Value::String(text) => self.string(text, escapes),
            Value::Array(values) => {
                let each = values.iter().map(|value| (None, value));
                self.container(['[', ']'], each, depth, escapes);
            }
            Value::Object(fields) => {
                let each = fields.iter().map(|(name, value)| (Some(name), value));
                self.container(['{', '}'], each, depth, escapes);
            }
        }
    }

    fn container<'a>(
        &mut self,
        [open, close]: [char; 2],
        each: impl ExactSizeIterator<Item = (Option<&'a String>, &'a Value)>,
        depth: usize,
        escapes: Escapes,
    ) {
        self.text.push(open);
        let items = each.len();
        self.entries += items as u64;
        for (n, (name, value)) in each.enumerate() {
            self.more += line(&mut self.text, depth);
            match (name, value) {
                (Some(name), Value::String(text)) if JSON_AS_TEXT.contains(&name.as_str()) => {
                    self.name(name, escapes);
                    self.carried.push(Carried::of(text, depth, escapes));
                }
                (name, value) => {
                    if let Some(name) = name {
                        self.name(name, escapes);
                    }
                    self.value(value, depth + 1, escapes);
                }
            }
            if n + 1 < items {
                self.text.push(',');
            }
        }
        if items > 0 {
            self.more += line(&mut self.text, depth - 1);
        }
        self.text.push(close);
    }

    fn name(&mut self, name: &str, escapes: Escapes) {
        self.string(name, escapes);
        self.text.push_str(": ");
    }

    fn string(&mut self, text: &str, escapes: Escapes) {
        self.breaks += text.bytes().filter(|byte| *byte == b'\n').count() as u64;
        quoted(&mut self.text, text, escapes);
    }

    fn write(&mut self, value: &impl std::fmt::Display) {
        let _ = write!(self.text, "{value}");
    }
}

impl Carried {
    /// Not parsed: other parsers take what ours does not (`NaN`, numbers of any length, any depth).
    fn of(text: &str, depth: usize, escapes: Escapes) -> Self {
        let mut as_text = String::with_capacity(text.len() + 2);
        quoted(&mut as_text, text, escapes);
        let mut carried = Self {
            as_text,
            apart: String::with_capacity(text.len()),
            more: 0,
        };
        carried.take_apart(text, depth, escapes);
        carried
    }

    fn take_apart(&mut self, text: &str, mut depth: usize, escapes: Escapes) {
        let (mut in_text, mut is_escaped) = (false, false);
        for character in text.chars() {
            if in_text {
                in_text = is_escaped || character != '"';
                is_escaped = !is_escaped && character == '\\';
                match character {
                    '"' | '\\' => self.apart.push(character),
                    _ => escaped(&mut self.apart, character, escapes),
                }
                continue;
            }
            if matches!(character, ']' | '}') {
                depth = depth.saturating_sub(1);
                self.more += line(&mut self.apart, depth);
            }
            self.apart.push(character);
            match character {
                '"' => in_text = true,
                '[' | '{' => {
                    depth += 1;
                    self.more += line(&mut self.apart, depth);
                }
                ',' => self.more += line(&mut self.apart, depth),
                ':' => self.apart.push(' '),
                '.' | 'e' | 'E' => self.more += FLOAT_BYTES,
                _ => {}
            }
        }
    }
}

/// A new line and its indent; gives the tokens of what is not written out.
fn line(out: &mut String, depth: usize) -> u64 {
    out.push('\n');
    for _ in 0..depth.min(LEVELS_MAX) {
        out.push_str(LEVEL);
    }
    depth.saturating_sub(LEVELS_MAX).div_ceil(LEVELS_PER_TOKEN) as u64
}

fn quoted(out: &mut String, text: &str, escapes: Escapes) {
    out.push('"');
    for character in text.chars() {
        escaped(out, character, escapes);
    }
    out.push('"');
}

fn escaped(out: &mut String, character: char, escapes: Escapes) {
    let short = match character {
        '"' => "\\\"",
        '\\' => "\\\\",
        '\n' => "\\n",
        '\r' => "\\r",
        '\t' => "\\t",
        '\u{8}' => "\\b",
        '\u{c}' => "\\f",
        _ => "",
    };
    let every = escapes == Escapes::Every;
    let odd = matches!(character, '<' | '>' | '&' | '\'') || !character.is_ascii();
    if !short.is_empty() {
        out.push_str(short);
    } else if character.is_ascii_control() || (every && odd) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            let _ = write!(out, "\\u{unit:04x}");
        }
    } else {
        out.push(character);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(value: &Value, escapes: Escapes) -> String {
        Printed::of(value, escapes).text
    }

    #[test]
    fn a_value_is_printed_as_python_indents_it() {
        let value = json!({"a": [1, null, true], "b": {}, "c": [], "d": "x\n\"y"});
        let needed = text(&value, Escapes::Needed);
        assert_eq!(
            needed,
            "{\n    \"a\": [\n        1,\n        null,\n        true\n    ],\n    \"b\": {},\n    \"c\": [],\n    \"d\": \"x\\n\\\"y\"\n}"
        );
        let read: Value = serde_json::from_str(&needed).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn every_escape_is_written_and_is_read_as_it_was() {
        let value = json!({"é<": "中&'😀>\u{1}"});
        let every = text(&value, Escapes::Every);
        assert!(
            every.is_ascii() && !every.contains(['<', '>', '&', '\'']),
            "{every}"
        );
        let read: Value = serde_json::from_str(&every).unwrap();
        assert_eq!(read, value);
        assert!(text(&value, Escapes::Needed).contains("中&'😀>"));
    }

    #[test]
    fn entries_and_breaks_are_counted() {
        let printed = Printed::of(&json!({"a": [1, 2], "b": "x\ny\n"}), Escapes::Needed);
        assert_eq!((printed.entries, printed.breaks), (4, 2));
    }

    #[test]
    fn json_that_is_carried_as_text_is_shown_in_both_ways() {
        let call = json!({"name": "f", "arguments": "{\"a\":[1,NaN],\"b\":\"x, y\",\"c\":1.5}"});
        let printed = Printed::of(&call, Escapes::Needed);
        assert!(!printed.text.contains("NaN"));
        let [carried] = printed.carried.as_slice() else {
            panic!("{printed:?}")
        };
        assert_eq!(
            carried.as_text,
            r#""{\"a\":[1,NaN],\"b\":\"x, y\",\"c\":1.5}""#
        );
        let lines: Vec<&str> = carried.apart.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "{",
                "\"a\": [",
                "1,",
                "NaN",
                "],",
                "\"b\": \"x, y\",",
                "\"c\": 1.5",
                "}"
            ]
        );
        assert_eq!(carried.more, FLOAT_BYTES);
    }
}
