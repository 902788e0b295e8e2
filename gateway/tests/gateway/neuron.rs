//! Requests to neurons: counted exactly, bound to their reservation, settled from their reports.

use std::{net::SocketAddr, sync::atomic::Ordering::SeqCst, time::Duration};

use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::{NeuronModel, NeuronRecord},
    usage::{NeuronOutcome, NeuronUsage, UsageEvent},
    window::Window,
};
use seatbelt_tokens::Recipe;
use serde_json::{Value, json};

use crate::support::{
    Script, Stack, account, chat_stream, eventually, hi, hi_stream, is_signed, key, read_until,
    status_and_body, stream_text, tokens,
};

/// A stack whose upstream is a neuron as well.
async fn with_neuron(limit: u64) -> Stack {
    let stack = Stack::balance(limit).await;
    serves(&stack);
    stack
}

/// Registers the upstream as a neuron of an older release, which hands out no tokenizer.
pub(crate) fn serves(stack: &Stack) {
    serves_with(stack, None);
}

/// Registers the upstream as a neuron.
fn serves_with(stack: &Stack, recipe: Option<String>) {
    let record = record("n-1", stack.upstream.address, recipe);
    stack.neurons.send(vec![record]).unwrap();
}

/// What an idle neuron with the tiny model writes of itself.
pub(crate) fn record(neuron: &str, address: SocketAddr, recipe: Option<String>) -> NeuronRecord {
    NeuronRecord {
        v: 1,
        neuron: NeuronId::new(neuron).unwrap(),
        url: format!("http://{address}"),
        device: "cpu".to_owned(),
        models: vec![NeuronModel {
            id: ModelId::new("tiny").unwrap(),
            context: 64,
            output: 32,
            slots: 1,
            recipe,
            ready: true,
            loaded: true,
            grows: false,
        }],
        active: 0,
        queued: 0,
        at_ms: 1,
    }
}

pub(crate) fn tiny(mut body: Value) -> Value {
    body["model"] = json!("tiny");
    body
}

pub(crate) fn event(
    reservation: &str,
    outcome: NeuronOutcome,
    input_tokens: u64,
    output_tokens: u64,
) -> UsageEvent {
    UsageEvent {
        v: 1,
        reservation: reservation.to_owned(),
        account: Some(account()),
        key: Some(key()),
        model: None,
        neuron: NeuronId::new("n-1").unwrap(),
        device: "cpu".to_owned(),
        usage: NeuronUsage {
            input_tokens,
            cached_input_tokens: 0,
            output_tokens,
        },
        outcome,
        queued_ms: 0,
        prefill_ms: 0,
        decode_ms: 0,
        at_ms: 1,
    }
}

#[tokio::test]
async fn the_prompt_is_counted_exactly_and_the_neuron_is_told_its_bounds() {
    let stack = with_neuron(1000).await;
    let before = system_ms();
    let response = stack.chat(&tiny(hi(20))).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    let reservation = response.headers()["x-seatbelt-reservation"].clone();
    let headers = stack.upstream.last().headers;
    assert_eq!(headers["x-seatbelt-reservation"], reservation);
    assert_eq!(headers["x-seatbelt-account"], "acct");
    assert_eq!(headers["x-seatbelt-key"], "key");
    assert_eq!(headers["x-seatbelt-max-input-tokens"], "10");
    assert_eq!(headers["x-seatbelt-max-output-tokens"], "20");
    let deadline: u64 = headers["x-seatbelt-deadline-ms"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(deadline > before + 500_000);
    let asked = stack.upstream.last();
    assert!(is_signed(&asked.path, &asked.headers, &asked.bytes));
    assert_eq!(stack.spent_once_idle().await, 15);
}

fn system_ms() -> u64 {
    seatbelt_gateway::system_clock()()
}

#[tokio::test]
async fn a_call_that_nobody_pays_is_signed_too_and_names_no_reservation() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.require_auth = false;
    })
    .await;
    serves(&stack);
    let free = stack
        .client
        .post(format!("{}/v1/chat/completions", stack.base));
    let answer = free.body(tiny(hi(20)).to_string()).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    let asked = stack.upstream.last();
    assert!(is_signed(&asked.path, &asked.headers, &asked.bytes));
    assert!(!asked.headers.contains_key("x-seatbelt-reservation"));
}

