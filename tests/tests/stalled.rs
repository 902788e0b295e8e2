//! What is derived stands still, or what no start may find missing goes, while requests are served: it is told
//! with its remedy, the remedies of docs/recovery.md put it right, and the process ends when it is asked to.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seatbelt_bus::connect;
use seatbelt_ledger::journal::{Journal as _, Sequence};
use seatbelt_ledger::nats::NatsJournal;
use seatbelt_schemas::names::Names;
use seatbelt_tests::{
    Foreign, Key, Running, Stack,
    nats::{self, PATIENCE},
    page::{commands, follow, home_of_cap, shell, stream},
    stack::Stopped,
    until, until_within,
};
use serde_json::Value;

/// How long a process may take to end whose store answers half of what it is asked.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

async fn capped(foreign: &Foreign) -> Running {
    let stack = Stack::new().upstream(foreign);
    stack.key(Key::new("cap").hard_cap(1000)).start().await
}

async fn spent(stack: &Running, in_all: u64) {
    stack
        .cap("sk-cap", "it is projected", |cap| cap["spent"] == in_all)
        .await;
}

async fn ready(stack: &Running) -> (u16, Value) {
    let answer = stack.get("/health/ready", "").await;
    (answer.status.as_u16(), answer.json())
}

fn warnings(ready: &Value) -> String {
    ready["warnings"].to_string()
}

/// Waits until a warning has all these words, and gives what ready said.
async fn warned(stack: &Running, words: &[&str]) -> (u16, Value) {
    until(format!("there is a warning of {words:?}"), || async {
        let (status, body) = ready(stack).await;
        let said = warnings(&body);
        words
            .iter()
            .all(|word| said.contains(word))
            .then_some((status, body))
    })
    .await
}

async fn nothing_is_warned_of(stack: &Running) {
    until("there is no warning of a projection", || async {
        let (_, body) = ready(stack).await;
        (!warnings(&body).contains("stands still")).then_some(())
    })
    .await;
}

/// How many messages the feed holds.
async fn on_feed(stack: &Running) -> u64 {
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    let mut feed = jetstream.get_stream("SEATBELT_FEED").await.unwrap();
    feed.info().await.unwrap().state.messages
}

/// Every event of the journals is on the feed.
async fn feed_is_whole(stack: &Running) {
    until("every event is on the feed", || async {
        let events = stack.home().events().await.len() as u64;
        (on_feed(stack).await == events).then_some(())
    })
    .await;
}

/// Turns one bit of the last message that a stream's files hold.
fn damage_the_end(home: &Stopped, name: &str) {
    let messages = stream(home, name).join("msgs");
    let blocks = fs::read_dir(messages)
        .unwrap()
        .map(|file| file.unwrap().path());
    let block = blocks.filter(|path| path.extension().is_some_and(|kind| kind == "blk"));
    let block = block.max().unwrap();
    let mut bytes = fs::read(&block).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    fs::write(&block, bytes).unwrap();
}

#[tokio::test]
async fn skipping_a_message_while_it_is_served_is_enough() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    spent(&stack, 15).await;
    let client = stack.nats_client().await;
    let subject = Names::default().journal_subject(home_of_cap());
    client.publish(subject, "hello".into()).await.unwrap();
    client.flush().await.unwrap();
    let partition = format!("partition {}", home_of_cap());
    let words = [
        &*partition,
        "feed",
        "snapshots",
        "stands still",
        "docs/recovery.md",
    ];
    let (status, _) = warned(&stack, &words).await;
    assert_eq!(status, 200, "nobody was turned away yet");
    let stalled = "seatbelt_gateway_projections_stalled{component=\"feed\"} 1";
    assert!(stack.metrics_page().await.contains(stalled));

    let url = fs::read(stack.home().data().join("nats.json")).unwrap();
    let url: Value = serde_json::from_slice(&url).unwrap();
    let connected = connect(url["url"].as_str().unwrap(), "test", PATIENCE)
        .await
        .unwrap();
    let journal = NatsJournal::open_existing(&connected, &Names::default(), home_of_cap()).await;
    let end = journal.unwrap().end().await.unwrap();
    follow(stack.home(), &commands("Stray message", end)).await;
    until("it is served again", || async {
        stack.chat("sk-cap", 5).await.is_ok().then_some(())
    })
    .await;
    spent(&stack, 15 * foreign.hits()).await;
    nothing_is_warned_of(&stack).await;
    feed_is_whole(&stack).await;
    stack.stop().await.verify().await;
}

