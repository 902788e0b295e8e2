//! Request bodies: JSON to a [`Wish`], or to an error that names the field.
//!
//! A field that would change the answer and is not served is refused, and so is one that is not known: to ignore it
//! would be an answer to another request.

use seatbelt_schemas::json;
use seatbelt_tokens::{Chat, MessagesError, PromptError, TextStream};
use serde_json::{Map, Value};

pub(super) use self::{
    embedding::EmbeddingWish,
    sampling::{EndsWish, SamplingWish},
    shape::ShapeWish,
};
use super::error::ErrorAnswer;
use crate::model::Model;

mod embedding;
mod sampling;
mod shape;
mod unserved;

/// Most answers of one request.
const CHOICES_MAX: usize = 128;
const STOPS_MAX: usize = 4;
const STOP_BYTES_MAX: usize = 512;

/// Which API is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Chat,
    Completion,
}

/// What the answer continues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    Chat(Chat),
    Text(String),
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Bytes of its text, without what a template adds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Chat(chat) => chat.bytes(),
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        }
    }

    /// Whether an answer is more of the same text.
    pub(super) fn continues(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Tokens(_))
    }

    /// The tools that the answer may call.
    pub(super) fn tools(&self) -> Option<&Value> {
        match self {
            Self::Chat(chat) => chat.tools.as_ref(),
            Self::Text(_) | Self::Tokens(_) => None,
        }
    }

    /// What it is shown as before its answer.
    pub(super) fn shown(&self, model: &Model) -> String {
        match self {
            Self::Chat(_) => String::new(),
            Self::Text(text) => text.clone(),
            Self::Tokens(tokens) => {
                let mut text = TextStream::new(model.tokenizer.clone());
                let pieces: String = tokens.iter().map(|token| text.push(*token)).collect();
                pieces + &text.finish()
            }
        }
    }

    pub(super) fn tokens(&self, model: &Model) -> Result<Vec<u32>, PromptError> {
        match self {
            Self::Chat(chat) => model.chat_prompt(chat),
            Self::Text(text) => model.plain_prompt(text),
            Self::Tokens(tokens) => Ok(tokens.clone()),
        }
    }
}

