//! Tools, images and errors from each dialect to an upstream of the other.

use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::{
    messages::{native, native_stream},
    support::{Script, Stack, chat_stream, hi, hi_stream, status_and_body, stream_text, tokens},
};

const TOOL_USE: &str = r#"{"type":"tool_use","id":"c1","name":"look","input":{"where": "here"}}"#;

/// A first request of an agent that speaks messages, and what came of it so far.
fn agent(stream: bool) -> Value {
    json!({
        "model": "test-model", "max_tokens": 20, "stream": stream,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "metadata": {"user_id": "user_0123456789012345678901234567890123456789012345678901234567890123456789"},
        "thinking": {"type": "adaptive"},
        "tools": [{"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": "where is it?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "c0", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c0", "content": "no", "is_error": true}]},
        ],
    })
}

fn call(arguments: &str) -> Value {
    json!({"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": arguments}})
}

#[tokio::test]
async fn an_agent_with_tools_reaches_an_upstream_of_chat() {
    let stack = Stack::balance(5000).await;
    let answer = json!({
        "id": "x", "model": "test-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": null,
            "tool_calls": [call(r#"{"where": "here"}"#)]}, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    });
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_string()));
    let response = stack
        .post("/v1/messages", &agent(false))
        .send()
        .await
        .unwrap();
    assert!(response.headers().contains_key("request-id"));
    let text = response.text().await.unwrap();
    assert!(text.contains(TOOL_USE), "{text}");
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(shown["stop_reason"], "tool_use");
    let asked = stack.upstream.last().body;
    assert_eq!(asked["tools"][0]["function"]["name"], "look");
    assert_eq!(
        (&asked["max_tokens"], &asked["user"]),
        (&json!(20), &Value::Null)
    );
    let roles: Vec<&str> = asked["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool"]);
    assert_eq!(asked["messages"][3]["content"], "Error: no");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_streamed_call_reaches_an_agent_before_its_end() {
    let stack = Stack::balance(5000).await;
    let chunk = |delta: Value| {
        format!(
            "data: {}\n\n",
            json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
        )
    };
    let mut pieces = vec![
        chunk(json!({"tool_calls": [call("")]})),
        chunk(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"where\":"}}]})),
        chunk(json!({"tool_calls": [{"index": 0, "function": {"arguments": " \"here\"}"}}]})),
    ];
    pieces.extend(chat_stream().into_iter().skip(2));
    stack.upstream.plays(Script::Stream(pieces));
    let text = stream_text(stack.post("/v1/messages", &agent(true))).await;
    let at = |what: &str| {
        text.find(what)
            .unwrap_or_else(|| panic!("{what} in {text}"))
    };
    let start = at(r#""content_block":{"type":"tool_use","id":"c1","name":"look","input":{}}"#);
    let first = at(r#"{"type":"input_json_delta","partial_json":"{\"where\":"}"#);
    let end = at(r#""stop_reason":"tool_use""#);
    assert!(start < first && first < end);
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn an_image_without_a_maximum_is_refused_where_a_cap_counts_it() {
    let stack = Stack::balance(5000).await;
    let mut body = hi(20);
    body["messages"][0]["content"] =
        json!([{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]);
    let (status, refused) = status_and_body(stack.post("/v1/messages", &body)).await;
    assert_eq!(
        (status, &refused["error"]["code"]),
        (400, &json!("cost_unbounded")),
        "{refused}"
    );
    assert_eq!(stack.upstream.hits(), 0);
}

#[tokio::test]
async fn a_chat_with_tools_reaches_an_upstream_of_messages() {
    let stack = native().await;
    let answer = format!(
        r#"{{"id":"m","type":"message","model":"test-model","content":[{{"type":"text","text":"I look."}},{TOOL_USE}],"stop_reason":"tool_use","usage":{{"input_tokens":6,"cache_read_input_tokens":4,"output_tokens":5}}}}"#
    );
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer));
    let mut body = hi(20);
    body["tools"] = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let (status, shown) = status_and_body(stack.chat(&body)).await;
    assert_eq!(status, 200, "{shown}");
    let message = &shown["choices"][0]["message"];
    assert_eq!(message["content"], "I look.");
    let function = &message["tool_calls"][0]["function"];
    assert_eq!(function["arguments"], r#"{"where": "here"}"#);
    assert_eq!(shown["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(shown["usage"]["prompt_tokens"], 10);
    let asked = stack.upstream.last();
    assert_eq!(asked.path, "/v1/messages");
    assert_eq!(asked.headers["anthropic-version"], "2023-06-01");
    let sent = json!({
        "model": "test-model", "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        "service_tier": "standard_only", "max_tokens": 20,
    });
    assert_eq!(asked.body, sent);
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_chat_without_a_maximum_is_given_one_that_fits_its_hold() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        let upstream = &mut config.upstreams[0];
        upstream.kind = seatbelt_gateway::Dialect::Anthropic;
        upstream.base_url = upstream.base_url.trim_end_matches("/v1").to_owned();
        upstream.models[0].output_default = Some(33);
    })
    .await;
    let mut body = hi(20);
    body.as_object_mut().unwrap().remove("max_tokens");
    let (status, _) = status_and_body(stack.chat(&body)).await;
    assert_eq!(
        (status, &stack.upstream.last().body["max_tokens"]),
        (502, &json!(33))
    );
}

#[tokio::test]
async fn a_stream_of_messages_is_one_of_chat_with_the_usage_that_was_asked_for() {
    let stack = native().await;
    stack.upstream.plays(Script::Stream(native_stream()));
    let quiet = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(quiet.contains(r#""delta":{"content":"hi"}"#), "{quiet}");
    assert!(
        quiet.ends_with("data: [DONE]\n\n") && !quiet.contains("usage"),
        "{quiet}"
    );
    let mut body = hi_stream(20);
    body["stream_options"] = json!({"include_usage": true});
    let told = stream_text(stack.chat(&body)).await;
    assert!(
        told.contains(r#""choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5"#),
        "{told}"
    );
    assert_eq!(stack.spent_once_idle().await, 30);
}

#[tokio::test]
async fn errors_of_an_upstream_of_messages_wear_the_envelope_of_chat() {
    let stack = native().await;
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"},"request_id":"r"}"#;
    stack
        .upstream
        .plays(Script::Whole(529, "application/json", error.to_owned()));
    let (status, body) = status_and_body(stack.chat(&hi(20))).await;
    let expected = json!({"error": {"type": "server_error", "message": "Overloaded", "code": "overloaded_error"}});
    assert_eq!((status, body), (529, expected));
    stack
        .upstream
        .plays(Script::Whole(500, "text/html", "<html>".to_owned()));
    let response = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    let within = native_stream().into_iter().take(2);
    let event = format!("event: error\ndata: {error}\n\n");
    stack
        .upstream
        .plays(Script::Stream(within.chain([event]).collect()));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(
        text.contains("data: {\"error\":{\"type\":\"server_error\"") && !text.contains("[DONE]"),
        "{text}"
    );
}

#[tokio::test]
async fn what_messages_cannot_say_is_refused_by_name_before_anything_is_held() {
    let stack = native().await;
    let mut body = hi(20);
    body["n"] = json!(2);
    let (status, refused) = status_and_body(stack.chat(&body)).await;
    assert_eq!(
        (status, &refused["error"]["param"]),
        (400, &json!("n")),
        "{refused}"
    );
    assert_eq!((stack.upstream.hits(), stack.cap().await.held), (0, 0));
}
