//! Starting and stopping: a stop drains what runs, leaves no process and loses nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Foreign, Key, Stack, until};

#[tokio::test]
async fn a_stop_lets_the_running_request_end_and_leaves_no_process() {
    let foreign = Foreign::start_holding().await;
    let key = Key::new("cap").hard_cap(1000);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    let (answer, stopped) = tokio::join!(stack.chat("sk-cap", 20), async {
        until("the request is upstream", || async {
            (foreign.hits() == 1).then_some(())
        })
        .await;
        stack.ask_to_stop();
        until("it says that it drains", || async {
            stack.log().contains("drain").then_some(())
        })
        .await;
        foreign.let_go();
    });
    assert!(answer.is_ok(), "{answer:?}");
    let () = stopped;
    let stopped = stack.ended_in_order().await;
    let settled = stopped.events_of("acct-cap", "settled").await;
    assert_eq!(settled.len(), 1, "{settled:?}");
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(1000);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    let declared = |events: Vec<serde_json::Value>| {
        let mut events = events;
        events.retain(|event| event["kind"] != "writer_started");
        events
    };
    let before = declared(stack.home().events().await);
    let stack = stack.stop().await.start().await;
    let cap = stack
        .cap("sk-cap", "the snapshot is there", |cap| cap["spent"] == 15)
        .await;
    assert_eq!(cap["held"], 0);
    assert_eq!(declared(stack.home().events().await), before);
    stack.home().verify().await;
}

#[tokio::test]
async fn a_cap_raised_in_the_file_is_raised_at_the_next_start() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(10);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    assert_eq!(stack.chat("sk-cap", 20).await.status, 429);
    let stopped = stack.stop().await;
    stopped.edit("hard_cap = 10", "hard_cap = 500");
    let stack = stopped.start().await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    let set = stack.home().events_of("acct-cap", "cap_set").await;
    assert_eq!(set.len(), 2, "{set:?}");
}

#[tokio::test]
async fn a_cap_no_longer_in_the_file_is_removed_at_the_next_start() {
    let foreign = Foreign::start().await;
    let key = Key::new("cap").hard_cap(10);
    let stack = Stack::new().upstream(&foreign).key(key).start().await;
    assert_eq!(stack.chat("sk-cap", 20).await.status, 429);
    let stopped = stack.stop().await;
    stopped.edit("hard_cap = 10\n", "");
    let stack = stopped.start().await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    let removed = stack.home().events_of("acct-cap", "cap_removed").await;
    assert_eq!(removed.len(), 1, "{removed:?}");
}

#[tokio::test]
async fn a_second_start_on_the_same_folder_names_the_first() {
    let stack = Stack::new().start().await;
    let Err(log) = stack.home().try_start().await else {
        panic!("two are running on one folder");
    };
    assert!(log.contains("in use by process"), "{log}");
}

#[tokio::test]
async fn the_version_is_printed() {
    let output = Stack::new().write();
    let output = output.version().await;
    assert!(output.starts_with("seatbelt "), "{output}");
}
