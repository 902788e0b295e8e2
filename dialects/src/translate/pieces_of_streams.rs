//! Translated streams, cut anywhere: nothing panics, nothing is made up, and what was said arrives byte for
//! byte, whole or not at all.

use bytes::BytesMut;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Echo, Name, Translation};
use crate::{
    api::Api,
    ask::Ask,
    face::Face,
    fields::Fields,
    sse::{SseEvent, SseReader},
    told::{Part, Sent, StreamTold},
};

/// What a client makes of a stream, as its SDK does.
#[derive(Debug, Default, PartialEq)]
struct Read {
    thought: String,
    text: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    ended: bool,
    failed: bool,
}

fn face(way: Translation) -> Face {
    let name = Name {
        id: "1".to_owned(),
        model: "m".to_owned(),
        created_s: 1,
        input_tokens: 0,
    };
    way.face(name, &Ask::default(), &Fields::new(), Echo::default())
}

/// Plays a stream that is cut after so many bytes; what went out, as the relay lets it go.
fn played(way: Translation, stream: &[u8], chunks: &[usize], cut: usize) -> Vec<SseEvent> {
    let sent = Sent {
        choices: 1,
        long_writes: false,
    };
    let (mut face, mut told) = (face(way), StreamTold::new(way.upstream(), sent));
    let (mut reader, mut held, mut out) = (SseReader::default(), BytesMut::new(), BytesMut::new());
    let stream = &stream[..cut.min(stream.len())];
    let mut borders: Vec<usize> = chunks.iter().map(|at| at % (stream.len() + 1)).collect();
    borders.extend([0, stream.len()]);
    borders.sort_unstable();
    let (mut ended, mut failed) = (false, false);
    for pair in borders.windows(2) {
        reader.push(&stream[pair[0]..pair[1]]);
        while let Some(event) = reader.next_event().unwrap() {
            let part = told.note(&event);
            ended |= part == Part::End;
            let read = face.event(&event, part, &mut held, &mut out);
            failed |= part == Part::Error || read.is_err();
        }
    }
    if let Some(usage) = told.final_usage(ended).filter(|_| ended && !failed) {
        out.extend_from_slice(&face.end(Some(usage), held));
    }
    let mut reader = SseReader::default();
    reader.push(&out);
    let mut events = Vec::new();
    while let Some(event) = reader.next_event().unwrap() {
        events.push(event);
    }
    assert!(reader.last_event().is_none(), "no event is cut");
    events
}

