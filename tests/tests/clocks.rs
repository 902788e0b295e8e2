//! Processes whose clocks are off beside one whose clock is right, on a real nats-server: they say so and
//! lead nothing, and whoever is right leads.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use seatbelt_bus::{Layout, Nats, ServerTime, connect, neuron_bucket, provision};
use seatbelt_ledger::{
    api::{Answer, Ledger, ReserveOutcome},
    cluster::{ClusterLedger, owed::Owed},
    host::{HostConfig, clock::HostClock, now_ms},
    nats::ClusterConfig,
    testing::{Payer, balance, clock::OwnClock, one_partition},
};
use seatbelt_schemas::{names::Names, position::Partition, scope::Scope};
use seatbelt_tests::{
    nats::{PATIENCE, TestNats},
    until,
};

const HOUR_MS: i64 = 3_600_000;

async fn take_part(server: &TestNats, name: &str, clock: &OwnClock) -> (Nats, Arc<ClusterLedger>) {
    take_part_owing(server, name, clock, Owed::default()).await
}

async fn take_part_owing(
    server: &TestNats,
    name: &str,
    clock: &OwnClock,
    owed: Owed,
) -> (Nats, Arc<ClusterLedger>) {
    let url = server.server.url();
    let nats = connect(&url, name, PATIENCE).await.unwrap();
    let host = one_partition(name);
    let layout = Layout {
        partitions: host.partitions,
        replicas: 1,
    };
    let names = Names::default();
    let meta = provision(&nats, &names, layout).await.unwrap();
    let config = ClusterConfig {
        host: HostConfig {
            ledger: meta.ledger,
            clock: HostClock::of(clock.clone()),
            ..host
        },
        names,
        replicas: 1,
        checkpoint: Default::default(),
        owed,
    };
    let ledger = ClusterLedger::start(&nats, config).await.unwrap();
    (nats, ledger)
}

fn payer() -> Payer {
    Payer::new("acct", "key")
}

/// Asks until somebody answers, with the same command.
async fn patiently<T>(call: impl AsyncFn() -> Answer<T>) -> T {
    until("an answer", async || call().await.ok()).await
}

async fn pays(ledger: &ClusterLedger) {
    let command = payer().reserve(1);
    let outcome = patiently(async || ledger.reserve(command.clone()).await).await;
    assert!(matches!(outcome, ReserveOutcome::Reserved(_)));
}

fn says_why(reasons: &[(Partition, String)]) -> bool {
    let named = |reason: &str| reason.contains("clock of nats-server");
    !reasons.is_empty() && reasons.iter().all(|(_, reason)| named(reason))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_right_leads_and_whoever_is_not_says_why() {
    let server = TestNats::start().await;
    let (wrong, right) = (OwnClock::ahead_by(HOUR_MS), OwnClock::ahead_by(0));
    let (_nats, first) = take_part(&server, "first", &wrong).await;
    let troubled = first.ready().await;
    assert!(says_why(&troubled), "{troubled:?}");
    assert!(says_why(&first.unserved()));

    // its lease is free for one that is right
    let (_nats, second) = take_part(&server, "second", &right).await;
    assert_eq!(second.ready().await, []);
    for change in payer().changes(balance("cap", Scope::Account, 1000)) {
        let command = payer().admin(change);
        patiently(async || second.admin(command.clone()).await).await;
    }
    pays(&second).await;
    until("the first calls the second", async || {
        first.unserved().is_empty().then_some(())
    })
    .await;
    pays(&first).await;
    let offset_ms = second.clock_offsets_ms()[0].1;
    assert!(offset_ms.abs() < 1_000, "{offset_ms}");

    // and now the other way round
    wrong.set_by(-HOUR_MS);
    right.set_by(-HOUR_MS);
    until("the first hosts", async || {
        (!first.hosted().is_empty()).then_some(())
    })
    .await;
    pays(&first).await;
    pays(&second).await;
    assert!(second.hosted().is_empty());
    first.stop().await;
    until("the second says why", async || {
        says_why(&second.unserved()).then_some(())
    })
    .await;
    let offset_ms = second.clock_offsets_ms()[0].1;
    assert!((offset_ms + HOUR_MS).abs() < 1_000, "{offset_ms}");
    second.stop().await;
}

/// What could not be gone on from, as for a clock here, is declared to before anybody is let in: also those who
/// come by another process, which saw no trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_let_into_a_partition_before_its_host_has_declared_again() {
    let server = TestNats::start().await;
    let clock = OwnClock::ahead_by(HOUR_MS);
    let (_nats, first) = take_part_owing(&server, "first", &clock, Owed::by_who_declares()).await;
    assert!(says_why(&first.ready().await));
    clock.set_by(-HOUR_MS);
    until("it hosts", || async {
        (!first.hosted().is_empty()).then_some(())
    })
    .await;

    let (_nats, second) = take_part(&server, "second", &OwnClock::ahead_by(0)).await;
    assert_eq!(second.ready().await, []);
    for change in payer().changes(balance("cap", Scope::Account, 1000)) {
        // declaring is let in
        let command = payer().admin(change);
        patiently(async || second.admin(command.clone()).await).await;
    }
    for ledger in [&first, &second] {
        let refused = ledger.reserve(payer().reserve(1)).await.unwrap_err();
        let said = refused.to_string();
        assert!(said.contains("what is declared is not true yet"), "{said}");
    }
    assert!(second.hosted().is_empty(), "it asked the first");
    first.owed().settle(&first.owed().now());
    pays(&first).await;
    pays(&second).await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_goes_by_the_servers_time_whatever_its_machine_shows() {
    let server = TestNats::start().await;
    let nats = connect(&server.server.url(), "asks", PATIENCE)
        .await
        .unwrap();
    let (names, partitions) = (Names::default(), one_partition("asks").partitions);
    let layout = Layout {
        partitions,
        replicas: 1,
    };
    // META alone is there yet, as on the first start of a process that leads nothing
    provision(&nats, &names, layout).await.unwrap();
    for off_ms in [-HOUR_MS, HOUR_MS] {
        let own_ms = now_ms().saturating_add_signed(off_ms);
        let time = ServerTime::start_from(&nats, &names, partitions, own_ms).await;
        let apart_ms = time.now_ms().abs_diff(now_ms());
        assert!(apart_ms < 2_000, "{apart_ms}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_neuron_goes_by_the_servers_time_too_with_what_it_may_look_at() {
    let server = TestNats::start().await;
    let nats = connect(&server.server.url(), "neuron", PATIENCE)
        .await
        .unwrap();
    let names = Names::default();
    // what a neuron makes sure of before
    neuron_bucket(&nats, &names, 1).await.unwrap();
    for off_ms in [-25 * HOUR_MS, HOUR_MS / 5, 2 * HOUR_MS] {
        let own_ms = now_ms().saturating_add_signed(off_ms);
        let time = ServerTime::start_at_neuron(&nats, &names, own_ms).await;
        let apart_ms = time.now_ms().abs_diff(now_ms());
        assert!(apart_ms < 2_000, "{apart_ms}");
    }
}
