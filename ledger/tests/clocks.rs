//! Hosts whose clocks are wrong, set or drifting, over a journal whose server has a clock of its own. All
//! under paused time: what takes an hour here takes no time.
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use seatbelt_ledger::{
    api::{Ack, Admin, Ledger, Reserve, ReserveOutcome, Settle},
    host::{HostConfig, LedgerHost, clock::HostClock},
    journal::memory::MemoryJournal,
    testing::{Payer, balance, clock::OwnClock, one_partition},
};
use seatbelt_schemas::{
    cap::CapSpec,
    command::CommandError,
    commit::Commit,
    event::RefusalReason,
    ids::CommandId,
    position::Partition,
    scope::Scope,
    window::{Period, Window},
};
use tokio::time::Instant;

/// Half a minute before February 2026 begins.
const START_MS: u64 = 1_769_903_970_000;
const HOUR_MS: i64 = 3_600_000;
const PATIENCE_MS: u64 = 2_000;
/// How far a host may be from the server, and how far from the server's time an event may be.
const SKEW_MS_MAX: i64 = 5_000;
const NEAR_MS: u64 = 2_500;

/// How far off: an hour ahead and back, and as far as ids of commands may be.
const OFF: [i64; 4] = [HOUR_MS, -HOUR_MS, 55_000, -55_000];

fn payer() -> Payer {
    Payer::new("acct", "key")
}

struct World {
    server: OwnClock,
    journal: MemoryJournal,
    ids: AtomicU64,
}

impl World {
    fn new() -> Self {
        let server = OwnClock::new(START_MS);
        let journal = MemoryJournal::on_clock(HostClock::of(server.clone()));
        Self {
            server,
            journal,
            ids: AtomicU64::new(0),
        }
    }

    fn server_ms(&self) -> u64 {
        HostClock::of(self.server.clone()).wall_ms()
    }

    /// A host whose clock is so far ahead of the server's, and its clock.
    fn host(&self, ahead_ms: i64) -> (Arc<LedgerHost>, OwnClock) {
        let clock = OwnClock::new(self.server_ms());
        clock.set_by(ahead_ms);
        let config = HostConfig {
            expiry_grace_ms: 0,
            clock: HostClock::of(clock.clone()),
            ..one_partition("test")
        };
        let host = LedgerHost::start(&config, vec![self.journal.clone()]);
        (host, clock)
    }

    /// One whose clock is right, with a cap of 100 tokens.
    async fn begun(window: Window) -> (Self, Arc<LedgerHost>, OwnClock) {
        let world = Self::new();
        let (host, clock) = world.host(0);
        host.ready().await.unwrap();
        let cap = CapSpec {
            thresholds: Vec::new(),
            window,
            ..balance("cap", Scope::Account, 100)
        };
        for change in payer().changes(cap) {
            let command = Admin {
                id: world.id(),
                ..payer().admin(change)
            };
            host.admin(command).await.unwrap();
        }
        (world, host, clock)
    }

    fn id(&self) -> CommandId {
        let number = self.ids.fetch_add(1, Ordering::Relaxed);
        CommandId::from_parts(self.server_ms(), u128::from(number))
    }

    fn reserve(&self, tokens: u64) -> Reserve {
        Reserve {
            id: self.id(),
            deadline_ms: self.server_ms() + 600_000,
            ..payer().reserve(tokens)
        }
    }

    async fn spend(&self, host: &LedgerHost, tokens: u64) {
        let outcome = host.reserve(self.reserve(tokens)).await.unwrap();
        let ReserveOutcome::Reserved(grant) = outcome else {
            panic!("refused: {outcome:?}");
        };
        let settle = Settle {
            id: self.id(),
            ..payer().settle(grant.reservation, tokens)
        };
        host.settle(settle, Ack::Durable).await.unwrap();
    }

    /// Asks for 20 tokens and waits for them; what came of it, and how long it took.
    async fn ask(&self, host: &LedgerHost) -> (Result<ReserveOutcome, CommandError>, Duration) {
        let begun = Instant::now();
        let command = Reserve {
            wait_ms: PATIENCE_MS,
            ..self.reserve(20)
        };
        (host.reserve(command).await, begun.elapsed())
    }

