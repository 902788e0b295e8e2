//! What goes through the same gate besides chats and messages: completions, embeddings, counts.

#![expect(
    clippy::needless_pass_by_value,
    reason = "a case is a literal that is used once"
)]

use seatbelt_gateway::{DeploymentConfig, Dialect};
use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::{
    messages::native,
    neuron::{serves, tiny},
    support::{Script, Stack, Upstream, hi, status_and_body, stream_text, tokens},
};

fn completion(extra: Value) -> Value {
    let mut body = json!({"model": "test-model", "prompt": "once upon"});
    let fields = body.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    body
}

fn text_answer() -> String {
    json!({
        "id": "cmpl-1", "object": "text_completion", "model": "test-model",
        "choices": [{"index": 0, "text": " a time", "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    })
    .to_string()
}

#[tokio::test]
async fn a_completion_is_held_at_its_prompts_and_settled_at_its_usage() {
    let stack = Stack::balance(200).await;
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", text_answer()));
    let body = completion(json!({}));
    let response = stack.post("/v1/completions", &body).send().await.unwrap();
    assert_eq!(response.text().await.unwrap(), text_answer());
    let asked = stack.upstream.last();
    assert_eq!(asked.path, "/v1/completions");
    assert_eq!(
        asked.body["max_tokens"], 16,
        "the default of the API is written"
    );
    assert_eq!(stack.spent_once_idle().await, 5);
    let many = completion(json!({"prompt": ["a", "b"], "best_of": 4, "n": 2, "max_tokens": 25}));
    let (status, refused) = status_and_body(stack.post("/v1/completions", &many)).await;
    assert_eq!(status, 429, "{refused}");
    assert_eq!(refused["error"]["requested"], 2 * 4 * 25 + 2 + 2 * 8 + 8);
    let tools = completion(json!({"tools": []}));
    let (status, refused) = status_and_body(stack.post("/v1/completions", &tools)).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("tools")));
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn a_streamed_completion_hides_the_usage_that_nobody_asked_for() {
    let stack = Stack::balance(200).await;
    let event = |data: Value| format!("data: {data}\n\n");
    let text = event(json!({"choices": [{"index": 0, "text": " a time", "finish_reason": null}]}));
    let end = event(json!({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}));
    let usage =
        event(json!({"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}));
    let done = "data: [DONE]\n\n".to_owned();
    let pieces = vec![text.clone(), end.clone(), usage, done.clone()];
    stack.upstream.plays(Script::Stream(pieces));
    let body = completion(json!({"stream": true}));
    let seen = stream_text(stack.post("/v1/completions", &body)).await;
    assert_eq!(seen, [text, end, done].concat());
    let asked = stack.upstream.last().body;
    assert_eq!(asked["stream_options"], json!({"include_usage": true}));
    assert_eq!(stack.spent_once_idle().await, 5);
}

#[tokio::test]
async fn embeddings_are_held_without_output() {
    let stack = Stack::balance(40).await;
    let answer = json!({
        "object": "list", "model": "test-model", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    });
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer.to_string()));
    let body = json!({"model": "test-model", "input": ["abc", "de"], "encoding_format": "float"});
    let response = stack.post("/v1/embeddings", &body).send().await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert!(response.headers().contains_key("x-seatbelt-reservation"));
    let asked = stack.upstream.last();
    assert_eq!(
        (asked.path.as_str(), &asked.body),
        ("/v1/embeddings", &body)
    );
    assert_eq!(stack.spent_once_idle().await, 4);
    let long = json!({"model": "test-model", "input": "x".repeat(100)});
    let (status, refused) = status_and_body(stack.post("/v1/embeddings", &long)).await;
    assert_eq!(
        (status, &refused["error"]["requested"]),
        (429, &json!(116)),
        "{refused}"
    );
    let (status, refused) = status_and_body(stack.post("/v1/embeddings", &hi(5))).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("input")));
}

#[tokio::test]
async fn embeddings_without_usage_cost_their_hold() {
    let stack = Stack::balance(100).await;
    let answer = r#"{"object":"list","data":[{"embedding":[0.5]}]}"#.to_owned();
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer));
    let body = json!({"model": "test-model", "input": "abc"});
    let (status, _) = status_and_body(stack.post("/v1/embeddings", &body)).await;
    assert_eq!(status, 200);
    assert_eq!(stack.spent_once_idle().await, 3 + 8 + 8);
}

#[tokio::test]
async fn what_an_upstream_does_not_speak_is_refused_before_anything_is_held() {
    let stack = native().await;
    for (path, body) in [
        ("/v1/completions", completion(json!({}))),
        (
            "/v1/embeddings",
            json!({"model": "test-model", "input": "a"}),
        ),
    ] {
        let (status, refused) = status_and_body(stack.post(path, &body)).await;
        assert_eq!(
            (status, &refused["error"]["param"]),
            (400, &json!("model")),
            "{refused}"
        );
        assert!(refused["error"]["message"].as_str().unwrap().contains(path));
    }
    serves(&stack);
    let body = json!({"model": "tiny", "input": "a"});
    let (status, _) = status_and_body(stack.post("/v1/embeddings", &body)).await;
    assert_eq!((status, stack.upstream.hits()), (400, 0));
}

