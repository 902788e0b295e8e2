//! What the ledger keeps on a real nats-server besides its journals: facts, durability, buckets,
//! feed, usage, neurons, leases, and the request path between processes.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails with the place"
)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream::stream::PersistenceMode;
use bytes::Bytes;
use futures::{FutureExt, TryStreamExt, future::BoxFuture};
use seatbelt_bus::{
    Bucket, ConnectError, Durability, DurabilityError, FeedMessage, FeedStream, FirstUses,
    GenesisError, Layout, Nats, NatsUsageEvents, Proof, Settings, ThreadError, Threads, connect,
    durability::check_copies, meta, neuron_secret, prove, provision, snapshot_bucket,
    watch_neurons,
};
use seatbelt_ledger::{
    api::{Answer, Ledger, Taken},
    journal::{Journal, Sequence},
    lease::Leases,
    nats::{LeaseBucket, NatsJournal, Witnesses},
    remote::{LedgerService, RemoteLedger},
    store::{Revision, WriteError},
    testing::Payer,
};
use seatbelt_schemas::{
    cap::CapStanding,
    command::{
        Ack, Admin, AdminOutcome, Change, CommandError, Read, Release, Reserve, ReserveOutcome,
        Resize, Resolution, Settle, Standing,
    },
    commit::ChainHash,
    first_use::FirstUse,
    ids::{AccountId, Actor, CapId, CommandId, ModelId, NeuronId, ReservationId},
    meter::{Amounts, Meter},
    names::Names,
    neuron::{
        NeuronRecord,
        signature::{BodyHash, Call, NeuronSecret},
    },
    position::{Partition, Partitions, Position},
    scope::Scope,
    thread::Thread,
    usage::{NeuronOutcome, NeuronUsage, UsageEvent},
    window::Window,
    wire,
};
use seatbelt_tests::{
    nats::{PATIENCE, TestNats},
    until,
};
use tokio::time::timeout;

fn layout(partitions: u8) -> Layout {
    Layout {
        partitions: Partitions::try_from(partitions).unwrap(),
        replicas: 1,
    }
}

#[tokio::test]
async fn the_neurons_secret_is_made_once_and_told_to_all() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let jetstream = async_nats::jetstream::new(connection.client().clone());
    let bucket = jetstream.get_key_value(names.secret_bucket()).await;
    let bucket = bucket.unwrap();
    let kept = bucket.get("neuron_secret").await.unwrap().unwrap();
    assert_eq!(kept.len(), NeuronSecret::BYTES);
    let id = NeuronId::new("n").unwrap();
    let call = Call::new(&id, "POST", "/p", |_| None);
    let (body, by_kept) = (
        BodyHash::of(b""),
        NeuronSecret::new(kept[..].try_into().unwrap()),
    );
    let told = neuron_secret(&connection, &names).await.unwrap();
    assert_eq!(told.sign(&call, &body), by_kept.sign(&call, &body));
    // a ledger that is older than the secret, started by many at once
    bucket.purge("neuron_secret").await.unwrap();
    let many = (0..8).map(|_| async {
        provision(&connection, &names, layout(4)).await?;
        neuron_secret(&connection, &names).await
    });
    let many = futures::future::try_join_all(many).await.unwrap();
    let signed: Vec<_> = many
        .iter()
        .map(|secret| secret.sign(&call, &body))
        .collect();
    assert!(signed.iter().all(|one| *one == signed[0]));
    assert_ne!(signed[0], by_kept.sign(&call, &body));
    // what is of no use to anybody is made again
    bucket.put("neuron_secret", "short".into()).await.unwrap();
    let refused = neuron_secret(&connection, &names).await;
    assert!(
        matches!(refused, Err(GenesisError::NoSecret { .. })),
        "{refused:?}"
    );
    provision(&connection, &names, layout(4)).await.unwrap();
    let again = neuron_secret(&connection, &names).await.unwrap();
    assert_ne!(again.sign(&call, &body), signed[0]);
}

