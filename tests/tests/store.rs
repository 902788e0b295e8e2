//! What keeps the ledger, in trouble while requests are served: what is derived deleted, the server
//! killed alone, full, or too small. Nothing is let through unaccounted, `/health/ready` says why, and
//! whatever can be put right is put right without a restart.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seatbelt_tests::{Foreign, Key, Running, Stack, nats::TestNats, until, until_within};
use serde_json::Value;

/// How long anything may take to be right again.
const SECONDS: Duration = Duration::from_secs(15);

async fn serves_again(stack: &Running) {
    until_within(SECONDS, "chat works again", || async {
        let answer = stack.try_chat("sk-cap", 5).await.ok()?;
        answer.is_ok().then_some(())
    })
    .await;
}

async fn readiness(stack: &Running) -> (u16, Value) {
    let answer = stack.get("/health/ready", "").await;
    (answer.status.as_u16(), answer.json())
}

async fn is_ready(stack: &Running) {
    until_within(SECONDS, "it is ready", || async {
        (readiness(stack).await.0 == 200).then_some(())
    })
    .await;
}

fn count(log: &str, words: &str) -> usize {
    log.lines().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn what_is_derived_may_be_deleted_while_requests_are_served() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(1000);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    for stream in [
        "KV_SEATBELT_LEASES",
        "KV_SEATBELT_SNAPSHOTS",
        "SEATBELT_FEED",
    ] {
        jetstream.delete_stream(stream).await.unwrap();
        serves_again(&stack).await;
        is_ready(&stack).await;
        until_within(SECONDS, format!("{stream} is there again"), || async {
            jetstream.get_stream(stream).await.ok()
        })
        .await;
        // "the feed is gone" names its stream, a bucket its own name
        let name = stream.trim_start_matches("KV_");
        let told = || {
            let log = stack.log();
            let told = log.lines().filter(|line| line.contains("made again"));
            told.filter(|line| line.contains(name)).count()
        };
        until(format!("{stream} is told"), || async {
            (told() > 0).then_some(())
        })
        .await;
        assert!(told() <= 4, "{stream} is told {} times", told());
    }
    let served = foreign.hits();
    stack
        .cap("sk-cap", "the snapshots are whole again", |cap| {
            cap["spent"] == 15 * served && cap["held"] == 0
        })
        .await;
    for words in ["snapshots wait", "projector waits", "feed waits"] {
        let told = count(&stack.log(), words);
        assert!(told <= 12, "{words:?} is told {told} times");
    }
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn a_server_that_is_killed_alone_is_started_again() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(1000);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    for round in 1..=2 {
        let server = i32::try_from(stack.server_pid()).unwrap();
        kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
        until("it is seen", || async {
            (count(&stack.log(), "nats-server ended by itself") == round).then_some(())
        })
        .await;
        serves_again(&stack).await;
        is_ready(&stack).await;
    }
    let served = foreign.hits();
    stack
        .cap("sk-cap", "all of it is settled", |cap| {
            cap["spent"] == 15 * served && cap["held"] == 0
        })
        .await;
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn a_server_that_takes_no_whole_commit_is_refused_at_the_start() {
    let server = TestNats::start_with(|options| options.max_payload = 32 * 1024).await;
    let home = Stack::new()
        .nats(&format!("url = {:?}", server.server.url()))
        .key(Key::new("cap").hard_cap(1000))
        .write();
    let refused = home.try_start_role("gateway").await.err().unwrap();
    assert!(
        refused.contains("max_payload") && refused.contains("32768"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_full_store_is_told_and_heals_once_there_is_room() {
    const MAX: u64 = 8 << 20;
    let server = TestNats::start_with(|options| options.max_file_store = Some(MAX)).await;
    let foreign = Foreign::start().await;
    let home = Stack::new()
        .nats(&format!("url = {:?}", server.server.url()))
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(100_000))
        .write();
    let stack = home.start_role("gateway").await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    is_ready(&stack).await;

    // somebody else fills the server
    let other = server.connect("other").await;
    let config = async_nats::jetstream::stream::Config {
        name: "OTHER".to_owned(),
        ..Default::default()
    };
    let mut stream = other.jetstream().create_stream(config).await.unwrap();
    let piece = bytes::Bytes::from(vec![0; 256 * 1024]);
    for _ in 0..MAX / piece.len() as u64 + 1 {
        let sent = other.jetstream().publish("OTHER", piece.clone()).await;
        if sent.unwrap().await.is_err() {
            break;
        }
    }
    let body = until_within(SECONDS, "the store is told as full", || async {
        let (status, body) = readiness(&stack).await;
        let reasons = body["reasons"].to_string();
        (status == 503 && reasons.contains("max_file_store")).then_some(body)
    })
    .await;
    assert!(
        body["warnings"].to_string().contains("nearly full"),
        "{body}"
    );
    let metrics = stack.metrics_page().await;
    let line = "seatbelt_gateway_not_ready_reasons{cause=\"store\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let turned_away = stack.chat("sk-cap", 5).await;
    turned_away.expect_error(503, "api_error", "ledger_unavailable");

    stream.purge().await.unwrap();
    assert!(stream.info().await.unwrap().state.messages == 0);
    serves_again(&stack).await;
    is_ready(&stack).await;
    stack.stop().await;
    home.verify().await;
}
