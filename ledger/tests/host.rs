//! The host over a journal in memory: durability before the answer, faults of an append, two writers,
//! callers that leave, and the account as `eventually` loads it.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use eventually::{aggregate::AggregateRootBuilder, repository::Repository};
use seatbelt_ledger::{
    api::{Ack, Admin, CommandError, Ledger, Read, Release, Reserve, ReserveOutcome, Settle},
    audit::Verifier,
    host::{HostConfig, LedgerHost, PartitionStatus, now_ms},
    journal::{
        Journal, Sequence,
        memory::{Fault, MemoryJournal},
    },
    repository::{AccountAction, AccountAggregate, AccountCommand, JournalStore},
};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    commit::Commit,
    event::{EventBody, KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ReservationId},
    meter::Meter,
    position::{Partition, Partitions},
    scope::Scope,
    usage::Usage,
    window::Window,
};
use ulid::Ulid;

fn account() -> AccountId {
    AccountId::new("acct").unwrap()
}

fn id() -> CommandId {
    Ulid::new().into()
}

fn host(journal: &MemoryJournal) -> Arc<LedgerHost> {
    let config = HostConfig {
        partitions: Partitions::try_from(1).unwrap(),
        ledger: LedgerId::new("test").unwrap(),
        writer: "test".to_owned(),
        expiry_grace_ms: 0,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
    };
    LedgerHost::start(&config, vec![journal.clone()])
}

async fn with_cap(host: &LedgerHost, limit: u64) {
    host.ready().await.unwrap();
    let key = KeyIssued {
        key: KeyId::new("key").unwrap(),
        team: None,
        secret_sha256: None,
    };
    let cap = CapSpec {
        cap: CapId::new("cap").unwrap(),
        scope: Scope::Account,
        meter: Meter::Tokens,
        window: Window::Balance,
        limit,
        hard: true,
        thresholds: Vec::new(),
    };
    for change in [
        Change::OpenAccount,
        Change::IssueKey(key),
        Change::SetCap(cap),
    ] {
        host.admin(Admin {
            id: id(),
            account: account(),
            actor: Actor::operator("test"),
            change,
        })
        .await
        .unwrap();
    }
}

fn reserve(output_tokens: u64) -> Reserve {
    Reserve {
        id: id(),
        account: account(),
        key: KeyId::new("key").unwrap(),
        model: None,
        run: None,
        end_user: None,
        input_tokens: 0,
        output_tokens,
        deadline_ms: now_ms() + 60_000,
        wait_ms: 30_000,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
        budget: None,
    }
}

fn settle(reservation: ReservationId, output_tokens: u64) -> Settle {
    let usage = Usage {
        output_tokens,
        ..Usage::default()
    };
    let (upstream, timings) = ("test".to_owned(), Timings::default());
    let report = Report {
        usage,
        upstream,
        source: UsageSource::Upstream,
        finish: None,
        timings,
    };
    Settle {
        id: id(),
        account: account(),
        reservation,
        report,
        actor: Actor::operator("test"),
    }
}

async fn granted(host: &LedgerHost, output_tokens: u64) -> ReservationId {
    match host.reserve(reserve(output_tokens)).await.unwrap() {
        ReserveOutcome::Reserved(grant) => grant.reservation,
        ReserveOutcome::Refused(refusal) => panic!("refused: {refusal:?}"),
    }
}

async fn stands(host: &LedgerHost) -> (u64, u64) {
    let standing = host
        .read(Read {
            account: account(),
            key: None,
        })
        .await
        .unwrap();
    (standing.caps[0].spent, standing.caps[0].held)
}

async fn verified(journal: &MemoryJournal) -> Vec<EventBody> {
    let mut verifier = Verifier::new(Partition(0));
    let mut bodies = Vec::new();
    for sequence in 1..=journal.end().await.unwrap().0 {
        let stored = journal.get(Sequence(sequence)).await.unwrap().unwrap();
        verifier.accept(stored.sequence, &stored.payload).unwrap();
        let commit = Commit::read(&stored.payload).unwrap();
        bodies.extend(commit.events.into_iter().map(|stored| stored.event.body));
    }
    verifier.finish().unwrap();
    bodies
}

async fn until(what: &str, mut reached: impl AsyncFnMut() -> bool) {
    for _ in 0..2_000 {
        if reached().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} was never reached");
}

