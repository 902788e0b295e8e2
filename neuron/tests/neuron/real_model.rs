//! Real weights: the neuron answers as onnxruntime-genai does on the same files, alone and together.
//!
//! `make model` makes the files, `make nightly` runs this. The expected texts come from
//! `scripts/make_golden_texts.py`.

use std::{fs, time::Instant};

use seatbelt_neuron::ModelConfig;
use seatbelt_schemas::neuron::HEADER_ACCOUNT;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::{Neuron, chat, tiny, with, workspace};

/// What the other engine said to the prompts, by precision.
#[derive(Deserialize)]
struct Golden {
    max_tokens: usize,
    fp32: Vec<String>,
    int4: Vec<String>,
}

#[tokio::test]
#[ignore = "needs `make model`; `make nightly` runs it"]
async fn greedy_answers_of_fp32_are_those_of_another_engine() {
    answers_are("fp32", |golden| golden.fp32).await;
}

#[tokio::test]
#[ignore = "needs `make model`; `make nightly` runs it"]
async fn greedy_answers_of_int4_are_those_of_another_engine() {
    answers_are("int4", |golden| golden.int4).await;
}

/// Prompt tokens of the first turn, about.
const FIRST_TURN_WORDS: usize = 650;

#[tokio::test]
#[ignore = "needs `make model`; `make nightly` runs it"]
#[expect(clippy::print_stdout, reason = "a measurement")]
async fn the_second_turn_of_a_long_chat_answers_at_once() {
    let path = workspace().join(".deps/models/smollm2/int4");
    let neuron = Neuron::with(|config| {
        config.threads = 1;
        config.models = vec![ModelConfig {
            path,
            context: Some(2048),
            ..tiny(4)
        }];
    })
    .await;
    let long = "the cap holds ".repeat(FIRST_TURN_WORDS / 3);
    let first = json!([{ "role": "user", "content": long }]);
    let asked = |messages: &Value| json!({ "model": "tiny", "messages": messages, "max_tokens": 1, "temperature": 0 });
    let path = "/v1/chat/completions";
    let headers = [(HEADER_ACCOUNT, "ann")];
    let said = with(asked(&first), "max_tokens", json!(40));
    let said = neuron.post_with(path, &headers, &said).await.text();
    let mut second = first.clone();
    let turn = [
        json!({ "role": "assistant", "content": said }),
        json!({ "role": "user", "content": "And how much of it is left?" }),
    ];
    second.as_array_mut().unwrap().extend(turn);
    let mut took = Vec::new();
    for headers in [&[][..], &headers] {
        let began = Instant::now();
        let answer = neuron
            .post_with(path, headers, &asked(&second))
            .await
            .json();
        took.push(began.elapsed());
        println!("{:?}: {}", took[took.len() - 1], answer["usage"]);
    }
    assert!(took[1] * 5 <= took[0], "{took:?}");
    neuron.stop().await;
}

#[tokio::test]
#[ignore = "needs `make model`; `make nightly` runs it"]
#[expect(clippy::print_stdout, reason = "a measurement")]
async fn a_real_vocabulary_follows_a_schema() {
    let neuron = Neuron::with(|config| {
        config.threads = 1;
        config.models = vec![ModelConfig {
            path: workspace().join(".deps/models/smollm2/fp32"),
            context: Some(512),
            ..tiny(1)
        }];
    })
    .await;
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 30 },
            "age": { "type": "integer", "minimum": 0, "maximum": 150 },
            "likes": { "type": "array", "items": { "type": "string", "maxLength": 20 }, "minItems": 2, "maxItems": 3 },
        },
        "required": ["name", "age", "likes"],
        "additionalProperties": false,
    });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "person", "schema": person } });
    let prompt = "Describe a person as JSON with name, age and likes.";
    let plain = with(chat(prompt, 60), "ignore_eos", json!(true));
    let path = "/v1/chat/completions";
    let shaped = with(chat(prompt, 200), "response_format", format);
    // The first prepares the vocabulary.
    for body in [&plain, &shaped, &shaped] {
        let began = Instant::now();
        let answer = neuron.post(path, body).await;
        let (took, usage) = (began.elapsed(), answer.json()["usage"].clone());
        let tokens = usage["completion_tokens"].as_u64().unwrap();
        println!(
            "{took:?}, {:?} a token: {}",
            took / u32::try_from(tokens).unwrap(),
            answer.text()
        );
        if body == &shaped {
            let read: Value = serde_json::from_str(&answer.text()).unwrap();
            assert!(read["age"].as_u64().is_some_and(|age| age <= 150), "{read}");
        }
    }
    neuron.stop().await;
}

async fn answers_are(precision: &str, of: impl FnOnce(Golden) -> Vec<String>) {
    let prompts: Vec<String> = read("prompts.json");
    let golden: Golden = read("golden.json");
    let max_tokens = golden.max_tokens;
    let expected = of(golden);
    let path = workspace().join(".deps/models/smollm2").join(precision);
    assert!(
        path.is_dir(),
        "{} is not there: run `make model`",
        path.display()
    );
    let neuron = Neuron::with(|config| {
        config.threads = 2;
        config.models = vec![ModelConfig {
            path,
            context: Some(512),
            ..tiny(prompts.len())
        }];
    })
    .await;

    for (prompt, expected) in prompts.iter().zip(&expected) {
        assert_eq!(&neuron.says(prompt, max_tokens).await, expected, "{prompt}");
    }
    let together = prompts.iter().map(|prompt| neuron.says(prompt, max_tokens));
    assert_eq!(futures::future::join_all(together).await, expected);
    neuron.stop().await;
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = workspace().join("neuron/tests/smollm2").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
