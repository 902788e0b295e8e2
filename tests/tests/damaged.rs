//! A stream that the server cannot read or write any more, and a start that waits for one: what can be made
//! again is, what cannot names its remedy, and whoever is told to stop does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seatbelt_tests::{Foreign, Key, Running, Stack, stack::Stopped, until};

async fn spent(foreign: &Foreign) -> Stopped {
    let stack = Stack::new()
        .upstream(foreign)
        .key(Key::new("cap").hard_cap(1000))
        .start()
        .await;
    spend(&stack, 15).await;
    stack.stop().await
}

async fn spend(stack: &Running, in_all: u64) {
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    stack
        .cap("sk-cap", "it is projected", |cap| cap["spent"] == in_all)
        .await;
}

/// The file in which the server keeps a stream's messages.
fn block(home: &Stopped, stream: &str) -> PathBuf {
    let mut folders = vec![home.data()];
    while let Some(folder) = folders.pop() {
        if folder.ends_with(stream) {
            return folder.join("msgs/1.blk");
        }
        let entries = fs::read_dir(folder).unwrap().flatten();
        folders.extend(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
    }
    panic!("no {stream}");
}

fn flip(file: &PathBuf, percent: usize) {
    let mut bytes = fs::read(file).unwrap();
    let place = bytes.len() * percent / 100;
    bytes[place] ^= 0x20;
    fs::write(file, bytes).unwrap();
}

/// Damages what stands behind a text.
fn flip_after(file: &PathBuf, text: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let mut places = bytes.windows(text.len());
    let place = places.position(|window| window == text).unwrap();
    bytes[place + text.len() + 2] ^= 0x20;
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_secret_that_is_damaged_is_made_again() {
    let foreign = Foreign::start().await;
    let mut home = spent(&foreign).await;
    for (number, percent) in (1..).zip([3, 20, 30, 50, 80]) {
        flip(&block(&home, "KV_SEATBELT_SECRETS"), percent);
        let stack = home.start().await;
        spend(&stack, 15 + 15 * number).await;
        home = stack.stop().await;
    }
}

/// The documented command cures what the start names.
#[tokio::test]
async fn facts_that_are_damaged_are_made_again_by_the_command_that_the_start_names() {
    let foreign = Foreign::start().await;
    let home = spent(&foreign).await;
    flip_after(
        &block(&home, "KV_SEATBELT_META"),
        b"$KV.SEATBELT_META.ledger",
    );
    let Err(told) = home.try_start().await else {
        panic!("the facts are not damaged by that");
    };
    assert!(told.contains("rebuild-meta"), "{told}");
    let rebuilt = home.run(&["ledger", "rebuild-meta", "--yes"]).await;
    assert!(rebuilt.status.success(), "{rebuilt:?}");
    let stack = home.start().await;
    spend(&stack, 30).await;
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn a_start_that_waits_for_its_server_says_so_and_stops_when_told() {
    let foreign = Foreign::start().await;
    let home = Stack::new().upstream(&foreign).key(Key::new("a")).write();
    let folder = home.config().parent().unwrap().to_owned();
    let (program, begun) = (folder.join("never-up"), folder.join("begun"));
    let script = format!("#!/bin/sh\n: > {}\nexec sleep 600\n", begun.display());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let server = format!("[nats]\nserver = {:?}\n", program.to_str().unwrap());
    home.edit("[nats]\n", &server);
    let mut up = home.command(&["up"]);
    let up = up.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let up = up.unwrap();
    let pid = Pid::from_raw(i32::try_from(up.id().unwrap()).unwrap());
    until("the server is waited for", async || {
        begun.exists().then_some(())
    })
    .await;
    let told_at = Instant::now();
    kill(pid, Signal::SIGTERM).unwrap();
    let ended = up.wait_with_output().await.unwrap();
    assert!(
        told_at.elapsed() < Duration::from_secs(10),
        "it stops when told"
    );
    assert!(ended.status.success(), "{ended:?}");
}

/// One bit of what the server keeps of the consumer for billing: it does not serve the stream from then on.
#[tokio::test]
async fn a_feed_that_the_server_does_not_serve_is_made_again() {
    let foreign = Foreign::start().await;
    let home = spent(&foreign).await;
    let blocks = block(&home, "SEATBELT_FEED");
    let folder = blocks.ancestors().nth(2).unwrap();
    let kept = folder.join("obs/billing/meta.inf");
    let told = fs::read_to_string(&kept).unwrap();
    let level = "\"_nats.req.level\":\"0\"";
    assert!(told.contains(level), "{told}");
    // a level of its interface that the server does not have
    fs::write(&kept, told.replace(level, &level.replace('0', "8"))).unwrap();
    let stack = home.start().await;
    spend(&stack, 30).await;
    let log = stack.log();
    assert!(log.contains("unsupported consumer"), "{log}");
    let ready = stack.get("/health/ready", "").await;
    assert!(ready.is_ok(), "{ready:?}");
    let home = stack.stop().await;
    let stack = home.start().await;
    spend(&stack, 45).await;
    let log = stack.log();
    assert!(!log.contains("unsupported consumer"), "{log}");
    stack.stop().await.verify().await;
}
