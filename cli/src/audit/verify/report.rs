//! What `audit verify` says: what was found of each partition, and what holds between them.

use std::io::{self, Write};

use seatbelt_ledger::{audit::VerifyError, journal::Sequence, nats::Doubt, partition::ChainError};
use seatbelt_schemas::{
    chain::in_one_line,
    event::Genesis,
    ids::LedgerId,
    position::{Partition, Position},
};
use serde::Serialize;

use super::{
    super::{AuditError, checkpoint::Mark},
    Findings,
};

/// What was found of one partition.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) partition: u8,
    pub(super) commits: u64,
    pub(super) events: u64,
    pub(super) unknown: u64,
    pub(super) accounts: u64,
    pub(super) open: u64,
    /// Messages that an operator had skipped.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) skipped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) chain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<Failure>,
    #[serde(skip)]
    pub(super) genesis: Option<Genesis>,
    /// Sequence of the last commit that was proved.
    #[serde(skip)]
    pub(super) end: Sequence,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The first thing that does not hold.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) position: Option<u64>,
    pub(super) error: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Everything was decided again and holds.
    pub(super) ok: bool,
    /// Nothing that was decided again fails, but not all was.
    #[serde(skip)]
    pub(super) holds: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ledger: Option<String>,
    pub(super) commits: u64,
    pub(super) events: u64,
    /// Events of kinds that this build does not know: what they do, and what was decided on them, is not
    /// proved.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) unknown: u64,
    /// Why not everything could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    pub(super) partitions: Vec<Finding>,
}

pub(super) fn missing(gap: &AuditError) -> Failure {
    let sequence = match gap {
        AuditError::Read { at, .. } => Some(at.0),
        _ => None,
    };
    Failure {
        sequence,
        position: None,
        error: in_one_line(gap),
    }
}

/// A journal that proves by itself and yet is not the one that others have seen.
pub(super) fn doubted(doubt: &Doubt) -> Failure {
    Failure {
        sequence: None,
        position: None,
        error: doubt.to_string(),
    }
}

/// Another commit than a checkpoint saw.
pub(super) fn unlike(at: Sequence, error: String) -> Failure {
    Failure {
        sequence: Some(at.0),
        position: None,
        error,
    }
}

/// What was found, if it reaches as far as the checkpoint saw.
pub(super) fn missed(mark: &Mark, mut finding: Finding) -> Finding {
    if let (None, Some(error)) = (&finding.failure, mark.missed(finding.end)) {
        finding.failure = Some(unlike(finding.end, error));
    }
    finding
}

pub(super) fn nothing(partition: Partition) -> Finding {
    Finding {
        partition: partition.0,
        commits: 0,
        events: 0,
        unknown: 0,
        accounts: 0,
        open: 0,
        skipped: 0,
        chain: None,
        failure: None,
        genesis: None,
        end: Sequence(0),
    }
}

pub(super) fn failure(error: &VerifyError) -> Failure {
    let (sequence, position) = match error {
        VerifyError::Sequence { after, .. } => (after.next(), None),
        VerifyError::Decision {
            sequence, position, ..
        } => (*sequence, Some(*position)),
        VerifyError::Chain { sequence, source } => (*sequence, Some(position_of(source))),
    };
    Failure {
        sequence: Some(sequence.0),
        position: position.map(|position| position.0),
        error: in_one_line(error),
    }
}

fn position_of(error: &ChainError) -> Position {
    match error {
        ChainError::Commit { after, .. } | ChainError::Partition { after, .. } => after.next(),
        ChainError::Gap { expected, .. } => *expected,
        ChainError::Broken { at, .. }
        | ChainError::Skips { at, .. }
        | ChainError::Backwards { at, .. } => *at,
    }
}

