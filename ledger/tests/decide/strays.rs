//! Messages on a journal that are no commits: found by everybody, and stepped over by everybody where the
//! commit that follows names exactly them.

use std::sync::Arc;

use bytes::Bytes;
use eventually::store::{EventStore as _, Select};
use futures::TryStreamExt as _;
use seatbelt_ledger::{
    journal::{
        Sequence,
        memory::MemoryJournal,
        strays::{Kind, StrayVerdict, judge, kind},
    },
    lookup,
    outcomes::HOT_MAX,
    partition::PartitionState,
    recovery::RecoverySource,
    repository::JournalStore,
    writer::{Word, Writer},
};
use seatbelt_schemas::{
    commit::Commit,
    event::EventBody,
    ids::CommandId,
    position::{Epoch, Partition},
    skipped::{Skipped, Stray},
};

use crate::story::{Story, account, ask, config, prove};

/// A journal in which something was reserved and settled, and the command that did it.
fn honest() -> (Vec<Bytes>, CommandId) {
    let mut story = Story::new(&["all account tokens balance 1000"]);
    let call = story.reserve(&ask(10, 20));
    story.settle(&call, 10, 5);
    story.spend(&ask(1, 1), 1, 1);
    (story.journal.clone(), call.id)
}

fn source(journal: &[Bytes]) -> RecoverySource<MemoryJournal> {
    RecoverySource {
        journal: Arc::new(MemoryJournal::with_commits(journal.iter().cloned())),
        snapshots: None,
        partition: Partition(0),
        hot_max: HOT_MAX,
    }
}

/// The journal with these messages behind it, and a writer's start behind them that names `named`.
async fn skipping(
    mut journal: Vec<Bytes>,
    strays: &[Bytes],
    named: Option<Vec<Stray>>,
) -> Vec<Bytes> {
    let (mut resumed, _) = source(&journal).recover().await.unwrap();
    journal.extend(strays.iter().cloned());
    resumed.tail = Sequence(journal.len() as u64);
    let now_ms = resumed.state.at_ms();
    let skipped = named.map(|messages| Skipped {
        messages,
        reason: "test".to_owned(),
        by: "operator:ada".to_owned(),
    });
    let word = Word {
        adopted: None,
        skipped,
    };
    let mut writer = Writer::<crate::story::Token>::start_on(config(), resumed, now_ms, word);
    let (expected, payload) = writer.take_append().unwrap();
    assert_eq!(expected, Sequence(journal.len() as u64));
    journal.push(payload);
    journal
}

fn named(journal: &[Bytes], strays: &[Bytes]) -> Vec<Stray> {
    let places = journal.len() as u64 + 1..;
    let named = places.zip(strays);
    named.map(|(at, payload)| Stray::of(at, payload)).collect()
}

/// What stands there by accident: noise, a copy of an old commit, nothing at all.
fn accidents(journal: &[Bytes]) -> Vec<Bytes> {
    let copy = journal[journal.len() - 2].clone();
    vec![Bytes::from_static(b"hello"), copy, Bytes::new()]
}

#[tokio::test]
async fn what_is_skipped_is_stepped_over_by_every_reader() {
    let (before, id) = honest();
    let strays = accidents(&before);
    let word = named(&before, &strays);
    let after = skipping(before.clone(), &strays, Some(word)).await;

    let summary = prove(&after).unwrap();
    assert_eq!(
        (summary.skipped, summary.commits),
        (3, before.len() as u64 + 1)
    );

    let (resumed, base) = source(&after).recover().await.unwrap();
    let (former, _) = source(&before).recover().await.unwrap();
    assert_eq!(resumed.tail, Sequence(after.len() as u64));
    assert_eq!(resumed.state.epoch(), Epoch(former.state.epoch().0 + 1));
    assert_eq!(
        resumed.state.account(&account()),
        former.state.account(&account())
    );

    let read = async |journal: &[Bytes]| -> usize {
        let journal = MemoryJournal::with_commits(journal.iter().cloned());
        let store = JournalStore::new(journal, Partition(0));
        let events = store.stream_all(Select::All).await.unwrap();
        events.try_collect::<Vec<_>>().await.unwrap().len()
    };
    assert_eq!(read(&after).await, read(&before).await + 1);

    let told = async |journal: &[Bytes], skipped: &[u64]| {
        let end = Sequence(journal.len() as u64);
        let journal = MemoryJournal::with_commits(journal.iter().cloned());
        let trace = lookup::trace_past(&journal, id, end, skipped).await;
        trace.unwrap().events
    };
    assert_eq!(told(&after, base.skipped()).await, told(&before, &[]).await);
}

#[tokio::test]
async fn without_the_word_for_exactly_them_they_are_found() {
    let (before, _) = honest();
    let strays = accidents(&before);
    let first = before.len() as u64 + 1;
    let right = named(&before, &strays);
    let other = |change: &dyn Fn(&mut Vec<Stray>)| {
        let mut messages = right.clone();
        change(&mut messages);
        Some(messages)
    };
    let words = [
        None,
        other(&|messages| messages.truncate(2)),
        other(&|messages| messages.swap(0, 1)),
        other(&|messages| messages[0].sequence += 1),
        other(&|messages| messages[1].sha256 = Stray::of(1, b"other").sha256),
        other(&|messages| messages.push(Stray::of(first + 3, b"more"))),
        other(&|messages| messages.clear()),
    ];
    for word in words {
        let journal = skipping(before.clone(), &strays, word.clone()).await;
        let error = prove(&journal).expect_err("it must be found");
        let at_last = format!("sequence {}: ", journal.len());
        let at_first = format!("sequence {first}: ");
        assert!(
            error.starts_with(&at_first) || error.starts_with(&at_last),
            "{word:?}: {error}"
        );
        let recovered = source(&journal).recover().await;
        let error = recovered.expect_err("nobody goes on");
        assert!(
            error.to_string().contains(&format!("sequence {first}")),
            "{error}"
        );
    }
    let unfollowed = [&before[..], &strays].concat();
    let error = prove(&unfollowed).unwrap_err();
    assert!(error.starts_with(&format!("sequence {first}: ")), "{error}");
    assert!(source(&unfollowed).recover().await.is_err());
}

