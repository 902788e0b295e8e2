//! `/v1/responses`, as OpenAI made it, for upstreams that speak it themselves.
//!
//! Nothing is kept: `store: false` goes out with every request, and what names something kept is refused. A
//! stream ends with `response.completed`, `.incomplete` or `.failed`, each with its usage. Not here: another
//! API for a server that does not speak this one.

use seatbelt_schemas::ids::EndUserId;
use serde_json::{Value, json, value::RawValue};

use super::{MaxField, chat};
use crate::{
    allow::{Found, Profile, Shape},
    ask::{Ask, Measure, is_known_role},
    ends::{named_error, of_unread},
    fields::{self, FieldError, Fields, flag, whole},
    media::Medium,
    provided::called_by,
    raw::{Pairs, items},
    sse::SseEvent,
    state::refuse_kept_item,
    told::{Body, Counts, Odd, Part, Report, StreamTold, finish, has_content, status_named, text},
};

mod allowed;

/// Where an upstream serves it: its base URL ends in `/v1`.
pub(super) const PATH: &str = "responses";
/// No header of a client turns anything on.
pub(super) const VERSIONS: Option<&[&str]> = None;
pub(super) const BETAS: Option<&[&str]> = None;
pub(super) const USAGE_HAS_TO_BE_ASKED: bool = false;
pub(super) use super::chat::usage;
pub(super) use allowed::{IMAGE, WHY};

/// Most items of one input.
const ITEMS_MAX: usize = 100_000;
/// Where events have what deltas told piece by piece, but for items.
const WHOLE: [&str; 5] = ["part", "text", "refusal", "arguments", "input"];
/// What joins the texts of an item's parts.
const PART_JOINT: u64 = 1;
/// Counted by themselves, or of no weight.
const COUNTED: &[&str] = &[
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "background",
    "truncation",
    "include",
];

pub(super) fn shapes(_profile: Profile) -> [Shape; 2] {
    [allowed::BODY, &[]]
}

/// Every listed field has a bound.
pub(super) fn unbounded(_body: &Fields, _output_max: u64) -> Option<Found> {
    None
}

pub(super) fn ask(body: &Fields, by: &mut dyn Measure) -> Result<Ask, FieldError> {
    if flag(body, "background")? {
        let problem = "answers later, and nothing is kept here: leave it out";
        return Err(FieldError::invalid("background", problem));
    }
    let mut ask = Ask {
        choices: 1,
        max: whole(body, "max_output_tokens")?,
        stream: flag(body, "stream")?,
        end_user: end_user(body),
        long_writes: body
            .get("prompt_cache_retention")
            .is_some_and(|kept| !kept.is_null() && kept != "in_memory"),
        ..Ask::default()
    };
    match body.get("input") {
        Some(Value::String(text)) => {
            ask.framed += 1;
            ask.text += by.text(text);
        }
        Some(Value::Array(items)) if (1..=ITEMS_MAX).contains(&items.len()) => {
            for (n, item) in items.iter().enumerate() {
                ask_item(&mut ask, &format!("input[{n}]"), item, by)?;
            }
        }
        None | Some(Value::Null) if body.get("prompt").is_some_and(|prompt| !prompt.is_null()) => {
            let problem = "names what the provider keeps, which all keys of this gateway would share: send its content as 'input'";
            return Err(FieldError::invalid("prompt", problem));
        }
        _ => {
            let problem = "must be a string or an array of at least one item";
            return Err(FieldError::invalid("input", problem));
        }
    }
    match body.get("instructions") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => {
            ask.framed += 1;
            ask.text += by.text(text);
        }
        Some(_) => return Err(FieldError::invalid("instructions", "must be a string")),
    }
    ask.tools(body, by)?;
    ask.fields_besides(body, COUNTED, by);
    Ok(ask)
}

