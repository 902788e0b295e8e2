//! Clients that leave.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
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

/// Nothing is held for it, and another gateway serves it sooner.
#[tokio::test]
async fn whoever_waits_for_room_is_sent_away_when_the_gateway_stops() {
    let cap = tokens(60, Window::Balance);
    let stack = Stack::start_with(cap, |config| config.budget_wait = Duration::from_secs(60)).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut first = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut first, "hel").await;
    let waiting = tokio::spawn(stack.chat(&hi(20)).send());
    planned(&stack, 2).await;
    stack.shutdown.cancel();
    let told = waiting.await.unwrap().unwrap();
    assert_eq!(told.status().as_u16(), 503);
    assert_eq!(told.headers()["x-should-retry"], "true");
    assert!(told.text().await.unwrap().contains("stopping"));
    assert!(!stack.served.is_finished(), "the other goes on");
    stack.upstream.go_on.notify_one();
    read_until(&mut first, "[DONE]").await;
    let cap = stack.cap().await;
    stack.served.await.unwrap().unwrap();
    assert_eq!((cap.spent, cap.held), (15, 0));
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
async fn a_stop_does_not_wait_for_what_is_no_request_yet() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| config.drain = Duration::from_millis(100)).await;
    let address = stack.base.trim_start_matches("http://").to_owned();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-test\r\n";
    let mut half_head = tokio::net::TcpStream::connect(&address).await.unwrap();
    half_head.write_all(head.as_bytes()).await.unwrap();
    let mut half_body = tokio::net::TcpStream::connect(&address).await.unwrap();
    let begun = format!("{head}content-type: application/json\r\ncontent-length: 500\r\n\r\n{{");
    half_body.write_all(begun.as_bytes()).await.unwrap();
    // one that was accepted later is answered: so these two are in progress
    assert_eq!(stack.get("/health/live").await.0, 200);
    let begun = Instant::now();
    stack.shutdown.cancel();
    let mut answer = String::new();
    half_body.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("stopping"),
        "{answer}"
    );
    stack.served.await.unwrap().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn while_the_ledger_is_out_each_cause_is_logged_once_a_second_at_most() {
    let stack = Stack::balance(1000).await;
    stack.ledger.away.store(true, SeqCst);
    let told = Told::default();
    let guard = tracing::subscriber::set_default(told.clone());
    let begun = Instant::now();
    let all = (0..300).map(|_| async { stack.chat(&hi(20)).send().await.unwrap().status() });
    for status in futures::future::join_all(all).await {
        assert_eq!(status, 503);
    }
    drop(guard);
    let seconds = begun.elapsed().as_secs() + 1;
    let lines = told.0.load(SeqCst) as u64;
    assert!(lines <= 2 * seconds, "{lines} lines in {seconds} s");
}

/// Counts lines of this thread that are at least warnings.
#[derive(Clone, Default)]
struct Told(Arc<AtomicUsize>);

impl tracing::Subscriber for Told {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
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
