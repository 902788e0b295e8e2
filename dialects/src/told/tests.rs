//! What is believed of reports, whole answers and streams.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use seatbelt_schemas::usage::Usage;
use serde_json::{Value, json};

use super::{report::COUNT_MAX, *};
use crate::{api::Api, sse::SseEvent};

const SENT: Sent = Sent {
    choices: 1,
    long_writes: false,
};

fn told(api: Api, data: &[Value]) -> (StreamTold, Vec<Part>) {
    told_of(api, SENT, data)
}

fn told_of(api: Api, sent: Sent, data: &[Value]) -> (StreamTold, Vec<Part>) {
    let mut told = StreamTold::new(api, sent);
    let parts = data
        .iter()
        .map(|data| {
            let text = data
                .as_str()
                .map_or_else(|| data.to_string(), str::to_owned);
            let event = SseEvent {
                raw: Bytes::new(),
                name: None,
                data: text.into(),
            };
            told.note(&event)
        })
        .collect();
    (told, parts)
}

fn openai_usage(report: &Value) -> Option<Usage> {
    Counts::usage_of(Api::Chat, report)
}

#[test]
fn what_is_a_count_is_the_least_that_was_used_whatever_else_is_odd() {
    let least = |api, data: &[Value]| {
        let usage = told(api, data).0.least().usage;
        (usage.input_tokens, usage.output_tokens)
    };
    let chat = |report: Value| json!({"choices": [], "usage": report});
    let odd = [chat(
        json!({"prompt_tokens": 900, "completion_tokens": 9.5}),
    )];
    assert_eq!(least(Api::Chat, &odd), (900, 0));
    let missing = [chat(json!({"completion_tokens": 70, "prompt_tokens": "3"}))];
    assert_eq!(least(Api::Chat, &missing), (0, 70));
    let apart = [
        chat(json!({"prompt_tokens": 5})),
        chat(json!({"completion_tokens": 6})),
    ];
    assert_eq!(least(Api::Chat, &apart), (5, 6));
    let start = json!({"type": "message_start", "message": {"usage": {
        "input_tokens": 7, "cache_read_input_tokens": 2, "output_tokens": null}}});
    assert_eq!(least(Api::Messages, &[start]), (9, 0));
    assert_eq!(least(Api::Messages, &[]), (0, 0));
}

fn told_raw(api: Api, data: &str) -> Told {
    let data = data.as_bytes();
    Told::read(api, SENT, data).unwrap_or_else(|| Told::unread(api, SENT, data))
}

