//! Several answers of one request: to one prompt, to several, whole and streamed.

use seatbelt_schemas::{
    neuron::{HEADER_ACCOUNT, HEADER_MAX_INPUT_TOKENS, HEADER_MAX_OUTPUT_TOKENS},
    usage::NeuronOutcome,
};
use serde_json::{Value, json};

use crate::common::{Answer, Neuron, chat, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn completion(prompt: &Value, max_tokens: usize) -> Value {
    json!({ "model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0 })
}

/// The texts of an answer, which come in the order of their indexes.
fn texts(answer: &Answer) -> Vec<String> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    let choices = answer["choices"].as_array().unwrap();
    let text = |(n, choice): (usize, &Value)| {
        assert_eq!(choice["index"], json!(n));
        assert!(choice["finish_reason"].is_string());
        let text = choice.get("text").unwrap_or(&choice["message"]["content"]);
        text.as_str().unwrap().to_owned()
    };
    choices.iter().enumerate().map(text).collect()
}

fn usage(answer: &Value) -> (u64, u64) {
    let count = |name: &str| answer["usage"][name].as_u64().unwrap();
    (count("prompt_tokens"), count("completion_tokens"))
}

#[tokio::test]
async fn each_of_several_answers_is_what_it_is_alone_and_the_prompt_is_charged_once() {
    let neuron = Neuron::start().await;
    let body = with(
        with(chat("What a day", 12), "temperature", json!(1.2)),
        "seed",
        json!(7),
    );
    let mut alone = Vec::new();
    for seed in 7..11 {
        let answer = neuron
            .post(CHAT, &with(body.clone(), "seed", json!(seed)))
            .await;
        alone.push((answer.text(), usage(&answer.json())));
    }
    let headers = [(HEADER_ACCOUNT, "ann")];
    let answer = neuron
        .post_with(CHAT, &headers, &with(body, "n", json!(4)))
        .await;
    let expected: Vec<&String> = alone.iter().map(|(text, _)| text).collect();
    assert_eq!(texts(&answer).iter().collect::<Vec<_>>(), expected);
    let written = alone.iter().map(|(_, (_, output))| output).sum();
    assert_eq!(usage(&answer.json()), (alone[0].1.0, written));
    let reports = neuron.reports.exactly(5).await;
    let (_, event) = &reports[4];
    let counted = (event.usage.input_tokens, event.usage.output_tokens);
    assert_eq!(
        (event.outcome, counted),
        (NeuronOutcome::Completed, usage(&answer.json()))
    );
}

#[tokio::test]
async fn several_prompts_are_answered_in_their_order_each_as_often_as_asked() {
    let neuron = Neuron::start().await;
    let prompts = [json!("Once upon a time"), json!([72, 105, 33]), json!("x")];
    let mut alone = Vec::new();
    let mut input = 0;
    for prompt in &prompts {
        let answer = neuron.post(COMPLETIONS, &completion(prompt, 9)).await;
        alone.extend(texts(&answer));
        input += usage(&answer.json()).0;
    }
    let both = with(completion(&json!(prompts), 9), "n", json!(2));
    let answer = neuron.post(COMPLETIONS, &both).await;
    let expected: Vec<String> = (alone.iter())
        .flat_map(|text| [text.clone(), text.clone()])
        .collect();
    assert_eq!(texts(&answer), expected);
    assert_eq!(usage(&answer.json()).0, input);
    let answer = neuron
        .post(
            COMPLETIONS,
            &with(completion(&json!(prompts), 9), "echo", json!(true)),
        )
        .await;
    let shown = ["Once upon a time", "Hi!", "x"];
    let expected: Vec<String> = (shown.iter().zip(&alone))
        .map(|(shown, text)| format!("{shown}{text}"))
        .collect();
    assert_eq!(texts(&answer), expected);
}

#[tokio::test]
async fn a_stream_names_the_choice_of_each_piece_and_ends_each_once() {
    let neuron = Neuron::start().await;
    let body = with(
        completion(&json!(["Hello", "Good morning"]), 11),
        "n",
        json!(2),
    );
    let body = with(body, "echo", json!(true));
    let whole = texts(&neuron.post(COMPLETIONS, &body).await);
    let body = with(
        with(body, "stream", json!(true)),
        "stream_options",
        json!({ "include_usage": true }),
    );
    let answer = neuron.post(COMPLETIONS, &body).await;
    let (mut said, mut ends) = (vec![String::new(); 4], vec![0; 4]);
    for chunk in answer.chunks() {
        let Some(choice) = chunk["choices"].get(0) else {
            assert_eq!(usage(&chunk).1, 44, "{chunk}");
            continue;
        };
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        assert_eq!(ends[index], 0, "nothing comes after its end");
        said[index].push_str(choice["text"].as_str().unwrap());
        ends[index] += usize::from(choice["finish_reason"].is_string());
    }
    assert_eq!((said, ends), (whole, vec![1; 4]));
    assert_eq!(neuron.reports.exactly(2).await[1].1.usage.output_tokens, 44);
}

#[tokio::test]
async fn what_was_reserved_is_for_all_answers_together() {
    let neuron = Neuron::start().await;
    let body = with(completion(&json!(["ab", "cd"]), 50), "n", json!(2));
    let ask = async |input: &str, output: &str| {
        let headers = [
            (HEADER_MAX_INPUT_TOKENS, input),
            (HEADER_MAX_OUTPUT_TOKENS, output),
        ];
        neuron.post_with(COMPLETIONS, &headers, &body).await
    };
    let answer = ask("100", "23").await;
    assert!(usage(&answer.json()).1 <= 4 * 5, "{answer:?}");
    for none in ["3", "0"] {
        assert_eq!(ask("100", none).await.code(), "invalid_header");
    }
    assert_eq!(ask("3", "100").await.code(), "input_over_reservation");
    let answer = ask(&usage(&answer.json()).0.to_string(), "100").await;
    assert_eq!(texts(&answer).len(), 4);
}

#[tokio::test]
async fn more_answers_than_can_run_and_wait_are_refused_by_name() {
    let neuron = Neuron::with(|config| config.queue = 2).await;
    let asked = |n: usize| with(chat("x", 2), "n", json!(n));
    assert_eq!(texts(&neuron.post(CHAT, &asked(6)).await).len(), 6);
    let refused = neuron.post(CHAT, &asked(7)).await;
    assert_eq!(
        (refused.status, refused.json()["error"]["param"].clone()),
        (400, json!("n"))
    );
}
