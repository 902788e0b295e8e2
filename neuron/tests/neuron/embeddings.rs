//! Vectors for texts, by the committed tiny encoder beside the tiny decoder.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::future::join_all;
use seatbelt_neuron::ModelConfig;
use seatbelt_schemas::{
    ids::ModelId,
    neuron::{
        HEADER_ACCOUNT, HEADER_MAX_INPUT_TOKENS, HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION,
    },
    usage::NeuronOutcome,
};
use serde_json::{Value, json};

use crate::common::{Answer, Neuron, chat, tiny, with, workspace};

const EMBEDDINGS: &str = "/v1/embeddings";
/// What config.json of the tiny encoder says.
const CONTEXT: usize = 128;

async fn neuron() -> Neuron {
    Neuron::with(|config| {
        let id = ModelId::new("vectors").unwrap();
        let path = workspace().join("models/tiny-encoder");
        config.models = vec![tiny(2), ModelConfig::new(id, path)];
    })
    .await
}

fn body(input: &Value) -> Value {
    json!({ "model": "vectors", "input": input })
}

fn vectors(answer: &Answer) -> Vec<Vec<f64>> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let vector = |(n, data): (usize, &Value)| {
        assert_eq!(
            (&data["index"], &data["object"]),
            (&json!(n), &json!("embedding"))
        );
        let numbers = data["embedding"].as_array().unwrap().iter();
        numbers.map(|number| number.as_f64().unwrap()).collect()
    };
    answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(vector)
        .collect()
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|value| value * value).sum::<f64>().sqrt()
}

#[tokio::test]
async fn a_text_has_its_vector_alone_together_and_as_tokens() {
    let neuron = neuron().await;
    let texts = [
        "hi",
        "a longer text that is read beside short ones",
        "hi there",
    ];
    let all = neuron.post(EMBEDDINGS, &body(&json!(texts))).await;
    let usage = all.json()["usage"].clone();
    // Each with a token before and one behind.
    let tokens: usize = texts.iter().map(|text| text.len() + 2).sum();
    assert_eq!(
        usage,
        json!({ "prompt_tokens": tokens, "total_tokens": tokens })
    );
    let all = vectors(&all);
    let bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    let alone = join_all(bodies.iter().map(|body| neuron.post(EMBEDDINGS, body))).await;
    for (one, together) in alone.iter().zip(&all) {
        assert!(far(&vectors(one)[0], together) < 1e-5);
        assert!((length(together) - 1.0).abs() < 1e-5);
    }
    assert!(far(&all[0], &all[2]) > 0.01, "other texts, other vectors");
    let ids: Vec<u32> = [256]
        .into_iter()
        .chain("hi".bytes().map(u32::from))
        .chain([257])
        .collect();
    for input in [json!(ids), json!([ids])] {
        let answer = neuron.post(EMBEDDINGS, &body(&input)).await;
        assert!(far(&vectors(&answer)[0], &all[0]) < 1e-5);
    }
}

#[tokio::test]
async fn fewer_numbers_are_the_first_ones_of_length_one_and_bytes_are_the_same_numbers() {
    let neuron = neuron().await;
    let whole = vectors(&neuron.post(EMBEDDINGS, &body(&json!("hi"))).await).remove(0);
    let short = with(body(&json!("hi")), "dimensions", json!(8));
    let short = vectors(&neuron.post(EMBEDDINGS, &short).await).remove(0);
    let first: Vec<f64> = whole[..8]
        .iter()
        .map(|value| value / length(&whole[..8]))
        .collect();
    assert!(far(&short, &first) < 1e-5);
    let bytes = with(body(&json!("hi")), "encoding_format", json!("base64"));
    let bytes = neuron.post(EMBEDDINGS, &bytes).await.json();
    let bytes = BASE64_STANDARD
        .decode(bytes["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let numbers: Vec<f64> = (bytes.chunks(4))
        .map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap())))
        .collect();
    assert!(far(&numbers, &whole) < 1e-7);
}

