//! Journals that released versions wrote stay readable for ever: each golden journal verifies, decides
//! again to the same bytes, and ends in the balances that were recorded with it.
//!
//! A folder under `golden/` holds, for one version: an export in both forms, and the balances. They are
//! never written again. `write_golden` makes those of the version at hand: `cargo test -p seatbelt-ledger
//! --test golden -- --ignored`, with `GOLDEN_TO` naming a new folder.
#![allow(clippy::unwrap_used)]

#[path = "golden/story.rs"]
mod story;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use seatbelt_ledger::{
    audit::Verifier,
    journal::{
        Sequence,
        export::{ExportReader, ExportWriter},
    },
    partition::PartitionState,
    recovery::newer,
};
use seatbelt_schemas::{
    commit::Commit,
    event::{EventBody, KINDS, OnUnknown, RefusalReason},
    position::Partition,
};

type Journals = BTreeMap<Partition, Vec<Bytes>>;

fn versions() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = fs::read_dir(golden).unwrap();
    let folders = entries.map(|entry| entry.unwrap().path());
    let folders: Vec<_> = folders.filter(|path| path.is_dir()).collect();
    assert!(!folders.is_empty(), "there are golden journals");
    folders
}

fn read(export: &[u8]) -> Journals {
    let mut reader = ExportReader::new(export);
    let mut journals = Journals::new();
    while let Some(commit) = reader.next_commit().unwrap() {
        let journal = journals.entry(commit.partition).or_default();
        journal.push(Bytes::copy_from_slice(commit.payload));
        assert_eq!(commit.sequence, Sequence(journal.len() as u64));
    }
    journals
}

/// Partitions take turns, as `audit export` lets them.
fn export(journals: &Journals) -> Vec<u8> {
    let mut writer = ExportWriter::begin(Vec::new()).unwrap();
    let longest = journals.values().map(Vec::len).max().unwrap_or(0);
    for at in 0..longest {
        for (partition, journal) in journals {
            if let Some(payload) = journal.get(at) {
                let sequence = Sequence(at as u64 + 1);
                writer.commit(*partition, sequence, payload).unwrap();
            }
        }
    }
    writer.finish().unwrap()
}

