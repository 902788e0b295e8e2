//! What clients of the foreign upstream's dialect see and do: streams with and without usage, and
//! leaving early. And what nobody sees: secrets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Foreign, Key, Running, Stack, stack::chat_body, until};
use serde_json::json;

async fn stack(foreign: &Foreign) -> Running {
    let key = Key::new("cap").hard_cap(1000);
    Stack::new().upstream(foreign).key(key).start().await
}

async fn charged(stack: &Running, tokens: u64) {
    let what = format!("{tokens} tokens are charged and nothing is held");
    stack
        .cap("sk-cap", &what, |cap| {
            cap["spent"] == tokens && cap["held"] == 0
        })
        .await;
}

#[tokio::test]
async fn a_stream_is_charged_by_a_usage_that_only_who_asked_for_it_sees() {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    for asks in [false, true] {
        let mut body = chat_body("test-model", 20);
        body["stream"] = json!(true);
        if asks {
            body["stream_options"] = json!({"include_usage": true});
        }
        let answer = stack
            .post("/v1/chat/completions", "sk-cap", body.to_string())
            .await;
        assert!(answer.is_ok(), "{answer:?}");
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("text/event-stream"), "{answer:?}");
        assert!(
            answer.body.trim_end().ends_with("data: [DONE]"),
            "{answer:?}"
        );
        assert!(answer.body.contains("is well"), "{answer:?}");
        assert_eq!(answer.body.contains("prompt_tokens"), asks, "{answer:?}");
        let forwarded = foreign.last_body();
        assert_eq!(forwarded["stream_options"]["include_usage"], true);
    }
    charged(&stack, 30).await;
    stack.home().verify().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_charged_what_its_request_used() {
    let foreign = Foreign::start_holding().await;
    let stack = stack(&foreign).await;
    tokio::select! {
        answer = stack.chat("sk-cap", 20) => panic!("answered while held: {answer:?}"),
        () = until("the request is upstream", || async {
            (foreign.hits() == 1).then_some(())
        }) => {}
    }
    foreign.let_go();
    charged(&stack, 15).await;
    let settled = stack.home().events_of("acct-cap", "settled").await;
    assert_eq!(settled[0]["data"]["source"], "upstream", "{settled:?}");
}

#[tokio::test]
async fn secrets_are_in_no_log_event_metric_or_listing() {
    let foreign = Foreign::start().await;
    let stack = stack(&foreign).await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    assert_eq!(stack.chat("sk-cap", 4000).await.status, 429);
    assert_eq!(stack.chat("sk-cap-wrong", 20).await.status, 401);
    charged(&stack, 15).await;
    let events = serde_json::to_string(&stack.home().events().await).unwrap();
    let metrics = stack.metrics_page().await;
    let models = stack.get("/v1/models", "sk-cap").await.body;
    let standing = stack.get("/v1/key", "sk-cap").await.body;
    assert!(metrics.contains("seatbelt"), "{metrics}");
    let password = stack.nats_password();
    let log = stack.log();
    let places = [("log", log), ("events", events), ("metrics", metrics)];
    let more = [("models", models), ("standing", standing)];
    for (place, text) in places.into_iter().chain(more) {
        assert!(
            !text.contains("sk-cap"),
            "a key's secret is in {place}: {text}"
        );
        assert!(!text.contains(&password), "the NATS password is in {place}");
    }
}
