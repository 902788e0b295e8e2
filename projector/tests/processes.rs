//! A simulation of whole processes: the real ledger of a process with its leases, its service and its client
//! to the others, the hosts' task loop with recovery, the search for old commands and the delivery of
//! answers, and the real projector, on a journal, buckets and a post that are slow, fail and forget. One thread and tokio's paused clock: time goes on only when nobody has anything left to do, and
//! every choice comes from one seed, so that a run can be done again with `SEATBELT_SIM_SEED=<seed>`.
//! `SEATBELT_SIM_RUNS` sets how many there are, and `SEATBELT_SIM_FROM` from which seed on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "processes/by_post.rs"]
mod by_post;
#[path = "processes/calm.rs"]
mod calm;
#[path = "processes/chance.rs"]
mod chance;
#[path = "processes/hosts.rs"]
mod hosts;
#[path = "processes/leases.rs"]
mod leases;
#[path = "processes/medium.rs"]
mod medium;
#[path = "../../ledger/tests/simulation/oracle.rs"]
#[expect(dead_code, reason = "the simulation of writers asks more of it")]
mod oracle;
#[path = "processes/payers.rs"]
mod payers;
#[path = "processes/post.rs"]
mod post;
#[path = "processes/promises.rs"]
mod promises;
#[path = "processes/run.rs"]
mod run;
#[path = "processes/told.rs"]
mod told;
#[path = "processes/vocabulary.rs"]
mod vocabulary;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Runs in `make test`; the nightly target sets more.
const RUNS_DEFAULT: u64 = 400;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Seeds are run on every core, each world on one; the lowest seed that fails is told.
#[test]
fn no_misfortune_breaks_a_promise() {
    let seeds = match number("SEATBELT_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("SEATBELT_SIM_FROM").unwrap_or(0);
            from..from + number("SEATBELT_SIM_RUNS").unwrap_or(RUNS_DEFAULT)
        }
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
                    let ran = run::run(seed);
                    if let Err(failure) = ran.promises {
                        let told = (failure, ran.log.join("\n"));
                        broken.lock().unwrap().insert(seed, told);
                    }
                }
            });
        }
    });
    if let Some((seed, (failure, log))) = broken.into_inner().unwrap().first_key_value() {
        panic!("seed {seed}: {failure}\ndo it again with SEATBELT_SIM_SEED={seed}\n{log}");
    }
}

/// What was acknowledged is gone: only an operator goes on from there.
#[test]
fn nobody_goes_on_from_a_journal_that_shrank() {
    let runs = number("SEATBELT_SIM_RUNS").unwrap_or(RUNS_DEFAULT) / 10;
    for seed in 0..runs {
        if let Err(failure) = run::shrinks(seed) {
            panic!("seed {seed}: {failure}");
        }
    }
}

/// Without this no seed would be worth anything.
#[test]
fn a_seed_is_one_run() {
    for seed in 1_000..1_010 {
        let (one, other) = (run::run(seed), run::run(seed));
        let lines = one.log.iter().zip(&other.log);
        let parts = lines.enumerate().find(|(_, (one, other))| one != other);
        let before = parts
            .map(|(at, _)| one.log[at.saturating_sub(30)..one.log.len().min(at + 6)].join("\n"));
        assert_eq!(
            parts,
            None,
            "seed {seed} goes two ways after\n{}",
            before.unwrap_or_default()
        );
        assert_eq!(one.trace, other.trace, "seed {seed}: see SEATBELT_SIM_LOG");
        assert!(one.events > 20, "seed {seed} does nothing");
    }
}
