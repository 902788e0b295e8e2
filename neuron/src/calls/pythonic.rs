//! Calls written as a list of calls in Python, `[f(a=1, b="x"), g()]`: names and literals, nothing else.

use serde_json::{Map, Number, Value};

use super::Call;

/// Deepest nesting of lists and dictionaries.
const DEPTH_MAX: usize = 64;

/// The calls of a list of calls that each name a tool; none if it is anything else.
pub(super) fn python_calls(text: &str, tools: &[String]) -> Option<Vec<Call>> {
    let mut reader = Reader { rest: text };
    reader.expect('[')?;
    let calls = reader.many(']', |reader| {
        let name = reader.name()?;
        reader.expect('(')?;
        let arguments = reader.many(')', |reader| {
            let name = reader.name()?;
            reader.expect('=')?;
            Some((name, reader.literal(0)?))
        })?;
        tools.contains(&name).then(|| Call {
            name,
            arguments: Value::Object(arguments.into_iter().collect()),
        })
    })?;
    (reader.rest.trim().is_empty() && !calls.is_empty()).then_some(calls)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    /// Takes this letter, if it is the next.
    fn take(&mut self, letter: char) -> bool {
        let there = self.peek() == Some(letter);
        if there {
            self.rest = &self.rest[letter.len_utf8()..];
        }
        there
    }

    fn expect(&mut self, letter: char) -> Option<()> {
        self.take(letter).then_some(())
    }

    /// Things with commas between them, up to `end`.
    fn many<T>(&mut self, end: char, one: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut all = Vec::new();
        while !self.take(end) {
            all.push(one(self)?);
            if !self.take(',') {
                self.expect(end)?;
                break;
            }
        }
        Some(all)
    }

    /// A name, with dots within.
    fn name(&mut self) -> Option<String> {
        let name =
            self.word(|letter| letter.is_alphanumeric() || matches!(letter, '_' | '.' | '-'));
        let begins = name.chars().next()?;
        (begins.is_alphabetic() || begins == '_').then(|| name.to_owned())
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &str {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(|letter| !belongs(letter));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn literal(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH_MAX {
            return None;
        }
        match self.peek()? {
            quote @ ('"' | '\'') => self.text(quote).map(Value::String),
            '[' => {
                self.expect('[')?;
                let list = self.many(']', |reader| reader.literal(depth + 1))?;
                Some(Value::Array(list))
            }
            '{' => {
                self.expect('{')?;
                let fields = self.many('}', |reader| {
                    let Value::String(key) = reader.literal(depth + 1)? else {
                        return None;
                    };
                    reader.expect(':')?;
                    Some((key, reader.literal(depth + 1)?))
                })?;
                Some(Value::Object(fields.into_iter().collect::<Map<_, _>>()))
            }
            _ => self.plain(),
        }
    }

    fn plain(&mut self) -> Option<Value> {
        let word = self.word(|letter| letter.is_ascii_alphanumeric() || ".+-_".contains(letter));
        match word {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            number => serde_json::from_str::<Number>(number)
                .ok()
                .map(Value::Number),
        }
    }

    fn text(&mut self, quote: char) -> Option<String> {
        self.expect(quote)?;
        let mut text = String::new();
        let mut letters = self.rest.char_indices();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '\\' => text.push_str(&escaped(letters.next()?.1)?),
                _ if letter == quote => {
                    self.rest = &self.rest[at + quote.len_utf8()..];
                    return Some(text);
                }
                _ => text.push(letter),
            }
        }
        None
    }
}

/// What an escaped letter stands for; what Python does not know keeps its backslash.
fn escaped(letter: char) -> Option<String> {
    match letter {
        'n' => Some("\n".to_owned()),
        't' => Some("\t".to_owned()),
        'r' => Some("\r".to_owned()),
        '\\' | '\'' | '"' => Some(letter.to_string()),
        // numbers of characters are hardly ever written
        'x' | 'u' | 'U' | 'N' => None,
        _ => Some(format!("\\{letter}")),
    }
}