#[tokio::test]
async fn what_was_read_is_reported_once_and_there_is_no_output() {
    let neuron = neuron().await;
    let headers = [
        (HEADER_RESERVATION, "r-1"),
        (HEADER_ACCOUNT, "ann"),
        (HEADER_MAX_INPUT_TOKENS, "12"),
        (HEADER_MAX_OUTPUT_TOKENS, "0"),
    ];
    let answer = neuron
        .post_with(EMBEDDINGS, &headers, &body(&json!(["hi", "there"])))
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        neuron
            .post_with(EMBEDDINGS, &headers, &body(&json!(["hi", "there!!"])))
            .await
            .code(),
        "input_over_reservation"
    );
    let reports = neuron.reports.exactly(2).await;
    let (id, event) = &reports[0];
    assert_eq!(
        (id.as_str(), event.model.as_ref().unwrap().as_str()),
        ("r-1", "vectors")
    );
    let usage = (event.usage.input_tokens, event.usage.output_tokens);
    assert_eq!((event.outcome, usage), (NeuronOutcome::Completed, (11, 0)));
    assert_eq!(reports[1].1.outcome, NeuronOutcome::Rejected);
    let counted = neuron
        .post("/tokenize", &body(&json!(["hi", "there"])))
        .await
        .json();
    assert_eq!(
        counted,
        json!({ "input_tokens": 11, "context": CONTEXT, "output": 0 })
    );
}

#[tokio::test]
async fn each_model_does_what_it_can_and_says_what_it_cannot() {
    let neuron = neuron().await;
    assert_eq!(neuron.says("Hi", 4).await.len(), 4);
    let listed = neuron.get("/v1/models/vectors").await.json();
    let told = (
        &listed["context_length"],
        &listed["max_output_tokens"],
        &listed["embedding_length"],
    );
    assert_eq!(told, (&json!(CONTEXT), &json!(0), &json!(32)));
    for (path, body, code) in [
        (
            "/v1/chat/completions",
            with(chat("x", 1), "model", json!("vectors")),
            "unsupported_endpoint",
        ),
        (
            EMBEDDINGS,
            with(body(&json!("x")), "model", json!("tiny")),
            "unsupported_endpoint",
        ),
        (
            EMBEDDINGS,
            with(body(&json!("x")), "model", json!("other")),
            "model_not_found",
        ),
        (
            EMBEDDINGS,
            body(&json!("x".repeat(CONTEXT - 1))),
            "context_length_exceeded",
        ),
        (EMBEDDINGS, body(&json!([1, 2, 100_000])), "invalid_prompt"),
        (
            EMBEDDINGS,
            with(body(&json!("x")), "dimensions", json!(33)),
            "invalid_value",
        ),
        (
            EMBEDDINGS,
            with(body(&json!("x")), "prompt", json!("x")),
            "unsupported_parameter",
        ),
    ] {
        let answer = neuron.post(path, &body).await;
        assert!((400..500).contains(&answer.status), "{answer:?}");
        assert_eq!(answer.code(), code, "{body}");
    }
    let longest = body(&json!("x".repeat(CONTEXT - 2)));
    assert_eq!(vectors(&neuron.post(EMBEDDINGS, &longest).await).len(), 1);
}

#[tokio::test]
async fn an_encoder_that_breaks_down_is_loaded_again() {
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(workspace().join("models/tiny-encoder")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    // Tokens that the graph does not know fail its run.
    let said = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&said).unwrap()).unwrap();
    config["vocab_size"] = json!(1_000_000);
    std::fs::write(&said, config.to_string()).unwrap();
    let neuron = Neuron::with(|config| {
        let id = ModelId::new("vectors").unwrap();
        config.models = vec![ModelConfig::new(id, folder.path().to_owned())];
    })
    .await;
    let first = vectors(&neuron.post(EMBEDDINGS, &body(&json!("hi"))).await);
    for _ in 0..3 {
        let failed = neuron.post(EMBEDDINGS, &body(&json!([999_999]))).await;
        assert_eq!(
            (failed.status, failed.code().as_str()),
            (500, "engine_error")
        );
    }
    let loaded = "seatbelt_neuron_loads_total{model=\"vectors\"} 2";
    while !neuron.get("/metrics").await.body.contains(loaded) {
        tokio::task::yield_now().await;
    }
    let mut again = neuron.post(EMBEDDINGS, &body(&json!("hi"))).await;
    while again.status == 503 {
        again = neuron.post(EMBEDDINGS, &body(&json!("hi"))).await;
    }
    assert_eq!(vectors(&again), first);
    assert_eq!(neuron.get("/health/live").await.status, 200);
}
