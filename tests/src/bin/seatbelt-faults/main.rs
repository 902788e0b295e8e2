//! Runs the fault matrix on real processes, and prints one table.
//!
//! `seatbelt-faults [--short] [--seed N] [--percent N] [--at-once N] [--plant FAULT] [ROW...]`.
//! Without rows all are run. Exit code 0 only if every promise was kept in every row that this machine lets be run.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for people: prints its table"
)]

use std::{
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use seatbelt_tests::faults::{self, Plan};
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: seatbelt-faults [--short] [--seed N] [--percent N] [--at-once N] [--plant FAULT] [ROW...]";

fn plan(arguments: impl Iterator<Item = String>) -> Result<Plan, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut plan = Plan::short(now.map_or(0, |since| since.as_secs()));
    (plan.short, plan.at_once) = (false, 2);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next();
            value.ok_or_else(|| format!("{argument} wants a value\n{USAGE}"))
        };
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|error| format!("{text}: {error}"))
        };
        match argument.as_str() {
            "--short" => plan.short = true,
            "--seed" => plan.seed = number(value()?)?,
            "--percent" => {
                let percent = u32::try_from(number(value()?)?);
                plan.percent = percent.map_err(|error| error.to_string())?.clamp(1, 1000);
            }
            "--at-once" => {
                let rows = usize::try_from(number(value()?)?);
                plan.at_once = rows.map_err(|error| error.to_string())?.clamp(1, 16);
            }
            "--plant" => plan.plant = Some(value()?.parse()?),
            row if faults::names().contains(&row) => plan.rows.push(argument),
            unknown => {
                let rows = faults::names().join(", ");
                return Err(format!("no row {unknown:?}: one of {rows}\n{USAGE}"));
            }
        }
    }
    Ok(plan)
}

async fn matrix(plan: &Plan) -> ExitCode {
    println!("seed {}", plan.seed);
    let report = faults::run(plan, |row| {
        eprintln!("{row}");
        row.findings()
            .iter()
            .for_each(|found| eprintln!("  {found}"));
    });
    let report = report.await;
    println!("{report}");
    if report.is_kept() {
        return ExitCode::SUCCESS;
    }
    println!(
        "a promise was broken; --seed {} makes the same choices again",
        plan.seed
    );
    ExitCode::FAILURE
}

/// Comes when somebody asks the program to end; never where that cannot be heard.
async fn terminated() {
    match signal(SignalKind::terminate()) {
        Ok(mut asked) => drop(asked.recv().await),
        Err(_) => std::future::pending().await,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let plan = match plan(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    tokio::select! {
        code = matrix(&plan) => code,
        // what was started is stopped when the rows are dropped
        _ = tokio::signal::ctrl_c() => ExitCode::from(130),
        _ = terminated() => ExitCode::from(143),
    }
}
