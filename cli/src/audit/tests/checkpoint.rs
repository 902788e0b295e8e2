//! A checkpoint knows a journal that is shorter than it was, or another one, although it proves by itself.

use seatbelt_schemas::commit::ChainHash;

use super::*;

/// A folder with the checkpoint of an export.
async fn noted(export: &Export) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.json");
    let path = path.to_str().unwrap().to_owned();
    note("--file", export.path(), &path).await.unwrap();
    (folder, path)
}

async fn note(place: &str, from: &str, to: &str) -> Result<(bool, String), AuditError> {
    audit(&["checkpoint", place, from, "--out", to]).await
}

/// What `audit verify` finds by itself, and with a checkpoint.
async fn found(place: &str, from: &str, checkpoint: &str) -> (bool, bool, String) {
    let (alone, _) = audit(&["verify", place, from]).await.unwrap();
    let words = ["verify", place, from, "--checkpoint", checkpoint];
    let (seen, text) = audit(&words).await.unwrap();
    (alone, seen, text)
}

/// The ledger without the last commits of the first partition.
fn without(ledgers: &Ledgers, commits: usize) -> Export {
    let mut frames = ledgers.frames();
    let first = frames.iter().filter(|frame| frame.0 == Partition(0));
    let keep = first.count() - commits;
    frames
        .retain(|(partition, sequence, _)| *partition != Partition(0) || *sequence <= keep as u64);
    Export::binary(&frames)
}

#[tokio::test]
async fn a_shorter_journal_proves_by_itself_and_fails_a_later_checkpoint() {
    let ledgers = Ledgers::small().await;
    let (whole, short) = (Export::binary(&ledgers.frames()), without(&ledgers, 1));
    let (_folder, later) = noted(&whole).await;
    let (alone, seen, text) = found("--file", short.path(), &later).await;
    assert!(alone && !seen, "{text}");
    assert!(
        text.contains("but the checkpoint saw it go on to"),
        "{text}"
    );
    let (_folder, earlier) = noted(&short).await;
    let (alone, seen, text) = found("--file", whole.path(), &earlier).await;
    assert!(alone && seen, "a journal may grow: {text}");
}

#[tokio::test]
async fn a_journal_that_is_not_there_at_all_fails_a_checkpoint() {
    let ledgers = Ledgers::small().await;
    let whole = Export::binary(&ledgers.frames());
    let (_folder, checkpoint) = noted(&whole).await;
    let mut frames = ledgers.frames();
    frames.retain(|(partition, ..)| *partition == Partition(0));
    let (_, seen, text) = found("--file", Export::binary(&frames).path(), &checkpoint).await;
    assert!(!seen && text.contains("partition 01: FAILED"), "{text}");
    assert!(text.contains("the journal ends at sequence 0"), "{text}");
}

#[tokio::test]
async fn another_commit_at_the_end_fails_a_checkpoint() {
    let ledgers = Ledgers::small().await;
    let (_folder, checkpoint) = noted(&Export::binary(&ledgers.frames())).await;
    let mut frames = ledgers.frames();
    let (_, _, last) = frames.last_mut().unwrap();
    let mut commit = Commit::decode(last).unwrap();
    let before = ChainHash::of(last);
    for stored in &mut commit.events {
        stored.event.actor = Actor::operator("somebody else");
        *stored = StoredEvent::new(stored.event.clone());
    }
    *last = commit.encode().to_vec();
    assert_ne!(before, ChainHash::of(last));
    let (alone, seen, text) = found("--file", Export::binary(&frames).path(), &checkpoint).await;
    assert!(alone && !seen, "{text}");
    assert!(
        text.contains("another commit than the checkpoint saw"),
        "{text}"
    );
}

#[tokio::test]
async fn a_checkpoint_of_another_ledger_fails() {
    let ledgers = Ledgers::small().await;
    let export = Export::binary(&ledgers.frames());
    let (_folder, checkpoint) = noted(&export).await;
    let text = std::fs::read_to_string(&checkpoint).unwrap();
    std::fs::write(&checkpoint, text.replace("\"test\"", "\"other\"")).unwrap();
    let (alone, seen, text) = found("--file", export.path(), &checkpoint).await;
    assert!(alone && !seen, "{text}");
    assert!(
        text.contains("belongs to ledger test, not to other"),
        "{text}"
    );
}

