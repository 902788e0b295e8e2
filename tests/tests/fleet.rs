//! Two neurons under load, one of them killed in turns: what the other can serve is served, and every
//! reservation has one end and at most one usage event.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use seatbelt_schemas::{
    names::Names,
    neuron::NeuronRecord,
    usage::{NeuronOutcome, UsageEvent},
    wire,
};
use seatbelt_tests::{Answer, Key, Running, Stack, nats::TestNats, stack::chat_body, until};

const SECRET: &str = "sk-fleet";
/// Requests under way at any time.
const AT_ONCE: usize = 4;
/// Requests of each of them, one after the other, in one round.
const EACH: usize = 12;
/// After so many answers of a round a neuron is killed.
const BEFORE: usize = 10;

async fn ask(gateway: &Running) -> Answer {
    let body = chat_body("tiny", 24).to_string();
    gateway.post("/v1/chat/completions", SECRET, body).await
}

/// The neurons that say that they are ready.
async fn registered(server: &TestNats) -> BTreeSet<String> {
    let nats = server.connect("test").await;
    let bucket = Names::default().neuron_bucket();
    let Ok(bucket) = nats.jetstream().get_key_value(bucket).await else {
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    for id in ["one", "two"] {
        let entry = bucket.get(id).await.ok().flatten();
        let record = entry.map(|bytes| wire::decode::<NeuronRecord>("a neuron", &bytes).unwrap());
        if record.is_some_and(|record| record.models.iter().all(|model| model.ready)) {
            found.insert(id.to_owned());
        }
    }
    found
}

async fn both_registered(server: &TestNats) {
    until("both neurons are registered", || async {
        (registered(server).await.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_request_is_lost_that_the_other_neuron_could_serve() {
    let server = TestNats::start().await;
    let stack = || {
        Stack::new()
            .nats(&format!("url = {:?}", server.server.url()))
            .neuron()
    };
    let home = stack().key(Key::new("fleet").hard_cap(1_000_000)).write();
    let gateway = home.start_role("gateway").await;
    let projector = home.start_role("projector").await;
    let homes = ["one", "two"].map(|id| {
        let home = stack().write();
        home.edit("[neuron]\n", &format!("[neuron]\nid = {id:?}\n"));
        home
    });
    let mut neurons = Vec::new();
    for home in &homes {
        neurons.push(Some(home.start_role("neuron").await));
    }
    for victim in [0, 1, 0] {
        both_registered(&server).await;
        until("the gateway serves", || async {
            ask(&gateway).await.is_ok().then_some(())
        })
        .await;
        let failed = killed_under_load(&gateway, &mut neurons[victim]).await;
        assert!(
            failed.len() <= AT_ONCE,
            "more failed than could have been at the neuron: {failed:?}"
        );
        neurons[victim] = Some(homes[victim].start_role("neuron").await);
    }
    both_registered(&server).await;
    gateway
        .cap(SECRET, "nothing is held", |cap| cap["held"] == 0)
        .await;
    let ends = ends_of(&gateway).await;
    assert!(ends.values().all(|ends| *ends == 1), "{ends:?}");
    let events = usage_events(&server, &ends).await;
    assert!(events.values().all(|events| *events == 1), "{events:?}");
    for role in neurons.into_iter().flatten().chain([gateway, projector]) {
        role.stop().await;
    }
    home.verify().await;
}

/// One round: the answers that were none.
async fn killed_under_load(gateway: &Running, victim: &mut Option<Running>) -> Vec<Answer> {
    let answered = AtomicUsize::new(0);
    let client = async || {
        let mut failed = Vec::new();
        for _ in 0..EACH {
            let answer = ask(gateway).await;
            answered.fetch_add(1, SeqCst);
            if !answer.is_ok() {
                failed.push(answer);
            }
        }
        failed
    };
    let clients = futures::future::join_all((0..AT_ONCE).map(|_| client()));
    let kill = async {
        until("some were answered", || async {
            (answered.load(SeqCst) >= BEFORE).then_some(())
        })
        .await;
        victim.take().unwrap().kill_all().await;
    };
    let (failed, ()) = futures::future::join(clients, kill).await;
    failed.concat()
}

/// How many ends each reservation has.
async fn ends_of(gateway: &Running) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for event in gateway.home().events().await {
        let reservation = event["data"]["reservation"].as_str().unwrap_or_default();
        match event["kind"].as_str().unwrap_or_default() {
            "reserved" => drop(ends.insert(reservation.to_owned(), 0)),
            "settled" | "released" | "expired" => {
                *ends.entry(reservation.to_owned()).or_default() += 1;
            }
            _ => {}
        }
    }
    assert!(
        ends.len() >= 3 * AT_ONCE * EACH,
        "{} reservations",
        ends.len()
    );
    ends
}

/// How many usage events each of these reservations has that was reported.
async fn usage_events(
    server: &TestNats,
    known: &BTreeMap<String, usize>,
) -> BTreeMap<String, usize> {
    let nats = server.connect("test").await;
    let stream = nats
        .jetstream()
        .get_stream(Names::default().usage_stream())
        .await;
    let mut stream = stream.unwrap();
    let last = stream.info().await.unwrap().state.last_sequence;
    let mut found = BTreeMap::new();
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let event = UsageEvent::decode(&message.payload).unwrap();
        if known.contains_key(&event.reservation) {
            *found.entry(event.reservation).or_default() += 1;
        } else {
            assert_eq!(
                event.outcome,
                NeuronOutcome::Rejected,
                "whose reservation is its own"
            );
        }
    }
    found
}
