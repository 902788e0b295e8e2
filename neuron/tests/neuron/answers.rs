//! What the neuron answers.

use std::path::Path;

use futures::future::join_all;
use seatbelt_schemas::{
    neuron::HEADER_ACCOUNT,
    usage::{NeuronOutcome, UsageEvent},
};
use seatbelt_tokens::{ChatCounter, Recipe, template_source};
use serde_json::{Value, json};

use crate::common::{Neuron, chat, request, tiny, with};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn greedy_answers_are_the_same_every_time_and_printable() {
    let neuron = Neuron::start().await;
    let first = neuron.says("Hello", 80).await;
    assert_eq!(first, neuron.says("Hello", 80).await);
    assert_ne!(first, neuron.says("Another question", 80).await);
    assert_eq!(first.len(), 80, "one letter per token: {first:?}");
    assert!(
        first.bytes().all(|byte| (0x20..0x7F).contains(&byte)),
        "{first:?}"
    );
}

#[tokio::test]
async fn a_whole_answer_has_the_shape_of_the_api() {
    let neuron = Neuron::start().await;
    let answer = neuron.post(CHAT, &chat("Hi", 5)).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .header("x-request-id")
            .is_some_and(|id| id.len() == 26)
    );
    let body = answer.json();
    assert_eq!(
        (&body["object"], &body["model"]),
        (&json!("chat.completion"), &json!("tiny"))
    );
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &body["choices"][0];
    assert_eq!(
        (&choice["index"], &choice["finish_reason"]),
        (&json!(0), &json!("length"))
    );
    assert_eq!(choice["message"]["role"], "assistant");
    // bos, role, two letters, end, role
    let usage = &body["usage"];
    assert_eq!(
        (&usage["prompt_tokens"], &usage["completion_tokens"]),
        (&json!(6), &json!(5))
    );
    assert_eq!(usage["total_tokens"], 11);
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let neuron = Neuron::start().await;
    let whole = neuron.says("Tell me", 60).await;
    let body = with(chat("Tell me", 60), "stream", json!(true));
    let streamed = neuron.post(CHAT, &body).await;
    assert!(
        streamed
            .header("content-type")
            .unwrap()
            .starts_with("text/event-stream")
    );
    assert_eq!(streamed.streamed_text(), whole);
    let chunks = streamed.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn a_stream_ends_with_usage_if_asked() {
    let neuron = Neuron::start().await;
    let body = with(chat("Hi", 4), "stream", json!(true));
    let body = with(body, "stream_options", json!({ "include_usage": true }));
    let mut chunks = neuron.post(CHAT, &body).await.chunks();
    let last = chunks.pop().unwrap();
    assert_eq!(
        (&last["choices"], &last["usage"]["completion_tokens"]),
        (&json!([]), &json!(4))
    );
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["usage"].is_null() && chunk.get("usage").is_some())
    );
}

#[tokio::test]
async fn answers_that_run_together_are_those_that_run_alone() {
    let neuron = Neuron::with(|config| config.models = vec![tiny(3)]).await;
    let prompts: Vec<String> = (0..12)
        .map(|n| "caps hold ".repeat(1 + n * 5 % 7 * 11))
        .collect();
    let mut alone = Vec::new();
    for (n, prompt) in prompts.iter().enumerate() {
        alone.push(neuron.says(prompt, 20 + 13 * n).await);
    }
    let together = prompts
        .iter()
        .enumerate()
        .map(|(n, prompt)| neuron.says(prompt, 20 + 13 * n));
    assert_eq!(join_all(together).await, alone);
}

