//! Journals that cannot be followed: their partition stands still, and nothing else does.

use super::*;

impl World {
    /// Runs a projector until its partition stands still, then stops it.
    async fn until_halted(&self, projector: &str) -> Result<(), ProjectorError> {
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
