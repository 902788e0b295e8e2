//! Requests that are sent again under an `Idempotency-Key`: charged once, whatever came in between.

use std::sync::atomic::Ordering::SeqCst;

use futures::future::join_all;
use seatbelt_gateway::{UpstreamConfig, UpstreamModel, system_clock};
use seatbelt_ledger::api::{Admin, Ledger};
use seatbelt_schemas::{
    command::Change,
    ids::{Actor, CapId, CommandId, ModelId, ReservationId},
    window::Window,
};
use serde_json::{Value, json};

use crate::support::{
    Script, Stack, Upstream, account, chat_stream, hi, hi_stream, read_until, status_and_body,
    tokens,
};

/// What an answer of the foreign upstream is charged.
const USED: u64 = 15;

fn under(stack: &Stack, key: &str, body: &Value) -> reqwest::RequestBuilder {
    stack.chat(body).header("idempotency-key", key)
}

async fn ask(stack: &Stack, key: &str) -> (u16, Value) {
    status_and_body(under(stack, key, &hi(20))).await
}

#[track_caller]
fn is((status, answer): &(u16, Value), expected: u16, code: &str) {
    assert_eq!(*status, expected, "{answer}");
    assert_eq!(answer["error"]["code"], code, "{answer}");
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_told_what_it_was_charged_and_costs_no_more() {
    let stack = Stack::balance(1000).await;
    let first = under(&stack, "a", &hi(20)).send().await.unwrap();
    assert_eq!(first.status().as_u16(), 200);
    let reservation = first.headers()["x-seatbelt-reservation"].clone();
    first.text().await.unwrap();
    assert_eq!(stack.spent_once_idle().await, USED);
    // the spaces of a body are no part of what it asks
    let spaced = serde_json::to_string_pretty(&hi(20)).unwrap();
    for body in [hi(20).to_string(), spaced] {
        let again = under(&stack, "a", &hi(20)).body(body).send().await.unwrap();
        assert_eq!(again.status().as_u16(), 409);
        assert_eq!(again.headers()["x-should-retry"], "false");
        assert_eq!(again.headers()["x-seatbelt-reservation"], reservation);
        let position = again.headers()["x-seatbelt-position"].clone();
        let told: Value = again.json().await.unwrap();
        let error = &told["error"];
        assert_eq!(error["code"], "request_answered", "{told}");
        assert_eq!(error["charge"]["tokens"], USED, "{told}");
        assert_eq!(error["position"].to_string(), position.to_str().unwrap());
    }
    assert_eq!(stack.upstream.hits(), 1);
    assert_eq!(stack.spent_once_idle().await, USED);
    assert_eq!(
        ask(&stack, "b").await.0,
        200,
        "another key is another request"
    );
}

#[tokio::test]
async fn another_request_under_the_same_key_is_refused_by_name() {
    let stack = Stack::balance(1000).await;
    assert_eq!(ask(&stack, "a").await.0, 200);
    let others = [
        under(&stack, "a", &hi(21)),
        under(&stack, "a", &hi(20)).header("x-seatbelt-user", "u"),
        under(&stack, "a", &hi(20)).header("x-seatbelt-run", "r"),
        stack
            .post("/v1/messages", &hi(20))
            .header("idempotency-key", "a"),
    ];
    for other in others {
        let (status, answer) = status_and_body(other).await;
        assert_eq!(status, 422, "{answer}");
        assert_eq!(answer["error"]["code"], "idempotency_key_reused");
    }
    let odd = status_and_body(under(&stack, "", &hi(20))).await;
    is(&odd, 400, "invalid_body");
    assert_eq!(odd.1["error"]["param"], "idempotency-key");
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn a_request_in_progress_is_not_begun_again() {
    let stack = Stack::balance(1000).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut first = under(&stack, "a", &hi_stream(20)).send().await.unwrap();
    read_until(&mut first, "hel").await;
    let again = under(&stack, "a", &hi_stream(20)).send().await.unwrap();
    assert_eq!(again.status().as_u16(), 409);
    assert_eq!(again.headers()["retry-after"], "1");
    let told: Value = again.json().await.unwrap();
    assert_eq!(told["error"]["code"], "request_in_progress", "{told}");
    stack.upstream.go_on.notify_one();
    read_until(&mut first, "[DONE]").await;
    let again = status_and_body(under(&stack, "a", &hi_stream(20))).await;
    is(&again, 409, "request_answered");
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn of_many_at_once_one_is_let_through() {
    let stack = Stack::balance(100_000).await;
    let all = join_all((0..20).map(|_| ask(&stack, "a"))).await;
    let (answered, others): (Vec<_>, Vec<_>) = all.iter().partition(|(status, _)| *status == 200);
    assert_eq!(answered.len(), 1, "{all:?}");
    assert!(
        others.iter().all(|(status, _)| *status == 409),
        "{others:?}"
    );
    assert_eq!(stack.upstream.hits(), 1);
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn what_came_to_nothing_may_be_asked_again() {
    let stack = Stack::balance(50).await;
    let busy = json!({"error": {"message": "busy"}}).to_string();
    stack
        .upstream
        .plays(Script::Whole(503, "application/json", busy));
    assert_eq!(ask(&stack, "a").await.0, 503);
    assert_eq!(stack.spent_once_idle().await, 0);
    let big = hi(100);
    let refused = status_and_body(under(&stack, "b", &big)).await;
    is(&refused, 429, "insufficient_quota");
    assert_eq!(stack.first_uses.kept.lock().unwrap().len(), 1, "that of a");
    let credit = Admin {
        id: CommandId::from_parts(system_clock()(), 90),
        account: account(),
        actor: Actor::system("test"),
        change: Change::Credit {
            cap: CapId::new("tokens").unwrap(),
            amount: 1000,
            reason: None,
        },
    };
    stack.ledger.admin(credit).await.unwrap();
    stack.upstream.plays(Script::Whole(
        200,
        "application/json",
        crate::support::chat_answer(),
    ));
    assert_eq!(ask(&stack, "a").await.0, 200);
    assert_eq!(status_and_body(under(&stack, "b", &big)).await.0, 200);
    is(&ask(&stack, "a").await, 409, "request_answered");
    assert_eq!(stack.spent_once_idle().await, 2 * USED);
}

#[tokio::test]
async fn where_first_uses_cannot_be_kept_nothing_is_let_through_that_names_a_key() {
    let stack = Stack::balance(1000).await;
    stack.first_uses.away.store(true, SeqCst);
    is(&ask(&stack, "a").await, 503, "service_unavailable");
    let asked = stack.first_uses.asked.load(SeqCst);
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    assert_eq!(stack.first_uses.asked.load(SeqCst), asked, "costs nothing");
    assert_eq!(stack.spent_once_idle().await, USED);
    stack.first_uses.away.store(false, SeqCst);
    assert_eq!(ask(&stack, "a").await.0, 200);
}

/// A gateway that dies after it wrote which reservation it would be, and before it reserved.
#[tokio::test]
async fn what_was_written_and_never_reserved_goes_on_once_nobody_reserves_it_any_more() {
    let stack = Stack::balance(1000).await;
    stack.ledger.away.store(true, SeqCst);
    assert_eq!(ask(&stack, "a").await.0, 503);
    stack.ledger.away.store(false, SeqCst);
    is(&ask(&stack, "a").await, 409, "request_in_progress");
    for (first, _) in stack.first_uses.kept.lock().unwrap().values_mut() {
        first.until_ms = 1;
    }
    assert_eq!(ask(&stack, "a").await.0, 200);
    is(&ask(&stack, "a").await, 409, "request_answered");
    assert_eq!(stack.upstream.hits(), 1);
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn what_another_model_answered_is_found() {
    let second = Upstream::start().await;
    let stack = Stack::start_with(tokens(1000, Window::Balance), |told| {
        let other = ModelId::new("other-model").unwrap();
        let first = told.upstreams[0].clone();
        told.upstreams[0].models[0].fallback = vec![other.clone()];
        told.upstreams.push(UpstreamConfig {
            name: "other".to_owned(),
            base_url: format!("http://{}/v1", second.address),
            models: vec![UpstreamModel::new(other, 8192, 4096)],
            ..first
        });
    })
    .await;
    let busy = json!({"error": {"message": "busy"}}).to_string();
    stack
        .upstream
        .plays(Script::Whole(503, "application/json", busy));
    assert_eq!(ask(&stack, "a").await.0, 200);
    let again = ask(&stack, "a").await;
    is(&again, 409, "request_answered");
    let told = again.1["error"]["reservation"].as_str().unwrap();
    let first = stack.first_uses.kept.lock().unwrap();
    let first = first.values().next().unwrap().0.reservation;
    assert_ne!(told.parse::<ReservationId>().unwrap(), first);
    assert_eq!((stack.upstream.hits(), second.hits()), (1, 1));
}

/// Whoever has no money left would fill what is kept for all.
#[tokio::test]
async fn what_was_refused_leaves_nothing_behind() {
    let stack = Stack::balance(50).await;
    for number in 0..20 {
        let key = format!("k{number}");
        let refused = status_and_body(under(&stack, &key, &hi(100))).await;
        is(&refused, 429, "insufficient_quota");
        let large = json!({"budget": {"tokens": 5000}});
        let run = stack
            .post("/v1/runs", &large)
            .header("idempotency-key", &key);
        is(&status_and_body(run).await, 429, "insufficient_quota");
    }
    assert_eq!(stack.first_uses.kept.lock().unwrap().len(), 0);
    assert_eq!(ask(&stack, "k0").await.0, 200);
    is(&ask(&stack, "k0").await, 409, "request_answered");
}
