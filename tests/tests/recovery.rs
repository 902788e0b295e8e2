//! The cases of docs/recovery.md on the real server, with the commands of that page as they stand there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::MetadataExt as _};

use seatbelt_bus::{Nats, connect};
use seatbelt_cli::nats_server::{NatsServer, NatsServerOptions};
use seatbelt_ledger::{
    journal::{Journal as _, Sequence},
    nats::NatsJournal,
};
use seatbelt_schemas::names::Names;
use seatbelt_tests::{
    Foreign, Key, Running, Stack,
    nats::{self, PATIENCE, TestNats},
    page::{STREAMS, commands, copy, folder, follow, home_of_cap, shell, stream},
    stack::Stopped,
    until,
};

async fn capped(foreign: &Foreign) -> Running {
    let stack = Stack::new().upstream(foreign);
    stack.key(Key::new("cap").hard_cap(1000)).start().await
}

async fn spend(stack: &Running, in_all: u64) {
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    spent(stack, in_all).await;
}

async fn spent(stack: &Running, in_all: u64) {
    stack
        .cap("sk-cap", "it is projected", |cap| cap["spent"] == in_all)
        .await;
}

/// The partition is not served, and ready says why.
async fn stands_still(stack: &Running, why: &str) {
    let ready = until("ready tells it", || async {
        let refused = stack.chat("sk-cap", 5).await;
        let ready = stack.get("/health/ready", "").await;
        (refused.status == 503 && !ready.is_ok() && ready.body.contains(why)).then_some(ready)
    });
    ready.await;
}

/// It serves again with this spent, more can be spent, and the journal proves.
async fn serves_again(home: Stopped, left: u64) -> Stopped {
    let stack = home.start().await;
    spent(&stack, left).await;
    spend(&stack, left + 15).await;
    assert!(stack.get("/health/ready", "").await.is_ok());
    let home = stack.stop().await;
    home.verify().await;
    home
}

/// How many writers started with an operator's word of this kind.
async fn words(home: &Stopped, kind: &str) -> usize {
    let started = home.events_of("_", "writer_started").await;
    let said = |event: &&serde_json::Value| event["data"][kind].is_object();
    started.iter().filter(said).count()
}

/// A server on the ledger's own data, with nothing else running there.
struct Alone(NatsServer, Nats);

impl Alone {
    async fn start(home: &Stopped) -> Self {
        let data = folder(home).join("data");
        let options = NatsServerOptions::new(nats::program(), data);
        let server = NatsServer::start(options).await.unwrap();
        let nats = connect(&server.url(), "test", PATIENCE).await.unwrap();
        Self(server, nats)
    }

    async fn journal(&self) -> NatsJournal {
        let names = Names::default();
        NatsJournal::open(&self.1, &names, home_of_cap(), 1)
            .await
            .unwrap()
    }

    async fn stop(self) {
        drop(self.1);
        self.0.stop().await;
    }
}

#[tokio::test]
async fn a_stray_message_is_skipped_and_everybody_steps_over_it() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let client = stack.nats_client().await;
    let subject = Names::default().journal_subject(home_of_cap());
    client.publish(subject, "hello".into()).await.unwrap();
    client.flush().await.unwrap();
    stands_still(&stack, "skip-message").await;
    let home = stack.kill_all().await;
    assert!(!home.run(&["audit", "verify"]).await.status.success());

    let server = Alone::start(&home).await;
    let at = server.journal().await.end().await.unwrap();
    server.stop().await;
    let lines = commands("Stray message", at);
    let wrong = lines[1].replace(
        &format!("--sequence {at}"),
        &format!("--sequence {}", at.0 - 1),
    );
    let refused = shell(&home, &wrong).await;
    assert!(
        !refused.status.success(),
        "a commit is never skipped: {refused:?}"
    );
    let told = follow(&home, &lines).await;
    assert!(
        told.contains("1 messages that are no commits are skipped"),
        "{told}"
    );
    let again = shell(&home, &lines[1]).await;
    assert!(!again.status.success(), "{again:?}");

    let home = serves_again(home, 15).await;
    assert_eq!(words(&home, "skipped").await, 1);
    let export =
        "seatbelt audit export --config seatbelt.toml --output x && seatbelt audit verify --file x";
    let proved = shell(&home, export).await;
    assert!(proved.status.success(), "{proved:?}");
}

