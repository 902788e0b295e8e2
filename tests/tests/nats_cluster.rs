//! Journal and feed on three nats-servers, one of them killed at a time.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use seatbelt_bus::{
    Durability, FeedMessage, FeedStream, Layout, Proof, prove, provision, snapshot_bucket,
};
use seatbelt_ledger::{
    journal::{AppendError, Journal, Sequence, conformance},
    nats::NatsJournal,
    store::Revision,
};
use seatbelt_schemas::{
    names::Names,
    position::{Partition, Partitions},
};
use seatbelt_tests::{
    nats::{PATIENCE, TestCluster},
    until,
};
use tokio::time::timeout;

const REPLICAS: u8 = 3;

async fn open(cluster: &TestCluster, partition: u8) -> NatsJournal {
    let connection = cluster.connect("journal-test").await;
    let names = Names::default();
    let opened = NatsJournal::open(&connection, &names, Partition(partition), REPLICAS).await;
    opened.expect("the journal opens")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_journal_conforms() {
    let cluster = TestCluster::start().await;
    let fresh = AtomicU8::new(0);
    let suite = conformance::suite(async || {
        let partition = fresh.fetch_add(1, Ordering::Relaxed);
        [
            open(&cluster, partition).await,
            open(&cluster, partition).await,
        ]
    });
    // large: it runs many cases
    Box::pin(suite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_is_provisioned_in_three_copies_and_its_feed_appended_to() {
    let cluster = TestCluster::start().await;
    let (connection, names) = (cluster.connect("test").await, Names::default());
    let layout = Layout {
        partitions: Partitions::try_from(2).expect("two"),
        replicas: REPLICAS,
    };
    provision(&connection, &names, layout)
        .await
        .expect("provisioned");
    let proof = prove(&connection, Durability::Fsync, REPLICAS, &[]).await;
    assert_eq!(proof.expect("proved"), Proof::Replicated(REPLICAS));
    let proof = prove(&connection, Durability::Fsync, 1, &[]).await;
    assert_eq!(proof.expect("all three told"), Proof::Synced);

    let feed = FeedStream::open(&connection, &names, REPLICAS)
        .await
        .expect("feed");
    let headers: Vec<Vec<_>> = (1..=200)
        .map(|n| vec![("Nats-Msg-Id", format!("l/00/{n}"))])
        .collect();
    let message = |headers| FeedMessage {
        subject: "seatbelt.spend.v1.acct.settled",
        headers,
        payload: Bytes::from_static(b"event"),
    };
    let messages: Vec<_> = headers
        .iter()
        .map(|headers| message(headers.as_slice()))
        .collect();
    assert_eq!(feed.append(0, &messages).await.expect("appended"), 200);
    let found: Vec<_> = feed.entries(0, 200).try_collect().await.expect("entries");
    assert_eq!(found.len(), 200);

    let bucket = snapshot_bucket(&connection, &names, REPLICAS)
        .await
        .expect("bucket");
    let mut revision = Revision(0);
    for value in 0..20_u8 {
        let written = bucket
            .write("account.a", revision, vec![value].into())
            .await;
        revision = written.expect("written");
        let kept = bucket.read("account.a").await.expect("read");
        assert_eq!(
            (kept.value, kept.revision),
            (Some(vec![value].into()), revision)
        );
    }
}

fn bytes(number: u64) -> Bytes {
    Bytes::from(format!("commit {number}"))
}

/// Appends until `last`, trying again after each unknown outcome as the writer does.
async fn append_through(journal: &NatsJournal, last: u64) {
    let mut after = 0;
    while after < last {
        let expected = Sequence(after);
        match journal.append(expected, bytes(after + 1)).await {
            Ok(landed) => assert_eq!(landed, expected.next()),
            Err(AppendError::Unknown { .. }) => continue,
            Err(AppendError::WrongSequence { .. }) => {
                // either an earlier try of this commit, or one that is still on its way
                let Ok(Some(there)) = journal.get(expected.next()).await else {
                    continue;
                };
                assert_eq!(there.payload, bytes(after + 1), "only this writer appends");
            }
            Err(refused) => panic!("{refused:?}"),
        }
        after += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_server_killed_at_a_time_loses_and_doubles_nothing() {
    const COMMITS: u64 = 2000;
    const EACH_MAX: Duration = Duration::from_secs(60);
    let mut cluster = TestCluster::start().await;
    let journal = open(&cluster, 0).await;
    let follower = open(&cluster, 0).await;
    let writer = tokio::spawn({
        let journal = journal.clone();
        async move { append_through(&journal, COMMITS).await }
    });
    let (seen, mut progress) = tokio::sync::watch::channel(0);
    let reader = tokio::spawn(async move {
        let mut commits = follower.follow(Sequence(0));
        for number in 1..=COMMITS {
            let next = commits.next().await.expect("a follower never ends");
            let commit = next.expect("a follower survives the loss of a server");
            assert_eq!(
                (commit.sequence, commit.payload),
                (Sequence(number), bytes(number))
            );
            seen.send_replace(number);
        }
    });
    for node in 0..3_u64 {
        let enough = (node + 1) * COMMITS / 5;
        let reached = timeout(EACH_MAX, progress.wait_for(|seen| *seen >= enough)).await;
        reached.expect("it goes on").expect("the reader lives");
        let node = usize::try_from(node).expect("small");
        cluster.nodes[node].kill().await;
        // some commits without it
        let enough = enough + COMMITS / 20;
        let reached = timeout(EACH_MAX, progress.wait_for(|seen| *seen >= enough)).await;
        reached
            .expect("two of three go on")
            .expect("the reader lives");
        cluster.nodes[node]
            .restart()
            .await
            .expect("it starts again");
        cluster.nodes[node]
            .jetstream_ready(PATIENCE)
            .await
            .expect("and takes part");
    }
    timeout(EACH_MAX, writer)
        .await
        .expect("in time")
        .expect("appended all");
    timeout(EACH_MAX, reader)
        .await
        .expect("in time")
        .expect("read all");
    // a cluster that has just lost and got back a server may not answer at once
    let end = until("the cluster says where the journal ends", || async {
        journal.end().await.ok()
    });
    assert_eq!(end.await, Sequence(COMMITS));
}
