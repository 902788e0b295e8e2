//! How a request wants its tokens chosen, and what ends its answer.

use serde_json::Value;

use super::{super::error::ErrorAnswer, Dialect, Fields, whole_number};
use crate::{
    model::{Model, SamplingDefaults},
    sampler::{Leanings, Sampling},
};

/// Most tokens told beside each chosen one.
const LIKELIEST_MAX: u64 = 20;
/// Most tokens of `logit_bias`.
const BIAS_MAX: usize = 1024;
/// Most of `stop_token_ids`.
const STOP_TOKENS_MAX: usize = 64;

/// What a request says; what it leaves out is the model's.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in super::super) struct SamplingWish {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    pub(super) seed: Option<u64>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    bias: Vec<(u32, f32)>,
    min_tokens: usize,
    logprobs: Option<usize>,
}

impl SamplingWish {
    pub(super) fn read(dialect: Dialect, body: &Fields<'_>) -> Result<Self, ErrorAnswer> {
        let min_tokens = body.whole("min_tokens")?.unwrap_or(0);
        Ok(Self {
            temperature: body.number("temperature", 0.0, 2.0)?,
            top_p: body.number("top_p", 0.0, 1.0)?,
            top_k: top_k(body)?,
            min_p: body.number("min_p", 0.0, 1.0)?,
            seed: seed(body)?,
            frequency_penalty: body.number("frequency_penalty", -2.0, 2.0)?,
            presence_penalty: body.number("presence_penalty", -2.0, 2.0)?,
            repetition_penalty: body.number("repetition_penalty", 0.01, 10.0)?,
            bias: bias(body)?,
            min_tokens: usize::try_from(min_tokens).unwrap_or(usize::MAX),
            logprobs: match dialect {
                Dialect::Chat => chat_logprobs(body)?,
                Dialect::Completion => completion_logprobs(body)?,
            },
        })
    }

    /// Whether it is to be told how likely the tokens were.
    pub(in super::super) fn tells_logprobs(&self) -> bool {
        self.logprobs.is_some()
    }

    /// With a model's defaults, and any random number where no seed was said.
    pub(in super::super) fn over(
        self,
        defaults: SamplingDefaults,
        random: impl FnOnce() -> u64,
    ) -> Sampling {
        let top_k = self.top_k.map(|count| usize::try_from(count).unwrap_or(0));
        Sampling {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            top_k: top_k.or(defaults.top_k).filter(|count| *count > 0),
            min_p: self.min_p.unwrap_or(0.0),
            seed: self.seed.unwrap_or_else(random),
            leanings: Leanings {
                frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
                presence_penalty: self.presence_penalty.unwrap_or(0.0),
                repetition_penalty: (self.repetition_penalty)
                    .unwrap_or(defaults.repetition_penalty),
                bias: self.bias,
                min_tokens: self.min_tokens,
            },
            logprobs: self.logprobs,
        }
    }
}

/// Which tokens end an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct EndsWish {
    ignore_eos: bool,
    more: Vec<u32>,
}

impl EndsWish {
    pub(super) fn read(body: &Fields<'_>) -> Result<Self, ErrorAnswer> {
        let wanted = || ErrorAnswer::invalid_value("stop_token_ids", "a list of up to 64 tokens");
        let more = match body.get("stop_token_ids") {
            None => Vec::new(),
            Some(Value::Array(tokens)) if tokens.len() <= STOP_TOKENS_MAX => {
                let token = |token: &Value| u32::try_from(token.as_u64()?).ok();
                let tokens: Option<Vec<u32>> = tokens.iter().map(token).collect();
                tokens.ok_or_else(wanted)?
            }
            Some(_) => return Err(wanted()),
        };
        Ok(Self {
            ignore_eos: body.flag("ignore_eos")?.unwrap_or(false),
            more,
        })
    }

    /// The tokens, the model's own among them.
    pub(in super::super) fn of(&self, model: &Model) -> Vec<u32> {
        let own = model.eos.iter().filter(|_| !self.ignore_eos);
        own.chain(&self.more).copied().collect()
    }
}

/// -1 and 0 are all.
fn top_k(body: &Fields<'_>) -> Result<Option<i64>, ErrorAnswer> {
    let Some(value) = body.get("top_k") else {
        return Ok(None);
    };
    let count = whole_number(value).filter(|count| *count >= -1);
    let count = count.and_then(|count| i64::try_from(count).ok());
    count
        .map(Some)
        .ok_or_else(|| ErrorAnswer::invalid_value("top_k", "a whole number, -1 or 0 for all"))
}