#[tokio::test]
async fn a_damaged_last_commit_is_given_up_only_on_the_operators_word() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let server = Alone::start(&home).await;
    let journal = server.journal().await;
    let end = journal.end().await.unwrap();
    let mut payloads = Vec::new();
    for at in 1..=end.0 {
        let stored = journal.get(Sequence(at)).await.unwrap().unwrap();
        payloads.push(stored.payload.to_vec());
    }
    server.stop().await;
    let name = Names::default().journal_stream(home_of_cap());
    fs::remove_dir_all(stream(&home, &name)).unwrap();
    // the settle of what was spent: its header is whole, its events are not
    let last = payloads.last_mut().unwrap();
    let tail = last.len() - 20;
    last[tail..].fill(0xc1);
    let server = Alone::start(&home).await;
    let journal = server.journal().await;
    for (expected, payload) in (0..).zip(payloads) {
        journal
            .append(Sequence(expected), payload.into())
            .await
            .unwrap();
    }
    server.stop().await;

    let stack = home.start().await;
    stands_still(&stack, "another commit").await;
    let home = stack.kill_all().await;
    let lines = commands("Damaged commit", end);
    let cautious = shell(&home, &lines[1].replace(" --give-up", "")).await;
    assert!(!cautious.status.success(), "{cautious:?}");
    let partition = home_of_cap().0.to_string();
    let adopt = [
        "ledger",
        "adopt-journal",
        "--yes",
        "--partition",
        &partition,
    ];
    let adopted = home.run(&adopt).await;
    assert!(!adopted.status.success(), "{adopted:?}");
    let told = follow(&home, &lines).await;
    assert!(
        told.contains("a commit stood there and is damaged"),
        "{told}"
    );

    let stack = home.start().await;
    // what was reserved is still held, and what it cost is not known any more
    assert!(stack.get("/health/ready", "").await.is_ok());
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    let home = stack.stop().await;
    home.verify().await;
    assert_eq!(
        (words(&home, "skipped").await, words(&home, "adopted").await),
        (1, 1)
    );
}

/// The server says that a commit is there and never gives it: a block of its files is damaged.
#[tokio::test]
async fn a_commit_that_the_server_cannot_read_stops_its_partition_and_no_other() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let name = Names::default().journal_stream(home_of_cap());
    let block = stream(&home, &name).join("msgs/1.blk");
    let mut bytes = fs::read(&block).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 0xff;
    fs::write(&block, bytes).unwrap();

    let stack = home.start().await; // the others are served
    stands_still(&stack, "no readable commit at sequence").await;
    let home = stack.kill_all().await;
    let config = home.config().display().to_string();
    let verify = format!("seatbelt audit verify --config {config}");
    let verified = shell(&home, &verify).await;
    assert!(!verified.status.success(), "{verified:?}");
    let partition = home_of_cap().0;
    let adopt =
        format!("seatbelt ledger adopt-journal --config {config} --partition {partition} --yes");
    let refused = shell(&home, &adopt).await;
    assert!(!refused.status.success(), "{refused:?}");

    fs::remove_file(stream(&home, &name).join("msgs/index.db")).unwrap();
    let adopted = shell(&home, &adopt).await;
    assert!(adopted.status.success(), "{adopted:?}");
    let stack = home.start().await;
    assert!(stack.get("/health/ready", "").await.is_ok());
    assert!(stack.chat("sk-cap", 5).await.is_ok());
    stack.stop().await.verify().await;
}

#[tokio::test]
async fn an_older_journal_is_put_back_and_adopted() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    copy(&folder(&home).join("data"), &folder(&home).join("backup"));
    let stack = home.start().await;
    spend(&stack, 30).await;
    let home = stack.stop().await;
    follow(&home, &commands("Lost journal", Sequence(0))).await;
    let home = serves_again(home, 15).await;
    assert_eq!(words(&home, "adopted").await, 1);
}

#[tokio::test]
async fn a_journal_of_another_ledger_is_neither_served_nor_adopted() {
    let foreign = Foreign::start().await;
    let (ours, theirs) = (capped(&foreign).await, capped(&foreign).await);
    spend(&ours, 15).await;
    spend(&theirs, 15).await;
    let (ours, theirs) = (ours.stop().await, theirs.stop().await);
    let name = Names::default().journal_stream(home_of_cap());
    let (here, kept) = (stream(&ours, &name), folder(&ours).join("kept"));
    fs::rename(&here, &kept).unwrap();
    copy(&stream(&theirs, &name), &here);
    let stack = ours.start().await;
    stands_still(&stack, "belongs to ledger").await;
    let ours = stack.kill_all().await;
    assert!(!ours.run(&["audit", "verify"]).await.status.success());
    let partition = home_of_cap().0.to_string();
    let adopt = [
        "ledger",
        "adopt-journal",
        "--yes",
        "--partition",
        &partition,
    ];
    let refused = ours.run(&adopt).await;
    assert!(!refused.status.success(), "{refused:?}");
    fs::remove_dir_all(&here).unwrap();
    fs::rename(&kept, &here).unwrap();
    serves_again(ours, 15).await;
}

#[tokio::test]
async fn a_journal_that_is_cut_under_a_live_writer_stops_it() {
    let foreign = Foreign::start().await;
    let mut server = TestNats::start().await;
    let stack = Stack::new()
        .upstream(&foreign)
        .nats(&format!("url = {:?}", server.server.url()))
        .key(Key::new("cap").hard_cap(1000))
        .start()
        .await;
    spend(&stack, 15).await;
    let name = Names::default().journal_stream(home_of_cap());
    let here = server.folder().join("nats").join(STREAMS).join(name);
    let kept = server.folder().join("kept");
    server.server.kill().await;
    copy(&here, &kept);
    server.server.restart().await.unwrap();
    until("it serves again", || async {
        stack.chat("sk-cap", 5).await.is_ok().then_some(())
    })
    .await;
    stack
        .cap("sk-cap", "it is projected", |cap| {
            cap["spent"].as_u64() >= Some(30)
        })
        .await;
    server.server.kill().await;
    fs::remove_dir_all(&here).unwrap();
    copy(&kept, &here);
    server.server.restart().await.unwrap();
    stands_still(&stack, "adopt-journal").await;
}

