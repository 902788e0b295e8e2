//! Several deployments behind one model: another one is asked only after one that did nothing for the
//! request, and the request is held, charged and answered once.

use std::{sync::Arc, time::Duration};

use seatbelt_gateway::{Cause, DeploymentConfig, Reason};
use seatbelt_schemas::window::Window;
use serde_json::{Value, json};

use crate::support::{
    Script, Stack, Told, Upstream, chat_answer, chat_stream, hi, hi_stream, status_and_body,
    stream_text, tokens,
};

/// A deployment at another mock.
fn at(upstream: &Upstream, name: &str) -> DeploymentConfig {
    DeploymentConfig {
        name: name.to_owned(),
        base_url: format!("http://{}/v1", upstream.address),
        api_key: None,
        weight: 1,
        priority: 1,
    }
}

/// A gateway whose upstream has another deployment, of second priority.
async fn two(change: impl FnOnce(&mut Told)) -> (Stack, Arc<Upstream>) {
    let second = Upstream::start().await;
    let stack = Stack::start_with(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].deployments = vec![at(&second, "second")];
        change(told);
    })
    .await;
    (stack, second)
}

fn refuses(status: u16) -> Script {
    Script::Whole(
        status,
        "application/json",
        json!({"error": {"message": "busy"}}).to_string(),
    )
}

/// An answer that says to come again at once.
fn at_once(status: u16) -> Script {
    let headers = [("content-type", "application/json"), ("retry-after", "0")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Script::Head(
        status,
        headers.to_vec(),
        json!({"error": {"message": "busy"}}).to_string(),
    )
}

fn hits(stack: &Stack, second: &Upstream) -> (usize, usize) {
    (stack.upstream.hits(), second.hits())
}

#[tokio::test]
async fn another_deployment_answers_after_one_that_did_nothing_and_all_is_charged_once() {
    for status in [429, 503, 529] {
        let (stack, second) = two(|_| ()).await;
        stack.upstream.plays(refuses(status));
        let answer = stack.chat(&hi(20)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{status}");
        assert_eq!(answer.headers()["x-seatbelt-attempts"], "2");
        assert_eq!(
            answer.json::<Value>().await.unwrap()["usage"]["total_tokens"],
            15
        );
        assert_eq!(hits(&stack, &second), (1, 1));
        assert_eq!(stack.spent_once_idle().await, 15);
    }
}

#[tokio::test]
async fn one_that_cannot_be_reached_did_nothing() {
    let (stack, second) = two(|told| {
        told.upstreams[0].base_url = "http://127.0.0.1:1/v1".to_owned();
    })
    .await;
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    second.plays(Script::Stream(chat_stream()));
    assert!(
        stream_text(stack.chat(&hi_stream(20)))
            .await
            .contains("[DONE]")
    );
    assert_eq!(second.hits(), 2);
}

#[tokio::test]
async fn what_may_have_been_worked_on_is_sent_to_nobody_else() {
    let used = json!({"error": {"message": "busy"}, "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}});
    for script in [
        refuses(500),
        refuses(504),
        refuses(400),
        Script::Half(200, "{\"id\":"),
        Script::Whole(429, "application/json", used.to_string()),
    ] {
        let (stack, second) = two(|_| ()).await;
        stack.upstream.plays(script.clone());
        let (status, _) = status_and_body(stack.chat(&hi(20))).await;
        assert!(status >= 400, "{script:?}");
        assert_eq!(hits(&stack, &second), (1, 0), "{script:?}");
    }
}

#[tokio::test]
async fn the_last_answer_is_the_clients_where_nobody_answers() {
    let (stack, second) = two(|_| ()).await;
    stack.upstream.plays(refuses(503));
    second.plays(refuses(429));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 429);
    assert_eq!(answer.headers()["retry-after"], "7");
    assert_eq!(answer.headers()["x-seatbelt-charged"], "nothing");
    assert_eq!(hits(&stack, &second), (1, 1));
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn the_same_one_is_asked_again_after_the_time_that_it_names_where_that_is_configured() {
    let stack = Stack::start_with(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].attempts = Some(3);
    })
    .await;
    stack.upstream.plays(at_once(503));
    let answer = stack.chat(&hi(20)).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 503);
    assert_eq!(answer.headers()["x-seatbelt-attempts"], "3");
    assert_eq!(stack.upstream.hits(), 3);
    assert_eq!(stack.spent_once_idle().await, 0);
}

#[tokio::test]
async fn a_pause_that_does_not_fit_the_deadline_is_not_waited_for() {
    let stack = Stack::start_with(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].attempts = Some(2);
        told.request_timeout = Duration::from_secs(5);
    })
    .await;
    stack.upstream.plays(refuses(429)); // in 7 s
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 429);
    assert_eq!(stack.upstream.hits(), 1);
}

/// An answer with this status, time to come again and body.
fn comes_again(status: u16, after: &str, body: &str) -> Script {
    let headers = [("content-type", "application/json"), ("retry-after", after)];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Script::Head(status, headers.to_vec(), body.to_owned())
}

#[tokio::test]
async fn a_time_that_no_clock_has_is_not_waited_for() {
    let stack = Stack::start_with(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].attempts = Some(3);
    })
    .await;
    let never = u64::MAX.to_string();
    stack.upstream.plays(comes_again(503, &never, "{}"));
    assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 503);
    assert_eq!(stack.upstream.hits(), 1);
    assert_eq!(stack.spent_once_idle().await, 0, "its hold came back");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_pause_is_asked_for_no_more_and_its_hold_comes_back() {
    let stack = Stack::start_with(tokens(100_000, Window::Balance), |told| {
        told.upstreams[0].attempts = Some(3);
    })
    .await;
    // longer than the test waits for anything
    stack.upstream.plays(comes_again(503, "120", "{}"));
    let body = hi(20);
    let asked = stack
        .chat(&body)
        .timeout(Duration::from_millis(300))
        .send()
        .await;
    assert!(asked.is_err());
    assert_eq!(stack.spent_once_idle().await, 0);
    assert_eq!(stack.upstream.hits(), 1);
}

