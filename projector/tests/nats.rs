//! The projector on a real server: projectors that are killed at any moment, two at a time, leave a
//! feed with every event once and in order, and snapshots that readers can trust.
#![allow(clippy::unwrap_used)]
#![expect(clippy::print_stdout, reason = "how long a takeover took")]

use std::{
    collections::BTreeMap,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use seatbelt_bus::{FeedMessage, FeedStream, Nats, connect, kept::WriteError, snapshot_bucket};
use seatbelt_ledger::{
    api::Snapshots,
    host::now_ms,
    journal::{Journal, Sequence},
    lease::Leases,
    nats::{LeaseBucket, NatsJournal},
    outcomes::HOT_MAX,
    recovery::RecoverySource,
    snapshot::{FoundSnapshot, PartitionRecord, Unusable},
    store::Revision,
};
use seatbelt_projector::{ProjectorParts, SnapshotReader, run};
use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    event::{
        AccountOpened, Asked, Event, EventBody, Genesis, OnShort, OnUnknown, Reserved, StoredEvent,
    },
    ids::{AccountId, Actor, CommandId, KeyId, LedgerId, ReservationId},
    meter::Amounts,
    names::Names,
    position::{Epoch, Partition, Partitions, Position},
    scope::Scopes,
};
use tokio_util::sync::CancellationToken;

/// Longest that anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const COMMITS: u64 = 120;
const EVENTS: u64 = 7;
const ROUNDS: u64 = 12;

/// A server of its own, killed when dropped.
struct Server {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (child, port) = launch(folder.path(), "-1").await;
        Self {
            child,
            port,
            folder,
        }
    }

    /// As kill -9, then `meanwhile` with the folder of its streams, then again on the same port.
    async fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        meanwhile(&self.folder.path().join("store/jetstream/$G/streams"));
        let (child, port) = launch(self.folder.path(), &self.port.to_string()).await;
        assert_eq!(port, self.port);
        self.child = child;
    }

    async fn connect(&self, name: &str) -> Nats {
        let url = format!("nats://127.0.0.1:{}", self.port);
        connect(&url, name, PATIENCE).await.unwrap()
    }
}

/// Runs a server in `folder`, and gives the port once it takes connections.
async fn launch(folder: &Path, port: &str) -> (Child, u16) {
    let told = std::env::var_os("SEATBELT_NATS_SERVER").map(PathBuf::from);
    let set_up = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/nats-server/nats-server");
    let mut child = Command::new(told.unwrap_or(set_up))
        .args(["-a", "127.0.0.1", "-p", port, "-js", "-sd"])
        .arg(folder.join("store"))
        .arg("--ports_file_dir")
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nats-server runs: `make setup` puts it into .deps");
    let file = folder.join(format!("nats-server_{}.ports", child.id()));
    let port = within(async || {
        assert!(child.try_wait().unwrap().is_none(), "nats-server ended");
        let text = std::fs::read(&file).ok()?;
        let ports: serde_json::Value = serde_json::from_slice(&text).ok()?;
        let (_, port) = ports["nats"][0].as_str()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        TcpStream::connect(("127.0.0.1", port)).ok().map(|_| port)
    })
    .await;
    (child, port)
}

impl Drop for Server {
    fn drop(&mut self) {
        // the only failure is that it has ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn within<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = attempt().await {
                return done;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, tries)
        .await
        .expect("it never came")
}

fn partitions() -> Partitions {
    Partitions::try_from(2).unwrap()
}

/// An account of this partition, the `number`th.
fn account(partition: Partition, number: u64) -> AccountId {
    let ids = (0..).map(|salt| AccountId::new(format!("acct-{number}-{salt}")).unwrap());
    let mut ours = ids.filter(|id| partitions().of(id) == partition);
    ours.next().unwrap()
}