async fn provisioned(nats: &TestNats) -> (Nats, Names) {
    let (connection, names) = (nats.connect("test").await, Names::default());
    provision(&connection, &names, layout(4))
        .await
        .expect("provisioned");
    (connection, names)
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_from_a_server_that_is_away() {
    let nats = TestNats::start().await;
    let address = nats
        .server
        .host_url()
        .replace("nats://", "nats://me:hunter2@");
    let denied = connect(&address, "test", PATIENCE).await.unwrap_err();
    assert!(matches!(denied, ConnectError::Denied { .. }), "{denied:?}");
    let nobody = "nats://me:hunter2@127.0.0.1:1";
    let away = connect(nobody, "test", Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(matches!(away, ConnectError::Unreachable { .. }), "{away:?}");
    for error in [format!("{denied} {denied:?}"), format!("{away} {away:?}")] {
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// A key that somebody deleted is not one that was never written: to make another ledger in its place would
/// grant every cap again.
#[tokio::test]
async fn facts_that_were_deleted_are_not_made_anew_and_their_remedy_is_told() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let bucket = Bucket::at(&connection, &names.meta_bucket());
    let kept = bucket.read("ledger").await.unwrap();
    bucket.delete("ledger", kept.revision).await.unwrap();
    let told = [
        meta(&connection, &names).await.unwrap_err(),
        provision(&connection, &names, layout(4)).await.unwrap_err(),
    ];
    for error in told {
        let said = error.to_string();
        assert!(matches!(error, GenesisError::Deleted { .. }), "{said}");
        assert!(said.contains("`seatbelt ledger rebuild-meta`"), "{said}");
    }
}

/// What a process is configured with says nothing of the streams that another one made.
#[tokio::test]
async fn a_journal_with_fewer_copies_than_configured_is_named() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let partitions = layout(4).partitions;
    let check = async |replicas| check_copies(&connection, &names, partitions, replicas).await;
    check(3).await.expect("no journal was made yet");
    let journal = Settings::journal(&names, Partition(2), 1);
    journal.ensure(&connection).await.unwrap();
    check(1).await.unwrap();
    let few = check(3).await.unwrap_err().to_string();
    assert!(
        few.contains("SEATBELT_JOURNAL_02 has 1 of the 3 copies"),
        "{few}"
    );
    assert!(few.contains("set nats.replicas = 1"), "{few}");
}

#[tokio::test]
async fn the_ledgers_facts_are_made_once_and_then_fixed() {
    let nats = TestNats::start().await;
    let (connection, names) = (nats.connect("test").await, Names::default());
    let missing = meta(&connection, &names).await;
    assert!(
        matches!(missing, Err(GenesisError::Missing { .. })),
        "{missing:?}"
    );
    let many = (0..4).map(|_| provision(&connection, &names, layout(4)));
    let made = futures::future::try_join_all(many)
        .await
        .expect("provisioned at once");
    assert!(
        made.iter().all(|meta| *meta == made[0]),
        "one ledger: {made:?}"
    );
    assert_eq!(meta(&connection, &names).await.unwrap(), made[0]);
    let other = provision(&connection, &names, layout(8)).await.unwrap_err();
    let words = other.to_string();
    assert!(words.contains('4') && words.contains('8'), "{words}");
}

#[tokio::test]
async fn a_key_of_a_request_has_one_first_use_until_that_is_known_to_be_nothing() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let uses = FirstUses::at(&connection, &names);
    let first = |asked| FirstUse {
        v: FirstUse::VERSION,
        asked: [asked; 32],
        reservation: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        until_ms: 5,
    };
    assert_eq!(uses.find("k").await.unwrap(), (None, Revision(0)));
    uses.write("k", Revision(0), &first(1)).await.unwrap();
    let again = uses.write("k", Revision(0), &first(2)).await;
    assert!(matches!(again, Err(WriteError::Moved)), "{again:?}");
    let (found, revision) = uses.find("k").await.unwrap();
    assert_eq!(found, Some(first(1)));
    uses.write("k", revision, &first(2)).await.unwrap();
    assert_eq!(uses.find("k").await.unwrap().0, Some(first(2)));
    // an operator takes one out
    let bucket = names.first_use_bucket();
    let bucket = connection.jetstream().get_key_value(bucket).await.unwrap();
    bucket.delete("k").await.unwrap();
    let (none, revision) = uses.find("k").await.unwrap();
    assert_eq!(none, None);
    uses.write("k", revision, &first(3)).await.unwrap();
    let unprovisioned = TestNats::start().await;
    let uses = FirstUses::at(&unprovisioned.connect("test").await, &names);
    assert!(uses.find("k").await.is_err(), "and nothing waits for it");
}

#[tokio::test]
async fn what_was_refused_is_taken_back_and_nothing_that_came_after() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let uses = FirstUses::at(&connection, &names);
    let first = |until_ms| FirstUse {
        v: FirstUse::VERSION,
        asked: [1; 32],
        reservation: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
        until_ms,
    };
    let kept = uses.write("k", Revision(0), &first(1)).await.unwrap();
    let refused = uses.write("l", Revision(0), &first(2)).await.unwrap();
    uses.take_back(refused).await.unwrap();
    uses.take_back(refused).await.expect("is gone already");
    assert_eq!(uses.find("l").await.unwrap(), (None, Revision(0)));
    // who found it before, and writes over it, is told to look again
    let moved = uses.write("l", refused, &first(3)).await;
    assert!(matches!(moved, Err(WriteError::Moved)), "{moved:?}");
    let anew = uses.write("l", Revision(0), &first(3)).await.unwrap();
    // who wrote over it keeps what is written
    let over = uses.write("l", anew, &first(4)).await.unwrap();
    uses.take_back(anew).await.unwrap();
    assert_eq!(uses.find("l").await.unwrap(), (Some(first(4)), over));
    assert_eq!(uses.find("k").await.unwrap(), (Some(first(1)), kept));
    let stream = format!("KV_{}", names.first_use_bucket());
    let stream = connection.jetstream().get_stream(stream).await.unwrap();
    assert_eq!(stream.cached_info().state.messages, 2, "and no marks");
}

