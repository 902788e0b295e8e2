//! `/v1/chat/completions`, as OpenAI made it and many servers speak it.

use bytes::Bytes;
use seatbelt_schemas::{ids::EndUserId, usage::Usage};
use serde_json::{Value, json};

use crate::{
    allow::{Found, Profile, Shape},
    ask::{Ask, Measure},
    ends::{named_error, of_unread},
    fields::{self, FieldError, Fields, choices, flag, messages, thinks, whole},
    sse::SseEvent,
    told::{Body, Counts, Odd, Part, Report, StreamTold, status_named},
};

mod allowed;

/// Where an upstream serves it: its base URL ends in `/v1`.
pub(super) const PATH: &str = "chat/completions";
/// No header of a client turns anything on.
pub(super) const VERSIONS: Option<&[&str]> = None;
pub(super) const BETAS: Option<&[&str]> = None;
pub(super) const USAGE_HAS_TO_BE_ASKED: bool = true;
pub(super) use allowed::{IMAGE, WHY};

/// Which field carries the output maximum when the client sent none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MaxField {
    /// `max_tokens`: every OpenAI-compatible server knows it.
    #[default]
    MaxTokens,
    /// `max_completion_tokens`: what newer OpenAI models insist on.
    MaxCompletionTokens,
}

pub(super) fn shapes(profile: Profile) -> [Shape; 2] {
    match profile {
        Profile::OpenAi => [allowed::BODY, allowed::OPENAI],
        Profile::Anthropic | Profile::Generic => [allowed::BODY, allowed::GENERIC],
    }
}

/// Every listed field has a bound.
pub(super) fn unbounded(_body: &Fields, _output_max: u64) -> Option<Found> {
    None
}

pub(super) fn ask(body: &Fields, by: &mut dyn Measure) -> Result<Ask, FieldError> {
    let choices = choices(body, &["n", "best_of"])?;
    let mut ask = Ask {
        choices,
        max: smaller(
            whole(body, "max_tokens")?,
            whole(body, "max_completion_tokens")?,
        ),
        keeps_max: choices > 1 || thinks(body),
        stream: flag(body, "stream")?,
        include_usage: include_usage(body)?,
        long_writes: keeps_long(body),
        end_user: end_user(body),
        ..Ask::default()
    };
    for (n, message) in messages(body)?.iter().enumerate() {
        ask.message(n, message, by)?;
    }
    ask.tools(body, by)?;
    ask.other_fields(body, by);
    Ok(ask)
}

fn end_user(body: &Fields) -> Option<EndUserId> {
    fields::end_user(body.get("user"))
}

fn keeps_long(body: &Fields) -> bool {
    let retention = body.get("prompt_cache_retention");
    retention.is_some_and(|kept| !kept.is_null() && kept != "in_memory" && kept != "in-memory")
}

