//! A journal that is gone, or older than what was seen of it: its partition stops and says so, the
//! others serve, and only an operator goes on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use async_nats::jetstream::{self, Context};
use bytes::Bytes;
use seatbelt_schemas::{ids::AccountId, names::Names, position::Partitions};
use seatbelt_tests::{Foreign, Key, Running, Stack, stack::Stopped, until};

fn partition_of(account: &str) -> u8 {
    let partitions = Partitions::try_from(4).unwrap();
    partitions.of(&AccountId::new(account).unwrap()).0
}

/// The name of a key whose account lives in another partition than that of `cap`.
fn elsewhere() -> String {
    let names = (0..100).map(|number| format!("other{number}"));
    let mut apart =
        names.filter(|name| partition_of(&format!("acct-{name}")) != partition_of("acct-cap"));
    apart.next().unwrap()
}

/// The folder in which the server keeps the capped account's journal.
fn journal(home: &Stopped) -> PathBuf {
    stream(
        home,
        &format!("SEATBELT_JOURNAL_{:02}", partition_of("acct-cap")),
    )
}

fn stream(home: &Stopped, name: &str) -> PathBuf {
    let mut folders = vec![home.config().parent().unwrap().join("data")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().ends_with(name) {
                return entry.path();
            }
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    panic!("no {name}");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

async fn capped(foreign: &Foreign) -> Running {
    Stack::new()
        .upstream(foreign)
        .key(Key::new("cap").hard_cap(1000))
        .key(Key::new(&elsewhere()))
        .start()
        .await
}

async fn spend(stack: &Running, in_all: u64) {
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    stack
        .cap("sk-cap", "it is projected", |cap| cap["spent"] == in_all)
        .await;
}

/// A ledger whose capped account spent 30, and older copies of its journal, META and snapshots.
async fn spent_on(foreign: &Foreign) -> (Stopped, Vec<(PathBuf, PathBuf)>) {
    let stack = capped(foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let mut folders = vec![journal(&home)];
    folders.extend(["KV_SEATBELT_META", "KV_SEATBELT_SNAPSHOTS"].map(|name| stream(&home, name)));
    let mut copies = Vec::new();
    for (number, folder) in folders.into_iter().enumerate() {
        let kept = home.config().with_extension(format!("kept{number}"));
        copy(&folder, &kept);
        copies.push((folder, kept));
    }
    let stack = home.start().await;
    spend(&stack, 30).await;
    (stack.stop().await, copies)
}

/// The partition stops with a reason, the others go on, and the operator's word is what it takes.
async fn stops_until_it_is_adopted(home: Stopped, spent: u64) {
    let stack = home.start().await;
    let refused = stack.chat("sk-cap", 5).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(stack.chat(&format!("sk-{}", elsewhere()), 5).await.is_ok());
    let ready = stack.get("/health/ready", "").await;
    let partition = partition_of("acct-cap").to_string();
    assert!(!ready.is_ok(), "{ready:?}");
    assert!(ready.body.contains("adopt-journal"), "{ready:?}");
    assert!(
        ready.body.contains(&format!("--partition {partition:0>2}")),
        "{ready:?}"
    );
    // what was turned away is still being given back, which a stop in order waits for
    let home = stack.kill_all().await;

    // the journal may prove by itself: what others have seen of it tells
    let audit = home.run(&["audit", "verify"]).await;
    assert!(!audit.status.success(), "{audit:?}");

    let adopt = ["ledger", "adopt-journal", "--partition", &partition];
    let asked = home.run(&adopt).await;
    assert!(!asked.status.success(), "{asked:?}");
    let told = home.run(&[&adopt[..], &["--yes"]].concat()).await;
    assert!(told.status.success(), "{told:?}");

    let stack = home.start().await;
    assert!(stack.get("/health/ready", "").await.is_ok());
    spend(&stack, spent + 15).await;
    let home = stack.stop().await;
    let started = home.events_of("_", "writer_started").await;
    let adopted = started
        .iter()
        .filter(|event| event["data"]["adopted"].is_object())
        .filter(|event| {
            let reason = event["data"]["adopted"]["reason"].as_str();
            // META that was made again is another word, in every partition
            reason.is_some_and(|reason| !reason.contains("bucket META"))
        });
    assert_eq!(adopted.count(), 1, "the operator's word is an event");
    home.verify().await;
}

#[tokio::test]
async fn a_journal_that_is_gone_is_not_begun_anew() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    fs::remove_dir_all(journal(&home)).unwrap();
    stops_until_it_is_adopted(home, 0).await;
}

#[tokio::test]
async fn an_older_copy_of_a_journal_is_not_gone_on_from() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let (folder, kept) = (journal(&home), home.config().with_extension("kept"));
    copy(&folder, &kept);
    let stack = home.start().await;
    spend(&stack, 30).await;
    let home = stack.stop().await;
    fs::remove_dir_all(&folder).unwrap();
    copy(&kept, &folder);
    stops_until_it_is_adopted(home, 15).await;
}

#[tokio::test]
async fn an_older_copy_of_all_but_the_feed_is_not_gone_on_from() {
    let foreign = Foreign::start().await;
    let (home, copies) = spent_on(&foreign).await;
    for (folder, kept) in &copies {
        fs::remove_dir_all(folder).unwrap();
        copy(kept, folder);
    }
    stops_until_it_is_adopted(home, 15).await;
}

#[tokio::test]
async fn an_older_copy_of_a_journal_is_not_gone_on_from_where_only_the_feed_is_left_to_tell() {
    let foreign = Foreign::start().await;
    let (home, copies) = spent_on(&foreign).await;
    for (folder, _) in &copies {
        fs::remove_dir_all(folder).unwrap();
    }
    let (folder, kept) = &copies[0];
    copy(kept, folder);
    let rebuilt = home.run(&["ledger", "rebuild-meta", "--yes"]).await;
    let told = format!("{rebuilt:?}");
    assert!(rebuilt.status.success(), "{told}");
    assert!(told.contains("but the feed holds its events"), "{told}");
    stops_until_it_is_adopted(home, 15).await;
}

/// What META has of the capped account's journal.
async fn on_record(jetstream: &Context) -> Bytes {
    let bucket = jetstream
        .get_key_value(Names::default().meta_bucket())
        .await;
    let key = format!("journal.{:02}", partition_of("acct-cap"));
    bucket.unwrap().get(key).await.unwrap().unwrap_or_default()
}

/// As from a volume's snapshot, or a copy that was made while it was served, beside a META that nobody
/// stopped in order: nothing else is left that knows more.
#[tokio::test]
async fn a_copy_of_a_journal_from_while_it_was_served_is_not_gone_on_from() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    let jetstream = jetstream::new(stack.nats_client().await);
    let jetstream = &jetstream;
    spend(&stack, 15).await;
    let (folder, kept) = (
        journal(stack.home()),
        stack.home().config().with_extension("kept"),
    );
    copy(&folder, &kept);
    // the first time it may be of what was copied
    for in_all in [30, 45] {
        let before = on_record(jetstream).await;
        spend(&stack, in_all).await;
        let before = &before;
        until("the journal's end is on record as it goes", || async move {
            (on_record(jetstream).await != *before).then_some(())
        })
        .await;
    }
    let home = stack.kill_all().await;
    for name in ["KV_SEATBELT_SNAPSHOTS", "SEATBELT_FEED"] {
        fs::remove_dir_all(stream(&home, name)).unwrap();
    }
    fs::remove_dir_all(&folder).unwrap();
    copy(&kept, &folder);
    stops_until_it_is_adopted(home, 15).await;
}

