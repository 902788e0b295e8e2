//! What a host says at its ends: once another has taken over and it does not know it, of reservations whose
//! end has left its memory, and when it is told to stop while the journal cannot be read.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use seatbelt_ledger::{
    api::{Ack, Answer, CommandError, Exchange, Ledger, Read, Reserve, ReserveOutcome, Resize},
    host::{HostConfig, HostedPartition, PartitionHandle, PartitionStatus, bounds::Bounds, now_ms},
    journal::{AppendError, Journal, ReadError, Sequence, Stored, memory::MemoryJournal},
    testing::{Payer, balance, command_id, one_partition},
};
use seatbelt_schemas::{
    command::{Change, Fate},
    event::EventBody,
    ids::{Actor, CommandId, ReservationId},
    meter::Amounts,
    position::{Partition, Position},
    scope::Scope,
};

/// A journal that cannot be read while it is shut.
#[derive(Clone, Default)]
struct Shut {
    journal: MemoryJournal,
    shut: Arc<AtomicBool>,
}

impl Shut {
    fn reads(&self, at: Sequence) -> Result<(), ReadError> {
        if self.shut.load(Ordering::Relaxed) {
            let source = "shut".into();
            return Err(ReadError::Unreachable { at, source });
        }
        Ok(())
    }
}

impl Journal for Shut {
    async fn append(&self, expected: Sequence, payload: Bytes) -> Result<Sequence, AppendError> {
        self.journal.append(expected, payload).await
    }

    async fn end(&self) -> Result<Sequence, ReadError> {
        self.reads(Sequence(0))?;
        self.journal.end().await
    }

    async fn server_ms(&self) -> Result<Option<u64>, ReadError> {
        self.reads(Sequence(0))?;
        Ok(Some(now_ms()))
    }

    async fn get(&self, sequence: Sequence) -> Result<Option<Stored>, ReadError> {
        self.reads(sequence)?;
        self.journal.get(sequence).await
    }

