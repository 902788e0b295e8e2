//! Images under a cap: held by their width and height, never by their bytes.

use seatbelt_gateway::{ImageLimit, ImageRule, MediaLimits};
use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::support::{Stack, status_and_body, tokens};

/// A PNG of 640 by 480 pixels up to where they begin.
const HEADER: &str = "iVBORw0KGgoAAAANSUhEUgAAAoAAAAHgCAIAAAAAAAAAAAAAAElEQVQA";
/// What its rule makes of it: 20 times 15 patches, times 1.2.
const TOKENS: u64 = 360;
/// A text of two bytes, a joint for each part, a message, a request, and the output.
const AROUND: u64 = 2 + 2 + 8 + 8 + 20;

async fn stack(limit: u64) -> Stack {
    Stack::start_with(tokens(limit, Window::Balance), |config| {
        config.upstreams[0].models[0].media = MediaLimits {
            image: Some(ImageLimit {
                rule: ImageRule::Patches {
                    per_million: 1_200_000,
                },
                max_tokens: 3000,
                pins_detail: true,
            }),
            audio: None,
        };
    })
    .await
}

fn large() -> String {
    let pixels = "A".repeat(400_000);
    format!("data:image/png;base64,{HEADER}{pixels}")
}

fn chat(url: &str) -> Value {
    json!({"model": "test-model", "max_tokens": 20, "messages": [{"role": "user", "content": [
        {"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": url}}]}]})
}

#[tokio::test]
async fn an_inline_image_is_held_by_its_size_and_an_address_by_the_most() {
    for (limit, status) in [(TOKENS + AROUND, 200), (TOKENS + AROUND - 1, 429)] {
        let stack = stack(limit).await;
        let (answered, answer) = status_and_body(stack.chat(&chat(&large()))).await;
        assert_eq!(answered, status, "{answer}");
        if status == 200 {
            let sent = stack.upstream.last().body;
            let part = &sent["messages"][0]["content"][1];
            assert_eq!(part["image_url"]["detail"], "high", "pinned");
        }
    }
    let stack = stack(3000).await;
    let (status, _) = status_and_body(stack.chat(&chat("https://x/y.png"))).await;
    assert_eq!((status, stack.upstream.hits()), (429, 0));
}

#[tokio::test]
async fn every_api_counts_the_same_image_alike() {
    let image = large();
    let data = image.split_once(',').unwrap().1;
    let source = json!({"type": "base64", "media_type": "image/png", "data": data});
    let block = json!({"type": "image", "source": source});
    let text = json!({"type": "text", "text": "hi"});
    let messages = json!({"model": "test-model", "max_tokens": 20,
        "messages": [{"role": "user", "content": [text, block]}]});
    let shown = json!({"type": "input_image", "image_url": image});
    let text = json!({"type": "input_text", "text": "hi"});
    let responses = json!({"model": "test-model", "max_output_tokens": 20,
        "input": [{"role": "user", "content": [text, shown]}]});
    for (path, body) in [("/v1/messages", messages), ("/v1/responses", responses)] {
        for (limit, status) in [(TOKENS + AROUND, 200), (TOKENS + AROUND - 1, 429)] {
            let stack = stack(limit).await;
            let (answered, answer) = status_and_body(stack.post(path, &body)).await;
            assert_eq!(answered, status, "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn without_a_limit_an_image_is_refused_by_name() {
    let stack = Stack::balance(1000).await;
    let (status, refused) = status_and_body(stack.chat(&chat(&large()))).await;
    let error = &refused["error"];
    assert_eq!((status, &error["code"]), (400, &json!("cost_unbounded")));
    assert_eq!(error["param"], "messages[0].content[1]", "{refused}");
}
