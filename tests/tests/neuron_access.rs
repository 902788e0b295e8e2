//! A neuron called past its gateway: without the deployment's secret, with another, and with a call that
//! was served before. Nothing is served, and no charge changes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream;
use seatbelt_schemas::{
    ids::NeuronId,
    names::Names,
    neuron::{
        HEADER_ACCOUNT, HEADER_DEADLINE_MS, HEADER_KEY, HEADER_MAX_INPUT_TOKENS,
        HEADER_MAX_OUTPUT_TOKENS, HEADER_RESERVATION, NeuronRecord, PATH_CHAT,
        signature::{BodyHash, Call, HEADER_SIGNATURE, NeuronSecret},
    },
    wire,
};
use seatbelt_tests::{Key, Running, Stack, stack::chat_body, until};

const LIMIT: u64 = 10_000;

/// The neuron of a stack, as somebody on its network sees it.
struct Reached {
    http: reqwest::Client,
    jetstream: jetstream::Context,
    record: NeuronRecord,
}

impl Reached {
    async fn of(stack: &Running) -> Self {
        let jetstream = jetstream::new(stack.nats_client().await);
        let names = Names::default();
        let bucket = jetstream
            .get_key_value(names.neuron_bucket())
            .await
            .unwrap();
        let bucket = &bucket;
        let record = until("the neuron is registered", || async move {
            use futures::TryStreamExt as _;
            let ids: Vec<String> = bucket.keys().await.ok()?.try_collect().await.ok()?;
            let value = bucket.get(ids.first()?).await.ok()??;
            wire::decode::<NeuronRecord>("neuron record", &value).ok()
        })
        .await;
        Self {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            jetstream,
            record,
        }
    }

    /// What the gateways of the deployment sign with.
    async fn secret(&self) -> NeuronSecret {
        let names = Names::default();
        let bucket = self.jetstream.get_key_value(names.secret_bucket()).await;
        let value = bucket.unwrap().get("neuron_secret").await.unwrap().unwrap();
        NeuronSecret::new(value[..].try_into().unwrap())
    }

    /// Asks for the fewest tokens on a reservation, signed with a secret where there is one.
    async fn ask(&self, reservation: &str, secret: Option<&NeuronSecret>) -> (u16, String) {
        let body = chat_body("tiny", 1).to_string();
        let soon = SystemTime::now() + Duration::from_secs(60);
        let soon = soon
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis()
            .to_string();
        let headers = [
            (HEADER_RESERVATION, reservation),
            (HEADER_ACCOUNT, "acct-cap"),
            (HEADER_KEY, "key-cap"),
            (HEADER_MAX_INPUT_TOKENS, "1000"),
            (HEADER_MAX_OUTPUT_TOKENS, "1"),
            (HEADER_DEADLINE_MS, &soon),
        ];
        let told = |name| {
            let header = headers.iter().find(|(known, _)| *known == name);
            header.map(|(_, value)| value.as_bytes())
        };
        let neuron: &NeuronId = &self.record.neuron;
        let call = Call::new(neuron, "POST", PATH_CHAT, told);
        let mut request = self.http.post(format!("{}{PATH_CHAT}", self.record.url));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some(secret) = secret {
            let signature = secret.sign(&call, &BodyHash::of(body.as_bytes()));
            request = request.header(HEADER_SIGNATURE, signature);
        }
        let answer = request.body(body).send().await.unwrap();
        let status = answer.status().as_u16();
        let answer: serde_json::Value = answer.json().await.unwrap();
        let code = answer["error"]["code"].as_str().unwrap_or_default();
        (status, code.to_owned())
    }

    async fn reports(&self) -> u64 {
        let usage = Names::default().usage_stream();
        let mut stream = self.jetstream.get_stream(usage).await.unwrap();
        stream.info().await.unwrap().state.messages
    }
}

#[tokio::test]
async fn a_neuron_serves_its_gateways_alone_and_each_reservation_once() {
    let key = Key::new("cap").hard_cap(LIMIT);
    let stack = Stack::new().neuron().key(key).start().await;
    let body = chat_body("tiny", 20).to_string();
    let answer = stack.post("/v1/chat/completions", "sk-cap", body).await;
    assert!(answer.is_ok(), "{answer:?}");
    let reservation = answer.header("x-seatbelt-reservation").unwrap().to_owned();
    let used = answer.json()["usage"]["total_tokens"].as_u64().unwrap();

    let neuron = Reached::of(&stack).await;
    until("it is reported", || async {
        (neuron.reports().await == 1).then_some(())
    })
    .await;
    let unsigned = (401, "invalid_signature".to_owned());
    assert_eq!(neuron.ask(&reservation, None).await, unsigned);
    let other = NeuronSecret::new([7; 32]);
    assert_eq!(neuron.ask(&reservation, Some(&other)).await, unsigned);
    let again = (409, "reservation_used".to_owned());
    let secret = neuron.secret().await;
    assert_eq!(neuron.ask(&reservation, Some(&secret)).await, again);
    assert_eq!(
        neuron.reports().await,
        1,
        "a call that was turned away is reported"
    );

    let spent = |cap: &serde_json::Value| cap["spent"] == used && cap["held"] == 0;
    stack.cap("sk-cap", "the charge stays", spent).await;
    let home = stack.stop().await;
    let settled = home.events_of("acct-cap", "settled").await;
    assert_eq!(settled.len(), 1, "{settled:?}");
    assert_eq!(settled[0]["data"]["charge"]["tokens"], used);
    home.verify().await;
}