fn commits(partition: Partition) -> Vec<Commit> {
    let (mut position, mut prev) = (Position(0), ChainHash::default());
    (0..COMMITS)
        .map(|number| {
            let first_position = position.next();
            let genesis = Genesis {
                ledger: LedgerId::new("real").unwrap(),
                partition: partition.0,
                partitions: 2,
            };
            let at_ms = 1_700_000_000_000 + number;
            let events = (0..EVENTS).map(|event| {
                position = position.next();
                let first = position == Position(1);
                let event = Event {
                    position,
                    at_ms,
                    account: match first {
                        true => AccountId::system(),
                        false => account(partition, (number + event) % 5),
                    },
                    cause: CommandId::from_parts(at_ms, u128::from(position.0)),
                    actor: Actor::system("test"),
                    body: match first {
                        true => genesis.clone().into(),
                        false => AccountOpened::default().into(),
                    },
                };
                StoredEvent::new(event)
            });
            let commit = Commit {
                partition,
                epoch: Epoch(1),
                first_position,
                prev,
                at_ms,
                events: events.collect(),
                unknown: None,
            };
            prev = ChainHash::of(&commit.encode());
            commit
        })
        .collect()
}

/// Appends some of each partition's commits.
async fn append(nats: &Nats, from: u64, to: u64) {
    for partition in partitions().iter() {
        let names = Names::default();
        let journal = NatsJournal::open(nats, &names, partition, 1).await.unwrap();
        let commits = commits(partition);
        for expected in from..to {
            let payload = commits[usize::try_from(expected).unwrap()].encode();
            journal.append(Sequence(expected), payload).await.unwrap();
        }
    }
}

