//! Two writers on one partition: the older is fenced by the journal itself, appends nothing more,
//! and answers nothing from a state that is no longer the truth.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use futures::StreamExt as _;
use seatbelt_ledger::{
    api::{Admin, CommandError, Ledger, Reserve, ReserveOutcome},
    cluster::{ClusterConfig, ClusterLedger},
    host::{HostConfig, LedgerHost, PartitionStatus, now_ms},
    journal::{Journal as _, Sequence},
    nats::{Nats, NatsJournal},
};
use seatbelt_schemas::{
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::Change,
    commit::Commit,
    event::{KeyIssued, OnShort, OnUnknown},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId},
    meter::Meter,
    names::Names,
    position::{Epoch, Partition, Partitions},
    scope::Scope,
    window::Window,
};
use seatbelt_tests::{nats::TestNats, until};

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
    let opened = NatsJournal::open(nats, &Names::default(), Partition(0), 1).await;
    opened.unwrap()
}

async fn writer(nats: &Nats, name: &str) -> Arc<LedgerHost> {
    let config = HostConfig {
        partitions: Partitions::try_from(1).unwrap(),
        ledger: LedgerId::new("test").unwrap(),
        writer: name.to_owned(),
        expiry_grace_ms: 1000,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
    };
    let host = LedgerHost::start(&config, vec![journal(nats).await]);
    host.ready().await.unwrap();
    host
}

async fn open_account(host: &dyn Ledger) {
    let cap = CapSpec {
        cap: CapId::new("cap").unwrap(),
        scope: Scope::Account,
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
        host.admin(command).await.unwrap();
    }
}

async fn reserve(host: &dyn Ledger, tokens: u64) -> Result<ReserveOutcome, CommandError> {
    host.reserve(Reserve {
        id: command_id(),
        account: account(),
        key: key(),
        model: None,
        run: None,
        end_user: None,
        input_tokens: 0,
        output_tokens: tokens,
        deadline_ms: now_ms() + 60_000,
        wait_ms: 0,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
        budget: None,
    })
    .await
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
    let host = HostConfig {
        partitions: Partitions::try_from(1).unwrap(),
        ledger: LedgerId::new("test").unwrap(),
        writer: "cluster".to_owned(),
        expiry_grace_ms: 1000,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
    };
    let names = Names::default();
    let config = ClusterConfig {
        host,
        names,
        replicas: 1,
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
