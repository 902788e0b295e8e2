//! Three servers with three copies of everything: each in turn is killed, frozen for a while, or cut off
//! from the others, while who is connected to it still reaches it.

use nix::sys::signal::Signal;

use super::{
    super::{
        Room, Went,
        random::Random,
        scene::{Scene, signal},
    },
    kill_all::menu,
};
use crate::{
    nats::{PATIENCE, TestCluster},
    until,
};

pub(super) async fn run(room: Room) -> Went {
    let mut cluster = TestCluster::start().await;
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let nats = format!("url = {:?}\nreplicas = 3", cluster.url());
    let home = scene.stack().nats(&nats).write();
    // servers that have just found each other may not take three copies yet
    let gateway = until("the cluster takes a gateway", || async {
        home.try_start_role("gateway").await.ok()
    });
    let gateway = gateway.await;
    let _projector = home.start_role("projector").await;
    scene.crowd.doors(&[&gateway.gateway]);
    let mut rounds = 0;
    for round in room.rounds() {
        scene.crowd.acknowledged(random.between(10, 40)).await;
        let turn = usize::try_from(round / 3 % 3).unwrap();
        match round % 3 {
            0 => {
                cluster.nodes[turn].kill().await;
                scene.crowd.acknowledged(random.between(10, 40)).await;
                cluster.nodes[turn].restart().await.unwrap();
            }
            1 => {
                let frozen = cluster.nodes[turn].pid().unwrap();
                signal(frozen, Signal::SIGSTOP);
                scene.crowd.acknowledged(random.between(10, 40)).await;
                signal(frozen, Signal::SIGCONT);
            }
            _ => {
                cluster.cut_off(turn, true);
                // a gateway that is connected there serves nothing meanwhile, and must not
                scene.crowd.asked(random.of(&[4, 12, 40])).await;
                cluster.cut_off(turn, false);
                scene.crowd.acknowledged(random.between(3, 10)).await;
            }
        }
        let ready = cluster.nodes[turn].jetstream_ready(PATIENCE).await;
        ready.unwrap();
        rounds += 1;
    }
    scene.crowd.acknowledged(10).await;
    scene.judge(&gateway, rounds, false).await
}
