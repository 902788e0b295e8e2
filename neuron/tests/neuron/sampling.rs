//! How tokens are chosen, as requests ask for it, and what is told of it.

use serde_json::{Value, json};

use crate::common::{Neuron, chat, with};

const CHAT: &str = "/v1/chat/completions";
const LETTER: &str = "65";
const END: &str = "257";

async fn chosen(neuron: &Neuron, max_tokens: usize, fields: &[(&str, Value)]) -> Value {
    let body = fields
        .iter()
        .fold(chat("Hello", max_tokens), |body, (name, value)| {
            with(body, name, value.clone())
        });
    let answer = neuron.post(CHAT, &body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The text, how it ended and how many tokens it has.
fn outcome(answer: &Value) -> (&str, &str, u64) {
    let choice = &answer["choices"][0];
    (
        choice["message"]["content"].as_str().unwrap(),
        choice["finish_reason"].as_str().unwrap(),
        answer["usage"]["completion_tokens"].as_u64().unwrap(),
    )
}

#[tokio::test]
async fn a_bias_forces_a_token_and_penalties_drive_it_out() {
    let neuron = Neuron::start().await;
    let bias = ("logit_bias", json!({ LETTER: 100 }));
    let answer = chosen(&neuron, 5, &[bias]).await;
    assert_eq!(outcome(&answer), ("AAAAA", "length", 5));
    let plain = neuron.says("Hello", 60).await;
    for penalty in [
        ("frequency_penalty", json!(2)),
        ("presence_penalty", json!(2)),
        ("repetition_penalty", json!(10)),
    ] {
        let answer = chosen(&neuron, 60, std::slice::from_ref(&penalty)).await;
        assert_ne!(outcome(&answer).0, plain, "{penalty:?}");
    }
}

#[tokio::test]
async fn the_likeliest_alone_is_greedy() {
    let neuron = Neuron::start().await;
    let greedy = neuron.says("Hello", 40).await;
    let hot = ("temperature", json!(2));
    for only in [
        ("top_k", json!(1)),
        ("min_p", json!(1)),
        ("top_p", json!(0)),
    ] {
        let answer = chosen(&neuron, 40, &[hot.clone(), only.clone()]).await;
        assert_eq!(outcome(&answer).0, greedy, "{only:?}");
    }
}

#[tokio::test]
async fn a_request_says_which_tokens_end_it_and_when() {
    let neuron = Neuron::start().await;
    let end = ("logit_bias", json!({ END: 100 }));
    let answer = chosen(&neuron, 9, std::slice::from_ref(&end)).await;
    assert_eq!(outcome(&answer), ("", "stop", 1));
    let later = ("min_tokens", json!(4));
    let answer = chosen(&neuron, 9, &[end.clone(), later]).await;
    let (text, reason, tokens) = outcome(&answer);
    assert_eq!((text.len(), reason, tokens), (4, "stop", 5));
    let answer = chosen(&neuron, 9, &[end, ("ignore_eos", json!(true))]).await;
    assert_eq!(outcome(&answer), ("", "length", 9));
    let letter = ("logit_bias", json!({ LETTER: 100 }));
    let answer = chosen(&neuron, 9, &[letter, ("stop_token_ids", json!([65]))]).await;
    assert_eq!(outcome(&answer), ("", "stop", 1));
}

#[tokio::test]
async fn logprobs_of_a_chat_are_told_for_each_token_whole_and_streamed() {
    let neuron = Neuron::start().await;
    let asked = [("logprobs", json!(true)), ("top_logprobs", json!(3))];
    let answer = chosen(&neuron, 20, &asked).await;
    let told = answer["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert_eq!(told.len(), 20);
    let mut text = String::new();
    for one in told {
        text.push_str(one["token"].as_str().unwrap());
        assert_eq!(
            one["bytes"],
            json!(one["token"].as_str().unwrap().as_bytes())
        );
        let top = one["top_logprobs"].as_array().unwrap();
        let logprobs: Vec<f64> = top
            .iter()
            .map(|top| top["logprob"].as_f64().unwrap())
            .collect();
        assert!(
            logprobs.len() == 3 && logprobs.is_sorted_by(|a, b| a >= b),
            "{one}"
        );
        assert_eq!(
            (&top[0]["token"], logprobs[0] <= 0.0),
            (&one["token"], true)
        );
    }
    assert_eq!(text, outcome(&answer).0);
    let body = asked.iter().fold(chat("Hello", 20), |body, (name, value)| {
        with(body, name, value.clone())
    });
    let chunks = neuron
        .post(CHAT, &with(body, "stream", json!(true)))
        .await
        .chunks();
    let streamed = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(
        streamed.flatten().collect::<Vec<_>>(),
        told.iter().collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn logprobs_of_a_completion_are_told_in_columns() {
    let neuron = Neuron::start().await;
    let body = json!({ "model": "tiny", "prompt": "Once", "max_tokens": 12, "logprobs": 2 });
    let whole = neuron.post("/v1/completions", &body).await.json();
    let told = &whole["choices"][0]["logprobs"];
    let tokens: Vec<&str> = told["tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(
        tokens.concat(),
        whole["choices"][0]["text"].as_str().unwrap()
    );
    assert_eq!(told["text_offset"], json!((0..12).collect::<Vec<_>>()));
    assert_eq!(told["token_logprobs"].as_array().unwrap().len(), 12);
    assert_eq!(told["top_logprobs"][0].as_object().unwrap().len(), 2);
    let chunks = neuron
        .post("/v1/completions", &with(body, "stream", json!(true)))
        .await
        .chunks();
    let offsets = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array());
    let offsets: Vec<u64> = offsets
        .flatten()
        .map(|offset| offset.as_u64().unwrap())
        .collect();
    assert_eq!(offsets, (0..12).collect::<Vec<u64>>());
}
