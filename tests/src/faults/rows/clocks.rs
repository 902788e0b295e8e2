//! The clock of the whole process is set forward and back while it runs, by `libfaketime`; the server,
//! the provider and the clients keep the true time. A writer whose clock is wrong gives its partitions
//! back, so requests may end in the middle. Nothing of the product dies, so the sums must agree to the
//! token all the same, and no window may be left early or never.

use std::path::{Path, PathBuf};

use super::{
    super::{
        Room, Went,
        ask::Ask,
        random::Random,
        scene::{DAILY, ROLLING, Scene},
    },
    kill_all,
};
use crate::{Running, until};

/// By how many seconds.
const SET_BY: [i64; 6] = [40, -40, 600, -600, 90_000, -90_000];

/// As where everything is killed, and half of it on keys with windows.
fn menu(random: &mut Random, number: u64) -> Ask {
    let ask = kill_all::menu(random, number);
    if random.percent(50) {
        return ask;
    }
    Ask {
        key: random.of(&[ROLLING, ROLLING, DAILY]),
        ..ask
    }
}

/// Where Debian's package puts it, or where it was unpacked without installing it.
fn library() -> Option<PathBuf> {
    let inside = format!(
        "usr/lib/{}-linux-gnu/faketime/libfaketime.so.1",
        std::env::consts::ARCH
    );
    let unpacked = crate::repository().join(".deps/libfaketime");
    let mut places = [Path::new("/").join(&inside), unpacked.join(inside)].into_iter();
    places.find(|place| place.is_file())
}

/// The day by the process's own clock, as its answers tell it.
async fn day(stack: &Running) -> String {
    let answer = stack.get("/health/live", "").await;
    let date = answer.header("date").unwrap_or_default();
    date.chars().take("Thu, 01 Jan 1970".len()).collect()
}

pub(super) async fn run(room: Room) -> Went {
    let Some(library) = library() else {
        return Went::LeftOut("no libfaketime here".to_owned());
    };
    let clock = tempfile::NamedTempFile::new().unwrap();
    let set = |seconds: i64| std::fs::write(clock.path(), format!("{seconds:+}\n")).unwrap();
    set(0);
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let stack = scene.stack();
    let stack = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
    .into_iter()
    .fold(stack, |stack, (name, value)| stack.environment(name, value));
    let stack = stack.start().await;
    let today = day(&stack).await;
    set(90_000);
    until("the process believes another day", || async {
        (day(&stack).await != today).then_some(())
    })
    .await;
    set(0);
    scene.crowd.doors(&[&stack.gateway]);
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.acknowledged(random.between(10, 40)).await;
        set(random.of(&SET_BY));
        // whether it serves by a wrong clock or turns all away is its own affair
        scene.crowd.asked(random.of(&[20, 200, 600])).await;
        set(0);
        rounds += 1;
    }
    scene.crowd.acknowledged(10).await;
    scene.judge(&stack, rounds, true).await
}
