//! The journal on a real nats-server: the conformance suite, and what only a server can do wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;
use futures::StreamExt;
use seatbelt_bus::ProvisionError;
use seatbelt_ledger::{
    journal::{AppendError, Journal, Sequence, conformance},
    nats::NatsJournal,
};
use seatbelt_schemas::{names::Names, position::Partition};
use seatbelt_tests::nats::{PATIENCE, TestNats};
use tokio::time::timeout;

fn bytes(number: u64) -> Bytes {
    Bytes::from(format!("commit {number}"))
}

async fn open(nats: &TestNats, partition: u8) -> NatsJournal {
    let connection = nats.connect("journal-test").await;
    let opened = NatsJournal::open(&connection, &Names::default(), Partition(partition), 1).await;
    opened.expect("the journal opens")
}

#[tokio::test]
async fn nats_journal_conforms() {
    let nats = TestNats::start().await;
    let fresh = AtomicU8::new(0);
    conformance::suite(async || {
        let partition = fresh.fetch_add(1, Ordering::Relaxed);
        [open(&nats, partition).await, open(&nats, partition).await]
    })
    .await;
}

#[tokio::test]
async fn a_journal_has_the_settings_of_the_contract() {
    let nats = TestNats::start().await;
    drop(open(&nats, 3).await);
    let connection = nats.connect("look").await;
    let stream = connection
        .jetstream()
        .get_stream("SEATBELT_JOURNAL_03")
        .await;
    let found = stream
        .expect("the stream is there")
        .cached_info()
        .config
        .clone();
    assert_eq!(found.subjects, ["seatbelt.journal.v1.03"]);
    assert_eq!(found.storage, StorageType::File);
    assert_eq!(found.discard, DiscardPolicy::New);
    assert_eq!(found.num_replicas, 1);
    assert!(found.deny_delete && found.deny_purge && !found.allow_rollup);
    assert_eq!((found.max_messages, found.max_bytes), (-1, -1));
    assert_eq!(found.max_age, Duration::ZERO);
    // and opening it again finds nothing wrong
    drop(open(&nats, 3).await);
}

async fn differing_field(nats: &TestNats, adjust: impl FnOnce(&mut Config)) -> &'static str {
    let connection = nats.connect("operator").await;
    let names = Names::default();
    let mut config = Config {
        name: names.journal_stream(Partition(0)),
        subjects: vec![names.journal_subject(Partition(0))],
        discard: DiscardPolicy::New,
        num_replicas: 1,
        deny_delete: true,
        deny_purge: true,
        max_messages_per_subject: -1,
        ..Config::default()
    };
    adjust(&mut config);
    let made = connection.jetstream().create_stream(config.clone()).await;
    made.expect("the operator's stream");
    let opened = NatsJournal::open(&connection, &names, Partition(0), 1).await;
    let deleted = connection.jetstream().delete_stream(&config.name).await;
    deleted.expect("the operator deletes it again");
    match opened {
        Ok(_) => "",
        Err(ProvisionError::Differs { field, .. }) => field,
        Err(other) => panic!("must differ, was {other:?}"),
    }
}

#[tokio::test]
async fn a_stream_with_other_settings_is_refused_by_name_of_the_setting() {
    let nats = TestNats::start().await;
    assert_eq!(differing_field(&nats, |_| {}).await, "");
    let field = differing_field(&nats, |config| config.deny_delete = false).await;
    assert_eq!(field, "deny_delete");
    let field = differing_field(&nats, |config| config.deny_purge = false).await;
    assert_eq!(field, "deny_purge");
    let field = differing_field(&nats, |config| config.storage = StorageType::Memory).await;
    assert_eq!(field, "storage");
    let field = differing_field(&nats, |config| config.discard = DiscardPolicy::Old).await;
    assert_eq!(field, "discard");
    let field = differing_field(&nats, |config| config.max_messages = 10).await;
    assert_eq!(field, "max_msgs");
    let field = differing_field(&nats, |config| config.max_age = Duration::from_secs(3600)).await;
    assert_eq!(field, "max_age");
    let more = "seatbelt.other.v1.00".to_owned();
    let field = differing_field(&nats, |config| config.subjects.push(more)).await;
    assert_eq!(field, "subjects");
}

