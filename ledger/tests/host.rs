//! The host over a journal in memory: durability before the answer, faults of an append, two writers,
//! callers that leave, and the account as `eventually` loads it.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use eventually::{aggregate::AggregateRootBuilder, repository::Repository};
use futures::{
    StreamExt,
    stream::{BoxStream, FuturesUnordered},
};
use seatbelt_ledger::{
    api::{Ack, CommandError, Ledger, Read, Reserve, ReserveOutcome},
    audit::Verifier,
    host::{CHANNEL_SHARE_MAX, HostConfig, LedgerHost, PartitionStatus, now_ms},
    journal::{
        AppendError, Journal, ReadError, Sequence, Stored,
        memory::{JournalFault, MemoryJournal},
    },
    repository::{AccountAction, AccountAggregate, AccountCommand, JournalStore},
    testing::{Payer, balance, command_id, one_partition},
};
use seatbelt_schemas::{
    cap::CapSpec,
    command::Change,
    commit::Commit,
    event::{EventBody, OnUnknown, StoredEvent},
    ids::{AccountId, Actor, CapId, ModelId, ReservationId},
    position::{Partition, Partitions},
    price::{Price, Rates},
    scope::Scope,
};
use tokio::sync::watch;

fn payer() -> Payer {
    Payer::new("acct", "key")
}

fn host(journal: &MemoryJournal) -> Arc<LedgerHost> {
    let config = HostConfig {
        expiry_grace_ms: 0,
        ..one_partition("test")
    };
    LedgerHost::start(&config, vec![journal.clone()])
}

async fn with_cap(host: &LedgerHost, limit: u64) {
    host.ready().await.unwrap();
    let cap = CapSpec {
        thresholds: Vec::new(),
        ..balance("cap", Scope::Account, limit)
    };
    for change in payer().changes(cap) {
        host.admin(payer().admin(change)).await.unwrap();
    }
}

fn reserve(output_tokens: u64) -> Reserve {
    Reserve {
        wait_ms: 30_000,
        ..payer().reserve(output_tokens)
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
            account: payer().account,
            key: None,
            run: None,
            reservation: None,
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
        .settle(payer().settle(reservation, 15), Ack::Durable)
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
        JournalFault::UnknownLanded,
        JournalFault::UnknownLost,
        JournalFault::UnknownDelayed,
        JournalFault::Replicating,
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
    journal.script([JournalFault::Refused]);
    assert!(matches!(
        host.reserve(reserve(10)).await,
        Err(CommandError::Unavailable { .. })
    ));
    until("recovery", async || host.reserve(reserve(10)).await.is_ok()).await;
    host.stop().await;
    verified(&journal).await;
}

/// Whoever set it hears that it is not everywhere yet, and sets it again.
#[tokio::test]
async fn a_price_goes_to_every_partition_but_those_in_trouble() {
    let journals = vec![MemoryJournal::default(), MemoryJournal::default()];
    let config = HostConfig {
        partitions: Partitions::try_from(2).unwrap(),
        ..one_partition("test")
    };
    let host = LedgerHost::start(&config, journals.clone());
    host.ready().await.unwrap();
    journals[0].script([JournalFault::Refused]);
    let price = Price::of(ModelId::new("m").unwrap(), Rates::flat(1, 2));
    let mut set = payer().admin(Change::SetPrice(price));
    set.account = AccountId::system();
    let answer = host.admin(set.clone()).await;
    assert!(
        matches!(answer, Err(CommandError::Unavailable { .. })),
        "{answer:?}"
    );
    let prices = |journal: &MemoryJournal| {
        let is_price = |body: &&EventBody| matches!(body, EventBody::PriceSet(_));
        let mut found = 0;
        for commit in journal.commits() {
            let events = Commit::read(&commit).unwrap().events;
            let bodies: Vec<_> = events.into_iter().map(|stored| stored.event.body).collect();
            found += bodies.iter().filter(is_price).count();
        }
        found
    };
    assert_eq!((prices(&journals[0]), prices(&journals[1])), (0, 1));
    until("recovery", async || host.admin(set.clone()).await.is_ok()).await;
    assert_eq!((prices(&journals[0]), prices(&journals[1])), (1, 1));
    host.stop().await;
}

#[tokio::test]
async fn a_caller_that_leaves_while_it_waits_is_forgotten() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let first = granted(&host, 80).await;
    let waiting = tokio::time::timeout(Duration::from_millis(50), host.reserve(reserve(80))).await;
    assert!(waiting.is_err(), "it must wait");
    host.settle(payer().settle(first, 10), Ack::Durable)
        .await
        .unwrap();
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
    journal.script([JournalFault::UnknownLost; 4]);
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
        host.settle(payer().settle(first, 10), Ack::Taken)
            .await
            .unwrap();
    });
    host.release(payer().release(second)).await.unwrap();
    assert_eq!(stands(&host).await, (10, 0));
    host.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_settle_is_told_taken_and_later_that_it_lasts() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let first = granted(&host, 80).await;
    journal.script([JournalFault::UnknownLost; 4]);
    let taken = host.settle_early(payer().settle(first, 10)).await.unwrap();
    let mut lasting = taken.lasting;
    assert!(
        futures::poll!(&mut lasting).is_pending(),
        "not on the journal"
    );
    assert_eq!(lasting.await, Ok(taken.resolution));
    host.stop().await;
    let settled = |body: &EventBody| matches!(body, EventBody::Settled(_));
    assert_eq!(
        verified(&journal)
            .await
            .iter()
            .filter(|body| settled(body))
            .count(),
        1
    );
}

