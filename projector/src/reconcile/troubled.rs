//! Reconciling over a ledger of two partitions that answers as the test says: what one of them, a
//! neuron's clock, or a lost snapshot may not do to the rest.

use std::{
    collections::BTreeSet,
    sync::{Mutex, atomic::AtomicBool, atomic::Ordering},
};

use seatbelt_ledger::{
    account::Account,
    api::{
        Admin, AdminOutcome, Answer, Read, Release, Reserve, ReserveOutcome, Resize, Resolution,
        Standing,
    },
};
use seatbelt_schemas::{
    ids::{AccountId, KeyId},
    meter::Amounts,
    position::Position,
};
use tokio::sync::watch;

use super::{
    tests::{MemoryUsage, until, usage_event},
    *,
};
use crate::store::memory::MemorySnapshots;

/// Takes every settle, unless its partition is in trouble.
struct Scripted {
    partitions: Partitions,
    troubled: AtomicBool,
    settled: Mutex<BTreeSet<ReservationId>>,
    turned_away: watch::Sender<usize>,
}

const TROUBLED: Partition = Partition(0);

impl Ledger for Scripted {
    fn settle(&self, command: Settle, _: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        async move {
            let is_troubled = self.partitions.of(&command.account) == TROUBLED;
            if is_troubled && self.troubled.load(Ordering::SeqCst) {
                self.turned_away.send_modify(|count| *count += 1);
                return Err(CommandError::unavailable("in trouble"));
            }
            let mut settled = self.settled.lock().unwrap();
            let position = Position(settled.len() as u64);
            if !settled.insert(command.reservation) {
                let reservation = command.reservation;
                return Err(CommandError::AlreadyResolved {
                    reservation,
                    position,
                });
            }
            let amounts = Amounts::zero();
            Ok(Resolution { position, amounts })
        }
        .boxed()
    }

    fn reserve(&self, _: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        unreachable!("only settles")
    }

    fn resize(&self, _: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        unreachable!("only settles")
    }

    fn release(&self, _: Release) -> BoxFuture<'_, Answer<Resolution>> {
        unreachable!("only settles")
    }

    fn read(&self, _: Read) -> BoxFuture<'_, Answer<Standing>> {
        unreachable!("only settles")
    }

    fn admin(&self, _: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        unreachable!("only settles")
    }
}

struct World {
    ledger: Arc<Scripted>,
    snapshots: MemorySnapshots,
    usage: MemoryUsage,
    grace: Duration,
}

fn partitions() -> Partitions {
    Partitions::try_from(2).unwrap()
}

/// An account of a partition.
fn account_of(partition: Partition) -> AccountId {
    (0..u64::MAX)
        .map(|number| AccountId::new(format!("acct-{number}")).unwrap())
        .find(|account| partitions().of(account) == partition)
        .unwrap()
}

impl World {
    fn new(grace: Duration) -> Self {
        let ledger = Scripted {
            partitions: partitions(),
            troubled: AtomicBool::new(false),
            settled: Mutex::default(),
            turned_away: watch::Sender::new(0),
        };
        Self {
            ledger: Arc::new(ledger),
            snapshots: MemorySnapshots::default(),
            usage: MemoryUsage::default(),
            grace,
        }
    }

    /// A neuron of that clock reports a request of an account in the partition.
    fn report(&self, partition: Partition, number: u128, at_ms: u64) -> ReservationId {
        let reservation = ReservationId::from_parts(now_ms(), number);
        let mut event = usage_event(
            &reservation,
            account_of(partition),
            KeyId::new("k").unwrap(),
        );
        event.at_ms = at_ms;
        self.usage.push(event);
        reservation
    }

    fn has_settled(&self, reservation: ReservationId) -> bool {
        self.ledger.settled.lock().unwrap().contains(&reservation)
    }

