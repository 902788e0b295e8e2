//! Answers that have to look like something: `response_format`, and calls that are demanded.

use serde_json::{Value, json};

use crate::{
    common::{Neuron, chat, with},
    tools::{HERMES, told_by, tools},
};

const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "maxLength": 8 },
            "days": { "type": "integer", "minimum": 0, "maximum": 9 },
            "kind": { "enum": ["rain", "sun"] },
        },
        "required": ["city", "days", "kind"],
        "additionalProperties": false,
    })
}

/// Warm enough that the tiny model says anything.
fn warm(body: Value, seed: usize) -> Value {
    with(with(body, "temperature", json!(1.5)), "seed", json!(seed))
}

#[tokio::test]
async fn answers_follow_their_schema_whoever_else_is_answered() {
    let neuron = Neuron::start().await;
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "weather", "schema": schema() } });
    let asked = |seed| {
        let body = with(chat("How is it?", 200), "response_format", format.clone());
        warm(body, seed)
    };
    let plain = |seed| warm(chat("How is it?", 60), seed);
    let mut alone = Vec::new();
    for seed in 0..6 {
        alone.push(neuron.post(CHAT, &asked(seed)).await.text());
        alone.push(neuron.post(CHAT, &plain(seed)).await.text());
    }
    let together = (0..6).flat_map(|seed| [asked(seed), plain(seed)]);
    let together: Vec<Value> = together.collect();
    let together = together
        .iter()
        .map(async |body| neuron.post(CHAT, body).await);
    let together = futures::future::join_all(together).await;
    for (n, (answer, alone)) in together.iter().zip(alone).enumerate() {
        assert_eq!(answer.text(), alone, "{n}");
        if n % 2 == 0 {
            let read: Value = serde_json::from_str(&alone).unwrap();
            assert!(read["city"].is_string() && read["days"].is_u64(), "{read}");
            assert!(
                ["rain", "sun"].contains(&read["kind"].as_str().unwrap()),
                "{read}"
            );
            assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
        }
    }
}

#[tokio::test]
async fn any_object_is_json_up_to_the_ceiling() {
    let neuron = Neuron::start().await;
    let body = with(
        chat("Hi", 40),
        "response_format",
        json!({ "type": "json_object" }),
    );
    let streamed = neuron
        .post(CHAT, &with(body.clone(), "stream", json!(true)))
        .await;
    let text = streamed.streamed_text();
    assert!(text.starts_with('{'), "{text}");
    assert_eq!(text, neuron.post(CHAT, &body).await.text());
}

#[tokio::test]
async fn a_shape_that_cannot_be_is_refused_by_name() {
    let neuron = Neuron::start().await;
    let never = json!({ "type": "object", "properties": { "a": false }, "required": ["a"] });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "never", "schema": never } });
    let answer = neuron
        .post(CHAT, &with(chat("Hi", 9), "response_format", format))
        .await;
    let error = &answer.json()["error"];
    assert_eq!(
        (answer.status, &error["param"]),
        (400, &json!("response_format")),
        "{error}"
    );
    let object = json!({ "type": "json_object" });
    let body = with(chat("Hi", 9), "response_format", object);
    for (name, value) in [("ignore_eos", json!(true)), ("min_tokens", json!(3))] {
        let answer = neuron.post(CHAT, &with(body.clone(), name, value)).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (400, &json!(name))
        );
    }
    assert_eq!(neuron.says("Hi", 3).await.len(), 3, "it goes on");
}

#[tokio::test]
async fn a_call_that_is_demanded_is_made() {
    let (_folder, config) = told_by(HERMES);
    let neuron = Neuron::with(|all| all.models = vec![config]).await;
    let body = warm(with(chat("Hi", 300), "tools", tools()), 5);
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    for (choice, names) in [
        (json!("required"), &["weather", "now"][..]),
        (named, &["weather"]),
    ] {
        let body = with(body.clone(), "tool_choice", choice);
        let answer = neuron.post(CHAT, &body).await.json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let message = &choice["message"];
        assert_eq!(message["content"], Value::Null);
        let call = &message["tool_calls"][0]["function"];
        let name = call["name"].as_str().unwrap();
        assert!(names.contains(&name), "{call}");
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert_eq!(arguments["city"].is_string(), name == "weather", "{call}");

        let chunks = neuron
            .post(CHAT, &with(body, "stream", json!(true)))
            .await
            .chunks();
        let calls = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
        let calls: Vec<&Value> = calls.flatten().collect();
        assert_eq!(
            (calls.len(), &calls[0]["index"], &calls[0]["function"]),
            (1, &json!(0), call)
        );
        let last = &chunks.last().unwrap()["choices"][0];
        assert_eq!(last["finish_reason"], "tool_calls");
        let text = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
        assert_eq!(text.collect::<String>(), "");
    }
    let nobody = json!({ "type": "function", "function": { "name": "other" } });
    let answer = neuron.post(CHAT, &with(body, "tool_choice", nobody)).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("tool_choice"))
    );
}