#[tokio::test]
async fn a_response_is_bound_once_and_found_by_its_id_alone() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let threads = Threads::open(&connection, &names).await.unwrap();
    let thread = |account: &str| Thread {
        v: Thread::VERSION,
        account: AccountId::new(account).unwrap(),
        upstream: "u".to_owned(),
        model: ModelId::new("m").unwrap(),
        tokens: 15,
    };
    let (mine, theirs) = (thread("mine"), thread("theirs"));
    threads.bind("resp_1", &mine).await.unwrap();
    threads.bind("resp_1", &mine).await.unwrap();
    let taken = threads.bind("resp_1", &theirs).await;
    assert!(
        matches!(taken, Err(ThreadError::Unbound { .. })),
        "{taken:?}"
    );
    for odd in ["", "a.b", ">", "*", "resp 1"] {
        let unbound = threads.bind(odd, &mine).await;
        assert!(matches!(unbound, Err(ThreadError::Unbound { .. })), "{odd}");
        assert_eq!(threads.find(odd).await.unwrap(), None, "{odd}");
    }
    // another process, and a value that is none
    let again = Threads::open(&connection, &names).await.unwrap();
    assert_eq!(again.find("resp_1").await.unwrap(), Some(mine));
    assert_eq!(again.find("resp_2").await.unwrap(), None);
    let jetstream = async_nats::jetstream::new(connection.client().clone());
    let bucket = jetstream
        .get_key_value(names.thread_bucket())
        .await
        .unwrap();
    bucket.put("resp_2", "no thread".into()).await.unwrap();
    assert_eq!(again.find("resp_2").await.unwrap(), None);
}

#[tokio::test]
async fn what_can_be_rebuilt_need_not_be_synced_and_all_else_is() {
    let nats = TestNats::start().await;
    let (connection, _) = provisioned(&nats).await;
    let derived = [
        "SEATBELT_FEED",
        "KV_SEATBELT_SNAPSHOTS",
        "KV_SEATBELT_NEURONS",
        "KV_SEATBELT_LEASES",
    ];
    for (name, relaxed) in derived.map(|name| (name, true)).into_iter().chain([
        ("SEATBELT_USAGE", false),
        ("KV_SEATBELT_META", false),
        ("KV_SEATBELT_THREADS", false),
        ("KV_SEATBELT_IDEMPOTENCE", false),
    ]) {
        let stream = connection.jetstream().get_stream(name).await.unwrap();
        let mode = stream.cached_info().config.persist_mode;
        assert_eq!(
            mode == Some(PersistenceMode::Async),
            relaxed,
            "{name}: {mode:?}"
        );
    }
}

#[tokio::test]
async fn fsync_is_proved_on_the_embedded_server_and_refused_without() {
    let nats = TestNats::start().await;
    let connection = nats.connect("test").await;
    let proof = prove(&connection, Durability::Fsync, 1, &[]).await;
    assert_eq!(proof.unwrap(), Proof::Synced);

    let lax = TestNats::start_with(|options| options.sync_always = false).await;
    let connection = lax.connect("test").await;
    let refused = prove(&connection, Durability::Fsync, 1, &[])
        .await
        .unwrap_err();
    assert!(
        matches!(refused, DurabilityError::NotSynced { .. }),
        "{refused:?}"
    );
    assert!(
        refused.to_string().contains("sync_interval: always"),
        "{refused}"
    );
    let chosen = prove(&connection, Durability::Relaxed, 1, &[]).await;
    assert_eq!(chosen.unwrap(), Proof::Relaxed);
}

#[tokio::test]
async fn a_bucket_is_written_by_compare_and_swap_only() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let bucket = snapshot_bucket(&connection, &names, 1).await.unwrap();
    let unwritten = bucket.read("account.a").await.unwrap().revision;
    assert_eq!(unwritten, Revision(0));
    let first = bucket
        .write("account.a", unwritten, "one".into())
        .await
        .unwrap();
    let again = bucket.write("account.a", unwritten, "two".into()).await;
    assert!(matches!(again, Err(WriteError::Moved)), "{again:?}");
    let second = bucket
        .write("account.a", first, "two".into())
        .await
        .unwrap();
    let stale = bucket.write("account.a", first, "three".into()).await;
    assert!(matches!(stale, Err(WriteError::Moved)), "{stale:?}");
    let kept = bucket.read("account.a").await.unwrap();
    assert_eq!((kept.value, kept.revision), (Some("two".into()), second));
    bucket.delete("account.a", second).await.unwrap();
    let gone = bucket.read("account.a").await.unwrap();
    assert_eq!(gone.value, None);
    bucket
        .write("account.a", gone.revision, "four".into())
        .await
        .unwrap();
}

