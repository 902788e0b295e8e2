//! Neurons in the register of a real nats-server: two under one id are told, and take back only what is their own;
//! whoever starts to watch knows at once who is there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use seatbelt_bus::{Nats, Register, Twin, connect, watch_neurons};
use seatbelt_schemas::{ids::NeuronId, names::Names, neuron::NeuronRecord};
use seatbelt_tests::{
    nats::{PATIENCE, TestNats},
    until,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A neuron that registers.
struct Registered {
    twin: Twin,
    stop: CancellationToken,
    kept: JoinHandle<()>,
}

impl Registered {
    async fn start(nats: &Nats, id: &str, url: &str) -> Self {
        let neuron = NeuronId::new(id).unwrap();
        let register = Register::open(nats, &Names::default(), 1, &neuron).await;
        let register = register.unwrap();
        let (twin, stop) = (register.twin(), CancellationToken::new());
        let record = NeuronRecord {
            v: 1,
            neuron,
            url: url.to_owned(),
            device: "cpu".to_owned(),
            models: Vec::new(),
            active: 0,
            queued: 0,
            at_ms: 1,
        };
        let kept = register.keep(Arc::new(move || record.clone()), stop.clone());
        Self {
            twin,
            stop,
            kept: tokio::spawn(kept),
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.kept.await.unwrap();
    }
}

async fn urls(nats: &Nats) -> Vec<String> {
    let neurons = watch_neurons(nats, &Names::default(), 1).await.unwrap();
    let records = neurons.borrow();
    records.iter().map(|record| record.url.clone()).collect()
}

#[tokio::test]
async fn two_neurons_under_one_id_are_told_and_take_back_their_own_alone() {
    let server = TestNats::start().await;
    let nats = connect(&server.server.url(), "neurons", PATIENCE)
        .await
        .unwrap();
    let first = Registered::start(&nats, "one", "http://a:1").await;
    let second = Registered::start(&nats, "one", "http://b:1").await;
    let other = Registered::start(&nats, "two", "http://c:1").await;
    until("both are told", || async {
        (first.twin.warning().is_some() && second.twin.warning().is_some()).then_some(())
    })
    .await;
    assert_eq!(other.twin.warning(), None);
    first.stop().await;
    until("the second is alone", || async {
        second.twin.warning().is_none().then_some(())
    })
    .await;
    let found = urls(&nats).await;
    assert_eq!(found, ["http://b:1", "http://c:1"], "known at once");
    second.stop().await;
    assert_eq!(urls(&nats).await, ["http://c:1"]);
    other.stop().await;
}
