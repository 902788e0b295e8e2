//! A request of which nobody knows what it did, sent once more where the operator wants it: both are charged.

use std::sync::Arc;

use seatbelt_gateway::DeploymentConfig;
use seatbelt_schemas::{event::OnUnknown, window::Window};

use crate::support::{
    Script, Stack, Told, Upstream, broken_text, chat_stream, hi, hi_stream, read_until, tokens,
};

/// What an answer is charged.
const USED: u64 = 15;

/// A gateway whose first deployment breaks off, and whose second answers.
async fn two(limit: u64, change: impl FnOnce(&mut Told)) -> (Stack, Arc<Upstream>) {
    let second = Upstream::start().await;
    let stack = Stack::start_with(tokens(limit, Window::Balance), |told| {
        told.upstreams[0].retry_unknown = true;
        told.upstreams[0].deployments = vec![DeploymentConfig {
            name: "second".to_owned(),
            base_url: format!("http://{}/v1", second.address),
            api_key: None,
            weight: 1,
            priority: 0,
        }];
        change(told);
    })
    .await;
    stack.upstream.plays(Script::Half(200, "{\"id\":"));
    (stack, second)
}

fn hits(stack: &Stack, second: &Upstream) -> (usize, usize) {
    (stack.upstream.hits(), second.hits())
}

/// What one request holds.
async fn held() -> u64 {
    let (stack, second) = two(100_000, |told| told.upstreams[0].retry_unknown = false).await;
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 502);
    assert_eq!(hits(&stack, &second), (1, 0), "not by default");
    stack.spent_once_idle().await
}

#[tokio::test]
async fn what_broke_off_is_charged_and_sent_once_more() {
    let held = held().await;
    let error = Script::Whole(500, "application/json", "{\"error\":{}}".to_owned());
    for unknown in [Script::Half(200, "{\"id\":"), error] {
        let (stack, second) = two(100_000, |_| ()).await;
        stack.upstream.plays(unknown);
        let answer = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let headers = answer.headers();
        assert_eq!(headers["x-seatbelt-attempts"], "2");
        let (first, own) = ("x-seatbelt-also-charged", "x-seatbelt-reservation");
        assert_ne!(headers[first], headers[own]);
        assert_eq!(hits(&stack, &second), (1, 1));
        assert_eq!(stack.spent_once_idle().await, held + USED);
    }
}

/// That errors are free says what they cost, and not what was done.
#[tokio::test]
async fn what_failed_after_work_is_sent_once_more_where_it_is_free_too() {
    let (stack, second) = two(100_000, |told| told.upstreams[0].errors_are_free = true).await;
    let error = "{\"error\":{\"message\":\"no\"}}".to_owned();
    stack
        .upstream
        .plays(Script::Whole(500, "application/json", error));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    assert_eq!(answer.headers()["x-seatbelt-attempts"], "2");
    assert!(!answer.headers().contains_key("x-seatbelt-also-charged"));
    assert_eq!(hits(&stack, &second), (1, 1));
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn it_is_sent_once_more_however_many_attempts_there_are() {
    let (stack, second) = two(100_000, |told| told.upstreams[0].attempts = Some(5)).await;
    let busy = "{\"error\":{\"message\":\"busy\"}}".to_owned();
    let busy = Script::Head(503, vec![("retry-after".to_owned(), "0".to_owned())], busy);
    second.plays(busy);
    // the first deployment breaks off, and whoever is asked then is asked once
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert!(!answer.status().is_success());
    stack.spent_once_idle().await;
    let (first, second) = hits(&stack, &second);
    assert!(first == 1 && second <= 1, "{first} {second}");
}

/// Nothing came of the first by what was charged, so whoever repeats the request meanwhile or later must find the
/// second one.
#[tokio::test]
async fn one_that_is_sent_again_under_its_key_finds_the_second_one() {
    let (stack, second) = two(100_000, |told| {
        told.keys[0].on_unknown = OnUnknown::Release;
    })
    .await;
    second.plays(Script::Held(chat_stream()));
    let asked = || {
        stack
            .chat(&hi_stream(20))
            .header("idempotency-key", "a")
            .send()
    };
    let mut first = asked().await.unwrap();
    assert_eq!(first.headers()["x-seatbelt-attempts"], "2");
    read_until(&mut first, "hel").await;
    let again = asked().await.unwrap();
    assert_eq!(again.status().as_u16(), 409);
    second.go_on.notify_one();
    read_until(&mut first, "[DONE]").await;
    let again = asked().await.unwrap();
    assert_eq!(again.status().as_u16(), 409);
    let own = "x-seatbelt-reservation";
    assert_eq!(again.headers()[own], first.headers()[own]);
    assert_eq!(hits(&stack, &second), (1, 1));
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn the_second_one_needs_a_hold_besides_the_first() {
    let held = held().await;
    let (stack, second) = two(2 * held - 1, |_| ()).await;
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 502);
    assert_eq!(answer.headers()["x-seatbelt-charged"], "hold");
    assert_eq!(hits(&stack, &second), (1, 0));
    assert_eq!(stack.spent_once_idle().await, held);
}

#[tokio::test]
async fn it_is_one_more_and_no_third() {
    let held = held().await;
    let (stack, second) = two(100_000, |_| ()).await;
    second.plays(Script::Half(200, "{\"id\":"));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 502);
    assert!(answer.headers().contains_key("x-seatbelt-also-charged"));
    assert_eq!(hits(&stack, &second), (1, 1));
    assert_eq!(stack.spent_once_idle().await, 2 * held);
}

#[tokio::test]
async fn nobody_is_told_to_try_again_what_was_charged_before() {
    let held = held().await;
    for status in [400, 429, 503] {
        let (stack, second) = two(100_000, |_| ()).await;
        let error = "{\"error\":{\"message\":\"no\"}}".to_owned();
        second.plays(Script::Whole(status, "application/json", error));
        let answer = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status);
        assert_eq!(answer.headers()["x-seatbelt-charged"], "nothing");
        assert!(answer.headers().contains_key("x-seatbelt-also-charged"));
        assert_eq!(answer.headers()["x-should-retry"], "false", "{status}");
        assert_eq!(stack.spent_once_idle().await, held);
    }
}

#[tokio::test]
async fn what_is_known_or_was_seen_is_not_sent_again() {
    let (stack, second) = two(100_000, |_| ()).await;
    let said = "{\"error\":{\"message\":\"no\"}}".to_owned();
    stack
        .upstream
        .plays(Script::Whole(400, "application/json", said));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 400);
    let used = "{\"error\":{},\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5}}";
    let used = Script::Whole(500, "application/json", used.to_owned());
    stack.upstream.plays(used.clone());
    second.plays(used);
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 500);
    assert_eq!(stack.spent_once_idle().await, USED);
    let begun = Script::Broken(chat_stream()[..2].to_vec());
    stack.upstream.plays(begun.clone());
    second.plays(begun);
    second.go_on.notify_one();
    let text = broken_text(&stack, stack.chat(&hi_stream(20))).await;
    assert!(text.contains("hel"), "{text}");
    stack.spent_once_idle().await;
    let (first, second) = hits(&stack, &second);
    assert_eq!(first + second, 3);
}
