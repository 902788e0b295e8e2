//! A feed that lost messages, or had others put in their place.

use super::*;

#[tokio::test]
async fn a_feed_that_lost_its_end_while_running_is_completed() {
    let story = short_story();
    let mut world = World::of(story[..2].to_vec());
    let running = world.start("p");
    world.until_current().await;
    world.feed.wipe();
    world.append(&story[2..]).await;
    world.until_current().await;
    running.end().await.unwrap();
    world.check("");
}

/// A feed that lost all but `keep` messages, and then got as many of somebody else's.
fn overtaken(world: &World, keep: usize, others: u64) {
    world.feed.cut(keep);
    let source = EventSource {
        ledger: LedgerId::new("ledger-1").unwrap(),
        partition: Partition(1),
    };
    let stored = &world.commits[0].events[0];
    for position in 1..=others {
        let mut message = FeedMessage::new(&Names::default(), &source, stored);
        message.id = source.id(Position(position));
        message.position = Position(position);
        world.feed.put(message);
    }
}

impl World {
    /// Every event of the journal is on the feed, the same as ever; those that were lost stand later.
    fn has_all(&self) -> bool {
        let there = self.feed.messages();
        let expected = expected_feed(&self.commits);
        expected.iter().all(|message| there.contains(message))
    }

    /// How many messages of this partition are there more than once.
    fn doubled(&self) -> usize {
        let there = self.feed.messages();
        let ours = there.iter().filter(|m| m.id.starts_with("ledger-1/00/"));
        ours.count() - expected_feed(&self.commits).len()
    }
}

#[tokio::test]
async fn a_feed_that_was_cut_and_overtaken_is_completed_while_running() {
    // as long as before, longer, and shorter; with more commits and without
    for (others, more) in [(5, true), (9, true), (1, true), (5, false), (9, false)] {
        let story = short_story();
        let mut world = World::of(story[..2].to_vec());
        let running = world.start("p");
        world.until_current().await;
        overtaken(&world, 1, others);
        if more {
            world.append(&story[2..]).await;
        }
        until(|| world.has_all()).await;
        running.end().await.unwrap();
        assert_eq!(world.doubled(), 0);
    }
}

#[tokio::test]
async fn a_feed_that_was_cut_and_overtaken_is_completed_at_the_next_start() {
    for others in [1, 5, 9] {
        let story = short_story();
        let mut world = World::of(story[..2].to_vec());
        world.catch_up("p").await;
        overtaken(&world, 1, others);
        world.append(&story[2..]).await;
        let running = world.start("q");
        until(|| world.has_all()).await;
        running.end().await.unwrap();
        assert_eq!(world.doubled(), 0);
    }
}

#[tokio::test]
async fn a_hole_in_the_feed_is_filled_and_nothing_else_is_published_again() {
    for running_meanwhile in [true, false] {
        let world = World::of(short_story());
        let first = world.start("p");
        world.until_current().await;
        let second = if running_meanwhile {
            world.feed.remove(2..5);
            first
        } else {
            first.end().await.unwrap();
            world.feed.remove(2..5);
            world.start("p")
        };
        until(|| world.has_all()).await;
        second.end().await.unwrap();
        assert_eq!(world.doubled(), 0);
        let ids: Vec<_> = world
            .feed
            .messages()
            .into_iter()
            .map(|m| m.position.0)
            .collect();
        assert_eq!(ids, [1, 2, 6, 7, 3, 4, 5]);
    }
}