    async fn is_refused(&self, host: &LedgerHost) {
        match host.reserve(self.reserve(20)).await.unwrap() {
            ReserveOutcome::Refused(refusal) => assert_eq!(refusal.reason, RefusalReason::Spent),
            ReserveOutcome::Reserved(_) => panic!("the cap was granted twice"),
        }
    }

    /// A host that is off leads nothing: no commit of it is on the journal.
    async fn will_not_lead(&self, ahead_ms: i64) {
        let before = self.journal.commits().len();
        let (host, _) = self.host(ahead_ms);
        let refused = host.ready().await.unwrap_err().to_string();
        assert!(refused.contains("clock of nats-server"), "{refused}");
        assert!(refused.contains("chrony"), "{refused}");
        assert_eq!(self.journal.commits().len(), before);
        host.stop().await;
    }

    /// The time of the last event.
    fn last_ms(&self) -> u64 {
        let commits = self.journal.commits();
        Commit::decode(commits.last().unwrap()).unwrap().at_ms
    }

    fn time_is_near(&self) {
        let (last_ms, server_ms) = (self.last_ms(), self.server_ms());
        let ahead_ms = last_ms.saturating_sub(server_ms);
        assert!(ahead_ms <= NEAR_MS, "an event is {ahead_ms} ms ahead");
    }
}

fn day() -> Window {
    Window::Rolling { seconds: 86_400 }
}

fn half_an_hour() -> Window {
    Window::Rolling { seconds: 1_800 }
}

fn month() -> Window {
    let period = Period::Month;
    Window::Calendar { period }
}