#[tokio::test]
async fn a_journal_nobody_made_is_missing_for_a_reader() {
    let nats = TestNats::start().await;
    let connection = nats.connect("auditor").await;
    let opened = NatsJournal::open_existing(&connection, &Names::default(), Partition(7)).await;
    assert!(
        matches!(opened, Err(ProvisionError::Missing { .. })),
        "{opened:?}"
    );
}

/// Appends until `last`, trying again after each unknown outcome as the writer does.
async fn append_through(journal: &NatsJournal, last: u64) -> u64 {
    let mut unknowns = 0;
    let mut after = 0;
    while after < last {
        let expected = Sequence(after);
        match journal.append(expected, bytes(after + 1)).await {
            Ok(landed) => assert_eq!(landed, expected.next()),
            Err(AppendError::Unknown { .. }) => {
                unknowns += 1;
                continue;
            }
            Err(AppendError::WrongSequence { .. }) => {
                let there = journal.get(expected.next()).await;
                let Ok(there) = there else { continue };
                let there = there.expect("something stands there").payload;
                assert_eq!(there, bytes(after + 1), "only this writer appends");
            }
            Err(refused) => panic!("{refused:?}"),
        }
        after += 1;
    }
    unknowns
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_mid_append_never_makes_a_wrong_success() {
    const COMMITS: u64 = 3000;
    const KILLS: u64 = 4;
    let mut nats = TestNats::start().await;
    let journal = open(&nats, 0).await;
    let follower = open(&nats, 0).await;
    let writer = tokio::spawn({
        let journal = journal.clone();
        async move { append_through(&journal, COMMITS).await }
    });
    let reader = tokio::spawn(async move {
        let mut seen = 0;
        let mut commits = follower.follow(Sequence(0));
        while seen < COMMITS {
            let next = commits.next().await.expect("a follower never ends");
            let commit = next.expect("a follower survives a restart");
            assert_eq!(commit.sequence, Sequence(seen + 1));
            assert_eq!(commit.payload, bytes(seen + 1));
            seen += 1;
        }
    });
    for kill in 1..=KILLS {
        let enough = Sequence(kill * COMMITS / (KILLS + 2));
        let look = nats.connect("look").await;
        let looking = NatsJournal::open_existing(&look, &Names::default(), Partition(0)).await;
        let looking = looking.expect("the journal is there");
        let reached = async { while looking.end().await.expect("an end") < enough {} };
        timeout(PATIENCE, reached)
            .await
            .expect("the writer goes on");
        nats.server
            .restart()
            .await
            .expect("nats-server starts again");
    }
    timeout(PATIENCE, reader)
        .await
        .expect("the follower gets all")
        .unwrap();
    let unknowns = timeout(PATIENCE, writer)
        .await
        .expect("the writer gets through")
        .unwrap();
    assert!(
        unknowns > 0,
        "a kill in the middle leaves an append without an answer"
    );
    assert_eq!(journal.end().await.unwrap(), Sequence(COMMITS));
}

#[tokio::test]
async fn an_append_to_a_dead_server_is_unknown_and_quick() {
    let mut nats = TestNats::start().await;
    let journal = open(&nats, 0).await;
    nats.server.kill().await;
    let outcome = timeout(
        Duration::from_secs(5),
        journal.append(Sequence(0), bytes(1)),
    )
    .await;
    let outcome = outcome.expect("bounded");
    assert!(
        matches!(outcome, Err(AppendError::Unknown { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_sealed_journal_refuses() {
    let nats = TestNats::start().await;
    let journal = open(&nats, 0).await;
    journal.append(Sequence(0), bytes(1)).await.unwrap();
    let connection = nats.connect("operator").await;
    let stream = connection
        .jetstream()
        .get_stream("SEATBELT_JOURNAL_00")
        .await
        .unwrap();
    let mut config = stream.cached_info().config.clone();
    config.sealed = true;
    connection
        .jetstream()
        .update_stream(config)
        .await
        .expect("sealed");
    let outcome = journal.append(Sequence(1), bytes(2)).await;
    assert!(
        matches!(outcome, Err(AppendError::Refused { .. })),
        "{outcome:?}"
    );
    assert_eq!(journal.end().await.unwrap(), Sequence(1));
}

#[tokio::test]
async fn a_commit_larger_than_the_server_takes_is_refused() {
    let nats = TestNats::start().await;
    let journal = open(&nats, 0).await;
    let outcome = journal.append(Sequence(0), vec![7; 2 << 20].into()).await;
    assert!(
        matches!(outcome, Err(AppendError::Refused { .. })),
        "{outcome:?}"
    );
    assert_eq!(journal.end().await.unwrap(), Sequence(0));
}

/// The folder of the journal's message blocks, somewhere beneath `folder`.
fn blocks_of(folder: &Path) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.ends_with("SEATBELT_JOURNAL_00/msgs") {
                return Some(path);
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    None
}

#[tokio::test]
async fn a_journal_whose_storage_broke_refuses_and_goes_on_once_repaired() {
    /// More than one block of the server's file store holds.
    const ENOUGH: u64 = 400;
    let mut nats = TestNats::start().await;
    let journal = open(&nats, 0).await;
    let large = Bytes::from(vec![7; 60_000]);
    journal.append(Sequence(0), large.clone()).await.unwrap();
    // the next block cannot be made: a file stands where its folder was
    let blocks = blocks_of(&nats.folder()).expect("the journal's blocks");
    let away = blocks.with_extension("away");
    fs::rename(&blocks, &away).unwrap();
    fs::write(&blocks, "in the way").unwrap();
    let mut end = Sequence(1);
    let broken = loop {
        match journal.append(end, large.clone()).await {
            Ok(landed) => end = landed,
            Err(error) => break error,
        }
        assert!(end < Sequence(ENOUGH), "the server found a way to store");
    };
    assert!(matches!(broken, AppendError::Refused { .. }), "{broken:?}");
    assert_eq!(journal.end().await.unwrap(), end);

    nats.server.kill().await;
    fs::remove_file(&blocks).unwrap();
    fs::rename(&away, &blocks).unwrap();
    nats.server.restart().await.unwrap();
    let there = journal.end().await.unwrap();
    assert!(
        there <= end.next(),
        "nothing but the refused commit may have come: {there}"
    );
    let landed = append_until_known(&journal, there, large).await;
    assert_eq!(landed, there.next());
}

/// Tries again while the client finds its way back to the server.
async fn append_until_known(journal: &NatsJournal, at: Sequence, bytes: Bytes) -> Sequence {
    let tries = async {
        loop {
            match journal.append(at, bytes.clone()).await {
                Ok(landed) => return landed,
                Err(AppendError::WrongSequence { .. }) => {
                    return journal.end().await.expect("an end");
                }
                Err(AppendError::Unknown { .. }) => {}
                Err(refused) => panic!("{refused:?}"),
            }
        }
    };
    timeout(PATIENCE, tries).await.expect("the journal goes on")
}

/// The settings of the journal's stream as the server keeps them, somewhere beneath `folder`.
fn settings_of(folder: &Path) -> PathBuf {
    let blocks = blocks_of(folder).expect("the journal's blocks");
    blocks
        .parent()
        .expect("it lies in the folder of its stream")
        .join("meta.sum")
}

/// A server that dies while it makes a stream leaves a folder that it does not load; it writes no settings
/// there when the stream is made again.
#[tokio::test]
async fn a_journal_made_on_a_folder_that_was_left_is_there_after_the_next_start() {
    let mut nats = TestNats::start().await;
    drop(open(&nats, 0).await);
    nats.server.kill().await;
    fs::remove_file(settings_of(&nats.folder())).unwrap();
    nats.server.restart().await.unwrap();
    let journal = open(&nats, 0).await;
    let end = append_until_known(&journal, Sequence(0), bytes(1)).await;
    nats.server.restart().await.unwrap();
    let connection = nats.connect("again").await;
    let there = NatsJournal::open_existing(&connection, &Names::default(), Partition(0)).await;
    let there = there.expect("what was acknowledged is still there");
    assert_eq!(there.end().await.unwrap(), end);
}