#[tokio::test]
async fn the_default_maximum_is_what_the_context_leaves() {
    let stack = with_neuron(1000).await;
    let mut body = tiny(hi(1));
    body.as_object_mut().unwrap().shift_remove("max_tokens");
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    assert_eq!(stack.upstream.last().body["max_tokens"], 32);
    stack.upstream.counts.store(50, SeqCst);
    assert_eq!(status_and_body(stack.chat(&body)).await.0, 200);
    assert_eq!(stack.upstream.last().body["max_tokens"], 14);
    stack.upstream.counts.store(64, SeqCst);
    let (status, body) = status_and_body(stack.chat(&body)).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
}

#[tokio::test]
async fn a_neuron_that_writes_nothing_embeds_and_does_nothing_else() {
    let stack = Stack::balance(40).await;
    let mut record = record("n-1", stack.upstream.address, None);
    record.models[0].output = 0;
    stack.neurons.send(vec![record]).unwrap();
    let answer = json!({
        "object": "list", "model": "tiny", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 10, "total_tokens": 10},
    });
    let answer = Script::Whole(200, "application/json", answer.to_string());
    stack.upstream.plays(answer);
    let body = json!({"model": "tiny", "input": ["abc", "de"]});
    let (status, shown) = status_and_body(stack.post("/v1/embeddings", &body)).await;
    assert_eq!((status, &shown["data"][0]["index"]), (200, &json!(0)));
    let asked = stack.upstream.last();
    assert_eq!(
        (asked.path.as_str(), &asked.body),
        ("/v1/embeddings", &body)
    );
    assert!(is_signed(&asked.path, &asked.headers, &asked.bytes));
    assert_eq!(asked.headers["x-seatbelt-max-input-tokens"], "10");
    assert_eq!(stack.spent_once_idle().await, 10);
    let (status, refused) = status_and_body(stack.chat(&tiny(hi(5)))).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("model")));
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn a_stream_of_a_neuron_is_settled_from_its_answer() {
    let stack = with_neuron(1000).await;
    stack.upstream.plays(Script::Stream(chat_stream()));
    let text = stream_text(stack.post("/v1/messages", &tiny(hi_stream(20)))).await;
    assert!(
        text.contains("\"input_tokens\":10") && text.contains("message_stop"),
        "{text}"
    );
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_neuron_and_pays_what_it_reports() {
    let stack = with_neuron(1000).await;
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut response = stack.chat(&tiny(hi_stream(20))).send().await.unwrap();
    let reservation = response.headers()["x-seatbelt-reservation"]
        .to_str()
        .unwrap()
        .to_owned();
    read_until(&mut response, "hel").await;
    drop(response);
    eventually(async || (stack.upstream.open.load(SeqCst) == 0).then_some(())).await;
    stack
        .usage
        .publish(event(&reservation, NeuronOutcome::Aborted, 10, 3));
    assert_eq!(stack.spent_once_idle().await, 13);
}

#[tokio::test]
async fn a_neuron_that_breaks_is_settled_from_its_report() {
    let stack = with_neuron(1000).await;
    stack
        .upstream
        .plays(Script::Broken(vec![crate::support::chunk("hel")]));
    let mut response = stack.chat(&tiny(hi_stream(20))).send().await.unwrap();
    let reservation = response.headers()["x-seatbelt-reservation"]
        .to_str()
        .unwrap()
        .to_owned();
    stack
        .usage
        .publish(event(&reservation, NeuronOutcome::Failed, 10, 1));
    read_until(&mut response, "hel").await;
    stack.upstream.go_on.notify_one();
    read_until(&mut response, "upstream_connection_error").await;
    assert_eq!(stack.spent_once_idle().await, 11);
}

#[tokio::test]
async fn a_model_whose_neuron_left_is_unavailable() {
    let stack = with_neuron(1000).await;
    assert_eq!(status_and_body(stack.chat(&tiny(hi(20)))).await.0, 200);
    stack.neurons.send(Vec::new()).unwrap();
    let response = stack.chat(&tiny(hi(20))).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 503);
    let after: u64 = response.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=5).contains(&after));
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], "service_unavailable");
}