#[tokio::test]
async fn a_hold_is_taken_settled_and_survives_a_restart() {
    let journal = MemoryJournal::default();
    let first = host(&journal);
    with_cap(&first, 100).await;
    let reservation = granted(&first, 60).await;
    assert_eq!(stands(&first).await, (0, 60));
    first
        .settle(settle(reservation, 15), Ack::Durable)
        .await
        .unwrap();
    assert_eq!(stands(&first).await, (15, 0));
    first.stop().await;
    let second = host(&journal);
    second.ready().await.unwrap();
    assert_eq!(stands(&second).await, (15, 0));
    second.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn an_append_of_unknown_outcome_is_resolved_and_answered_once() {
    for fault in [
        Fault::UnknownLanded,
        Fault::UnknownLost,
        Fault::UnknownDelayed,
    ] {
        let journal = MemoryJournal::default();
        let host = host(&journal);
        with_cap(&host, 100).await;
        journal.script([fault]);
        granted(&host, 60).await;
        assert_eq!(stands(&host).await, (0, 60), "{fault:?}");
        host.stop().await;
        let reserved = verified(&journal)
            .await
            .into_iter()
            .filter(|body| matches!(body, EventBody::Reserved(_)));
        assert_eq!(reserved.count(), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_second_writer_fences_the_first_which_appends_nothing_after() {
    let journal = MemoryJournal::default();
    let first = host(&journal);
    with_cap(&first, 100).await;
    let second = host(&journal);
    second.ready().await.unwrap();
    let fence = journal.end().await.unwrap();
    let refused = first.reserve(reserve(10)).await;
    assert!(
        matches!(refused, Err(CommandError::Unavailable { .. })),
        "{refused:?}"
    );
    assert!(matches!(
        first.partition(Partition(0)).status(),
        PartitionStatus::Stopped(_)
    ));
    assert_eq!(journal.end().await.unwrap(), fence);
    granted(&second, 10).await;
    second.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_journal_that_refuses_appends_is_tried_again_and_nothing_is_free_meanwhile() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    journal.script([Fault::Refused]);
    assert!(matches!(
        host.reserve(reserve(10)).await,
        Err(CommandError::Unavailable { .. })
    ));
    until("recovery", async || host.reserve(reserve(10)).await.is_ok()).await;
    host.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_waits_is_forgotten() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let first = granted(&host, 80).await;
    let waiting = tokio::time::timeout(Duration::from_millis(50), host.reserve(reserve(80))).await;
    assert!(waiting.is_err(), "it must wait");
    host.settle(settle(first, 10), Ack::Durable).await.unwrap();
    assert_eq!(stands(&host).await, (10, 0));
    host.stop().await;
    let bodies = verified(&journal).await;
    assert_eq!(
        bodies
            .iter()
            .filter(|body| matches!(body, EventBody::Reserved(_)))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_hold_that_nobody_is_there_to_receive_is_given_back() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    // the decision is made at once and its commit is held up: the caller leaves in between
    journal.script([Fault::UnknownLost; 4]);
    let left = tokio::time::timeout(Duration::from_millis(5), host.reserve(reserve(80))).await;
    assert!(left.is_err(), "it must still be on its way");
    until("the release", async || stands(&host).await == (0, 0)).await;
    granted(&host, 100).await;
    host.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_waiting_reserve_is_let_in_by_a_settle() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let first = granted(&host, 80).await;
    let (second, ()) = tokio::join!(granted(&host, 80), async {
        host.settle(settle(first, 10), Ack::Taken).await.unwrap();
    });
    host.release(Release {
        id: id(),
        account: account(),
        reservation: second,
        reason: "test".to_owned(),
        actor: Actor::operator("test"),
    })
    .await
    .unwrap();
    assert_eq!(stands(&host).await, (10, 0));
    host.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_hold_past_its_deadline_is_charged() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    host.reserve(Reserve {
        deadline_ms: now_ms() + 30,
        ..reserve(40)
    })
    .await
    .unwrap();
    until("expiry", async || stands(&host).await == (40, 0)).await;
    host.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_repository_loads_an_account_by_replay_and_stores_what_it_decides() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let reservation = granted(&host, 60).await;
    host.stop().await;

    let store = JournalStore::new(journal.clone(), Partition(0));
    let builder = AggregateRootBuilder::from(AccountAggregate::default());
    let mut repository = Repository::new(builder, store);
    let mut root = repository.get(account()).await.unwrap();
    let mut stale = repository.get(account()).await.unwrap();
    assert_eq!(
        root.state().cap(&CapId::new("cap").unwrap()).unwrap().held,
        60
    );
    let release = |reason: &str| AccountCommand {
        id: id(),
        actor: Actor::operator("test"),
        at_ms: now_ms(),
        action: AccountAction::Release(reservation, reason.to_owned()),
    };
    root.handle(release("first")).await.unwrap();
    stale.handle(release("second")).await.unwrap();
    repository.add(root).await.unwrap();
    assert!(
        repository.add(stale).await.is_err(),
        "two decisions on one version"
    );
    assert!(
        repository.remove(account()).await.is_err(),
        "nothing is ever removed"
    );
    let loaded = repository.get(account()).await.unwrap();
    assert_eq!(loaded.state().open().len(), 0);
    verified(&journal).await;
}