fn seed(body: &Fields<'_>) -> Result<Option<u64>, ErrorAnswer> {
    let Some(value) = body.get("seed") else {
        return Ok(None);
    };
    let seed = whole_number(value).and_then(|seed| {
        let negative = || i64::try_from(seed).ok().map(i64::cast_unsigned);
        u64::try_from(seed).ok().or_else(negative)
    });
    seed.map(Some)
        .ok_or_else(|| ErrorAnswer::invalid_value("seed", "a whole number"))
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the value is within a small range, and f32 is what is used"
)]
fn bias(body: &Fields<'_>) -> Result<Vec<(u32, f32)>, ErrorAnswer> {
    let wanted = "an object of at most 1024 tokens, each with a number from -100 to 100";
    let wanted = || ErrorAnswer::invalid_value("logit_bias", wanted);
    let tokens = match body.get("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(tokens)) if tokens.len() <= BIAS_MAX => tokens,
        Some(_) => return Err(wanted()),
    };
    let one = |(token, bias): (&String, &Value)| {
        let bias = bias.as_f64().filter(|bias| (-100.0..=100.0).contains(bias));
        Some((token.parse().ok()?, bias? as f32))
    };
    let all: Option<Vec<(u32, f32)>> = tokens.iter().map(one).collect();
    all.ok_or_else(wanted)
}

fn chat_logprobs(body: &Fields<'_>) -> Result<Option<usize>, ErrorAnswer> {
    let told = body.flag("logprobs")?.unwrap_or(false);
    let count = likeliest(body, "top_logprobs")?;
    match count {
        Some(count) if !told && count > 0 => Err(ErrorAnswer::invalid_value(
            "top_logprobs",
            "together with logprobs: true",
        )),
        count => Ok(told.then_some(count.unwrap_or(0))),
    }
}

fn completion_logprobs(body: &Fields<'_>) -> Result<Option<usize>, ErrorAnswer> {
    if body.whole("top_logprobs")?.is_some_and(|count| count > 0) {
        let message = "top_logprobs is of chats: a completion says logprobs: 5";
        return Err(ErrorAnswer::unsupported("top_logprobs", message));
    }
    match body.get("logprobs") {
        Some(Value::Bool(false)) => Ok(None),
        _ => likeliest(body, "logprobs"),
    }
}

fn likeliest(body: &Fields<'_>, name: &'static str) -> Result<Option<usize>, ErrorAnswer> {
    let Some(count) = body.whole(name)? else {
        return Ok(None);
    };
    if count > LIKELIEST_MAX {
        return Err(ErrorAnswer::invalid_value(name, "at most 20"));
    }
    Ok(usize::try_from(count).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEFAULTS: SamplingDefaults = SamplingDefaults {
        temperature: 0.7,
        top_p: 0.9,
        top_k: Some(50),
        repetition_penalty: 1.2,
    };

    fn read(dialect: Dialect, body: &Value) -> Result<Sampling, ErrorAnswer> {
        let fields = Fields(body.as_object().unwrap());
        SamplingWish::read(dialect, &fields).map(|wish| wish.over(DEFAULTS, || 7))
    }

    #[test]
    fn what_is_said_counts_and_else_the_model_s_own() {
        let sampling = read(Dialect::Chat, &json!({})).unwrap();
        let own = (
            sampling.temperature,
            sampling.top_k,
            sampling.leanings.repetition_penalty,
        );
        assert_eq!((own, sampling.seed), ((0.7, Some(50), 1.2), 7));
        let all = json!({
            "temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 9, "frequency_penalty": 0.5,
            "presence_penalty": -1, "repetition_penalty": 1, "logit_bias": { "5": -100, "6": 1.5 },
            "min_tokens": 4, "logprobs": true, "top_logprobs": 2,
        });
        let expected = Sampling {
            temperature: 1.0,
            top_p: 0.5,
            top_k: Some(3),
            min_p: 0.1,
            seed: 9,
            leanings: Leanings {
                frequency_penalty: 0.5,
                presence_penalty: -1.0,
                repetition_penalty: 1.0,
                bias: vec![(5, -100.0), (6, 1.5)],
                min_tokens: 4,
            },
            logprobs: Some(2),
        };
        assert_eq!(read(Dialect::Chat, &all).unwrap(), expected);
        for all in [-1, 0] {
            let sampling = read(Dialect::Chat, &json!({ "top_k": all })).unwrap();
            assert_eq!(sampling.top_k, None, "{all}");
        }
    }

    #[test]
    fn logprobs_are_asked_for_in_each_dialect_s_own_way() {
        let told = |dialect, body: Value| read(dialect, &body).map(|sampling| sampling.logprobs);
        let (chat, completion) = (Dialect::Chat, Dialect::Completion);
        assert_eq!(told(chat, json!({ "logprobs": true })).unwrap(), Some(0));
        let none = json!({ "logprobs": false, "top_logprobs": 0 });
        assert_eq!(told(chat, none).unwrap(), None);
        assert!(told(chat, json!({ "logprobs": true, "top_logprobs": 21 })).is_err());
        assert!(told(chat, json!({ "top_logprobs": 1 })).is_err());
        assert_eq!(told(completion, json!({ "logprobs": 0 })).unwrap(), Some(0));
        assert_eq!(told(completion, json!({ "logprobs": 5 })).unwrap(), Some(5));
        assert_eq!(told(completion, json!({})).unwrap(), None);
        assert!(told(completion, json!({ "logprobs": true })).is_err());
        assert!(told(completion, json!({ "top_logprobs": 3 })).is_err());
    }
}
