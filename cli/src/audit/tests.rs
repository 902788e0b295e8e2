//! The audit over exported copies and over real servers: what holds passes, what was tampered with is
//! found where it is.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use seatbelt_bus::connect;
use seatbelt_ledger::{
    api::{Ack, Ledger, ReserveOutcome},
    host::{HostConfig, LedgerHost},
    journal::{
        Journal, Sequence,
        export::{END, ExportWriter, Lasts},
        memory::MemoryJournal,
    },
    nats::NatsJournal,
    testing::{Payer, balance, one_partition},
};
use seatbelt_schemas::{
    cap::CapSpec,
    commit::Commit,
    event::{EventBody, StoredEvent},
    ids::{AccountId, Actor},
    names::Names,
    position::{Partition, Partitions},
    scope::Scope,
};
use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::nats_server::{NatsServer, NatsServerOptions, find_nats_server};

mod checkpoint;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: AuditArgs,
}

/// What an audit printed, and whether everything holds.
async fn audit(words: &[&str]) -> Result<(bool, String), AuditError> {
    let line = Line::try_parse_from(std::iter::once("audit").chain(words.iter().copied()));
    let mut out = Vec::new();
    let code = run_to(line.unwrap().args, &mut out).await?;
    let text = String::from_utf8(out).unwrap();
    Ok((
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS),
        text,
    ))
}

const ACCOUNTS: [&str; 4] = ["acct-cap", "alice", "bob", "carol"];

#[test]
fn what_is_not_built_is_not_offered() {
    let audit = AuditArgs::augment_args(clap::Command::new("audit"));
    let offered: Vec<_> = audit
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .map(|command| command.get_name().to_owned())
        .collect();
    assert_eq!(
        offered,
        ["verify", "checkpoint", "replay", "show", "export"]
    );
}

fn partitions() -> Partitions {
    Partitions::try_from(2).unwrap()
}

fn account(id: &str) -> AccountId {
    AccountId::new(id).unwrap()
}

/// A small ledger as its writers made it: per account 3 events to set it up, one hold that was
/// settled, one that is open, and one refusal.
struct Ledgers {
    journals: Vec<MemoryJournal>,
}

impl Ledgers {
    async fn small() -> Self {
        let journals = vec![MemoryJournal::new(), MemoryJournal::new()];
        let config = HostConfig {
            partitions: partitions(),
            expiry_grace_ms: 0,
            ..one_partition("test")
        };
        let host = LedgerHost::start(&config, journals.clone());
        host.ready().await.unwrap();
        for account in ACCOUNTS {
            let payer = Payer::new(account, "key");
            set_up(&host, &payer).await;
            spend(&host, &payer).await;
        }
        host.stop().await;
        Self { journals }
    }

    fn commits(&self) -> Vec<(Partition, Vec<Vec<u8>>)> {
        partitions()
            .iter()
            .zip(&self.journals)
            .map(|(partition, journal)| {
                let commits = journal.commits().into_iter();
                (partition, commits.map(|payload| payload.to_vec()).collect())
            })
            .collect()
    }

    /// Both partitions' commits, one partition after the other.
    fn frames(&self) -> Vec<(Partition, u64, Vec<u8>)> {
        let of = |(partition, commits): (Partition, Vec<Vec<u8>>)| {
            (1..)
                .zip(commits)
                .map(move |(sequence, payload)| (partition, sequence, payload))
        };
        self.commits().into_iter().flat_map(of).collect()
    }

    /// Lines as `audit export --json` writes them.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (partition, commits) in self.commits() {
            for (sequence, payload) in (1..).zip(commits) {
                lines.push(line(partition, sequence, &payload));
            }
        }
        lines
    }
}