/// The same in JSON, as `audit export --json` writes it.
fn lines(export: &[u8]) -> String {
    let (mut reader, mut text) = (ExportReader::new(export), String::new());
    while let Some(commit) = reader.next_commit().unwrap() {
        let (partition, sequence) = (commit.partition.0, commit.sequence);
        let head = format!(r#"{{"partition":{partition},"sequence":{sequence},"payload":""#);
        text.push_str(&head);
        for byte in commit.payload {
            write!(text, "{byte:02x}").unwrap();
        }
        text.push_str("\"}\n");
    }
    text
}

/// Every partition's end, and how every cap of every account stands there.
fn balances(journals: &Journals) -> String {
    let mut text = String::new();
    for (partition, journal) in journals {
        let mut state = PartitionState::new(*partition);
        for payload in journal {
            state.accept(payload).unwrap();
        }
        let (position, at_ms) = (state.position(), state.at_ms());
        writeln!(
            text,
            "partition {partition}: {} commits, position {position}, chain {}",
            journal.len(),
            state.chain()
        )
        .unwrap();
        let accounts: BTreeMap<_, _> = state.accounts().collect();
        for (account, known) in accounts {
            let (open, expired) = (known.open().len(), known.expired().len());
            writeln!(text, "{account}: {open} open, {expired} expired").unwrap();
            for cap in known.caps() {
                let (limit, spent) = (cap.limit(), cap.spent(at_ms));
                let (id, held) = (&cap.spec.cap, cap.held);
                writeln!(text, "  {id}: limit {limit}, spent {spent}, held {held}").unwrap();
            }
        }
    }
    text
}

/// A writer starts on every commit that a release wrote: no field of it is one that it does not know.
fn starts(journals: &Journals) {
    for payload in journals.values().flatten() {
        let commit = Commit::decode(payload).unwrap();
        newer::knows_all_of(&commit, None).unwrap();
    }
}

fn prove(journals: &Journals) {
    for (partition, journal) in journals {
        let mut verifier = Verifier::new(*partition);
        for (sequence, payload) in (1..).zip(journal) {
            verifier.accept(Sequence(sequence), payload).unwrap();
        }
        let proved = verifier.finish().unwrap();
        assert_eq!(proved.unknown, 0, "every event was decided again");
    }
}

fn events(journals: &Journals) -> impl Iterator<Item = EventBody> {
    let commits = journals.values().flatten();
    commits
        .flat_map(|payload| Commit::decode(payload).unwrap().events)
        .map(|stored| stored.event.body)
}

#[test]
fn a_golden_journal_proves_and_ends_in_its_recorded_balances() {
    for folder in versions() {
        let journals = read(&fs::read(folder.join("ledger.export")).unwrap());
        prove(&journals);
        starts(&journals);
        let recorded = fs::read_to_string(folder.join("balances.txt")).unwrap();
        assert_eq!(balances(&journals), recorded, "{}", folder.display());
    }
}

/// What a golden journal must hold for its proof to mean something.
#[test]
fn a_golden_journal_has_every_kind_of_event_and_of_decision() {
    for folder in versions() {
        let journals = read(&fs::read(folder.join("ledger.export")).unwrap());
        complete(&journals);
    }
}

fn complete(journals: &Journals) {
    let kinds: BTreeSet<String> = events(journals)
        .map(|body| body.kind().to_owned())
        .collect();
    for kind in KINDS {
        assert!(kinds.contains(*kind), "{kind}");
    }
    let has = |what: &str, is: &dyn Fn(&EventBody) -> bool| {
        assert!(events(journals).any(|body| is(&body)), "{what}");
    };
    for reason in [
        RefusalReason::Spent,
        RefusalReason::Unsatisfiable,
        RefusalReason::Held,
        RefusalReason::Unpriced,
    ] {
        let refused =
            |body: &EventBody| matches!(body, EventBody::Refused(data) if data.reason == reason);
        has(reason.as_str(), &refused);
    }
    for policy in [OnUnknown::ChargeHold, OnUnknown::Release] {
        let expired =
            |body: &EventBody| matches!(body, EventBody::Expired(data) if data.policy == policy);
        has("an expiry by each policy", &expired);
    }
    has("a clamped hold", &|body| {
        matches!(body, EventBody::Reserved(data) if data.budget.is_none()
            && data.hold.output_tokens < data.asked.output_tokens)
    });
    has(
        "a run",
        &|body| matches!(body, EventBody::Reserved(data) if data.budget.is_some()),
    );
    has(
        "a late settle",
        &|body| matches!(body, EventBody::Settled(data) if data.late),
    );
    has(
        "counted refusals",
        &|body| matches!(body, EventBody::Refused(data) if data.count > 1),
    );
    has(
        "a second price",
        &|body| matches!(body, EventBody::PriceSet(data) if data.version == 2),
    );
    has(
        "a negative adjustment",
        &|body| matches!(body, EventBody::Adjusted(data) if data.delta < 0),
    );
    has(
        "a second epoch",
        &|body| matches!(body, EventBody::WriterStarted(data) if data.epoch.0 == 2),
    );
}

#[test]
fn the_story_of_the_version_at_hand_is_complete_and_proves() {
    let journals = story::journals();
    prove(&journals);
    starts(&journals);
    complete(&journals);
    assert_eq!(read(&export(&journals)), journals);
}

#[test]
#[ignore = "writes the golden journals of a new version"]
fn write_golden() {
    let folder = PathBuf::from(std::env::var_os("GOLDEN_TO").unwrap());
    let journals = story::journals();
    fs::create_dir_all(&folder).unwrap();
    let export = export(&journals);
    fs::write(folder.join("ledger.jsonl"), lines(&export)).unwrap();
    fs::write(folder.join("ledger.export"), export).unwrap();
    fs::write(folder.join("balances.txt"), balances(&journals)).unwrap();
}