#[tokio::test]
async fn meta_is_made_again_from_the_journals() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    fs::remove_dir_all(stream(&home, "KV_SEATBELT_META")).unwrap();
    let Err(refused) = home.try_start().await else {
        panic!("another ledger is begun beside this one's journals");
    };
    assert!(refused.contains("rebuild-meta"), "{refused}");
    let lines = commands("Lost META", Sequence(0));
    let told = follow(&home, &lines).await;
    assert!(told.contains("META names ledger"), "{told}");
    let again = shell(&home, &lines[1]).await;
    assert!(
        !again.status.success(),
        "nothing is lost any more: {again:?}"
    );
    let home = serves_again(home, 15).await;
    assert_eq!(words(&home, "adopted").await, 4);
}

#[tokio::test]
async fn snapshots_and_feed_are_made_again_by_a_start() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    for heading in ["Lost snapshots", "Lost feed"] {
        follow(&home, &commands(heading, Sequence(0))).await;
    }
    serves_again(home, 15).await;
}

#[tokio::test]
async fn a_ledger_put_back_whole_from_a_backup_is_known_by_a_checkpoint() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let (data, backup) = (folder(&home).join("data"), folder(&home).join("backup"));
    copy(&data, &backup);
    let stack = home.start().await;
    spend(&stack, 30).await;
    let home = stack.stop().await;
    let lines = commands("Restored backup", Sequence(0));
    follow(&home, &lines[..1]).await;
    fs::remove_dir_all(&data).unwrap();
    copy(&backup, &data);
    home.verify().await;
    let told = follow(&home, &lines[1..]).await;
    assert!(
        told.contains("but the checkpoint saw it go on to"),
        "{told}"
    );

    // and by a gateway that is told of it
    home.edit(
        "data_dir = \"data\"",
        "data_dir = \"data\"\ncheckpoint = \"checkpoint.json\"",
    );
    let stack = home.start().await;
    stands_still(&stack, "but the checkpoint saw it go on to").await;
    let home = stack.stop().await;
    let another = "seatbelt audit checkpoint --config seatbelt.toml --out another.json";
    assert!(shell(&home, another).await.status.success());
    home.edit("checkpoint.json", "another.json");
    serves_again(home, 15).await;
}

/// A stream whose settings are torn is not there for the server, and what it held is found again by making it: once
/// more each time, unless its settings are written.
#[tokio::test]
async fn a_journal_whose_settings_are_torn_is_adopted_for_good() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let name = Names::default().journal_stream(home_of_cap());
    fs::write(stream(&home, &name).join("meta.inf"), "{").unwrap();
    let stack = home.start().await;
    stands_still(&stack, "is gone").await;
    let home = stack.stop().await;
    let lines = commands("Lost journal", Sequence(0));
    let adopt: Vec<_> = lines
        .into_iter()
        .filter(|line| line.starts_with("seatbelt"))
        .collect();
    let told = follow(&home, &adopt).await;
    assert!(told.contains("goes on after sequence"), "{told}");
    let home = serves_again(home, 15).await;
    serves_again(home, 30).await;
}

/// The audit of the others is whole.
#[tokio::test]
async fn a_lost_first_journal_is_named_and_the_others_are_verified() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    fs::remove_dir_all(stream(&home, "SEATBELT_JOURNAL_00")).unwrap();
    let verified = shell(&home, "seatbelt audit verify --config seatbelt.toml").await;
    let told = String::from_utf8_lossy(&verified.stdout);
    assert!(!verified.status.success(), "{verified:?}");
    assert!(told.contains("partition 00: FAILED"), "{told}");
    for partition in ["01", "02", "03"] {
        let proved = told.lines().any(|line| {
            line.starts_with(&format!("partition {partition}: ")) && !line.contains("FAILED")
        });
        assert!(proved, "{told}");
    }
}

/// A backup on a read-only disk: nothing is written there.
#[tokio::test]
async fn a_folder_that_cannot_be_written_to_is_audited() {
    let foreign = Foreign::start().await;
    let stack = capped(&foreign).await;
    spend(&stack, 15).await;
    let home = stack.stop().await;
    let lock = "chmod -R a+rX . && chmod -R a-w data";
    assert!(shell(&home, lock).await.status.success());
    let mut verify = home.command(&["audit", "verify"]);
    if fs::metadata(folder(&home)).unwrap().uid() == 0 {
        // whom no mode of a file keeps from writing it
        verify.uid(65_534).gid(65_534);
    }
    let verified = verify.output().await.unwrap();
    let told = String::from_utf8_lossy(&verified.stderr);
    assert!(shell(&home, "chmod -R u+w data").await.status.success());
    assert!(verified.status.success(), "{verified:?}");
    assert!(told.contains("reading a copy of it"), "{told}");
    serves_again(home, 15).await;
}