#[tokio::test]
async fn a_taken_settle_whose_writer_is_overtaken_is_told_so_and_carried_out_by_the_next() {
    let journal = MemoryJournal::default();
    let older = host(&journal);
    with_cap(&older, 100).await;
    let first = granted(&older, 80).await;
    let newer = host(&journal);
    newer.ready().await.unwrap();
    let command = payer().settle(first, 10);
    let taken = older.settle_early(command.clone()).await.unwrap();
    let lost = taken.lasting.await;
    assert!(
        matches!(lost, Err(CommandError::Unavailable { .. })),
        "{lost:?}"
    );
    newer.settle(command, Ack::Durable).await.unwrap();
    assert_eq!(stands(&newer).await, (10, 0));
    newer.stop().await;
    verified(&journal).await;
}

/// `on_unknown = release` gives the hold back at its deadline. A settle that was taken and died with
/// its writer is sent again by who was told that it does not last, and charges the truth late.
#[tokio::test]
async fn a_taken_settle_that_died_with_its_writer_corrects_the_expiry() {
    let journal = MemoryJournal::default();
    let older = host(&journal);
    with_cap(&older, 100).await;
    let command = Reserve {
        on_unknown: OnUnknown::Release,
        deadline_ms: now_ms() + 300,
        ..reserve(80)
    };
    let reservation = command.id.into();
    older.reserve(command).await.unwrap();
    let newer = host(&journal);
    newer.ready().await.unwrap();
    let settle = payer().settle(reservation, 10);
    let taken = older.settle_early(settle.clone()).await.unwrap();
    assert!(taken.lasting.await.is_err(), "its writer is fenced");
    until("expiry", async || stands(&newer).await == (0, 0)).await;
    newer.settle(settle, Ack::Durable).await.unwrap();
    assert_eq!(stands(&newer).await, (10, 0));
    newer.stop().await;
    verified(&journal).await;
}