/// Starts a projector on a connection of its own.
async fn project(
    server: &Server,
    projector: &str,
    stop: &CancellationToken,
) -> tokio::task::JoinHandle<Result<(), seatbelt_projector::ProjectorError>> {
    let (nats, names) = (server.connect(projector).await, Names::default());
    let mut journals = Vec::new();
    for partition in partitions().iter() {
        let journal = NatsJournal::open(&nats, &names, partition, 1)
            .await
            .unwrap();
        journals.push((partition, Arc::new(journal)));
    }
    let parts = ProjectorParts {
        projector: projector.to_owned(),
        journals,
        snapshots: Arc::new(snapshot_bucket(&nats, &names, 1).await.unwrap()),
        feed: Arc::new(FeedStream::open(&nats, &names, 1).await.unwrap()),
        names,
    };
    tokio::spawn(run(parts, stop.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_projectors_leave_a_feed_with_every_event_once_and_in_order() {
    let server = Server::start().await;
    let (nats, names) = (server.connect("test").await, Names::default());
    let feed = FeedStream::open(&nats, &names, 1).await.unwrap();
    let stop = CancellationToken::new();
    for round in 0..ROUNDS {
        append(
            &nats,
            round * COMMITS / ROUNDS,
            (round + 1) * COMMITS / ROUNDS,
        )
        .await;
        // the same name, so that each believes the seat is its own: only compare-and-swap is left
        let (one, other) = (
            project(&server, "p", &stop).await,
            project(&server, "p", &stop).await,
        );
        // killed at the start, in the middle, and when all is there
        let landed = feed.end().await.unwrap();
        let there = 2 * EVENTS * (round + 1) * COMMITS / ROUNDS;
        let goal = landed + (there - landed) * (round % 3) / 2;
        within(async || (feed.end().await.unwrap() >= goal).then_some(())).await;
        one.abort();
        other.abort();
        drop((one.await, other.await));
    }
    let last = project(&server, "p", &stop).await;
    let total = 2 * COMMITS * EVENTS;
    within(async || (feed.end().await.unwrap() >= total).then_some(())).await;
    let reader = SnapshotReader::new(
        Arc::new(snapshot_bucket(&nats, &names, 1).await.unwrap()),
        partitions(),
    );
    let home = Partition(1);
    let standing = within(async || {
        let read = reader.standing(account(home, 0), None, now_ms()).await;
        let found = read
            .unwrap()
            .filter(|found| found.standing.position.0 == COMMITS * EVENTS);
        found.filter(|found| found.age_ms < 10_000)
    })
    .await;
    assert_eq!(standing.standing.account, account(home, 0));
    stop.cancel();
    last.await.unwrap().unwrap();

    assert_eq!(holds_each_once_and_in_order(&feed).await, total);
    let bucket = snapshot_bucket(&nats, &names, 1).await.unwrap();
    let record = bucket.read("partition.01").await.unwrap().value.unwrap();
    let record = PartitionRecord::decode(&record).unwrap();
    assert_eq!((record.sequence, record.projector), (COMMITS, None));
}

/// How many events there are.
async fn holds_each_once_and_in_order(feed: &FeedStream) -> u64 {
    let end = feed.end().await.unwrap();
    let ids = feed.entries(0, end).map_ok(|entry| entry.id);
    let ids: Vec<String> = ids.try_collect().await.unwrap();
    for partition in partitions().iter() {
        let prefix = format!("real/{partition}/");
        let found = ids.iter().filter(|id| id.starts_with(&prefix));
        let found: Vec<_> = found.cloned().collect();
        let expected = (1..=COMMITS * EVENTS).map(|at| format!("{prefix}{at}"));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
    ids.len() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_gets_the_event_bytes_with_cloud_event_headers() {
    let server = Server::start().await;
    let nats = server.connect("test").await;
    let mut events = nats
        .client()
        .subscribe("seatbelt.spend.v1.>")
        .await
        .unwrap();
    nats.flush().await;
    append(&nats, 0, 1).await;
    let stop = CancellationToken::new();
    let running = project(&server, "p", &stop).await;
    let mut messages = Vec::new();
    while messages.len() < 2 * usize::try_from(EVENTS).unwrap() {
        let next = tokio::time::timeout(PATIENCE, events.next()).await;
        messages.push(next.expect("an event is published").unwrap());
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    let second = &commits(Partition(1))[0].events[1];
    let header = |message: &_, name: &str| header_of(message, name);
    let message = messages
        .iter()
        .find(|message| header(message, "ce-id") == "real/01/2")
        .unwrap();
    assert_eq!(message.payload, second.bytes);
    assert_eq!(
        message.subject.as_str(),
        format!("seatbelt.spend.v1.{}.account_opened", second.event.account)
    );
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-type", "seatbelt.spend.account_opened.v1"),
        ("ce-source", "/seatbelt/real/01"),
        ("ce-time", "2023-11-14T22:13:20.000Z"),
        ("content-type", "application/msgpack"),
        ("Nats-Msg-Id", "real/01/2"),
    ] {
        assert_eq!(header(message, name), value, "{name}");
    }
}

fn header_of(message: &async_nats::Message, name: &str) -> String {
    let headers = message.headers.as_ref().unwrap();
    headers
        .get(name)
        .map(ToString::to_string)
        .unwrap_or_default()
}

/// Copies a folder of files and folders.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

const FEED: &str = "SEATBELT_FEED";

/// Waits until the feed holds each event of the first `commits` commits of each partition, the bytes
/// right; gives how many messages it holds.
async fn until_complete(nats: &Nats, commits_there: u64) -> usize {
    let mut wanted: BTreeMap<String, bytes::Bytes> = BTreeMap::new();
    for partition in partitions().iter() {
        let there = usize::try_from(commits_there).unwrap();
        for stored in commits(partition)
            .iter()
            .take(there)
            .flat_map(|c| &c.events)
        {
            let id = format!("real/{partition}/{}", stored.event.position);
            wanted.insert(id, stored.bytes.clone());
        }
    }
    let (mut after, mut messages) = (0, 0);
    within(async || {
        let stream = nats.jetstream().get_stream(FEED).await.ok()?;
        let state = stream.cached_info().state.clone();
        if state.last_sequence < after {
            after = 0;
        }
        for sequence in after + 1..=state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                let id = message.headers.get("ce-id").unwrap().to_string();
                if let Some(bytes) = wanted.remove(&id) {
                    assert_eq!(message.payload, bytes, "{id}");
                }
            }
        }
        after = state.last_sequence;
        messages = usize::try_from(state.messages).unwrap();
        wanted.is_empty().then_some(())
    })
    .await;
    messages
}

/// Messages of another partition's projector, after whatever the feed ends with.
async fn overtake(nats: &Nats, up_to: u64) {
    let feed = FeedStream::open(nats, &Names::default(), 1).await.unwrap();
    let mut end = feed.end().await.unwrap();
    while end < up_to {
        let id = format!("real/07/{}", end + 1);
        let headers = [("ce-id", id.clone()), ("Nats-Msg-Id", id)];
        let message = FeedMessage {
            subject: "seatbelt.spend.v1.other.account_opened",
            headers: &headers,
            payload: bytes::Bytes::from_static(b"another's"),
        };
        // somebody else may be quicker
        let _ = feed.append(end, &[message]).await;
        end = feed.end().await.unwrap();
    }
}

/// Of an append most messages have no answer of their own: the last one's stands for all.
#[tokio::test(flavor = "multi_thread")]
async fn where_a_message_of_an_append_cannot_land_none_after_it_does() {
    let server = Server::start().await;
    let nats = server.connect("test").await;
    let feed = FeedStream::open(&nats, &Names::default(), 1).await.unwrap();
    let headers = |n: u32| [("Nats-Msg-Id", format!("real/00/{n}"))];
    let add = async |expected, ids: &[u32]| {
        let headers: Vec<_> = ids.iter().map(|id| headers(*id)).collect();
        let messages = headers.iter().map(|headers| FeedMessage {
            subject: "seatbelt.spend.v1.a.reserved",
            headers,
            payload: bytes::Bytes::from_static(b"event"),
        });
        feed.append(expected, &messages.collect::<Vec<_>>()).await
    };
    assert_eq!(add(0, &[1, 2, 3, 4]).await.unwrap(), 4);
    // the server knows the second's id, and keeps no message twice
    assert!(matches!(
        add(4, &[5, 2, 6, 7]).await,
        Err(WriteError::Moved)
    ));
    assert_eq!(feed.end().await.unwrap(), 5);
    // somebody else was quicker
    assert!(matches!(add(4, &[6, 7, 8]).await, Err(WriteError::Moved)));
    assert_eq!(feed.end().await.unwrap(), 5);
    assert_eq!(add(5, &[6, 7, 8]).await.unwrap(), 8);
}

/// The feed is not synced: a server that dies may come back without its end, and others append first.
#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_lost_its_tail_and_was_overtaken_is_mended() {
    for running_meanwhile in [true, false] {
        let mut server = Server::start().await;
        let nats = server.connect("test").await;
        let mut stop = CancellationToken::new();
        append(&nats, 0, 20).await;
        let mut running = project(&server, "p", &stop).await;
        until_complete(&nats, 20).await;
        let old = tempfile::tempdir().unwrap();
        server
            .restart(|streams| copy(&streams.join(FEED), old.path()))
            .await;
        append(&nats, 20, 40).await;
        let there = until_complete(&nats, 40).await as u64;
        if !running_meanwhile {
            stop.cancel();
            running.await.unwrap().unwrap();
            stop = CancellationToken::new();
            running = tokio::spawn(async { Ok(()) });
        }
        server
            .restart(|streams| {
                std::fs::remove_dir_all(streams.join(FEED)).unwrap();
                copy(old.path(), &streams.join(FEED));
            })
            .await;
        overtake(&nats, there + 3).await;
        append(&nats, 40, 60).await;
        if !running_meanwhile {
            running = project(&server, "q", &stop).await;
        }
        until_complete(&nats, 60).await;
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}

/// What an operator, or a server that was set up again, may take away while all are running.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Deleted,
    Purged,
    Hole,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_loses_messages_is_filled_again_while_nothing_new_happens() {
    for loss in [Loss::Deleted, Loss::Purged, Loss::Hole] {
        let server = Server::start().await;
        let nats = server.connect("test").await;
        let stop = CancellationToken::new();
        append(&nats, 0, 20).await;
        let running = project(&server, "p", &stop).await;
        until_complete(&nats, 20).await;
        let stream = nats.jetstream().get_stream(FEED).await.unwrap();
        match loss {
            Loss::Deleted => {
                nats.jetstream().delete_stream(FEED).await.unwrap();
            }
            Loss::Purged => {
                stream.purge().await.unwrap();
            }
            Loss::Hole => {
                for sequence in 40..60 {
                    stream.delete_message(sequence).await.unwrap();
                }
            }
        }
        let messages = until_complete(&nats, 20).await as u64;
        assert_eq!(messages, 2 * 20 * EVENTS, "{loss:?}: nothing twice");
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_that_is_gone_is_made_again_whatever_of_it_is_asked_for_first() {
    let server = Server::start().await;
    let nats = server.connect("test").await;
    let feed = FeedStream::open(&nats, &Names::default(), 1).await.unwrap();
    for first in ["entry", "payload", "end"] {
        nats.jetstream().delete_stream(FEED).await.unwrap();
        match first {
            "entry" => assert!(feed.entry(1).await.unwrap().is_none()),
            "payload" => assert!(feed.payload(1).await.unwrap().is_none()),
            _ => assert_eq!(feed.end().await.unwrap(), 0),
        }
        assert!(nats.jetstream().get_stream(FEED).await.is_ok(), "{first}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_snapshots_that_is_deleted_or_purged_is_filled_again() {
    for deleted in [true, false] {
        let server = Server::start().await;
        let nats = server.connect("test").await;
        let names = Names::default();
        let stop = CancellationToken::new();
        append(&nats, 0, 20).await;
        let running = project(&server, "p", &stop).await;
        let bucket = Arc::new(snapshot_bucket(&nats, &names, 1).await.unwrap());
        let reader = SnapshotReader::new(bucket, partitions());
        let home = account(Partition(1), 0);
        let current = async || {
            within(async || {
                let read = reader.standing(home.clone(), None, now_ms()).await.ok()?;
                read.filter(|found| found.standing.position.0 == 20 * EVENTS)
            })
            .await
        };
        current().await;
        let name = format!("KV_{}", names.snapshot_bucket());
        let stream = nats.jetstream().get_stream(&name).await.unwrap();
        if deleted {
            nats.jetstream().delete_stream(&name).await.unwrap();
        } else {
            stream.purge().await.unwrap();
        }
        current().await;
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}

/// What was written over may be there again where a server is killed after a purge, older than the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_lost_while_its_account_rests_is_put_right() {
    let mut server = Server::start().await;
    let (nats, names) = (server.connect("test").await, Names::default());
    let (home, any) = (account(Partition(1), 0), (Revision(u64::MAX), Position(0)));
    let bucket = snapshot_bucket(&nats, &names, 1).await.unwrap();
    let until_right = async |commits_there: usize| {
        let story = commits(Partition(1));
        let events = story[..commits_there].iter().flat_map(|c| &c.events);
        let expected = events.filter(|stored| stored.event.account == home).count();
        within(async || {
            let found = FoundSnapshot::read(&bucket, &home, any).await.ok()?;
            let state = found.snapshot.ok()??.state;
            (state.version() as usize == expected).then_some(())
        })
        .await;
    };
    let stop = CancellationToken::new();
    let running = project(&server, "p", &stop).await;
    for there in 1..=10 {
        append(&nats, there - 1, there).await;
        until_right(usize::try_from(there).unwrap()).await;
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    for purged in [&format!("account.{home}"), "account.>"] {
        let name = names.snapshot_bucket();
        let stream = nats.jetstream().get_stream(format!("KV_{name}")).await;
        let purge = stream.unwrap().purge();
        purge.filter(format!("$KV.{name}.{purged}")).await.unwrap();
        server.restart(|_| {}).await;
        let stop = CancellationToken::new();
        let running = project(&server, "p", &stop).await;
        until_right(10).await;
        stop.cancel();
        running.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_leases_that_is_deleted_is_made_again_and_leases_stay_held() {
    let server = Server::start().await;
    let (nats, names) = (server.connect("test").await, Names::default());
    let kept = Arc::new(LeaseBucket::open(&nats, &names, 1).await.unwrap());
    let ours = Leases::start(kept.clone(), "ours");
    let theirs = Leases::start(kept, "theirs");
    let held = ours.acquire(Partition(0)).await;
    within(async || theirs.holder(Partition(0)).map(drop)).await;
    let name = format!("KV_{}", names.lease_bucket());
    nats.jetstream().delete_stream(&name).await.unwrap();
    // another partition can be had at once, and both processes see it
    let second = timeout_of(ours.acquire(Partition(1))).await;
    within(async || (theirs.holder(Partition(1))? == "ours").then_some(())).await;
    held.release().await;
    second.release().await;
    // gone again while nobody holds one
    nats.jetstream().delete_stream(&name).await.unwrap();
    let third = timeout_of(theirs.acquire(Partition(0))).await;
    within(async || (ours.holder(Partition(0))? == "theirs").then_some(())).await;
    drop(third);
}

async fn timeout_of<T>(call: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, call)
        .await
        .expect("it never came")
}

/// The journal of an account with so many open reservations.
async fn append_large(journal: &NatsJournal, of: &AccountId, open: u64) {
    let (mut position, mut prev) = (Position(0), ChainHash::default());
    let at_ms = now_ms();
    let mut next = |bodies: Vec<(AccountId, EventBody)>| {
        let first_position = position.next();
        let events = bodies.into_iter().map(|(account, body)| {
            position = position.next();
            StoredEvent::new(Event {
                position,
                at_ms,
                account,
                cause: CommandId::from_parts(at_ms, u128::from(position.0)),
                actor: Actor::system("test"),
                body,
            })
        });
        let commit = Commit {
            partition: Partition(1),
            epoch: Epoch(1),
            first_position,
            prev,
            at_ms,
            events: events.collect(),
            unknown: None,
        };
        let payload = commit.encode();
        prev = ChainHash::of(&payload);
        payload
    };
    let genesis = Genesis {
        ledger: LedgerId::new("real").unwrap(),
        partition: 1,
        partitions: 2,
    };
    let begin = vec![
        (AccountId::system(), genesis.into()),
        (of.clone(), AccountOpened::default().into()),
    ];
    journal.append(Sequence(0), next(begin)).await.unwrap();
    for batch in 0..open / 100 {
        let holds = (batch * 100..).take(100);
        let holds = holds.map(|number| (of.clone(), reserved(at_ms, number).into()));
        let payload = next(holds.collect());
        journal.append(Sequence(batch + 1), payload).await.unwrap();
    }
}

fn reserved(at_ms: u64, number: u64) -> Reserved {
    let scopes = Scopes {
        key: KeyId::new("key").unwrap(),
        team: None,
        model: None,
        run: None,
        end_user: None,
    };
    Reserved {
        reservation: ReservationId::from_parts(at_ms, u128::from(number)),
        scopes: scopes.into(),
        asked: Asked {
            input_tokens: 0,
            output_tokens: 1,
            tool_calls: 0,
            deadline_ms: at_ms + 3_600_000,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
        },
        hold: Amounts::request(0, 1, None),
        price: None,
        multiplier_ppm: None,
        budget: None,
        within: None,
        uncovered: false,
        caps: Vec::new(),
        attempt: None,
    }
}

/// More than one value takes: it is projected, read, taken over from, and put right where a piece is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_account_is_kept_in_pieces() {
    const OPEN: u64 = 20_000;
    let server = Server::start().await;
    let (nats, names) = (server.connect("test").await, Names::default());
    let of = account(Partition(1), 0);
    let journal = NatsJournal::open(&nats, &names, Partition(1), 1)
        .await
        .unwrap();
    append_large(&journal, &of, OPEN).await;
    let stop = CancellationToken::new();
    let running = project(&server, "p", &stop).await;
    let bucket = Arc::new(snapshot_bucket(&nats, &names, 1).await.unwrap());
    let reader = SnapshotReader::new(bucket.clone(), partitions());
    within(async || {
        let found = reader.standing(of.clone(), None, now_ms()).await.unwrap();
        found.filter(|found| found.standing.open == OPEN)
    })
    .await;
    stop.cancel();
    running.await.unwrap().unwrap();

    let source = RecoverySource {
        journal: Arc::new(journal),
        snapshots: Some(bucket.clone()),
        partition: Partition(1),
        hot_max: HOT_MAX,
    };
    let began = Instant::now();
    let (_, base) = source.recover().await.unwrap();
    let loaded = source.load(&of, &base).await.unwrap().unwrap().state;
    println!("taken over and loaded in {:?}", began.elapsed());
    assert_eq!(loaded.open().len() as u64, OPEN);
    let vouched = (Revision(u64::MAX), Position(0));
    let found = FoundSnapshot::read(&*bucket, &of, vouched).await.unwrap();
    let lost = found.head.unwrap().pieces.open[3].number;
    let stream = nats.jetstream().get_stream("KV_SEATBELT_SNAPSHOTS").await;
    let piece = format!("$KV.SEATBELT_SNAPSHOTS.account.{of}.{lost}");
    let purged = stream.unwrap().purge().filter(piece).await.unwrap();
    assert_eq!(purged.purged, 1);
    let found = FoundSnapshot::read(&*bucket, &of, vouched).await.unwrap();
    assert!(matches!(found.snapshot, Err(Unusable::Piece { number }) if number == lost));
    let again = source.load(&of, &base).await.unwrap().unwrap().state;
    assert_eq!(again, loaded);
    let found = FoundSnapshot::read(&*bucket, &of, vouched).await.unwrap();
    assert_eq!(found.snapshot.unwrap().unwrap().state, loaded);
}
