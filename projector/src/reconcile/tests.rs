//! Reconciling against a real writer and a real projector over a journal in memory.

use futures::{FutureExt, future::BoxFuture, stream};
use seatbelt_ledger::{
    api::{Admin, Reserve, ReserveOutcome},
    host::{HostConfig, LedgerHost},
    journal::memory::MemoryJournal,
};
use seatbelt_schemas::{
    command::Change,
    commit::Commit,
    event::{EventBody, KeyIssued, OnShort, OnUnknown},
    ids::{AccountId, KeyId, LedgerId, NeuronId},
    position::Partition,
    usage::NeuronUsage,
};
use tokio::{sync::watch, task::JoinHandle};

use super::*;
use crate::{
    ProjectorParts, run,
    store::memory::{MemoryFeed, MemorySnapshots},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Usage events in memory.
#[derive(Clone)]
pub(super) struct MemoryUsage(watch::Sender<Vec<UsageEvent>>);

impl Default for MemoryUsage {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl MemoryUsage {
    pub(super) fn push(&self, event: UsageEvent) {
        self.0.send_modify(|events| events.push(event));
    }
}

impl UsageStore for MemoryUsage {
    fn end(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        async { Ok(self.0.borrow().len() as u64) }.boxed()
    }

    fn follow(&self, after: u64) -> BoxStream<'_, Result<(u64, UsageEvent), StoreError>> {
        let events = self.0.subscribe();
        stream::unfold((after, events), async |(at, mut events)| {
            let index = usize::try_from(at).unwrap();
            let there = events
                .wait_for(|events| events.len() > index)
                .await
                .unwrap();
            let event = there[index].clone();
            drop(there);
            Some((Ok((at + 1, event)), (at + 1, events)))
        })
        .boxed()
    }
}

/// How long a hold lasts that is to expire: longer than a busy machine takes to ask for it.
const SOON_MS: u64 = 1_000;

struct World {
    journal: MemoryJournal,
    ledger: Arc<LedgerHost>,
    snapshots: MemorySnapshots,
    usage: MemoryUsage,
    stop: CancellationToken,
    projector: JoinHandle<Result<(), crate::ProjectorError>>,
}

fn account() -> AccountId {
    AccountId::new("acct").unwrap()
}

fn key() -> KeyId {
    KeyId::new("key").unwrap()
}

fn command(number: u128) -> CommandId {
    CommandId::from_parts(now_ms(), number)
}

impl World {
    async fn new() -> Self {
        let journal = MemoryJournal::new();
        let config = HostConfig {
            partitions: Partitions::try_from(1).unwrap(),
            ledger: LedgerId::new("test").unwrap(),
            writer: "test".to_owned(),
            expiry_grace_ms: 0,
            accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
            clock: seatbelt_ledger::host::clock::HostClock::machine(),
        };
        let ledger = LedgerHost::start(&config, vec![journal.clone()]);
        ledger.ready().await.unwrap();
        let issued = KeyIssued {
            key: key(),
            team: None,
            secret_sha256: None,
        };
        for (number, change) in [Change::OpenAccount, Change::IssueKey(issued)]
            .into_iter()
            .enumerate()
        {
            let admin = Admin {
                id: command(number as u128),
                account: account(),
                actor: Actor::operator("test"),
                change,
            };
            ledger.admin(admin).await.unwrap();
        }
        let (snapshots, stop) = (MemorySnapshots::default(), CancellationToken::new());
        let parts = ProjectorParts {
            names: Names::default(),
            projector: "p".to_owned(),
            journals: vec![(Partition(0), Arc::new(journal.clone()))],
            snapshots: Arc::new(snapshots.clone()),
            feed: Arc::new(MemoryFeed::default()),
        };
        Self {
            journal,
            ledger,
            snapshots,
            usage: MemoryUsage::default(),
            projector: tokio::spawn(run(parts, stop.clone())),
            stop,
        }
    }

    async fn reserve(&self, number: u128, lasts_ms: u64) -> ReservationId {
        let reserve = Reserve {
            team: None,
            id: command(number),
            account: account(),
            key: key(),
            model: None,
            run: None,
            end_user: None,
            input_tokens: 10,
            output_tokens: 50,
            tool_calls: 0,
            deadline_ms: now_ms() + lasts_ms,
            wait_ms: 0,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
            budget: None,
            within: None,
        };
        match self.ledger.reserve(reserve).await.unwrap() {
            ReserveOutcome::Reserved(grant) => grant.reservation,
            ReserveOutcome::Refused(refusal) => panic!("{refusal:?}"),
        }
    }

    /// A neuron reports.
    fn report(&self, reservation: &dyn ToString) {
        self.usage.push(usage_event(reservation, account(), key()));
    }

    fn start(&self) -> (JoinHandle<()>, CancellationToken) {
        let stop = CancellationToken::new();
        let parts = Reconcile {
            usage: Arc::new(self.usage.clone()),
            snapshots: Arc::new(self.snapshots.clone()),
            partitions: Partitions::try_from(1).unwrap(),
            ledger: Arc::<LedgerHost>::clone(&self.ledger),
            grace: Duration::ZERO,
        };
        (tokio::spawn(reconcile(parts, stop.clone())), stop)
    }

    /// Goes through all usage events there are.
    async fn reconcile(&self) {
        let (task, stop) = self.start();
        until(|| self.place() == self.usage.0.borrow().len() as u64).await;
        stop.cancel();
        task.await.unwrap();
    }

    fn place(&self) -> u64 {
        let value = self.snapshots.peek(RECONCILE_KEY);
        value.map_or(0, |value| {
            wire::decode::<Mark>("mark", &value).unwrap().sequence
        })
    }

    /// Everything of a kind on the journal.
    fn events(&self, kind: &str) -> Vec<EventBody> {
        let commits = self.journal.commits();
        let events = commits
            .iter()
            .flat_map(|payload| Commit::decode(payload).unwrap().events);
        let bodies = events.map(|stored| stored.event.body);
        bodies.filter(|body| body.kind() == kind).collect()
    }

    async fn end(self) {
        self.stop.cancel();
        self.projector.await.unwrap().unwrap();
        self.ledger.stop().await;
    }
}

/// A neuron's report of one of its requests.
pub(super) fn usage_event(
    reservation: &dyn ToString,
    account: AccountId,
    key: KeyId,
) -> UsageEvent {
    UsageEvent {
        v: UsageEvent::VERSION,
        reservation: reservation.to_string(),
        account: Some(account),
        key: Some(key),
        model: None,
        neuron: NeuronId::new("neuron-1").unwrap(),
        device: "cpu".to_owned(),
        usage: NeuronUsage {
            input_tokens: 7,
            cached_input_tokens: 0,
            output_tokens: 5,
        },
        outcome: NeuronOutcome::Aborted,
        queued_ms: 1,
        prefill_ms: 2,
        decode_ms: 3,
        at_ms: now_ms(),
    }
}

pub(super) async fn until(mut is_so: impl FnMut() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited)
        .await
        .expect("it never became so");
}