/// What holds between partitions: all of them are there, and of one ledger.
pub(super) fn report(
    mut findings: Findings,
    error: Option<&AuditError>,
    wanted: Option<&LedgerId>,
) -> Report {
    let genesis = findings
        .values()
        .find_map(|finding| finding.genesis.clone());
    if let Some(genesis) = &genesis {
        for partition in (0..genesis.partitions).map(Partition) {
            let finding = findings
                .entry(partition)
                .or_insert_with(|| nothing(partition));
            if finding.failure.is_none() {
                finding.failure = belongs(finding, genesis, wanted);
            }
        }
    }
    let findings: Vec<Finding> = findings.into_values().collect();
    let holds = findings.iter().all(|finding| finding.failure.is_none());
    let holds = genesis.is_some() && holds && error.is_none();
    let unknown: u64 = findings.iter().map(|finding| finding.unknown).sum();
    Report {
        ok: holds && unknown == 0,
        holds,
        unknown,
        ledger: genesis.map(|genesis| genesis.ledger.to_string()),
        commits: findings.iter().map(|finding| finding.commits).sum(),
        events: findings.iter().map(|finding| finding.events).sum(),
        error: error.map(|error| in_one_line(error)),
        partitions: findings,
    }
}

fn belongs(finding: &Finding, first: &Genesis, wanted: Option<&LedgerId>) -> Option<Failure> {
    let wanted = wanted.unwrap_or(&first.ledger);
    let error = match &finding.genesis {
        None => format!(
            "the journal is empty or missing, yet the ledger was made with {} partitions",
            first.partitions
        ),
        Some(genesis) if genesis.ledger != *wanted => {
            format!("belongs to ledger {}, not to {wanted}", genesis.ledger)
        }
        Some(genesis) if genesis.partitions != first.partitions => {
            format!(
                "was made as one of {} partitions, not of {}",
                genesis.partitions, first.partitions
            )
        }
        Some(_) => return None,
    };
    let (sequence, position) = (Some(1), Some(1));
    Some(Failure {
        sequence,
        position,
        error,
    })
}

pub(super) fn print(report: &Report, json: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    if json {
        let text = serde_json::to_string(report).map_err(io::Error::other)?;
        return writeln!(out, "{text}");
    }
    for finding in &report.partitions {
        let partition = Partition(finding.partition);
        writeln!(
            out,
            "partition {partition}: {} commits, {} events, {} accounts, {} open, chain {}",
            finding.commits,
            finding.events,
            finding.accounts,
            finding.open,
            finding.chain.as_deref().unwrap_or("not proven to its end"),
        )?;
        if finding.unknown > 0 {
            writeln!(
                out,
                "partition {partition}: {} events of kinds that this build does not know were not decided again",
                finding.unknown
            )?;
        }
        if finding.skipped > 0 {
            let skipped = finding.skipped;
            writeln!(
                out,
                "partition {partition}: {skipped} messages that are no commits are skipped by an operator's word"
            )?;
        }
        if let Some(failure) = &finding.failure {
            let place = |number: Option<u64>| number.map_or("?".to_owned(), |n| n.to_string());
            let (sequence, at) = (place(failure.sequence), place(failure.position));
            writeln!(
                out,
                "partition {partition}: FAILED at sequence {sequence}, position {at}: {}",
                failure.error
            )?;
        }
    }
    if let Some(error) = &report.error {
        writeln!(out, "NOT everything could be read: {error}")?;
    }
    let verdict = match (report.ok, report.holds) {
        (true, _) => "everything holds".to_owned(),
        (false, true) => format!(
            "NOT everything is proved: {} events are of kinds that this build does not know, verify with the build that wrote them",
            report.unknown
        ),
        (false, false) => "NOT everything holds".to_owned(),
    };
    let ledger = report.ledger.as_deref().unwrap_or("unknown");
    writeln!(
        out,
        "ledger {ledger}: {verdict}, {} commits and {} events in {} partitions",
        report.commits,
        report.events,
        report.partitions.len()
    )
}
