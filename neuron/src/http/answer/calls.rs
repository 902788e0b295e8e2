//! Calls of tools in an answer, in OpenAI's shape.

use serde_json::{Value, json};
use ulid::Ulid;

use crate::calls::{CallFormat, CallReader, Part};

/// Letters of an id that Mistral's templates take.
const SHORT_ID: usize = 9;

/// Finds the calls of one answer.
pub(in super::super) struct Calls {
    format: CallFormat,
    reader: CallReader,
    one: bool,
    made: usize,
}

/// Some of an answer as it is shown.
pub(super) enum Shown {
    Text(String),
    Call(Value),
}

impl Calls {
    /// Of these tools; only the first call counts where there may be but one.
    pub(in super::super) fn new(format: CallFormat, tools: Vec<String>, one: bool) -> Self {
        Self {
            format,
            reader: CallReader::new(format, tools),
            one,
            made: 0,
        }
    }

    /// Whether there was one.
    pub(super) fn any(&self) -> bool {
        self.made > 0
    }

    pub(super) fn push(&mut self, text: &str) -> Vec<Shown> {
        let parts = self.reader.push(text);
        self.shown(parts)
    }

    pub(super) fn finish(&mut self) -> Vec<Shown> {
        let parts = self.reader.finish();
        self.shown(parts)
    }

    fn shown(&mut self, parts: Vec<Part>) -> Vec<Shown> {
        let shown = parts.into_iter().filter_map(|part| match part {
            Part::Text(text) => Some(Shown::Text(text)),
            Part::Call(_) if self.one && self.made > 0 => None,
            Part::Call(call) => {
                let index = self.made;
                self.made += 1;
                // The API has arguments as text.
                let function =
                    json!({ "name": call.name, "arguments": call.arguments.to_string() });
                Some(Shown::Call(json!({
                    "index": index, "id": id(self.format), "type": "function", "function": function,
                })))
            }
        });
        shown.collect()
    }
}

fn id(format: CallFormat) -> String {
    let random = Ulid::new().to_string();
    match format {
        CallFormat::Mistral => random[random.len() - SHORT_ID..].to_owned(),
        _ => format!("call_{random}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";

    fn shown(calls: &mut Calls, text: &str) -> (String, Vec<Value>) {
        let (mut said, mut made) = (String::new(), Vec::new());
        for shown in calls.push(text).into_iter().chain(calls.finish()) {
            match shown {
                Shown::Text(text) => said.push_str(&text),
                Shown::Call(call) => made.push(call),
            }
        }
        (said, made)
    }

    #[test]
    fn calls_have_numbers_ids_and_arguments_as_text() {
        let mut calls = Calls::new(CallFormat::Tagged, vec!["f".to_owned()], false);
        let (said, made) = shown(&mut calls, &format!("So: {CALL}{CALL}"));
        assert_eq!((said.as_str(), made.len()), ("So:", 2));
        assert!(calls.any());
        for (n, call) in made.iter().enumerate() {
            assert_eq!(
                (&call["index"], &call["type"]),
                (&json!(n), &json!("function"))
            );
            assert_eq!(
                call["function"],
                json!({ "name": "f", "arguments": "{\"a\":1}" })
            );
        }
        assert_ne!(made[0]["id"], made[1]["id"]);
        assert!(made[0]["id"].as_str().unwrap().starts_with("call_"));
    }

    #[test]
    fn only_the_first_call_counts_where_there_may_be_one() {
        let mut calls = Calls::new(CallFormat::Tagged, vec!["f".to_owned()], true);
        assert_eq!(shown(&mut calls, &format!("{CALL}{CALL}")).1.len(), 1);
        let mut none = Calls::new(CallFormat::Tagged, vec!["f".to_owned()], true);
        assert_eq!(shown(&mut none, "text").0, "text");
        assert!(!none.any());
    }

    #[test]
    fn mistral_s_templates_take_ids_of_nine_letters() {
        assert_eq!(id(CallFormat::Mistral).len(), SHORT_ID);
    }
}
