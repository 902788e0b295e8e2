//! The process that hosts a ledger's writers is killed, stopped, or frozen and woken again, on one
//! nats-server and on three; or the servers are killed one after another: callers in another process
//! never get a wrong answer, and the journal tells one story.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env,
    io::{Read as _, Write as _},
    process::{ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seatbelt_bus::{Layout, Nats, connect, provision};
use seatbelt_ledger::{
    api::{Answer, CommandError, Ledger, Read, Reserve, ReserveOutcome},
    audit::Verifier,
    cluster::ClusterLedger,
    host::HostConfig,
    journal::{Journal, Sequence},
    nats::{ClusterConfig, NatsJournal},
    testing::{Payer, balance},
};
use seatbelt_schemas::{
    commit::Commit,
    event::EventBody,
    ids::ReservationId,
    names::Names,
    position::{Epoch, Partitions},
    scope::Scope,
};
use seatbelt_tests::{
    nats::{PATIENCE, TestCluster, TestNats},
    until,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

/// Tells a child process of this test where its server is.
const SERVER: &str = "SEATBELT_TEST_TAKEOVER_NATS";
/// And how many copies of everything there are.
const REPLICAS: &str = "SEATBELT_TEST_TAKEOVER_REPLICAS";
const HOSTING: &str = "hosting every partition";
/// Accounts, so that every partition has some.
const ACCOUNTS: usize = 12;
/// Longest that a partition may be without a writer after its process was killed.
const TAKEOVER_MAX: Duration = Duration::from_secs(2);

fn partitions() -> Partitions {
    Partitions::try_from(4).unwrap()
}

/// Where the ledger lives.
enum Servers {
    One(Box<TestNats>),
    Three(TestCluster),
}

impl Servers {
    fn url(&self) -> String {
        match self {
            Self::One(server) => server.server.url(),
            Self::Three(cluster) => cluster.url(),
        }
    }

    fn replicas(&self) -> u8 {
        match self {
            Self::One(_) => 1,
            Self::Three(_) => 3,
        }
    }
}

async fn take_part(nats: &Nats, replicas: u8, name: &str) -> Arc<ClusterLedger> {
    let names = Names::default();
    let layout = Layout {
        partitions: partitions(),
        replicas,
    };
    let meta = provision(nats, &names, layout).await.unwrap();
    let host = HostConfig {
        partitions: meta.partitions,
        ledger: meta.ledger,
        writer: name.to_owned(),
        expiry_grace_ms: 1000,
        accounts_max: seatbelt_ledger::writer::WriterConfig::ACCOUNTS_MAX_DEFAULT,
        clock: seatbelt_ledger::host::clock::HostClock::machine(),
    };
    let config = ClusterConfig {
        host,
        names,
        replicas,
        checkpoint: Default::default(),
        owed: Default::default(),
    };
    ClusterLedger::start(nats, config).await.unwrap()
}

/// Not a case of its own: the other process. Hosts until its standard input ends, or it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is started by the cases as a process of its own"]
async fn other_process() -> ExitCode {
    let server = env::var(SERVER).unwrap();
    let nats = connect(&server, "other", PATIENCE).await.unwrap();
    let replicas = env::var(REPLICAS).unwrap().parse().unwrap();
    let ledger = take_part(&nats, replicas, "other").await;
    while ledger.hosted().len() < usize::from(u8::from(partitions())) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    writeln!(std::io::stdout(), "{HOSTING}").unwrap();
    let input = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    input.await.unwrap().unwrap();
    ledger.stop().await;
    ExitCode::SUCCESS
}

async fn start_other(servers: &Servers) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "other_process", "--ignored", "--nocapture"])
        .env(SERVER, servers.url())
        .env(REPLICAS, servers.replicas().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let hosting = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.ends_with(HOSTING) {
                return;
            }
        }
        panic!("the other process ended");
    };
    timeout(PATIENCE, hosting)
        .await
        .expect("the other process hosts");
    // it goes on printing, and must not find the pipe closed
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    child
}

fn signal(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
}

fn payer(number: usize) -> Payer {
    Payer::new(&format!("acct-{number}"), &format!("key-{number}"))
}

async fn open_account(ledger: &ClusterLedger, number: usize) {
    let payer = payer(number);
    for change in payer.changes(balance("cap", Scope::Account, 1000)) {
        let command = payer.admin(change);
        patiently(|| ledger.admin(command.clone())).await.unwrap();
    }
}

/// Asks again while the ledger is unavailable, as clients do that are answered 503; the same command
/// each time. On one server no call needs it.
async fn patiently<T, F: Future<Output = Answer<T>>>(mut call: impl FnMut() -> F) -> Answer<T> {
    let begun = Instant::now();
    loop {
        match call().await {
            Err(CommandError::Unavailable { .. }) if begun.elapsed() < PATIENCE => {}
            answer => return answer,
        }
    }
}

/// Reserves and releases on one account, again and again.
struct Caller {
    ledger: Arc<ClusterLedger>,
    /// Whether a call may have to be made again.
    patient: bool,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicU64>,
}

