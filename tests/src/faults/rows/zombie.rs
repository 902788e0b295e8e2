//! A zombie writer: one of two gateways is frozen for longer than its leases last, the other takes its
//! partitions over, and the first wakes up with everything that it was about to write.

use nix::sys::signal::Signal;

use super::{
    super::{
        Room, Went,
        random::Random,
        scene::{Scene, signal},
    },
    kill_all::menu,
};
use crate::nats::TestNats;

pub(super) async fn run(room: Room) -> Went {
    let server = TestNats::start().await;
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let url = format!("url = {:?}", server.server.url());
    let home = scene.stack().nats(&url).write();
    let gateways = [
        home.start_role("gateway").await,
        home.start_role("gateway").await,
    ];
    let _projector = home.start_role("projector").await;
    let both = [&*gateways[0].gateway, &*gateways[1].gateway];
    let mut rounds = 0;
    for round in room.rounds() {
        scene.crowd.doors(&both);
        scene.crowd.acknowledged(random.between(10, 40)).await;
        let frozen = usize::try_from(round % 2).unwrap();
        signal(gateways[frozen].pid(), Signal::SIGSTOP);
        // the other one serves all keys by now
        scene.crowd.doors(&[both[1 - frozen]]);
        scene.crowd.acknowledged(random.between(40, 100)).await;
        signal(gateways[frozen].pid(), Signal::SIGCONT);
        scene.crowd.doors(&both);
        scene.crowd.acknowledged(random.between(10, 40)).await;
        rounds += 1;
    }
    scene.judge(&gateways[0], rounds, false).await
}