/// The feed messages of positions `from..=to`, as headers by position.
fn feed_headers(from: u64, to: u64) -> Vec<Vec<(&'static str, String)>> {
    (from..=to)
        .map(|position| vec![("Nats-Msg-Id", format!("l/00/{position}"))])
        .collect()
}

fn feed_messages<'a>(headers: &'a [Vec<(&'static str, String)>]) -> Vec<FeedMessage<'a>> {
    let message = |headers| FeedMessage {
        subject: "seatbelt.spend.v1.acct.settled",
        headers,
        payload: Bytes::from_static(b"event"),
    };
    headers
        .iter()
        .map(|headers| message(headers.as_slice()))
        .collect()
}

/// Whoever bills may make none: it would wait for ever.
#[tokio::test]
async fn the_consumer_for_billing_is_made_again_while_the_feed_is_written() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let feed = FeedStream::open(&connection, &names, 1).await.unwrap();
    let ask = async |verb: &str| {
        let subject = format!("$JS.API.CONSUMER.{verb}.{}.billing", names.feed_stream());
        let reply = connection.client().request(subject, "".into()).await;
        let reply: serde_json::Value = serde_json::from_slice(&reply.unwrap().payload).unwrap();
        reply.get("error").is_none()
    };
    assert!(ask("INFO").await && ask("DELETE").await && !ask("INFO").await);
    until("it is there again", || async {
        feed.state().await.unwrap();
        ask("INFO").await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_feed_takes_a_prefix_and_each_message_once() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let feed = FeedStream::open(&connection, &names, 1).await.unwrap();
    assert_eq!(feed.end().await.unwrap(), 0);
    let headers = feed_headers(1, 100);
    assert_eq!(feed.append(0, &feed_messages(&headers)).await.unwrap(), 100);
    // another place
    let elsewhere = feed
        .append(50, &feed_messages(&feed_headers(101, 103)))
        .await;
    assert!(matches!(elsewhere, Err(WriteError::Moved)), "{elsewhere:?}");
    // the right place, but the first of them is there already
    let twice = feed
        .append(100, &feed_messages(&feed_headers(100, 102)))
        .await;
    assert!(matches!(twice, Err(WriteError::Moved)), "{twice:?}");
    assert_eq!(feed.end().await.unwrap(), 100);
    assert_eq!(
        feed.append(100, &feed_messages(&feed_headers(101, 102)))
            .await
            .unwrap(),
        102
    );
    let ids: Vec<_> = feed
        .entries(97, 102)
        .map_ok(|entry| entry.id)
        .try_collect()
        .await
        .unwrap();
    assert_eq!(
        ids,
        (98..=102)
            .map(|position| format!("l/00/{position}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(feed.entry(7).await.unwrap().unwrap().id, "l/00/7");
    assert_eq!(feed.entry(103).await.unwrap(), None);
}

fn usage_event(reservation: ReservationId) -> UsageEvent {
    UsageEvent {
        v: 1,
        reservation: reservation.to_string(),
        account: None,
        key: None,
        model: None,
        neuron: NeuronId::new("n1").unwrap(),
        device: "cpu".to_owned(),
        usage: NeuronUsage::default(),
        outcome: NeuronOutcome::Completed,
        queued_ms: 0,
        prefill_ms: 0,
        decode_ms: 0,
        at_ms: 7,
    }
}

async fn publish(connection: &Nats, subject: String, payload: Bytes) {
    let ack = connection
        .jetstream()
        .publish(subject, payload)
        .await
        .unwrap();
    ack.await.unwrap();
}

#[tokio::test]
async fn a_usage_event_reaches_its_waiter_early_late_and_across_a_restart() {
    let mut nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let events = NatsUsageEvents::start(&connection, &names).await.unwrap();
    let subject = names.usage_subject(&NeuronId::new("n1").unwrap());
    let id = |number| ReservationId::from_parts(1, number);
    for number in 1..=3 {
        let waiting = tokio::spawn(events.usage(id(number), PATIENCE));
        if number == 2 {
            nats.server.restart().await.unwrap();
        }
        let event = usage_event(id(number));
        let publisher = nats.connect("neuron").await;
        publish(&publisher, subject.clone(), event.encode()).await;
        assert_eq!(waiting.await.unwrap(), Some(event.clone()));
        // and one who asks afterwards
        let late = events.usage(id(number), Duration::ZERO).await;
        assert_eq!(late, Some(event));
    }
    let none = events.usage(id(9), Duration::from_millis(20)).await;
    assert_eq!(none, None);
}

#[tokio::test]
async fn neurons_come_with_their_registration_and_go_when_it_ends() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let mut neurons = watch_neurons(&connection, &names, 1).await.unwrap();
    let record = |name: &str, active| NeuronRecord {
        v: 1,
        neuron: NeuronId::new(name).unwrap(),
        url: format!("http://{name}"),
        device: "cpu".to_owned(),
        models: Vec::new(),
        active,
        queued: 0,
        at_ms: 0,
    };
    let register = connection
        .jetstream()
        .get_key_value(names.neuron_bucket())
        .await
        .unwrap();
    for one in [record("n2", 0), record("n1", 0), record("n1", 5)] {
        let value = wire::encode(&one).into();
        register.put(one.neuron.as_str(), value).await.unwrap();
    }
    register.put("n3", "not a record".into()).await.unwrap();
    let both = [record("n1", 5), record("n2", 0)];
    let seen = timeout(PATIENCE, neurons.wait_for(|seen| seen[..] == both)).await;
    drop(seen.expect("both registered").unwrap());
    register.delete("n1").await.unwrap();
    let seen = timeout(PATIENCE, neurons.wait_for(|seen| seen[..] == both[1..])).await;
    drop(seen.expect("one took its registration back").unwrap());
    // the other one is not heard of any more
    let seen = timeout(PATIENCE, neurons.wait_for(Vec::is_empty)).await;
    drop(seen.expect("one died").unwrap());
}

async fn leases(nats: &TestNats, holder: &str) -> Leases {
    let connection = nats.connect(holder).await;
    let kept = LeaseBucket::open(&connection, &Names::default(), 1).await;
    Leases::start(Arc::new(kept.unwrap()), holder)
}

/// As where what the server kept of it was damaged while it was down: the stream is there and keeps nothing.
#[tokio::test]
async fn a_bucket_of_leases_that_keeps_nothing_is_made_again() {
    let nats = TestNats::start().await;
    let connection = nats.connect("test").await;
    let jetstream = async_nats::jetstream::new(connection.client().clone());
    let settings = async_nats::jetstream::stream::Config {
        name: "KV_SEATBELT_LEASES".to_owned(),
        subjects: vec!["$KV.SEATBELT_LEASES.>".to_owned()],
        max_messages_per_subject: 1,
        no_ack: true,
        ..Default::default()
    };
    jetstream.create_stream(settings).await.unwrap();
    let leases = leases(&nats, "one").await;
    // it asks twice in vain, each time for as long as an answer may take
    let lease = timeout(2 * PATIENCE, leases.acquire(Partition(0))).await;
    lease.expect("it heals by itself").release().await;
    let stream = jetstream.get_stream("KV_SEATBELT_LEASES").await.unwrap();
    assert!(!stream.cached_info().config.no_ack, "made again");
}

#[tokio::test]
async fn a_lease_has_one_holder_and_is_handed_over_at_once_or_after_its_age() {
    let nats = TestNats::start().await;
    let (one, two) = (leases(&nats, "one").await, leases(&nats, "two").await);
    let partition = Partition(3);
    let held = timeout(PATIENCE, one.acquire(partition))
        .await
        .expect("free");
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.acquire(partition).await }
    });
    // longer than a lease lasts unless renewed
    let stays = timeout(Duration::from_secs(3), held.lost()).await;
    assert!(stays.is_err(), "a lease renewed is not lost");
    assert!(!waiting.is_finished());
    assert_eq!(two.holder(partition).as_deref(), Some("one"));

    let begun = Instant::now();
    held.release().await;
    let second = timeout(PATIENCE, waiting)
        .await
        .expect("given back")
        .unwrap();
    let handover = begun.elapsed();
    assert!(handover < Duration::from_millis(500), "took {handover:?}");

    let begun = Instant::now();
    drop(second); // as if killed: nothing is given back
    let third = timeout(PATIENCE, one.acquire(partition))
        .await
        .expect("grown old");
    let takeover = begun.elapsed();
    assert!(takeover < Duration::from_secs(2), "took {takeover:?}");
    assert_eq!(third.partition(), partition);
}

/// As after a power failure: the bucket is not synced. The watch goes on behind what was lost, and must
/// not be believed about a lease that nobody renews.
#[tokio::test]
async fn a_lease_is_taken_where_the_bucket_lost_its_last_revisions() {
    let mut nats = TestNats::start().await;
    let one = leases(&nats, "one").await;
    let taken = async |partition| {
        let lease = timeout(PATIENCE, one.acquire(Partition(partition))).await;
        lease.expect("free")
    };
    let first = (taken(0).await, taken(1).await);
    let streams = nats.folder().join("nats/jetstream/SEATBELT/streams");
    let (kept, older) = (
        streams.join("KV_SEATBELT_LEASES"),
        nats.folder().join("older"),
    );
    nats.server.kill().await;
    copy(&kept, &older);
    nats.server.restart().await.unwrap();
    drop(first);
    let (quiet, _renewed) = (taken(0).await, taken(1).await);
    let bucket = nats.connect("test").await;
    let bucket = bucket.jetstream().get_stream("KV_SEATBELT_LEASES");
    let bucket = bucket.await.unwrap();
    let from = bucket.cached_info().state.last_sequence;
    let renewed = async {
        while bucket.get_info().await.unwrap().state.last_sequence < from + 6 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, renewed).await.expect("renewed");
    drop(quiet);
    nats.server.kill().await;
    std::fs::remove_dir_all(&kept).unwrap();
    copy(&older, &kept);
    nats.server.restart().await.unwrap();
    let again = taken(0).await;
    assert_eq!(again.partition(), Partition(0));
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp")
        .args(["-r".as_ref(), from.as_os_str(), to.as_os_str()])
        .status();
    assert!(copied.unwrap().success());
}

#[tokio::test]
async fn a_lease_that_cannot_be_renewed_is_lost() {
    let mut nats = TestNats::start().await;
    let one = leases(&nats, "one").await;
    let held = timeout(PATIENCE, one.acquire(Partition(0)))
        .await
        .expect("free");
    nats.server.kill().await;
    timeout(Duration::from_secs(3), held.lost())
        .await
        .expect("lost");
}

/// A ledger that counts, and answers as its account says.
#[derive(Default)]
struct Scripted {
    calls: AtomicUsize,
    waiting: AtomicUsize,
    seen: Mutex<HashMap<CommandId, usize>>,
    released: Mutex<Vec<ReservationId>>,
    /// Settles: those with one answer by when they want it, those with two as `None`.
    settles: Mutex<Vec<Option<Ack>>>,
}

const POSITION: Position = Position(7);

fn charged() -> Resolution {
    Resolution {
        position: POSITION,
        amounts: Amounts::zero(),
    }
}

/// Counts a reserve that waits, until it is dropped.
struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Ledger for Scripted {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        async move {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            let _held = Held(&self.waiting);
            *self.seen.lock().unwrap().entry(command.id).or_default() += 1;
            if command.account.as_str() == "never" {
                return futures::future::pending().await;
            }
            Err(CommandError::UnknownAccount {
                account: command.account,
            })
        }
        .boxed()
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        async move { Err(CommandError::Conflict { id: command.id }) }.boxed()
    }

    fn settle(&self, _: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        self.settles.lock().unwrap().push(Some(ack));
        async move { Ok(charged()) }.boxed()
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        self.settles.lock().unwrap().push(None);
        let lasting = match command.account.as_str() {
            "never" => futures::future::pending().boxed(),
            _ => async { Ok(charged()) }.boxed(),
        };
        let resolution = charged();
        let taken = Taken {
            resolution,
            lasting,
        };
        async move { Ok(taken) }.boxed()
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        async move {
            self.released.lock().unwrap().push(command.reservation);
            let reservation = command.reservation;
            Err(CommandError::UnknownReservation { reservation })
        }
        .boxed()
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            let caps = match query.account.as_str() {
                "large" => vec![large_cap(); 4_000],
                _ => Vec::new(),
            };
            Ok(Standing {
                account: query.account,
                position: POSITION,
                at_ms: 1,
                open: 0,
                multiplier_ppm: None,
                caps,
                live_keys: None,
                run: None,
                inside: Vec::new(),
                fate: None,
                more: false,
            })
        }
        .boxed()
    }

    fn admin(&self, _: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        async move { Ok(AdminOutcome { position: None }) }.boxed()
    }
}