/// More than an opening looks back on the feed stands behind the partition's last event there: whoever reads
/// all of it finds that, and the partition stops while it is served.
#[tokio::test]
async fn what_the_projector_finds_deep_in_the_feed_stops_the_partition() {
    const MUCH: usize = 2_200;
    let foreign = Foreign::start().await;
    let (home, copies) = spent_on(&foreign).await;
    let stack = home.start().await;
    let jetstream = jetstream::new(stack.nats_client().await);
    let subject = Names::default().feed_subject(&AccountId::new("much").unwrap(), "else");
    let sent = (0..MUCH).map(|_| jetstream.publish(subject.clone(), "{}".into()));
    for sent in futures::future::try_join_all(sent).await.unwrap() {
        sent.await.unwrap();
    }
    let home = stack.stop().await;
    for (folder, kept) in &copies {
        fs::remove_dir_all(folder).unwrap();
        copy(kept, folder);
    }
    let stack = home.start().await;
    let ready = || async {
        let ready = stack.get("/health/ready", "").await;
        (!ready.is_ok() && ready.body.contains("adopt-journal")).then_some(())
    };
    until("the writer hears of it", ready).await;
    let refused = stack.chat("sk-cap", 5).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    let home = stack.kill_all().await;
    stops_until_it_is_adopted(home, 15).await;
}

#[tokio::test]
async fn a_journal_that_is_lost_with_meta_and_all_that_was_derived_is_not_begun_anew() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    fs::remove_dir_all(journal(&home)).unwrap();
    for name in ["KV_SEATBELT_META", "KV_SEATBELT_SNAPSHOTS", "SEATBELT_FEED"] {
        fs::remove_dir_all(stream(&home, name)).unwrap();
    }
    let Err(refused) = home.try_start().await else {
        panic!("another ledger is begun beside this one's journals");
    };
    assert!(refused.contains("rebuild-meta"), "{refused}");
    let asked = home.run(&["ledger", "rebuild-meta"]).await;
    let told = format!("{asked:?}");
    assert!(
        !asked.status.success() && told.contains("is gone"),
        "{told}"
    );
    let rebuilt = home.run(&["ledger", "rebuild-meta", "--yes"]).await;
    let told = format!("{rebuilt:?}");
    assert!(rebuilt.status.success(), "{told}");
    assert!(told.contains("adopt-journal"), "{told}");
    stops_until_it_is_adopted(home, 0).await;
}