#[tokio::test]
async fn a_checkpoint_is_replaced_only_by_one_that_has_seen_as_much() {
    let ledgers = Ledgers::small().await;
    let (whole, short) = (Export::binary(&ledgers.frames()), without(&ledgers, 1));
    let (_folder, path) = noted(&short).await;
    note("--file", whole.path(), &path).await.unwrap();
    let kept = std::fs::read_to_string(&path).unwrap();
    let error = note("--file", short.path(), &path).await.unwrap_err();
    assert!(matches!(error, AuditError::NotReplaced { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), kept);
    std::fs::write(&path, "{}").unwrap();
    let error = note("--file", whole.path(), &path).await.unwrap_err();
    assert!(matches!(error, AuditError::Checkpoint { .. }), "{error}");
}

#[tokio::test]
async fn a_server_put_back_whole_from_an_older_backup_fails_a_checkpoint() {
    let ledgers = Ledgers::small().await;
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint.json");
    let checkpoint = checkpoint.to_str().unwrap();
    let server = serve(&ledgers, folder.path().join("data")).await;
    note("--nats", &server.url(), checkpoint).await.unwrap();
    let (alone, seen, text) = found("--nats", &server.url(), checkpoint).await;
    assert!(alone && seen, "{text}");
    note("--nats", &server.url(), checkpoint).await.unwrap();
    server.stop().await;

    let mut older = ledgers;
    let journal = MemoryJournal::new();
    let commits = older.journals[0].commits();
    for (expected, payload) in (0..).zip(&commits[..commits.len() - 1]) {
        let appended = journal.append(Sequence(expected), payload.clone()).await;
        appended.unwrap();
    }
    older.journals[0] = journal;
    let server = serve(&older, folder.path().join("older")).await;
    let (alone, seen, text) = found("--nats", &server.url(), checkpoint).await;
    assert!(alone && !seen, "{text}");
    let error = note("--nats", &server.url(), checkpoint).await.unwrap_err();
    assert!(matches!(error, AuditError::NotReplaced { .. }), "{error}");
    server.stop().await;
}

/// What guards nothing is not taken for a checkpoint.
#[tokio::test]
async fn a_checkpoint_that_can_be_none_is_refused() {
    let ledgers = Ledgers::small().await;
    let whole = Export::binary(&ledgers.frames());
    let (_folder, path) = noted(&whole).await;
    let good: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let twice = serde_json::json!([good["partitions"][0], good["partitions"][0]]);
    let changes: [(&str, Value); 6] = [
        ("/partitions", serde_json::json!([])),
        ("/partitions", twice),
        ("/partitions/0/sha256", "zz".into()),
        ("/partitions/1/sequence", 0.into()),
        ("/partitions/1/position", 0.into()),
        ("/partitions/1/partition", 100.into()),
    ];
    for (place, value) in changes {
        let mut bad = good.clone();
        *bad.pointer_mut(place).unwrap() = value;
        std::fs::write(&path, bad.to_string()).unwrap();
        let words = ["verify", "--file", whole.path(), "--checkpoint", &path];
        let refused = audit(&words).await;
        assert!(
            matches!(refused, Err(AuditError::Checkpoint { .. })),
            "{bad}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_checkpoint_is_not_taken_without_one_of_the_journals() {
    let ledgers = Ledgers::small().await;
    let mut frames = ledgers.frames();
    frames.retain(|(partition, ..)| *partition == Partition(0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.json");
    let half = Export::binary(&frames);
    let refused = note("--file", half.path(), path.to_str().unwrap()).await;
    let named = Partition(1);
    assert!(
        matches!(refused, Err(AuditError::Incomplete { partition }) if partition == named),
        "{refused:?}"
    );
    assert!(!path.exists());
}