fn large_cap() -> CapStanding {
    CapStanding {
        cap: CapId::new("c".repeat(256)).unwrap(),
        scope: Scope::Account,
        meter: Meter::Tokens,
        window: Window::Balance,
        limit: 1,
        spent: 0,
        held: 0,
        resets_at_ms: None,
    }
}

fn account(name: &str) -> AccountId {
    AccountId::new(name).unwrap()
}

fn read(name: &str) -> Read {
    Read {
        account: account(name),
        key: None,
        run: None,
        reservation: None,
    }
}

fn reserve(name: &str, wait_ms: u64) -> Reserve {
    Reserve {
        team: None,
        id: CommandId::from(ulid::Ulid::new()),
        account: account(name),
        key: seatbelt_schemas::ids::KeyId::new("k").unwrap(),
        model: None,
        run: None,
        end_user: None,
        input_tokens: 1,
        output_tokens: 1,
        tool_calls: 0,
        deadline_ms: 1,
        wait_ms,
        on_short: seatbelt_schemas::event::OnShort::Refuse,
        on_unknown: seatbelt_schemas::event::OnUnknown::ChargeHold,
        budget: None,
        within: None,
    }
}

fn settle(name: &str) -> Settle {
    let reservation = CommandId::from(ulid::Ulid::new()).into();
    Payer::new(name, "k").settle(reservation, 5)
}

