//! What is derived is purged at random while everything runs, and before a start: snapshots of one
//! account and of all, the directory of accounts, the record of a partition, the feed, the leases.

use super::{
    super::{Room, Went, random::Random, scene::Scene},
    kill_all::menu,
};
use crate::Running;

/// Stream, and the subjects of it that are purged.
const PURGED: [(&str, &str); 6] = [
    (
        "KV_SEATBELT_SNAPSHOTS",
        "$KV.SEATBELT_SNAPSHOTS.account.acct-ab",
    ),
    ("KV_SEATBELT_SNAPSHOTS", "$KV.SEATBELT_SNAPSHOTS.account.>"),
    (
        "KV_SEATBELT_SNAPSHOTS",
        "$KV.SEATBELT_SNAPSHOTS.directory.>",
    ),
    (
        "KV_SEATBELT_SNAPSHOTS",
        "$KV.SEATBELT_SNAPSHOTS.partition.>",
    ),
    ("SEATBELT_FEED", "seatbelt.spend.v1.>"),
    ("KV_SEATBELT_LEASES", "$KV.SEATBELT_LEASES.>"),
];

async fn purge(stack: &Running, (stream, subject): (&str, &str)) {
    let jetstream = async_nats::jetstream::new(stack.nats_client().await);
    let stream = jetstream.get_stream(stream).await.unwrap();
    stream.purge().filter(subject).await.unwrap();
}

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let mut stack = scene.stack().start().await;
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.doors(&[&stack.gateway]);
        scene.crowd.acknowledged(random.between(3, 30)).await;
        purge(&stack, random.of(&PURGED)).await;
        if random.percent(50) {
            scene.crowd.acknowledged(random.between(1, 10)).await;
        }
        if random.percent(50) {
            purge(&stack, random.of(&PURGED)).await;
        }
        stack = match random.below(3) {
            0 => stack,
            1 => stack.kill_all().await.start().await,
            _ => stack.stop().await.start().await,
        };
        rounds += 1;
    }
    scene.crowd.doors(&[&stack.gateway]);
    scene.crowd.acknowledged(10).await;
    scene.judge(&stack, rounds, false).await
}
