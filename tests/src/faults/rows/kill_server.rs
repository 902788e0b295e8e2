//! kill -9 of `nats-server` alone, under load: the gateway shuts its doors and ends, and both start
//! again on the same folder.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{
    super::{
        Room, Went,
        random::Random,
        scene::{Scene, signal},
    },
    kill_all::menu,
};

/// How long a gateway may take to see that its server is gone and to end.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let mut stack = scene.stack().start().await;
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.doors(&[&stack.gateway]);
        scene.crowd.acknowledged(random.between(3, 30)).await;
        signal(stack.server_pid(), Signal::SIGKILL);
        stack = stack.ended(ENDS_WITHIN).await.start().await;
        rounds += 1;
    }
    scene.crowd.doors(&[&stack.gateway]);
    scene.crowd.acknowledged(10).await;
    scene.judge(&stack, rounds, false).await
}
