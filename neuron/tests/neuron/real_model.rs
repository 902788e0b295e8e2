//! Real weights: the neuron answers as onnxruntime-genai does on the same files, alone and together.
//!
//! `make model` makes the files, `make nightly` runs this. The expected texts come from
//! `scripts/make_golden_texts.py`.

use std::fs;

use seatbelt_neuron::ModelConfig;
use serde::Deserialize;

use crate::common::{Neuron, tiny, workspace};

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
