//! The Anthropic dialect, translated and passed through.

use seatbelt_gateway::Dialect;
use seatbelt_schemas::{cap::CapSpec, ids::EndUserId, scope::Scope, window::Window};
use serde_json::{Value, json};

use crate::support::{
    Script, Stack, broken_text, chat_stream, hi, hi_stream, status_and_body, stream_text, tokens,
};

pub(crate) async fn native() -> Stack {
    native_with(tokens(1000, Window::Balance)).await
}

async fn native_with(cap: CapSpec) -> Stack {
    Stack::start_with(cap, |config| {
        let upstream = &mut config.upstreams[0];
        upstream.kind = Dialect::Anthropic;
        upstream.base_url = upstream.base_url.trim_end_matches("/v1").to_owned();
        upstream.api_key = Some("sk-upstream".into());
    })
    .await
}

fn event(data: &Value) -> String {
    format!(
        "event: {}\ndata: {data}\n\n",
        data["type"].as_str().unwrap()
    )
}

pub(crate) fn native_stream() -> Vec<String> {
    vec![
        event(
            &json!({"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 1}}}),
        ),
        event(
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}),
        ),
        event(
            &json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}),
        ),
        event(&json!({"type": "message_stop"})),
    ]
}

#[tokio::test]
async fn a_message_is_translated_both_ways() {
    let stack = Stack::balance(1000).await;
    let (status, body) = status_and_body(stack.post("/v1/messages", &hi(20))).await;
    assert_eq!(status, 200);
    assert_eq!(body["content"], json!([{"type": "text", "text": "hello"}]));
    assert_eq!(
        (&body["type"], &body["stop_reason"]),
        (&json!("message"), &json!("end_turn"))
    );
    assert_eq!(
        (
            &body["usage"]["input_tokens"],
            &body["usage"]["output_tokens"]
        ),
        (&json!(10), &json!(5))
    );
    assert_eq!(stack.upstream.last().body["max_tokens"], 20);
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_kept_conversation_is_refused_in_the_words_that_the_sdk_goes_on_after() {
    let mut body = hi(20);
    body["thread"] = json!({"type": "create"});
    for stack in [native().await, Stack::balance(1000).await] {
        let (status, told) = status_and_body(stack.post("/v1/messages", &body)).await;
        assert_eq!(status, 400, "{told}");
        assert_eq!(
            told["error"]["details"],
            json!({"error_code": "thread_unsupported_request", "unsupported": ["thread"]})
        );
        assert_eq!(stack.upstream.hits(), 0);
    }
}

#[tokio::test]
async fn the_end_user_is_the_same_whatever_the_upstream_speaks() {
    let cap = || CapSpec {
        scope: Scope::EndUser(EndUserId::new("eve").unwrap()),
        ..tokens(10, Window::Balance)
    };
    let mut body = hi(20);
    body["metadata"] = json!({"user_id": "eve"});
    for stack in [Stack::start(cap()).await, native_with(cap()).await] {
        let (status, refused) = status_and_body(stack.post("/v1/messages", &body)).await;
        assert_eq!(
            (status, &refused["error"]["scope"]),
            (429, &json!("end_user")),
            "{refused}"
        );
        assert_eq!(stack.upstream.hits(), 0);
        let named = stack.post("/v1/messages", &hi(20));
        let (status, refused) = status_and_body(named.header("x-seatbelt-user", "eve")).await;
        assert_eq!(
            (status, &refused["error"]["scope"]),
            (429, &json!("end_user"))
        );
        let other = stack.post("/v1/messages", &body);
        let other = other.header("x-seatbelt-user", "adam");
        assert_eq!(other.send().await.unwrap().status().as_u16(), 200);
        assert!(
            !stack
                .upstream
                .last()
                .headers
                .contains_key("x-seatbelt-user")
        );
    }
}

#[tokio::test]
async fn a_beta_that_nobody_listed_is_refused_and_a_listed_one_sent_on() {
    let stack = native().await;
    let post = |beta: &str| {
        stack
            .post("/v1/messages", &hi(20))
            .header("anthropic-beta", beta)
    };
    let (status, refused) = status_and_body(post("context-1m-2025-08-07")).await;
    assert_eq!(
        (status, &refused["error"]["param"]),
        (400, &json!("anthropic-beta"))
    );
    assert_eq!(stack.upstream.hits(), 0);
    status_and_body(post("prompt-caching-2024-07-31")).await;
    assert_eq!(
        stack.upstream.last().headers["anthropic-beta"],
        "prompt-caching-2024-07-31"
    );
}

#[tokio::test]
async fn a_streamed_message_is_translated() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Stream(chat_stream()));
    let text = stream_text(stack.post("/v1/messages", &hi_stream(20))).await;
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("event: "))
        .collect();
    let delta = "content_block_delta";
    let expected = [
        "message_start",
        "content_block_start",
        delta,
        delta,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, expected);
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn refusals_and_upstream_errors_wear_the_anthropic_envelope() {
    let stack = Stack::balance(50).await;
    let (status, body) = status_and_body(stack.post("/v1/messages", &hi(1000))).await;
    assert_eq!((status, &body["type"]), (429, &json!("error")));
    assert_eq!(
        (&body["error"]["type"], &body["error"]["limit"]),
        (&json!("rate_limit_error"), &json!(50))
    );
    assert_eq!(body["error"]["code"], "insufficient_quota");
    let error = r#"{"error":{"message":"no","type":"server_error"}}"#;
    stack
        .upstream
        .plays(Script::Whole(500, "application/json", error.to_owned()));
    let (status, body) = status_and_body(stack.post("/v1/messages", &hi(20))).await;
    assert_eq!(
        (status, body),
        (
            500,
            json!({"type": "error", "error":
                {"message": "no", "type": "api_error", "code": "server_error"}})
        )
    );
    let (status, body) = status_and_body(stack.post(
        "/v1/messages",
        &json!({"model": "test-model", "messages": []}),
    ))
    .await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (400, &json!("invalid_body"))
    );
}

#[tokio::test]
async fn an_anthropic_upstream_is_passed_through() {
    let stack = native().await;
    let answer = json!({"id": "m", "type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 6, "cache_creation_input_tokens": 1, "cache_read_input_tokens": 3, "output_tokens": 5}})
    .to_string();
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.clone()));
    let response = stack.post("/v1/messages", &hi(20)).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), answer);
    let asked = stack.upstream.last();
    let mut pinned = hi(20);
    pinned["service_tier"] = json!("standard_only");
    assert_eq!(
        (asked.path.as_str(), &asked.body),
        ("/v1/messages", &pinned)
    );
    assert_eq!(asked.headers["x-api-key"], "sk-upstream");
    assert_eq!(asked.headers["anthropic-version"], "2023-06-01");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn an_anthropic_stream_is_passed_through_byte_for_byte() {
    let stack = native().await;
    stack.upstream.plays(Script::Stream(native_stream()));
    let text = stream_text(stack.post("/v1/messages", &hi_stream(20))).await;
    assert_eq!(text, native_stream().concat());
    assert_eq!(stack.spent_once_idle().await, 15);
    let cut = native_stream().into_iter().take(2).collect();
    stack.upstream.plays(Script::Broken(cut));
    let text = broken_text(&stack, stack.post("/v1/messages", &hi_stream(20))).await;
    assert!(
        text.contains("event: error\ndata: {\"type\":\"error\"") && !text.contains("message_stop"),
        "{text}"
    );
    assert_eq!(stack.spent_once_idle().await, 15 + 38);
}
