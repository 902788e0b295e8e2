//! `/v1/responses`, passed through to upstreams that speak it: every ending is metered, nothing is kept.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a case is a literal that is used once"
)]

use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::support::{Script, Stack, broken_text, status_and_body, stream_text, tokens};

async fn stack(limit: u64) -> Stack {
    Stack::start_with(tokens(limit, Window::Balance), |config| {
        config.upstreams[0].responses = true;
    })
    .await
}

fn ask(extra: Value) -> Value {
    let mut body = json!({"model": "test-model", "input": "hi", "max_output_tokens": 20});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    body
}

fn event(data: &Value) -> String {
    format!(
        "event: {}\ndata: {data}\n\n",
        data["type"].as_str().unwrap()
    )
}

fn usage() -> Value {
    json!({"input_tokens": 10, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 1}, "total_tokens": 15})
}

fn pieces(ending: &Value) -> Vec<String> {
    let begun = json!({"type": "response.created", "sequence_number": 0, "response": {"id": "r", "status": "in_progress", "usage": null}});
    let delta = json!({"type": "response.output_text.delta", "sequence_number": 1, "delta": "hi"});
    [&begun, &delta, ending].map(event).to_vec()
}

#[tokio::test]
async fn a_response_goes_through_the_gate_and_is_not_kept() {
    let stack = stack(100).await;
    let answer = json!({"id": "r", "object": "response", "status": "completed", "error": null,
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}], "usage": usage()});
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_string()));
    let response = stack
        .post("/v1/responses", &ask(json!({})))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.text().await.unwrap(), answer.to_string());
    let asked = stack.upstream.last();
    assert_eq!(asked.path, "/v1/responses");
    assert_eq!(asked.body, ask(json!({"store": false})));
    assert_eq!(stack.spent_once_idle().await, 15);
    let large = ask(json!({"max_output_tokens": 500}));
    let (status, _) = status_and_body(stack.post("/v1/responses", &large)).await;
    assert_eq!((status, stack.upstream.hits()), (429, 1));
}

#[tokio::test]
async fn every_ending_of_a_stream_is_metered_and_passed_on() {
    let stack = stack(1000).await;
    for (n, (kind, extra)) in [
        ("completed", json!({})),
        (
            "incomplete",
            json!({"incomplete_details": {"reason": "max_output_tokens"}}),
        ),
        (
            "failed",
            json!({"error": {"code": "server_error", "message": "no"}}),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut response = json!({"id": "r", "status": kind, "usage": usage()});
        let fields = response.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        let kind = format!("response.{kind}");
        let ending = json!({"type": kind, "sequence_number": 2, "response": response});
        stack.upstream.plays(Script::Stream(pieces(&ending)));
        let body = ask(json!({"stream": true}));
        let text = stream_text(stack.post("/v1/responses", &body)).await;
        assert_eq!(text, pieces(&ending).concat());
        assert_eq!(stack.spent_once_idle().await, 15 * (n as u64 + 1), "{kind}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_costs_its_hold_and_says_so() {
    let stack = stack(1000).await;
    let cut = pieces(&json!({"type": "x"})).into_iter().take(2).collect();
    stack.upstream.plays(Script::Broken(cut));
    let body = ask(json!({"stream": true}));
    let text = broken_text(&stack, stack.post("/v1/responses", &body)).await;
    let error = "event: error\ndata: {\"type\":\"error\",\"sequence_number\":1,";
    assert!(text.contains(error), "{text}");
    assert_eq!(stack.spent_once_idle().await, 2 + 8 + 8 + 20);
}

#[tokio::test]
async fn what_is_kept_or_has_no_bound_is_refused_by_name() {
    let stack = stack(1000).await;
    for (extra, param) in [
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
        ),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt.id"),
        (json!({"store": true}), "store"),
        (json!({"background": true}), "background"),
        (
            json!({"input": [{"type": "item_reference", "id": "x"}]}),
            "input[0]",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}),
            "input[0].content[0].file_id",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0]"),
    ] {
        let (status, refused) = status_and_body(stack.post("/v1/responses", &ask(extra))).await;
        assert_eq!(
            (status, &refused["error"]["param"]),
            (400, &json!(param)),
            "{refused}"
        );
    }
    assert_eq!((stack.upstream.hits(), stack.cap().await.held), (0, 0));
}

#[tokio::test]
async fn a_stored_response_is_not_served() {
    let stack = Stack::balance(1000).await;
    let (status, kept) = stack.get("/v1/responses/resp_1").await;
    assert_eq!(
        (status, &kept["error"]["code"]),
        (404, &json!("route_not_served"))
    );
}

#[tokio::test]
async fn an_upstream_that_does_not_speak_it_is_asked_for_a_chat() {
    let stack = Stack::balance(100).await;
    let body = ask(json!({"instructions": "be kind", "store": false}));
    let (status, answer) = status_and_body(stack.post("/v1/responses", &body)).await;
    assert_eq!((status, &answer["object"]), (200, &json!("response")));
    assert_eq!(answer["usage"]["total_tokens"], 15, "{answer}");
    let asked = stack.upstream.last();
    assert_eq!(asked.path, "/v1/chat/completions");
    let messages =
        json!([{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]);
    assert_eq!(asked.body["messages"], messages);
    assert_eq!(asked.body["max_tokens"], 20);
    assert_eq!(stack.spent_once_idle().await, 15);
    for extra in [
        json!({"previous_response_id": "resp_1"}),
        json!({"store": true}),
    ] {
        let (status, refused) = status_and_body(stack.post("/v1/responses", &ask(extra))).await;
        assert_eq!(status, 400, "{refused}");
    }
    let response = stack.post("/v1/responses/input_tokens", &body).send().await;
    let response = response.unwrap();
    assert_eq!(response.headers()["x-seatbelt-counted"], "bound");
    let large = ask(json!({"max_output_tokens": 500}));
    let (status, _) = status_and_body(stack.post("/v1/responses", &large)).await;
    assert_eq!((status, stack.upstream.hits()), (429, 1));
}

#[tokio::test]
async fn a_translated_stream_that_is_cut_costs_its_hold_and_ends_in_a_numbered_error() {
    let stack = Stack::balance(1000).await;
    let content =
        json!({"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": null}]});
    let cut = vec![format!("data: {content}\n\n")];
    stack.upstream.plays(Script::Broken(cut));
    let body = ask(json!({"stream": true}));
    let text = broken_text(&stack, stack.post("/v1/responses", &body)).await;
    let last = text.trim_end().rsplit_once("event: error\ndata: ");
    let last: Value = serde_json::from_str(last.expect("an error is last").1).unwrap();
    assert_eq!(last["type"], "error", "{last}");
    assert_eq!(last["sequence_number"], text.matches("event: ").count() - 1);
    assert_eq!(last["code"], last["error"]["code"], "{last}");
    assert_eq!(stack.spent_once_idle().await, 2 + 8 + 8 + 20);
}
