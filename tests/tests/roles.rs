//! Each role in a process of its own, on one NATS server: what `seatbelt up` does in one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Key, Running, Stack, nats::TestNats, stack::chat_body, until};

async fn ask(gateway: &Running) -> seatbelt_tests::Answer {
    let body = chat_body("tiny", 8).to_string();
    gateway.post("/v1/chat/completions", "sk-apart", body).await
}

#[tokio::test]
async fn roles_apart_serve_one_request_together() {
    let server = TestNats::start().await;
    let home = Stack::new()
        .nats(&format!("url = {:?}", server.server.url()))
        .neuron()
        .key(Key::new("apart").hard_cap(10_000))
        .write();
    let gateway = home.start_role("gateway").await;
    let unserved = ask(&gateway).await;
    unserved.expect_error(503, "api_error", "service_unavailable");

    let neuron = home.start_role("neuron").await;
    let answer = until("the gateway knows the neuron", || async {
        let answer = ask(&gateway).await;
        answer.is_ok().then_some(answer)
    })
    .await;
    let used = answer.json()["usage"]["total_tokens"].as_u64().unwrap();

    let projector = home.start_role("projector").await;
    let cap = gateway.cap("sk-apart", "the projector has seen the answer", |cap| {
        cap["spent"] == used && cap["held"] == 0
    });
    assert_eq!(cap.await["limit"], 10_000);
    home.verify().await;
    for role in [neuron, gateway, projector] {
        role.stop().await;
    }
    home.verify().await;
}

#[tokio::test]
async fn two_gateways_share_one_cap_and_one_may_leave() {
    let server = TestNats::start().await;
    let foreign = seatbelt_tests::Foreign::start().await;
    let home = Stack::new()
        .nats(&format!("url = {:?}", server.server.url()))
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(200))
        .write();
    let one = home.start_role("gateway").await;
    let two = home.start_role("gateway").await;
    let asked = (0..40).map(|n| if n % 2 == 0 { &one } else { &two });
    let answers = futures::future::join_all(asked.map(|gateway| gateway.chat("sk-cap", 20))).await;
    let served = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
    assert!(served > 0 && served < 40, "{answers:?}");
    assert_eq!(foreign.hits(), served);
    one.stop().await;
    let after = two.chat("sk-cap", 200).await;
    after.expect_error(429, "insufficient_quota", "insufficient_quota");
    let settled = home.events_of("acct-cap", "settled").await;
    assert_eq!(settled.len() as u64, served);
    assert!(served * 15 <= 200, "{served}");
    two.stop().await;
    home.verify().await;
}