fn line(partition: Partition, sequence: u64, payload: &[u8]) -> String {
    let (partition, payload) = (partition.0, hex::encode(payload));
    format!(r#"{{"partition":{partition},"sequence":{sequence},"payload":"{payload}"}}"#)
}

/// The last line of an export, after those before it as far as they are commits.
fn end_of(lines: &[String]) -> String {
    let (mut count, mut lasts) = (0, Lasts::default());
    for text in lines {
        let Ok(line) = serde_json::from_str::<Value>(text) else {
            continue;
        };
        let number = |field: &str| line[field].as_u64();
        let payload = line["payload"]
            .as_str()
            .and_then(|text| hex::decode(text).ok());
        if let (Some(partition), Some(sequence), Some(payload)) =
            (number("partition"), number("sequence"), payload)
        {
            count += 1;
            lasts.note(u8::try_from(partition).unwrap(), sequence, &payload);
        }
    }
    line(Partition(END), count, &lasts.encode())
}

async fn set_up(host: &LedgerHost, payer: &Payer) {
    let cap = CapSpec {
        thresholds: Vec::new(),
        ..balance("cap", Scope::Account, 100)
    };
    for change in payer.changes(cap) {
        host.admin(payer.admin(change)).await.unwrap();
    }
}

async fn reserve(host: &LedgerHost, payer: &Payer, tokens: u64) -> ReserveOutcome {
    host.reserve(payer.reserve(tokens)).await.unwrap()
}

async fn spend(host: &LedgerHost, payer: &Payer) {
    let ReserveOutcome::Reserved(first) = reserve(host, payer, 40).await else {
        panic!("it fits");
    };
    let settle = payer.settle(first.reservation, 15);
    host.settle(settle, Ack::Durable).await.unwrap();
    let second = reserve(host, payer, 20).await;
    assert!(matches!(second, ReserveOutcome::Reserved(_)));
    let third = reserve(host, payer, 1000).await;
    assert!(matches!(third, ReserveOutcome::Refused(_)));
}

/// A file that lives as long as its folder.
struct Export {
    _folder: TempDir,
    path: PathBuf,
}

impl Export {
    /// These lines, and the end that `audit export --json` writes after them.
    fn of(lines: &[String]) -> Self {
        Self::open_ended(&[lines, &[end_of(lines)]].concat())
    }

    /// These lines and nothing after them.
    fn open_ended(lines: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("export.jsonl");
        std::fs::write(&path, lines.join("\n")).unwrap();
        let _folder = folder;
        Self { _folder, path }
    }

    /// As `audit export` writes it.
    fn binary(frames: &[(Partition, u64, Vec<u8>)]) -> Self {
        let mut writer = ExportWriter::begin(Vec::new()).unwrap();
        for (partition, sequence, payload) in frames {
            writer
                .commit(*partition, Sequence(*sequence), payload)
                .unwrap();
        }
        Self::bytes(&writer.finish().unwrap())
    }

    fn bytes(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.export");
        std::fs::write(&path, bytes).unwrap();
        let _folder = folder;
        Self { _folder, path }
    }

    fn read(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

async fn report(export: &Export) -> (bool, Value) {
    let (holds, text) = audit(&["verify", "--file", export.path(), "--json"])
        .await
        .unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["ok"], holds);
    (holds, report)
}

#[tokio::test]
async fn a_whole_ledger_is_proven_with_its_totals() {
    let ledgers = Ledgers::small().await;
    let export = Export::of(&ledgers.lines());
    let (holds, report) = report(&export).await;
    assert!(holds, "{report:#}");
    let commits: usize = ledgers
        .commits()
        .iter()
        .map(|(_, commits)| commits.len())
        .sum();
    assert_eq!(report["commits"], commits);
    // per partition genesis and writer_started, per account 3 + 4
    assert_eq!(report["events"], 2 * 2 + 4 * 7);
    let of = |partition: usize, what: &str| report["partitions"][partition][what].as_u64().unwrap();
    assert_eq!(of(0, "accounts") + of(1, "accounts"), 4);
    assert_eq!(of(0, "open") + of(1, "open"), 4);
    let (_, text) = audit(&["verify", "--file", export.path()]).await.unwrap();
    assert!(
        text.contains("partition 01: ") && text.ends_with("in 2 partitions\n"),
        "{text}"
    );
    assert!(text.contains("ledger test: everything holds"), "{text}");
}

/// Damages the lines, and tells where the audit finds the damage: partition, sequence, error.
async fn damage(change: impl FnOnce(&mut Vec<String>)) -> Vec<(u64, u64, String)> {
    let mut lines = Ledgers::small().await.lines();
    change(&mut lines);
    let (holds, report) = report(&Export::of(&lines)).await;
    assert!(!holds, "{report:#}");
    let found = report["partitions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|finding| {
            let failure = finding.get("failure")?;
            let sequence = failure["sequence"].as_u64()?;
            let error = failure["error"].as_str()?.to_owned();
            Some((finding["partition"].as_u64()?, sequence, error))
        });
    found.collect()
}

/// Rewrites the commit of one line, keeping chain and positions as they are.
fn rewrite(line_text: &mut String, change: impl FnOnce(&mut Commit)) {
    let value: Value = serde_json::from_str(line_text).unwrap();
    let payload = hex::decode(value["payload"].as_str().unwrap()).unwrap();
    let mut commit = Commit::decode(&payload).unwrap();
    change(&mut commit);
    let sequence = value["sequence"].as_u64().unwrap();
    *line_text = line(commit.partition, sequence, &commit.encode());
}

#[tokio::test]
async fn both_forms_of_an_export_tell_the_same() {
    let ledgers = Ledgers::small().await;
    let (lines, frames) = (
        Export::of(&ledgers.lines()),
        Export::binary(&ledgers.frames()),
    );
    for words in [
        &["verify"][..],
        &["verify", "--json"],
        &["replay"],
        &["replay", "--json", "--account", "bob"],
        &["show", "alice"],
    ] {
        let told = async |export: &Export| {
            let words: Vec<_> = words
                .iter()
                .copied()
                .chain(["--file", export.path()])
                .collect();
            audit(&words).await.unwrap()
        };
        let (by_lines, by_frames) = (told(&lines).await, told(&frames).await);
        assert_eq!(by_lines, by_frames, "{words:?}");
        assert!(by_lines.0 && !by_lines.1.is_empty(), "{words:?}");
    }
}

#[tokio::test]
async fn an_export_is_exported_again_to_the_same_bytes_in_either_form() {
    let ledgers = Ledgers::small().await;
    let (lines, frames) = (
        Export::of(&ledgers.lines()),
        Export::binary(&ledgers.frames()),
    );
    let folder = tempfile::tempdir().unwrap();
    for (number, export) in [&lines, &frames].into_iter().enumerate() {
        let copy = async |form: &[&str], expected: &[u8]| {
            let name = format!("{number}{}", form.concat());
            let to = folder.path().join(name);
            let words = [
                &[
                    "export",
                    "--file",
                    export.path(),
                    "-o",
                    to.to_str().unwrap(),
                ],
                form,
            ];
            assert!(audit(&words.concat()).await.unwrap().0);
            assert!(std::fs::read(&to).unwrap() == expected, "{form:?}");
        };
        copy(&[], &frames.read()).await;
        copy(
            &["--json"],
            format!(
                "{}\n{}\n",
                ledgers.lines().join("\n"),
                end_of(&ledgers.lines())
            )
            .as_bytes(),
        )
        .await;
    }
}

/// JSON lines cut between two lines read like a shorter ledger: only their end tells.
#[tokio::test]
async fn json_lines_without_their_true_end_are_an_error() {
    let lines = Ledgers::small().await.lines();
    let whole = [lines.clone(), vec![end_of(&lines)]].concat();
    for cut in 1..whole.len() {
        let export = Export::open_ended(&whole[..cut]);
        let error = audit(&["verify", "--file", export.path()])
            .await
            .unwrap_err();
        assert!(
            matches!(error, AuditError::OpenEnd { .. }),
            "{cut}: {error}"
        );
    }
    let shorter = [&lines[..lines.len() - 1], &[end_of(&lines)]].concat();
    let longer = [&whole[..], &lines[lines.len() - 1..]].concat();
    for (changed, word) in [(shorter, "does not fit"), (longer, "has ended before")] {
        let export = Export::open_ended(&changed);
        let error = audit(&["verify", "--file", export.path()])
            .await
            .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}

/// What version 0.1.0 wrote has no end: it is read where that is asked for.
#[tokio::test]
async fn json_lines_of_the_first_version_are_read_when_an_open_end_is_allowed() {
    let golden = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../ledger/tests/golden/v0.1/ledger.jsonl"
    );
    let words = ["verify", "--file", golden];
    let error = audit(&words).await.unwrap_err();
    assert!(matches!(error, AuditError::OpenEnd { .. }), "{error}");
    let allowed = [&words[..], &["--allow-open-end"]].concat();
    let (holds, told) = audit(&allowed).await.unwrap();
    assert!(holds, "{told}");
}

/// The last commit of each partition is told by nothing there.
#[tokio::test]
async fn a_binary_export_of_the_first_version_is_read_when_an_open_end_is_allowed() {
    let frames = Ledgers::small().await.frames();
    let mut bytes = Export::binary(&frames).read();
    let lasts = 2 * (1 + 8 + 32);
    bytes.truncate(bytes.len() - lasts);
    let length = bytes.len() - 4;
    bytes[length..].fill(0);
    bytes[..18].copy_from_slice(b"SEATBELT-EXPORT-1\n");
    let export = Export::bytes(&bytes);
    let words = ["verify", "--file", export.path()];
    let refused = audit(&words).await;
    assert!(
        matches!(refused, Err(AuditError::OpenEnd { .. })),
        "{refused:?}"
    );
    let (holds, text) = audit(&[&words[..], &["--allow-open-end"]].concat())
        .await
        .unwrap();
    assert!(holds, "{text}");
}

/// A build that does not know a kind cannot say that what was decided after it holds.
#[tokio::test]
async fn an_event_of_an_unknown_kind_is_not_proved_and_says_so() {
    let mut lines = Ledgers::small().await.lines();
    let end = lines.len() - 1;
    rewrite(&mut lines[end], |commit| {
        let last = commit.events.last_mut().unwrap();
        let mut event = last.event.clone();
        event.body = EventBody::Unknown {
            kind: "zz_settled".to_owned(),
            data: rmpv::Value::Nil,
        };
        *last = StoredEvent::new(event);
    });
    let export = Export::of(&lines);
    let line = Line::try_parse_from(["audit", "verify", "--file", export.path()]);
    let mut out = Vec::new();
    let code = run_to(line.unwrap().args, &mut out).await.unwrap();
    let text = String::from_utf8(out).unwrap();
    assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(3)));
    assert!(!text.contains("everything holds"), "{text}");
    assert!(
        text.contains("NOT everything is proved: 1 events are of kinds"),
        "{text}"
    );
}