const PARTITION: Partition = Partition(2);

async fn host(nats: &TestNats, ledger: &Arc<Scripted>) -> LedgerService {
    let connection = nats.connect("host").await;
    let ledger: Arc<dyn Ledger> = Arc::clone(ledger) as _;
    LedgerService::start(&connection, &Names::default(), PARTITION, ledger)
        .await
        .unwrap()
}

async fn remote(nats: &TestNats, patience: Duration) -> RemoteLedger {
    let connection = nats.connect("gateway").await;
    RemoteLedger::new(&connection, &Names::default(), PARTITION, patience)
}

#[tokio::test]
async fn a_remote_settle_is_one_request_with_two_replies() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let _service = host(&nats, &ledger).await;
    let remote = remote(&nats, PATIENCE).await;
    let taken = remote.settle_early(settle("acct")).await.unwrap();
    assert_eq!(taken.resolution, charged());
    assert_eq!(taken.lasting.await, Ok(charged()));
    assert_eq!(*ledger.settles.lock().unwrap(), [None]);
}

#[tokio::test]
async fn a_reply_that_is_too_large_is_told_as_such_at_once() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let _service = host(&nats, &ledger).await;
    let remote = remote(&nats, PATIENCE).await;
    let answer = remote.read(read("large")).await;
    assert!(
        matches!(&answer, Err(CommandError::Invalid { detail }) if detail.contains("max_payload")),
        "{answer:?}"
    );
    assert_eq!(ledger.calls.load(Ordering::SeqCst), 1, "asked once");
}

