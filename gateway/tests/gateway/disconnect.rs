//! Clients that leave.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use seatbelt_gateway::OnDisconnect;
use seatbelt_schemas::window::Window;

use crate::support::{
    Script, Stack, chat_answer, chat_stream, eventually, hi, hi_stream, read_until,
    status_and_body, tokens,
};

/// Starts a stream and leaves in the middle of it.
async fn leave_midway(stack: &Stack) {
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut response = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut response, "hel").await;
    drop(response);
}

#[tokio::test]
async fn a_client_that_leaves_pays_what_was_really_used() {
    let stack = Stack::balance(1000).await;
    leave_midway(&stack).await;
    stack.upstream.go_on.notify_one();
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_client_that_leaves_pays_the_hold_where_the_upstream_is_cancelled() {
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| config.on_disconnect = OnDisconnect::Cancel).await;
    leave_midway(&stack).await;
    assert_eq!(stack.spent_once_idle().await, 38);
    eventually(async || (stack.upstream.open.load(SeqCst) == 0).then_some(())).await;
}

/// Waits until so many requests have come as far as to ask for a hold.
async fn planned(stack: &Stack, requests: usize) {
    let line = format!("stage=\"bound\"}} {requests}");
    let metrics = async || {
        let answer = stack.client.get(&stack.metrics).send().await.unwrap();
        answer.text().await.unwrap()
    };
    eventually(async || metrics().await.contains(&line).then_some(())).await;
}

/// Configured is more patience than the test has, or none: what the request says decides.
#[tokio::test]
async fn a_request_may_wait_longer_or_shorter_than_is_configured() {
    for (configured, asked, status) in [(60, "0", 429), (0, "60000", 200)] {
        let cap = tokens(60, Window::Balance);
        let configured = Duration::from_secs(configured);
        let stack = Stack::start_with(cap, |config| config.budget_wait = configured).await;
        stack.upstream.plays(Script::Held(chat_stream()));
        let mut first = stack.chat(&hi_stream(20)).send().await.unwrap();
        read_until(&mut first, "hel").await;
        let second = stack.chat(&hi(20)).header("x-seatbelt-wait-ms", asked);
        let second = tokio::spawn(second.send());
        if status == 200 {
            planned(&stack, 2).await;
            stack
                .upstream
                .plays(Script::Whole(200, "application/json", chat_answer()));
            stack.upstream.go_on.notify_one();
        }
        assert_eq!(second.await.unwrap().unwrap().status().as_u16(), status);
        stack.upstream.go_on.notify_one();
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_gives_up_its_place() {
    let cap = tokens(60, Window::Balance);
    let stack = Stack::start_with(cap, |config| config.budget_wait = Duration::from_secs(60)).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut first = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut first, "hel").await;
    // two wait behind the first; the one in front leaves
    let leaving = tokio::spawn(stack.chat(&hi(20)).send());
    planned(&stack, 2).await;
    leaving.abort();
    let staying = tokio::spawn(stack.chat(&hi(20)).send());
    planned(&stack, 3).await;
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", chat_answer()));
    stack.upstream.go_on.notify_one();
    assert_eq!(staying.await.unwrap().unwrap().status().as_u16(), 200);
    assert_eq!(stack.spent_once_idle().await, 30);
    assert_eq!(stack.upstream.hits(), 2);
}

#[tokio::test]
async fn requests_in_progress_end_before_the_gateway_does() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut response = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut response, "hel").await;
    stack.shutdown.cancel();
    let refused = eventually(async || {
        stack
            .client
            .get(&stack.base)
            .header("connection", "close")
            .send()
            .await
            .err()
    })
    .await;
    assert!(refused.is_connect());
    assert!(!stack.served.is_finished());
    stack.upstream.go_on.notify_one();
    read_until(&mut response, "[DONE]").await;
    stack.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_drain_that_takes_too_long_is_cut_and_still_settled() {
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| config.drain = Duration::from_millis(50)).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut response = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut response, "hel").await;
    stack.shutdown.cancel();
    read_until(&mut response, "service_unavailable").await;
    let cap = stack.cap().await;
    assert_eq!((cap.spent, cap.held), (38, 0));
    stack.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_ledger_that_answers_nobody() {
    let stack = Stack::balance(1000).await;
    stack.ledger.away.store(true, SeqCst);
    assert_eq!(stack.chat(&hi(20)).send().await.unwrap().status(), 503);
    let begun = Instant::now();
    stack.shutdown.cancel();
    stack.served.await.unwrap().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_charged_at_its_hold() {
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| {
        config.request_timeout = Duration::from_millis(200);
    })
    .await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let (_, text) = status_and_body(stack.chat(&hi_stream(20))).await;
    assert!(
        text.as_str().unwrap().contains("upstream_timeout"),
        "{text}"
    );
    assert_eq!(stack.spent_once_idle().await, 38);
}
