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
async fn what_another_configuration_declared_stays_until_its_key_is_retired() {
    // given two keys of one account, the first with a cap of its own and one that both share
    let foreign = Foreign::start().await;
    let shared = "caps = [{ meter = \"tokens\", limit = 400, scope = \"account\" }]";
    let (first, second) = (Key::new("one").account("acct-both"), Key::new("two"));
    let first = first.hard_cap(30).line(shared);
    let second = second.account("acct-both").hard_cap(300);
    let stack = Stack::new().upstream(&foreign).key(first).key(second);
    let stack = stack.start().await;
    assert!(stack.chat("sk-one", 10).await.is_ok());
    let stopped = stack.stop().await;
    let with_both = std::fs::read_to_string(stopped.config()).unwrap();
    let section = |id: &str| {
        let begin = with_both.find(&format!(
            "[[entitlements.keys]]\nkey = {:?}",
            format!("sk-{id}")
        ));
        let text = &with_both[begin.unwrap()..];
        text[..text.find("\n\n").unwrap() + 2].to_owned()
    };
    // when a start does not name the first
    stopped.edit(&section("one"), "");
    let stack = stopped.start().await;
    until("told", || async {
        stack.log().contains("caps stay in force").then_some(())
    })
    .await;
    assert_eq!(stack.log().matches("caps stay in force").count(), 1);
    assert_eq!(
        stack.chat("sk-two", 390).await.status,
        429,
        "the shared cap holds"
    );
    let stopped = stack.stop().await;
    assert!(
        stopped
            .events_of("acct-both", "cap_removed")
            .await
            .is_empty()
    );
    // then who declares it again finds what was spent of it
    let without = std::fs::read_to_string(stopped.config()).unwrap();
    std::fs::write(stopped.config(), &with_both).unwrap();
    let stack = stopped.start().await;
    assert_eq!(stack.chat("sk-one", 20).await.status, 429, "spent before");
    let stopped = stack.stop().await;
    // and once the key is retired, all that it declared goes
    let retired =
        "[[entitlements.retired_keys]]\naccount_id = \"acct-both\"\nkey_id = \"key-one\"\n";
    std::fs::write(stopped.config(), format!("{without}{retired}")).unwrap();
    let stack = stopped.start().await;
    let removed = stack.home().events_of("acct-both", "cap_removed").await;
    let removed: Vec<_> = removed
        .iter()
        .map(|event| event["data"]["cap"].clone())
        .collect();
    assert_eq!(
        removed,
        ["account/tokens/balance", "key/key-one/tokens/balance"]
    );
    assert_eq!(
        stack
            .home()
            .events_of("acct-both", "key_revoked")
            .await
            .len(),
        1
    );
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
