//! kill -9 of `nats-server` alone, under load: the process beside it starts it again on the same folder,
//! and goes on.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::until;

use super::{
    super::{
        Room, Went,
        random::Random,
        scene::{Scene, signal},
    },
    kill_all::menu,
};

/// A server that lived for less did not stay up: the process beside it waits longer each time before it
/// starts the next. That is seen too, but if every life were as short, waiting would be all that is.
const STAYS_UP: Duration = Duration::from_millis(2200);

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let stack = scene.stack().start().await;
    let mut rounds = 0;
    let mut up = Instant::now();
    scene.crowd.doors(&[&stack.gateway]);
    for _ in room.rounds() {
        scene.crowd.acknowledged(random.between(3, 30)).await;
        if random.percent(80) {
            tokio::time::sleep_until(up + STAYS_UP).await;
        }
        signal(stack.server_pid(), Signal::SIGKILL);
        rounds += 1;
        until("nats-server is up again", || async {
            let again = stack.log().matches("nats-server is up again").count();
            u32::try_from(again)
                .is_ok_and(|again| again >= rounds)
                .then_some(())
        })
        .await;
        up = Instant::now();
    }
    scene.crowd.acknowledged(10).await;
    scene.judge(&stack, rounds, false).await
}