#[tokio::test]
async fn what_a_dead_gateway_left_open_is_settled_from_the_usage_event() {
    let world = World::new().await;
    let reservation = world.reserve(10, 600_000).await;
    world.report(&reservation);
    world.reconcile().await;
    let settled = world.events("settled");
    let [EventBody::Settled(settled)] = &settled[..] else {
        panic!("{settled:?}")
    };
    assert_eq!(settled.reservation, reservation);
    assert_eq!(
        (
            settled.report.usage.input_tokens,
            settled.report.usage.output_tokens
        ),
        (7, 5)
    );
    assert_eq!(settled.report.source, UsageSource::Neuron);
    assert_eq!(settled.report.upstream, "neuron-1");
    assert_eq!(settled.report.timings.total_ms, 6);
    world.end().await;
}

#[tokio::test]
async fn what_its_gateway_settled_stays_as_it_is() {
    let world = World::new().await;
    let reservation = world.reserve(10, 600_000).await;
    let mut by_gateway = Settle {
        id: command(11),
        account: account(),
        reservation,
        report: report(&{
            world.report(&reservation);
            world.usage.0.borrow()[0].clone()
        }),
        actor: Actor::key(&key()),
    };
    by_gateway.report.upstream = "gateway".to_owned();
    world.ledger.settle(by_gateway, Ack::Durable).await.unwrap();
    world.reconcile().await;
    let settled = world.events("settled");
    let [EventBody::Settled(settled)] = &settled[..] else {
        panic!("{settled:?}")
    };
    assert_eq!(settled.report.upstream, "gateway");
    world.end().await;
}

