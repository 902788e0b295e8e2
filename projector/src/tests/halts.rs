//! Journals that cannot be followed: their partition stands still, and nothing else does.

use std::{
    future::pending,
    sync::atomic::{AtomicBool, Ordering},
};

use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{self, BoxStream},
};

use super::*;
use crate::{
    Health, Opening, Projector,
    health::{Component, STALLED_AFTER},
    store::{FeedEnd, FeedEntry, FeedPlace, FeedSequence, FeedStore, StoreError, WriteError},
};

impl World {
    /// Runs a projector until its partition stands still, then stops it.
    pub(super) async fn until_halted(&self, projector: &str) -> Result<(), ProjectorError> {
        let before = self.snapshots.writes().len();
        let running = self.start(projector);
        // it takes the seat, and gives it up again
        let gave_up = |record: PartitionRecord| record.projector.is_none();
        let took_it = || self.snapshots.writes().len() > before + 1;
        until(|| took_it() && self.record().is_some_and(gave_up)).await;
        assert!(!running.task.is_finished(), "a halt ends nothing else");
        running.end().await
    }
}

#[tokio::test]
async fn a_broken_chain_halts_its_partition_and_names_the_place() {
    let mut story = short_story();
    story[2].prev.0[0] ^= 1;
    let world = World::of(story);
    let ended = world.until_halted("p").await;
    let Err(ProjectorError::Halted { count: 1, first }) = ended else {
        panic!("{ended:?}");
    };
    assert!(
        matches!(
            first,
            Halt::Chain {
                at: Sequence(3),
                ..
            }
        ),
        "{first}"
    );
    // all that was good is there, nothing after it is
    assert_eq!(world.record().unwrap().sequence, 2);
    assert_eq!(world.feed.messages(), expected_feed(&world.commits[..2]));
}

