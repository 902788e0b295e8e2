//! Clients that leave: before the body is whole, while they wait for budget, before the first byte,
//! and in the middle of a stream. Nothing of the product dies, so the sums must agree to the token.

use super::super::{
    Room, Went,
    ask::{Ask, How, Leave},
    random::Random,
    scene::{NARROW, Scene, WIDE},
};

/// Answers seen before a round is over.
const ANSWERS_PER_ROUND: u64 = 25;

fn menu(random: &mut Random, number: u64) -> Ask {
    let leave = match random.below(6) {
        0 => Leave::MidBody,
        1 | 2 => Leave::After(random.between(1, 60)),
        3 => Leave::MidAnswer,
        _ => Leave::Never,
    };
    Ask {
        number,
        // on the narrow key most of them wait for each other
        key: random.of(&[NARROW, NARROW, WIDE[0], WIDE[2]]),
        how: random.of(&[How::Whole, How::Stream]),
        input: random.between(1, 12),
        output: random.between(1, 300),
        delay_ms: random.of(&[0, 5, 20, 50]),
        leave,
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
