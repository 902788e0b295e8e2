//! Upper bounds of what a request can use, read from its body, and the output maximum written back
//! into the body that is forwarded.
//!
//! The input bound is the bytes of everything that can reach a prompt, plus an allowance for framing:
//! no byte-level tokenizer makes more tokens than bytes. Not here: what a metered request may say at all
//! ([`crate::allow`]), and exact counts, which the neuron's own tokenizer gives.

use std::io;

use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, ids::EndUserId};
use serde_json::{Map, Value, json};

use crate::{
    config::{MaxField, UpstreamModel},
    error::ApiError,
};

/// Most choices (`n`) of one request.
pub(crate) const CHOICES_MAX: u64 = 128;
/// Most messages of one request.
pub(crate) const MESSAGES_MAX: usize = 100_000;
/// No token of a known vocabulary is longer. A prompt of more bytes than this times the context is
/// over the context for certain; below it only the upstream can tell.
const TOKEN_BYTES_MAX: u64 = 128;
/// Tokens of the instructions that Anthropic adds to a request with tools (346 at most are documented).
const TOOLS_PREAMBLE_TOKENS: u64 = 512;
/// Tokens of the description that a provider adds for a tool it knows by its type (735 at most are
/// documented).
const KNOWN_TOOL_TOKENS: u64 = 1024;
/// Bytes that a token has at least on average in any common language, for the default maximum alone,
/// where a wrong guess costs an error of the upstream and no money.
const TOKEN_BYTES_GUESS: u64 = 3;

/// Fields that never reach a prompt and cannot raise the cost.
const PLAIN_FIELDS: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "best_of",
    "stream",
    "stream_options",
    "stop",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "logprobs",
    "top_logprobs",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "metadata",
    "store",
    "parallel_tool_calls",
    "reasoning_effort",
    "verbosity",
    "service_tier",
    "modalities",
    "tools",
    "ignore_eos",
    "min_tokens",
];

/// What a request asks for, as far as its bound depends on it.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Bytes of all text that can reach the prompt.
    text_bytes: u64,
    /// Things that are framed: messages and tools.
    framed: u64,
    /// Generations: each can use the whole output maximum.
    pub(crate) choices: u64,
    /// The output maximum of one choice, where the client gave one.
    max: Option<u64>,
    pub(crate) stream: bool,
    /// The client wants the usage chunk of its stream.
    pub(crate) include_usage: bool,
    /// Whom the client names as its end user.
    pub(crate) end_user: Option<EndUserId>,
}

/// What will be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) input_tokens: u64,
    /// Of one choice.
    pub(crate) output_tokens: u64,
}

impl Asked {
    /// Reads a body of `/v1/chat/completions`.
    pub(crate) fn chat(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut asked = Self {
            choices: choices(body)?,
            max: smaller(
                whole(body, "max_tokens")?,
                whole(body, "max_completion_tokens")?,
            ),
            stream: flag(body, "stream")?,
            ..Self::default()
        };
        asked.include_usage = include_usage(body)?;
        asked.end_user = end_user(body.get("user"));
        for (n, message) in messages(body)?.iter().enumerate() {
            asked.message(n, message)?;
        }
        asked.tools(body)?;
        asked.other_fields(body);
        Ok(asked)
    }

    /// Reads a body of `/v1/messages`, for an upstream that speaks it.
    pub(crate) fn messages(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let max = whole(body, "max_tokens")?;
        let mut asked = Self {
            choices: 1,
            max: Some(max.ok_or_else(|| {
                ApiError::invalid_field(
                    "max_tokens",
                    "is missing: set the output maximum, at least 1",
                )
            })?),
            stream: flag(body, "stream")?,
            end_user: end_user(body.get("metadata").and_then(|told| told.get("user_id"))),
            ..Self::default()
        };
        for (n, message) in messages(body)?.iter().enumerate() {
            asked.message(n, message)?;
        }
        if let Some(system) = body.get("system") {
            asked.content("system", system)?;
        }
        asked.tools(body)?;
        if body.contains_key("tools") {
            asked.text_bytes += TOOLS_PREAMBLE_TOKENS;
        }
        asked.other_fields(body);
        Ok(asked)
    }

