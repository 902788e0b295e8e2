//! `/v1/messages`, as Anthropic made it.

use seatbelt_schemas::{ids::EndUserId, usage::Usage};
use serde_json::{Value, json};

use super::MaxField;
use crate::{
    allow::{Profile, Shape},
    ask::{Ask, Measure},
    ends::{named_error, of_unread},
    fields::{self, FieldError, Fields, flag, messages, thinks, whole},
    raw::Pairs,
    sse::SseEvent,
    told::{Body, COUNT_MAX, Counts, Odd, Part, Report, StreamTold, finish, status_named, text},
};

mod allowed;

/// Where an upstream serves it: its base URL has no `/v1`.
pub(super) const PATH: &str = "v1/messages";
/// Each is known: a version says how fields are named and an answer is written, and what a metered body may
/// hold is listed whatever its version. The first is what Anthropic's own SDKs send.
pub(super) const VERSIONS: Option<&[&str]> = Some(&["2026-10-21", "2023-06-01", "2023-01-01"]);
pub(super) const BETAS: Option<&[&str]> = Some(allowed::BETAS);
pub(super) const USAGE_HAS_TO_BE_ASKED: bool = false;
pub(super) use allowed::thinks_beyond_the_maximum as unbounded;
pub(super) use allowed::{IMAGE, WHY};

pub(super) fn shapes(profile: Profile) -> [Shape; 2] {
    match profile {
        Profile::Anthropic => [allowed::BODY, allowed::ANTHROPIC],
        Profile::OpenAi | Profile::Generic => [allowed::BODY, &[]],
    }
}

pub(super) fn ask(body: &Fields, by: &mut dyn Measure) -> Result<Ask, FieldError> {
    let missing = || {
        FieldError::invalid(
            "max_tokens",
            "is missing: set the output maximum, at least 1",
        )
    };
    let mut ask = Ask {
        choices: 1,
        max: Some(whole(body, "max_tokens")?.ok_or_else(missing)?),
        keeps_max: thinks(body),
        stream: flag(body, "stream")?,
        long_writes: body.iter().any(|(name, value)| keeps_long(name, value)),
        end_user: end_user(body),
        ..Ask::default()
    };
    for (n, message) in messages(body)?.iter().enumerate() {
        ask.message(n, message, by)?;
    }
    if let Some(system) = body.get("system") {
        ask.content("system", system, by)?;
    }
    ask.tools(body, by)?;
    ask.text += ask.named_again.saturating_mul(ask.longest_tool);
    // instructions come with a schema too
    let format = body
        .get("output_config")
        .and_then(|told| told.get("format"));
    ask.with_tools |= format.is_some_and(|format| !format.is_null());
    ask.other_fields(body, by);
    Ok(ask)
}

