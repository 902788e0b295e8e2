//! Conversations that an upstream keeps: whose they are, and how tightly what they read is held.

use std::sync::atomic::Ordering::SeqCst;

use seatbelt_schemas::{
    event::OnUnknown,
    ids::{AccountId, ModelId},
    thread::Thread,
    window::Window,
};
use serde_json::{Value, json};

use crate::support::{Script, Stack, account, read_until, status_and_body, tokens};

/// What a first request holds and uses, and what one that goes on with it holds.
const USED: u64 = 15;
const HELD: u64 = USED + 2 + 8 + 8 + 20;

async fn stack(limit: u64) -> Stack {
    let stack = Stack::start_with(tokens(limit, Window::Balance), |config| {
        config.upstreams[0].responses = true;
        config.upstreams[0].threads = true;
    })
    .await;
    answers(&stack, "resp_1");
    stack
}

fn response(id: &str) -> Value {
    json!({"id": id, "object": "response", "status": "completed", "error": null,
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}],
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}})
}

fn answers(stack: &Stack, id: &str) {
    let answer = response(id).to_string();
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer));
}

async fn ask(stack: &Stack, extra: &Value) -> (u16, Value) {
    let mut body = json!({"model": "test-model", "input": "hi", "max_output_tokens": 20});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    status_and_body(stack.post("/v1/responses", &body)).await
}

fn thread(account: AccountId, model: &str, upstream: &str) -> Thread {
    Thread {
        v: Thread::VERSION,
        account,
        upstream: upstream.to_owned(),
        model: ModelId::new(model).unwrap(),
        tokens: USED,
    }
}

#[tokio::test]
async fn who_goes_on_with_a_response_holds_what_is_read_of_it_and_no_more() {
    for (limit, expected) in [(USED + HELD, 200), (USED + HELD - 1, 429)] {
        let stack = stack(limit).await;
        assert_eq!(ask(&stack, &json!({})).await.0, 200);
        assert_eq!(stack.upstream.last().body["store"], true);
        assert_eq!(stack.spent_once_idle().await, USED);
        answers(&stack, "resp_2");
        let next = json!({"previous_response_id": "resp_1"});
        let (status, answer) = ask(&stack, &next).await;
        assert_eq!(status, expected, "{answer}");
        if status == 200 {
            let sent = stack.upstream.last().body;
            assert_eq!(sent["previous_response_id"], "resp_1");
            assert_eq!(sent["store"], true);
            let bound = stack.threads.bound.lock().unwrap();
            let own = thread(account(), "test-model", &bound["resp_1"].upstream);
            assert_eq!((&bound["resp_1"], &bound["resp_2"]), (&own, &own));
        }
    }
}

#[tokio::test]
async fn a_response_of_nobody_or_of_somebody_else_is_not_found() {
    let stack = stack(1000).await;
    assert_eq!(ask(&stack, &json!({})).await.0, 200);
    let upstream = {
        let mut bound = stack.threads.bound.lock().unwrap();
        let upstream = bound["resp_1"].upstream.clone();
        let other = AccountId::new("other").unwrap();
        bound.insert("theirs".to_owned(), thread(other, "test-model", &upstream));
        bound.insert("elsewhere".to_owned(), thread(account(), "test-model", "x"));
        bound.insert("model".to_owned(), thread(account(), "another", &upstream));
        upstream
    };
    assert!(!upstream.is_empty());
    for id in ["resp_0", "theirs", "elsewhere", "", "a.b"] {
        let (status, refused) = ask(&stack, &json!({"previous_response_id": id})).await;
        let error = &refused["error"];
        assert_eq!(
            (status, &error["code"]),
            (404, &json!("previous_response_not_found")),
            "{id}"
        );
        assert_eq!(error["param"], "previous_response_id");
    }
    for (id, param) in [
        (json!("model"), "previous_response_id"),
        (json!(5), "previous_response_id"),
    ] {
        let (status, refused) = ask(&stack, &json!({"previous_response_id": id})).await;
        assert_eq!((status, &refused["error"]["param"]), (400, &json!(param)));
    }
    let (status, refused) = ask(&stack, &json!({"conversation": "c"})).await;
    assert_eq!(
        (status, &refused["error"]["param"]),
        (400, &json!("conversation"))
    );
    assert_eq!(stack.upstream.hits(), 1);
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn what_is_not_to_be_kept_is_bound_to_nobody() {
    let stack = stack(1000).await;
    assert_eq!(ask(&stack, &json!({"store": false})).await.0, 200);
    assert_eq!(stack.upstream.last().body["store"], false);
    assert!(stack.threads.bound.lock().unwrap().is_empty());
    let (status, refused) = ask(&stack, &json!({"store": "yes"})).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("store")));
}