fn ask_item(
    ask: &mut Ask,
    param: &str,
    item: &Value,
    by: &mut dyn Measure,
) -> Result<(), FieldError> {
    let fields = item
        .as_object()
        .ok_or_else(|| FieldError::invalid(param, "must be an object"))?;
    refuse_kept_item(param, fields)?;
    ask.framed += 1;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("type", Value::String(_)) | (_, Value::Null) => {}
            // another word may be printed as it is
            ("role", Value::String(role)) if is_known_role(role) => {}
            ("status", Value::String(status)) if is_known_status(status) => {}
            ("content" | "output", content) => content_of(ask, content, by),
            (name, other) => ask.text += name.len() as u64 + by.json(other),
        }
    }
    Ok(())
}

/// Texts as they are, images and sounds by themselves, parts of other kinds as they are printed.
fn content_of(ask: &mut Ask, content: &Value, by: &mut dyn Measure) {
    match content {
        Value::String(text) => ask.text += by.text(text).max(by.json(content)),
        Value::Array(parts) => parts.iter().for_each(|part| part_of(ask, part, by)),
        other => ask.text += by.json(other),
    }
}

fn part_of(ask: &mut Ask, part: &Value, by: &mut dyn Measure) {
    ask.text += PART_JOINT;
    if let (Some(medium), Some(fields)) = (Medium::of(part), part.as_object()) {
        return ask.medium(medium, fields, by);
    }
    let text = part.get("text").and_then(Value::as_str);
    let kind = part.get("type").and_then(Value::as_str);
    ask.text += match (kind, text) {
        (Some("input_text" | "output_text"), Some(text)) => by.text(text) + beside(part, by),
        _ => by.json(part),
    };
}

/// What a part with a text says besides: notes on it, which some servers print.
fn beside(part: &Value, by: &mut dyn Measure) -> u64 {
    let fields = part.as_object().into_iter().flatten();
    let says =
        |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    let others =
        fields.filter(|(name, value)| !matches!(name.as_str(), "type" | "text") && says(value));
    others
        .map(|(name, value)| name.len() as u64 + by.json(value))
        .sum()
}

fn is_known_status(status: &str) -> bool {
    matches!(status, "in_progress" | "completed" | "incomplete")
}

fn end_user(body: &Fields) -> Option<EndUserId> {
    fields::end_user(body.get("user"))
}

/// With it goes out that nothing is kept.
pub(super) fn set_max(body: &mut Fields, max: u64, _field: MaxField) {
    body.insert("max_output_tokens".to_owned(), json!(max));
    body.insert("store".to_owned(), json!(false));
}

/// Every stream tells its usage.
pub(super) fn want_usage(_body: &mut Fields) {}

pub(super) fn counts(report: &Report<'_>) -> Result<Counts, Odd> {
    let mut counts = Counts {
        input: report.count("input_tokens")?,
        output: report.count("output_tokens")?,
        total: report.part("total_tokens")?,
        ..Counts::default()
    };
    chat::details(
        &mut counts,
        report,
        ["input_tokens_details", "output_tokens_details"],
    )?;
    Ok(counts)
}

pub(super) fn event(told: &mut StreamTold, event: &SseEvent) -> Part {
    let read = String::from_utf8_lossy(&event.data);
    let Some(body) = Body::read(&read) else {
        told.unread(event);
        return of_unread(event);
    };
    let kind = text(body.0.last("type"));
    let mut reported = told.reports(&body.0);
    let response = body.0.last("response").map(Pairs::of).unwrap_or_default();
    told.served.answer(&response);
    told.id = told.id.take().or_else(|| named(&response));
    reported |= told.reports(&response);
    calls(told, &kind, &body.0);
    if kind.ends_with(".delta") {
        body.0.all("delta").for_each(|raw| told.content(raw));
    }
    // said as a whole, with deltas or without: a server may send none
    if kind.ends_with(".done") {
        let whole = WHOLE.into_iter().flat_map(|name| body.0.all(name));
        told.has_content |= whole.into_iter().any(has_content);
    }
    if kind == "response.output_item.done" {
        body.0.all("item").for_each(|item| told.item(item));
    }
    response.all("output").for_each(|listed| told.items(listed));
    let listed = response.all("output").flat_map(items);
    told.has_content |= body.0.all("item").chain(listed).any(says_something);
    if reported {
        told.content_since = false;
    }
    match kind.as_str() {
        "response.completed" | "response.incomplete" | "response.failed" => {
            told.closed |= told.tells_output(&response);
            told.finish = ending(&response);
            Part::End
        }
        "error" => failed(told, &body),
        _ if named_error(event) => failed(told, &body),
        _ => Part::Content,
    }
}