#[tokio::test]
async fn a_seed_decides_a_warm_answer() {
    let neuron = Neuron::start().await;
    let warm = async |seed: i64| {
        let body = with(chat("Hi", 40), "temperature", json!(1.5));
        neuron
            .post(CHAT, &with(body, "seed", json!(seed)))
            .await
            .text()
    };
    let first = warm(1).await;
    assert_eq!(first, warm(1).await);
    assert_ne!(first, warm(2).await);
    assert_ne!(first, neuron.says("Hi", 40).await);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it() {
    let neuron = Neuron::start().await;
    let whole = neuron.says("Hello", 80).await;
    let stop = &whole[30..33];
    let expected = whole.split(stop).next().unwrap();
    let body = with(chat("Hello", 80), "stop", json!(["\u{0}", stop]));
    let answer = neuron.post(CHAT, &body).await;
    assert_eq!(answer.text(), expected);
    let answer = answer.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(
        answer["usage"]["completion_tokens"],
        expected.len() + stop.len()
    );
    let streamed = neuron.post(CHAT, &with(body, "stream", json!(true))).await;
    assert_eq!(streamed.streamed_text(), expected);
}

#[tokio::test]
async fn the_smallest_ceiling_wins() {
    let neuron = Neuron::with(|config| config.models[0].output = Some(9)).await;
    let tokens = async |header: Option<&str>, body: Value| {
        let headers: Vec<_> = header
            .map(|most| ("x-seatbelt-max-output-tokens", most))
            .into_iter()
            .collect();
        neuron.post_with(CHAT, &headers, &body).await.json()["usage"]["completion_tokens"].clone()
    };
    let open = with(chat("Hi", 1), "max_tokens", Value::Null);
    assert_eq!(tokens(None, open.clone()).await, 9, "the model's");
    assert_eq!(tokens(Some("4"), open.clone()).await, 4, "the reserved");
    assert_eq!(tokens(Some("8"), chat("Hi", 6)).await, 6, "the asked for");
    assert_eq!(
        tokens(
            Some("7"),
            with(chat("Hi", 9), "max_completion_tokens", json!(3))
        )
        .await,
        3,
        "the other spelling"
    );
}

#[tokio::test]
async fn a_prompt_near_the_context_gets_what_room_is_left() {
    let neuron = Neuron::with(|config| config.models[0].context = Some(64)).await;
    // four tokens are the template's
    let open = |letters: usize| with(chat(&"x".repeat(letters), 1), "max_tokens", Value::Null);
    let answer = neuron.post(CHAT, &open(50)).await.json();
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 54, "completion_tokens": 10, "total_tokens": 64,
            "prompt_tokens_details": { "cached_tokens": 0 },
        })
    );
    assert_eq!(
        neuron.post(CHAT, &open(59)).await.json()["usage"]["completion_tokens"],
        1
    );
    for letters in [60, 100_000] {
        let refused = neuron.post(CHAT, &open(letters)).await;
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (400, "context_length_exceeded")
        );
    }
}

#[tokio::test]
async fn a_prompt_over_the_reserved_input_is_refused_by_its_exact_size() {
    let neuron = Neuron::start().await;
    let post = async |most: &str| {
        neuron
            .post_with(
                CHAT,
                &[("x-seatbelt-max-input-tokens", most)],
                &chat("Hi", 3),
            )
            .await
    };
    let refused = post("5").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (400, "input_over_reservation")
    );
    assert_eq!(post("6").await.status, 200);
}

#[tokio::test]
async fn counting_tokens_agrees_with_running_them_and_reports_nothing() {
    let neuron = Neuron::start().await;
    let body = chat("Größe: 東京 🦀 <|end|>", 2);
    let counted = neuron.post("/tokenize", &body).await.json();
    let ran = neuron.post(CHAT, &body).await.json();
    assert_eq!(counted["input_tokens"], ran["usage"]["prompt_tokens"]);
    assert_eq!(
        (&counted["context"], &counted["output"]),
        (&json!(1024), &json!(1023))
    );
    let text = neuron
        .post("/tokenize", &json!({ "model": "tiny", "prompt": "abc" }))
        .await;
    assert_eq!(text.json()["input_tokens"], 3);
    assert_eq!(
        neuron
            .post("/tokenize", &json!({ "model": "none", "prompt": "abc" }))
            .await
            .code(),
        "model_not_found"
    );
    neuron.reports.exactly(1).await;
}

