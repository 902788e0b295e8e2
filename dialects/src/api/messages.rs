//! `/v1/messages`, as Anthropic made it.

use std::borrow::Cow;

use seatbelt_schemas::{ids::EndUserId, usage::Usage};
use serde_json::{Value, json};

use super::MaxField;
use crate::{
    allow::{Profile, Shape},
    ask::Ask,
    fields::{self, FieldError, Fields, flag, messages, whole},
    sse::SseEvent,
    told::{
        Body, COUNT_MAX, Counts, MessageStart, Odd, Part, StopReason, StreamTold, count, finish,
        parsed,
    },
};

mod allowed;

/// Where an upstream serves it: its base URL has no `/v1`.
pub(super) const PATH: &str = "v1/messages";
pub(super) const BETAS: Option<&[&str]> = Some(allowed::BETAS);
pub(super) const USAGE_HAS_TO_BE_ASKED: bool = false;
pub(super) use allowed::WHY;
pub(super) use allowed::thinks_beyond_the_maximum as unbounded;

pub(super) fn shapes(profile: Profile) -> [Shape; 2] {
    match profile {
        Profile::Anthropic => [allowed::BODY, allowed::ANTHROPIC],
        Profile::OpenAi | Profile::Generic => [allowed::BODY, &[]],
    }
}

pub(super) fn ask(body: &Fields) -> Result<Ask, FieldError> {
    let missing = || {
        FieldError::invalid(
            "max_tokens",
            "is missing: set the output maximum, at least 1",
        )
    };
    let mut ask = Ask {
        choices: 1,
        max: Some(whole(body, "max_tokens")?.ok_or_else(missing)?),
        keeps_max: body.contains_key("thinking"),
        stream: flag(body, "stream")?,
        end_user: end_user(body),
        ..Ask::default()
    };
    for (n, message) in messages(body)?.iter().enumerate() {
        ask.message(n, message)?;
    }
    if let Some(system) = body.get("system") {
        ask.content("system", system)?;
    }
    ask.tools(body)?;
    ask.other_fields(body);
    Ok(ask)
}

fn end_user(body: &Fields) -> Option<EndUserId> {
    fields::end_user(body.get("metadata").and_then(|told| told.get("user_id")))
}

/// There is one field for it, and every client has to send it.
pub(super) fn set_max(body: &mut Fields, max: u64, _field: MaxField) {
    body.insert("max_tokens".to_owned(), json!(max));
}

/// Every stream tells its usage.
pub(super) fn want_usage(_body: &mut Fields) {}

pub(super) fn counts(report: &Value) -> Result<Counts, Odd> {
    let mut counts = flat(report)?;
    // a compaction or an advisor is charged beside the answer, whose counts stand outside
    let mut all = Counts::default();
    for pass in report
        .get("iterations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let pass = flat(pass)?;
        let sum = |one: Option<u64>, other: Option<u64>| {
            one.map_or(other, |one| Some(one.saturating_add(other.unwrap_or(0))))
        };
        all.input = sum(all.input, pass.input);
        all.output = sum(all.output, pass.output);
        all.cached = all.cached.saturating_add(pass.cached);
        all.written = all.written.saturating_add(pass.written);
        all.written_short = sum(all.written_short, pass.written_short);
    }
    counts.merge(all);
    Ok(counts)
}

fn flat(report: &Value) -> Result<Counts, Odd> {
    let part = |pointer| Ok::<_, Odd>(count(report, pointer)?.unwrap_or(0));
    let short = count(report, "/cache_creation/ephemeral_5m_input_tokens")?;
    let long = count(report, "/cache_creation/ephemeral_1h_input_tokens")?;
    let split = short.unwrap_or(0) + long.unwrap_or(0);
    Ok(Counts {
        input: count(report, "/input_tokens")?,
        cached: part("/cache_read_input_tokens")?,
        written: part("/cache_creation_input_tokens")?.max(split),
        written_short: short.or(long.map(|_| 0)),
        output: count(report, "/output_tokens")?,
        ..Counts::default()
    })
}

/// Cached and written input stand beside the rest.
pub(super) fn usage(counts: Counts) -> Option<Usage> {
    let (input, output) = (counts.input?, counts.output?);
    Some(
        counts.parts_of(Usage {
            input_tokens: input
                .checked_add(counts.cached)?
                .checked_add(counts.written)
                .filter(|input| *input <= COUNT_MAX)?,
            output_tokens: output,
            ..Usage::default()
        }),
    )
}

pub(super) fn event(told: &mut StreamTold, event: &SseEvent) -> Part {
    let Ok(body) = serde_json::from_slice::<Body<'_>>(&event.data) else {
        told.unread(event);
        return Part::Content;
    };
    let kind: Cow<'_, str> = parsed(body.kind);
    if kind.starts_with("content_block") {
        told.content(body.delta);
    }
    let within: MessageStart<'_> = parsed(body.message);
    let mut reported = told.report(within.usage);
    reported |= told.report(body.usage);
    if reported {
        told.content_since = false;
    }
    if kind == "message_delta" {
        let ending: StopReason<'_> = parsed(body.delta);
        told.finish = finish(ending.stop_reason).or(told.finish.take());
        let output = body.usage.is_some_and(|raw| {
            let report = parsed::<Value>(Some(raw));
            matches!(count(&report, "/output_tokens"), Ok(Some(_)))
        });
        told.closed |= output;
    }
    match kind.as_ref() {
        "message_stop" => Part::End,
        "error" => Part::Error,
        _ => Part::Content,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(extra: &Value) -> Fields {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let fields = body.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        fields.clone()
    }

    #[test]
    fn what_a_body_asks_for_is_read() {
        let asked = ask(&body(&json!({
            "max_tokens": 9, "stream": true, "system": "be kind", "metadata": {"user_id": "u"},
        })));
        let asked = asked.unwrap();
        assert_eq!((asked.choices, asked.max), (1, Some(9)));
        assert!(asked.stream && !asked.keeps_max);
        assert_eq!(asked.end_user.unwrap().as_str(), "u");
        assert_eq!((asked.text_bytes, asked.framed), (9, 1));
    }

    #[test]
    fn an_output_maximum_has_to_be_sent() {
        for odd in [
            json!({}),
            json!({"max_tokens": null}),
            json!({"max_tokens": 0}),
        ] {
            assert_eq!(ask(&body(&odd)).unwrap_err().param, "max_tokens");
        }
    }

    #[test]
    fn a_thinking_budget_keeps_its_maximum_and_tools_bring_their_instructions() {
        let plain = ask(&body(&json!({"max_tokens": 9}))).unwrap();
        let thinks = json!({"max_tokens": 9, "thinking": {"type": "enabled", "budget_tokens": 5}});
        assert!(ask(&body(&thinks)).unwrap().keeps_max);
        assert!(!plain.with_tools);
        let none = json!({"max_tokens": 9, "tools": []});
        assert!(!ask(&body(&none)).unwrap().with_tools);
        let one = json!({"max_tokens": 9, "tools": [{"name": "f"}]});
        assert!(ask(&body(&one)).unwrap().with_tools);
    }
}
