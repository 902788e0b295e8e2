//! The disk fills up under load until nothing is served, and is freed: it serves again by itself. Then
//! the folder is made read-only, on which a start must refuse.

use std::{fs::File, io::Write as _, path::Path};

use super::{
    super::{Room, Went, disk::Disk, random::Random, scene::Scene},
    kill_all::menu,
};

const DISK_MIB: u64 = 128;
/// Requests in a row that come to nothing.
const TURNED_AWAY: usize = 30;

/// Writes until nothing more goes in.
fn fill(file: &Path) {
    let mut file = File::create(file).unwrap();
    for block in [1024 * 1024, 4096, 64] {
        while file.write_all(&vec![0_u8; block]).is_ok() {}
    }
    // what is only in memory takes no room on the disk yet
    let _ = file.sync_all();
}

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let home = scene.stack().write();
    let image = home.config().with_file_name("disk");
    let disk = match Disk::make(&image, DISK_MIB, &home.data()) {
        Ok(disk) => disk,
        Err(why) => return Went::LeftOut(why),
    };
    let filling = home.data().join("filling");
    let mut stack = home.start().await;
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.doors(&[&stack.gateway]);
        scene.crowd.acknowledged(random.between(3, 30)).await;
        fill(&filling);
        scene.crowd.turned_away(TURNED_AWAY).await;
        std::fs::remove_file(&filling).unwrap();
        scene.crowd.acknowledged(random.between(3, 30)).await;
        let stopped = stack.kill_all().await;
        disk.read_only(true).await;
        let started = stopped.try_start().await;
        assert!(
            started.is_err(),
            "it starts on a folder that it cannot write"
        );
        disk.read_only(false).await;
        stack = stopped.start().await;
        rounds += 1;
    }
    scene.crowd.doors(&[&stack.gateway]);
    scene.crowd.acknowledged(10).await;
    let went = scene.judge(&stack, rounds, false).await;
    stack.kill_all().await;
    drop(disk);
    went
}
