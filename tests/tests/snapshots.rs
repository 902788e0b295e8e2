//! Snapshots that were lost or spoiled: whoever starts from them finds out, says so, and takes the
//! journal's word.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use async_nats::HeaderMap;
use seatbelt_tests::{Foreign, Key, Running, Stack};

const SNAPSHOT: &str = "$KV.SEATBELT_SNAPSHOTS.account.acct-cap";

/// One request of 15 tokens, projected.
async fn spent(foreign: &Foreign) -> Running {
    let key = Key::new("cap").hard_cap(1000);
    let stack = Stack::new().upstream(foreign).key(key).start().await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    stack
        .cap("sk-cap", "the snapshot is there", |cap| cap["spent"] == 15)
        .await;
    stack
}

/// After the next start the ledger knows what was spent, the log tells, and the snapshot is whole again.
async fn is_found_and_put_right(stack: Running) {
    let stack = stack.stop().await.start().await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    stack
        .cap("sk-cap", "the snapshot is whole", |cap| cap["spent"] == 30)
        .await;
    let log = stack.log();
    assert!(log.contains("ERROR") && log.contains("snapshot"), "{log}");
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn a_spoiled_snapshot_is_found_and_put_right() {
    let foreign = Foreign::start().await;
    let stack = spent(&foreign).await;
    let client = stack.nats_client().await;
    let jetstream = async_nats::jetstream::new(client);
    let sent = jetstream.publish(SNAPSHOT, "spoiled".into()).await;
    sent.unwrap().await.unwrap();
    is_found_and_put_right(stack).await;
}

#[tokio::test]
async fn a_deleted_snapshot_is_found_and_put_right() {
    let foreign = Foreign::start().await;
    let stack = spent(&foreign).await;
    let client = stack.nats_client().await;
    let jetstream = async_nats::jetstream::new(client);
    let mut deleted = HeaderMap::new();
    deleted.insert("KV-Operation", "DEL");
    let sent = jetstream
        .publish_with_headers(SNAPSHOT, deleted, "".into())
        .await;
    sent.unwrap().await.unwrap();
    is_found_and_put_right(stack).await;
}

/// A purge by subject leaves no marker: the key is as if it had never been.
#[tokio::test]
async fn a_purged_snapshot_gives_no_account_a_second_beginning() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(100);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    for spent in [15, 30, 45, 60, 75, 90] {
        assert!(stack.chat("sk-cap", 5).await.is_ok());
        stack
            .cap("sk-cap", "it is projected", |cap| cap["spent"] == spent)
            .await;
    }
    let client = stack.nats_client().await;
    let jetstream = async_nats::jetstream::new(client);
    let bucket = jetstream.get_stream("KV_SEATBELT_SNAPSHOTS").await.unwrap();
    let purged = bucket.purge().filter(SNAPSHOT).await.unwrap();
    assert_eq!(purged.purged, 1);
    let stack = stack.kill_all().await.start().await;
    let refused = stack.chat("sk-cap", 5).await;
    let refused = refused.expect_error(429, "insufficient_quota", "insufficient_quota");
    assert_eq!(refused["spent"], 90, "{refused}");
    // what a server that was killed has of a bucket that it need not sync is nothing, or something older
    let log = stack.log();
    // found by the projector, beside its work, or by the writer at the account's first use
    let is_told = ["snapshot lost", "snapshots lost"].map(|words| log.contains(words));
    assert!(log.contains("ERROR") && is_told.contains(&true), "{log}");
    stack.stop().await.verify().await;
}
