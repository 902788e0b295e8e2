//! Reserves over NATS that their callers gave up: whatever was sent, and how often, nothing stays held.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the place"
)]

use std::{sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use seatbelt_bus::connect;
use seatbelt_ledger::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Ledger, Read, Release, Reserve, ReserveOutcome, Resize,
        Resolution, Settle, Standing,
    },
    host::LedgerHost,
    journal::memory::MemoryJournal,
    remote::{
        LedgerService, RemoteLedger,
        post::{Listens, Post as _},
    },
    testing::{Payer, balance, one_partition},
};
use seatbelt_schemas::{
    cap::CapSpec, command::CommandError, ids::ReservationId, meter::Meter, names::Names,
    position::Partition, scope::Scope,
};
use seatbelt_tests::nats::{PATIENCE, TestNats};
use tokio::{sync::watch, time::timeout};

/// A ledger that counts the reserves that it was asked for.
struct Counting {
    ledger: Arc<LedgerHost>,
    reserves: watch::Sender<usize>,
}

impl Ledger for Counting {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let mut answer = self.ledger.reserve(command);
        async move {
            // counted once the writer has it: its channel keeps the order
            let first = futures::poll!(&mut answer);
            self.reserves.send_modify(|count| *count += 1);
            match first {
                Poll::Ready(answer) => answer,
                Poll::Pending => answer.await,
            }
        }
        .boxed()
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        self.ledger.resize(command)
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        self.ledger.settle(command, ack)
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        self.ledger.release(command)
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.ledger.read(query)
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        self.ledger.admin(command)
    }
}

/// A host of one account that may have one request open, and the way to it over NATS.
struct World {
    payer: Payer,
    ledger: Arc<Counting>,
    remote: RemoteLedger,
    _service: LedgerService,
    nats: TestNats,
}

impl World {
    async fn start() -> Self {
        let nats = TestNats::start().await;
        let ledger = LedgerHost::start(&one_partition("test"), vec![MemoryJournal::new()]);
        ledger.ready().await.unwrap();
        let payer = Payer::new("acct", "k");
        let one = CapSpec {
            meter: Meter::Concurrency,
            ..balance("one", Scope::Account, 1)
        };
        for change in payer.changes(one) {
            ledger.admin(payer.admin(change)).await.unwrap();
        }
        let reserves = watch::Sender::new(0);
        let ledger = Arc::new(Counting { ledger, reserves });
        let (names, partition) = (Names::default(), Partition(0));
        let hosted: Arc<dyn Ledger> = Arc::<Counting>::clone(&ledger);
        let service =
            LedgerService::start(&nats.connect("host").await, &names, partition, hosted).await;
        let gateway = nats.connect("gateway").await;
        Self {
            payer,
            ledger,
            remote: RemoteLedger::new(&gateway, &names, partition, Duration::from_secs(2)),
            _service: service.unwrap(),
            nats,
        }
    }

    /// Gives a reservation back over NATS, behind whatever its caller gives back by itself.
    async fn release(&self, reservation: ReservationId) -> Answer<Resolution> {
        self.remote.release(self.payer.release(reservation)).await
    }

    async fn open(&self) -> u64 {
        let account = self.payer.account.clone();
        let read = self.remote.read(Read {
            account,
            key: None,
            run: None,
            reservation: None,
        });
        read.await.unwrap().open
    }
}

#[tokio::test]
async fn a_reserve_sent_twice_whose_caller_goes_away_holds_nothing_when_room_comes() {
    let world = World::start().await;
    let held = match world.ledger.ledger.reserve(world.payer.reserve(1)).await {
        Ok(ReserveOutcome::Reserved(grant)) => grant.reservation,
        other => panic!("{other:?}"),
    };
    let command = Reserve {
        wait_ms: 10_000,
        ..world.payer.reserve(1)
    };
    let (given_up, remote) = (ReservationId::from(command.id), world.remote.clone());
    let call = tokio::spawn(async move { remote.reserve(command).await });
    let mut reserves = world.ledger.reserves.subscribe();
    let twice = timeout(PATIENCE, reserves.wait_for(|count| *count >= 2)).await;
    drop(twice.expect("sent twice").unwrap());
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let unknown = world.release(given_up).await;
    assert!(
        matches!(unknown, Err(CommandError::UnknownReservation { .. })),
        "{unknown:?}"
    );
    world.release(held).await.expect("room comes");
    assert_eq!(world.open().await, 0, "nobody holds anything");
}

/// As after a kill of the process that asked: its reserve waits with the writer, and its connection is gone.
#[tokio::test]
async fn a_hold_that_is_granted_to_a_process_that_died_is_taken_back() {
    let world = World::start().await;
    let held = world.payer.reserve(1);
    world.ledger.ledger.reserve(held.clone()).await.unwrap();
    let command = Reserve {
        wait_ms: 30_000,
        ..world.payer.reserve(1)
    };
    let (url, asked) = (world.nats.server.url(), command.clone());
    let (dies, dead) = tokio::sync::oneshot::channel();
    // a runtime of its own: what it ends with is not run any more, as in a process that is killed
    let process = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let nats = connect(&url, "dies", PATIENCE).await.unwrap();
            let _alive = nats.client().subscribe("alive").await.unwrap();
            let remote = RemoteLedger::new(&nats, &Names::default(), Partition(0), PATIENCE);
            tokio::select! {
                answer = remote.reserve(asked) => panic!("there is no room: {answer:?}"),
                dead = dead => dead.unwrap(),
            }
        });
    });
    let mut reserves = world.ledger.reserves.subscribe();
    let arrived = timeout(PATIENCE, reserves.wait_for(|count| *count >= 1)).await;
    drop(arrived.expect("it waits").unwrap());
    dies.send(()).unwrap();
    tokio::task::spawn_blocking(|| process.join().unwrap())
        .await
        .unwrap();
    let watch = world.nats.connect("watch").await;
    let gone = timeout(PATIENCE, async {
        while watch.reply_to_listener("alive", Bytes::new()).await != Listens::Nobody {}
    });
    gone.await.expect("the server knows that it is gone");
    world.release(held.id.into()).await.expect("room comes");
    let nobody = timeout(PATIENCE, async {
        while world.open().await > 0 {
            tokio::task::yield_now().await;
        }
    });
    nobody.await.expect("nobody holds anything");
    let again = world.remote.reserve(command).await;
    assert!(
        matches!(again, Err(CommandError::AlreadyResolved { .. })),
        "whoever asks again is told the truth: {again:?}"
    );
}

#[tokio::test]
async fn a_reserve_that_arrives_after_it_was_given_up_holds_nothing() {
    let world = World::start().await;
    let late = world.payer.reserve(1);
    let unknown = world.release(late.id.into()).await;
    assert!(
        matches!(unknown, Err(CommandError::UnknownReservation { .. })),
        "{unknown:?}"
    );
    let answer = world.remote.reserve(late).await;
    assert!(
        matches!(&answer, Err(CommandError::Unavailable { detail }) if detail.contains("went away")),
        "{answer:?}"
    );
    assert_eq!(world.open().await, 0, "nobody holds anything");
}

#[tokio::test]
async fn a_reserve_that_arrives_after_it_has_ended_is_told_what_became_of_it() {
    let world = World::start().await;
    let command = world.payer.reserve(1);
    world.remote.reserve(command.clone()).await.unwrap();
    world.release(command.id.into()).await.unwrap();
    let again = world.remote.reserve(command).await;
    assert!(
        matches!(again, Err(CommandError::AlreadyResolved { .. })),
        "{again:?}"
    );
    assert_eq!(world.open().await, 0, "nobody holds anything");
}