#[test]
fn a_report_with_something_else_in_the_place_of_a_count_tells_its_other_counts() {
    for odd in [
        "{}",
        "[]",
        "{\"a\": 1}",
        "\"7\"",
        "1.5",
        "-1",
        "1e400",
        "\"\\ud83d\"",
    ] {
        let chat = format!(r#"{{"usage": {{"prompt_tokens": 5000, "completion_tokens": {odd}}}}}"#);
        assert_eq!(
            told_raw(Api::Chat, &chat).least.usage.input_tokens,
            5000,
            "{odd}"
        );
        let part = format!(r#"{{"usage": {{"input_tokens": 5000, "output_tokens": {odd}}}}}"#);
        assert_eq!(
            told_raw(Api::Messages, &part).least.usage.input_tokens,
            5000,
            "{odd}"
        );
    }
    let huge = r#"{"usage": {"input_tokens": 1099511627776, "cache_read_input_tokens": 1}}"#;
    assert_eq!(
        told_raw(Api::Messages, huge).least.usage.input_tokens,
        COUNT_MAX
    );
}

#[test]
fn what_is_odd_elsewhere_spoils_no_report() {
    let report = r#"{"prompt_tokens": 5000, "completion_tokens": 7}"#;
    let deep = "[".repeat(200) + &"]".repeat(200);
    for odd in [
        r#""choices": [{"message": {"content": "x"}}], "choices": []"#.to_owned(),
        r#""object": "a", "object": "b", "x": 1e400"#.to_owned(),
        r#""x": "\ud83d""#.to_owned(),
        format!(r#""x": {deep}"#),
    ] {
        let whole = format!(r#"{{{odd}, "usage": {report}}}"#);
        let usage = told_raw(Api::Chat, &whole).usage.unwrap();
        assert_eq!(
            (usage.input_tokens, usage.output_tokens),
            (5000, 7),
            "{odd}"
        );
    }
    let latin = [
        b"{\"choices\": [{\"message\": {\"content\": \"\xe9\"}}], \"usage\": ",
        report.as_bytes(),
        b"}",
    ];
    assert_eq!(
        Told::read(Api::Chat, SENT, &latin.concat())
            .unwrap()
            .usage
            .unwrap()
            .input_tokens,
        5000
    );
    let within = r#"{"usage": {"prompt_tokens": 5000, "completion_tokens": 7, "prompt_tokens": 1, "x": 1e400}}"#;
    assert_eq!(
        told_raw(Api::Chat, within).usage.unwrap().input_tokens,
        5000,
        "the largest of two"
    );
}

#[test]
fn an_answer_that_cannot_be_read_tells_what_stands_in_it() {
    let cut = r#"{"usage": {"prompt_tokens": 5000, "completion_tokens": 7}, "choices": [{"mess"#;
    assert_eq!(told_raw(Api::Chat, cut).least.usage.input_tokens, 5000);
    assert_eq!(told_raw(Api::Chat, cut).usage, None);
    let python = r#"{"choices": [{"logprobs": NaN}], "usage": {"prompt_tokens": 5000}}"#;
    assert_eq!(told_raw(Api::Chat, python).least.usage.input_tokens, 5000);
    let said =
        r#"{"choices": [{"message": {"content": "\"usage\": {\"prompt_tokens\": 9}"}}], NaN"#;
    assert_eq!(
        told_raw(Api::Chat, said).least.usage.input_tokens,
        0,
        "what a model says is no report"
    );
    let lines = "{\"choices\": []}\n{\"usage\": {\"prompt_tokens\": 5000}}\n";
    assert_eq!(told_raw(Api::Chat, lines).least.usage.input_tokens, 5000);
}

#[test]
fn a_stream_is_at_its_end_once_every_choice_that_was_asked_for_is() {
    let chunk = json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
    let (one, _) = told(Api::Chat, std::slice::from_ref(&chunk));
    assert!(one.final_usage(false).is_some());
    let two = Sent { choices: 2, ..SENT };
    let (two, _) = told_of(Api::Chat, two, &[chunk]);
    assert_eq!(two.final_usage(false), None);
    assert!(
        two.final_usage(true).is_some(),
        "it says itself that it ended"
    );
}

#[test]
fn output_counts_wherever_it_stands() {
    let block =
        |block: Value| json!({"type": "content_block_start", "index": 0, "content_block": block});
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}});
    let thinks = block(json!({"type": "redacted_thinking", "data": "x".repeat(400)}));
    let (stream, _) = told(Api::Messages, &[start.clone(), thinks]);
    assert_eq!(stream.usage_so_far(), None);
    assert!(stream.output_bytes > 400);
    let (stream, _) = told(
        Api::Messages,
        &[start, block(json!({"type": "text", "text": ""}))],
    );
    assert!(stream.usage_so_far().is_some(), "nothing came yet");
    let early = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}});
    for choice in [
        json!([{"message": {"content": "x"}}]),
        json!([{"text": "x"}]),
        json!({"delta": {"content": "x"}}),
    ] {
        let late = json!({ "choices": choice });
        let (stream, _) = told(Api::Chat, &[early.clone(), late]);
        assert_eq!(stream.final_usage(true), None, "{choice}");
        assert!(stream.output_bytes > 0, "{choice}");
    }
}