#[tokio::test]
async fn a_second_reply_that_does_not_come_is_not_waited_for_long() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let _service = host(&nats, &ledger).await;
    let remote = remote(&nats, PATIENCE).await;
    let taken = remote.settle_early(settle("never")).await.unwrap();
    let lasting = timeout(PATIENCE, taken.lasting).await.expect("bounded");
    assert!(
        matches!(lasting, Err(CommandError::Unavailable { .. })),
        "{lasting:?}"
    );
    assert_eq!(*ledger.settles.lock().unwrap(), [None]);
}

#[tokio::test]
async fn a_settle_to_nobody_is_unavailable_once_patience_ends() {
    let nats = TestNats::start().await;
    let remote = remote(&nats, Duration::from_millis(300)).await;
    let begun = Instant::now();
    let answer = remote.settle_early(settle("acct")).await.map(drop);
    assert!(
        matches!(answer, Err(CommandError::Unavailable { .. })),
        "{answer:?}"
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_settle_of_an_earlier_gateway_has_one_reply() {
    #[derive(serde::Serialize)]
    struct Body {
        command: Settle,
        ack: Ack,
    }
    #[derive(serde::Serialize)]
    struct Request {
        v: u8,
        within_ms: u64,
        body: Body,
    }
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let _service = host(&nats, &ledger).await;
    let request = Request {
        v: 1,
        within_ms: 5_000,
        body: Body {
            command: settle("acct"),
            ack: Ack::Taken,
        },
    };
    let connection = nats.connect("earlier").await;
    let subject = Names::default().ledger_subject(PARTITION, "settle");
    let payload = wire::encode(&request).into();
    let reply = connection.client().request(subject, payload).await.unwrap();
    let reply: serde_json::Value = rmp_serde::from_slice(&reply.payload).unwrap();
    assert_eq!(reply["ok"]["position"], 7);
    assert_eq!(reply.get("lasting"), None, "a field it does not know");
    assert_eq!(*ledger.settles.lock().unwrap(), [Some(Ack::Taken)]);
}

#[tokio::test]
async fn a_remote_ledger_answers_as_the_local_one() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let service = host(&nats, &ledger).await;
    let remote = remote(&nats, PATIENCE).await;
    let standing = remote.read(read("acct")).await.unwrap();
    assert_eq!(
        (standing.account, standing.position),
        (account("acct"), POSITION)
    );
    let error = remote.reserve(reserve("acct", 0)).await.unwrap_err();
    assert_eq!(
        error,
        CommandError::UnknownAccount {
            account: account("acct")
        }
    );
    let admin = Admin {
        id: CommandId::from(ulid::Ulid::new()),
        account: account("acct"),
        actor: Actor::operator("test"),
        change: Change::OpenAccount,
    };
    let outcome = remote.admin(admin).await;
    assert_eq!(outcome, Ok(AdminOutcome { position: None }));
    service.stop().await;
}

#[tokio::test]
async fn bad_requests_get_a_typed_error() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let _service = host(&nats, &ledger).await;
    let connection = nats.connect("gateway").await;
    let future = wire::encode(&HashMap::from([("v", 2)]));
    let too_long = vec![0; 100 * 1024];
    let cases: [(&str, &[u8], &str); 5] = [
        ("steal", b"", "unknown verb"),
        ("read", b"", "cannot read"),
        ("read", b"\x81\xa1v\x01", "within_ms"),
        ("read", &future, "version 2"),
        ("read", &too_long, "at most"),
    ];
    for (verb, bytes, words) in cases {
        let subject = Names::default().ledger_subject(PARTITION, verb);
        let reply = connection
            .client()
            .request(subject, bytes.to_vec().into())
            .await
            .unwrap();
        let reply: rmpv::Value = rmp_serde::from_slice(&reply.payload).unwrap();
        let error = reply["error"]["invalid"]["detail"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(error.contains(words), "{verb}: {reply}");
    }
    assert_eq!(ledger.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_call_finds_the_next_host_within_its_time() {
    let nats = TestNats::start().await;
    let remote = remote(&nats, PATIENCE).await;
    // nobody yet
    let early = tokio::spawn({
        let remote = remote.clone();
        async move { remote.read(read("acct")).await }
    });
    let first = Arc::<Scripted>::default();
    let service = host(&nats, &first).await;
    assert_eq!(early.await.unwrap().unwrap().position, POSITION);
    // one goes, the next one comes
    service.stop().await;
    let late = tokio::spawn({
        let remote = remote.clone();
        async move { remote.read(read("acct")).await }
    });
    let second = Arc::<Scripted>::default();
    let _service = host(&nats, &second).await;
    assert_eq!(late.await.unwrap().unwrap().position, POSITION);
    assert_eq!(second.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn without_a_host_a_call_is_unavailable_when_its_time_is_up() {
    let nats = TestNats::start().await;
    let remote = remote(&nats, Duration::from_millis(400)).await;
    let begun = Instant::now();
    let answer = remote.reserve(reserve("acct", 300)).await;
    assert!(
        matches!(answer, Err(CommandError::Unavailable { .. })),
        "{answer:?}"
    );
    assert!(
        (300..2000).contains(&begun.elapsed().as_millis()),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_asked_again_with_the_same_id() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let service = host(&nats, &ledger).await;
    let remote = remote(&nats, Duration::from_secs(3)).await;
    let command = reserve("never", 0);
    let id = command.id;
    let answer = remote.reserve(command).await;
    assert!(
        matches!(answer, Err(CommandError::Unavailable { .. })),
        "{answer:?}"
    );
    assert!(ledger.seen.lock().unwrap()[&id] >= 2);
    service.stop().await;
    assert_eq!(
        ledger.waiting.load(Ordering::SeqCst),
        0,
        "given up with the caller's time"
    );
}

#[tokio::test]
async fn a_reserve_whose_caller_goes_away_is_given_back() {
    let nats = TestNats::start().await;
    let ledger = Arc::<Scripted>::default();
    let _service = host(&nats, &ledger).await;
    let remote = remote(&nats, PATIENCE).await;
    let command = reserve("never", 60_000);
    let reservation = ReservationId::from(command.id);
    let call = tokio::spawn(async move { remote.reserve(command).await });
    let reached = async {
        while ledger.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, reached)
        .await
        .expect("the host works on it");
    call.abort();
    let given_back = async {
        while !ledger.released.lock().unwrap().contains(&reservation)
            || ledger.waiting.load(Ordering::SeqCst) > 0
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, given_back).await.expect("given back");
}

/// As of a host that slept while an operator put another journal in place and adopted it.
#[tokio::test]
async fn only_what_stands_on_the_journal_is_noted_of_it() {
    let nats = TestNats::start().await;
    let (connection, names) = provisioned(&nats).await;
    let found = provision(&connection, &names, layout(4)).await.unwrap();
    let journal = NatsJournal::open(&connection, &names, Partition(0), 1)
        .await
        .unwrap();
    let commits = [1, 2].map(|n| Bytes::from(vec![n]));
    let mut end = Sequence(0);
    for commit in &commits {
        end = journal.append(end, commit.clone()).await.unwrap();
    }
    let jetstream = async_nats::jetstream::new(connection.client().clone());
    let meta = jetstream.get_key_value(names.meta_bucket()).await.unwrap();
    let witnesses = Witnesses::new(&connection, &names, Partition(0), &found.ledger);
    let noted = async |at: u64, commit: &[u8]| {
        let last = (Sequence(at), ChainHash::of(commit));
        witnesses.note(&journal, last).await.unwrap();
        meta.get("journal.00").await.unwrap()
    };
    assert_eq!(noted(9, b"of before").await, None, "it ends at 2");
    assert_eq!(noted(2, b"of before").await, None, "another one is there");
    assert!(noted(2, &commits[1]).await.is_some());
}
