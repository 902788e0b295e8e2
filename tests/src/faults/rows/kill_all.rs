//! kill -9 of everything under load, at any moment, and a start on the same folder.
//!
//! Half of the answers report more than was held for them, so a charge at the hold would show.

use super::super::{
    Room, Went,
    ask::{Ask, How, Leave},
    random::Random,
    scene::{STAIRS, Scene, TIGHT, TIGHT_KEYS, WIDE},
};

/// One tight key after the other is used up.
const REQUESTS_PER_TIGHT_KEY: u64 = 400;

/// Answers of every size, in one piece and as streams, fast and slow, on all kinds of keys.
pub(super) fn menu(random: &mut Random, number: u64) -> Ask {
    let spent_next = (number / REQUESTS_PER_TIGHT_KEY) % (TIGHT_KEYS as u64);
    let tight = TIGHT + usize::try_from(spent_next).unwrap();
    let overruns = random.percent(50);
    Ask {
        number,
        key: random.of(&[WIDE[0], WIDE[1], WIDE[2], STAIRS, STAIRS, tight]),
        how: random.of(&[How::Whole, How::Stream]),
        input: random.between(1, 12),
        output: if overruns {
            random.between(200, 900)
        } else {
            random.between(1, 20)
        },
        delay_ms: random.of(&[0, 0, 1, 3, 10]),
        leave: Leave::Never,
    }
}

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 8, menu).await;
    let mut random = Random::new(room.seed, 0);
    let mut stack = scene.stack().start().await;
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.doors(&[&stack.gateway]);
        scene.crowd.acknowledged(random.between(3, 30)).await;
        stack = stack.kill_all().await.start().await;
        rounds += 1;
    }
    scene.crowd.doors(&[&stack.gateway]);
    scene.crowd.acknowledged(10).await;
    scene.judge(&stack, rounds, false).await
}