#[tokio::test]
async fn who_has_what_a_neuron_hands_out_counts_as_it_does() {
    let neuron = Neuron::start().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny");
    let recipe = Recipe {
        tokenizer: std::fs::read_to_string(folder.join("tokenizer.json")).unwrap(),
        template: template_source(&folder).unwrap(),
        bos: "<|bos|>".to_owned(),
        eos: "<|end|>".to_owned(),
    };
    let name = Recipe::name_of(&recipe.encode());
    let handed = neuron.post("/recipe", &json!({ "name": name })).await;
    assert_eq!(handed.status, 200, "{handed:?}");
    let counter = ChatCounter::read(handed.body.as_bytes()).unwrap();
    let body = chat("Größe: 東京 🦀 <|end|>", 2);
    let counted = counter.count(|name| body.get(name), 1024).unwrap();
    let ran = neuron.post(CHAT, &body).await.json();
    assert_eq!(json!(counted), ran["usage"]["prompt_tokens"]);
    let other = neuron.post("/recipe", &json!({ "name": "none" })).await;
    assert_eq!(other.code(), "recipe_not_found");
    neuron.reports.exactly(1).await;
}

#[tokio::test]
async fn plain_completions_work_whole_and_streamed() {
    let neuron = Neuron::start().await;
    let body = json!({ "model": "tiny", "prompt": "Once", "max_tokens": 12 });
    let whole = neuron.post("/v1/completions", &body).await.json();
    assert_eq!(whole["object"], "text_completion");
    let text = whole["choices"][0]["text"].as_str().unwrap();
    assert_eq!(
        (text.len(), &whole["usage"]["prompt_tokens"]),
        (12, &json!(4))
    );
    let chunks = neuron
        .post("/v1/completions", &with(body, "stream", json!(true)))
        .await
        .chunks();
    let streamed: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(streamed, text);
    let tokens: Vec<u8> = b"Once".to_vec();
    let from_tokens = neuron
        .post(
            "/v1/completions",
            &json!({ "model": "tiny", "prompt": tokens, "max_tokens": 12 }),
        )
        .await;
    assert_eq!(from_tokens.json()["choices"][0]["text"], text);
    let unknown = neuron
        .post(
            "/v1/completions",
            &json!({ "model": "tiny", "prompt": [99_999] }),
        )
        .await;
    assert_eq!(unknown.status, 400);
}

#[tokio::test]
async fn every_error_has_the_envelope() {
    let neuron = Neuron::start().await;
    let no_json = request(neuron.address(), "POST", CHAT, &[], b"{").await;
    assert_eq!(
        (no_json.status, no_json.code().as_str()),
        (400, "invalid_body")
    );
    let large = request(neuron.address(), "POST", CHAT, &[], &vec![b' '; 5 << 20]).await;
    assert_eq!(
        (large.status, large.code().as_str()),
        (413, "body_too_large")
    );
    let cases = [
        (json!({ "messages": [] }), 400, "missing_model_field"),
        (
            with(chat("x", 1), "model", json!("gpt")),
            404,
            "model_not_found",
        ),
        (
            with(chat("x", 1), "best_of", json!(2)),
            400,
            "unsupported_parameter",
        ),
        (
            with(chat("x", 1), "max_tokens", json!(-1)),
            400,
            "invalid_value",
        ),
        (
            json!({ "model": "tiny", "messages": [{ "role": "oracle", "content": "x" }] }),
            400,
            "invalid_prompt",
        ),
    ];
    for (body, status, code) in cases {
        let answer = neuron.post(CHAT, &body).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{body}"
        );
        let error = &answer.json()["error"];
        assert!(error["message"].is_string() && error["type"] == "invalid_request_error");
    }
    assert_eq!(neuron.get("/nothing").await.code(), "not_found");
    assert_eq!(neuron.get(CHAT).await.status, 405);
    assert_eq!(neuron.get(CHAT).await.code(), "method_not_allowed");
}

