//! Calls of tools in what a model writes: each family of models writes them in its own way.
//!
//! Text goes in piece by piece, as a stream has it; text and whole calls come out. Nothing that might be the beginning
//! of a call is given out as text before it is decided. What looks like a call and cannot be read is text. The way
//! is found by the chat template, which tells the model how to write. Not here: ids, and which calls may be made.

use seatbelt_schemas::json;
use serde::de::IgnoredAny;
use serde_json::Value;

use self::{
    bare::{json_calls, named_calls},
    pythonic::python_calls,
};

mod bare;
mod pythonic;

/// Begins and ends a call of models after Hermes and Qwen.
const TAG: &str = "<tool_call>";
const TAG_END: &str = "</tool_call>";
/// Before the calls of a Mistral model; often a special token, which is no text.
const MISTRAL: &str = "[TOOL_CALLS]";
/// Between the name and the arguments of newer ones.
const MISTRAL_ARGUMENTS: &str = "[ARGS]";
/// Before the calls of a Llama model.
const PYTHON: &str = "<|python_tag|>";

/// How a model writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallFormat {
    /// `<tool_call>{"name": "f", "arguments": {}}</tool_call>`, among text.
    Tagged,
    /// `{"name": "f", "parameters": {}}`, the whole of an answer.
    Json,
    /// `[f(a=1), g()]`, the whole of an answer.
    Pythonic,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {}}]` or `[TOOL_CALLS]f[ARGS]{}`, to the end of an answer.
    Mistral,
}

impl CallFormat {
    /// What a template tells its model.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        let says = |word: &str| source.contains(word);
        match () {
            // arguments in tags of their own: another family
            () if says("<function=") => None,
            () if says(TAG) => Some(Self::Tagged),
            () if says(MISTRAL) => Some(Self::Mistral),
            () if says("[func_name1(") => Some(Self::Pythonic),
            () if says(r#""parameters": dictionary"#) || says(PYTHON) => Some(Self::Json),
            () => None,
        }
    }
}

/// A call, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) arguments: Value,
}

/// Some of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Call(Call),
}

/// Finds calls in one answer.
#[derive(Debug)]
pub(crate) struct CallReader {
    format: CallFormat,
    /// The tools there are: what names none of them is no call where nothing else marks one.
    tools: Vec<String>,
    held: String,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but spaces so far.
    Start,
    Text,
    /// After a call, where spaces are no text.
    After,
    /// What is held begins a call, or is one to the end.
    Calls,
}

impl CallReader {
    pub(crate) fn new(format: CallFormat, tools: Vec<String>) -> Self {
        Self {
            format,
            tools,
            held: String::new(),
            state: State::Start,
        }
    }

    /// Takes the next text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        match self.format {
            CallFormat::Tagged => self.tagged(),
            _ => self.undivided(),
        }
    }

    /// What is left when no more comes.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let calls = match self.state {
            State::Calls => self.calls(&held),
            _ => None,
        };
        match calls {
            Some(calls) => calls.into_iter().map(Part::Call).collect(),
            None if self.state == State::After && held.trim().is_empty() => Vec::new(),
            None if held.is_empty() => Vec::new(),
            None => vec![Part::Text(held)],
        }
    }

    /// Calls that are all of what is held; none if it is anything else.
    fn calls(&self, held: &str) -> Option<Vec<Call>> {
        let rest = held.trim();
        match self.format {
            CallFormat::Tagged => tagged_call(rest.strip_prefix(TAG)?).map(|call| vec![call]),
            CallFormat::Json => json_calls(rest.strip_prefix(PYTHON).unwrap_or(rest), &self.tools),
            CallFormat::Pythonic => python_calls(rest, &self.tools),
            CallFormat::Mistral => {
                let rest = rest.strip_prefix(MISTRAL).unwrap_or(rest).trim_start();
                match rest.starts_with('[') {
                    true => json_calls(rest, &self.tools),
                    false => named_calls(rest, &self.tools),
                }
            }
        }
    }

    fn tagged(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        loop {
            if self.state == State::Calls {
                let Some(end) = tag_end(&self.held) else {
                    return parts;
                };
                let rest = self.held.split_off(end + TAG_END.len());
                let whole = std::mem::replace(&mut self.held, rest);
                let inside = whole.strip_prefix(TAG);
                let inside = inside.and_then(|inside| inside.strip_suffix(TAG_END));
                parts.push(match inside.and_then(tagged_call) {
                    Some(call) => Part::Call(call),
                    None => Part::Text(whole),
                });
                self.state = State::After;
                continue;
            }
            let Some(begin) = self.held.find(TAG) else {
                self.give_out(undecided(&self.held, TAG), &mut parts);
                return parts;
            };
            let rest = self.held.split_off(begin);
            let before = std::mem::replace(&mut self.held, rest);
            let before = before.trim_end();
            if !before.is_empty() {
                parts.push(Part::Text(self.begun(before).to_owned()));
            }
            self.state = State::Calls;
        }
    }

    /// Where calls are the whole of an answer, its first letters decide.
    fn undivided(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        if self.state == State::Start {
            match self.begins_calls() {
                None => return parts,
                Some(true) => self.state = State::Calls,
                Some(false) => self.state = State::Text,
            }
        }
        if self.state == State::Text {
            // Mistral's mark may come after some text.
            let mark = match self.format {
                CallFormat::Mistral => self.held.find(MISTRAL),
                _ => None,
            };
            match mark {
                None => self.give_out(undecided(&self.held, MISTRAL), &mut parts),
                Some(at) => {
                    let rest = self.held.split_off(at);
                    let before = std::mem::replace(&mut self.held, rest);
                    if !before.trim_end().is_empty() {
                        parts.push(Part::Text(before.trim_end().to_owned()));
                    }
                    self.state = State::Calls;
                }
            }
        }
        parts
    }

    /// Whether what is held begins calls; none where that is not decided.
    fn begins_calls(&self) -> Option<bool> {
        let held = self.held.trim_start();
        let mut marks: Vec<String> = match self.format {
            CallFormat::Tagged => vec![TAG.to_owned()],
            CallFormat::Json => vec![PYTHON.to_owned(), "{".to_owned()],
            CallFormat::Pythonic => vec!["[".to_owned()],
            CallFormat::Mistral => vec![MISTRAL.to_owned()],
        };
        if self.format == CallFormat::Mistral {
            // A list, with blanks before its first call or without.
            let list = held.strip_prefix('[').map(str::trim_start);
            if list.is_some_and(|list| list.starts_with('{')) {
                return Some(true);
            }
            if list == Some("") {
                return None;
            }
            let named = self.tools.iter();
            marks.extend(named.map(|name| format!("{name}{{")));
            let named = self.tools.iter();
            marks.extend(named.map(|name| format!("{name}{MISTRAL_ARGUMENTS}")));
        }
        match () {
            () if marks.iter().any(|mark| held.starts_with(mark.as_str())) => Some(true),
            () if marks.iter().any(|mark| mark.starts_with(held)) => None,
            () => Some(false),
        }
    }

    /// Gives out all that is held but the last `kept` bytes and the spaces before them.
    fn give_out(&mut self, kept: usize, parts: &mut Vec<Part>) {
        let end = self.held.len() - kept;
        let end = self.held[..end].trim_end().len();
        let rest = self.held.split_off(end);
        let text = std::mem::replace(&mut self.held, rest);
        if !text.is_empty() {
            let text = self.begun(&text).to_owned();
            self.state = State::Text;
            parts.push(Part::Text(text));
        }
    }

    /// Text as it is shown: spaces between calls and text are none of it.
    fn begun<'a>(&self, text: &'a str) -> &'a str {
        match self.state {
            State::After => text.trim_start(),
            _ => text,
        }
    }
}

/// Bytes at the end of a text that may begin `mark`.
fn undecided(text: &str, mark: &str) -> usize {
    let longest = text.len().min(mark.len() - 1);
    let begins = |count: &usize| text.ends_with(&mark[..*count]);
    (1..=longest).rev().find(begins).unwrap_or(0)
}

/// Where the closing tag of the call stands that `held` begins with. One within a text of the call is no closing tag.
fn tag_end(held: &str) -> Option<usize> {
    let first = held.find(TAG_END)?;
    let inside = held.strip_prefix(TAG).unwrap_or(held);
    let mut values = serde_json::Deserializer::from_str(inside).into_iter::<IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => {
            let after = held.len() - inside.len() + values.byte_offset();
            Some(after + held[after..].find(TAG_END)?)
        }
        // It goes on.
        Some(Err(error)) if error.is_eof() => None,
        _ => Some(first),
    }
}

fn tagged_call(inside: &str) -> Option<Call> {
    call_of(json::from_str(inside.trim()).ok()?)
}

/// A call written as an object.
fn call_of(mut call: Value) -> Option<Call> {
    let call = call.as_object_mut()?;
    let name = call.get("name")?.as_str()?.to_owned();
    let arguments = ["arguments", "parameters"].iter();
    let mut arguments = arguments.filter_map(|key| call.get(*key).cloned());
    let arguments = arguments
        .next()
        .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    // Some write them as text, as the API does.
    let arguments = match arguments.as_str().map(json::from_str) {
        Some(Ok(read)) => read,
        _ => arguments,
    };
    let sound = !name.is_empty() && arguments.is_object();
    sound.then_some(Call { name, arguments })
}

#[cfg(test)]
mod tests;