/// As Anthropic's SDKs read a stream, which insist on the order of its events.
fn read_messages(events: &[SseEvent]) -> Read {
    let mut read = Read::default();
    let mut open: Option<(u64, String)> = None;
    let mut begun = 0;
    for event in events {
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(event.name.as_deref(), data["type"].as_str());
        assert!(!read.ended, "nothing follows the end");
        match data["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!((open.as_ref(), data["index"].as_u64()), (None, Some(begun)));
                begun += 1;
                let block = &data["content_block"];
                let kind = block["type"].as_str().unwrap().to_owned();
                if kind == "tool_use" {
                    assert!(!block["id"].as_str().unwrap().is_empty());
                    let name = block["name"].as_str().unwrap().to_owned();
                    read.calls.push((name, String::new()));
                }
                open = Some((begun - 1, kind));
            }
            "content_block_delta" => {
                let (index, kind) = open.as_ref().expect("a delta is of an open block");
                assert_eq!(data["index"].as_u64(), Some(*index));
                let delta = &data["delta"];
                match (delta["type"].as_str().unwrap(), kind.as_str()) {
                    ("text_delta", "text") => read.text += delta["text"].as_str().unwrap(),
                    ("thinking_delta", "thinking") => {
                        read.thought += delta["thinking"].as_str().unwrap();
                    }
                    ("signature_delta", "thinking") => {}
                    ("input_json_delta", "tool_use") => {
                        let call = read.calls.last_mut().unwrap();
                        call.1 += delta["partial_json"].as_str().unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            "content_block_stop" => {
                assert_eq!(open.take().unwrap().0, data["index"].as_u64().unwrap());
            }
            "message_stop" => read.ended = true,
            "error" => read.failed = true,
            "message_start" => assert_eq!(begun, 0),
            "message_delta" => assert!(open.is_none()),
            other => panic!("{other}"),
        }
    }
    read
}

/// As OpenAI's SDKs read a stream: calls by their index.
fn read_chat(events: &[SseEvent]) -> Read {
    let mut read = Read::default();
    for event in events {
        assert!(!read.ended, "nothing follows the end");
        if event.data.as_ref() == b"[DONE]" {
            read.ended = true;
            continue;
        }
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        if data.get("error").is_some() {
            read.failed = true;
            continue;
        }
        let delta = &data["choices"][0]["delta"];
        read.text += delta["content"].as_str().unwrap_or("");
        read.thought += delta["reasoning_content"].as_str().unwrap_or("");
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
            if index == read.calls.len() {
                assert!(!call["id"].as_str().unwrap().is_empty());
                let name = call["function"]["name"].as_str().unwrap().to_owned();
                read.calls.push((name, String::new()));
            }
            read.calls[index].1 += call["function"]["arguments"].as_str().unwrap();
        }
    }
    read
}

/// As OpenAI's SDKs read a stream of responses, which insist on its beginning, its numbers and on each item
/// before what is in it; the last event says all of it again.
fn read_responses(events: &[SseEvent]) -> Read {
    let mut read = Read::default();
    let mut items: Vec<Value> = Vec::new();
    for (n, event) in events.iter().enumerate() {
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(event.name.as_deref(), data["type"].as_str());
        assert_eq!(data["sequence_number"], n, "{data}");
        assert!(!read.ended, "nothing follows the end");
        let at = data["output_index"]
            .as_u64()
            .map(|at| usize::try_from(at).unwrap());
        if let (Some(at), Some(id)) = (at, data["item_id"].as_str()) {
            assert_eq!(items[at]["id"], id);
            assert!(items[at].get("done").is_none(), "it goes on after its end");
        }
        let delta = data["delta"].as_str().unwrap_or("");
        match data["type"].as_str().unwrap() {
            "response.created" => assert_eq!(n, 0),
            "response.in_progress" => assert_eq!(n, 1),
            "response.output_item.added" => {
                assert_eq!(at, Some(items.len()));
                let item = &data["item"];
                assert_eq!(item["status"], "in_progress");
                if item["type"] == "function_call" {
                    assert!(!item["call_id"].as_str().unwrap().is_empty());
                }
                items.push(item.clone());
            }
            "response.content_part.added" => {
                let content = items[at.unwrap()]["content"].as_array_mut().unwrap();
                assert_eq!(data["content_index"], content.len());
                content.push(data["part"].clone());
            }
            "response.reasoning_text.delta" => read.thought += delta,
            "response.output_text.delta" => read.text += delta,
            "response.function_call_arguments.delta" => {
                let item = &mut items[at.unwrap()];
                let so_far = item["arguments"].as_str().unwrap().to_owned();
                item["arguments"] = json!(so_far + delta);
            }
            "response.output_item.done" => items[at.unwrap()]["done"] = data["item"].clone(),
            "response.completed" => {
                read.ended = true;
                let output = data["response"]["output"].as_array().unwrap();
                assert_eq!(output.len(), items.len());
                for (item, last) in items.iter().zip(output) {
                    assert_eq!(item["done"], *last);
                    assert_eq!(item.get("arguments"), last.get("arguments"));
                }
                assert_eq!(data["response"]["usage"]["output_tokens"], 4);
            }
            "error" => read.failed = true,
            other => assert!(other.ends_with(".done"), "{other}"),
        }
    }
    for item in items.iter().filter(|item| item["type"] == "function_call") {
        let said = |name: &str| item[name].as_str().unwrap().to_owned();
        read.calls.push((said("name"), said("arguments")));
    }
    read
}

fn read(way: Translation, events: &[SseEvent]) -> Read {
    match way {
        Translation::MessagesToChat => read_messages(events),
        Translation::ChatToMessages => read_chat(events),
        Translation::ResponsesToChat | Translation::ResponsesToMessages => read_responses(events),
    }
}

/// What is said, piece by piece.
#[derive(Debug, Clone)]
enum Piece {
    Thought(String),
    Text(String),
    /// To the call in this place.
    Arguments(usize, String),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        "\\PC{0,6}".prop_map(Piece::Thought),
        "\\PC{0,6}".prop_map(Piece::Text),
        (0_usize..3, "\\PC{0,6}").prop_map(|(at, text)| Piece::Arguments(at, text)),
    ]
}

