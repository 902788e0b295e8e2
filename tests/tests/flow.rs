//! The path of one real request: the official SDKs, unchanged, to the neuron's model under a capped
//! key; reserved, served, settled, projected, published, replayed, and unchanged by a restart.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use futures::StreamExt as _;
use seatbelt_schemas::{event::Event, names::Names, usage::UsageEvent};
use seatbelt_tests::{
    Foreign, Key, Running, Stack,
    foreign::{COMPLETION_TOKENS, MODEL, PROMPT_TOKENS},
    python, until,
};
use serde_json::{Value, json};

const LIMIT: u64 = 10_000;

async fn stack() -> Running {
    let key = Key::new("sdk").hard_cap(LIMIT);
    Stack::new().neuron().key(key).start().await
}

#[tokio::test]
async fn the_openai_sdk_is_served_charged_published_and_replayed() {
    let stack = stack().await;
    let client = stack.nats_client().await;
    let mut feed = client
        .subscribe("seatbelt.spend.v1.acct-sdk.>")
        .await
        .unwrap();
    client.flush().await.unwrap();
    let base_url = format!("{}/v1", stack.gateway);
    let seen = python::run("openai_chat.py", &[&base_url, "sk-sdk", "tiny"]).await;
    let used = tokens(&seen["whole"]) + tokens(&seen["streamed"]);
    assert!(used > 0 && used <= LIMIT, "{seen}");
    let spent = |cap: &Value| cap["spent"] == used && cap["held"] == 0;
    stack
        .cap("sk-sdk", "both requests are charged", spent)
        .await;

    let mut published = Vec::new();
    while published.iter().filter(|kind| *kind == "settled").count() < 2 {
        let message = tokio::time::timeout(seatbelt_tests::wait::PATIENCE, feed.next()).await;
        let message = message.expect("two settlements are published").unwrap();
        let headers = message.headers.as_ref().unwrap();
        assert_eq!(
            headers.get("content-type").unwrap().as_str(),
            "application/msgpack"
        );
        published.push(
            Event::decode(&message.payload)
                .unwrap()
                .body
                .kind()
                .to_owned(),
        );
    }
    assert_eq!(published, ["reserved", "settled", "reserved", "settled"]);

    stack.home().verify().await;
    let settled = stack.home().events_of("acct-sdk", "settled").await;
    let charged = settled
        .iter()
        .map(|event| event["data"]["charge"]["tokens"].as_u64().unwrap());
    assert_eq!(charged.sum::<u64>(), used, "{settled:?}");
    for event in &settled {
        assert_eq!(event["data"]["source"], "neuron", "{event}");
        assert!(
            event["partition"].is_u64() && event["position"].is_u64(),
            "{event}"
        );
    }
    neuron_reported(&client, &settled).await;

    let stack = stack.stop().await.start().await;
    stack.cap("sk-sdk", "the balance is as before", spent).await;
    stack.home().verify().await;
}

fn tokens(usage: &Value) -> u64 {
    usage["total_tokens"].as_u64().unwrap()
}

/// USAGE holds one event for each settlement, with the same numbers.
async fn neuron_reported(client: &async_nats::Client, settled: &[Value]) {
    let jetstream = async_nats::jetstream::new(client.clone());
    let stream = jetstream
        .get_stream(Names::default().usage_stream())
        .await
        .unwrap();
    let stream = &stream;
    let reported = until("both usage events are stored", || async move {
        let mut found = Vec::new();
        for sequence in 1..=settled.len() as u64 {
            let message = stream.get_raw_message(sequence).await.ok()?;
            found.push(UsageEvent::decode(&message.payload).unwrap());
        }
        Some(found)
    })
    .await;
    for event in settled {
        let data = &event["data"];
        let of_it = reported
            .iter()
            .find(|usage| data["reservation"] == *usage.reservation);
        let usage = of_it.unwrap_or_else(|| panic!("no usage event for {event}: {reported:?}"));
        assert_eq!(data["usage"]["input_tokens"], usage.usage.input_tokens);
        assert_eq!(data["usage"]["output_tokens"], usage.usage.output_tokens);
    }
}