    fn message(&mut self, n: usize, message: &Value) -> Result<(), ApiError> {
        let param = || format!("messages[{n}]");
        let fields = message.as_object().ok_or_else(|| {
            ApiError::invalid_field(&param(), "must be an object with a role and content")
        })?;
        self.framed += 1;
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("content", content) => self.content(&format!("messages[{n}].content"), content)?,
                ("role", Value::String(role)) if is_known_role(role) => {}
                (_, Value::Null) => {}
                (name, other) => self.text_bytes += name.len() as u64 + json_bytes(other),
            }
        }
        Ok(())
    }

    fn content(&mut self, param: &str, content: &Value) -> Result<(), ApiError> {
        match content {
            Value::Null => {}
            Value::String(text) => self.text_bytes += text.len() as u64,
            Value::Array(parts) => {
                for (n, part) in parts.iter().enumerate() {
                    self.part(&format!("{param}[{n}]"), part)?;
                }
            }
            _ => {
                return Err(ApiError::invalid_field(
                    param,
                    "must be a string or an array of parts",
                ));
            }
        }
        Ok(())
    }

    fn part(&mut self, param: &str, part: &Value) -> Result<(), ApiError> {
        let kind = part
            .get("type")
            .and_then(Value::as_str)
            .ok_or_else(|| ApiError::invalid_field(param, "must be an object with a type"))?;
        match kind {
            "text" | "refusal" | "tool_use" | "thinking" | "redacted_thinking" => {
                self.text_bytes += json_bytes(part).saturating_sub(part_frame(kind));
            }
            "tool_result" => {
                let id = part.get("tool_use_id").map_or(0, json_bytes);
                self.text_bytes += id;
                self.framed += 1;
                if let Some(content) = part.get("content") {
                    self.content(&format!("{param}.content"), content)?;
                }
            }
            _ => self.text_bytes += json_bytes(part),
        }
        Ok(())
    }

    fn tools(&mut self, body: &Map<String, Value>) -> Result<(), ApiError> {
        let tools = match body.get("tools") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Array(tools)) => tools,
            Some(_) => return Err(ApiError::invalid_field("tools", "must be an array")),
        };
        for tool in tools {
            self.framed += 1;
            self.text_bytes += json_bytes(tool);
            let kind = tool.get("type").and_then(Value::as_str);
            if !matches!(kind, None | Some("function" | "custom")) {
                self.text_bytes += KNOWN_TOOL_TOKENS;
            }
        }
        Ok(())
    }

    /// Whatever else is in the body may reach the prompt (`response_format`, `documents`, template
    /// arguments, fields not known here), so its bytes count.
    fn other_fields(&mut self, body: &Map<String, Value>) {
        for (name, value) in body {
            let plain = PLAIN_FIELDS.contains(&name.as_str()) || name == "system";
            if !value.is_null() && !plain {
                self.text_bytes += name.len() as u64 + json_bytes(value);
            }
        }
    }

    /// The bound for an upstream whose tokenizer is not known.
    pub(crate) fn by_bytes(&self, model: &UpstreamModel) -> Result<Bound, ApiError> {
        if self.text_bytes / TOKEN_BYTES_MAX >= model.context {
            return Err(ApiError::context_exceeded(
                self.text_bytes / TOKEN_BYTES_MAX,
                model.context,
            ));
        }
        let framing = self.framed.saturating_mul(model.message_allowance);
        let input_tokens = self.text_bytes + framing + model.request_allowance;
        let left = model
            .context
            .saturating_sub(input_tokens / TOKEN_BYTES_GUESS);
        Ok(Bound {
            input_tokens,
            output_tokens: self.max.unwrap_or(left).clamp(1, model.output.max(1)),
        })
    }

    /// The bound where the input was counted by the model's own tokenizer.
    pub(crate) fn exactly(
        &self,
        input_tokens: u64,
        context: u64,
        output: u64,
    ) -> Result<Bound, ApiError> {
        let left = context.saturating_sub(input_tokens);
        if left == 0 {
            return Err(ApiError::context_exceeded(input_tokens, context));
        }
        let most = left.min(output.max(1));
        Ok(Bound {
            input_tokens,
            output_tokens: self.max.unwrap_or(most).clamp(1, most),
        })
    }
}

