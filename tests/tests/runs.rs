//! A run with its own budget over a real journal: opened and spent from another process's side, carried
//! on by the next writer, closed with the rest given back, and proved by the audit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "runs/http.rs"]
mod http;

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use seatbelt_bus::Nats;
use seatbelt_ledger::{
    api::{Ack, CommandError, Ledger, Read, Reserve, ReserveOutcome},
    audit::Verifier,
    host::LedgerHost,
    journal::{Journal as _, Sequence},
    nats::NatsJournal,
    remote::{LedgerService, RemoteLedger},
    testing::{Payer, balance, one_partition},
};
use seatbelt_schemas::{
    budget::Budget,
    command::{Grant, Refusal},
    ids::RunId,
    meter::Meter,
    names::Names,
    position::Partition,
    scope::Scope,
};
use seatbelt_tests::nats::TestNats;

const PARTITION: Partition = Partition(0);

fn payer() -> Payer {
    Payer::new("acct", "key")
}

async fn journal(nats: &Nats) -> NatsJournal {
    let opened = NatsJournal::open(nats, &Names::default(), PARTITION, 1).await;
    opened.unwrap()
}

/// A process that hosts the partition, and its service for the others.
async fn writer(nats: &Nats, name: &str) -> (Arc<LedgerHost>, LedgerService) {
    let host = LedgerHost::start(&one_partition(name), vec![journal(nats).await]);
    host.ready().await.unwrap();
    let ledger: Arc<dyn Ledger> = Arc::clone(&host) as _;
    let service = LedgerService::start(nats, &Names::default(), PARTITION, ledger).await;
    (host, service.unwrap())
}

async fn open_account(ledger: &dyn Ledger) {
    let payer = payer();
    for change in payer.changes(balance("cap", Scope::Key(payer.key.clone()), 1000)) {
        ledger.admin(payer.admin(change)).await.unwrap();
    }
}

async fn reserve(ledger: &dyn Ledger, tokens: u64, budget: Option<Budget>) -> ReserveOutcome {
    let command = Reserve {
        run: Some(RunId::new("run-1").unwrap()),
        budget,
        ..payer().reserve(tokens)
    };
    ledger.reserve(command).await.unwrap()
}

#[track_caller]
fn granted(outcome: ReserveOutcome) -> Grant {
    match outcome {
        ReserveOutcome::Reserved(grant) => grant,
        ReserveOutcome::Refused(refusal) => panic!("{refusal:?}"),
    }
}

#[track_caller]
fn refused(outcome: ReserveOutcome) -> Refusal {
    match outcome {
        ReserveOutcome::Refused(refusal) => *refusal,
        ReserveOutcome::Reserved(grant) => panic!("{grant:?}"),
    }
}

/// What is spent and held under each cap.
async fn stands(ledger: &dyn Ledger) -> Vec<(String, u64, u64)> {
    let read = Read {
        account: payer().account,
        key: None,
        run: None,
        reservation: None,
    };
    let caps = ledger.read(read).await.unwrap().caps.into_iter();
    caps.map(|cap| (cap.cap.to_string(), cap.spent, cap.held))
        .collect()
}

fn cap(id: &str, spent: u64, held: u64) -> (String, u64, u64) {
    (id.to_owned(), spent, held)
}

#[tokio::test]
async fn a_run_is_opened_spent_and_closed_across_processes_and_writers() {
    let server = TestNats::start().await;
    let (one, two) = (server.connect("one").await, server.connect("two").await);
    let gateway = server.connect("gateway").await;
    let patience = Duration::from_secs(10);
    let remote = RemoteLedger::new(&gateway, &Names::default(), PARTITION, patience);
    let (older, service) = writer(&one, "older").await;
    open_account(&remote).await;

    let budget = Budget::new([(Meter::Tokens, 100), (Meter::Requests, 3)]).unwrap();
    let run = granted(reserve(&remote, 0, Some(budget)).await).reservation;
    let first = granted(reserve(&remote, 60, None).await).reservation;
    let refusal = refused(reserve(&remote, 41, None).await);
    assert_eq!(
        (refusal.cap.cap.as_str(), refusal.requested),
        ("run:run-1:tokens", 41)
    );

    drop(service);
    older.stop().await;
    let (newer, _service) = writer(&two, "newer").await;
    remote
        .settle(payer().settle(first, 20), Ack::Durable)
        .await
        .unwrap();
    let open = [
        cap("cap", 20, 80),
        cap("run:run-1:requests", 1, 0),
        cap("run:run-1:tokens", 20, 0),
    ];
    assert_eq!(stands(&remote).await, open);
    let settled = remote.settle(payer().settle(run, 5), Ack::Durable).await;
    assert!(
        matches!(settled, Err(CommandError::Invalid { .. })),
        "{settled:?}"
    );
    remote.release(payer().release(run)).await.unwrap();
    assert_eq!(stands(&remote).await, [cap("cap", 20, 0)]);

    newer.stop().await;
    let journal = journal(&two).await;
    let mut commits = journal.replay(Sequence(0), journal.end().await.unwrap());
    let mut verifier = Verifier::new(PARTITION);
    while let Some(stored) = commits.next().await {
        let stored = stored.unwrap();
        verifier.accept(stored.sequence, &stored.payload).unwrap();
    }
    assert_eq!(verifier.finish().unwrap().open, 0);
}