#[tokio::test]
async fn a_binary_export_that_was_cut_is_proven_as_far_as_it_goes_and_is_an_error() {
    let ledgers = Ledgers::small().await;
    let frames = ledgers.frames();
    let whole = Export::binary(&frames).read();
    // the last commit of the last partition is cut in two; after it stands the end of two partitions
    let end = whole.len() - (13 + 2 * 41) - 7;
    let cut = Export::bytes(&whole[..end]);
    let mut out = Vec::new();
    let words = ["audit", "verify", "--json", "--file", cut.path()];
    let error = run_to(Line::parse_from(words).args, &mut out)
        .await
        .unwrap_err();
    assert!(matches!(error, AuditError::Export { .. }), "{error:?}");
    let report: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(report["ok"], false);
    let place = format!("cut off at byte {end},");
    assert!(
        report["error"].as_str().unwrap().contains(&place),
        "{report:#}"
    );
    assert_eq!(report["commits"], frames.len() - 1);
    let failures = report["partitions"].as_array().unwrap().iter();
    assert!(
        failures
            .clone()
            .all(|finding| finding.get("failure").is_none()),
        "{report:#}"
    );
    assert_eq!(failures.count(), 2);
}

#[tokio::test]
async fn a_file_that_is_no_export_is_an_error_and_nothing_else() {
    for foreign in ["nonsense", "SEATBELT-EXPORT-9\n", "[]"] {
        let export = Export::bytes(foreign.as_bytes());
        for words in [["verify", "--file"], ["replay", "--file"]] {
            let mut out = Vec::new();
            let words = ["audit"].into_iter().chain(words).chain([export.path()]);
            let error = run_to(Line::parse_from(words).args, &mut out)
                .await
                .unwrap_err();
            assert!(
                matches!(error, AuditError::Export { .. }),
                "{foreign}: {error:?}"
            );
            assert!(out.is_empty());
        }
    }
}

