//! Another model where nothing was done for a request: at its own price and bound, in the place of the first one's
//! hold; or the error that there was, where it does not fit.

use std::sync::Arc;

use seatbelt_gateway::{Dialect, UpstreamConfig, UpstreamModel};
use seatbelt_ledger::api::{Admin, Ledger};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    ids::{AccountId, Actor, CapId, CommandId, ModelId},
    meter::Meter,
    price::{Price, Rates},
    scope::Scope,
    window::Window,
};
use serde_json::{Value, json};

use crate::support::{
    Script, Stack, Told, Upstream, chat_answer, chat_stream, hi, hi_stream, status_and_body,
    stream_text, tokens,
};

fn model(id: &str) -> ModelId {
    ModelId::new(id).unwrap()
}

/// A gateway whose model names another one, which another upstream serves.
async fn two(cap: CapSpec, change: impl FnOnce(&mut Told)) -> (Stack, Arc<Upstream>) {
    let second = Upstream::start().await;
    let stack = Stack::start_with(cap, |told| {
        let first = told.upstreams[0].clone();
        told.upstreams[0].models[0].fallback = vec![model("other-model")];
        told.upstreams.push(UpstreamConfig {
            name: "other".to_owned(),
            base_url: format!("http://{}/v1", second.address),
            models: vec![UpstreamModel::new(model("other-model"), 8192, 4096)],
            ..first
        });
        change(told);
    })
    .await;
    (stack, second)
}

/// Prices of both models, USD nano per token.
async fn priced(stack: &Stack, first: u64, second: u64) {
    for (n, (id, rate)) in [("test-model", first), ("other-model", second)]
        .into_iter()
        .enumerate()
    {
        let price = Price::of(model(id), Rates::flat(rate * 1000, rate * 1000));
        let admin = Admin {
            id: CommandId::from_parts(seatbelt_gateway::system_clock()(), 90 + n as u128),
            account: AccountId::system(),
            actor: Actor::system("test"),
            change: Change::SetPrice(price),
        };
        stack.ledger.admin(admin).await.unwrap();
    }
}

fn cost(limit: u64) -> CapSpec {
    CapSpec {
        cap: CapId::new("money").unwrap(),
        scope: Scope::Account,
        meter: Meter::Cost,
        window: Window::Balance,
        limit,
        hard: true,
        thresholds: vec![100],
    }
}

fn refuses(status: u16) -> Script {
    let body = json!({"error": {"message": "busy"}}).to_string();
    Script::Whole(status, "application/json", body)
}

fn hits(stack: &Stack, second: &Upstream) -> (usize, usize) {
    (stack.upstream.hits(), second.hits())
}

#[tokio::test]
async fn another_model_answers_after_one_that_did_nothing_and_all_is_charged_once() {
    for status in [429, 503, 529] {
        let (stack, second) = two(cost(1_000_000), |_| ()).await;
        priced(&stack, 1, 3).await;
        stack.upstream.plays(refuses(status));
        let answer = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{status}");
        assert_eq!(answer.headers()["x-seatbelt-fallback"], "other-model");
        assert_eq!(answer.headers()["x-seatbelt-attempts"], "2");
        assert_eq!(second.last().body["model"], "other-model");
        assert_eq!(hits(&stack, &second), (1, 1));
        assert_eq!(stack.spent_once_idle().await, 45, "at its own price");
    }
}

#[tokio::test]
async fn one_that_cannot_be_reached_did_nothing_and_a_stream_falls_back_as_well() {
    let (stack, second) = two(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].base_url = "http://127.0.0.1:1/v1".to_owned();
    })
    .await;
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    second.plays(Script::Stream(chat_stream()));
    let text = stream_text(stack.chat(&hi_stream(20))).await;
    assert!(text.contains("[DONE]"), "{text}");
    assert_eq!(second.hits(), 2);
    assert_eq!(stack.spent_once_idle().await, 30);
}

#[tokio::test]
async fn a_dearer_one_that_does_not_fit_is_not_asked_and_the_first_error_is_the_clients() {
    let (stack, second) = two(cost(1_000), |_| ()).await;
    priced(&stack, 1, 1_000).await;
    stack.upstream.plays(refuses(503));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(answer.headers()["x-seatbelt-fallback"], "does-not-fit");
    assert_eq!(answer.headers()["x-seatbelt-charged"], "nothing");
    assert_eq!(hits(&stack, &second), (1, 0));
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn what_the_other_does_not_take_is_not_sent_there() {
    let (stack, second) = two(tokens(100_000, Window::Balance), |told| {
        told.upstreams[1].kind = Dialect::Anthropic;
    })
    .await;
    stack.upstream.plays(refuses(503));
    let body = json!({"model": "test-model", "input": "hi"});
    let answer = stack.post("/v1/embeddings", &body).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(answer.headers()["x-seatbelt-fallback"], "not-possible");
    assert_eq!(hits(&stack, &second), (1, 0));
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn an_upstream_of_the_other_dialect_is_asked_in_its_own() {
    let (stack, second) = two(tokens(100_000, Window::Balance), |told| {
        told.upstreams[1].kind = Dialect::Anthropic;
    })
    .await;
    stack.upstream.plays(refuses(503));
    let answer = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "model": "other-model",
        "content": [{"type": "text", "text": "hello"}], "stop_reason": "end_turn",
        "usage": {"input_tokens": 10, "output_tokens": 5},
    });
    second.plays(Script::Whole(200, "application/json", answer.to_string()));
    let (status, body) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["choices"][0]["message"]["content"], "hello");
    assert!(second.last().path.ends_with("/messages"));
    assert_eq!(stack.spent_once_idle().await, 15);
}

