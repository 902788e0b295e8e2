//! Bad input gets a clear typed error, changes no balance and disturbs nobody else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Answer, Foreign, Key, Running, Stack, foreign::MODEL};
use serde_json::{Value, json};

async fn stack(foreign: &Foreign) -> Running {
    Stack::new()
        .upstream(foreign)
        .key(Key::new("bad").hard_cap(1_000_000))
        .key(Key::new("good").hard_cap(1_000_000))
        .gateway("body_bytes_max = 65536")
        .start()
        .await
}

async fn send(stack: &Running, body: impl Into<String>) -> Answer {
    stack
        .post("/v1/chat/completions", "sk-bad", body.into())
        .await
}

#[tokio::test]
async fn bodies_that_make_no_sense_are_refused_and_nothing_else_changes() {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    let before = stack.home().events().await;
    for body in ["", "{", "not json", "[1]", "\"text\"", "null", "\u{0}"] {
        send(&stack, body)
            .await
            .expect_error(400, "invalid_request_error", "invalid_body");
    }
    let no_model = json!({"messages": [{"role": "user", "content": "hi"}]});
    send(&stack, no_model.to_string()).await.expect_error(
        400,
        "invalid_request_error",
        "missing_model_field",
    );
    for max_tokens in [
        "-1",
        "1.5",
        "\"10\"",
        "18446744073709551616",
        "1e400",
        "true",
        "[]",
    ] {
        let body = format!(
            "{{\"model\":{MODEL:?},\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}],\"max_tokens\":{max_tokens}}}"
        );
        send(&stack, body)
            .await
            .expect_error(400, "invalid_request_error", "invalid_body");
    }
    let too_large = format!("{{\"model\":{MODEL:?},\"x\":\"{}\"}}", "x".repeat(70_000));
    let answer = send(&stack, too_large).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.json()["error"]["message"].is_string(), "{answer:?}");
    unchanged_but_for_the_good_one(&stack, &foreign, &before).await;
}

/// The journal has not grown, and another key is served as ever.
async fn unchanged_but_for_the_good_one(stack: &Running, foreign: &Foreign, before: &[Value]) {
    assert_eq!(stack.home().events().await, before);
    assert_eq!(foreign.hits(), 0);
    assert!(stack.chat("sk-good", 20).await.is_ok());
    assert_eq!(foreign.hits(), 1);
}

#[tokio::test]
async fn unknown_keys_models_and_routes_get_their_own_errors() {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    let before = stack.home().events().await;
    let answer = stack.chat("sk-nobody", 20).await;
    answer.expect_error(401, "invalid_request_error", "invalid_api_key");
    let body = json!({"model": "no-such-model", "messages": [{"role": "user", "content": "hi"}]});
    let answer = send(&stack, body.to_string()).await;
    answer.expect_error(404, "invalid_request_error", "model_not_found");
    let nowhere = stack.post("/v1/nowhere", "sk-bad", "{}").await;
    assert_eq!(nowhere.status, 404, "{nowhere:?}");
    assert!(
        nowhere.json()["error"]["message"].is_string(),
        "{nowhere:?}"
    );
    let method = stack.get("/v1/chat/completions", "sk-bad").await;
    assert_eq!(method.status, 405, "{method:?}");
    assert!(method.json()["error"]["message"].is_string(), "{method:?}");
    unchanged_but_for_the_good_one(&stack, &foreign, &before).await;
}

#[tokio::test]
async fn a_prompt_longer_than_the_neurons_model_can_take_is_refused_before_it_costs() {
    let key = Key::new("bad").hard_cap(1_000_000);
    let stack = Stack::new().neuron().key(key).start().await;
    let before = stack.home().events().await;
    let long = "x".repeat(5000);
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": long}]});
    let answer = send(&stack, body.to_string()).await;
    answer.expect_error(400, "invalid_request_error", "context_length_exceeded");
    assert_eq!(stack.home().events().await, before);
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_reported_at_once() {
    let stopped = Stack::new()
        .key(Key::new("cap").line("hard_cap = -5").line("hardcap = 7"))
        .gateway("request_timeout_ms = 0")
        .nats("durability = \"sometimes\"")
        .write();
    let output = stopped.run(&["up"]).await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    for place in [
        "entitlements.keys[0].hard_cap",
        "entitlements.keys[0].hardcap",
        "gateway.request_timeout_ms",
        "nats.durability",
    ] {
        assert!(log.contains(place), "{place} is not named:\n{log}");
    }
    assert!(!log.contains("sk-cap"), "the secret is quoted:\n{log}");
}