/// Every commit in turn has one byte changed: each time the audit names its partition and that commit,
/// or the one after it, which it does not chain to.
#[tokio::test]
async fn a_byte_changed_in_any_commit_of_a_binary_export_is_found_there() {
    let ledgers = Ledgers::small().await;
    let frames = ledgers.frames();
    for (changed, (partition, sequence, payload)) in frames.iter().enumerate() {
        let mut frames = frames.clone();
        let last = payload.len() - 1;
        frames[changed].2[last / 2] ^= 1;
        let (holds, report) = report(&Export::binary(&frames)).await;
        let partitions = report["partitions"].as_array().unwrap();
        for (number, finding) in partitions.iter().enumerate() {
            if number != usize::from(partition.0) {
                // a genesis that cannot be read tells nothing of the other partition
                assert!(
                    finding.get("failure").is_none() || *sequence == 1,
                    "{report:#}"
                );
                continue;
            }
            let found = finding["failure"]["sequence"].as_u64().unwrap();
            assert!(
                [*sequence, sequence + 1].contains(&found),
                "{sequence}: {report:#}"
            );
        }
        assert!(!holds);
    }
}

#[tokio::test]
async fn each_partition_tells_its_own_first_failure() {
    let ledgers = Ledgers::small().await;
    let mut frames = ledgers.frames();
    let second = frames
        .iter()
        .position(|(partition, ..)| partition.0 == 1)
        .unwrap();
    frames[second + 4].2[40] ^= 1;
    frames[2].2[40] ^= 1;
    let (_, report) = report(&Export::binary(&frames)).await;
    let found = |partition: usize| report["partitions"][partition]["failure"]["sequence"].clone();
    assert_eq!((found(0), found(1)), (3.into(), 5.into()), "{report:#}");
}

