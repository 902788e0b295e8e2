//! A neuron that does nothing for a request makes way for another, once; one that may have begun does not.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{Router, http::StatusCode, response::IntoResponse};
use seatbelt_schemas::neuron::HEADER_UNUSED;
use seatbelt_tokens::Recipe;

use crate::{
    neuron::{record, tiny, with_tokenizer},
    support::{Stack, hi, status_and_body},
};

/// A neuron that refuses all, and counts it.
async fn refusing(unused: bool) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let refuse = move || {
        count.fetch_add(1, SeqCst);
        let mut response = StatusCode::SERVICE_UNAVAILABLE.into_response();
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

#[tokio::test]
async fn two_neurons_are_asked_and_no_more() {
    let (first, asked_first) = refusing(true).await;
    let (second, asked_second) = refusing(true).await;
    let stack = beside(first).await;
    let spent = stack.spent_once_idle().await;
    let mut records = stack.neurons.borrow().clone();
    let mut between = records[0].clone();
    between.neuron = seatbelt_schemas::ids::NeuronId::new("n-2").unwrap();
    between.url = format!("http://{second}");
    between.active = 1;
    records.push(between);
    stack.neurons.send(records).unwrap();
    let hits = stack.upstream.hits();
    let (status, _) = status_and_body(stack.chat(&tiny(hi(20)))).await;
    assert_eq!(status, 503);
    assert_eq!(
        (asked_first.load(SeqCst), asked_second.load(SeqCst)),
        (1, 1)
    );
    assert_eq!(stack.upstream.hits(), hits);
    assert_eq!(stack.spent_once_idle().await, spent, "nothing was used");
}
