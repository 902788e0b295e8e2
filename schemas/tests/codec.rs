//! What our reading and writing of MessagePack gains over rmp-serde's. `make bench` prints it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement for people"
)]

use std::{
    hint::black_box,
    path::Path,
    time::{Duration, Instant},
};

use seatbelt_schemas::{
    event::{Event, EventBody},
    wire,
};

const ROUNDS: u32 = 200_000;

fn each(mut work: impl FnMut()) -> Duration {
    work();
    let began = Instant::now();
    for _ in 0..ROUNDS {
        work();
    }
    began.elapsed() / ROUNDS
}

fn ratio(slow: Duration, fast: Duration) -> f64 {
    slow.as_secs_f64() / fast.as_secs_f64()
}

#[test]
#[ignore = "measures"]
fn the_plain_cases_are_read_and_written_faster_than_by_rmp_serde() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/v1");
    for name in ["reserved", "reserved-full", "settled-full"] {
        let bytes = std::fs::read(golden.join(format!("{name}.msgpack"))).unwrap();
        let ours = each(|| drop(black_box(wire::decode::<Event>("event", black_box(&bytes)))));
        let theirs = each(|| drop(black_box(rmp_serde::from_slice::<Event>(black_box(&bytes)))));
        let times = ratio(theirs, ours);
        println!(
            "{name}, {} bytes: read in {ours:?}, by rmp-serde in {theirs:?}: {times:.1} times",
            bytes.len()
        );
        let EventBody::Reserved(data) = Event::decode(&bytes).unwrap().body else {
            continue;
        };
        assert_eq!(
            wire::encode(&data),
            rmp_serde::to_vec_named(&data).unwrap(),
            "the same bytes"
        );
        let ours = each(|| drop(black_box(wire::encode(black_box(&data)))));
        let theirs = each(|| drop(black_box(rmp_serde::to_vec_named(black_box(&data)))));
        let times = ratio(theirs, ours);
        println!(
            "{name}, its data: written in {ours:?}, by rmp-serde in {theirs:?}: {times:.1} times"
        );
    }
}
