//! A run with its own budget over a real journal: opened and spent from another process's side, carried
//! on by the next writer, closed with the rest given back, and proved by the audit.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use seatbelt_ledger::{
    api::{Ack, Admin, CommandError, Ledger, Read, Release, Reserve, ReserveOutcome, Settle},
    audit::Verifier,
    host::{HostConfig, LedgerHost, now_ms},
    journal::{Journal as _, Sequence},
    nats::{LedgerService, Nats, NatsJournal, RemoteLedger},
};
use seatbelt_schemas::{
    budget::Budget,
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::{Change, Grant, Refusal},
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ReservationId, RunId},
    meter::Meter,
    names::Names,
    position::{Partition, Partitions},
    scope::Scope,
    usage::Usage,
    window::Window,
};
use seatbelt_tests::nats::TestNats;

const PARTITION: Partition = Partition(0);

fn account() -> AccountId {
    AccountId::new("acct").unwrap()
}

fn key() -> KeyId {
    KeyId::new("key").unwrap()
}

fn command_id() -> CommandId {
    ulid::Ulid::new().into()
}

async fn journal(nats: &Nats) -> NatsJournal {
    let opened = NatsJournal::open(nats, &Names::default(), PARTITION, 1).await;
    opened.unwrap()
}

/// A process that hosts the partition, and its service for the others.
async fn writer(nats: &Nats, name: &str) -> (Arc<LedgerHost>, LedgerService) {
    let config = HostConfig {
        partitions: Partitions::try_from(1).unwrap(),
        ledger: LedgerId::new("test").unwrap(),
        writer: name.to_owned(),
        expiry_grace_ms: 1000,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
    };
    let host = LedgerHost::start(&config, vec![journal(nats).await]);
    host.ready().await.unwrap();
    let ledger: Arc<dyn Ledger> = Arc::clone(&host) as _;
    let service = LedgerService::start(nats, &Names::default(), PARTITION, ledger).await;
    (host, service.unwrap())
}

async fn open_account(ledger: &dyn Ledger) {
    let cap = CapSpec {
        cap: CapId::new("cap").unwrap(),
        scope: Scope::Key(key()),
        meter: Meter::Tokens,
        window: Window::Balance,
        limit: 1000,
        hard: true,
        thresholds: THRESHOLDS_DEFAULT.to_vec(),
    };
    let issued = KeyIssued {
        key: key(),
        team: None,
        secret_sha256: None,
    };
    for change in [
        Change::OpenAccount,
        Change::IssueKey(issued),
        Change::SetCap(cap),
    ] {
        let command = Admin {
            id: command_id(),
            account: account(),
            actor: Actor::operator("test"),
            change,
        };
        ledger.admin(command).await.unwrap();
    }
}

async fn reserve(ledger: &dyn Ledger, tokens: u64, budget: Option<Budget>) -> ReserveOutcome {
    let command = Reserve {
        id: command_id(),
        account: account(),
        key: key(),
        model: None,
        run: Some(RunId::new("run-1").unwrap()),
        end_user: None,
        input_tokens: 0,
        output_tokens: tokens,
        deadline_ms: now_ms() + 60_000,
        wait_ms: 0,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
        budget,
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

fn settle(reservation: ReservationId, output_tokens: u64) -> Settle {
    let usage = Usage {
        output_tokens,
        ..Usage::default()
    };
    let (upstream, timings) = ("test".to_owned(), Timings::default());
    let (source, finish) = (UsageSource::Upstream, None);
    Settle {
        id: command_id(),
        account: account(),
        reservation,
        report: Report {
            usage,
            upstream,
            source,
            finish,
            timings,
        },
        actor: Actor::operator("test"),
    }
}

/// What is spent and held under each cap.
async fn stands(ledger: &dyn Ledger) -> Vec<(String, u64, u64)> {
    let read = Read {
        account: account(),
        key: None,
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
        .settle(settle(first, 20), Ack::Durable)
        .await
        .unwrap();
    let open = [
        cap("cap", 20, 80),
        cap("run:run-1:requests", 1, 0),
        cap("run:run-1:tokens", 20, 0),
    ];
    assert_eq!(stands(&remote).await, open);
    let settled = remote.settle(settle(run, 5), Ack::Durable).await;
    assert!(
        matches!(settled, Err(CommandError::Invalid { .. })),
        "{settled:?}"
    );
    let release = Release {
        id: command_id(),
        account: account(),
        reservation: run,
        reason: "the agent is done".to_owned(),
        actor: Actor::key(&key()),
    };
    remote.release(release).await.unwrap();
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