fn after(patience: Duration) -> bool {
    let ms = u64::try_from(patience.as_millis()).unwrap();
    (PATIENCE_MS..=PATIENCE_MS + 100).contains(&ms)
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_off_takes_nothing_over_and_fences_nobody() {
    for ahead_ms in OFF {
        let (world, leader, _) = World::begun(half_an_hour()).await;
        world.spend(&leader, 90).await;
        world.will_not_lead(ahead_ms).await;
        // nobody was fenced, and no window moved
        world.is_refused(&leader).await;
        world.spend(&leader, 10).await;
        leader.stop().await;
        world.will_not_lead(ahead_ms).await;
        let (next, _) = world.host(0);
        next.ready().await.unwrap();
        world.is_refused(&next).await;
        world.time_is_near();
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_moves_no_window_and_ends_the_reign() {
    for ahead_ms in OFF {
        let (world, leader, clock) = World::begun(half_an_hour()).await;
        world.spend(&leader, 90).await;
        clock.set_by(ahead_ms);
        world.is_refused(&leader).await;
        world.time_is_near();
        let handle = leader.partition(Partition(0));
        let begun = Instant::now();
        let reason = handle.ended().await;
        assert!(begun.elapsed() < Duration::from_secs(1), "looked at once");
        assert!(reason.contains("clock of nats-server"), "{reason}");
        let off_ms = handle.clock_offset_ms().unwrap();
        assert!((off_ms - ahead_ms).abs() <= 1, "{off_ms}");
        // whoever comes next goes on at once
        let (next, _) = world.host(0);
        next.ready().await.unwrap();
        world.is_refused(&next).await;
        world.spend(&next, 10).await;
        world.time_is_near();
    }
}

#[tokio::test(start_paused = true)]
async fn patience_is_kept_whatever_is_set() {
    for ahead_ms in OFF.into_iter().chain([SKEW_MS_MAX - 1, 1 - SKEW_MS_MAX]) {
        let (world, leader, clock) = World::begun(day()).await;
        let holder = leader.reserve(world.reserve(90)).await.unwrap();
        assert!(matches!(holder, ReserveOutcome::Reserved(_)));
        let setting = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            clock.set_by(ahead_ms);
        };
        let ((answer, took), ()) = tokio::join!(world.ask(&leader), setting);
        match answer {
            // the reign ended under it: its caller goes to whoever leads next
            Err(_) => assert!(took < Duration::from_secs(1), "{took:?}"),
            Ok(ReserveOutcome::Refused(refusal)) => {
                assert!(ahead_ms.abs() < SKEW_MS_MAX);
                assert_eq!(refusal.reason, RefusalReason::Held);
                assert!(after(took), "{took:?}");
            }
            Ok(ReserveOutcome::Reserved(grant)) => panic!("held twice: {grant:?}"),
        }
        leader.stop().await;
        let (next, _) = world.host(0);
        next.ready().await.unwrap();
        let (answer, took) = world.ask(&next).await;
        assert!(matches!(answer, Ok(ReserveOutcome::Refused(_))));
        assert!(after(took), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_month_ends_once_and_when_the_server_says_so() {
    let (world, leader, clock) = World::begun(month()).await;
    world.spend(&leader, 90).await;
    clock.set_by(HOUR_MS);
    world.is_refused(&leader).await;
    leader.partition(Partition(0)).ended().await;
    world.will_not_lead(HOUR_MS).await;
    let (second, _) = world.host(0);
    second.ready().await.unwrap();
    world.is_refused(&second).await;
    // it crosses the month's end while it leads
    tokio::time::sleep(Duration::from_secs(31)).await;
    world.spend(&second, 90).await;
    second.stop().await;
    // an hour back would be the month before
    world.will_not_lead(-HOUR_MS).await;
    let (third, _) = world.host(-SKEW_MS_MAX + 1);
    third.ready().await.unwrap();
    world.is_refused(&third).await;
    world.time_is_near();
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_goes_on_and_keeps_patience() {
    let (world, leader, clock) = World::begun(day()).await;
    let holder = leader.reserve(world.reserve(90)).await.unwrap();
    assert!(matches!(holder, ReserveOutcome::Reserved(_)));
    // its monotonic clock stood still, as everything on it
    let slept = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for clock in [&world.server, &clock] {
            clock.set_by(10_000);
        }
    };
    let ((answer, took), ()) = tokio::join!(world.ask(&leader), slept);
    assert!(matches!(answer, Ok(ReserveOutcome::Refused(_))));
    assert!(after(took), "{took:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    world.spend(&leader, 10).await;
    let (last_ms, server_ms) = (world.last_ms(), world.server_ms());
    assert!(
        last_ms.abs_diff(server_ms) <= 100,
        "its time is right again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_frozen_goes_on_where_time_is() {
    let (world, leader, _) = World::begun(day()).await;
    let short = Reserve {
        deadline_ms: world.server_ms() + 5_000,
        ..world.reserve(90)
    };
    let holder = leader.reserve(short).await.unwrap();
    assert!(matches!(holder, ReserveOutcome::Reserved(_)));
    // all clocks went on, and nobody ran
    tokio::time::advance(Duration::from_secs(10)).await;
    let (answer, took) = world.ask(&leader).await;
    assert!(matches!(answer, Ok(ReserveOutcome::Refused(_))), "charged");
    assert!(took < Duration::from_millis(100), "{took:?}");
    let (next, _) = world.host(0);
    next.ready().await.unwrap();
    world.spend(&next, 10).await;
    assert!(world.last_ms().abs_diff(world.server_ms()) <= 100);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_drifts_leads_until_it_is_too_far_off() {
    let (world, leader, clock) = World::begun(day()).await;
    clock.drift(100_000);
    let begun = Instant::now();
    let handle = leader.partition(Partition(0));
    let mut ended = Box::pin(handle.ended());
    loop {
        tokio::select! {
            reason = &mut ended => {
                assert!(reason.contains("ahead of the clock of nats-server"), "{reason}");
                break;
            }
            () = tokio::time::sleep(Duration::from_millis(700)) => {
                let _ = leader.reserve(world.reserve(1)).await;
                // half a second more may have come about since the last look
                assert!(world.last_ms() <= world.server_ms() + NEAR_MS + 500);
            }
        }
    }
    let took = begun.elapsed().as_secs();
    assert!((50..=56).contains(&took), "{took} s");
}