#[tokio::test]
async fn what_may_have_been_worked_on_is_sent_to_no_other_model() {
    let used = json!({"error": {"message": "busy"}, "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}});
    for script in [
        refuses(500),
        refuses(504),
        refuses(400),
        Script::Half(200, "{\"id\":"),
        Script::Whole(429, "application/json", used.to_string()),
    ] {
        let (stack, second) = two(tokens(100_000, Window::Balance), |_| ()).await;
        stack.upstream.plays(script.clone());
        let (status, _) = status_and_body(stack.chat(&hi(20))).await;
        assert!(status >= 400, "{script:?}");
        assert_eq!(hits(&stack, &second), (1, 0), "{script:?}");
    }
}

/// What an upstream does, and the tokens that it used at most in doing so.
fn deeds() -> [(Script, u64); 6] {
    let ok = Script::Whole(200, "application/json", chat_answer());
    let worst = 20 + 64;
    [
        (ok, 15),
        (refuses(429), 0),
        (refuses(503), 0),
        (refuses(529), 0),
        (refuses(500), worst),
        (Script::Half(200, "{\"id\":"), worst),
    ]
}

#[tokio::test]
async fn whatever_upstreams_do_each_use_is_charged_each_hold_ends_and_each_client_has_one_answer() {
    let (stack, second) = two(tokens(100_000, Window::Balance), |_| ()).await;
    let (mut spent, mut seed) = (0, 11_u64);
    let mut random = |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    for round in 0..60 {
        let all = [&stack.upstream, &second];
        let deeds = all.map(|_| deeds()[random(6)].clone());
        let before = all.map(|upstream| upstream.hits());
        for (upstream, (script, _)) in all.iter().zip(&deeds) {
            upstream.plays(script.clone());
        }
        let (status, _): (u16, Value) = status_and_body(stack.chat(&hi(20))).await;
        let asked: Vec<u64> = all
            .iter()
            .zip(before)
            .map(|(upstream, before)| (upstream.hits() - before) as u64)
            .collect();
        let falls_back = deeds[0].1 == 0;
        assert_eq!(asked, [1, u64::from(falls_back)], "round {round}");
        let after = stack.spent_once_idle().await;
        let charged = after - std::mem::replace(&mut spent, after);
        let used: u64 = asked
            .iter()
            .zip(&deeds)
            .map(|(times, (_, used))| times * used)
            .sum();
        match status {
            200 => assert_eq!(charged, 15, "round {round}"),
            429 | 503 | 529 => assert_eq!((charged, used), (0, 0), "round {round}"),
            _ => assert!(
                charged > 0,
                "round {round}: what is not known costs its hold"
            ),
        }
    }
}

#[tokio::test]
async fn who_named_the_first_model_is_told_what_that_one_said_where_the_other_takes_no_such_request()
 {
    let (stack, second) = two(tokens(100_000, Window::Balance), |_| ()).await;
    stack.upstream.plays(refuses(429));
    for status in [400, 404, 422] {
        let said = json!({"error": {"message": "n must be 1"}}).to_string();
        second.plays(Script::Whole(status, "application/json", said));
        let answer = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 429);
        assert_eq!(answer.headers()["retry-after"], "7");
        assert_eq!(answer.headers()["x-seatbelt-fallback"], "not-possible");
        assert_eq!(answer.headers()["x-seatbelt-charged"], "nothing");
        assert!(!answer.headers().contains_key("x-should-retry"));
    }
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn another_model_that_is_asked_once_more_is_another_model_still() {
    let (stack, second) = two(tokens(100_000, Window::Balance), |told| {
        told.upstreams[1].retry_unknown = true;
    })
    .await;
    stack.upstream.plays(refuses(429));
    second.plays(Script::Half(200, "{\"id\":"));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 502);
    assert_eq!(answer.headers()["x-seatbelt-fallback"], "other-model");
    assert_eq!(hits(&stack, &second), (1, 2));
}

/// Each would be waited for as long as it said, and another model is there.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_model_in_whose_place_another_may_be_asked() {
    let (stack, second) = two(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].attempts = Some(3);
    })
    .await;
    stack.upstream.plays(refuses(429));
    let begun = std::time::Instant::now();
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(5),
        "it said 7 s"
    );
    assert_eq!(hits(&stack, &second), (1, 1));
}
