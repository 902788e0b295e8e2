//! A provider that refuses connections, breaks off, fails, turns away, hangs until the deadline, and
//! answers what is no answer. Nothing of the product dies, so the sums must agree to the token.

use super::super::{
    Room, Went,
    ask::{Ask, How, Leave},
    random::Random,
    scene::{Scene, WIDE},
};

/// Answers seen before a round is over.
const ANSWERS_PER_ROUND: u64 = 25;

fn menu(random: &mut Random, number: u64) -> Ask {
    let how = match random.below(20) {
        0 => How::Hang,
        1 | 2 => How::Dead,
        3 | 4 => How::Reset,
        5 => How::Error(500),
        6 => How::Error(429),
        7 => How::Error(503),
        8 => How::Garbage,
        9..15 => How::Stream,
        _ => How::Whole,
    };
    Ask {
        number,
        key: random.of(&WIDE),
        how,
        input: random.between(1, 12),
        output: random.between(1, 300),
        delay_ms: random.of(&[0, 1, 5]),
        leave: Leave::Never,
    }
}

pub(super) async fn run(room: Room) -> Went {
    let scene = Scene::set(room, 12, menu).await;
    let stack = scene.stack().start().await;
    scene.crowd.doors(&[&stack.gateway]);
    let mut rounds = 0;
    for _ in room.rounds() {
        scene.crowd.acknowledged(ANSWERS_PER_ROUND).await;
        rounds += 1;
    }
    scene.judge(&stack, rounds, true).await
}