    /// Waits for all of them, with time paused: an hour of it passes at once.
    async fn settles(&self, all: &[ReservationId]) {
        let waited = async {
            while !all.iter().all(|one| self.has_settled(*one)) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let hour = Duration::from_secs(3600);
        tokio::time::timeout(hour, waited).await.expect("settled");
    }

    fn start(&self) -> CancellationToken {
        let stop = CancellationToken::new();
        let parts = Reconcile {
            usage: Arc::new(self.usage.clone()),
            snapshots: Arc::new(self.snapshots.clone()),
            partitions: partitions(),
            ledger: Arc::<Scripted>::clone(&self.ledger),
            grace: self.grace,
        };
        tokio::spawn(reconcile(parts, stop.clone()));
        stop
    }

    fn mark(&self) -> u64 {
        let value = self.snapshots.peek(RECONCILE_KEY);
        value.map_or(0, |value| {
            wire::decode::<Mark>("mark", &value).unwrap().sequence
        })
    }
}

#[tokio::test]
async fn a_partition_in_trouble_does_not_stop_the_others() {
    let world = World::new(Duration::ZERO);
    world.ledger.troubled.store(true, Ordering::SeqCst);
    let waits = world.report(TROUBLED, 1, now_ms());
    let others: Vec<_> = (2..30)
        .map(|number| world.report(Partition(1), number, now_ms()))
        .collect();
    let _stop = world.start().drop_guard();
    until(|| others.iter().all(|other| world.has_settled(*other))).await;
    until(|| *world.ledger.turned_away.borrow() > 0).await;
    assert!(!world.has_settled(waits));
    assert_eq!(world.mark(), 0, "the one that waits is not passed over");
    world.ledger.troubled.store(false, Ordering::SeqCst);
    until(|| world.has_settled(waits)).await;
    until(|| world.mark() == 29).await;
}

#[tokio::test]
async fn a_mark_before_what_waits_brings_it_back_after_a_restart() {
    let world = World::new(Duration::ZERO);
    world.ledger.troubled.store(true, Ordering::SeqCst);
    let done = world.report(Partition(1), 1, now_ms());
    let waits = world.report(TROUBLED, 2, now_ms());
    let also_done = world.report(Partition(1), 3, now_ms());
    let stop = world.start();
    until(|| world.has_settled(done) && world.has_settled(also_done)).await;
    until(|| world.mark() == 1).await;
    stop.cancel();
    world.ledger.troubled.store(false, Ordering::SeqCst);
    let _stop = world.start().drop_guard();
    until(|| world.has_settled(waits)).await;
}

#[tokio::test(start_paused = true)]
async fn a_neuron_whose_clock_is_ahead_costs_no_more_than_the_grace() {
    let grace = Duration::from_secs(30);
    let world = World::new(grace);
    let ahead_ms = now_ms() + 3_600_000;
    let all: Vec<_> = (0..20)
        .map(|number| world.report(Partition(1), number, ahead_ms))
        .collect();
    let begun = Instant::now();
    let _stop = world.start().drop_guard();
    world.settles(&all).await;
    let took = begun.elapsed();
    assert!(took >= grace, "left to their gateway: {took:?}");
    assert!(took < grace * 2, "one grace for all: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_neuron_whose_clock_is_behind_leaves_the_gateway_its_time() {
    let grace = Duration::from_secs(30);
    let world = World::new(grace);
    let one = world.report(Partition(1), 1, 5);
    let begun = Instant::now();
    let _stop = world.start().drop_guard();
    world.settles(&[one]).await;
    assert!(begun.elapsed() >= grace, "{:?}", begun.elapsed());
}

/// The record of a partition that vouches for everything until `checked_at_ms`.
async fn vouch(world: &World, partition: Partition, checked_at_ms: u64) {
    let record = PartitionRecord {
        checked_at_ms,
        ..crate::seat::first(partition)
    };
    let key = Names::snapshot_partition_key(partition);
    let written = world.snapshots.write(&key, Revision(0), record.encode());
    written.await.unwrap();
}

#[tokio::test]
async fn an_account_without_a_snapshot_is_asked_for_at_the_ledger() {
    let world = World::new(Duration::ZERO);
    vouch(&world, Partition(1), now_ms() + 3_600_000).await;
    let one = world.report(Partition(1), 1, now_ms());
    let _stop = world.start().drop_guard();
    until(|| world.has_settled(one)).await;
}

#[tokio::test]
async fn a_snapshot_older_than_the_reservation_proves_nothing() {
    let world = World::new(Duration::ZERO);
    // the neuron's clock is behind: its event is older than the snapshot
    vouch(&world, Partition(1), now_ms() - 1000).await;
    let account = account_of(Partition(1));
    let empty = AccountSnapshot::encode(&account, Position(1), 1, &Account::default());
    let key = Names::snapshot_account_key(&account);
    let written = world.snapshots.write(&key, Revision(0), empty);
    written.await.unwrap();
    let one = world.report(Partition(1), 1, 5);
    let _stop = world.start().drop_guard();
    until(|| world.has_settled(one)).await;
}