#[tokio::test]
async fn a_commit_that_is_missing_is_found() {
    let found = damage(|lines| drop(lines.remove(3))).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1), (0, 4));
    assert!(found[0].2.contains("missing"), "{found:?}");
}

#[tokio::test]
async fn a_commit_that_was_rewritten_breaks_the_chain_after_it() {
    // the actor is no part of any decision: only the chain shows that it was changed
    let found = damage(|lines| {
        rewrite(&mut lines[2], |commit| {
            commit.events[0].event.actor = Actor::operator("mallory");
            commit.events[0] = StoredEvent::new(commit.events[0].event.clone());
        });
    })
    .await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1), (0, 4));
    assert!(found[0].2.contains("does not chain"), "{found:?}");
}

#[tokio::test]
async fn a_partition_that_is_missing_is_found() {
    let found = damage(|lines| lines.retain(|line| !line.contains(r#""partition":1,"#))).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0, 1);
    assert!(found[0].2.contains("made with 2 partitions"), "{found:?}");
}

#[tokio::test]
async fn bytes_that_are_no_commit_are_found_and_the_other_partition_is_still_proven() {
    let found = damage(|lines| lines[1] = line(Partition(0), 2, b"nonsense")).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1), (0, 2));
    assert!(found[0].2.contains("cannot be read"), "{found:?}");
}

#[tokio::test]
async fn a_line_that_is_no_export_is_an_error_with_its_place() {
    let mut lines = Ledgers::small().await.lines();
    lines[2] = "{}".to_owned();
    let export = Export::of(&lines);
    let error = audit(&["verify", "--file", export.path()])
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("export.jsonl, line 3: "),
        "{error}"
    );
    let nowhere = audit(&["verify", "--file", "nowhere.jsonl"])
        .await
        .unwrap_err();
    assert!(
        matches!(nowhere, AuditError::File { action: "open", .. }),
        "{nowhere}"
    );
    // what comes before it is proven all the same
    let mut out = Vec::new();
    let words = ["audit", "verify", "--json", "--file", export.path()];
    run_to(Line::parse_from(words).args, &mut out)
        .await
        .unwrap_err();
    let told: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        (&told["ok"], &told["commits"]),
        (&Value::from(false), &Value::from(2))
    );
    let empty = Export::of(&[]);
    let (holds, _) = report(&empty).await;
    assert!(!holds, "nothing proves nothing");
}