#[tokio::test]
async fn a_full_neuron_costs_nothing() {
    let stack = with_neuron(1000).await;
    let error = r#"{"error":{"message":"queue is full"}}"#;
    stack
        .upstream
        .plays(Script::Whole(503, "application/json", error.to_owned()));
    let request = stack.chat(&tiny(hi(20))).timeout(Duration::from_secs(4));
    let (status, body) = status_and_body(request).await;
    assert_eq!(
        (status, &body["error"]["message"]),
        (503, &json!("queue is full"))
    );
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn a_neuron_that_ran_out_of_time_is_settled_from_its_report() {
    let stack = with_neuron(1000).await;
    let error = r#"{"error":{"message":"deadline passed"}}"#.to_owned();
    stack
        .upstream
        .plays(Script::Whole(504, "application/json", error));
    for (output_tokens, spent) in [(3, 13), (0, 13)] {
        let input_tokens = if output_tokens == 0 { 0 } else { 10 };
        let hits = stack.upstream.hits();
        let asked = tokio::spawn(stack.chat(&tiny(hi(20))).send());
        eventually(async || (stack.upstream.hits() > hits).then_some(())).await;
        let headers = stack.upstream.last().headers;
        let reservation = headers["x-seatbelt-reservation"].to_str().unwrap();
        let reported = event(
            reservation,
            NeuronOutcome::Expired,
            input_tokens,
            output_tokens,
        );
        stack.usage.publish(reported);
        assert_eq!(asked.await.unwrap().unwrap().status().as_u16(), 504);
        assert_eq!(stack.spent_once_idle().await, spent);
    }
}

/// A stack whose upstream is a neuron that hands out its tokenizer.
pub(crate) async fn with_tokenizer(limit: u64) -> Stack {
    let stack = Stack::balance(limit).await;
    serves_with(&stack, Some(Recipe::name_of(&stack.upstream.recipe)));
    stack
}

#[tokio::test]
async fn a_prompt_is_counted_here_by_the_neuron_s_tokenizer() {
    let stack = with_tokenizer(1000).await;
    assert_eq!(status_and_body(stack.chat(&tiny(hi(20)))).await.0, 200);
    let headers = stack.upstream.last().headers;
    // a beginning, two around the message, its text, one before the answer
    assert_eq!(headers["x-seatbelt-max-input-tokens"], "6");
    assert_eq!(status_and_body(stack.chat(&tiny(hi(20)))).await.0, 200);
    let chat = "/v1/chat/completions";
    assert_eq!(stack.upstream.paths(), ["/recipe", chat, chat]);
}

#[tokio::test]
async fn a_key_at_its_cap_causes_no_call_to_any_neuron() {
    // the second request does not fit: 26 are held for each, 15 used by the first
    let stack = with_tokenizer(26).await;
    assert_eq!(status_and_body(stack.chat(&tiny(hi(20)))).await.0, 200);
    let calls = stack.upstream.paths();
    let (status, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (429, &json!("insufficient_quota"))
    );
    assert_eq!(stack.upstream.paths(), calls);
    // ... nor to one that hands out no tokenizer, once nothing is left
    let stack = with_neuron(15).await;
    assert_eq!(status_and_body(stack.chat(&tiny(hi(5)))).await.0, 200);
    assert_eq!(stack.spent_once_idle().await, 15);
    let calls = stack.upstream.paths();
    assert_ne!(status_and_body(stack.chat(&tiny(hi(5)))).await.0, 200);
    assert_eq!(stack.upstream.paths(), calls);
}

#[tokio::test]
async fn messages_that_make_no_prompt_are_refused_before_anything_is_held() {
    let stack = with_tokenizer(1000).await;
    for (message, says) in [
        (
            json!({"role": "oracle", "content": "hi"}),
            "unknown role oracle",
        ),
        (
            json!({"role": "user", "content": "x".repeat(100)}),
            "context",
        ),
    ] {
        let mut body = tiny(hi(20));
        body["messages"] = json!([message]);
        let (status, body) = status_and_body(stack.chat(&body)).await;
        let told = body["error"]["message"].as_str().unwrap();
        assert!(status == 400 && told.contains(says), "{status} {told}");
    }
    assert_eq!(stack.upstream.paths(), ["/recipe"]);
    assert_eq!(stack.spent_once_idle().await, 0);
}