/// Writes the output maximum into a chat body, under whichever names the client used.
pub(crate) fn write_chat_max(body: &mut Map<String, Value>, max: u64, field: MaxField) {
    let mut written = false;
    for name in ["max_tokens", "max_completion_tokens"] {
        match body.get_mut(name) {
            Some(Value::Null) => {
                body.shift_remove(name);
            }
            Some(value) => {
                *value = json!(max);
                written = true;
            }
            None => {}
        }
    }
    if !written {
        let name = match field {
            MaxField::MaxTokens => "max_tokens",
            MaxField::MaxCompletionTokens => "max_completion_tokens",
        };
        body.insert(name.to_owned(), json!(max));
    }
}

/// Asks the upstream for the usage chunk of a stream.
pub(crate) fn ask_for_usage(body: &mut Map<String, Value>) {
    match body.get_mut("stream_options") {
        Some(Value::Object(options)) => {
            options.insert("include_usage".to_owned(), json!(true));
        }
        _ => {
            body.insert(
                "stream_options".to_owned(),
                json!({ "include_usage": true }),
            );
        }
    }
}

/// Bytes of a part's JSON that are framing and not text: counted against its text only.
fn part_frame(kind: &str) -> u64 {
    match kind {
        "text" => r#"{"type":"text","text":""}"#.len() as u64,
        "refusal" => r#"{"type":"refusal","refusal":""}"#.len() as u64,
        _ => 0,
    }
}

fn is_known_role(role: &str) -> bool {
    matches!(
        role,
        "system" | "developer" | "user" | "assistant" | "tool" | "function"
    )
}

fn messages(body: &Map<String, Value>) -> Result<&[Value], ApiError> {
    match body.get("messages") {
        Some(Value::Array(messages)) if (1..=MESSAGES_MAX).contains(&messages.len()) => {
            Ok(messages)
        }
        _ => Err(ApiError::invalid_field(
            "messages",
            "must be an array of at least one message",
        )),
    }
}

/// A whole number of at least 1, or nothing.
fn whole(body: &Map<String, Value>, name: &str) -> Result<Option<u64>, ApiError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if (1..=TOKENS_PER_REQUEST_MAX).contains(&number) => Ok(Some(number)),
            _ => Err(ApiError::invalid_field(
                name,
                &format!("must be a whole number from 1 to {TOKENS_PER_REQUEST_MAX}"),
            )),
        },
    }
}

fn flag(body: &Map<String, Value>, name: &str) -> Result<bool, ApiError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(_) => Err(ApiError::invalid_field(name, "must be true or false")),
    }
}

fn choices(body: &Map<String, Value>) -> Result<u64, ApiError> {
    let mut most = 1;
    for name in ["n", "best_of"] {
        let choices = whole(body, name)?.unwrap_or(1);
        if choices > CHOICES_MAX {
            return Err(ApiError::invalid_field(
                name,
                &format!("must be at most {CHOICES_MAX}"),
            ));
        }
        most = most.max(choices);
    }
    Ok(most)
}

/// A name that cannot be one is nobody's: the API gives it no meaning of its own.
fn end_user(named: Option<&Value>) -> Option<EndUserId> {
    let named = named.and_then(Value::as_str)?;
    EndUserId::new(named).ok()
}