#[tokio::test]
async fn bindings_that_cannot_be_reached_refuse_and_withhold_no_answer() {
    let stack = stack(1000).await;
    stack.threads.away.store(true, SeqCst);
    let (status, answer) = ask(&stack, &json!({})).await;
    assert_eq!((status, &answer["id"]), (200, &json!("resp_1")));
    let next = json!({"previous_response_id": "resp_1"});
    assert_eq!(ask(&stack, &next).await.0, 503);
    stack.threads.away.store(false, SeqCst);
    assert_eq!(ask(&stack, &next).await.0, 404, "it was never bound");
    assert_eq!(stack.spent_once_idle().await, USED);
}

#[tokio::test]
async fn a_response_is_bound_before_the_last_event_of_its_stream() {
    let stack = stack(1000).await;
    let event = |data: &Value| {
        format!(
            "event: {}\ndata: {data}\n\n",
            data["type"].as_str().unwrap()
        )
    };
    let begun =
        json!({"type": "response.created", "response": {"id": "resp_1", "status": "in_progress"}});
    let delta = json!({"type": "response.output_text.delta", "delta": "hi"});
    let ended = json!({"type": "response.completed", "response": response("resp_1")});
    let pieces = [&begun, &delta, &ended].map(event).to_vec();
    stack.upstream.plays(Script::Stream(pieces));
    stack.threads.held.send_replace(true);
    let body =
        json!({"model": "test-model", "input": "hi", "max_output_tokens": 20, "stream": true});
    let mut streamed = stack.post("/v1/responses", &body).send().await.unwrap();
    let so_far = read_until(&mut streamed, "output_text.delta").await;
    assert!(!so_far.contains("response.completed"));
    loop {
        tokio::select! {
            biased;
            chunk = streamed.chunk() => {
                let chunk = chunk.unwrap().expect("the stream goes on");
                let text = String::from_utf8_lossy(&chunk).into_owned();
                assert!(!text.contains("response.completed"), "it came before it was bound");
            }
            () = stack.threads.asked.notified() => break,
        }
    }
    stack.threads.held.send_replace(false);
    let rest = read_until(&mut streamed, "response.completed").await;
    assert!(rest.contains("resp_1"));
    assert_eq!(stack.threads.bound.lock().unwrap()["resp_1"].tokens, USED);
}

#[tokio::test]
async fn where_no_threads_are_kept_an_id_is_refused_for_what_it_is() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |config| {
        config.upstreams[0].responses = true;
    })
    .await;
    for field in ["previous_response_id", "conversation"] {
        let (status, answer) = ask(&stack, &json!({ field: "x" })).await;
        assert_eq!(status, 400, "{answer}");
        let told = answer["error"]["message"].as_str().unwrap();
        assert!(told.contains("threads = true"), "{told}");
        assert!(!told.contains("allow_fields"), "{told}");
    }
    assert_eq!(stack.upstream.hits(), 0);
}

/// By its key's word it is charged less than it may have used; whoever goes on with it reads all of that.
#[tokio::test]
async fn what_was_not_told_whole_is_bound_at_no_less_than_its_hold() {
    let stack = Stack::start_with(tokens(1000, Window::Balance), |told| {
        told.upstreams[0].responses = true;
        told.upstreams[0].threads = true;
        told.keys[0].on_unknown = OnUnknown::Release;
    })
    .await;
    let mut part = response("resp_1");
    part["usage"] = json!({"output_tokens": 10});
    let part = Script::Whole(200, "application/json", part.to_string());
    stack.upstream.plays(part);
    assert_eq!(ask(&stack, &json!({})).await.0, 200);
    assert_eq!(stack.spent_once_idle().await, 10);
    let bound = stack.threads.bound.lock().unwrap();
    assert!(bound["resp_1"].tokens >= HELD - USED, "{bound:?}");
}