/// A message of what is derived that the server keeps and cannot read, and the way out that the page names.
async fn damaged(name: &str, component: &str, heading: &str) {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    spent(&stack, 15).await;
    let home = stack.stop().await;
    damage_the_end(&home, name);

    let stack = home.start().await;
    assert!(stack.chat("sk-cap", 5).await.is_ok(), "requests are served");
    let (status, _) = warned(&stack, &[component, "stands still", "docs/recovery.md"]).await;
    assert_eq!(status, 200);
    assert!(stack.chat("sk-cap", 5).await.is_ok(), "and go on being so");
    stack.ask_to_stop();
    let home = stack.ended(ENDS_WITHIN).await;

    follow(&home, &commands(heading, Sequence(0))).await;
    let stack = home.start().await;
    spent(&stack, 45).await;
    feed_is_whole(&stack).await;
    nothing_is_warned_of(&stack).await;
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn a_feed_that_the_server_cannot_read_is_told_and_made_again() {
    damaged("SEATBELT_FEED", ", feed:", "Lost feed").await;
}

#[tokio::test]
async fn snapshots_that_the_server_cannot_read_are_told_and_made_again() {
    damaged("KV_SEATBELT_SNAPSHOTS", ", snapshots:", "Lost snapshots").await;
}

#[tokio::test]
async fn what_no_start_may_find_missing_is_missed_while_it_is_served() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    jetstream.delete_stream("SEATBELT_USAGE").await.unwrap();
    until("the usage stream is made again", || async {
        jetstream.get_stream("SEATBELT_USAGE").await.ok()
    })
    .await;
    until("it is told", || async {
        let told = stack
            .log()
            .contains("the stream of usage events is gone: made again");
        told.then_some(())
    })
    .await;
    for bucket in ["THREADS", "IDEMPOTENCE"] {
        let stream = format!("KV_SEATBELT_{bucket}");
        jetstream.delete_stream(&stream).await.unwrap();
        let gone = format!("SEATBELT_{bucket} is gone");
        warned(&stack, &[&gone, "seatbelt nats provision"]).await;
    }
    jetstream.delete_stream("KV_SEATBELT_META").await.unwrap();
    let (status, _) = warned(&stack, &["SEATBELT_META is gone", "rebuild-meta"]).await;
    assert_eq!(status, 200);
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    let home = stack.stop().await;
    follow(&home, &commands("Lost META", Sequence(0))).await;
    let stack = home.start().await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    spent(&stack, 45).await;
    nothing_is_warned_of(&stack).await;
    stack.stop().await.verify().await;
}

fn kill_the_server(stack: &Running) {
    let server = i32::try_from(stack.server_pid()).unwrap();
    kill(Pid::from_raw(server), Signal::SIGKILL).unwrap();
}

/// As when its disk is full, or its program is being replaced.
#[tokio::test]
async fn a_server_that_does_not_come_up_is_tried_again_for_as_long_as_it_takes() {
    let foreign = Foreign::start().await;
    let programs = tempfile::tempdir().unwrap();
    let program = programs.path().join("nats-server");
    let put = |program: &Path| std::os::unix::fs::symlink(nats::program(), program).unwrap();
    put(&program);
    let stack = Stack::new()
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(1000))
        .nats(&format!("server = {program:?}"))
        .start()
        .await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    fs::remove_file(&program).unwrap();
    kill_the_server(&stack);
    until("it failed several times, and ready says why", || async {
        let failed = stack
            .log()
            .matches("does not come up: it is tried again")
            .count();
        let (status, body) = ready(&stack).await;
        let told = body["reasons"]
            .to_string()
            .contains("nats-server does not come up");
        (failed >= 3 && status == 503 && told).then_some(())
    })
    .await;
    put(&program);
    until_within(ENDS_WITHIN, "it serves again", || async {
        let answer = stack.try_chat("sk-cap", 5).await.ok()?;
        answer.is_ok().then_some(())
    })
    .await;
    until("it is ready", || async {
        (ready(&stack).await.0 == 200).then_some(())
    })
    .await;
    stack.stop().await.verify().await;
}

/// And asked to end meanwhile, it ends.
#[tokio::test]
async fn without_a_server_it_ends_all_the_same() {
    let foreign = Foreign::start().await;
    let programs = tempfile::tempdir().unwrap();
    let program = programs.path().join("nats-server");
    std::os::unix::fs::symlink(nats::program(), &program).unwrap();
    let stack = Stack::new()
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(1000))
        .nats(&format!("server = {program:?}"))
        .gateway("drain_ms = 3000")
        .start()
        .await;
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    fs::remove_file(&program).unwrap();
    kill_the_server(&stack);
    until("it is seen", || async {
        stack
            .log()
            .contains("does not come up: it is tried again")
            .then_some(())
    })
    .await;
    stack.ask_to_stop();
    let home = stack.ended(ENDS_WITHIN).await;
    std::os::unix::fs::symlink(nats::program(), &program).unwrap();
    let verified = shell(&home, "seatbelt audit verify --config seatbelt.toml").await;
    assert!(verified.status.success(), "{verified:?}");
}
