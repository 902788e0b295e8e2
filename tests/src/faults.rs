//! The fault matrix: real processes are killed, frozen, starved and lied to under load, and what
//! clients and provider saw is compared with the journal.
//!
//! Each row brings one kind of fault about again and again, and counts what must never be: an
//! acknowledged answer that is not charged, a charge made twice, a cap exceeded, a refusal with room
//! left. What was told and what was served is kept here, outside of the product; the journal is read
//! through `seatbelt audit`. Every choice comes from a seed that is printed: the same seed makes the
//! same choices, though not the same interleaving.

mod ask;
mod crowd;
mod disk;
mod lanes;
mod oracle;
mod provider;
mod random;
mod rows;
mod scene;
mod table;

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, stream};

pub use oracle::Plant;
pub use table::{Report, Row, Verdict};

/// What to run, and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What every choice is made from.
    pub seed: u64,
    /// The short form: a few rounds a row.
    pub short: bool,
    /// Only these rows; all where it is empty.
    pub rows: Vec<String>,
    /// How many rows run at the same time.
    pub at_once: usize,
    /// Share of the long form's rounds in percent, to make it shorter or longer.
    pub percent: u32,
    /// A fault put between the product and the oracle, to show that the oracle sees it.
    pub plant: Option<Plant>,
}

impl Plan {
    /// Every row, a few rounds each.
    pub fn short(seed: u64) -> Self {
        Self {
            seed,
            short: true,
            at_once: 5,
            rows: Vec::new(),
            percent: 100,
            plant: None,
        }
    }

    #[must_use]
    pub fn only(mut self, row: &str) -> Self {
        self.rows.push(row.to_owned());
        self
    }

    /// With a planted fault.
    #[must_use]
    pub fn plant(mut self, plant: Plant) -> Self {
        self.plant = Some(plant);
        self
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }

    fn room(&self, kind: &rows::Kind) -> Room {
        let rounds = if self.short {
            kind.rounds_short
        } else {
            (kind.rounds * self.percent / 100).max(1)
        };
        Room {
            seed: self.seed,
            rounds,
            end: Instant::now() + kind.time_max,
            plant: self.plant,
        }
    }

    /// How many homes a row has side by side.
    fn lanes(&self, kind: &rows::Kind) -> u32 {
        if self.short { 1 } else { kind.lanes }
    }
}

/// What one row may do.
#[derive(Debug, Clone, Copy)]
struct Room {
    seed: u64,
    rounds: u32,
    /// No round begins after this.
    end: Instant,
    plant: Option<Plant>,
}

impl Room {
    /// The numbers of the rounds, as long as there is time for another.
    fn rounds(self) -> impl Iterator<Item = u32> {
        (0..self.rounds).take_while(move |_| Instant::now() < self.end)
    }
}

/// How a row went.
#[derive(Debug)]
enum Went {
    /// It was run.
    Through {
        rounds: u32,
        counts: oracle::Counts,
        pause: Duration,
    },
    /// This machine does not let it be run, and why.
    LeftOut(String),
}

type Running = Pin<Box<dyn Future<Output = Went> + Send>>;

/// Names of all rows, in the order in which they run.
pub fn names() -> Vec<&'static str> {
    rows::ALL.iter().map(|kind| kind.name).collect()
}

/// Runs the matrix, and hands each row to `told` when it is done.
///
/// A row that panics is a broken row with the panic's text; what it started is stopped with it.
pub async fn run(plan: &Plan, told: impl Fn(&Row)) -> Report {
    let wanted = rows::ALL.iter().filter(|kind| plan.wants(kind.name));
    let rows = wanted.map(|kind| {
        let told = &told;
        async move {
            let begun = Instant::now();
            let went = lanes::run(kind, plan.room(kind), plan.lanes(kind)).await;
            let row = Row::new(kind.name, begun.elapsed(), went);
            told(&row);
            row
        }
    });
    // in whatever order they end: a long row keeps no other from its start
    let rows = stream::iter(rows).buffer_unordered(plan.at_once.max(1));
    let mut rows: Vec<Row> = rows.collect().await;
    rows.sort_by_key(Row::place);
    Report { rows }
}
