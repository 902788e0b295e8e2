//! Crashes between any two steps of random stories, and two projectors at once.

use super::*;

/// A small generator, so that a failing seed can be run again.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

impl Random {
    pub(super) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }
}

pub(super) fn random_story(random: &mut Random) -> Vec<Commit> {
    let mut opened_accounts: HashMap<&str, u64> = HashMap::new();
    let mut lists: Vec<Vec<Body>> = vec![Vec::new()];
    for _ in 0..random.below(60) + 5 {
        let id = ["a", "b", "c", "d"][random.index(4)];
        let events = match opened_accounts.get_mut(id) {
            None => {
                opened_accounts.insert(id, 0);
                vec![opened(id), capped(id, 1_000_000)]
            }
            Some(number) => {
                *number += 1;
                let mut events = vec![reserved(id, *number, 1 + random.below(50))];
                if random.below(3) > 0 {
                    events.push(settled(id, *number, random.below(50)));
                }
                events
            }
        };
        if random.below(2) == 0 {
            lists.push(Vec::new());
        }
        lists.last_mut().unwrap().extend(events);
    }
    lists.retain(|list| !list.is_empty());
    let lists: Vec<&[Body]> = lists.iter().map(Vec::as_slice).collect();
    commits(&lists)
}

/// Projects a random story through random crashes, each between two operations of the stores.
async fn crash_story(seed: u64) {
    let mut random = Random(seed);
    let mut story = random_story(&mut random);
    let rest = story.split_off(random.index(story.len()));
    let mut world = World::of(story);
    for crash in 0..2 + random.below(8) {
        let operations = 1 + random.below(30);
        world.fuse.set(Some(u32::try_from(operations).unwrap()));
        let running = world.start("p");
        let current = async {
            world.until_current().await;
        };
        tokio::select! {
            () = world.fuse.burnt() => {}
            () = current => {}
        }
        running.kill().await;
        if crash == 1 {
            world.append(&rest).await;
        }
    }
    world.fuse.set(None);
    world.catch_up("p").await;
    world.check(&format!("seed {seed}"));
}

#[tokio::test]
async fn crashes_between_any_two_steps_change_nothing() {
    let stories = (0..150).map(crash_story);
    futures::future::join_all(stories).await;
}

#[tokio::test]
async fn two_projectors_at_once_publish_nothing_twice() {
    let stories = (0..40).map(|seed| async move {
        let mut random = Random(1_000_000 + seed);
        let world = World::of(random_story(&mut random));
        // both believe that the seat is theirs: only compare-and-swap is left
        let (one, other) = (world.start("p"), world.start("p"));
        world.until_current().await;
        one.end().await.unwrap();
        other.end().await.unwrap();
        world.catch_up("p").await;
        world.check(&format!("seed {seed}"));
    });
    futures::future::join_all(stories).await;
}