/// A request, understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    pub(super) model: String,
    /// At least one, each answered by itself.
    pub(super) prompts: Vec<Prompt>,
    /// Answers to each.
    pub(super) choices: usize,
    /// The prompt stands before each answer.
    pub(super) echo: bool,
    pub(super) max_output: Option<usize>,
    pub(super) sampling: SamplingWish,
    pub(super) stops: Vec<String>,
    pub(super) ends: EndsWish,
    /// What the answer has to look like.
    pub(super) shape: ShapeWish,
    /// No second call of a tool in one answer.
    pub(super) one_call: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Wish {
    pub(super) fn read(dialect: Dialect, body: &[u8]) -> Result<Self, ErrorAnswer> {
        let body = object(body)?;
        let body = Fields(&body);
        body.refuse_unserved()?;
        unserved::refuse(body.0)?;
        let stream = body.flag("stream")?.unwrap_or(false);
        let model = body.model()?;
        let prompts = match dialect {
            Dialect::Chat => vec![Prompt::Chat(body.chat()?)],
            Dialect::Completion => body.texts("prompt")?,
        };
        Ok(Self {
            model,
            choices: body.choices(&prompts)?,
            prompts,
            echo: body.echo(dialect)?,
            max_output: body.max_output()?,
            sampling: SamplingWish::read(dialect, &body)?,
            stops: body.stops()?,
            ends: EndsWish::read(&body)?,
            shape: ShapeWish::read(&body)?,
            one_call: body.flag("parallel_tool_calls")? == Some(false),
            stream,
            include_usage: stream && body.include_usage()?,
        })
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ErrorAnswer> {
    let value = json::from_slice(body)
        .map_err(|error| ErrorAnswer::invalid_body(format!("the body is not JSON: {error}")))?;
    match value {
        Value::Object(body) => Ok(body),
        _ => Err(ErrorAnswer::invalid_body("the body is not a JSON object")),
    }
}

/// A JSON object, read field by field. An explicit null is as good as absent.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn model(&self) -> Result<String, ErrorAnswer> {
        match self.get("model") {
            Some(Value::String(name)) if !name.is_empty() => Ok(name.clone()),
            Some(_) => Err(ErrorAnswer::invalid_value("model", "a string")),
            None => Err(ErrorAnswer::missing_model()),
        }
    }

    fn refuse_unserved(&self) -> Result<(), ErrorAnswer> {
        let functions = self.get("functions");
        if functions.is_some_and(|list| list.as_array().is_none_or(|list| !list.is_empty())) {
            let message = "functions are not served: say tools";
            return Err(ErrorAnswer::unsupported("functions", message));
        }
        Ok(())
    }

    /// Answers to each prompt.
    fn choices(&self, prompts: &[Prompt]) -> Result<usize, ErrorAnswer> {
        let wanted =
            || ErrorAnswer::invalid_value("n", &format!("from 1 to {CHOICES_MAX} answers in all"));
        let count = self.whole("n")?.unwrap_or(1);
        if self
            .whole("best_of")?
            .is_some_and(|best_of| best_of != count)
        {
            let message = "which of several answers is the best is not found out here: leave best_of out, or say what n says";
            return Err(ErrorAnswer::unsupported("best_of", message));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        match count.checked_mul(prompts.len()) {
            Some(all) if (1..=CHOICES_MAX).contains(&all) => Ok(count),
            _ if count == 1 => {
                let wanted = format!("up to {CHOICES_MAX} prompts");
                Err(ErrorAnswer::invalid_value("prompt", &wanted))
            }
            _ => Err(wanted()),
        }
    }

    fn echo(&self, dialect: Dialect) -> Result<bool, ErrorAnswer> {
        let echo = self.flag("echo")?.unwrap_or(false);
        let no = |message: &'static str| Err(ErrorAnswer::unsupported("echo", message));
        match dialect {
            Dialect::Chat if echo => no("a chat is not shown again: leave echo out"),
            Dialect::Completion if echo && self.get("logprobs").is_some() => {
                no("how likely the tokens of a prompt are is not told: leave echo or logprobs out")
            }
            _ => Ok(echo),
        }
    }

    fn whole(&self, name: &'static str) -> Result<Option<u64>, ErrorAnswer> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        counted(value)
            .map(Some)
            .ok_or_else(|| ErrorAnswer::invalid_value(name, "a whole number"))
    }

    fn flag(&self, name: &'static str) -> Result<Option<bool>, ErrorAnswer> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| ErrorAnswer::invalid_value(name, "true or false"))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the value is within a small range, and f32 is what is used"
    )]
    fn number(
        &self,
        name: &'static str,
        least: f64,
        most: f64,
    ) -> Result<Option<f32>, ErrorAnswer> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .filter(|number| (least..=most).contains(number));
        let number = number.ok_or_else(|| {
            ErrorAnswer::invalid_value(name, &format!("a number from {least} to {most}"))
        })?;
        Ok(Some(number as f32))
    }

    /// The smaller of the two spellings.
    fn max_output(&self) -> Result<Option<usize>, ErrorAnswer> {
        let mut least: Option<usize> = None;
        for name in ["max_tokens", "max_completion_tokens"] {
            let Some(tokens) = self.whole(name)? else {
                continue;
            };
            if tokens == 0 {
                return Err(ErrorAnswer::invalid_value(name, "at least 1"));
            }
            let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
            least = Some(least.map_or(tokens, |least| least.min(tokens)));
        }
        Ok(least)
    }

    fn stops(&self) -> Result<Vec<String>, ErrorAnswer> {
        let wanted = || {
            ErrorAnswer::invalid_value("stop", "a string or up to 4 strings of 1 to 512 bytes each")
        };
        let stops = match self.get("stop") {
            None => return Ok(Vec::new()),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(Value::Array(stops)) => {
                let texts: Option<Vec<String>> = stops
                    .iter()
                    .map(|stop| stop.as_str().map(str::to_owned))
                    .collect();
                texts.ok_or_else(wanted)?
            }
            Some(_) => return Err(wanted()),
        };
        let sound = stops.len() <= STOPS_MAX
            && stops
                .iter()
                .all(|stop| (1..=STOP_BYTES_MAX).contains(&stop.len()));
        if sound { Ok(stops) } else { Err(wanted()) }
    }

    fn include_usage(&self) -> Result<bool, ErrorAnswer> {
        match self.get("stream_options") {
            None => Ok(false),
            Some(Value::Object(options)) => {
                Ok(Fields(options).flag("include_usage")?.unwrap_or(false))
            }
            Some(_) => Err(ErrorAnswer::invalid_value("stream_options", "an object")),
        }
    }

    fn chat(&self) -> Result<Chat, ErrorAnswer> {
        let list = self.get("messages").and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .try_for_each(unserved::refuse_functions)?;
        Chat::read(|name| self.get(name)).map_err(|error| match error {
            MessagesError::Invalid(wanted) => ErrorAnswer::invalid_value("messages", wanted),
            MessagesError::Unsupported(problem) => ErrorAnswer::unsupported("messages", problem),
            MessagesError::Tools(wanted) => ErrorAnswer::invalid_value("tools", wanted),
        })
    }

    /// A text or a list of tokens, or several of either.
    fn texts(&self, name: &'static str) -> Result<Vec<Prompt>, ErrorAnswer> {
        let wanted =
            || ErrorAnswer::invalid_value(name, "a string, a list of tokens, or several of either");
        let one = |value: &Value| match value {
            Value::String(text) => Some(Prompt::Text(text.clone())),
            Value::Array(tokens) => tokens_of(tokens),
            _ => None,
        };
        let prompts = match self.get(name) {
            Some(Value::Array(list)) if !list.iter().any(Value::is_number) => {
                list.iter().map(one).collect::<Option<Vec<Prompt>>>()
            }
            Some(value) => one(value).map(|prompt| vec![prompt]),
            None => None,
        };
        (prompts.filter(|prompts| !prompts.is_empty())).ok_or_else(wanted)
    }
}

