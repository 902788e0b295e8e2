//! What clients do in their own ways: encodings, marks before a text, pages of other origins, silence that is not to
//! be taken for an end.

use std::{io::Write, time::Duration};

use flate2::{Compression, write::GzEncoder};
use seatbelt_gateway::Dialect;
use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::support::{
    SECRET, Script, Stack, chat_answer, chat_stream, hi, hi_stream, read_until, status_and_body,
    stream_text, tokens,
};

fn zipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn encoded(stack: &Stack, encoding: &str, body: Vec<u8>) -> reqwest::RequestBuilder {
    let url = format!("{}/v1/chat/completions", stack.base);
    let post = stack.client.post(url).bearer_auth(SECRET);
    post.header("content-encoding", encoding).body(body)
}

#[tokio::test]
async fn a_gzip_body_is_read_within_its_bound_and_other_encodings_are_named() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.body_bytes = 1 << 16;
    })
    .await;
    let body = hi(20).to_string();
    let (status, _) = status_and_body(encoded(&stack, "gzip", zipped(&body))).await;
    assert_eq!(status, 200);
    assert_eq!(stack.upstream.last().body, hi(20));
    assert!(
        !stack
            .upstream
            .last()
            .headers
            .contains_key("content-encoding")
    );
    let bomb = zipped(&" ".repeat(10 << 20));
    let (status, answer) = status_and_body(encoded(&stack, "gzip", bomb)).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (413, &json!("request_too_large"))
    );
    let (status, answer) = status_and_body(encoded(&stack, "gzip", body.clone().into())).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (400, &json!("invalid_body"))
    );
    for other in ["zstd", "br", "gzip, br"] {
        let (status, answer) = status_and_body(encoded(&stack, other, body.clone().into())).await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert_eq!(status, 415, "{answer}");
        assert!(
            message.contains(other.rsplit(' ').next().unwrap()),
            "{message}"
        );
    }
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn a_mark_before_the_text_and_a_maximum_with_a_fraction_of_none_are_read() {
    let stack = Stack::balance(1000).await;
    let body = format!("\u{feff}{}", hi(20));
    let (status, _) = status_and_body(encoded(&stack, "identity", body.into())).await;
    assert_eq!(status, 200);
    let mut body = hi(20);
    body["max_tokens"] = json!(10.0);
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    assert_eq!(stack.upstream.last().body["max_tokens"].to_string(), "10");
}

#[tokio::test]
async fn pages_of_listed_origins_may_call_and_no_others() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.cors_origins = vec!["https://app.example".to_owned()];
    })
    .await;
    let url = format!("{}/v1/chat/completions", stack.base);
    let asks = |origin: &'static str| {
        let ask = stack.client.request(reqwest::Method::OPTIONS, &url);
        ask.header("origin", origin)
            .header("access-control-request-method", "POST")
            .header(
                "access-control-request-headers",
                "authorization,content-type",
            )
    };
    let allowed = asks("https://app.example").send().await.unwrap();
    assert_eq!(allowed.status().as_u16(), 204);
    assert_eq!(
        allowed.headers()["access-control-allow-origin"],
        "https://app.example"
    );
    assert_eq!(
        allowed.headers()["access-control-allow-headers"],
        "authorization,content-type"
    );
    let other = asks("https://other.example").send().await.unwrap();
    assert_eq!(other.status().as_u16(), 405);
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    assert_eq!(other.headers()["vary"], "origin");
    let call = stack.chat(&hi(20)).header("origin", "https://app.example");
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["access-control-expose-headers"], "*");
    let plain = Stack::balance(100).await;
    let call = plain.chat(&hi(20)).header("origin", "https://app.example");
    let answer = call.send().await.unwrap();
    assert!(!answer.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_silent_stream_says_that_it_goes_on_in_its_dialect() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.ping = Duration::from_millis(20);
    })
    .await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut response = stack.chat(&hi_stream(20)).send().await.unwrap();
    let silent = read_until(&mut response, ": ping\n\n: ping\n\n").await;
    stack.upstream.go_on.notify_one();
    let all = silent + &response.text().await.unwrap();
    assert!(all.ends_with("data: [DONE]\n\n"), "{all}");
    assert_eq!(stack.spent_once_idle().await, 15);
    stack.upstream.plays(Script::Held(chat_stream()));
    response = stack
        .post("/v1/messages", &hi_stream(20))
        .send()
        .await
        .unwrap();
    let silent = read_until(&mut response, "event: ping\ndata: {\"type\": \"ping\"}\n\n").await;
    stack.upstream.go_on.notify_one();
    let all = silent + &response.text().await.unwrap();
    assert!(all.contains("message_stop"), "{all}");
}