/// Whether an item is output: a message with something in it, or anything else.
fn says_something(item: &RawValue) -> bool {
    let fields = Pairs::of(item);
    match text(fields.last("type")).as_str() {
        "message" => {
            let parts = |content| match items(content) {
                parts if parts.is_empty() => vec![content],
                parts => parts,
            };
            fields.all("content").flat_map(parts).any(has_content)
        }
        _ => !fields.is_empty(),
    }
}

/// The id of a whole response.
pub fn response_id(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    named(&Pairs::read(&text)?)
}

fn named(response: &Pairs<'_>) -> Option<String> {
    let id = text(response.last("id"));
    (!id.is_empty()).then_some(id)
}

/// Takes note of a call of the provider's tools: its item comes when it begins and again when it ends, and each
/// step between has an event of its own (`response.web_search_call.searching`).
fn calls(told: &mut StreamTold, kind: &str, event: &Pairs<'_>) {
    let place = event.last("output_index");
    let place = place.and_then(|raw| raw.get().parse().ok()).unwrap_or(0);
    if let "response.output_item.added" | "response.output_item.done" = kind {
        let items = event.all("item").map(Pairs::of);
        items.for_each(|item| told.served.item(&item, place));
    }
    let step = kind.strip_prefix("response.").unwrap_or_default();
    if let Some(tool) = step.split('.').next().and_then(called_by) {
        told.served.call(tool, event.last("item_id"), place);
    }
}

fn failed(told: &mut StreamTold, body: &Body<'_>) -> Part {
    told.failure = status_named(&body.0);
    Part::Error
}

/// How a response ended: why it is not complete, else its status.
pub(crate) fn ending(response: &Pairs<'_>) -> Option<String> {
    let details = response.last("incomplete_details").map(Pairs::of);
    let reason = details.and_then(|details| finish(details.last("reason")));
    reason.or_else(|| finish(response.last("status")))
}

