//! Streams pass through as they come, and end only once they are settled.

use std::{sync::atomic::Ordering::SeqCst, time::Duration};

use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::support::{
    Script, Stack, broken_text, chat_stream, chunk, hi_stream, read_until, status_and_body,
    stream_text, tokens,
};

#[tokio::test]
async fn the_usage_chunk_is_hidden_from_a_client_that_did_not_ask() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Stream(chat_stream()));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(!text.contains("usage"), "{text}");
    assert!(
        text.contains("hel") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert_eq!(
        stack.upstream.last().body["stream_options"],
        json!({"include_usage": true})
    );
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_client_that_asked_for_usage_gets_the_stream_byte_for_byte() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Stream(chat_stream()));
    let mut body = hi_stream(20);
    body["stream_options"] = json!({"include_usage": true});
    assert_eq!(stream_text(stack.chat(&body)).await, chat_stream().concat());
}

#[tokio::test]
async fn chunks_arrive_before_the_stream_ends() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut response = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut response, "hel").await;
    assert_eq!(stack.cap().await.held, 38);
    stack.upstream.go_on.notify_one();
    read_until(&mut response, "[DONE]").await;
}

#[tokio::test]
async fn the_end_comes_after_the_settle() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Stream(chat_stream()));
    for n in 1..=10 {
        let mut response = stack.chat(&hi_stream(20)).send().await.unwrap();
        read_until(&mut response, "[DONE]").await;
        let cap = stack.cap().await;
        assert_eq!((cap.spent, cap.held), (15 * n, 0));
    }
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error_and_is_charged() {
    let stack = Stack::balance(1000).await;
    for script in [
        Script::Broken(vec![chunk("hel")]),
        Script::Held(vec![chunk("hel")]),
    ] {
        let before = stack.spent_once_idle().await;
        stack.upstream.plays(script);
        let text = broken_text(&stack, stack.chat(&hi_stream(20))).await;
        let (_, error) = text.split_once("event: error\ndata: ").expect(&text);
        let error: Value = serde_json::from_str(error.trim()).unwrap();
        assert_eq!(error["error"]["code"], "upstream_connection_error");
        assert!(!text.contains("[DONE]"));
        assert_eq!(stack.spent_once_idle().await - before, 38);
    }
}

#[tokio::test]
async fn an_error_within_the_stream_is_passed_on_without_a_normal_end() {
    let stack = Stack::balance(1000).await;
    let error = "data: {\"error\":{\"message\":\"overloaded\"}}\n\n".to_owned();
    let pieces = vec![chunk("hel"), error.clone(), "data: [DONE]\n\n".to_owned()];
    stack.upstream.plays(Script::Stream(pieces));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(text.ends_with(&error), "{text}");
    assert_eq!(stack.spent_once_idle().await, 38);
}

#[tokio::test]
async fn a_stream_without_its_mark_ends_normally_if_its_usage_came() {
    let stack = Stack::balance(1000).await;
    let mut pieces = chat_stream();
    pieces.pop();
    stack.upstream.plays(Script::Stream(pieces));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(!text.contains("error"), "{text}");
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_stream_that_cannot_be_settled_ends_in_an_error() {
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| {
        config.ledger_timeout = std::time::Duration::from_millis(100);
    })
    .await;
    stack.upstream.plays(Script::Stream(chat_stream()));
    stack.ledger.settles_away.store(true, SeqCst);
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(
        text.contains("ledger_unavailable") && !text.contains("[DONE]"),
        "{text}"
    );
    stack.ledger.settles_away.store(false, SeqCst);
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn an_upstream_that_ignores_stream_is_settled_and_its_answer_no_empty_stream() {
    let stack = Stack::balance(1000).await;
    for (path, charged) in [("/v1/chat/completions", 15), ("/v1/messages", 30)] {
        let (status, body) = status_and_body(stack.post(path, &hi_stream(20))).await;
        assert_eq!(
            (status, &body["error"]["code"]),
            (502, &json!("upstream_connection_error"))
        );
        assert_eq!(stack.spent_once_idle().await, charged);
    }
}

/// A connection that lives and says nothing is no answer for ever; a ping to the client is nothing heard.
#[tokio::test]
async fn an_upstream_that_falls_silent_within_its_stream_is_cut_and_costs_the_hold() {
    let stack = Stack::start_with(tokens(100_000, Window::Balance), |told| {
        told.upstream_idle = Duration::from_millis(300);
        told.ping = Duration::from_millis(50);
    })
    .await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(text.contains("error") && !text.contains("[DONE]"), "{text}");
    assert!(stack.spent_once_idle().await > 20);
    // as long as something comes, it is not silent
    let pieces = chat_stream();
    stack
        .upstream
        .plays(Script::Slow(pieces, Duration::from_millis(120)));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(text.contains("[DONE]"), "{text}");
}