    fn replay(&self, after: Sequence, to: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        match self.reads(after) {
            Ok(()) => self.journal.replay(after, to),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn follow(&self, after: Sequence) -> BoxStream<'_, Result<Stored, ReadError>> {
        self.journal.follow(after)
    }
}

fn payer() -> Payer {
    Payer::new("acct", "key")
}

/// A host that keeps the outcome of one command.
fn start(journal: &Shut) -> HostedPartition {
    let config = HostConfig {
        expiry_grace_ms: 0,
        ..one_partition("test")
    };
    let bounds = Bounds {
        hot_max: 1,
        ..Bounds::default()
    };
    HostedPartition::start_within(&config, Partition(0), journal.clone(), None, &bounds)
}

async fn open(handle: &PartitionHandle) {
    handle.ready().await.unwrap();
    for change in payer().changes(balance("cap", Scope::Account, 1_000)) {
        handle.admin(payer().admin(change)).await.unwrap();
    }
}

async fn granted(handle: &PartitionHandle, command: Reserve) -> ReservationId {
    match handle.reserve(command).await.unwrap() {
        ReserveOutcome::Reserved(grant) => grant.reservation,
        ReserveOutcome::Refused(refusal) => panic!("refused: {refusal:?}"),
    }
}

fn resize(reservation: ReservationId) -> Resize {
    Resize {
        id: command_id(),
        account: payer().account,
        reservation,
        input_tokens: 1,
        output_tokens: 2,
        actor: Actor::operator("test"),
    }
}

/// Where the journal says that a reservation expired.
async fn expired(journal: &Shut, reservation: ReservationId) -> Position {
    let mut commits = journal.journal.follow(Sequence(0));
    loop {
        let stored = commits.next().await.unwrap().unwrap();
        let commit = seatbelt_schemas::commit::Commit::decode(&stored.payload).unwrap();
        for stored in commit.events {
            match stored.event.body {
                EventBody::Expired(data) if data.reservation == reservation => {
                    return stored.event.position;
                }
                _ => {}
            }
        }
    }
}

fn ended<T>(answer: &Answer<T>) -> Option<Position> {
    match answer {
        Err(CommandError::AlreadyResolved { position, .. }) => Some(*position),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_for_an_expired_reservation_is_told_where_that_ended() {
    let journal = Shut::default();
    let host = start(&journal);
    let handle = host.handle();
    open(handle).await;
    let brief = Reserve {
        deadline_ms: now_ms() + 100,
        ..payer().reserve(5)
    };
    let reservation = granted(handle, brief).await;
    let position = expired(&journal, reservation).await;
    // other commands have pushed it out of what is hot
    granted(handle, payer().reserve(1)).await;
    granted(handle, payer().reserve(1)).await;
    let released = handle.release(payer().release(reservation)).await;
    assert_eq!(ended(&released), Some(position));
    let resized = handle.resize(resize(reservation)).await;
    assert_eq!(ended(&resized), Some(position));
    host.stop().await;
}

/// Who asks later learns what was charged, however long ago that was.
#[tokio::test(start_paused = true)]
async fn what_became_of_a_reservation_is_told_also_from_the_journal() {
    let journal = Shut::default();
    let host = start(&journal);
    let handle = host.handle();
    open(handle).await;
    let settled = granted(handle, payer().reserve(5)).await;
    let charge = handle
        .settle(payer().settle(settled, 3), Ack::Durable)
        .await
        .unwrap();
    let released = granted(handle, payer().reserve(5)).await;
    let given_back = handle.release(payer().release(released)).await.unwrap();
    let replaced = granted(handle, payer().reserve(5)).await;
    let by = payer().reserve(7);
    let exchange = Exchange {
        release: replaced,
        reserve: by.clone(),
    };
    handle.exchange(exchange).await.unwrap();
    let refused = payer().reserve(100_000);
    let Ok(ReserveOutcome::Refused(refusal)) = handle.reserve(refused.clone()).await else {
        panic!("it does not fit");
    };
    // other commands have pushed all of them out of what is hot
    granted(handle, payer().reserve(1)).await;
    granted(handle, payer().reserve(1)).await;
    let fate = async |reservation| {
        let read = Read {
            account: payer().account,
            key: None,
            run: None,
            reservation: Some(reservation),
        };
        handle.read(read).await.unwrap().fate.unwrap()
    };
    let ended = Fate::Ended {
        position: charge.position,
        charge: charge.amounts,
    };
    assert_eq!(fate(settled).await, ended);
    let nothing = Fate::Ended {
        position: given_back.position,
        charge: Amounts::zero(),
    };
    assert_eq!(fate(released).await, nothing);
    let told = fate(replaced).await;
    let by = by.id.into();
    assert!(
        matches!(told, Fate::Replaced { by: told, .. } if told == by),
        "{told:?}"
    );
    assert_eq!(fate(by).await, Fate::Open);
    let position = refusal.position;
    assert_eq!(fate(refused.id.into()).await, Fate::Refused { position });
    assert_eq!(fate(command_id().into()).await, Fate::Unknown);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_overtaken_denies_nothing() {
    let journal = Shut::default();
    let first = start(&journal);
    first.handle().ready().await.unwrap();
    let second = start(&journal);
    open(second.handle()).await;
    let reservation = granted(second.handle(), payer().reserve(5)).await;
    let told = first.handle().release(payer().release(reservation)).await;
    assert!(
        matches!(told, Err(CommandError::Unavailable { .. })),
        "the account is there: {told:?}"
    );
    first.handle().ended().await;
    assert!(matches!(
        first.handle().status(),
        PartitionStatus::Stopped(_)
    ));
    let released = second.handle().release(payer().release(reservation)).await;
    assert!(released.is_ok(), "{released:?}");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_was_overtaken_finds_out_though_nobody_asks() {
    let journal = Shut::default();
    let first = start(&journal);
    first.handle().ready().await.unwrap();
    let second = start(&journal);
    second.handle().ready().await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), first.handle().ended());
    assert!(ended.await.is_ok(), "it takes itself for the writer");
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_host_finds_out_that_its_journal_shrank_though_nobody_asks() {
    let journal = Shut::default();
    let host = start(&journal);
    host.handle().ready().await.unwrap();
    open(host.handle()).await;
    journal.journal.cut(Sequence(1));
    let unknown = Payer::new("acct", "other").reserve(1);
    let answer = host.handle().reserve(unknown).await;
    assert!(
        matches!(answer, Err(CommandError::Unavailable { .. })),
        "{answer:?}"
    );
    let ended = tokio::time::timeout(Duration::from_secs(8), host.handle().ended());
    let reason = ended.await.unwrap_or_default();
    assert!(reason.contains("shorter"), "{reason:?}");
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_denied_once_the_journal_says_so() {
    let journal = Shut::default();
    let host = start(&journal);
    let handle = host.handle();
    handle.ready().await.unwrap();
    let unknown = handle.admin(payer().admin(Change::RemoveCap {
        cap: balance("cap", Scope::Account, 1).cap,
    }));
    let unknown = unknown.await;
    assert!(
        matches!(unknown, Err(CommandError::UnknownAccount { .. })),
        "{unknown:?}"
    );
    open(handle).await;
    let reserve = Payer::new("acct", "other").reserve(1);
    let unknown = handle.reserve(reserve.clone()).await;
    assert!(
        matches!(unknown, Err(CommandError::UnknownKey { .. })),
        "{unknown:?}"
    );
    journal.shut.store(true, Ordering::Relaxed);
    let unknown = handle.reserve(reserve).await;
    assert!(
        matches!(unknown, Err(CommandError::Unavailable { .. })),
        "{unknown:?}"
    );
    journal.shut.store(false, Ordering::Relaxed);
    host.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_though_nothing_can_be_looked_up() {
    let journal = Shut::default();
    let bounds = Bounds {
        hot_max: 1,
        fetches_max: 1,
        ..Bounds::default()
    };
    let config = one_partition("test");
    let host = HostedPartition::start_within(&config, Partition(0), journal.clone(), None, &bounds);
    let handle = host.handle();
    open(handle).await;
    let made_ms = now_ms() - 60_000;
    let old = (0..20).map(|number| Reserve {
        id: CommandId::from_parts(made_ms, number),
        ..payer().reserve(1)
    });
    for _ in 0..2 {
        granted(handle, payer().reserve(1)).await;
    }
    journal.shut.store(true, Ordering::Relaxed);
    let asked = futures::future::join_all(old.map(|old| handle.reserve(old)));
    let (answers, stopped) = tokio::join!(asked, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        tokio::time::timeout(Duration::from_secs(20), host.stop()).await
    });
    assert!(stopped.is_ok(), "it does not end");
    for answer in answers {
        let unavailable = matches!(answer, Err(CommandError::Unavailable { .. }));
        assert!(unavailable, "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_hands_over_lets_nobody_wait() {
    let journal = Shut::default();
    let host = HostedPartition::start_within(
        &one_partition("test"),
        Partition(0),
        journal.clone(),
        None,
        &Bounds::default(),
    );
    let handle = host.handle();
    open(handle).await;
    granted(handle, payer().reserve(600)).await;
    let waits = || Reserve {
        wait_ms: 40_000,
        ..payer().reserve(500)
    };
    let begun = tokio::time::Instant::now();
    let mut waiting = handle.reserve(waits());
    assert!(futures::poll!(&mut waiting).is_pending());
    // behind it
    granted(handle, payer().reserve(1)).await;
    assert!(futures::poll!(&mut waiting).is_pending());
    host.hand_over();
    for answer in [waiting.await, handle.reserve(waits()).await] {
        let told = matches!(&answer, Err(CommandError::Unavailable { detail }) if detail.contains("next host"));
        assert!(told, "{answer:?}");
    }
    granted(handle, payer().reserve(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "nobody waited");
    let account = payer().account;
    let standing = handle
        .read(Read {
            account,
            key: None,
            run: None,
            reservation: None,
        })
        .await
        .unwrap();
    assert_eq!((standing.open, standing.caps[0].held), (3, 602));
    host.stop().await;
}