#[tokio::test]
async fn what_may_tell_of_a_use_is_sent_to_nobody_else() {
    for body in [
        r#"{"message":{"usage":{"input_tokens":3,"output_tokens":0}}}"#,
        r#"{"error":{"message":"busy","usage":{"prompt_tokens":3}}}"#,
        r#"{"usage":{"input_tokens":"50"}}"#,
        r#"{"error":{"message":"busy"},"usage":{"prompt_tokens":3"#,
    ] {
        let (stack, second) = two(|_| ()).await;
        stack.upstream.plays(comes_again(503, "0", body));
        assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 503, "{body}");
        assert_eq!(hits(&stack, &second), (1, 0), "{body}");
    }
}

#[tokio::test]
async fn an_error_that_breaks_off_is_not_shown_as_whole() {
    let (stack, second) = two(|_| ()).await;
    stack
        .upstream
        .plays(Script::Half(503, "{\"error\":{\"message\":\"over"));
    let (status, body) = status_and_body(stack.chat(&hi(20))).await;
    assert_eq!(status, 503);
    assert!(body["error"]["message"].is_string(), "{body}");
    assert_eq!(hits(&stack, &second), (1, 0));
}

#[tokio::test]
async fn one_that_fails_is_left_alone_which_ready_and_the_metrics_show() {
    let (stack, second) = two(|_| ()).await;
    stack.upstream.plays(refuses(503)); // for 7 s
    for _ in 0..3 {
        assert_eq!(status_and_body(stack.chat(&hi(20))).await.0, 200);
    }
    assert_eq!(hits(&stack, &second), (1, 3));
    let (status, ready) = stack.get("/health/ready").await;
    let warnings = ready["warnings"].to_string();
    assert!(
        status == 200 && warnings.contains("deployment mock of model test-model"),
        "{ready}"
    );
    let metrics = stack.client.get(&stack.metrics).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for line in [
        "seatbelt_gateway_deployments_out{upstream=\"mock\"} 1",
        "seatbelt_gateway_attempts_again_total 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}: {metrics}"
        );
    }
    stack.ready.send_modify(|ready| {
        let (cause, text) = (Cause::Partition, "gone".to_owned());
        ready.reasons.push(Reason { cause, text });
    });
    assert_eq!(stack.get("/health/ready").await.0, 503);
}

/// What an upstream does, and the tokens that it used at most in doing so.
fn deeds() -> [(Script, u64); 7] {
    let ok = Script::Whole(200, "application/json", chat_answer());
    let worst = 20 + 64;
    [
        (ok.clone(), 15),
        (ok, 15),
        (at_once(429), 0),
        (at_once(503), 0),
        (at_once(529), 0),
        (refuses(500), worst),
        (Script::Half(200, "{\"id\":"), worst),
    ]
}

#[tokio::test]
async fn whatever_upstreams_do_each_use_is_charged_each_hold_ends_and_each_client_has_one_answer() {
    let third = Upstream::start().await;
    let (stack, second) = two(|told| {
        told.upstreams[0].deployments.push(at(&third, "third"));
        told.upstreams[0].attempts = Some(3);
    })
    .await;
    let all = [&stack.upstream, &second, &third];
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let mut spent = 0;
    for round in 0..60 {
        let deeds = all.map(|_| deeds()[random(7)].clone());
        let before = all.map(|upstream| upstream.hits());
        for (upstream, (script, _)) in all.iter().zip(&deeds) {
            upstream.plays(script.clone());
        }
        let (status, _) = status_and_body(stack.chat(&hi(20))).await;
        let asked = all
            .iter()
            .zip(before)
            .map(|(upstream, before)| upstream.hits() - before);
        let asked: Vec<usize> = asked.collect();
        assert!(
            (1..=3).contains(&asked.iter().sum::<usize>()),
            "round {round}: {asked:?}"
        );
        let worked = asked
            .iter()
            .zip(&deeds)
            .map(|(times, (_, used))| *times as u64 * u64::from(*used > 0));
        assert!(
            worked.sum::<u64>() <= 1,
            "round {round}: sent on after work: {asked:?}"
        );
        let used: u64 = asked
            .iter()
            .zip(&deeds)
            .map(|(times, (_, used))| *times as u64 * used)
            .sum();
        let after = stack.spent_once_idle().await;
        let charged = after - std::mem::replace(&mut spent, after);
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

/// One that answers before it has read all, and closes: the rest is written into nothing.
#[tokio::test]
async fn an_upstream_that_never_had_the_whole_request_did_nothing() {
    let hasty = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hasty.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut one, _) = hasty.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = tokio::io::AsyncReadExt::read(&mut one, &mut head).await;
            // what was not read makes a reset of its end
            drop(one);
        }
    });
    let stack = Stack::start_with(tokens(100_000_000, Window::Balance), |told| {
        told.upstreams[0].base_url = format!("http://{address}/v1");
        told.upstreams[0].models[0].context = 50_000_000;
    })
    .await;
    let mut body = hi(20);
    body["messages"][0]["content"] = json!("x".repeat(16_000_000));
    let answer = stack.chat(&body).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 502);
    assert_eq!(answer.headers()["x-seatbelt-charged"], "nothing");
    assert_eq!(stack.spent_once_idle().await, 0);
}
