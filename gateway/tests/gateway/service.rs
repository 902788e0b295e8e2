//! Models, health, metrics, limits of the gateway itself.

use std::sync::atomic::Ordering::SeqCst;

use seatbelt_gateway::{Cause, KeyEntry, KeySecret, KeyTable, Reason};
use seatbelt_schemas::{ids::ModelId, price::Rates, window::Window};
use serde_json::json;

use crate::support::{
    Script, Stack, account, chat_stream, hi, hi_stream, key, read_until, status_and_body, tokens,
};

#[tokio::test]
async fn models_are_listed_with_limits_and_prices() {
    let stack = Stack::balance(1000).await;
    let id = ModelId::new("test-model").unwrap();
    let price = Rates::flat(150_000, 600_000);
    stack.prices.send_modify(|prices| {
        prices.insert(id, price);
    });
    let (status, list) = stack.get("/v1/models").await;
    assert_eq!((status, &list["object"]), (200, &json!("list")));
    let (status, one) = stack.get("/v1/models/test-model").await;
    assert_eq!((status, &one), (200, &list["data"][0]));
    assert_eq!(
        (&one["context_length"], &one["max_output_tokens"]),
        (&json!(8192), &json!(4096))
    );
    assert_eq!(
        (&one["price"]["input"], &one["price"]["output"]),
        (&json!(150_000), &json!(600_000))
    );
    let (status, body) = stack.get("/v1/models/no/such").await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (404, &json!("model_not_found"))
    );
    let keyless = stack.client.get(format!("{}/v1/models", stack.base));
    assert_eq!(status_and_body(keyless).await.0, 401);
}

#[tokio::test]
async fn keys_come_and_go_while_it_serves() {
    let stack = Stack::balance(1000).await;
    assert_eq!(stack.get("/v1/models").await.0, 200);
    let entry = KeyEntry::new(KeySecret::hash("sk-new"), account(), key());
    let only = KeyTable::new(vec![entry]).unwrap();
    stack.keys.send_replace(only);
    assert_eq!(stack.get("/v1/models").await.0, 401, "the key is gone");
    let url = format!("{}/v1/models", stack.base);
    let new = stack.client.get(url).bearer_auth("sk-new");
    assert_eq!(status_and_body(new).await.0, 200);
}

#[tokio::test]
async fn health_says_what_it_is_ready_for() {
    let stack = Stack::balance(1000).await;
    assert_eq!(stack.get("/health/live").await.0, 200);
    let (status, body) = stack.get("/health/ready").await;
    assert_eq!(
        (status, &body["durability"], &body["ready"]),
        (200, &json!("fsync"), &json!(true))
    );
    let gone = Reason {
        cause: Cause::Partition,
        text: "partition 1 is gone".to_owned(),
    };
    stack.ready.send_modify(|ready| {
        ready.reasons.push(gone);
        ready.warnings.push("the store is nearly full".to_owned());
    });
    let (status, body) = stack.get("/health/ready").await;
    assert_eq!(status, 503);
    assert_eq!(
        (&body["ready"], &body["reasons"]),
        (&json!(false), &json!(["partition 1 is gone"]))
    );
    assert_eq!(body["warnings"], json!(["the store is nearly full"]));
    let metrics = stack.client.get(&stack.metrics).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let line = "seatbelt_gateway_not_ready_reasons{cause=\"partition\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn a_key_whose_snapshot_cannot_be_read_is_shown_by_the_ledger() {
    let stack = Stack::balance(1000).await;
    stack.snapshots.unreadable.store(true, SeqCst);
    stack.chat(&hi(20)).send().await.unwrap();
    let (status, shown) = stack.get("/v1/key").await;
    assert_eq!((status, &shown["caps"][0]["spent"]), (200, &json!(15)));
}

#[tokio::test]
async fn metrics_count_without_telling_who() {
    let stack = Stack::start_with(tokens(100, Window::Balance), |config| {
        config.metrics_by_key = false;
    })
    .await;
    stack.chat(&hi(20)).send().await.unwrap();
    stack.chat(&hi(1000)).send().await.unwrap();
    let text = metrics(&stack).await;
    for line in [
        "seatbelt_gateway_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1",
        "seatbelt_gateway_requests_total{route=\"/v1/chat/completions\",status=\"429\"} 1",
        "seatbelt_gateway_refusals_total{reason=\"spent\"} 1",
        "seatbelt_gateway_spent_input_tokens_total 10",
        "seatbelt_gateway_held_tokens 0",
        "# EOF",
        "seatbelt_gateway_stage_seconds_count{stage=\"reserve\"} 2",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(!text.contains("acct") && !text.contains("sk-test"));
    assert_eq!(stack.get("/metrics").await.0, 404);
}

async fn metrics(stack: &Stack) -> String {
    let answer = stack.client.get(&stack.metrics).send().await.unwrap();
    answer.text().await.unwrap()
}

#[tokio::test]
async fn each_key_has_metrics_of_its_own_unless_that_is_switched_off() {
    let stack = Stack::balance(100).await;
    stack.chat(&hi(20)).send().await.unwrap();
    stack.chat(&hi(1000)).send().await.unwrap();
    let text = metrics(&stack).await;
    for line in [
        "key_refusals_total{account=\"acct\",key=\"key\",reason=\"spent\"} 1",
        "key_spent_tokens_total{account=\"acct\",key=\"key\"} 15",
        "key_held_tokens{account=\"acct\",key=\"key\"} 0",
        "key_limit{account=\"acct\",key=\"key\",meter=\"tokens\"} 100",
        "key_remaining{account=\"acct\",key=\"key\",meter=\"tokens\"} 85",
    ] {
        let line = format!("seatbelt_gateway_{line}");
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
    assert!(!text.contains("sk-test"), "no secret is a label");
}

#[tokio::test]
async fn more_requests_than_there_is_room_for_are_turned_away() {
    let cap = tokens(1000, Window::Balance);
    let stack = Stack::start_with(cap, |config| config.requests = 1).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut first = stack.chat(&hi_stream(20)).send().await.unwrap();
    read_until(&mut first, "hel").await;
    let (status, body) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (503, &json!("service_unavailable"))
    );
    assert_eq!(stack.upstream.hits(), 1);
}