#[tokio::test]
async fn a_neuron_goes_on_with_a_text_too() {
    let stack = Stack::balance(200).await;
    serves(&stack);
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", text_answer()));
    let body = tiny(completion(json!({"max_tokens": 9})));
    let (status, shown) = status_and_body(stack.post("/v1/completions", &body)).await;
    assert_eq!(
        (status, &shown["choices"][0]["text"]),
        (200, &json!(" a time"))
    );
    let asked = stack.upstream.last();
    assert_eq!(asked.path, "/v1/completions");
    assert!(crate::support::is_signed(
        &asked.path,
        &asked.headers,
        &asked.bytes
    ));
    assert_eq!(stack.spent_once_idle().await, 5);
}

#[tokio::test]
async fn tokens_are_counted_by_the_upstream_by_a_neuron_or_by_the_bound() {
    let path = "/v1/messages/count_tokens";
    let mut body = hi(20);
    body.as_object_mut().unwrap().remove("max_tokens");
    let counted = async |stack: &Stack, body: &Value| {
        let response = stack.post(path, body).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 200);
        let by = response.headers()["x-seatbelt-counted"]
            .to_str()
            .unwrap()
            .to_owned();
        let text = response.text().await.unwrap();
        let shown: Value = serde_json::from_str(&text).unwrap();
        (by, shown["input_tokens"].as_u64().unwrap())
    };
    let stack = native().await;
    let answer = r#"{"input_tokens":14}"#.to_owned();
    stack
        .upstream
        .plays(Script::Whole(200, "application/json", answer));
    assert_eq!(counted(&stack, &body).await, ("upstream".to_owned(), 14));
    let asked = stack.upstream.last();
    assert_eq!((asked.path.as_str(), &asked.body), (path, &body));
    serves(&stack);
    assert_eq!(
        counted(&stack, &tiny(body.clone())).await,
        ("exact".to_owned(), 10)
    );
    let stack = Stack::start(tokens(1, Window::Balance)).await;
    assert_eq!(counted(&stack, &body).await, ("bound".to_owned(), 18));
    assert_eq!((stack.upstream.hits(), stack.cap().await.spent), (0, 0));
}

#[tokio::test]
async fn a_count_is_asked_of_another_deployment_where_one_gives_none() {
    let second = Upstream::start().await;
    let stack = Stack::start_with(tokens(100, Window::Balance), |told| {
        let upstream = &mut told.upstreams[0];
        upstream.kind = Dialect::Anthropic;
        upstream.base_url = upstream.base_url.trim_end_matches("/v1").to_owned();
        upstream.deployments = vec![DeploymentConfig {
            name: "second".to_owned(),
            base_url: format!("http://{}", second.address),
            api_key: None,
            weight: 1,
            priority: 1,
        }];
    })
    .await;
    let answer = r#"{"input_tokens":14}"#.to_owned();
    second.plays(Script::Whole(200, "application/json", answer));
    for odd in [
        Script::Whole(529, "application/json", "{}".to_owned()),
        Script::Half(200, "{"),
    ] {
        stack.upstream.plays(odd);
        let asked = stack.post("/v1/messages/count_tokens", &hi(20));
        let (status, shown) = status_and_body(asked).await;
        assert_eq!((status, &shown["input_tokens"]), (200, &json!(14)));
    }
    assert_eq!((stack.upstream.hits(), second.hits()), (2, 2));
    assert_eq!(second.last().path, "/v1/messages/count_tokens");
}

#[tokio::test]
async fn a_count_that_fails_is_told_in_the_envelope_of_messages() {
    let path = "/v1/messages/count_tokens";
    let stack = native().await;
    stack
        .upstream
        .plays(Script::Whole(401, "application/json", "{}".to_owned()));
    let (status, shown) = status_and_body(stack.post(path, &hi(5))).await;
    assert_eq!((status, &shown["type"]), (502, &json!("error")));
    let error = r#"{"type":"error","error":{"type":"invalid_request_error","message":"no"}}"#;
    stack
        .upstream
        .plays(Script::Whole(400, "application/json", error.to_owned()));
    let (status, shown) = status_and_body(stack.post(path, &hi(5))).await;
    assert_eq!((status, shown.to_string().as_str()), (400, error));
    let (status, shown) = status_and_body(stack.post(path, &json!({"messages": []}))).await;
    assert_eq!(
        (status, &shown["error"]["type"]),
        (400, &json!("invalid_request_error"))
    );
}