#[tokio::test]
async fn a_hold_charged_at_its_deadline_is_corrected_to_the_truth() {
    let world = World::new().await;
    let reservation = world.reserve(10, SOON_MS).await;
    until(|| world.events("expired").len() == 1).await;
    world.report(&reservation);
    world.reconcile().await;
    let settled = world.events("settled");
    let [EventBody::Settled(settled)] = &settled[..] else {
        panic!("{settled:?}")
    };
    assert!(settled.late);
    assert_eq!(settled.charge.tokens, 12);
    world.end().await;
}

#[tokio::test]
async fn doing_it_again_or_twice_at_once_settles_nothing_twice() {
    let world = World::new().await;
    for number in 10..20 {
        let reservation = world.reserve(number, 600_000).await;
        world.report(&reservation);
    }
    let ((one, stop_one), (other, stop_other)) = (world.start(), world.start());
    until(|| world.place() == 10).await;
    stop_one.cancel();
    stop_other.cancel();
    one.await.unwrap();
    other.await.unwrap();
    world.snapshots.forget(RECONCILE_KEY);
    world.reconcile().await;
    assert_eq!(world.events("settled").len(), 10);
    world.end().await;
}

/// Somebody who reached a neuron with a reservation that is not his, whether it is open or expired.
#[tokio::test]
async fn a_second_report_lowers_no_charge() {
    let world = World::new().await;
    let (open, expired) = (
        world.reserve(10, 600_000).await,
        world.reserve(11, SOON_MS).await,
    );
    until(|| world.events("expired").len() == 1).await;
    for reservation in [open, expired] {
        world.report(&reservation);
        for (output_tokens, outcome) in
            [(1, NeuronOutcome::Completed), (0, NeuronOutcome::Rejected)]
        {
            let mut second = usage_event(&reservation, account(), key());
            second.neuron = NeuronId::new("neuron-2").unwrap();
            second.usage = NeuronUsage {
                input_tokens: output_tokens,
                cached_input_tokens: 0,
                output_tokens,
            };
            second.outcome = outcome;
            world.usage.push(second);
        }
    }
    world.reconcile().await;
    let settled = world.events("settled");
    let charges = settled.iter().map(|body| match body {
        EventBody::Settled(settled) => (settled.reservation, settled.charge.tokens),
        other => panic!("{other:?}"),
    });
    let charges: Vec<_> = charges.collect();
    assert_eq!(charges.len(), 2, "{charges:?}");
    assert!(charges.contains(&(open, 12)) && charges.contains(&(expired, 12)));
    world.end().await;
}

#[tokio::test]
async fn events_without_a_reservation_are_passed_over() {
    let world = World::new().await;
    world.report(&"request-without-reservation");
    world.report(&ReservationId::from_parts(now_ms(), 99));
    let reservation = world.reserve(10, 600_000).await;
    world.report(&reservation);
    world.reconcile().await;
    assert_eq!(world.events("settled").len(), 1);
    world.end().await;
}