/// Beyond this not every whole number is a float.
const WHOLE_FLOAT_MAX: f64 = 9_007_199_254_740_992.0;

/// A whole number, written as one or as a fraction of none: `10.0`, as languages without integers write it, and as
/// gateways take it.
fn whole_number(value: &Value) -> Option<i128> {
    let of_float = || {
        let float = value.as_f64()?;
        let is_exact = float.fract() == 0.0 && float.abs() <= WHOLE_FLOAT_MAX;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "it is whole, and within what a float holds exactly"
        )]
        is_exact.then_some(float as i128)
    };
    let unsigned = value.as_u64().map(i128::from);
    let signed = || value.as_i64().map(i128::from);
    unsigned.or_else(signed).or_else(of_float)
}

/// The same of what is counted.
fn counted(value: &Value) -> Option<u64> {
    u64::try_from(whole_number(value)?).ok()
}

fn tokens_of(list: &[Value]) -> Option<Prompt> {
    let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
    list.iter()
        .map(token)
        .collect::<Option<Vec<u32>>>()
        .map(Prompt::Tokens)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<Wish, ErrorAnswer> {
        Wish::read(Dialect::Chat, body.to_string().as_bytes())
    }

    fn with(name: &str, value: Value) -> Value {
        let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
        body[name] = value;
        body
    }

    #[test]
    fn json_in_a_text_stays_a_text_whatever_its_field_is_called() {
        let hidden = r#"{"x": {"$serde_json::private::RawValue": "[{},{}]"}}"#;
        let read = object(hidden.as_bytes()).unwrap();
        assert!(read["x"].is_object());
    }

    #[test]
    fn a_full_body_is_understood() {
        let body = json!({
            "model": "m",
            "messages": [
                { "role": "system", "content": [{ "type": "text", "text": "be " }, { "type": "text", "text": "brief" }] },
                { "role": "assistant", "content": null },
                { "role": "user", "content": "hi", "name": "ann" },
            ],
            "max_tokens": 9, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": -1,
            "stop": ["a", "b"], "stream": true, "stream_options": { "include_usage": true }, "n": 1, "made_up": null,
        });
        let wish = read(&body).unwrap();
        let [Prompt::Chat(Chat { messages, .. })] = wish.prompts.as_slice() else {
            panic!("a chat")
        };
        assert_eq!(messages[0].content, "be brief");
        assert_eq!(
            (messages[1].content.as_str(), messages[2].name.as_deref()),
            ("", Some("ann"))
        );
        assert_eq!(
            (wish.max_output, wish.sampling.seed, wish.stops.len()),
            (Some(7), Some(u64::MAX), 2)
        );
        assert!(wish.stream && wish.include_usage);
    }

    #[test]
    fn an_explicit_null_is_as_good_as_absent() {
        for name in [
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "stop",
            "seed",
            "n",
            "stream",
            "stream_options",
        ] {
            assert!(read(&with(name, Value::Null)).is_ok(), "{name}");
        }
    }

    #[test]
    fn bad_values_are_errors_that_name_the_field() {
        for (name, value) in [
            ("max_tokens", json!(-1)),
            ("max_tokens", json!(1.5)),
            ("max_tokens", json!("5")),
            ("max_tokens", json!(0)),
            ("max_completion_tokens", json!(18_446_744_073_709_551_616.0)),
            ("temperature", json!(3)),
            ("top_p", json!(-0.1)),
            ("seed", json!("x")),
            ("stop", json!(["a", "b", "c", "d", "e"])),
            ("stop", json!("")),
            ("n", json!(129)),
            ("n", json!(0)),
            ("echo", json!(true)),
            ("stream", json!("yes")),
            ("logprobs", json!(5)),
            ("top_logprobs", json!(2)),
            ("top_k", json!(-2)),
            ("top_k", json!(1.5)),
            ("min_p", json!(1.5)),
            ("frequency_penalty", json!(2.5)),
            ("presence_penalty", json!("x")),
            ("repetition_penalty", json!(0)),
            ("logit_bias", json!({ "x": 1 })),
            ("logit_bias", json!({ "1": 101 })),
            ("logit_bias", json!([1])),
            ("min_tokens", json!(-1)),
            ("stop_token_ids", json!(["x"])),
            ("ignore_eos", json!(1)),
            ("tools", json!([{}])),
            ("tools", json!({})),
            ("functions", json!([{}])),
            ("tool_choice", json!("required")),
            ("tool_choice", json!({ "type": "function" })),
            ("tool_choice", json!("always")),
            ("response_format", json!({ "type": "xml" })),
            ("response_format", json!({ "type": "json_schema" })),
            ("response_format", json!("json_object")),
            ("ignore_eos", json!(5)),
            ("messages", json!([])),
            ("messages", json!([{ "content": "no role" }])),
            (
                "messages",
                json!([{ "role": "user", "content": [{ "type": "image_url" }] }]),
            ),
        ] {
            let error = read(&with(name, value.clone())).unwrap_err().json();
            assert_eq!(error["error"]["param"], name, "{value}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_fraction_of_none() {
        let as_whole = |dialect, body: &str, said: &[(&str, i64)]| {
            let read = |float: bool| {
                let fields = said.iter().map(|(name, number)| match float {
                    true => format!(", \"{name}\": {number}.0"),
                    false => format!(", \"{name}\": {number}"),
                });
                let body = format!("{{\"model\": \"m\", {body}{}}}", fields.collect::<String>());
                Wish::read(dialect, body.as_bytes()).unwrap()
            };
            assert_eq!(read(true), read(false));
        };
        let chat = r#""messages": [{"role": "user", "content": "hi"}], "logprobs": true"#;
        let both = [("n", 2), ("max_tokens", 10), ("seed", -7), ("top_k", -1)];
        let of_chats = [
            ("top_logprobs", 3),
            ("min_tokens", 4),
            ("max_completion_tokens", 9),
        ];
        as_whole(Dialect::Chat, chat, &[&both[..], &of_chats].concat());
        let of_completions = [("best_of", 2), ("logprobs", 3)];
        let all = [&both[..], &of_completions].concat();
        as_whole(Dialect::Completion, r#""prompt": "hi""#, &all);
        for wrong in [
            json!(1.5),
            json!(1e300),
            json!(-1.0),
            json!(9_007_199_254_740_994.0),
        ] {
            assert!(read(&with("n", wrong.clone())).is_err(), "{wrong}");
        }
        let mut shaped = with("min_tokens", json!(5.0));
        shaped["response_format"] = json!({ "type": "json_object" });
        let error = read(&shaped).unwrap_err().json();
        assert_eq!(error["error"]["param"], "min_tokens");
    }

    #[test]
    fn what_is_no_request_at_all_is_an_error() {
        for body in ["", "{", "[]", "7", "\u{0}"] {
            assert!(
                Wish::read(Dialect::Chat, body.as_bytes()).is_err(),
                "{body:?}"
            );
        }
        let error = read(&json!({ "messages": [] })).unwrap_err().json();
        assert_eq!(error["error"]["code"], "missing_model_field");
    }

    fn completion(change: &Value) -> Result<Wish, ErrorAnswer> {
        let mut body = json!({ "model": "m" });
        let fields = change.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        Wish::read(Dialect::Completion, body.to_string().as_bytes())
    }

    #[test]
    fn a_completion_takes_texts_and_lists_of_tokens() {
        let read =
            |prompt: Value| completion(&json!({ "prompt": prompt })).map(|wish| wish.prompts);
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(read(json!("hi")).unwrap(), [text("hi")]);
        assert_eq!(read(json!(["hi"])).unwrap(), [text("hi")]);
        assert_eq!(read(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(read(json!([[1, 2]])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(read(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        let mixed = [Prompt::Tokens(vec![1]), text("b")];
        assert_eq!(read(json!([[1], "b"])).unwrap(), mixed);
        for wrong in [
            json!({}),
            json!([]),
            json!([1, "a"]),
            json!(7),
            json!([-1]),
            json!(null),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_are_counted_over_all_prompts() {
        let read = |change: &Value| {
            let read = completion(change).map(|wish| (wish.prompts.len(), wish.choices));
            read.map_err(|error| error.json()["error"]["param"].as_str().unwrap().to_owned())
        };
        let two = json!(["a", "b"]);
        assert_eq!(read(&json!({ "prompt": two })), Ok((2, 1)));
        assert_eq!(
            read(&json!({ "prompt": two, "n": 64, "best_of": 64 })),
            Ok((2, 64))
        );
        for (change, field) in [
            (json!({ "prompt": two, "n": 65 }), "n"),
            (json!({ "prompt": two, "n": 0 }), "n"),
            (json!({ "prompt": "a", "n": u64::MAX }), "n"),
            (json!({ "prompt": vec!["a"; 129] }), "prompt"),
            (json!({ "prompt": "a", "best_of": 2 }), "best_of"),
            (
                json!({ "prompt": "a", "echo": true, "logprobs": 1 }),
                "echo",
            ),
        ] {
            assert_eq!(read(&change), Err(field.to_owned()), "{change}");
        }
        let error = super::tests::read(&with("echo", json!(true))).unwrap_err();
        assert_eq!(error.json()["error"]["param"], "echo", "of a chat");
    }
}