#[test]
fn only_what_says_something_is_an_error() {
    for (said, is_error) in [
        ("null", false),
        ("false", false),
        ("\"\"", false),
        ("{\"message\": \"x\"}", true),
        ("\"x\"", true),
    ] {
        let data: Value =
            serde_json::from_str(&format!(r#"{{"choices": [], "error": {said}}}"#)).unwrap();
        let (_, parts) = told(Api::Chat, &[data]);
        assert_eq!(parts[0] == Part::Error, is_error, "{said}");
    }
}

#[test]
fn writes_that_stay_an_hour_are_told_apart() {
    let long = |reports: &[Value]| {
        let (told, _) = told(Api::Messages, reports);
        let usage = told.counted().unwrap();
        (usage.cache_write_tokens, usage.cache_write_long_tokens)
    };
    let split = |short: u64, long: u64| {
        json!({"type": "message_start", "message": {"usage": {
            "input_tokens": 0, "output_tokens": 0, "cache_creation_input_tokens": short + long,
            "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long}}}})
    };
    assert_eq!(long(&[split(40, 60)]), (100, 60));
    assert_eq!(long(&[split(100, 0)]), (100, 0));
    let grown = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 3, "cache_creation_input_tokens": 130}});
    assert_eq!(
        long(&[split(40, 60), grown.clone()]),
        (130, 90),
        "growth at the dearest"
    );
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 1, "output_tokens": 1}}});
    assert_eq!(
        long(&[start, grown]),
        (130, 0),
        "nothing says how long these stay"
    );
}

#[test]
fn openai_usage_counts_hidden_totals_in_full() {
    let usage =
        openai_usage(&json!({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}))
            .unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens), (10, 30));
    assert_eq!(openai_usage(&json!({"completion_tokens": 5})), None);
    assert_eq!(openai_usage(&json!({"prompt_tokens": -1})), None);
}

/// A count, or what stands in its place.
fn odd_count() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        2 => Just(None),
        8 => (0..500u64).prop_map(|count| Some(json!(count))),
        1 => prop_oneof![
            Just(json!(null)), Just(json!(-1)), Just(json!(9.0)), Just(json!("9")), Just(json!([])),
            Just(json!(COUNT_MAX + 1)), Just(json!(u64::MAX)),
        ].prop_map(Some),
    ]
}

fn odd_report() -> impl Strategy<Value = Option<Value>> {
    let names = ["prompt_tokens", "completion_tokens", "total_tokens"];
    let counts = (
        odd_count(),
        odd_count(),
        odd_count(),
        odd_count(),
        odd_count(),
    );
    proptest::option::of(
        counts.prop_map(move |(input, output, total, cached, reasoning)| {
            let mut report = json!({
                "prompt_tokens_details": {"cached_tokens": cached},
                "completion_tokens_details": {"reasoning_tokens": reasoning},
            });
            for (name, count) in names.into_iter().zip([input, output, total]) {
                if let Some(count) = count {
                    report[name] = count;
                }
            }
            report
        }),
    )
}

fn odd_events() -> impl Strategy<Value = Vec<Value>> {
    let finish = prop_oneof![3 => Just(json!(null)), 2 => Just(json!("stop")), 1 => Just(json!(7))];
    let event = (".{0,4}", finish, odd_report(), 0..4u8, 0..2u64);
    let event = event.prop_map(|(text, finish, report, shape, index)| {
        let choice = json!({"index": index, "delta": {"content": text}, "finish_reason": finish});
        let choices = match shape {
            0 => json!([]),
            1 => json!({}),
            _ => json!([choice]),
        };
        json!({"choices": choices, "usage": report})
    });
    vec(event, 1..6)
}

/// The largest number that any report has in a place; what is no number says nothing.
fn said(events: &[Value], pointer: &str) -> u64 {
    let numbers = events
        .iter()
        .filter_map(|event| event["usage"].pointer(pointer)?.as_u64());
    numbers.max().unwrap_or(0)
}

