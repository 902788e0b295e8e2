//! Two writers on one partition: the older is fenced by the journal itself, appends nothing more,
//! and answers nothing from a state that is no longer the truth.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use futures::StreamExt as _;
use seatbelt_bus::Nats;
use seatbelt_ledger::{
    api::{CommandError, Ledger, ReserveOutcome},
    cluster::ClusterLedger,
    host::{LedgerHost, PartitionStatus},
    journal::{Journal as _, Sequence},
    nats::{ClusterConfig, NatsJournal},
    testing::{Payer, balance, one_partition},
};
use seatbelt_schemas::{
    commit::Commit,
    names::Names,
    position::{Epoch, Partition},
    scope::Scope,
};
use seatbelt_tests::{nats::TestNats, until};

async fn journal(nats: &Nats) -> NatsJournal {
    let opened = NatsJournal::open(nats, &Names::default(), Partition(0), 1).await;
    opened.unwrap()
}

async fn writer(nats: &Nats, name: &str) -> Arc<LedgerHost> {
    let host = LedgerHost::start(&one_partition(name), vec![journal(nats).await]);
    host.ready().await.unwrap();
    host
}

fn payer() -> Payer {
    Payer::new("acct", "key")
}

async fn open_account(host: &dyn Ledger) {
    for change in payer().changes(balance("cap", Scope::Account, 1000)) {
        host.admin(payer().admin(change)).await.unwrap();
    }
}

async fn reserve(host: &dyn Ledger, tokens: u64) -> Result<ReserveOutcome, CommandError> {
    host.reserve(payer().reserve(tokens)).await
}

/// The epoch of every commit, in order.
async fn epochs(journal: &NatsJournal) -> Vec<Epoch> {
    let end = journal.end().await.unwrap();
    let commits = journal.replay(Sequence(0), end);
    commits
        .map(|stored| Commit::decode(&stored.unwrap().payload).unwrap().epoch)
        .collect()
        .await
}

#[tokio::test]
async fn the_older_of_two_writers_is_fenced_and_appends_nothing_more() {
    let server = TestNats::start().await;
    let (one, two) = (server.connect("one").await, server.connect("two").await);
    let older = writer(&one, "older").await;
    open_account(&*older).await;
    let granted = reserve(&*older, 100).await.unwrap();
    assert!(
        matches!(granted, ReserveOutcome::Reserved(_)),
        "{granted:?}"
    );

    let newer = writer(&two, "newer").await;
    let taken_over = journal(&two).await.end().await.unwrap();
    // the older does not know yet: whatever it decides now cannot land
    let refused = reserve(&*older, 100).await;
    assert!(
        matches!(refused, Err(CommandError::Unavailable { .. })),
        "{refused:?}"
    );
    until("the older one has stepped down", || async {
        let status = older.partition(Partition(0)).status();
        matches!(status, PartitionStatus::Stopped(_)).then_some(())
    })
    .await;
    assert_eq!(journal(&one).await.end().await.unwrap(), taken_over);

    // 100 are held since before the takeover: the newer one knows, and the cap holds
    let granted = reserve(&*newer, 900).await.unwrap();
    assert!(
        matches!(granted, ReserveOutcome::Reserved(_)),
        "{granted:?}"
    );
    let over = reserve(&*newer, 1).await.unwrap();
    assert!(matches!(over, ReserveOutcome::Refused(_)), "{over:?}");
    let again = reserve(&*older, 1).await;
    assert!(
        matches!(again, Err(CommandError::Unavailable { .. })),
        "{again:?}"
    );

    newer.stop().await;
    let epochs = epochs(&journal(&one).await).await;
    assert!(
        epochs.is_sorted(),
        "an older reign wrote after a newer: {epochs:?}"
    );
    assert_eq!(epochs.last(), Some(&Epoch(2)));
}

#[tokio::test]
async fn writers_that_race_leave_one_history() {
    let server = TestNats::start().await;
    let first = writer(&server.connect("first").await, "first").await;
    open_account(&*first).await;
    let mut hosts = vec![first];
    for name in ["second", "third"] {
        let nats = server.connect(name).await;
        let running = Arc::clone(hosts.last().unwrap());
        let load = tokio::spawn(async move {
            let mut granted = 0;
            for _ in 0..200 {
                match reserve(&*running, 1).await {
                    Ok(ReserveOutcome::Reserved(_)) => granted += 1,
                    Ok(ReserveOutcome::Refused(refusal)) => panic!("{refusal:?}"),
                    Err(_) => break,
                }
            }
            granted
        });
        hosts.push(writer(&nats, name).await);
        let granted: u64 = load.await.unwrap();
        assert!(granted <= 200);
    }
    let last = hosts.pop().unwrap();
    last.stop().await;
    let nats = server.connect("auditor").await;
    let epochs = epochs(&journal(&nats).await).await;
    assert!(epochs.is_sorted(), "{epochs:?}");
    assert_eq!(epochs.last(), Some(&Epoch(3)));
}

#[tokio::test]
async fn a_process_that_was_fenced_finds_its_way_back() {
    let server = TestNats::start().await;
    let (one, two) = (server.connect("one").await, server.connect("two").await);
    let host = one_partition("cluster");
    let names = Names::default();
    let config = ClusterConfig {
        host,
        names,
        replicas: 1,
        checkpoint: Default::default(),
        owed: Default::default(),
    };
    let cluster = ClusterLedger::start(&one, config).await.unwrap();
    assert_eq!(cluster.ready().await, Vec::new());
    open_account(&*cluster).await;

    // a writer that no lease allows: the journal's sequence fences the one that has it
    let intruder = writer(&two, "intruder").await;
    let _ = reserve(&*cluster, 10).await;
    intruder.stop().await;
    let granted = reserve(&*cluster, 10).await;
    assert!(
        matches!(granted, Ok(ReserveOutcome::Reserved(_))),
        "{granted:?}"
    );
    cluster.stop().await;
}