impl Caller {
    /// Every reservation made, and the longest round.
    async fn run(self, number: usize) -> (Vec<ReservationId>, Duration) {
        let (mut made, mut longest) = (Vec::new(), Duration::ZERO);
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            made.push(self.round(number).await);
            longest = longest.max(begun.elapsed());
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        (made, longest)
    }

    async fn round(&self, number: usize) -> ReservationId {
        // two of these do not fit: a hold that leaked would be refused at once
        let reserve = payer(number).reserve(600);
        let outcome = self.call(|| self.ledger.reserve(reserve.clone())).await;
        let grant = match outcome {
            Ok(ReserveOutcome::Reserved(grant)) => grant,
            // the call before this one was given up after the hold was taken, and so it was given back
            Err(CommandError::AlreadyResolved { reservation, .. }) if self.patient => {
                return reservation;
            }
            other => panic!("refused although nothing is held: {other:?}"),
        };
        let release = payer(number).release(grant.reservation);
        let released = self.call(|| self.ledger.release(release.clone())).await;
        match released {
            Ok(_) => {}
            // an earlier try of the reserve, given up by its host, gave the hold back meanwhile
            Err(CommandError::AlreadyResolved { .. }) if self.patient => {}
            Err(error) => panic!("not released within the call's time: {error}"),
        }
        grant.reservation
    }

    async fn call<T, F: Future<Output = Answer<T>>>(
        &self,
        mut call: impl FnMut() -> F,
    ) -> Answer<T> {
        if self.patient {
            return patiently(call).await;
        }
        call().await
    }
}

/// How it went.
struct Went {
    /// The longest that any caller waited.
    longest: Duration,
    /// The last reign of each partition.
    reigns: Vec<Epoch>,
    /// Partitions that were hosted here in the end.
    hosted: usize,
}

impl Went {
    #[track_caller]
    fn taken_over(&self) {
        assert_eq!(self.hosted, 4, "all are hosted here now");
        let taken = self.reigns.iter().all(|reign| *reign >= Epoch(2));
        assert!(taken, "every partition was taken over: {:?}", self.reigns);
    }
}

