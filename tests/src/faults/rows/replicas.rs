//! Three servers with three copies of everything: each in turn is killed, or frozen for a while.

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
        let node = &mut cluster.nodes[usize::try_from(round / 2 % 3).unwrap()];
        if round % 2 == 0 {
            node.kill().await;
            scene.crowd.acknowledged(random.between(10, 40)).await;
            node.restart().await.unwrap();
        } else {
            let frozen = node.pid().unwrap();
            signal(frozen, Signal::SIGSTOP);
            scene.crowd.acknowledged(random.between(10, 40)).await;
            signal(frozen, Signal::SIGCONT);
        }
        node.jetstream_ready(PATIENCE).await.unwrap();
        rounds += 1;
    }
    scene.crowd.acknowledged(10).await;
    scene.judge(&gateway, rounds, false).await
}