#[cfg(test)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a case is a literal that is used once"
)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{api::Api, told::Told};

    fn asked(extra: Value) -> Result<Ask, FieldError> {
        let mut body = json!({"model": "m", "input": "hi"});
        let fields = body.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        ask(fields, &mut crate::ask::Bytes)
    }

    #[track_caller]
    fn refused(extra: Value, param: &str) {
        let shown = extra.to_string();
        assert_eq!(asked(extra).expect_err(&shown).param, param, "{shown}");
    }

    #[test]
    fn what_a_body_asks_for_is_read() {
        let ask = asked(
            json!({"max_output_tokens": 20, "stream": true, "user": "u", "instructions": "be kind"}),
        );
        let ask = ask.unwrap();
        assert_eq!((ask.choices, ask.max, ask.stream), (1, Some(20), true));
        assert_eq!((ask.text, ask.framed), (9, 2));
        assert_eq!(ask.end_user.unwrap().as_str(), "u");
        assert!(
            asked(json!({"prompt_cache_retention": "24h"}))
                .unwrap()
                .long_writes
        );
    }

    #[test]
    fn everything_that_can_reach_the_prompt_counts() {
        let long = "x".repeat(500);
        let of = |extra: Value| asked(extra).unwrap().text;
        for extra in [
            json!({"input": long}),
            json!({"instructions": long}),
            json!({"input": [{"role": "user", "content": long}]}),
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": long}]}]}),
            json!({"input": [{"type": "function_call_output", "call_id": "c", "output": long}]}),
            json!({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": long}]}),
            json!({"input": [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": long}]}),
            json!({"tools": [{"type": "function", "name": "f", "description": long}]}),
            json!({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f", "description": long}]}]}),
            json!({"text": {"format": {"type": "json_schema", "schema": {"title": long}}}}),
            json!({"unheard_of": long}),
        ] {
            assert!(of(extra.clone()) >= 500, "{extra}");
        }
    }

    #[test]
    fn tools_under_one_name_are_framed_one_by_one() {
        let framed = |tools: Value| asked(json!({ "tools": tools })).unwrap().framed;
        let two = json!([{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}]);
        let named = json!([{"type": "namespace", "name": "n", "tools": two}]);
        assert_eq!(framed(named), framed(two) + 1);
    }

    #[test]
    fn what_the_provider_would_have_to_keep_is_refused_by_name() {
        refused(json!({"background": true}), "background");
        refused(
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0]",
        );
        refused(
            json!({"input": [{"type": "reasoning", "id": "rs_1", "summary": []}]}),
            "input[0]",
        );
        refused(json!({"input": []}), "input");
        refused(json!({"input": ["x"]}), "input[0]");
        refused(json!({"input": null}), "input");
        refused(json!({"max_output_tokens": 0}), "max_output_tokens");
        let mut body = json!({"input": "hi"}).as_object().unwrap().clone();
        set_max(&mut body, 20, MaxField::MaxTokens);
        assert_eq!(
            (&body["max_output_tokens"], &body["store"]),
            (&json!(20), &json!(false))
        );
    }

    const USAGE: &str = r#""usage":{"input_tokens":9,"input_tokens_details":{"cached_tokens":4},"output_tokens":5,"output_tokens_details":{"reasoning_tokens":2},"total_tokens":14}"#;

    fn told(events: &[String]) -> (StreamTold, Part) {
        let sent = asked(json!({})).unwrap().sent();
        let mut told = StreamTold::new(Api::Responses, sent);
        let mut last = Part::Content;
        for data in events {
            let data = Bytes::from(data.clone());
            let raw = Bytes::new();
            last = told.note(&SseEvent {
                raw,
                name: None,
                data,
            });
        }
        (told, last)
    }

    fn events(ending: &str) -> Vec<String> {
        let start = r#"{"type":"response.created","sequence_number":0,"response":{"id":"r","status":"in_progress","usage":null}}"#;
        let delta = r#"{"type":"response.output_text.delta","delta":"hi"}"#;
        [start, delta, ending].map(str::to_owned).to_vec()
    }

    #[test]
    fn output_that_comes_whole_and_not_piece_by_piece_is_output() {
        let zero = r#""usage":{"input_tokens":0,"output_tokens":0,"total_tokens":0}"#;
        let ending = |output: &str| {
            format!(
                r#"{{"type":"response.completed","response":{{"status":"completed","output":{output},{zero}}}}}"#
            )
        };
        let start = events("{}").remove(0);
        let said = r#"{"type":"message","id":"m","content":[{"type":"output_text","text":"hello","annotations":[]}]}"#;
        let listed = format!("[{said}]");
        let sealed = r#"[{"type":"reasoning","id":"r","summary":[],"encrypted_content":"x"}]"#;
        for event in [
            format!(r#"{{"type":"response.output_item.done","output_index":0,"item":{said}}}"#),
            r#"{"type":"response.output_text.done","text":"hello"}"#.to_owned(),
            ending(&listed),
            ending(sealed),
        ] {
            let (told, _) = told(&[start.clone(), event.clone(), ending("[]")]);
            assert_eq!(told.final_usage(true), None, "zero is no report: {event}");
        }
        let empty = r#"{"type":"response.output_item.done","item":{"type":"message","id":"m","role":"assistant","status":"completed","content":[{"type":"output_text","text":"","annotations":[]}]}}"#;
        let (nothing, _) = told(&[start.clone(), empty.to_owned(), ending("[]")]);
        assert!(nothing.final_usage(true).is_some(), "nothing was said");
        let (told, _) = told(&[start, ending(&listed)]);
        assert_eq!(told.output_bytes, listed.len() as u64);
    }

    #[test]
    fn what_may_be_printed_beside_a_text_is_counted() {
        let text = |item: Value| asked(json!({"input": [item]})).unwrap().text;
        let plain = text(json!({"role": "user", "content": "q"}));
        let long = "x".repeat(5000);
        let part = json!([{"type": "output_text", "text": "q", "annotations": [], "logprobs": []}]);
        let bare = text(json!({"role": "assistant", "content": part}));
        assert!(bare < plain + 10, "{bare}");
        for item in [
            json!({"role": long, "content": "q"}),
            json!({"role": "user", "status": long, "content": "q"}),
            json!({"role": "assistant", "content": [{"type": "output_text", "text": "q", "annotations": [long]}]}),
            json!({"role": "assistant", "content": [{"type": "output_text", "text": "q", "logprobs": {"a": long}}]}),
        ] {
            assert!(text(item.clone()) > 5000, "{item}");
        }
    }

    #[test]
    fn every_ending_is_metered() {
        for (kind, status, finish) in [
            ("completed", r#""status":"completed""#, "completed"),
            (
                "incomplete",
                r#""status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}"#,
                "max_output_tokens",
            ),
            (
                "failed",
                r#""status":"failed","error":{"code":"server_error"}"#,
                "failed",
            ),
        ] {
            let ending =
                format!(r#"{{"type":"response.{kind}","response":{{"id":"r",{status},{USAGE}}}}}"#);
            let (told, part) = told(&events(&ending));
            assert_eq!(part, Part::End, "{kind}");
            let usage = told.final_usage(true).unwrap();
            assert_eq!((usage.input_tokens, usage.output_tokens), (9, 5), "{kind}");
            assert_eq!((usage.cached_input_tokens, usage.reasoning_tokens), (4, 2));
            assert_eq!(told.finish.as_deref(), Some(finish));
        }
    }

    #[test]
    fn a_stream_that_is_cut_or_fails_without_usage_has_no_report() {
        let (cut, _) = told(&events("{}")[..2]);
        assert_eq!(cut.final_usage(false), None);
        let failed = r#"{"type":"response.failed","response":{"status":"failed","usage":null}}"#;
        let (failed, part) = told(&events(failed));
        assert_eq!((failed.final_usage(true), part), (None, Part::End));
        let error = r#"{"type":"error","code":"server_error","message":"no"}"#;
        assert_eq!(told(&events(error)).1, Part::Error);
    }

    #[test]
    fn a_whole_response_is_read() {
        let read = |body: &str| {
            Told::read(
                Api::Responses,
                asked(json!({})).unwrap().sent(),
                body.as_bytes(),
            )
            .unwrap()
        };
        let output =
            r#""output":[{"type":"message","content":[{"type":"output_text","text":"hi"}]}]"#;
        let incomplete = read(&format!(
            r#"{{"status":"incomplete","incomplete_details":{{"reason":"max_output_tokens"}},{output},"error":null,{USAGE}}}"#
        ));
        assert_eq!(incomplete.usage.unwrap().output_tokens, 5);
        assert_eq!(incomplete.finish.as_deref(), Some("max_output_tokens"));
        assert!(!incomplete.is_error && incomplete.output_bytes > 0);
        let silent = read(&format!(r#"{{"status":"completed",{output}}}"#));
        assert_eq!(silent.usage, None);
        let zero = read(&format!(
            r#"{{"status":"completed",{output},"usage":{{"input_tokens":0,"output_tokens":0}}}}"#
        ));
        assert_eq!(zero.usage, None);
        assert!(read(r#"{"status":"failed","error":{"code":"x"},"output":[]}"#).is_error);
    }
}