/// Under whichever names the client used.
pub(super) fn set_max(body: &mut Fields, max: u64, field: MaxField) {
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

pub(super) fn want_usage(body: &mut Fields) {
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

pub(super) fn counts(report: &Report<'_>) -> Result<Counts, Odd> {
    let mut counts = Counts {
        input: report.count("prompt_tokens")?,
        cached: report.part("prompt_cache_hit_tokens")?,
        output: report.count("completion_tokens")?,
        total: report.part("total_tokens")?,
        ..Counts::default()
    };
    details(
        &mut counts,
        report,
        ["prompt_tokens_details", "completion_tokens_details"],
    )?;
    Ok(counts)
}

/// The parts of input and output, under the names that one of OpenAI's APIs has for their details.
pub(super) fn details(
    counts: &mut Counts,
    report: &Report<'_>,
    [input, output]: [&str; 2],
) -> Result<(), Odd> {
    if let Some(input) = report.within(input) {
        counts.cached = counts.cached.max(input.part("cached_tokens")?);
        counts.written = input.part("cache_write_tokens")?;
        if let Some(stays) = input.within("cache_write_tokens_details") {
            counts.written_short = stays.count("ttl_30m_tokens")?;
            counts.written_long = stays.part("ttl_12h_tokens")?;
        }
    }
    if let Some(output) = report.within(output) {
        counts.reasoning = output.part("reasoning_tokens")?;
    }
    Ok(())
}

/// Cached and written input are parts of the whole; some count reasoning in the total alone.
pub(super) fn usage(counts: Counts) -> Option<Usage> {
    let (input, output) = (counts.input?, counts.output?);
    Some(counts.parts_of(Usage {
        input_tokens: input,
        output_tokens: counts.output_with_hidden().unwrap_or(output),
        ..Usage::default()
    }))
}

pub(super) fn event(told: &mut StreamTold, event: &SseEvent) -> Part {
    if is_done(&event.data) {
        return Part::End;
    }
    let text = String::from_utf8_lossy(&event.data);
    let Some(body) = Body::read(&text) else {
        told.unread(event);
        return of_unread(event);
    };
    let choices = body.choices();
    told.served.answer(&body.0);
    let mut reported = told.reports(&body.0);
    for choice in &choices {
        reported |= told.reports_of(choice, choice.index());
    }
    for choice in &choices {
        told.choice(choice);
    }
    if reported {
        told.content_since = false;
        told.closed |= choices.is_empty() || told.finish.is_some();
    }
    if body.is_error() || named_error(event) {
        told.failure = status_named(&body.0);
        return Part::Error;
    }
    if choices.is_empty() && body.0.last("usage").is_some() {
        Part::UsageOnly
    } else {
        Part::Content
    }
}

fn is_done(data: &Bytes) -> bool {
    data.trim_ascii() == b"[DONE]"
}

pub(super) fn include_usage(body: &Fields) -> Result<bool, FieldError> {
    match body.get("stream_options") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Object(options)) => flag(options, "include_usage"),
        Some(_) => Err(FieldError::invalid("stream_options", "must be an object")),
    }
}

fn smaller(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ask::Bytes, fields::Fault};

    fn ask(body: &Fields) -> Result<Ask, FieldError> {
        super::ask(body, &mut Bytes)
    }

    fn object(value: Value) -> Fields {
        match value {
            Value::Object(map) => map,
            other => panic!("{other} is no object"),
        }
    }

    fn hi(extra: Value) -> Fields {
        let mut body =
            object(json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}));
        body.extend(object(extra));
        body
    }

    /// Whose fault it is, and the field.
    fn refused(body: &Fields) -> (Fault, String) {
        let error = ask(body).expect_err("nothing was refused");
        (error.fault, error.param)
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
                assert_eq!(found, (Fault::Invalid, name.to_owned()), "{odd}");
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
    fn the_maximum_is_written_where_the_client_wrote_it() {
        let written = |extra: Value| {
            let mut body = hi(extra);
            set_max(&mut body, 5, MaxField::MaxTokens);
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
        want_usage(&mut body);
        assert_eq!(
            body["stream_options"],
            json!({"include_obfuscation": false, "include_usage": true})
        );
    }

    #[test]
    fn what_a_body_asks_for_is_read() {
        let asked = ask(&hi(json!({
            "n": 2, "max_tokens": 9, "stream": true, "user": "u",
            "stream_options": {"include_usage": true},
        })));
        let asked = asked.unwrap();
        assert_eq!((asked.choices, asked.max), (2, Some(9)));
        assert!(asked.stream && asked.include_usage && asked.keeps_max);
        assert_eq!(asked.end_user.unwrap().as_str(), "u");
        assert_eq!((asked.text, asked.framed), (2, 1));
        assert!(!ask(&hi(json!({}))).unwrap().keeps_max);
        assert!(ask(&hi(json!({"thinking": {}}))).unwrap().keeps_max);
        for off in [json!(null), json!({"type": "disabled"})] {
            assert!(!ask(&hi(json!({"thinking": off}))).unwrap().keeps_max);
        }
    }
}
