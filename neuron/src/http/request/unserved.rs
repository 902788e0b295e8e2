//! Fields that other servers obey and this one does not. To leave them aside in silence would be an
//! answer to another request; what changes nothing anyway is let by.

use serde_json::{Map, Value};

use super::super::error::ErrorAnswer;

/// What a field may say without changing the answer.
enum Neutral {
    Nothing,
    Numbers(&'static [f64]),
    False,
    Empty,
    Words(&'static [&'static str]),
}

const FIELDS: [(&str, Neutral); 26] = [
    ("frequency_penalty", Neutral::Numbers(&[0.0])),
    ("presence_penalty", Neutral::Numbers(&[0.0])),
    ("repetition_penalty", Neutral::Numbers(&[1.0])),
    ("length_penalty", Neutral::Numbers(&[1.0])),
    ("logit_bias", Neutral::Empty),
    // -1 is another way to say all
    ("top_k", Neutral::Numbers(&[0.0, -1.0])),
    ("min_p", Neutral::Numbers(&[0.0])),
    ("typical_p", Neutral::Numbers(&[1.0])),
    ("top_logprobs", Neutral::Numbers(&[0.0])),
    ("min_tokens", Neutral::Numbers(&[0.0])),
    ("ignore_eos", Neutral::False),
    ("stop_token_ids", Neutral::Empty),
    ("bad_words", Neutral::Empty),
    ("use_beam_search", Neutral::False),
    ("suffix", Neutral::Empty),
    ("guided_json", Neutral::Nothing),
    ("guided_regex", Neutral::Nothing),
    ("guided_choice", Neutral::Nothing),
    ("guided_grammar", Neutral::Nothing),
    ("structured_outputs", Neutral::Nothing),
    ("chat_template_kwargs", Neutral::Empty),
    ("reasoning_effort", Neutral::Words(&["none"])),
    ("prediction", Neutral::Nothing),
    ("tool_choice", Neutral::Words(&["none", "auto"])),
    ("function_call", Neutral::Words(&["none", "auto"])),
    ("modalities", Neutral::Words(&["text"])),
];

impl Neutral {
    fn holds(&self, value: &Value) -> bool {
        let word = |words: &[&str], value: &Value| {
            value.as_str().is_some_and(|word| words.contains(&word))
        };
        match (self, value) {
            (_, Value::Null) => true,
            (Self::Nothing, _) => false,
            (Self::Numbers(numbers), value) => {
                (value.as_f64()).is_some_and(|number| numbers.contains(&number))
            }
            (Self::False, value) => *value == Value::Bool(false),
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(fields)) => fields.is_empty(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::Empty, _) => false,
            (Self::Words(words), Value::Array(list)) => list.iter().all(|value| word(words, value)),
            (Self::Words(words), value) => word(words, value),
        }
    }
}

/// Refuses the first field of a body that would have to be obeyed.
pub(super) fn refuse(body: &Map<String, Value>) -> Result<(), ErrorAnswer> {
    for (name, neutral) in &FIELDS {
        if body.get(*name).is_some_and(|value| !neutral.holds(value)) {
            return Err(ErrorAnswer::unsupported(
                name,
                format!("{name} is not served: leave it out"),
            ));
        }
    }
    Ok(())
}

/// Refuses a message of a chat that calls tools or is the answer of one.
pub(super) fn refuse_tools(message: &Value) -> Result<(), ErrorAnswer> {
    let told = ["tool_calls", "function_call"]
        .iter()
        .filter_map(|name| message.get(name))
        .any(|value| !Neutral::Empty.holds(value));
    if told {
        return Err(ErrorAnswer::unsupported(
            "messages",
            "tools are not served: a message of the history calls one",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Dialect, Wish};

    #[track_caller]
    fn refused(name: &str, value: &serde_json::Value) -> Option<String> {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        body[name] = value.clone();
        let error = Wish::read(Dialect::Chat, body.to_string().as_bytes()).err()?;
        Some(
            error.json()["error"]["param"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (name, value) in [
            ("frequency_penalty", json!(0.5)),
            ("presence_penalty", json!(-1)),
            ("repetition_penalty", json!(1.1)),
            ("logit_bias", json!({ "50": -100 })),
            ("top_k", json!(40)),
            ("min_p", json!(0.05)),
            ("top_logprobs", json!(3)),
            ("min_tokens", json!(5)),
            ("ignore_eos", json!(true)),
            ("stop_token_ids", json!([7])),
            ("suffix", json!("end")),
            ("guided_json", json!({})),
            ("chat_template_kwargs", json!({ "enable_thinking": false })),
            ("reasoning_effort", json!("high")),
            ("modalities", json!(["text", "audio"])),
            ("prediction", json!({ "type": "content" })),
            ("tool_choice", json!("required")),
        ] {
            assert_eq!(refused(name, &value).as_deref(), Some(name), "{value}");
        }
    }

    #[test]
    fn what_changes_nothing_is_let_by() {
        for (name, value) in [
            ("frequency_penalty", json!(0)),
            ("presence_penalty", json!(0.0)),
            ("repetition_penalty", json!(1)),
            ("logit_bias", json!({})),
            ("top_k", json!(-1)),
            ("ignore_eos", json!(false)),
            ("suffix", json!(null)),
            ("guided_json", json!(null)),
            ("reasoning_effort", json!("none")),
            ("modalities", json!(["text"])),
            ("tool_choice", json!("auto")),
            ("user", json!("ann")),
        ] {
            assert_eq!(refused(name, &value), None, "{name} {value}");
        }
    }

    #[test]
    fn calls_of_tools_in_the_history_are_refused() {
        let call = json!([{ "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }] }]);
        assert_eq!(refused("messages", &call).as_deref(), Some("messages"));
        let none = json!([{ "role": "assistant", "content": "x", "tool_calls": [] }]);
        assert_eq!(refused("messages", &none), None);
    }
}
