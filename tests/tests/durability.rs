//! What an acknowledgement promises is proved at start, or the start is refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use seatbelt_tests::{Foreign, Key, Stack, nats::TestNats};

fn stack(server: &TestNats) -> Stack {
    Stack::new().nats(&format!("url = {:?}", server.server.url()))
}

async fn without_fsync() -> TestNats {
    TestNats::start_with(|options| options.sync_always = false).await
}

#[tokio::test]
async fn a_server_that_does_not_sync_is_refused_with_the_setting_to_change() {
    let server = without_fsync().await;
    let Err(log) = stack(&server).write().try_start().await else {
        panic!("it serves on a server that may lose what was acknowledged");
    };
    assert!(log.contains("sync_interval: always"), "{log}");
    assert!(log.contains("nats.durability"), "{log}");
}

#[tokio::test]
async fn the_same_server_is_taken_where_that_is_asked_for_and_shown() {
    let server = without_fsync().await;
    let stack = stack(&server)
        .nats("durability = \"relaxed\"")
        .start()
        .await;
    let ready = stack.get("/health/ready", "").await;
    assert!(ready.is_ok(), "{ready:?}");
    assert!(ready.body.contains("relaxed"), "{ready:?}");
    assert!(stack.log().contains("relaxed"), "{}", stack.log());
    stack.stop().await;
}

#[tokio::test]
async fn a_server_that_syncs_is_served_on() {
    let server = TestNats::start().await;
    let foreign = Foreign::start().await;
    let stack = stack(&server)
        .upstream(&foreign)
        .key(Key::new("cap").hard_cap(1000))
        .start()
        .await;
    assert!(stack.chat("sk-cap", 20).await.is_ok());
    let cap = stack.cap("sk-cap", "it is charged", |cap| cap["spent"] == 15);
    assert_eq!(cap.await["held"], 0);
    stack.home().verify().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_role_alone_needs_an_existing_server() {
    let stopped = Stack::new().write();
    for role in ["gateway", "projector", "neuron"] {
        let output = stopped.run(&[role]).await;
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{role} runs");
        assert!(log.contains("nats.url"), "{log}");
    }
}
