//! Tools: their definitions in the prompt, and calls of them in answers.

use std::{fs, path::PathBuf};

use seatbelt_neuron::ModelConfig;
use seatbelt_tokens::{ChatCounter, Recipe};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Neuron, chat, tiny, with, workspace};

const CHAT: &str = "/v1/chat/completions";
/// Writes tools, calls and what they gave as Hermes and Qwen do.
pub(crate) const HERMES: &str = "{% if tools %}<tool_call>{{ tools | tojson }}</tool_call>{% endif %}{% for m in messages %}<|{{ m.role }}|>\
    {{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}<|assistant|>";

/// The tiny model with another template.
pub(crate) fn told_by(template: &str) -> (TempDir, ModelConfig) {
    let folder = tempfile::tempdir().unwrap();
    for file in [
        "genai_config.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        let from: PathBuf = workspace().join("models/tiny").join(file);
        fs::copy(from, folder.path().join(file)).unwrap();
    }
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let config = ModelConfig {
        path: folder.path().to_owned(),
        ..tiny(2)
    };
    (folder, config)
}

pub(crate) fn tools() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": { "city": { "type": "string", "maxLength": 8 } },
        "required": ["city"],
        "additionalProperties": false,
    });
    let other = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    json!([
        { "type": "function", "function": { "name": "weather", "parameters": parameters } },
        { "type": "function", "function": { "name": "now", "parameters": other } },
    ])
}

#[tokio::test]
async fn tools_and_their_history_are_in_the_prompt_as_gateways_count_it() {
    let (_folder, config) = told_by(HERMES);
    let neuron = Neuron::with(|all| all.models = vec![config]).await;
    let plain = neuron.post(CHAT, &chat("Hi", 2)).await.json();
    let mut body = with(chat("Hi", 2), "tools", tools());
    let function = json!({ "name": "weather", "arguments": "{\"city\": \"Bern\"}" });
    body["messages"].as_array_mut().unwrap().extend([
        json!({ "role": "assistant", "content": null, "tool_calls": [{ "id": "1", "type": "function", "function": function }] }),
        json!({ "role": "tool", "tool_call_id": "1", "content": "rain" }),
    ]);
    let told = neuron.post(CHAT, &body).await.json();
    let count = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let tools_text = tools().to_string();
    assert!(count(&told) > count(&plain) + tools_text.len() as u64);
    let folder = workspace().join("models/tiny");
    let recipe = Recipe {
        tokenizer: fs::read_to_string(folder.join("tokenizer.json")).unwrap(),
        template: Some(HERMES.to_owned()),
        bos: "<|bos|>".to_owned(),
        eos: "<|end|>".to_owned(),
    };
    let counter = ChatCounter::read(&recipe.encode()).unwrap();
    let counted = counter.count(|name| body.get(name), 1024).unwrap();
    assert_eq!(counted, count(&told));
    let without = with(body, "tool_choice", json!("none"));
    let none = neuron.post(CHAT, &without).await.json();
    assert!(
        count(&none) + tools_text.len() as u64 <= count(&told),
        "{none}"
    );
}

#[tokio::test]
async fn tools_of_a_model_that_takes_none_or_writes_them_in_an_unknown_way_are_refused() {
    let neuron = Neuron::start().await;
    let body = with(chat("Hi", 2), "tools", tools());
    let answer = neuron.post(CHAT, &body).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("tools"))
    );
    let (_folder, config) = told_by("{{ tools }}{{ messages[0].content }}");
    let neuron = Neuron::with(|all| all.models = vec![config]).await;
    let answer = neuron.post(CHAT, &body).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("tools"))
    );
}