#[tokio::test]
async fn replay_prints_every_event_with_all_that_is_stored() {
    let ledgers = Ledgers::small().await;
    let mut lines = ledgers.lines();
    // a newer build added a field: it survives
    let last = lines.len() - 1;
    rewrite(&mut lines[last], |commit| {
        let stored = &mut commit.events[0];
        let mut value: rmpv::Value = rmpv::decode::read_value(&mut &stored.bytes[..]).unwrap();
        let rmpv::Value::Map(fields) = &mut value else {
            panic!("an event is a map")
        };
        fields.push(("mood".into(), "sunny".into()));
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &value).unwrap();
        stored.bytes = bytes.into();
    });
    let export = Export::of(&lines);
    let (_, text) = audit(&["replay", "--json", "--file", export.path()])
        .await
        .unwrap();
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events.len(), 2 * 2 + 4 * 7);
    for field in [
        "v",
        "position",
        "at_ms",
        "account",
        "kind",
        "cause",
        "actor",
        "data",
        "partition",
    ] {
        assert!(
            events.iter().all(|event| event.get(field).is_some()),
            "{field}"
        );
    }
    assert_eq!(events[0]["kind"], "genesis");
    assert_eq!(
        events
            .iter()
            .filter(|event| event["mood"] == "sunny")
            .count(),
        1
    );

    let (_, text) = audit(&["replay", "--file", export.path(), "--account", "alice"])
        .await
        .unwrap();
    assert_eq!(text.lines().count(), 7);
    assert!(text.lines().all(|line| line.contains(" alice ")), "{text}");
}