#[tokio::test]
async fn a_stream_is_silent_for_its_client_whatever_comes_of_its_upstream() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.ping = Duration::from_millis(50);
    })
    .await;
    let mut pieces = chat_stream();
    let comments = std::iter::repeat_n(": nothing for a client of messages\n\n".to_owned(), 200);
    pieces.splice(1..1, comments);
    stack
        .upstream
        .plays(Script::Slow(pieces, Duration::from_millis(5)));
    let text = stream_text(stack.post("/v1/messages", &hi_stream(20))).await;
    let pings = text.matches("event: ping\n").count();
    assert!(pings >= 2, "{pings} in a second: {text}");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_wrong_base_url_of_an_upstream_is_told() {
    let stack = Stack::balance(1000).await;
    let page = "<html><h1>404 Not Found</h1></html>".to_owned();
    stack.upstream.plays(Script::Whole(404, "text/html", page));
    let (status, answer) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(status, 502);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("base_url") && !message.contains("html"),
        "{message}"
    );
    assert_eq!(stack.spent_once_idle().await, 0);
    let error = json!({"error": {"message": "no such model"}}).to_string();
    stack
        .upstream
        .plays(Script::Whole(404, "application/json", error));
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 404);
}

#[tokio::test]
async fn the_input_of_a_response_is_counted_for_free() {
    let ask = json!({"model": "test-model", "input": "hi"});
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.upstreams[0].responses = true;
    })
    .await;
    let counted = json!({"object": "response.input_tokens", "input_tokens": 7}).to_string();
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", counted));
    let response = stack
        .post("/v1/responses/input_tokens", &ask)
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-seatbelt-counted"], "upstream");
    let answer: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    assert_eq!(answer["input_tokens"], 7);
    assert_eq!(stack.upstream.last().path, "/v1/responses/input_tokens");
    assert_eq!(stack.spent_once_idle().await, 0);
    let kept = json!({"model": "test-model", "input": "hi", "previous_response_id": "r"});
    let (status, _) = status_and_body(stack.post("/v1/responses/input_tokens", &kept)).await;
    assert_eq!((status, stack.upstream.hits()), (400, 1));
    for item in [
        json!({"type": "item_reference", "id": "x"}),
        json!({"id": "x"}),
        json!({"type": "reasoning", "id": "x"}),
    ] {
        let kept = json!({"model": "test-model", "input": [item]});
        let (status, _) = status_and_body(stack.post("/v1/responses/input_tokens", &kept)).await;
        assert_eq!((status, stack.upstream.hits()), (400, 1), "{kept}");
    }
}

#[tokio::test]
async fn what_is_no_count_is_not_passed_on_as_one() {
    let ask = json!({"model": "test-model", "input": "hi"});
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.upstreams[0].responses = true;
    })
    .await;
    let asked = async |status: u16, headers: &[(&str, &str)], body: &str| {
        let headers = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let script = Script::Head(status, headers.collect(), body.to_owned());
        stack.upstream.plays(script);
        stack
            .post("/v1/responses/input_tokens", &ask)
            .send()
            .await
            .unwrap()
    };
    for body in [
        "",
        "<html></html>",
        "data: {}",
        "{}",
        r#"{"error": {"message": "no"}}"#,
        r#"{"input_tokens": -1}"#,
        r#"{"input_tokens": "7"}"#,
        r#"{"input_tokens": 1e20}"#,
    ] {
        assert_eq!(asked(200, &[], body).await.status().as_u16(), 502, "{body}");
    }
    let encoded = asked(200, &[("content-encoding", "br")], r#"{"input_tokens": 7}"#).await;
    assert_eq!(encoded.status().as_u16(), 502);
    let page = asked(404, &[("content-type", "text/html")], "<html></html>").await;
    assert_eq!(page.status().as_u16(), 502);
    let error = r#"{"error": {"message": "slow down"}}"#;
    let busy = asked(
        429,
        &[("retry-after", "7"), ("content-type", "application/json")],
        error,
    )
    .await;
    assert_eq!(busy.status().as_u16(), 429);
    assert_eq!(busy.headers()["retry-after"], "7");
    assert_eq!(busy.text().await.unwrap(), error);
}

#[tokio::test]
async fn thoughts_that_were_signed_here_are_not_sent_to_anthropic() {
    let stack = Stack::start_with(tokens(10_000, Window::Balance), |config| {
        let upstream = &mut config.upstreams[0];
        upstream.kind = Dialect::Anthropic;
        upstream.base_url = upstream.base_url.trim_end_matches("/v1").to_owned();
    })
    .await;
    let answer = json!({"type": "message", "content": [{"type": "text", "text": "hi"}], "model": "test-model",
        "usage": {"input_tokens": 1, "output_tokens": 1}});
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_string()));
    let said = json!([{"type": "thinking", "thinking": "hm", "signature": "seatbelt"}, {"type": "text", "text": "a"}]);
    let body = json!({"model": "test-model", "max_tokens": 20, "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": said}, {"role": "user", "content": "b"}]});
    assert_eq!(
        status_and_body(stack.post("/v1/messages", &body)).await.0,
        200
    );
    let sent = stack.upstream.last().body;
    assert_eq!(
        sent["messages"][1]["content"],
        json!([{"type": "text", "text": "a"}])
    );
}

#[tokio::test]
async fn the_operators_organization_stays_inside() {
    let stack = Stack::balance(1000).await;
    let headers = [
        ("content-type", "application/json"),
        ("anthropic-organization-id", "org-1"),
        ("openai-organization", "org-1"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    stack
        .upstream
        .plays(Script::Head(200, headers.to_vec(), chat_answer()));
    let response = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let told = response.headers().values().any(|value| value == "org-1");
    assert!(!told, "{:?}", response.headers());
}