/// What a client has to read of all pieces, whatever their order.
fn said(pieces: &[Piece]) -> Read {
    let mut read = Read {
        ended: true,
        ..Read::default()
    };
    let mut order: Vec<usize> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Thought(text) => read.thought += text,
            Piece::Text(text) => read.text += text,
            Piece::Arguments(at, text) => {
                let place = order.iter().position(|known| known == at);
                let place = place.unwrap_or_else(|| {
                    order.push(*at);
                    read.calls.push((format!("f{at}"), String::new()));
                    order.len() - 1
                });
                read.calls[place].1 += text;
            }
        }
    }
    read
}

/// JSON with its texts in units of UTF-16.
fn escaped(text: &str) -> Vec<String> {
    text.encode_utf16()
        .map(|unit| format!("\\u{unit:04x}"))
        .collect()
}

/// Each text in two pieces, cut between any two units.
fn halves(text: &str, at: usize) -> [String; 2] {
    let units = escaped(text);
    let at = at % (units.len() + 1);
    [units[..at].concat(), units[at..].concat()]
}

/// Pieces as a stream of chat completions, calls mixed as they come.
fn chat_stream(pieces: &[Piece], at: usize) -> Vec<u8> {
    let mut stream = String::new();
    let mut begun: Vec<usize> = Vec::new();
    let mut chunk = |delta: String| {
        let data = format!(r#"{{"choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#);
        stream += &format!("data: {data}\n\n");
    };
    for piece in pieces {
        match piece {
            Piece::Thought(text) => {
                for half in halves(text, at) {
                    chunk(format!(r#"{{"reasoning_content":"{half}"}}"#));
                }
            }
            Piece::Text(text) => {
                for half in halves(text, at) {
                    chunk(format!(r#"{{"content":"{half}"}}"#));
                }
            }
            Piece::Arguments(call, text) => {
                let is_new = !begun.contains(call);
                if is_new {
                    begun.push(*call);
                    chunk(format!(
                        r#"{{"tool_calls":[{{"index":{call},"id":"c{call}","type":"function","function":{{"name":"f{call}","arguments":""}}}}]}}"#
                    ));
                }
                for half in halves(text, at) {
                    chunk(format!(
                        r#"{{"tool_calls":[{{"index":{call},"function":{{"arguments":"{half}"}}}}]}}"#
                    ));
                }
            }
        }
    }
    let usage = r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
    let finish = r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
    stream += &format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n");
    stream.into_bytes()
}

/// Pieces as a stream of messages, each in a block of its own but for calls, which stay open.
fn messages_stream(pieces: &[Piece], at: usize) -> Vec<u8> {
    let mut stream = String::new();
    let mut event = |data: String| stream += &format!("event: e\ndata: {data}\n\n");
    event(
        r#"{"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}"#
            .to_owned(),
    );
    let mut blocks = 0;
    let mut calls: Vec<(usize, usize)> = Vec::new();
    for piece in pieces {
        let (index, name, kind, text) = match piece {
            Piece::Thought(text) | Piece::Text(text) => {
                let (kind, name) = match piece {
                    Piece::Thought(_) => ("thinking", "thinking"),
                    _ => ("text", "text"),
                };
                let block = json!({"type": "content_block_start", "index": blocks, "content_block": {"type": kind, kind: ""}});
                event(block.to_string());
                blocks += 1;
                (blocks - 1, name, format!("{kind}_delta"), text)
            }
            Piece::Arguments(call, text) => {
                let known = calls
                    .iter()
                    .find(|(known, _)| known == call)
                    .map(|(_, index)| *index);
                let index = known.unwrap_or_else(|| {
                    let block = json!({"type": "content_block_start", "index": blocks,
                        "content_block": {"type": "tool_use", "id": format!("c{call}"), "name": format!("f{call}"), "input": {}}});
                    event(block.to_string());
                    calls.push((*call, blocks));
                    blocks += 1;
                    blocks - 1
                });
                (index, "partial_json", "input_json_delta".to_owned(), text)
            }
        };
        for half in halves(text, at) {
            event(format!(
                r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"{kind}","{name}":"{half}"}}}}"#
            ));
        }
        if !matches!(piece, Piece::Arguments(..)) {
            event(json!({"type": "content_block_stop", "index": index}).to_string());
        }
    }
    for (_, index) in calls {
        event(json!({"type": "content_block_stop", "index": index}).to_string());
    }
    event(r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}"#.to_owned());
    event(r#"{"type":"message_stop"}"#.to_owned());
    stream.into_bytes()
}

fn stream(way: Translation, pieces: &[Piece], at: usize) -> Vec<u8> {
    match way.upstream() {
        Api::Messages => messages_stream(pieces, at),
        _ => chat_stream(pieces, at),
    }
}

/// An empty input is an object all the same.
fn with_inputs(way: Translation, mut said: Read) -> Read {
    if way.upstream() == Api::Messages {
        for (_, arguments) in &mut said.calls {
            if arguments.is_empty() {
                *arguments = "{}".to_owned();
            }
        }
    }
    said
}

const WAYS: [Translation; 4] = [
    Translation::MessagesToChat,
    Translation::ChatToMessages,
    Translation::ResponsesToChat,
    Translation::ResponsesToMessages,
];

proptest! {
    #[test]
    fn what_was_said_arrives_byte_for_byte(
        pieces in prop::collection::vec(piece(), 0..12),
        chunks in prop::collection::vec(any::<usize>(), 0..6),
        at in any::<usize>(),
    ) {
        for way in WAYS {
            let stream = stream(way, &pieces, at);
            let events = played(way, &stream, &chunks, stream.len());
            prop_assert_eq!(read(way, &events), with_inputs(way, said(&pieces)), "{:?}", way);
        }
    }

    #[test]
    fn a_stream_that_is_cut_is_not_shown_as_whole(
        pieces in prop::collection::vec(piece(), 0..8),
        chunks in prop::collection::vec(any::<usize>(), 0..4),
        at in any::<usize>(),
        cut in any::<usize>(),
    ) {
        for way in WAYS {
            let stream = stream(way, &pieces, at);
            let cut = cut % stream.len();
            let events = played(way, &stream, &chunks, cut);
            let (read, whole) = (read(way, &events), said(&pieces));
            prop_assert!(!read.ended, "{:?}", way);
            prop_assert!(whole.text.starts_with(&read.text) && whole.thought.starts_with(&read.thought));
        }
    }

    #[test]
    fn no_stream_makes_it_panic(
        lines in prop::collection::vec("\\PC{0,40}", 0..6),
        names in prop::collection::vec("(content_block_start|content_block_delta|content_block_stop|message_delta|x)", 6),
    ) {
        for way in WAYS {
            let mut text = String::new();
            for (line, name) in lines.iter().zip(&names) {
                let quoted = json!(line);
                text += &format!("data: {line}\n\ndata: {{\"type\":\"{name}\",\"index\":{quoted},\"delta\":{quoted}}}\n\n");
                text += &format!("data: {{\"choices\":[{{\"delta\":{{\"tool_calls\":[{{\"function\":{{\"arguments\":{quoted}}}}}]}}}}]}}\n\n");
            }
            played(way, text.as_bytes(), &[], text.len());
        }
    }
}

/// What an agent makes of calls that come in these pieces.
fn called(pieces: &[&str]) -> Read {
    let mut stream = String::new();
    for piece in pieces {
        let delta = format!(r#"{{"tool_calls":[{piece}]}}"#);
        stream += &format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{delta}}}]}}\n\n");
    }
    let end = String::from_utf8(chat_stream(&[], 0)).unwrap();
    stream += &end;
    read_messages(&played(WAYS[0], stream.as_bytes(), &[], stream.len()))
}