#[tokio::test]
async fn the_anthropic_sdk_is_served_and_charged() {
    let stack = stack().await;
    let seen = python::run("anthropic_messages.py", &[&stack.gateway, "sk-sdk", "tiny"]).await;
    let used: u64 = ["whole", "streamed"]
        .iter()
        .flat_map(|part| ["input_tokens", "output_tokens"].map(|kind| (part, kind)))
        .map(|(part, kind)| seen[part][kind].as_u64().unwrap())
        .sum();
    let spent = |cap: &Value| cap["spent"] == used && cap["held"] == 0;
    stack
        .cap("sk-sdk", "both requests are charged", spent)
        .await;
    stack.home().verify().await;
}

#[tokio::test]
async fn the_anthropic_sdk_of_today_reaches_a_provider_of_its_own_dialect() {
    let foreign = Foreign::start().await;
    let key = Key::new("sdk").hard_cap(LIMIT);
    let stack = Stack::new().anthropic(&foreign).key(key).start().await;
    let arguments = [&stack.gateway, "sk-sdk", MODEL];
    let seen = python::run("anthropic_messages.py", &arguments).await;
    let expected = json!({"input_tokens": PROMPT_TOKENS, "output_tokens": COMPLETION_TOKENS});
    assert_eq!((&seen["whole"], &seen["streamed"]), (&expected, &expected));
    let counted = python::run("anthropic_beta.py", &arguments).await;
    assert_eq!(counted["whole"], expected, "{counted}");
    assert_eq!(counted["counted"], PROMPT_TOKENS, "{counted}");
    let used = 3 * (PROMPT_TOKENS + COMPLETION_TOKENS);
    let spent = |cap: &Value| cap["spent"] == used && cap["held"] == 0;
    stack
        .cap("sk-sdk", "what has a price is charged", spent)
        .await;
    stack.home().verify().await;
}

#[tokio::test]
async fn the_openai_sdk_asks_for_responses_of_a_neuron_and_of_either_dialect() {
    let (chat, messages) = (Foreign::start().await, Foreign::start().await);
    let stack = Stack::new().neuron().upstream_at(&chat.base_url());
    let key = Key::new("sdk").hard_cap(LIMIT);
    let stack = stack.key(key).start().await;
    let other = Stack::new().anthropic(&messages);
    let other = other.key(Key::new("sdk").hard_cap(LIMIT)).start().await;
    for (stack, models) in [(&stack, &["tiny", MODEL][..]), (&other, &[MODEL])] {
        let mut used = 0;
        for model in models {
            let base_url = format!("{}/v1", stack.gateway);
            let seen = python::run("openai_responses.py", &[&base_url, "sk-sdk", model]).await;
            used += tokens(&seen["whole"]) + tokens(&seen["streamed"]);
            if *model == MODEL {
                assert_eq!(seen["text"], "all is well", "{seen}");
            }
        }
        let spent = |cap: &Value| cap["spent"] == used && cap["held"] == 0;
        stack.cap("sk-sdk", "all of them are charged", spent).await;
        stack.home().verify().await;
    }
}

#[tokio::test]
async fn a_sdk_meets_a_spent_balance_as_its_own_rate_limit_error_at_once() {
    let key = Key::new("sdk").hard_cap(3);
    let stack = Stack::new().neuron().key(key).start().await;
    let base_url = format!("{}/v1", stack.gateway);
    let seen = python::run("openai_refused.py", &[&base_url, "sk-sdk", "tiny"]).await;
    assert_eq!(seen["error"], "RateLimitError", "{seen}");
    assert_eq!(seen["code"], "insufficient_quota", "{seen}");
    let refused = stack.home().events_of("acct-sdk", "refused").await;
    assert_eq!(refused.len(), 1, "the SDK retried: {refused:?}");
}
