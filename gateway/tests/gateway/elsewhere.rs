//! A neuron that does nothing for a request makes way for others, a bounded number of them; one that may have begun
//! does not. Who could not be reached, or turns this gateway away, is remembered and told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, response::IntoResponse};
use seatbelt_schemas::{
    ids::NeuronId,
    neuron::{HEADER_UNUSED, NeuronRecord},
};
use seatbelt_tokens::Recipe;

use crate::{
    neuron::{record, tiny, with_tokenizer},
    support::{Script, Stack, chat_stream, hi, hi_stream, read_until, status_and_body},
};

/// A full neuron that refuses all, and counts it.
async fn refusing(unused: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    refusing_with(503, unused).await
}

/// A neuron that refuses all with a status, and counts it.
async fn refusing_with(status: u16, unused: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let status = StatusCode::from_u16(status).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let refuse = move || {
        count.fetch_add(1, SeqCst);
        let mut response = status.into_response();
        if unused {
            let headers = response.headers_mut();
            headers.insert(HEADER_UNUSED, "1".parse().unwrap());
        }
        std::future::ready(response)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(refuse);
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, asked)
}

/// Where nobody listens.
async fn nowhere() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// A stack with a neuron that is preferred and one, busier, that serves. The tokenizer was fetched before.
async fn beside(preferred: SocketAddr) -> Stack {
    let stack = with_tokenizer(1000).await;
    assert_eq!(status_and_body(stack.chat(&tiny(hi(20)))).await.0, 200);
    let recipe = || Some(Recipe::name_of(&stack.upstream.recipe));
    let mut busy = record("n-1", stack.upstream.address, recipe());
    busy.active = 9;
    let preferred = record("n-0", preferred, recipe());
    stack.neurons.send(vec![preferred, busy]).unwrap();
    stack
}