#[tokio::test]
async fn models_health_and_metrics_are_told() {
    let neuron = Neuron::start().await;
    let list = neuron.get("/v1/models").await.json();
    assert_eq!(list, neuron.get("/models").await.json());
    let model = &list["data"][0];
    assert_eq!(
        (&model["id"], &model["context_length"], &model["slots"]),
        (&json!("tiny"), &json!(1024), &json!(4))
    );
    assert_eq!(&neuron.get("/v1/models/tiny").await.json(), model);
    assert_eq!(neuron.get("/v1/models/none").await.status, 404);
    assert_eq!(neuron.get("/health/live").await.status, 200);
    assert_eq!(
        neuron.get("/health/ready").await.json(),
        json!({ "status": "ready" })
    );

    neuron.says("Hi", 7).await;
    neuron.reports.exactly(1).await;
    assert_eq!(neuron.reports.count(NeuronOutcome::Completed), 1);
    // what a slot holds is told at the end of the engine's turn, which may be after the answer's
    let text = loop {
        let text = neuron.get("/metrics").await.body;
        if text.contains("seatbelt_neuron_cache_tokens{model=\"tiny\"} 0\n") {
            break text;
        }
        tokio::task::yield_now().await;
    };
    for line in [
        "seatbelt_neuron_requests_total{outcome=\"completed\"} 1",
        "seatbelt_neuron_tokens_total{kind=\"input\",model=\"tiny\"} 6",
        "seatbelt_neuron_tokens_total{kind=\"output\",model=\"tiny\"} 7",
        "seatbelt_neuron_first_token_seconds_count{model=\"tiny\"} 1",
        "seatbelt_neuron_between_tokens_seconds_count{model=\"tiny\"} 6",
        "seatbelt_neuron_cache_tokens_max{model=\"tiny\"} 4096",
        "seatbelt_neuron_active{model=\"tiny\"} 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in\n{text}"
        );
    }
}

#[tokio::test]
async fn the_next_turn_of_a_chat_is_not_read_from_its_start_within_one_account() {
    let neuron = Neuron::start().await;
    let first = "Tell me something long enough to be worth keeping";
    let said = neuron
        .post_with(CHAT, &[(HEADER_ACCOUNT, "ann")], &chat(first, 9))
        .await;
    assert_eq!(
        said.json()["usage"]["prompt_tokens_details"]["cached_tokens"],
        0
    );
    let mut next = chat(first, 9);
    next["messages"] = json!([
        { "role": "user", "content": first },
        { "role": "assistant", "content": said.text() },
        { "role": "user", "content": "And more" },
    ]);
    let anew = neuron.post(CHAT, &next).await;
    let mut cached = Vec::new();
    for account in ["bob", "ann"] {
        let answer = neuron
            .post_with(CHAT, &[(HEADER_ACCOUNT, account)], &next)
            .await;
        assert_eq!(answer.text(), anew.text(), "{account}");
        let usage = answer.json()["usage"].clone();
        assert_eq!(
            usage["prompt_tokens"],
            anew.json()["usage"]["prompt_tokens"]
        );
        cached.push(usage["prompt_tokens_details"]["cached_tokens"].clone());
    }
    // A beginning and a role, the question, its end, a role, and of the answer all but its last token.
    assert_eq!(cached, [json!(0), json!(2 + first.len() + 2 + 8)]);
    let reports = neuron.reports.exactly(4).await;
    let reused = |(_, event): &(String, UsageEvent)| event.usage.cached_input_tokens;
    let reused: Vec<u64> = reports.iter().map(reused).collect();
    assert_eq!(reused, [0, 0, 0, 2 + first.len() as u64 + 2 + 8]);
}
