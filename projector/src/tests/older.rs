//! A journal that was put back from an older copy under a feed that goes further: told, not gone on from.

use super::*;
use crate::{feed::FeedMark, store::FeedSequence};

/// A feed of the whole story, and a journal that ends `kept` commits into it.
async fn put_back(kept: usize, with_marks: bool) -> World {
    let story = short_story();
    let mut whole = World::of(story[..kept].to_vec());
    whole.catch_up("p").await;
    let old = whole.snapshots.copy();
    whole.append(&story[kept..]).await;
    whole.catch_up("p").await;
    let mut world = World::of(story[..kept].to_vec());
    world.feed = whole.feed.clone();
    if with_marks {
        world.snapshots = old;
    }
    world
}

/// It halts at `at`, says why, and publishes nothing.
async fn halts(world: &World, at: u64) {
    let before = world.feed.messages();
    let ended = world.until_halted("q").await;
    let Err(ProjectorError::Halted { first, .. }) = ended else {
        panic!("{ended:?}")
    };
    let Halt::OnFeed { position, .. } = first else {
        panic!("{first}")
    };
    assert_eq!((position, first.sequence()), (Position(7), Sequence(at)));
    assert!(first.to_string().contains("adopt-journal"), "{first}");
    assert_eq!(world.feed.messages(), before, "nothing is published");
    let mark = mark(world);
    assert!(mark.disputed, "the writer is told: {mark:?}");
    let place = FeedSequence(before.len() as u64);
    assert_eq!(mark.published_sequence, place.0);
    assert_eq!((mark.published_last, mark.sequence), (Position(7), 0));
}

fn mark(world: &World) -> FeedMark {
    let kept = world.snapshots.peek(&FeedMark::key(PARTITION)).unwrap();
    wire::decode("feed mark", &kept).unwrap()
}

#[tokio::test]
async fn a_journal_that_is_whole_again_is_gone_on_from_and_nothing_speaks_against_it() {
    for with_marks in [true, false] {
        let mut world = put_back(2, with_marks).await;
        halts(&world, 2).await;
        world.append(&short_story()[2..]).await;
        world.catch_up("r").await;
        world.check("");
        assert!(!mark(&world).disputed);
    }
}

#[tokio::test]
async fn a_journal_that_ends_before_its_feed_halts_it() {
    for with_marks in [true, false] {
        halts(&put_back(2, with_marks).await, 2).await;
    }
}

/// As under a build that did not look, or while no projector ran.
#[tokio::test]
async fn a_journal_that_went_on_otherwise_than_its_feed_halts_it() {
    for with_marks in [true, false] {
        let mut world = put_back(2, with_marks).await;
        let other = commits(&[
            &[opened("a"), capped("a", 100)],
            &[reserved("a", 1, 30), opened("b")],
            &[settled("a", 1, 11), reserved("a", 2, 21), opened("c")],
        ]);
        world.append(&other[2..]).await;
        halts(&world, 3).await;
    }
}

/// As when a server that takes over has not applied yet what another one handed out.
#[tokio::test]
async fn a_journal_that_is_only_late_is_waited_for() {
    let mut world = put_back(2, true).await;
    let before = world.feed.payloads_read();
    let running = world.start("q");
    // it holds the journal's end against what the feed has of its last event
    until(|| world.feed.payloads_read() > before).await;
    world.append(&short_story()[2..]).await;
    world.until_current().await;
    running.end().await.unwrap();
    world.check("");
}