/// How many answers are made: a million in `make nightly`.
fn bodies() -> u32 {
    let number = std::env::var("SEATBELT_FUZZ_BODIES").ok();
    number.map_or(20_000, |number| {
        number.parse().expect("a number of answers")
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(bodies()))]

    #[test]
    fn no_stream_is_believed_below_what_it_says(events in odd_events(), ended in any::<bool>()) {
        let (told, _) = told(Api::Chat, &events);
        if let Some(usage) = told.final_usage(ended) {
            let (input, output) = (said(&events, "/prompt_tokens"), said(&events, "/completion_tokens"));
            prop_assert!(usage.input_tokens >= input && usage.output_tokens >= output);
            prop_assert!(usage.tokens() >= said(&events, "/total_tokens"));
            prop_assert!(usage.cached_input_tokens + usage.cache_write_tokens <= usage.input_tokens);
            prop_assert!(usage.reasoning_tokens <= usage.output_tokens);
            let last = events.iter().rposition(|event| !event["usage"].is_null());
            let after = &events[last.expect("usage was reported") + 1..];
            let content = |event: &Value| event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty());
            prop_assert!(!after.iter().any(content), "output came after the last report");
        }
    }

    #[test]
    fn no_whole_answer_is_believed_below_what_it_says(report in odd_report(), text in ".{0,4}") {
        let body = json!({"choices": [{"message": {"content": text}}], "usage": report});
        let usage = Told::read(Api::Chat, SENT, body.to_string().as_bytes()).unwrap().usage;
        if let Some(usage) = usage {
            let bodies = [body];
            prop_assert!(usage.input_tokens >= said(&bodies, "/prompt_tokens"));
            prop_assert!(usage.output_tokens >= said(&bodies, "/completion_tokens"));
            prop_assert!(usage.tokens() >= said(&bodies, "/total_tokens"));
            prop_assert!(usage.tokens() > 0 || text.is_empty());
        }
    }
}

fn anthropic(report: &Value) -> Option<Usage> {
    Counts::usage_of(Api::Messages, report)
}

