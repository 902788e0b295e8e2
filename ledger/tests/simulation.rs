//! A deterministic simulation of writers over a model journal: lost acks, acks after the commit,
//! late and repeated delivery, crashes between any two steps, zombies, a frozen stream, a clock that
//! jumps both ways, starts from snapshots that lag, accounts and older commands fetched late or not. Every run is made from one printed seed and can be replayed with
//! `SEATBELT_SIM_SEED=<seed>`; `SEATBELT_SIM_RUNS` sets how many.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "simulation/archive.rs"]
mod archive;
#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "simulation/world.rs"]
mod world;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use world::{Mutant, World};

/// Runs in `make test`; the nightly target sets 100,000.
const RUNS_DEFAULT: u64 = 2_000;
/// Steps of one run.
const STEPS: usize = 120;
/// Runs within which a planted fault must be found.
const MUTANT_RUNS_MAX: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn run(seed: u64, mutant: Option<Mutant>) -> Result<(), String> {
    let mut world = World::new(seed, mutant);
    for _ in 0..STEPS {
        world.step()?;
    }
    world.finish()
}

/// Seeds are run on every core, each world on one; the lowest seed that fails is told.
#[test]
fn no_fault_breaks_a_promise() {
    let seeds = match number("SEATBELT_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEATBELT_SIM_RUNS").unwrap_or(RUNS_DEFAULT),
    };
    let (next, broken) = (AtomicU64::new(seeds.start), Mutex::new(BTreeMap::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while broken.lock().unwrap().is_empty() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    if let Err(failure) = run(seed, None) {
                        broken.lock().unwrap().insert(seed, failure);
                    }
                }
            });
        }
    });
    if let Some((seed, failure)) = broken.into_inner().unwrap().first_key_value() {
        panic!("seed {seed}: {failure}\nreplay with SEATBELT_SIM_SEED={seed}");
    }
}

#[track_caller]
fn is_found(mutant: Mutant) {
    let found = (0..MUTANT_RUNS_MAX).find_map(|seed| run(seed, Some(mutant)).err());
    assert!(
        found.is_some(),
        "{mutant:?} was not found in {MUTANT_RUNS_MAX} runs"
    );
}

#[test]
fn a_writer_that_skips_the_fence_is_found() {
    is_found(Mutant::SkipsFence);
}

#[test]
fn a_writer_that_settles_twice_is_found() {
    is_found(Mutant::SettlesTwice);
}

#[test]
fn a_writer_that_forgets_an_unknown_outcome_is_found() {
    is_found(Mutant::ForgetsUnknown);
}
