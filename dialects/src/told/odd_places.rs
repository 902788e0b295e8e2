//! Reports and content that stand where nobody looks for them first.

use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::{api::Api, sse::SseEvent};

const SENT: Sent = Sent {
    choices: 1,
    long_writes: false,
};

fn told(api: Api, data: &[Value]) -> (StreamTold, Vec<Part>) {
    let mut told = StreamTold::new(api, SENT);
    let note = |data: &Value| {
        told.note(&SseEvent {
            raw: Bytes::new(),
            name: None,
            data: data.to_string().into(),
        })
    };
    let parts = data.iter().map(note).collect();
    (told, parts)
}

#[test]
fn an_error_tells_of_its_use_wherever_it_likes() {
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10});
    let error = json!({"message": "b"});
    let whole = |body: &Value| Told::read(Api::Chat, SENT, body.to_string().as_bytes()).unwrap();
    for body in [
        json!({"error": {"message": "b", "usage": usage}}),
        json!({"error": {"message": "b", "metadata": {"usage": usage}}}),
        json!({"error": error, "response": {"usage": usage}}),
        json!({"error": error, "metadata": {"usage": usage}}),
    ] {
        let whole = whole(&body).usage.map(|usage| usage.output_tokens);
        assert_eq!(whole, Some(7), "{body}");
        let (stream, parts) = told(Api::Chat, std::slice::from_ref(&body));
        assert_eq!(parts, [Part::Error]);
        let stream = stream.usage_so_far().map(|usage| usage.input_tokens);
        assert_eq!(stream, Some(3), "{body}");
    }
    let said = json!({"error": {"message": "say \"usage\": {\"prompt_tokens\": 3}"}});
    assert_eq!(whole(&said).usage, None, "in a text it is none");
}

#[test]
fn content_that_comes_with_the_beginning_of_a_message_is_output() {
    let start = json!({"type": "message_start", "message": {
        "content": [{"type": "text", "text": "hello"}], "usage": {"input_tokens": 0, "output_tokens": 0}}});
    let delta = json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 0}});
    let stop = json!({"type": "message_stop"});
    let (told, _) = told(Api::Messages, &[start, delta, stop]);
    assert!(told.output_bytes >= 5, "{}", told.output_bytes);
    assert_eq!(told.final_usage(true), None, "zero is no report");
}
