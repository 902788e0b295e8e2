//! Power failure: the store lies on a disk of its own, and the machine goes on from a copy of that disk
//! as it was at one moment under load. What a program wrote and nobody had synced was still in memory,
//! so the copy lacks it: the unsynced tail of every file is gone, and the file system repairs itself.

use nix::sys::signal::Signal;

use super::{
    super::{
        Room, Went,
        disk::{self, Disk},
        random::Random,
        scene::{Scene, signal},
    },
    kill_all::menu,
};

const DISK_MIB: u64 = 512;

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let home = scene.stack().write();
    let image = |number: u32| home.config().with_file_name(format!("disk-{number}"));
    let made = Disk::make(&image(0), DISK_MIB, &home.data());
    let mut disk = match made {
        Ok(disk) => disk,
        Err(why) => return Went::LeftOut(why),
    };
    let mut stack = home.start().await;
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.doors(&[&stack.gateway]);
        scene.crowd.acknowledged(random.between(3, 30)).await;
        // nobody writes, and nobody is answered, while the copy is made
        signal(stack.pid(), Signal::SIGSTOP);
        signal(stack.server_pid(), Signal::SIGSTOP);
        disk::copy(&image(rounds), &image(rounds + 1));
        let stopped = stack.kill_all().await;
        drop(disk);
        std::fs::remove_file(image(rounds)).unwrap();
        rounds += 1;
        disk = Disk::mount(&image(rounds), &home.data()).unwrap();
        stack = stopped.start().await;
    }
    scene.crowd.doors(&[&stack.gateway]);
    scene.crowd.acknowledged(10).await;
    let went = scene.judge(&stack, rounds, false).await;
    stack.kill_all().await;
    drop(disk);
    went
}
