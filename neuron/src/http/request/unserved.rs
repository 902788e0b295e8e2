//! Fields that other servers obey and this one does not. To leave them aside in silence would be an
//! answer to another request; what changes nothing anyway is let by, and what nobody knows is refused.

use serde_json::{Map, Value};

use super::super::error::ErrorAnswer;

/// Most characters of a field's name that are shown.
const NAME_CHARS_MAX: usize = 80;

/// What a field may say without changing the answer.
enum Neutral {
    Nothing,
    Numbers(&'static [f64]),
    False,
    True,
    Empty,
    /// An object of one of these types.
    Kinds(&'static [&'static str]),
    Words(&'static [&'static str]),
}

/// Fields that are obeyed, each read where it is used.
const OBEYED: [&str; 30] = [
    "model",
    "messages",
    "prompt",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "n",
    "best_of",
    "echo",
    "logprobs",
    "tools",
    "functions",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "top_logprobs",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "parallel_tool_calls",
    "tool_choice",
    "response_format",
];

/// Fields that say nothing of the answer: who asks, what is kept or cached of it, and who comes first.
const BESIDE: [&str; 10] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "priority",
    "request_id",
    "cache_prompt",
];

/// Fields that other servers obey. Any that is not listed here at all is refused: nobody can say what it would change.
const FIELDS: [(&str, Neutral); 45] = [
    ("length_penalty", Neutral::Numbers(&[1.0])),
    ("typical_p", Neutral::Numbers(&[1.0])),
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
    ("function_call", Neutral::Words(&["none", "auto"])),
    ("modalities", Neutral::Words(&["text"])),
    ("thinking", Neutral::Kinds(&["disabled"])),
    ("verbosity", Neutral::Words(&["medium"])),
    ("do_sample", Neutral::True),
    ("add_generation_prompt", Neutral::True),
    ("skip_special_tokens", Neutral::True),
    ("continue_final_message", Neutral::False),
    ("early_stopping", Neutral::False),
    ("include_stop_str_in_output", Neutral::False),
    ("return_tokens_as_token_ids", Neutral::False),
    ("raw", Neutral::False),
    ("mirostat", Neutral::Numbers(&[0.0])),
    ("mirostat_mode", Neutral::Numbers(&[0.0])),
    ("top_a", Neutral::Numbers(&[0.0])),
    ("tfs_z", Neutral::Numbers(&[1.0])),
    ("dry_multiplier", Neutral::Numbers(&[0.0])),
    ("xtc_probability", Neutral::Numbers(&[0.0])),
    ("no_repeat_ngram_size", Neutral::Numbers(&[0.0])),
    ("repeat_penalty", Neutral::Numbers(&[1.0])),
    ("num_beams", Neutral::Numbers(&[1.0])),
    ("beam_width", Neutral::Numbers(&[1.0])),
    ("stop_sequences", Neutral::Empty),
    ("allowed_token_ids", Neutral::Empty),
    ("logits_processors", Neutral::Empty),
    ("documents", Neutral::Empty),
    ("grammar", Neutral::Empty),
    ("format", Neutral::Empty),
    ("system", Neutral::Empty),
    ("options", Neutral::Empty),
    ("prefix", Neutral::Empty),
    ("response_prefix", Neutral::Empty),
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
            (Self::True, value) => *value == Value::Bool(true),
            (Self::Kinds(kinds), value) => {
                let kind = value.get("type");
                kind.is_some_and(|kind| word(kinds, kind))
            }
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(fields)) => fields.is_empty(),
            (Self::Empty, Value::String(text)) => text.is_empty(),
            (Self::Empty, _) => false,
            (Self::Words(words), Value::Array(list)) => list.iter().all(|value| word(words, value)),
            (Self::Words(words), value) => word(words, value),
        }
    }
}

/// Refuses the first field of a body that would have to be obeyed, or that nobody knows.
pub(super) fn refuse(body: &Map<String, Value>) -> Result<(), ErrorAnswer> {
    let refused = body.iter().find(|(name, value)| !is_served(name, value));
    let Some((name, _)) = refused else {
        return Ok(());
    };
    let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
    let why = match FIELDS.iter().any(|(known, _)| *known == name) {
        true => "is not served",
        false => "is not known here",
    };
    let message = format!("{shown} {why}: leave it out");
    Err(ErrorAnswer::unsupported(shown, message))
}

fn is_served(name: &str, value: &Value) -> bool {
    let neutral = FIELDS.iter().find(|(known, _)| *known == name);
    match neutral {
        Some((_, neutral)) => neutral.holds(value),
        None => value.is_null() || OBEYED.contains(&name) || BESIDE.contains(&name),
    }
}

/// Refuses a message of a chat that calls a function in the way before tools.
pub(super) fn refuse_functions(message: &Value) -> Result<(), ErrorAnswer> {
    let told = message.get("function_call");
    if told.is_some_and(|value| !Neutral::Empty.holds(value)) {
        let message =
            "function_call is not served: a message of the history has one, say tool_calls";
        return Err(ErrorAnswer::unsupported("messages", message));
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
            ("suffix", json!("end")),
            ("guided_json", json!({})),
            ("chat_template_kwargs", json!({ "enable_thinking": false })),
            ("reasoning_effort", json!("high")),
            ("modalities", json!(["text", "audio"])),
            ("prediction", json!({ "type": "content" })),
            ("thinking", json!({ "type": "enabled" })),
            ("do_sample", json!(false)),
            ("verbosity", json!("low")),
            ("grammar", json!("root ::= x")),
            ("mirostat", json!(2)),
            ("n_predict", json!(400)),
            ("max_new_tokens", json!(5)),
            ("chat_template", json!("{{ 1 }}")),
            ("made_up", json!({})),
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
            ("frequency_penalty", json!(0.5)),
            ("presence_penalty", json!(-1)),
            ("repetition_penalty", json!(1.1)),
            ("logit_bias", json!({ "50": -100 })),
            ("top_k", json!(40)),
            ("min_p", json!(0.05)),
            ("min_tokens", json!(5)),
            ("ignore_eos", json!(true)),
            ("stop_token_ids", json!([7])),
            ("suffix", json!(null)),
            ("guided_json", json!(null)),
            ("reasoning_effort", json!("none")),
            ("modalities", json!(["text"])),
            ("tool_choice", json!("auto")),
            ("parallel_tool_calls", json!(false)),
            (
                "tools",
                json!([{ "type": "function", "function": { "name": "f" } }]),
            ),
            ("user", json!("ann")),
            ("metadata", json!({ "a": "b" })),
            ("store", json!(true)),
            ("response_format", json!({ "type": "text" })),
            ("thinking", json!({ "type": "disabled" })),
            ("do_sample", json!(true)),
            ("made_up", json!(null)),
        ] {
            assert_eq!(refused(name, &value), None, "{name} {value}");
        }
    }

    #[test]
    fn calls_of_the_history_are_read_and_those_of_before_tools_refused() {
        let call = json!([{ "role": "assistant", "content": null, "tool_calls": [{ "id": "1" }] }]);
        assert_eq!(refused("messages", &call).as_deref(), Some("messages"));
        let function = json!({ "name": "f", "arguments": "{}" });
        let call =
            json!([{ "role": "assistant", "tool_calls": [{ "id": "1", "function": function }] }]);
        assert_eq!(refused("messages", &call), None);
        let before = json!([{ "role": "assistant", "function_call": function }]);
        assert_eq!(refused("messages", &before).as_deref(), Some("messages"));
    }
}
