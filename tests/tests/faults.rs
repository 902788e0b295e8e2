//! The short form of the fault matrix, and that the matrix would see a fault.
//!
//! `make faults` is the long form. The seed is printed; `SEATBELT_FAULTS_SEED` repeats its choices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "the seed, for whoever runs it again")]

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

use futures::future::join_all;
use seatbelt_tests::faults::{Plan, Plant, Verdict, run};

fn seed() -> u64 {
    if let Ok(seed) = env::var("SEATBELT_FAULTS_SEED") {
        return seed.parse().unwrap();
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_short_matrix_loses_doubles_or_refuses_anything() {
    let plan = Plan::short(seed());
    println!("seed {}", plan.seed);
    let report = run(&plan, |row| println!("{row}\n{:#?}", row.findings())).await;
    assert!(report.is_kept(), "seed {}\n{report}", plan.seed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_planted_into_a_real_run_breaks_its_row() {
    let planted = Plant::all().map(|plant| async move {
        let plan = Plan::short(seed()).only("upstreams").plant(plant);
        let report = run(&plan, |_| {}).await;
        let [row] = report.rows.as_slice() else {
            panic!("one row was asked for: {report}");
        };
        assert_eq!(row.verdict, Verdict::Broken, "{plant:?}\n{report}");
    });
    join_all(planted).await;
}
