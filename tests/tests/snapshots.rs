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
