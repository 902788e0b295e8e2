//! The table that a run prints.

use std::{fmt, time::Duration};

use super::{Went, oracle::Counts};

/// How a row ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every promise was kept.
    Kept,
    /// One was not.
    Broken,
    /// It did not come to its end, and why.
    Failed(String),
    /// This machine does not let it be run, and why.
    LeftOut(String),
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    name: &'static str,
    rounds: u32,
    counts: Counts,
    pause: Duration,
    took: Duration,
    /// How it ended.
    pub verdict: Verdict,
}

impl Row {
    pub(super) fn new(
        name: &'static str,
        took: Duration,
        went: Result<Went, tokio::task::JoinError>,
    ) -> Self {
        let mut row = Self {
            name,
            rounds: 0,
            counts: Counts::default(),
            pause: Duration::ZERO,
            took,
            verdict: Verdict::Kept,
        };
        match went {
            Ok(Went::Through {
                rounds,
                counts,
                pause,
            }) => {
                if !counts.kept() {
                    row.verdict = Verdict::Broken;
                }
                (row.rounds, row.counts, row.pause) = (rounds, counts, pause);
            }
            Ok(Went::LeftOut(why)) => row.verdict = Verdict::LeftOut(why),
            Err(error) => row.verdict = Verdict::Failed(reason(error)),
        }
        row
    }

    /// Its place in the matrix.
    pub(super) fn place(&self) -> Option<usize> {
        let mut all = super::rows::ALL.iter();
        all.position(|kind| kind.name == self.name)
    }

    /// The first of what was found, in words.
    pub fn findings(&self) -> &[String] {
        &self.counts.findings
    }

    /// Whether nothing was found.
    pub fn is_kept(&self) -> bool {
        matches!(self.verdict, Verdict::Kept | Verdict::LeftOut(_))
    }
}

/// The first line of a panic.
fn reason(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else {
        return "stopped".to_owned();
    };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let line = text.and_then(|text| text.lines().next());
    line.unwrap_or("a panic without a text").to_owned()
}

/// Heads of the columns.
const HEAD: [&str; 10] = [
    "row",
    "rounds",
    "acknowledged",
    "of these at hold",
    "lost",
    "doubled",
    "over the cap",
    "refused with room",
    "worst pause ms",
    "verdict",
];

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        let verdict = match &self.verdict {
            Verdict::Kept => format!("kept ({} s)", self.took.as_secs()),
            Verdict::Broken => format!("BROKEN ({} s)", self.took.as_secs()),
            Verdict::Failed(why) => format!("FAILED: {why}"),
            Verdict::LeftOut(why) => format!("left out: {why}"),
        };
        write!(
            f,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {verdict} |",
            self.name,
            self.rounds,
            counts.acknowledged,
            counts.at_hold,
            counts.lost,
            counts.doubled,
            counts.over,
            counts.phantom,
            self.pause.as_millis(),
        )
    }
}

/// All rows of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// In the order of the matrix.
    pub rows: Vec<Row>,
}

impl Report {
    /// Whether nothing was found in any row.
    pub fn is_kept(&self) -> bool {
        self.rows.iter().all(Row::is_kept)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| {} |", HEAD.join(" | "))?;
        writeln!(f, "|---{}|---|", "|---:".repeat(HEAD.len() - 2))?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        Ok(())
    }
}