#[test]
fn calls_are_told_apart_whatever_a_server_numbers_them_by() {
    let two = |pieces: &[&str]| {
        let read = called(pieces);
        assert!(read.ended, "{pieces:?}");
        assert_eq!(
            read.calls,
            [("f", r#"{"x":1}"#), ("g", r#"{"x":2}"#)]
                .map(|(name, arguments)| (name.to_owned(), arguments.to_owned())),
            "{pieces:?}"
        );
    };
    let f = r#"{"function":{"name":"f","arguments":"{\"x\":1}"}}"#;
    let g = r#"{"function":{"name":"g","arguments":"{\"x\":2}"}}"#;
    two(&[f, g]);
    let at_zero = |call: &str| call.replacen('{', r#"{"index":0,"#, 1);
    two(&[&at_zero(f), &at_zero(g)]);
    let with_id =
        |call: &str, id: &str| call.replacen('{', &format!(r#"{{"index":0,"id":"{id}","#), 1);
    two(&[&with_id(f, "a"), &with_id(g, "b")]);
    let begun = r#"{"index":0,"id":"a","function":{"name":"f","arguments":"{\"x\""}}"#;
    let other_id = r#"{"index":0,"id":"z","function":{"arguments":":1}"}}"#;
    two(&[begun, other_id, &with_id(g, "b")]);
    let named_again = r#"{"index":0,"function":{"name":"f","arguments":":1}"}}"#;
    two(&[
        begun,
        named_again,
        r#"{"index":0,"function":{"name":"f"}}"#,
        &at_zero(g),
    ]);
    let same = called(&[&at_zero(f), &at_zero(f)]);
    assert_eq!(same.calls.len(), 2, "the same tool again");
}

#[test]
fn hundreds_of_calls_are_an_answer() {
    let piece = |n: usize| {
        format!(r#"{{"index":{n},"id":"c{n}","function":{{"name":"f","arguments":"{{}}"}}}}"#)
    };
    let pieces: Vec<_> = (0..1000).map(piece).collect();
    let read = called(&pieces.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(read.ended && !read.failed);
    assert_eq!(read.calls.len(), 1000);
    let whole = format!(
        r#"{{"choices":[{{"message":{{"tool_calls":[{}]}}}}]}}"#,
        pieces.join(",")
    );
    for way in [Translation::MessagesToChat, Translation::ResponsesToChat] {
        assert!(face(way).whole(whole.clone().into(), None).is_some());
    }
}

#[test]
fn an_error_names_the_field_that_its_client_wrote() {
    let error = r#"{"error":{"message":"'response_format.json_schema' is too deep","type":"invalid_request_error","param":"response_format.json_schema"}}"#;
    for (way, field) in [
        (Translation::MessagesToChat, "output_config.format"),
        (Translation::ResponsesToChat, "text.format"),
    ] {
        let shown: Value = serde_json::from_slice(&face(way).error(400, error.into())).unwrap();
        assert_eq!(shown["error"]["param"], field);
        assert_eq!(shown["error"]["message"], format!("'{field}' is too deep"));
    }
}

#[test]
fn a_call_without_a_name_is_an_error_and_no_call() {
    for piece in [
        r#"{"index":0,"id":"a","function":{"arguments":"{}"}}"#,
        r#"{"index":0,"id":"a","type":"custom","custom":{"name":"c","input":"x"}}"#,
    ] {
        let read = called(&[piece]);
        assert!(
            read.failed && !read.ended && read.calls.is_empty(),
            "{read:?}"
        );
        let whole = format!(r#"{{"choices":[{{"message":{{"tool_calls":[{piece}]}}}}]}}"#);
        assert!(face(WAYS[0]).whole(whole.into(), None).is_none());
    }
}

#[test]
fn an_error_within_a_stream_of_responses_is_its_last_event_and_numbered() {
    let error = "data: {\"error\":{\"message\":\"no\",\"code\":\"overloaded\"}}\n\n";
    let whole = String::from_utf8(chat_stream(&[Piece::Text("a".to_owned())], 0)).unwrap();
    let begun: String = whole.split_inclusive("\n\n").take(2).collect();
    let stream = (begun + error).into_bytes();
    let events = played(Translation::ResponsesToChat, &stream, &[], stream.len());
    let read = read_responses(&events);
    assert!(read.failed && !read.ended);
    let last: Value = serde_json::from_slice(&events.last().unwrap().data).unwrap();
    assert_eq!(
        (&last["code"], &last["error"]["message"]),
        (&json!("overloaded"), &json!("no"))
    );
    // and so is one of this gateway's own
    let own = json!({"error": {"message": "m", "type": "api_error", "code": null, "param": null}});
    let own = face(Translation::ResponsesToMessages).failure(own);
    assert_eq!(
        (&own["type"], &own["sequence_number"], &own["code"]),
        (&json!("error"), &json!(0), &json!("api_error"))
    );
}