#[tokio::test]
async fn a_neuron_that_did_nothing_makes_way_for_another_with_the_same_reservation() {
    let (address, asked) = refusing(true).await;
    let stack = beside(address).await;
    let spent = stack.spent_once_idle().await;
    let (status, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((asked.load(SeqCst), stack.upstream.hits()), (1, 2));
    assert_eq!(
        stack.spent_once_idle().await,
        2 * spent,
        "it is charged once"
    );
}

#[tokio::test]
async fn a_neuron_that_cannot_be_reached_makes_way_for_another() {
    let stack = beside(nowhere().await).await;
    let spent = stack.spent_once_idle().await;
    let (status, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(stack.spent_once_idle().await, 2 * spent);
}

#[tokio::test]
async fn a_refusal_that_does_not_say_that_nothing_was_done_is_passed_on() {
    let (address, asked) = refusing(false).await;
    let stack = beside(address).await;
    let hits = stack.upstream.hits();
    let (status, _) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(
        (status, asked.load(SeqCst), stack.upstream.hits()),
        (503, 1, hits)
    );
}

/// Registers these, each busier than the one before, and none beside them.
fn registers(stack: &Stack, neurons: &[SocketAddr]) {
    let recipe = || Some(Recipe::name_of(&stack.upstream.recipe));
    let record = |(n, address): (usize, &SocketAddr)| NeuronRecord {
        active: u32::try_from(n).unwrap(),
        ..record(&format!("n-{}", n + 2), *address, recipe())
    };
    let records = neurons.iter().enumerate().map(record).collect();
    stack.neurons.send(records).unwrap();
}

/// What `/health/ready` warns of.
async fn warnings(stack: &Stack) -> String {
    let ready = stack.client.get(format!("{}/health/ready", stack.base));
    let ready: serde_json::Value = ready.send().await.unwrap().json().await.unwrap();
    assert_eq!(ready["ready"], true);
    ready["warnings"].to_string()
}

#[tokio::test]
async fn three_neurons_are_asked_and_no_more() {
    let mut neurons = Vec::new();
    for _ in 0..4 {
        neurons.push(refusing(true).await);
    }
    let stack = beside(neurons[0].0).await;
    let spent = stack.spent_once_idle().await;
    let addresses: Vec<SocketAddr> = neurons.iter().map(|(address, _)| *address).collect();
    registers(&stack, &addresses);
    let (status, _) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(status, 503);
    let asked = neurons.iter().map(|(_, asked)| asked.load(SeqCst));
    assert_eq!(asked.collect::<Vec<_>>(), [1, 1, 1, 0]);
    assert_eq!(stack.spent_once_idle().await, spent, "nothing was used");
}

#[tokio::test]
async fn neurons_that_are_not_there_cost_no_request() {
    let stack = beside(nowhere().await).await;
    let mut records = stack.neurons.borrow().clone();
    records.push(NeuronRecord {
        neuron: NeuronId::new("n-2").unwrap(),
        url: format!("http://{}", nowhere().await),
        ..records[0].clone()
    });
    stack.neurons.send(records).unwrap();
    for _ in 0..5 {
        let (status, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
        assert_eq!(status, 200, "{body}");
    }
    let told = warnings(&stack).await;
    assert!(told.contains("neuron n-0 cannot be reached"), "{told}");
}

#[tokio::test]
async fn a_neuron_that_turns_this_gateway_away_makes_way_is_told_and_passed_over() {
    // its secret is another one, as older ones and this one say it; its clock is off, this way and that
    for (status, unused) in [(401, false), (401, true), (400, true), (504, true)] {
        let (address, asked) = refusing_with(status, unused).await;
        let stack = beside(address).await;
        let spent = stack.spent_once_idle().await;
        for _ in 0..2 {
            let (found, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
            assert_eq!(found, 200, "{status}: {body}");
        }
        assert_eq!(asked.load(SeqCst), 1, "{status}: it is asked again");
        assert_eq!(stack.spent_once_idle().await, 3 * spent, "{status}");
        let told = warnings(&stack).await;
        assert!(told.contains("turns this gateway's calls away"), "{told}");
        let page = metrics(&stack).await;
        for line in [
            "seatbelt_gateway_neuron_faults_total{why=\"turns_us_away\"} 1",
            "seatbelt_gateway_neurons 2",
            "seatbelt_gateway_models_unserved 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}: {page}");
        }
    }
}

async fn metrics(stack: &Stack) -> String {
    let page = stack.client.get(&stack.metrics);
    page.send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn what_answers_that_nothing_is_there_is_no_neuron_and_makes_way() {
    for status in [404, 405] {
        let (address, asked) = refusing_with(status, false).await;
        let stack = beside(address).await;
        for _ in 0..2 {
            let (found, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
            assert_eq!(found, 200, "{status}: {body}");
        }
        assert_eq!(asked.load(SeqCst), 1, "{status}: it is asked again");
        let told = warnings(&stack).await;
        assert!(told.contains("no such route or model"), "{told}");
    }
}

#[tokio::test]
async fn where_every_neuron_turns_this_gateway_away_nothing_is_charged_and_no_client_blamed() {
    for status in [401, 400, 504] {
        let (address, _) = refusing_with(status, true).await;
        let stack = beside(address).await;
        let spent = stack.spent_once_idle().await;
        registers(&stack, &[address]);
        let request = stack.chat(&tiny(hi(20))).timeout(Duration::from_secs(4));
        let (found, body) = status_and_body(request).await;
        assert_eq!(found, 502, "{status}: {body}");
        assert_eq!(stack.spent_once_idle().await, spent, "{status}");
    }
}

#[tokio::test]
async fn an_address_that_is_none_takes_no_model_from_the_others() {
    let stack = beside(nowhere().await).await;
    let mut records = stack.neurons.borrow().clone();
    records[0].url = "gpu-box:9100".to_owned();
    stack.neurons.send(records).unwrap();
    let (status, body) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(status, 200, "{body}");
    let told = warnings(&stack).await;
    assert!(told.contains("gpu-box:9100"), "{told}");
}

#[tokio::test]
async fn a_model_that_no_neuron_serves_any_more_is_told() {
    let stack = beside(nowhere().await).await;
    stack.neurons.send(Vec::new()).unwrap();
    let told = warnings(&stack).await;
    assert!(told.contains("no neuron that serves model tiny"), "{told}");
    let page = metrics(&stack).await;
    assert!(
        page.contains("seatbelt_gateway_models_unserved 1\n"),
        "{page}"
    );
}

#[tokio::test]
async fn a_request_at_a_neuron_that_froze_ends_once_that_is_gone_and_one_that_lost_nats_alone_is_heard_out()
 {
    // it accepts, and answers nothing
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stack = beside(frozen.local_addr().unwrap()).await;
    let asked = tokio::spawn(stack.chat(&tiny(hi(20))).send());
    let (peer, _) = frozen.accept().await.unwrap();
    // the other one serves a stream that goes on
    let records = stack.neurons.borrow()[1..].to_vec();
    stack.neurons.send(records).unwrap();
    stack.upstream.plays(Script::Held(chat_stream()));
    let mut stream = stack.chat(&tiny(hi_stream(20))).send().await.unwrap();
    read_until(&mut stream, "hel").await;
    stack.neurons.send(Vec::new()).unwrap();
    let ended = asked.await.unwrap().unwrap();
    assert_eq!(ended.status().as_u16(), 502);
    drop(peer);
    stack.upstream.go_on.notify_one();
    read_until(&mut stream, "[DONE]").await;
}