/// Whether anything within asks the cache to keep it for longer than five minutes.
fn keeps_long(name: &str, value: &Value) -> bool {
    let for_long = |ttl: &Value| !ttl.is_null() && ttl != "5m";
    match value {
        Value::Object(fields) if name == "cache_control" => fields.get("ttl").is_some_and(for_long),
        Value::Object(fields) => fields.iter().any(|(name, value)| keeps_long(name, value)),
        Value::Array(items) => items.iter().any(|item| keeps_long("", item)),
        _ => false,
    }
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

pub(super) fn counts(report: &Report<'_>) -> Result<Counts, Odd> {
    let mut counts = flat(report)?;
    // a compaction or an advisor is charged beside the answer, whose counts stand outside
    let mut all = Counts::default();
    for pass in report.each("iterations") {
        let pass = flat(&pass)?;
        let sum = |one: Option<u64>, other: Option<u64>| {
            one.map_or(other, |one| Some(one.saturating_add(other.unwrap_or(0))))
        };
        all.input = sum(all.input, pass.input);
        all.output = sum(all.output, pass.output);
        all.cached = all.cached.saturating_add(pass.cached);
        all.written = all.written.saturating_add(pass.written);
        all.written_short = sum(all.written_short, pass.written_short);
        all.written_long = all.written_long.saturating_add(pass.written_long);
        all.reasoning = all.reasoning.saturating_add(pass.reasoning);
    }
    counts.merge(all);
    Ok(counts)
}

fn flat(report: &Report<'_>) -> Result<Counts, Odd> {
    let (mut short, mut long) = (None, None);
    if let Some(split) = report.within("cache_creation") {
        short = split.count("ephemeral_5m_input_tokens")?;
        long = split.count("ephemeral_1h_input_tokens")?;
    }
    let split = short.unwrap_or(0) + long.unwrap_or(0);
    let details = report.within("output_tokens_details");
    let thought = details.map(|details| details.part("thinking_tokens"));
    Ok(Counts {
        input: report.count("input_tokens")?,
        cached: report.part("cache_read_input_tokens")?,
        written: report.part("cache_creation_input_tokens")?.max(split),
        written_short: short.or(long.map(|_| 0)),
        written_long: long.unwrap_or(0),
        output: report.count("output_tokens")?,
        reasoning: thought.transpose()?.unwrap_or(0),
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
    let read = String::from_utf8_lossy(&event.data);
    let Some(body) = Body::read(&read) else {
        told.unread(event);
        return of_unread(event);
    };
    let kind = text(body.0.last("type"));
    told.served.answer(&body.0);
    let mut reported = told.reports(&body.0);
    for raw in body.0.all("message") {
        let message = Pairs::of(raw);
        told.served.answer(&message);
        reported |= told.reports(&message);
    }
    let early = body.0.all("message").map(Pairs::of);
    let early: Vec<_> = early
        .filter_map(|message| message.last("content"))
        .collect();
    if reported {
        told.content_since = false;
    }
    // after its report, which says nothing of it
    for content in early.into_iter().filter(|raw| raw.get() != "[]") {
        told.content(content);
    }
    if kind.starts_with("content_block") {
        let place = body.0.last("index").and_then(|raw| raw.get().parse().ok());
        for block in body.0.all("content_block").map(Pairs::of) {
            told.served.item(&block, place.unwrap_or(0));
        }
        for name in ["content_block", "delta"] {
            body.0.all(name).for_each(|raw| told.content(raw));
        }
    }
    if kind == "message_delta" {
        let ending = body.0.last("delta").map(Pairs::of).unwrap_or_default();
        told.finish = finish(ending.last("stop_reason")).or(told.finish.take());
        told.closed |= told.tells_output(&body.0);
    }
    match kind.as_str() {
        "message_stop" => Part::End,
        "error" => failed(told, &body),
        _ if named_error(event) => failed(told, &body),
        _ => Part::Content,
    }
}

fn failed(told: &mut StreamTold, body: &Body<'_>) -> Part {
    told.failure = status_named(&body.0);
    Part::Error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Bytes;

    fn ask(body: &Fields) -> Result<Ask, FieldError> {
        super::ask(body, &mut Bytes)
    }

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
        assert_eq!((asked.text, asked.framed), (9, 1));
    }

    #[test]
    fn a_cache_that_is_to_be_kept_for_long_is_found_at_any_depth() {
        let keeps = |extra: Value| {
            let mut body = body(&json!({"max_tokens": 9}));
            body.extend(extra.as_object().unwrap().clone());
            ask(&body).unwrap().long_writes
        };
        let for_time = |ttl: Value| json!({"type": "ephemeral", "ttl": ttl});
        assert!(!keeps(json!({"cache_control": {"type": "ephemeral"}})));
        assert!(!keeps(json!({"cache_control": for_time(json!("5m"))})));
        assert!(keeps(json!({"cache_control": for_time(json!("1h"))})));
        let tool = json!({"name": "f", "cache_control": for_time(json!("1h"))});
        assert!(keeps(json!({"tools": [tool]})));
        let result = json!([{"type": "tool_result", "content": [{"type": "text", "text": "a", "cache_control": for_time(json!("2h"))}]}]);
        assert!(keeps(
            json!({"messages": [{"role": "user", "content": result}]})
        ));
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

    #[test]
    fn a_tool_that_was_found_counts_once_more_wherever_it_was() {
        let text = |found: usize| {
            let tools = json!([{"name": "g"}, {"name": "f", "description": "x".repeat(500), "defer_loading": true}]);
            let found = vec![json!({"type": "tool_reference", "tool_name": "f"}); found];
            let result = json!([{"type": "tool_result", "tool_use_id": "1", "content": found}]);
            let messages = json!([{"role": "user", "content": result}]);
            let body = body(&json!({"max_tokens": 9, "tools": tools, "messages": messages}));
            ask(&body).unwrap().text
        };
        assert!(text(1) >= text(0) + 500);
        assert!(text(3) >= text(0) + 3 * 500);
    }

    #[test]
    fn a_schema_of_the_answer_counts_and_brings_its_instructions() {
        let long = "x".repeat(500);
        let format = json!({"type": "json_schema", "schema": {"title": long}});
        let asked = json!({"max_tokens": 9, "output_config": {"effort": "low", "format": format}});
        let asked = ask(&body(&asked)).unwrap();
        assert!(asked.with_tools && asked.text >= 500, "{asked:?}");
        let effort = json!({"max_tokens": 9, "output_config": {"effort": "low", "format": null}});
        assert!(!ask(&body(&effort)).unwrap().with_tools);
    }
}
