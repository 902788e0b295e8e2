//! kill -9 of `nats-server` alone, under load: the process beside it starts it again on the same folder,
//! and goes on.

use nix::sys::signal::Signal;

use crate::until;

use super::{
    super::{
        Room, Went,
        random::Random,
        scene::{Scene, signal},
    },
    kill_all::menu,
};

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let stack = scene.stack().start().await;
    let mut rounds = 0;
    scene.crowd.doors(&[&stack.gateway]);
    for _ in room.rounds() {
        scene.crowd.acknowledged(random.between(3, 30)).await;
        signal(stack.server_pid(), Signal::SIGKILL);
        rounds += 1;
        until("nats-server is up again", || async {
            let again = stack.log().matches("nats-server is up again").count();
            u32::try_from(again)
                .is_ok_and(|again| again >= rounds)
                .then_some(())
        })
        .await;
    }
    scene.crowd.acknowledged(10).await;
    scene.judge(&stack, rounds, false).await
}
