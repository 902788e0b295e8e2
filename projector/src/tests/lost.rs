//! Snapshots that go, or go back to what they were once, while nobody uses their accounts: each is right again
//! by itself.

use super::{
    crashes::{Random, random_story},
    *,
};

/// What a server may lose of what is derived.
const KEYS: [&str; 8] = [
    "account.a",
    "account.b",
    "account.c",
    "account.d",
    "partition.00",
    "feed.00",
    "directory.00.0",
    "directory.00.1",
];

impl World {
    fn truth_of_all(&self) -> PartitionState {
        let mut state = PartitionState::new(PARTITION);
        for commit in &self.commits {
            state.accept(&commit.encode()).unwrap();
        }
        state
    }

    /// Whether every account's snapshot is what the journal makes of it.
    fn is_right(&self, truth: &PartitionState) -> bool {
        let is_so = |id: &AccountId, account: &Account| {
            let value = self.snapshots.peek(&format!("account.{id}"));
            let found = value.and_then(|value| AccountSnapshot::decode(&value).ok());
            found.is_some_and(|found| found.state == *account)
        };
        self.is_current() && truth.accounts().all(|(id, account)| is_so(id, account))
    }

    async fn until_right(&self) {
        let truth = self.truth_of_all();
        until(|| self.is_right(&truth)).await;
    }

    /// Runs a projector until all is right, then stops it.
    async fn put_right(&self) {
        let running = self.start("p");
        self.until_right().await;
        running.end().await.unwrap();
    }
}

/// The story, and the bucket as it was after the first commit.
async fn told() -> (World, MemorySnapshots) {
    let story = short_story();
    let mut world = World::of(story[..1].to_vec());
    world.catch_up("p").await;
    let old = world.snapshots.copy();
    world.append(&story[1..]).await;
    world.catch_up("p").await;
    (world, old)
}

/// A purge, and then a kill: what was written over long ago may be there again.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_went_back_is_put_right_without_being_used() {
    let (world, old) = told().await;
    world.snapshots.go_back("account.a", &old);
    let reader = SnapshotReader::new(
        Arc::new(world.snapshots.clone()),
        Partitions::try_from(1).unwrap(),
    );
    let spent = async || {
        let shown = reader.standing(account("a"), None, START_MS).await;
        shown.unwrap().unwrap().standing.caps[0].spent
    };
    assert_eq!(spent().await, 0);
    world.put_right().await;
    assert_eq!(spent().await, 12);
    world.check("");
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_gone_or_spoiled_is_put_right_without_being_used() {
    let damages: [fn(&World); 3] = [
        |world| world.snapshots.forget("account.a"),
        |world| {
            let spoiled = Bytes::from_static(b"?");
            world.snapshots.overwrite("account.a", spoiled);
        },
        |world| {
            world.snapshots.forget("account.a");
            world.snapshots.forget("account.b");
        },
    ];
    for damage in damages {
        let (world, _) = told().await;
        damage(&world);
        world.put_right().await;
        world.check("");
    }
}

/// While the projector runs, too, with the account in its memory and without.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_goes_while_the_projector_runs_is_put_right() {
    let (world, old) = told().await;
    let running = world.start("p");
    world.until_right().await;
    for _ in 0..2 {
        world.snapshots.go_back("account.a", &old);
        world.until_right().await;
        world.snapshots.forget("account.a");
        world.until_right().await;
    }
    running.end().await.unwrap();
    world.check("");
}

/// More is known of an account by now than when its snapshot was lost: nothing is counted twice.
#[tokio::test(start_paused = true)]
async fn what_lands_while_snapshots_are_put_right_is_in_them() {
    let story = short_story();
    let mut world = World::of(story[..1].to_vec());
    world.catch_up("p").await;
    world.snapshots.forget("account.a");
    let running = world.start("p");
    for commit in &story[1..] {
        world.append(std::slice::from_ref(commit)).await;
        tokio::task::yield_now().await;
    }
    world.until_right().await;
    running.end().await.unwrap();
    world.check("");
}

/// What cannot be made again keeps the others of its partition from nothing.
#[tokio::test(start_paused = true)]
async fn a_snapshot_lost_behind_a_damaged_commit_halts_nothing() {
    let story = short_story();
    let mut world = World::of(story[..2].to_vec());
    world.catch_up("p").await;
    let damaged = [Bytes::from_static(b"?"), story[1].encode()];
    world.journal = MemoryJournal::with_commits(damaged);
    world.snapshots.forget("account.b");
    let running = world.start("p");
    let refreshed = || {
        let writes = world.snapshots.writes();
        writes.iter().filter(|key| *key == "partition.00").count()
    };
    let before = refreshed();
    until(|| refreshed() > before + 10).await;
    world.append(&story[2..]).await;
    world.until_current().await;
    running.end().await.unwrap();
}

/// Any of what is derived is lost, or goes back, at any time, and the projector is killed at any time after.
async fn loss_story(seed: u64) {
    let mut random = Random(seed);
    let mut story = random_story(&mut random);
    let rest = story.split_off(random.index(story.len()));
    let mut world = World::of(story);
    let mut before = vec![world.snapshots.copy()];
    for life in 0..2 + random.below(6) {
        let operations = 1 + random.below(60);
        world.fuse.set(Some(u32::try_from(operations).unwrap()));
        let running = world.start("p");
        let truth = world.truth_of_all();
        tokio::select! {
            () = world.fuse.burnt() => {}
            () = until(|| world.is_right(&truth)) => {}
        }
        before.push(world.snapshots.copy());
        for _ in 0..random.below(4) {
            let key = KEYS[random.index(KEYS.len())];
            match random.below(2) {
                0 => world.snapshots.forget(key),
                _ => world
                    .snapshots
                    .go_back(key, &before[random.index(before.len())]),
            }
        }
        running.kill().await;
        if life == 1 {
            world.append(&rest).await;
        }
    }
    world.fuse.set(None);
    world.put_right().await;
    world.check(&format!("seed {seed}"));
}

#[tokio::test(start_paused = true)]
async fn losses_and_crashes_at_any_time_leave_every_snapshot_right_in_the_end() {
    let stories = (2_000..2_100).map(loss_story);
    futures::future::join_all(stories).await;
}