#[tokio::test]
async fn show_tells_any_past_state() {
    let ledgers = Ledgers::small().await;
    let export = Export::of(&ledgers.lines());
    let path = export.path();
    let stands = async |at: &str| -> Value {
        let words = ["show", "alice", "--json", "--file", path, "--at", at];
        serde_json::from_str(&audit(&words).await.unwrap().1).unwrap()
    };
    let end = audit(&["show", "alice", "--json", "--file", path])
        .await
        .unwrap()
        .1;
    let end: Value = serde_json::from_str(&end).unwrap();
    assert_eq!(
        (
            end["caps"][0]["spent"].as_u64(),
            end["caps"][0]["held"].as_u64()
        ),
        (Some(15), Some(20))
    );
    assert_eq!(end["open"].as_array().unwrap().len(), 1);
    // the last event is the last account's refusal; before alice's settle 40 were held
    let partition = partitions().of(&account("alice"));
    let commits = &ledgers.commits()[usize::from(partition.0)].1;
    let settled = commits
        .iter()
        .flat_map(|payload| Commit::decode(payload).unwrap().events)
        .find(|stored| {
            stored.event.account == account("alice") && stored.event.body.kind() == "settled"
        })
        .unwrap()
        .event
        .position;
    let before = stands(&(settled.0 - 1).to_string()).await;
    assert_eq!(
        (
            before["caps"][0]["spent"].as_u64(),
            before["caps"][0]["held"].as_u64()
        ),
        (Some(0), Some(40))
    );
    let after = stands(&settled.to_string()).await;
    assert_eq!(after["caps"][0]["available"], 85);
    let now = stands("2999-01-01").await;
    assert_eq!(now["caps"], end["caps"]);
    let early = audit(&["show", "alice", "--file", path, "--at", "2001-01-01"]).await;
    assert!(matches!(early, Err(AuditError::NoAccount { .. })));
    let (_, text) = audit(&["show", "alice", "--file", path]).await.unwrap();
    assert!(
        text.contains("limit 100, spent 15, held 20, available 65"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let error = audit(&["prove", "--file", "-"]).await.unwrap_err();
    assert!(
        error.to_string().contains("not part of this version"),
        "{error}"
    );
}

#[test]
fn at_most_one_source_is_named() {
    for words in [
        &["audit", "verify", "--file", "a", "--nats", "b"][..],
        &["audit", "verify", "--file", "a", "--prefix", "b"],
        &["audit", "show", "--file", "a"],
        &["audit", "show", "a.b", "--file", "a"],
    ] {
        assert!(Line::try_parse_from(words).is_err(), "{words:?}");
    }
    // the configuration where every other command looks for it
    assert!(Line::try_parse_from(["audit", "verify"]).is_ok());
    assert!(Line::try_parse_from(["audit", "verify", "--nats", "b", "--prefix", "p"]).is_ok());
}

/// A real server that holds the ledger.
async fn serve(ledgers: &Ledgers, data_dir: PathBuf) -> NatsServer {
    let options = NatsServerOptions::new(find_nats_server().unwrap(), data_dir);
    let server = NatsServer::start(options).await.unwrap();
    let nats = connect(&server.url(), "test", std::time::Duration::from_secs(10))
        .await
        .unwrap();
    for (partition, commits) in ledgers.commits() {
        let journal = NatsJournal::open(&nats, &Names::default(), partition, 1)
            .await
            .unwrap();
        for (expected, payload) in (0..).zip(commits) {
            journal
                .append(Sequence(expected), payload.into())
                .await
                .unwrap();
        }
    }
    server
}

#[tokio::test]
async fn a_server_is_read_running_or_not_and_its_export_proves_the_same() {
    let ledgers = Ledgers::small().await;
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let config = folder.path().join("seatbelt.toml");
    let export = folder.path().join("ledger.export");
    std::fs::write(
        &config,
        "[nats]\ndata_dir = \"data\"\n\n[gateway]\nadmin_token = \"0123456789abcdef0123\"\n",
    )
    .unwrap();
    let (config, export) = (config.to_str().unwrap(), export.to_str().unwrap());

    let nothing = audit(&["verify", "--config", config]).await;
    assert!(
        matches!(nothing, Err(AuditError::NoData { .. })),
        "{nothing:?}"
    );

    let server = serve(&ledgers, data_dir.clone()).await;
    let by_url = audit(&["verify", "--json", "--nats", &server.url()])
        .await
        .unwrap();
    let running = audit(&["verify", "--json", "--config", config])
        .await
        .unwrap();
    server.stop().await;
    let started = audit(&["verify", "--json", "--config", config])
        .await
        .unwrap();
    assert!(
        audit(&["export", "--config", config, "-o", export])
            .await
            .unwrap()
            .0
    );
    let copied = audit(&["verify", "--json", "--file", export])
        .await
        .unwrap();
    assert!(copied.0, "{}", copied.1);
    for other in [by_url, running, started] {
        assert_eq!(other, copied);
    }
    let printed = audit(&["export", "--config", config, "--json"])
        .await
        .unwrap();
    let reference = ledgers.lines();
    let mut lines: Vec<_> = printed.1.lines().collect();
    assert_eq!(lines.pop(), Some(end_of(&reference).as_str()));
    lines.sort_unstable_by_key(|line| reference.iter().position(|known| known == line));
    assert_eq!(
        lines, reference,
        "JSON holds the same commits, partitions in turns"
    );
    let again = audit(&["export", "--config", config, "-o", export]).await;
    assert!(
        matches!(again, Err(AuditError::File { .. })),
        "an export is never overwritten"
    );
    assert!(
        !data_dir.join("nats.json").exists(),
        "the server that was started is stopped"
    );
}

#[tokio::test]
async fn an_empty_server_has_no_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let options = NatsServerOptions::new(find_nats_server().unwrap(), folder.path().to_owned());
    let server = NatsServer::start(options).await.unwrap();
    let error = audit(&["verify", "--nats", &server.url()])
        .await
        .unwrap_err();
    assert!(matches!(error, AuditError::NoLedger { .. }), "{error}");
    server.stop().await;
}