fn include_usage(body: &Map<String, Value>) -> Result<bool, ApiError> {
    match body.get("stream_options") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Object(options)) => flag(options, "include_usage"),
        Some(_) => Err(ApiError::invalid_field(
            "stream_options",
            "must be an object",
        )),
    }
}

fn smaller(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Length of a value as compact JSON: not less than the text inside it.
fn json_bytes(value: &Value) -> u64 {
    struct Count(u64);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).expect("a JSON value is written to a counter");
    count.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seatbelt_schemas::ids::ModelId;

    use super::*;
    use crate::error::Dialect;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn model() -> UpstreamModel {
        UpstreamModel::new(ModelId::new("m").unwrap(), 8192, 4096)
    }

    fn hi(extra: Value) -> Map<String, Value> {
        let mut body =
            object(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}));
        body.extend(object(extra));
        body
    }

    fn bound(body: &Map<String, Value>) -> Bound {
        Asked::chat(body).unwrap().by_bytes(&model()).unwrap()
    }

    /// The error's code and param.
    fn refused(body: &Map<String, Value>) -> (String, String) {
        let error = Asked::chat(body).expect_err("nothing was refused");
        let envelope = error.envelope(Dialect::OpenAi);
        let text = |name: &str| envelope["error"][name].as_str().unwrap().to_owned();
        (text("code"), text("param"))
    }

    #[test]
    fn a_short_prompt_has_a_small_bound() {
        let bound = bound(&hi(json!({"max_tokens": 20})));
        assert_eq!(
            bound,
            Bound {
                input_tokens: 18,
                output_tokens: 20
            }
        );
    }

    #[test]
    fn the_output_maximum_is_read_in_both_spellings() {
        let output = |extra| bound(&hi(extra)).output_tokens;
        assert_eq!(output(json!({"max_completion_tokens": 7})), 7);
        assert_eq!(
            output(json!({"max_tokens": 9, "max_completion_tokens": 7})),
            7
        );
        assert_eq!(
            output(json!({"max_tokens": 9, "max_completion_tokens": null})),
            9
        );
        assert_eq!(output(json!({})), 4096);
        assert_eq!(output(json!({"max_tokens": null})), 4096);
        assert_eq!(output(json!({"max_tokens": 1_000_000})), 4096);
    }

    #[test]
    fn a_long_prompt_leaves_room_for_its_answer() {
        let mut body = hi(json!({}));
        body["messages"][0]["content"] = json!("x".repeat(15_000));
        assert_eq!(bound(&body).output_tokens, 8192 - 15_016 / 3);
        body["messages"][0]["content"] = json!("x".repeat(100_000));
        assert_eq!(bound(&body).output_tokens, 1);
        body["messages"][0]["content"] = json!("x".repeat(8192 * 128));
        let error = Asked::chat(&body).unwrap().by_bytes(&model()).unwrap_err();
        assert_eq!(error.code(), "context_length_exceeded");
    }

    #[test]
    fn an_exact_count_leaves_what_the_context_leaves() {
        let asked = Asked::chat(&hi(json!({}))).unwrap();
        assert_eq!(asked.exactly(5, 100, 64).unwrap().output_tokens, 64);
        assert_eq!(asked.exactly(90, 100, 64).unwrap().output_tokens, 10);
        assert_eq!(
            asked.exactly(100, 100, 64).unwrap_err().code(),
            "context_length_exceeded"
        );
        let asked = Asked::chat(&hi(json!({"max_tokens": 30}))).unwrap();
        assert_eq!(asked.exactly(90, 100, 64).unwrap().output_tokens, 10);
    }

    #[test]
    fn a_maximum_that_is_no_whole_number_is_refused_by_name() {
        for odd in [
            json!(-1),
            json!(1.5),
            json!("20"),
            json!(0),
            json!(18_446_744_073_709_551_616.0),
            json!([]),
        ] {
            for name in ["max_tokens", "max_completion_tokens", "n"] {
                let found = refused(&hi(json!({ name: odd.clone() })));
                assert_eq!(found, ("invalid_body".to_owned(), name.to_owned()), "{odd}");
            }
        }
        assert_eq!(refused(&hi(json!({"n": 129}))).1, "n");
        assert_eq!(refused(&hi(json!({"stream": "yes"}))).1, "stream");
        assert_eq!(
            refused(&hi(json!({"stream_options": 1}))).1,
            "stream_options"
        );
        assert_eq!(refused(&hi(json!({"messages": []}))).1, "messages");
        assert_eq!(refused(&hi(json!({"messages": ["hi"]}))).1, "messages[0]");
        assert_eq!(
            refused(&hi(json!({"messages": [{"role": "user", "content": 5}]}))).1,
            "messages[0].content"
        );
    }

    #[test]
    fn everything_that_can_reach_the_prompt_counts() {
        let plain = bound(&hi(json!({}))).input_tokens;
        let more = |extra: Value| bound(&hi(extra)).input_tokens - plain;
        let long = "x".repeat(500);
        assert!(more(json!({"tools": [{"type": "function", "function": {"name": long}}]})) > 500);
        assert!(more(json!({"functions": [{"name": long}]})) > 500);
        assert!(more(json!({"response_format": {"json_schema": {"title": long}}})) > 500);
        assert!(more(json!({"documents": [long]})) > 500);
        assert!(more(json!({"unheard_of": long})) > 500);
        assert_eq!(
            more(json!({"user": long, "stop": [long], "metadata": {"a": long}})),
            0
        );
        for field in ["name", "role", "tool_call_id", "reasoning_content"] {
            let mut body = hi(json!({}));
            body["messages"][0][field] = json!(long);
            assert!(bound(&body).input_tokens - plain >= 500, "{field}");
        }
    }

    #[test]
    fn the_maximum_is_written_where_the_client_wrote_it() {
        let written = |extra: Value| {
            let mut body = hi(extra);
            write_chat_max(&mut body, 5, MaxField::MaxTokens);
            (
                body.get("max_tokens").cloned(),
                body.get("max_completion_tokens").cloned(),
            )
        };
        let five = || Some(json!(5));
        assert_eq!(written(json!({})), (five(), None));
        assert_eq!(
            written(json!({"max_tokens": null, "max_completion_tokens": null})),
            (five(), None)
        );
        assert_eq!(written(json!({"max_completion_tokens": 9})), (None, five()));
        assert_eq!(
            written(json!({"max_tokens": 9, "max_completion_tokens": null})),
            (five(), None)
        );
        assert_eq!(
            written(json!({"max_tokens": 9, "max_completion_tokens": 8})),
            (five(), five())
        );
    }

    #[test]
    fn other_stream_options_survive() {
        let mut body =
            hi(json!({"stream_options": {"include_obfuscation": false, "include_usage": false}}));
        ask_for_usage(&mut body);
        assert_eq!(
            body["stream_options"],
            json!({"include_obfuscation": false, "include_usage": true})
        );
    }

    proptest! {
        #[test]
        fn the_bound_is_never_below_a_byte_level_count(
            texts in proptest::collection::vec(".{0,40}", 1..5),
            name in ".{0,10}",
            as_parts in any::<bool>(),
        ) {
            let content = |text: &String| if as_parts { json!([{"type": "text", "text": text}]) } else { json!(text) };
            let messages: Vec<Value> = texts
                .iter()
                .map(|text| json!({"role": "user", "name": name, "content": content(text)}))
                .collect();
            let body = hi(json!({ "messages": messages }));
            // the worst byte-level tokenizer: one token a byte, and markers of 3 tokens around each message
            let worst: u64 = texts.iter().map(|text| (text.len() + name.len() + 6) as u64).sum();
            prop_assert!(bound(&body).input_tokens >= worst + 3);
        }
    }
}
