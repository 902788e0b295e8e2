//! The first promise, from outside: a capped key cannot overspend, a refusal says exactly why, and
//! what is refused never reaches an upstream.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Answer, Foreign, Key, Running, Stack};

const TOKENS_PER_ANSWER: u64 = 15;

async fn capped(foreign: &Foreign, key: Key) -> Running {
    Stack::new().upstream(foreign).key(key).start().await
}

#[tokio::test]
async fn a_balance_too_small_is_insufficient_quota_and_the_upstream_never_hears_of_it() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign, Key::new("cap").hard_cap(10)).await;
    let answer = stack.chat("sk-cap", 1000).await;
    let error = answer.expect_error(429, "insufficient_quota", "insufficient_quota");
    assert_eq!(answer.header("retry-after"), None, "{answer:?}");
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(error["reason"], "spent");
    assert_eq!(error["limit"], 10);
    assert_eq!(error["spent"], 0);
    assert_eq!(error["held"], 0);
    assert!(error["requested"].as_u64().unwrap() > 1000, "{error}");
    assert_eq!(foreign.hits(), 0);
}

#[tokio::test]
async fn a_rolling_window_too_small_is_a_rate_limit_with_a_time() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign, Key::new("cap").hard_cap(10).rolling(3600)).await;
    let answer = stack.chat("sk-cap", 1000).await;
    answer.expect_error(429, "rate_limit_error", "rate_limit_exceeded");
    let retry: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&retry), "{answer:?}");
    assert_eq!(foreign.hits(), 0);
}

#[tokio::test]
async fn a_large_cap_serves_exactly_once() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign, Key::new("cap").hard_cap(1_000_000)).await;
    let answer = stack.chat("sk-cap", 1000).await;
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(answer.json()["usage"]["total_tokens"], TOKENS_PER_ANSWER);
    assert!(
        answer.header("x-seatbelt-reservation").is_some(),
        "{answer:?}"
    );
    assert!(answer.header("x-seatbelt-position").is_some(), "{answer:?}");
    assert_eq!(foreign.hits(), 1);
    assert_eq!(foreign.last_body()["max_tokens"], 1000);
    let cap = stack.cap("sk-cap", "the answer is charged", |cap| {
        cap["spent"] == TOKENS_PER_ANSWER && cap["held"] == 0
    });
    assert_eq!(cap.await["available"], 1_000_000 - TOKENS_PER_ANSWER);
}

#[tokio::test]
async fn twenty_requests_in_turn_spend_the_cap_and_no_more() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign, Key::new("cap").hard_cap(100)).await;
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(stack.chat("sk-cap", 20).await);
    }
    served_within_the_cap(&stack, &foreign, &answers).await;
}

#[tokio::test]
async fn twenty_requests_at_once_spend_the_cap_and_no_more() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign, Key::new("cap").hard_cap(100)).await;
    let answers = futures::future::join_all((0..20).map(|_| stack.chat("sk-cap", 20))).await;
    served_within_the_cap(&stack, &foreign, &answers).await;
}

/// Some were served, the others refused for the balance; the upstream saw those served, once each.
async fn served_within_the_cap(stack: &Running, foreign: &Foreign, answers: &[Answer]) {
    let (served, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.is_ok());
    assert!(!served.is_empty() && !refused.is_empty(), "{answers:?}");
    for answer in refused {
        answer.expect_error(429, "insufficient_quota", "insufficient_quota");
        assert_eq!(answer.header("retry-after"), None, "{answer:?}");
    }
    let served = served.len() as u64;
    assert_eq!(foreign.hits(), served);
    let cap = stack
        .cap(
            "sk-cap",
            "all that was served is charged, and nothing held",
            |cap| cap["held"] == 0 && cap["spent"] == served * TOKENS_PER_ANSWER,
        )
        .await;
    assert!(cap["spent"].as_u64().unwrap() <= 100, "{cap}");
    stack.home().verify().await;
}