#[tokio::test]
async fn a_hold_past_its_deadline_is_charged() {
    let journal = MemoryJournal::default();
    let host = host(&journal);
    with_cap(&host, 100).await;
    host.reserve(Reserve {
        deadline_ms: now_ms() + 500,
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
    let mut root = repository.get(payer().account).await.unwrap();
    let mut stale = repository.get(payer().account).await.unwrap();
    assert_eq!(
        root.state().cap(&CapId::new("cap").unwrap()).unwrap().held,
        60
    );
    let release = |reason: &str| AccountCommand {
        id: command_id(),
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
        repository.remove(payer().account).await.is_err(),
        "nothing is ever removed"
    );
    let loaded = repository.get(payer().account).await.unwrap();
    assert_eq!(loaded.state().open().len(), 0);
    verified(&journal).await;
}

/// Both wait for the same reserve; the first one leaves.
#[tokio::test]
async fn a_hold_that_one_of_two_callers_received_is_kept() {
    let journal = MemoryJournal::new();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let command = reserve(10);
    let (mut first, mut second) = (host.reserve(command.clone()), host.reserve(command.clone()));
    assert!(futures::poll!(&mut first).is_pending());
    assert!(futures::poll!(&mut second).is_pending());
    drop(first);
    let outcome = second.await.unwrap();
    assert!(matches!(outcome, ReserveOutcome::Reserved(_)));
    assert_eq!(stands(&host).await, (0, 10));
    host.stop().await;
    verified(&journal).await;
}

/// The second one leaves before it is answered; the first one has the hold and works under it.
#[tokio::test]
async fn a_hold_that_was_received_outlives_a_second_caller_who_leaves() {
    let journal = MemoryJournal::new();
    let host = host(&journal);
    with_cap(&host, 100).await;
    let command = reserve(10);
    let outcome = host.reserve(command.clone()).await.unwrap();
    assert!(matches!(outcome, ReserveOutcome::Reserved(_)));
    let mut again = host.reserve(command.clone());
    assert!(futures::poll!(&mut again).is_pending());
    drop(again);
    // answered behind the second one: a settle sent now is not taken in together with it
    assert_eq!(stands(&host).await, (0, 10));
    let settled = host
        .settle(payer().settle(command.id.into(), 5), Ack::Durable)
        .await;
    assert!(settled.is_ok(), "{settled:?}");
    host.stop().await;
}

/// A journal that answers an append only once it may.
struct Held {
    journal: MemoryJournal,
    answers: watch::Receiver<bool>,
}

impl Journal for Held {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        let _ = self.answers.clone().wait_for(|answers| *answers).await;
        self.journal.append(expected, payload).await
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        self.journal.end().await
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        self.journal.get(sequence).await
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.journal.replay(after, to)
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.journal.follow(after)
    }
}

/// While an append is under way and commands keep coming, what is due is done between their bursts.
#[tokio::test]
async fn a_flood_of_commands_does_not_stop_time() {
    let journal = MemoryJournal::default();
    let (may_answer, answers) = watch::channel(true);
    let held = Held {
        journal: journal.clone(),
        answers,
    };
    let config = HostConfig {
        expiry_grace_ms: 0,
        ..one_partition("test")
    };
    let host = LedgerHost::start(&config, vec![held]);
    with_cap(&host, 100).await;
    let deadline_ms = now_ms() + 100;
    let short_lived = Reserve {
        deadline_ms,
        ..payer().reserve(60)
    };
    host.reserve(short_lived).await.unwrap();
    may_answer.send_replace(false);
    let change = payer().admin(Change::SetCap(balance("other", Scope::Account, 1_000)));
    let (changed, flood_end_ms) = tokio::join!(host.admin(change), async {
        // what rests on the state waits for the append: only what is turned away comes back
        let flood = || host.reserve(payer().reserve(u64::MAX));
        let mut refused: FuturesUnordered<_> = (0..64).map(|_| flood()).collect();
        while now_ms() < deadline_ms + 500 {
            let error = refused.next().await.unwrap().unwrap_err();
            assert!(matches!(error, CommandError::Invalid { .. }), "{error}");
            refused.push(flood());
        }
        may_answer.send_replace(true);
        now_ms()
    });
    changed.unwrap();
    host.stop().await;
    verified(&journal).await;
    let end = journal.end().await.unwrap().0;
    let mut expired_ms = None;
    for sequence in 1..=end {
        let stored = journal.get(Sequence(sequence)).await.unwrap().unwrap();
        let events = Commit::read(&stored.payload).unwrap().events;
        let expiry = |event: &&StoredEvent| matches!(event.event.body, EventBody::Expired(_));
        expired_ms = expired_ms.or(events.iter().find(expiry).map(|event| event.event.at_ms));
    }
    assert!(
        expired_ms.is_some_and(|at_ms| at_ms < flood_end_ms),
        "a deadline waited for the commands to end"
    );
}

#[tokio::test]
async fn an_account_fills_no_more_than_its_share_of_the_channel() {
    let host = host(&MemoryJournal::default());
    with_cap(&host, 100).await;
    // nothing here lets the writer run before all have been handed over
    let mut flood: Vec<_> = (0..CHANNEL_SHARE_MAX)
        .map(|_| host.reserve(payer().reserve(1)))
        .collect();
    for reserve in &mut flood {
        assert!(futures::poll!(reserve).is_pending());
    }
    let mut further = host.reserve(payer().reserve(1));
    match futures::poll!(&mut further) {
        Poll::Ready(Err(CommandError::Unavailable { .. })) => {}
        other => panic!("it would make others wait: {other:?}"),
    }
    let other = Payer::new("other", "key");
    let mut other = host.reserve(other.reserve(1));
    assert!(futures::poll!(&mut other).is_pending());
    let unknown = other.await.unwrap_err();
    assert!(matches!(unknown, CommandError::UnknownAccount { .. }));
    for reserve in flood {
        reserve.await.unwrap();
    }
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_needs_no_journal_is_answered_while_an_append_is_tried_again() {
    let journal = MemoryJournal::new();
    let host = host(&journal);
    with_cap(&host, 100).await;
    journal.script([JournalFault::UnknownLost; 6]);
    let first = tokio::spawn({
        let host = Arc::clone(&host);
        async move { granted(&host, 1).await }
    });
    // its sixth try was at 620 ms, and the next is at 1,260
    tokio::time::sleep(Duration::from_millis(700)).await;
    let begun = tokio::time::Instant::now();
    let late = Reserve {
        deadline_ms: 0,
        ..payer().reserve(1)
    };
    let refused = host.reserve(late).await.unwrap_err();
    assert!(matches!(refused, CommandError::Invalid { .. }));
    assert!(begun.elapsed() < Duration::from_millis(100));
    first.await.unwrap();
    host.stop().await;
    verified(&journal).await;
}