#[tokio::test]
async fn a_word_for_messages_that_are_not_there_is_found() {
    let (before, _) = honest();
    let word = vec![Stray::of(before.len() as u64, before.last().unwrap())];
    let journal = skipping(before, &[], Some(word)).await;
    let error = prove(&journal).expect_err("it must be found");
    assert!(error.contains("names messages to skip"), "{error}");
}

#[tokio::test]
async fn a_second_skip_is_as_good_as_the_first() {
    let (mut journal, _) = honest();
    for _ in 0..2 {
        let strays = accidents(&journal);
        let word = named(&journal, &strays);
        journal = skipping(journal, &strays, Some(word)).await;
    }
    assert_eq!(prove(&journal).unwrap().skipped, 6);
    let (resumed, _) = source(&journal).recover().await.unwrap();
    assert_eq!(resumed.state.head().skipped.len(), 6);
}

#[tokio::test]
async fn a_damaged_commit_at_the_end_can_be_given_up_and_changes_nothing() {
    let (before, _) = honest();
    let (last, kept) = before.split_last().unwrap();
    let mut damaged = last.to_vec();
    let end = damaged.len() - 10;
    damaged[end..].fill(0xc1);
    let damaged = Bytes::from(damaged);
    let word = named(kept, std::slice::from_ref(&damaged));
    let journal = skipping(kept.to_vec(), &[damaged], Some(word)).await;
    assert_eq!(prove(&journal).unwrap().skipped, 1);
    let (resumed, _) = source(&journal).recover().await.unwrap();
    let (former, _) = source(kept).recover().await.unwrap();
    assert_eq!(
        resumed.state.account(&account()),
        former.state.account(&account())
    );
}

#[test]
fn a_message_is_told_by_its_header() {
    let (journal, _) = honest();
    let mut state = PartitionState::new(Partition(0));
    let (last, rest) = journal.split_last().unwrap();
    for payload in &rest[..rest.len() - 1] {
        state.accept(payload).unwrap();
    }
    let next = rest.last().unwrap();
    let kind = |payload: &[u8]| kind(state.head(), payload);
    assert_eq!(kind(b"hello"), Kind::Foreign);
    assert_eq!(kind(&journal[1]), Kind::Copy);
    assert_eq!(kind(last), Kind::Later);
    let mut commit = Commit::decode(next).unwrap();
    commit.prev.0[0] ^= 1;
    assert_eq!(kind(&commit.encode()), Kind::Damaged);
    commit.partition = Partition(1);
    assert_eq!(kind(&commit.encode()), Kind::Foreign);
    let started = Commit::decode(&journal[0]).unwrap();
    let genesis = &started.events[0].event.body;
    assert!(matches!(genesis, EventBody::Genesis(_)));
}

/// Whoever appends stands behind the commit before: what skips places was not appended by a writer of this journal,
/// unless something before it may have been damaged.
#[test]
fn a_commit_of_a_later_place_is_a_stray_where_nothing_before_it_can_have_been_damaged() {
    let (journal, _) = honest();
    let mut state = PartitionState::new(Partition(0));
    let (last, rest) = journal.split_last().unwrap();
    let (next, rest) = rest.split_last().unwrap();
    for payload in rest {
        state.accept(payload).unwrap();
    }
    let first = rest.len() as u64 + 1;
    let stored = |payloads: &[&[u8]]| -> Vec<seatbelt_ledger::journal::Stored> {
        let places = (first..).map(Sequence).zip(payloads);
        let stored = places.map(|(sequence, payload)| seatbelt_ledger::journal::Stored {
            sequence,
            payload: Bytes::copy_from_slice(payload),
        });
        stored.collect()
    };
    let judged = |payloads: &[&[u8]]| judge(state.head(), &stored(payloads));
    // bytes of the next commit and of the one after it that say something else than they did
    let (mut damaged, mut contradicts) = (next.to_vec(), last.to_vec());
    let end = damaged.len() - 20;
    damaged[end..].fill(0xc1);
    let end = contradicts.len() - 20;
    contradicts[end..].fill(0xc1);
    let whole: &[u8] = last;

    assert_eq!(judged(&[whole]), StrayVerdict::Strays);
    assert_eq!(judged(&[whole, whole]), StrayVerdict::Strays);
    assert_eq!(judged(&[&journal[1], whole]), StrayVerdict::Strays);
    assert_eq!(judged(&[&contradicts]), StrayVerdict::Damaged);
    assert_eq!(judged(&[&damaged]), StrayVerdict::Damaged);
    let middle = StrayVerdict::Middle(Sequence(first + 1));
    assert_eq!(judged(&[&damaged, whole]), middle);
    assert_eq!(judged(&[b"hello", whole]), middle);
}
