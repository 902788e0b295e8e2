//! A whole answer of chat completions as a response, and what both whole and streamed ones say of themselves.

use bytes::Bytes;
use seatbelt_schemas::{json, usage::Usage};
use serde_json::{Value, json};

use super::output::Output;
use crate::{
    api::Api,
    raw::Pairs,
    told::Counts,
    translate::{
        Shown,
        pieces::{object, word},
        said::{Ending, first_choice, said},
    },
};

/// How a response ended, or that it did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    InProgress,
    Completed,
    Incomplete(&'static str),
}

impl State {
    pub(super) fn of(ending: &Ending) -> Self {
        match ending.finish() {
            Some("length") => Self::Incomplete("max_output_tokens"),
            Some("content_filter") => Self::Incomplete("content_filter"),
            // as vLLM, OpenRouter and DeepSeek say that something broke off on their side
            Some("error" | "abort" | "cancelled" | "insufficient_system_resource") => {
                Self::Incomplete("error")
            }
            _ => Self::Completed,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete(_) => "incomplete",
        }
    }
}

/// Nothing where it is not an answer. `usage` is what it is known to have used, or is charged for.
pub(crate) fn from_chat(body: &[u8], shown: &Shown, usage: Option<Usage>) -> Option<Bytes> {
    let text = String::from_utf8_lossy(body);
    let body = object(&text).ok()??;
    let choice = first_choice(&body).ok()??;
    let mut output = Output::new(&shown.unique, &shown.echo.tools, false);
    output.add(said(&choice, "message").ok()?).ok()?;
    if output.any_nameless() {
        return None;
    }
    let mut ending = Ending::default();
    ending.note(&choice);
    let state = State::of(&ending);
    output.finish(state.as_str());
    let mut shown = shown.clone();
    if let Some(model) = word(&body, "model") {
        shown.model = model;
    }
    let usage = usage.or_else(|| reported(&body));
    let response = response(&shown, state, &output.json(), usage);
    Some(response.to_string().into())
}

fn reported(body: &Pairs<'_>) -> Option<Usage> {
    let report = json::from_str(body.last("usage")?.get()).ok()?;
    Counts::usage_of(Api::Chat, &report)
}

/// The object of a response. What was asked for is said again, but for instructions and tools, which are long.
pub(super) fn response(shown: &Shown, state: State, output: &Value, usage: Option<Usage>) -> Value {
    let asked = |name: &str, else_: Value| {
        let said = shown.echo.fields.get(name).cloned();
        said.filter(|said| !said.is_null()).unwrap_or(else_)
    };
    let incomplete = match state {
        State::Incomplete(reason) => json!({ "reason": reason }),
        State::InProgress | State::Completed => Value::Null,
    };
    json!({
        "id": shown.id,
        "object": "response",
        "created_at": shown.created_s,
        "status": state.as_str(),
        "background": false,
        "error": null,
        "incomplete_details": incomplete,
        "instructions": null,
        "max_output_tokens": asked("max_output_tokens", Value::Null),
        "metadata": asked("metadata", json!({})),
        "model": shown.model,
        "output": output,
        "parallel_tool_calls": asked("parallel_tool_calls", json!(true)),
        "previous_response_id": null,
        "reasoning": asked("reasoning", json!({"effort": null, "summary": null})),
        "store": false,
        "temperature": asked("temperature", Value::Null),
        "text": asked("text", json!({"format": {"type": "text"}})),
        "tool_choice": asked("tool_choice", json!("auto")),
        "tools": [],
        "top_p": asked("top_p", Value::Null),
        "truncation": "disabled",
        "usage": usage.map_or(Value::Null, usage_shown),
        "user": asked("user", Value::Null),
    })
}

/// Usage as the API shows it: cached and written input are parts of the whole.
fn usage_shown(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens.saturating_add(usage.output_tokens),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_a_whole_answer_are_as_many_as_there_are() {
        let call =
            |arguments: &str| json!({"id": "c", "function": {"name": "f", "arguments": arguments}});
        let calls = [r#"{"a":1}"#, r#"{"a":2}"#].map(call);
        let body =
            json!({"choices": [{"message": {"tool_calls": calls}, "finish_reason": "tool_calls"}]});
        let shown = from_chat(body.to_string().as_bytes(), &Shown::default(), None).unwrap();
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        let arguments = |n: usize| &shown["output"][n]["arguments"];
        assert_eq!(shown["output"].as_array().unwrap().len(), 2, "{shown}");
        assert_eq!(
            (arguments(0), arguments(1)),
            (&json!(r#"{"a":1}"#), &json!(r#"{"a":2}"#))
        );
    }

    #[test]
    fn what_broke_off_upstream_is_not_shown_as_complete() {
        for (reason, shown) in [
            ("stop", "completed"),
            ("tool_calls", "completed"),
            ("length", "incomplete"),
            ("error", "incomplete"),
            ("abort", "incomplete"),
        ] {
            let choice = format!(r#"{{"finish_reason":"{reason}"}}"#);
            let mut ending = Ending::default();
            ending.note(&Pairs::read(&choice).unwrap());
            assert_eq!(State::of(&ending).as_str(), shown, "{reason}");
        }
    }
}