#[tokio::test]
async fn a_partition_that_halts_leaves_the_others_running() {
    let mut broken = short_story();
    broken[1].prev.0[0] ^= 1;
    let world = World::of(broken);
    let other = commits_of(Partition(1), &[&[opened("c")]]);
    let mut parts = world.parts("p");
    let journal = MemoryJournal::with_commits(other.iter().map(Commit::encode));
    parts
        .journals
        .push((Partition(1), Arc::new(journal.clone())));
    let stop = CancellationToken::new();
    let task = tokio::spawn(run(parts, stop.clone()));
    until(|| {
        world
            .record()
            .is_some_and(|record| record.projector.is_none())
    })
    .await;
    let more = &commits_of(Partition(1), &[&[opened("c")], &[opened("d")]])[1];
    journal.append(Sequence(1), more.encode()).await.unwrap();
    until(|| world.snapshots.peek("account.d").is_some()).await;
    stop.cancel();
    let ended = task.await.unwrap();
    assert!(
        matches!(ended, Err(ProjectorError::Halted { count: 1, .. })),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_journal_that_was_cut_is_not_followed() {
    let story = short_story();
    let world = World::of(story.clone());
    world.catch_up("p").await;
    let cut = World {
        journal: MemoryJournal::with_commits(story[..2].iter().map(Commit::encode)),
        ..world
    };
    let ended = cut.until_halted("p").await;
    let Err(ProjectorError::Halted { first, .. }) = ended else {
        panic!("{ended:?}")
    };
    assert!(
        matches!(
            first,
            Halt::Cut {
                end: Sequence(2),
                at: Sequence(3),
                ..
            }
        ),
        "{first}"
    );
}

/// An older projector keeps what was good and gives its seat up: a snapshot without what it does not know
/// would be taken for the truth by the next start. The feed only passes on.
#[tokio::test]
async fn snapshots_end_before_a_field_that_is_not_known_and_the_feed_goes_on() {
    let mut story = short_story();
    let event = story[2].events[0].clone();
    let mut value: rmpv::Value = wire::decode("event", &event.bytes).unwrap();
    if let rmpv::Value::Map(fields) = &mut value {
        fields.push(("later".into(), true.into()));
    }
    story[2].events[0] = StoredEvent::read(wire::encode(&value).into()).unwrap();
    let world = World::of(story);
    let (running, health) = telling(world.parts("p"));
    let gave_up = |record: PartitionRecord| record.projector.is_none() && record.sequence == 2;
    until(|| world.record().is_some_and(gave_up)).await;
    until(|| world.feed.messages() == expected_feed(&world.commits)).await;
    until(|| stalled(&health) == [Component::Snapshots]).await;
    let told = health.stalled()[0].to_string();
    assert!(told.contains("the field `later`"), "{told}");
    running.end().await.unwrap();
    assert_eq!(world.record().unwrap().sequence, 2);
}

/// Starts a projector that tells how it gets on.
fn telling(parts: ProjectorParts<MemoryJournal>) -> (Running, Health) {
    let (stop, health) = (CancellationToken::new(), Health::default());
    let projector = Projector::new(parts).telling(health.clone());
    let task = tokio::spawn(projector.run(stop.clone()));
    (Running { stop, task }, health)
}

fn stalled(health: &Health) -> Vec<Component> {
    let stalled = health.stalled();
    stalled.iter().map(|stalled| stalled.component).collect()
}

/// As when an operator puts the journal back, or skips what stood there, while it is served.
#[tokio::test]
async fn a_partition_that_halted_goes_on_once_its_journal_does() {
    let story = short_story();
    let world = World::of(story.clone());
    world.catch_up("p").await;
    let mut cut = World {
        journal: MemoryJournal::with_commits(story[..2].iter().map(Commit::encode)),
        commits: story[..2].to_vec(),
        ..world
    };
    let (running, health) = telling(cut.parts("p"));
    until(|| health.stalled().len() == 2).await;
    let told = health.stalled()[0].to_string();
    assert!(
        told.contains("partition 00") && told.contains("audit verify"),
        "{told}"
    );
    cut.append(&story[2..]).await;
    until(|| health.stalled().is_empty() && cut.is_current()).await;
    running.end().await.unwrap();
    cut.check("");
}

#[tokio::test]
async fn a_journal_that_is_in_doubt_is_asked_for_until_it_is_not() {
    let world = World::of(short_story());
    let mut parts = world.parts("p");
    let (_, journal) = parts.journals.remove(0);
    let doubt = Arc::new(AtomicBool::new(true));
    let opening: Opening<MemoryJournal> = {
        let doubt = Arc::clone(&doubt);
        Arc::new(move || {
            let (doubt, journal) = (Arc::clone(&doubt), Arc::clone(&journal));
            async move {
                match doubt.load(Ordering::SeqCst) {
                    true => Err("it is shorter than it was".to_owned()),
                    false => Ok(journal),
                }
            }
            .boxed()
        })
    };
    let (stop, health) = (CancellationToken::new(), Health::default());
    let projector = Projector::new(parts)
        .telling(health.clone())
        .opened_by(PARTITION, opening);
    let task = tokio::spawn(projector.run(stop.clone()));
    until(|| health.stalled().len() == 2).await;
    assert!(health.stalled()[0].reason.contains("shorter"));
    doubt.store(false, Ordering::SeqCst);
    world.until_current().await;
    Running { stop, task }.end().await.unwrap();
    world.check("");
}

/// A feed whose server takes questions and answers none.
struct Silent;

impl FeedStore for Silent {
    fn end(&self) -> BoxFuture<'_, Result<FeedEnd, StoreError>> {
        pending().boxed()
    }

    fn entry(&self, _: FeedSequence) -> BoxFuture<'_, Result<Option<FeedEntry>, StoreError>> {
        pending().boxed()
    }

    fn entries(
        &self,
        _: FeedSequence,
        _: FeedSequence,
    ) -> BoxStream<'_, Result<FeedEntry, StoreError>> {
        stream::pending().boxed()
    }

    fn append<'a>(
        &'a self,
        _: &'a FeedPlace,
        _: &'a [FeedMessage],
    ) -> BoxFuture<'a, Result<FeedSequence, WriteError>> {
        pending().boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_feed_that_never_answers_is_told_and_keeps_nobody_from_ending() {
    let world = World::of(short_story());
    let parts = ProjectorParts {
        feed: Arc::new(Silent),
        ..world.parts("p")
    };
    let (running, health) = telling(parts);
    let begun = tokio::time::Instant::now();
    until(|| stalled(&health) == [Component::Feed]).await;
    assert!(begun.elapsed() >= STALLED_AFTER, "a short silence is none");
    let snapshots = world.record().unwrap();
    assert_eq!(snapshots.sequence, 3, "the other projection goes on");
    let ended = tokio::time::timeout(PATIENCE, running.end()).await;
    ended.expect("it ends").unwrap();
    assert_eq!(stalled(&health), [], "nobody's any more");
}