#[test]
fn parts_of_the_input_are_told_apart_and_cut_to_their_whole() {
    let parts = |details: Value| {
        let mut report = json!({"prompt_tokens": 100, "completion_tokens": 0});
        report
            .as_object_mut()
            .unwrap()
            .extend(details.as_object().unwrap().clone());
        let usage = openai_usage(&report).unwrap();
        (usage.cached_input_tokens, usage.cache_write_tokens)
    };
    let details = |cached, written| json!({"prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written}});
    assert_eq!(parts(details(0, 100)), (0, 100));
    assert_eq!(parts(details(500, 0)), (100, 0));
    assert_eq!(parts(details(90, 60)), (40, 60));
    assert_eq!(
        parts(json!({"prompt_cache_hit_tokens": 100, "prompt_cache_miss_tokens": 0})),
        (100, 0)
    );
}

#[test]
fn what_anthropic_counts_beside_the_answer_counts() {
    let split = json!({"input_tokens": 0, "output_tokens": 0, "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 60}});
    let usage = anthropic(&split).unwrap();
    assert_eq!((usage.input_tokens, usage.cache_write_tokens), (100, 100));
    let compacted = json!({"input_tokens": 10, "output_tokens": 1, "iterations": [
        {"type": "compaction", "input_tokens": 900, "output_tokens": 50},
        {"type": "message", "input_tokens": 10, "output_tokens": 1},
    ]});
    assert_eq!(anthropic(&compacted).unwrap().tokens(), 961);
    let thought = json!({"input_tokens": 10, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 7}});
    let usage = anthropic(&thought).unwrap();
    assert_eq!((usage.output_tokens, usage.reasoning_tokens), (9, 7));
    let odd = json!({"input_tokens": 10, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": "7"}});
    assert_eq!(anthropic(&odd), None);
    assert_eq!(anthropic(&json!({"input_tokens": 1})), None);
    assert_eq!(
        anthropic(&json!({"input_tokens": 1, "output_tokens": 1.0})),
        None
    );
    assert_eq!(
        anthropic(
            &json!({"input_tokens": COUNT_MAX, "output_tokens": 1, "cache_read_input_tokens": 1})
        ),
        None
    );
}

#[test]
fn anthropic_usage_is_gathered_over_the_stream() {
    let (told, parts) = told(
        Api::Messages,
        &[
            json!({"type": "message_start", "message": {"usage": {"input_tokens": 7, "cache_read_input_tokens": 2, "cache_creation_input_tokens": 1, "output_tokens": 1}}}),
            json!({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}),
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
            json!({"type": "message_stop"}),
        ],
    );
    let usage = told.final_usage(true).unwrap();
    assert_eq!(
        (
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.cache_write_tokens
        ),
        (10, 2, 1)
    );
    assert_eq!(usage.output_tokens, 5);
    assert_eq!(told.finish.as_deref(), Some("end_turn"));
    assert_eq!(parts.last(), Some(&Part::End));
}

#[test]
fn running_usage_is_not_the_final_one() {
    let running = json!({"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}});
    let (early, _) = told(Api::Chat, std::slice::from_ref(&running));
    assert_eq!(early.final_usage(true), None);
    assert!(early.usage_so_far().is_some());
    let last = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 9}});
    let (whole, parts) = told(Api::Chat, &[running, last, json!("[DONE]")]);
    let usage = whole.final_usage(true);
    assert_eq!(usage.map(|usage| usage.output_tokens), Some(9));
    assert_eq!(parts, [Part::Content, Part::UsageOnly, Part::End]);
}

#[test]
fn an_error_in_the_stream_is_seen() {
    let (_, parts) = told(Api::Chat, &[json!({"error": {"message": "boom"}})]);
    assert_eq!(parts, [Part::Error]);
    let (_, parts) = told(Api::Chat, &[json!({"choices": [], "error": null})]);
    assert_eq!(parts, [Part::Content]);
}

#[test]
fn writes_that_are_not_said_to_be_short_are_as_long_as_was_asked_for() {
    let long = Sent {
        long_writes: true,
        ..SENT
    };
    let written = |api, report: Value, sent| {
        let body = json!({"content": [{"text": "a"}], "usage": report}).to_string();
        let usage = Told::read(api, sent, body.as_bytes())
            .unwrap()
            .usage
            .unwrap();
        (usage.cache_write_tokens, usage.cache_write_long_tokens)
    };
    let unsplit =
        || json!({"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 90});
    assert_eq!(written(Api::Messages, unsplit(), SENT), (90, 0));
    assert_eq!(written(Api::Messages, unsplit(), long), (90, 90));
    let mut split = unsplit();
    split["cache_creation"] =
        json!({"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 30});
    assert_eq!(written(Api::Messages, split, long), (90, 30));
    let chat = json!({"prompt_tokens": 100, "completion_tokens": 1, "prompt_tokens_details": {"cache_write_tokens": 90}});
    assert_eq!(written(Api::Chat, chat, long), (90, 90));
    let odd = json!({"content": [], "usage": {"input_tokens": 1, "output_tokens": "1", "cache_creation_input_tokens": 90}});
    let least = Told::read(Api::Messages, long, odd.to_string().as_bytes())
        .unwrap()
        .least;
    assert_eq!(least.usage.cache_write_long_tokens, 90);
}

#[test]
fn what_stands_within_each_choice_counts_for_each() {
    let two = Sent { choices: 2, ..SENT };
    let choice = |index: u64, output: u64| {
        json!({"index": index, "delta": {"content": "a"}, "finish_reason": "stop",
            "usage": {"prompt_tokens": 10, "completion_tokens": output, "total_tokens": output + 10}})
    };
    let whole = json!({"choices": [choice(0, 5), choice(0, 7)]}).to_string();
    let usage = Told::read(Api::Chat, two, whole.as_bytes())
        .unwrap()
        .usage
        .unwrap();
    assert_eq!(
        (usage.input_tokens, usage.output_tokens),
        (10, 12),
        "by their places"
    );
    let events = [
        json!({"choices": [choice(0, 2)]}),
        json!({"choices": [choice(0, 5)]}),
        json!({"choices": [choice(1, 7)]}),
    ];
    let (stream, _) = told_of(Api::Chat, two, &events);
    assert_eq!(stream.final_usage(true).unwrap().output_tokens, 12);
    let sum = json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}});
    let (stream, _) = told_of(Api::Chat, two, &[events.to_vec(), vec![sum]].concat());
    assert_eq!(stream.final_usage(true).unwrap().output_tokens, 20);
    let nameless = json!({"choices": [{"delta": {"content": "a"}, "usage": {"prompt_tokens": 1, "completion_tokens": 9}}]});
    let (stream, _) = told_of(Api::Chat, two, &[nameless]);
    assert_eq!(stream.final_usage(true), None, "of which choice is it?");
    assert_eq!(stream.least().usage.output_tokens, 9);
}

#[test]
fn a_total_is_no_output_where_the_input_is_not_known() {
    let report =
        r#"{"usage": {"prompt_tokens": "3", "completion_tokens": 70, "total_tokens": 73}}"#;
    let least = told_raw(Api::Chat, report).least;
    assert_eq!((least.usage.output_tokens, least.total), (70, 73));
    let held = |input_tokens, output_tokens| Usage {
        input_tokens,
        output_tokens,
        ..Usage::default()
    };
    assert_eq!(
        least.raise(held(100, 50)),
        held(100, 70),
        "not once more as output"
    );
    assert_eq!(least.raise(held(0, 0)), held(0, 73));
    let known = r#"{"usage": {"prompt_tokens": 3, "completion_tokens": "?", "total_tokens": 73}}"#;
    assert_eq!(told_raw(Api::Chat, known).least.usage, held(3, 70));
}

#[test]
fn an_error_before_anything_came_used_nothing() {
    let error = || json!({"error": {"message": "busy", "code": 429}});
    let role = json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]});
    let (first, parts) = told(Api::Chat, &[role, error()]);
    assert_eq!(parts, [Part::Content, Part::Error]);
    assert!(first.used_nothing());
    assert_eq!(first.failure, Some(429));
    let said = json!({"choices": [{"delta": {"content": "a"}}], "error": {"message": "busy"}});
    assert!(
        !told(Api::Chat, &[said]).0.used_nothing(),
        "it came with the error"
    );
    let used = json!({"choices": [], "error": {"message": "busy"}, "usage": {"prompt_tokens": 3}});
    assert!(!told(Api::Chat, &[used]).0.used_nothing());
    let start = json!({"type": "message_start", "message": {"usage": {"input_tokens": 7, "output_tokens": 1}}});
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error"}});
    let (started, _) = told(Api::Messages, &[start, overloaded.clone()]);
    assert!(!started.used_nothing());
    let (first, _) = told(Api::Messages, &[overloaded]);
    assert!(first.used_nothing());
    assert_eq!(first.failure, Some(529));
}

#[test]
fn what_gemini_reports_beside_an_error_is_the_least_that_was_used() {
    let report = r#"{"promptTokenCount":50,"candidatesTokenCount":7,"thoughtsTokenCount":3,"totalTokenCount":65}"#;
    for body in [
        format!(r#"{{"error":{{"code":503,"message":"busy"}},"usageMetadata":{report}}}"#),
        format!(r#"{{"error":{{"code":503,"message":"busy","usageMetadata":{report}}}}}"#),
        format!(r#"{{"error":{{"message":"busy"}},"usageMetadata":{report}"#),
    ] {
        let told = told_raw(Api::Chat, &body);
        let usage = told.least.usage;
        assert_eq!(
            (usage.input_tokens, usage.output_tokens),
            (50, 15),
            "{body}"
        );
        assert_eq!(told.usage, None, "no report of its API: {body}");
    }
    let free = told_raw(Api::Chat, r#"{"error":{"message":"see usageMetadata"}}"#);
    assert!(free.least.is_nothing());
}

#[test]
fn a_response_that_only_says_its_text_is_an_answer() {
    let said = r#"{"id":"r","status":"completed","output":[],"output_text":"hello","usage":{"input_tokens":0,"output_tokens":0},"error":{"code":"x"}}"#;
    let told = told_raw(Api::Responses, said);
    assert_eq!(told.usage, None, "zero with content is no report");
    assert_eq!(told.output_bytes, 2 + 7, "an empty list and the text");
    assert!(!told.is_error);
    let twice = r#"{"output":[{"type":"message","content":[{"type":"output_text","text":"hello"}]}],"output_text":"hello"}"#;
    let once = twice.replace(r#","output_text":"hello""#, "");
    let bytes = |body: &str| told_raw(Api::Responses, body).output_bytes;
    assert_eq!(bytes(twice), bytes(&once), "one text counts once");
}