/// Runs callers here against the other process, does `harm`, and checks that every call was answered
/// and the journals tell one story.
async fn through(
    mut servers: Servers,
    harm: impl AsyncFnOnce(&mut Servers, &mut Child, &AtomicU64),
) -> Went {
    let mut other = start_other(&servers).await;
    let nats = connect(&servers.url(), "here", PATIENCE).await.unwrap();
    let ledger = take_part(&nats, servers.replicas(), "here").await;
    join_all((0..ACCOUNTS).map(|number| open_account(&ledger, number))).await;
    assert_eq!(ledger.hosted(), [], "the other process hosts all");

    let (stop, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let callers = (0..ACCOUNTS).map(|number| {
        let caller = Caller {
            ledger: Arc::clone(&ledger),
            patient: matches!(servers, Servers::Three(_)),
            stop: Arc::clone(&stop),
            rounds: Arc::clone(&rounds),
        };
        tokio::spawn(caller.run(number))
    });
    let callers: Vec<_> = callers.collect();
    go_on(&rounds, 200).await;
    harm(&mut servers, &mut other, &rounds).await;
    go_on(&rounds, 200).await;
    stop.store(true, Ordering::Relaxed);
    let mut made = Vec::new();
    let mut longest = Duration::ZERO;
    for caller in callers {
        let (reservations, waited) = timeout(PATIENCE, caller).await.unwrap().unwrap();
        made.extend(reservations);
        longest = longest.max(waited);
    }
    let reigns = check_journals(&nats, made).await;
    let hosted = ledger.hosted().len();
    ledger.stop().await;
    Went {
        longest,
        reigns,
        hosted,
    }
}

/// Waits until the callers have done some more rounds.
async fn go_on(rounds: &AtomicU64, more: u64) {
    let enough = rounds.load(Ordering::Relaxed) + more;
    let reached = async {
        while rounds.load(Ordering::Relaxed) < enough {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("the callers go on");
}

/// The journals verify, their reigns do not mix, and each reservation began and ended once.
async fn check_journals(nats: &Nats, mut made: Vec<ReservationId>) -> Vec<Epoch> {
    let mut reigns = Vec::new();
    let (mut began, mut ended) = (Vec::new(), Vec::new());
    for partition in partitions().iter() {
        // a cluster that has just lost and got back a server may not answer at once
        let journal = until("the journal is there", || async {
            let names = Names::default();
            NatsJournal::open_existing(nats, &names, partition)
                .await
                .ok()
        });
        let journal = journal.await;
        let end = until("it ends", || async { journal.end().await.ok() }).await;
        let mut verifier = Verifier::new(partition);
        let mut reign = Epoch(0);
        let mut commits = journal.replay(Sequence(0), end);
        while let Some(stored) = commits.next().await {
            let stored = stored.unwrap();
            verifier.accept(stored.sequence, &stored.payload).unwrap();
            let commit = Commit::read(&stored.payload).unwrap();
            assert!(
                commit.epoch >= reign,
                "an older writer appended after a newer one"
            );
            reign = commit.epoch;
            for event in commit.events {
                match event.event.body {
                    EventBody::Reserved(data) => began.push(data.reservation),
                    EventBody::Released(data) => ended.push(data.reservation),
                    _ => {}
                }
            }
        }
        reigns.push(reign);
        verifier.finish().unwrap();
    }
    made.sort();
    began.sort();
    ended.sort();
    assert_eq!(began, made, "each reservation was made once");
    assert_eq!(ended, made, "each reservation was released once");
    reigns
}

async fn one() -> Servers {
    Servers::One(Box::new(TestNats::start().await))
}

async fn three() -> Servers {
    Servers::Three(TestCluster::start().await)
}

async fn kill_host(other: &mut Child) {
    signal(other, Signal::SIGKILL);
    timeout(PATIENCE, other.wait()).await.unwrap().unwrap();
}

async fn stop_host(other: &mut Child) {
    drop(other.stdin.take());
    let status = timeout(PATIENCE, other.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

async fn freeze_and_wake(other: &mut Child, rounds: &AtomicU64) {
    signal(other, Signal::SIGSTOP);
    // taken over: the callers go on without it
    go_on(rounds, 200).await;
    signal(other, Signal::SIGCONT);
    go_on(rounds, 400).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_host_is_taken_over_from_within_two_seconds() {
    let went = through(one().await, async |_, other, _| kill_host(other).await).await;
    went.taken_over();
    let longest = went.longest;
    assert!(longest <= TAKEOVER_MAX, "a caller waited {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stops_hands_over_and_no_request_fails() {
    let went = through(one().await, async |_, other, _| stop_host(other).await).await;
    went.taken_over();
    let longest = went.longest;
    assert!(longest <= TAKEOVER_MAX, "a caller waited {longest:?}");
}

/// Whoever waits for room at a host that stops goes on to wait at its successor.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_stops_waits_for_nobody_who_waits_for_room() {
    let servers = one().await;
    let mut other = start_other(&servers).await;
    let nats = connect(&servers.url(), "here", PATIENCE).await.unwrap();
    let ledger = take_part(&nats, servers.replicas(), "here").await;
    open_account(&ledger, 0).await;
    let held = match ledger.reserve(payer(0).reserve(600)).await.unwrap() {
        ReserveOutcome::Reserved(grant) => grant.reservation,
        other => panic!("{other:?}"),
    };
    let waits = Reserve {
        wait_ms: 40_000,
        ..payer(0).reserve(600)
    };
    let read = || Read {
        account: payer(0).account,
        key: None,
        run: None,
        reservation: None,
    };
    let waiter = Arc::clone(&ledger);
    let mut waiting = tokio::spawn(async move { waiter.reserve(waits).await });
    // these are sent after it and answered
    for _ in 0..3 {
        ledger.read(read()).await.unwrap();
    }
    let begun = Instant::now();
    stop_host(&mut other).await;
    until("all are hosted here", || async {
        (ledger.hosted().len() == 4).then_some(())
    })
    .await;
    let took = begun.elapsed();
    assert!(took <= TAKEOVER_MAX, "it was handed over after {took:?}");
    assert!(futures::poll!(&mut waiting).is_pending(), "it waits on");
    patiently(|| ledger.release(payer(0).release(held)))
        .await
        .unwrap();
    let granted = match timeout(PATIENCE, waiting).await.unwrap().unwrap() {
        Ok(ReserveOutcome::Reserved(grant)) => grant.reservation,
        other => panic!("{other:?}"),
    };
    ledger.release(payer(0).release(granted)).await.unwrap();
    check_journals(&nats, vec![held, granted]).await;
    ledger.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_frozen_and_woken_appends_nothing_after_its_successor() {
    let went = through(one().await, async |_, other, rounds| {
        freeze_and_wake(other, rounds).await;
    });
    went.await.taken_over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_servers_a_killed_host_is_taken_over_from() {
    let went = through(three().await, async |_, other, _| kill_host(other).await).await;
    went.taken_over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_three_servers_a_host_frozen_and_woken_appends_nothing_after_its_successor() {
    let went = through(three().await, async |_, other, rounds| {
        freeze_and_wake(other, rounds).await;
    });
    went.await.taken_over();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_of_three_killed_at_a_time_loses_and_doubles_nothing() {
    through(three().await, async |servers, _, rounds| {
        let Servers::Three(cluster) = servers else {
            return;
        };
        for node in &mut cluster.nodes {
            node.kill().await;
            go_on(rounds, 100).await;
            node.restart().await.unwrap();
            node.jetstream_ready(PATIENCE).await.unwrap();
            go_on(rounds, 100).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_three_and_the_host_killed_together_lose_and_double_nothing() {
    let went = through(three().await, async |servers, other, rounds| {
        let Servers::Three(cluster) = servers else {
            return;
        };
        cluster.nodes[0].kill().await;
        kill_host(other).await;
        go_on(rounds, 100).await;
        cluster.nodes[0].restart().await.unwrap();
        cluster.nodes[0].jetstream_ready(PATIENCE).await.unwrap();
    });
    went.await.taken_over();
}
