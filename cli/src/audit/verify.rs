//! `audit verify`: proves every partition, each on a thread of its own, and says for each where the
//! first thing stands that does not hold.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use seatbelt_ledger::{
    audit::{Verifier, VerifyError},
    journal::{ReadError, Stored},
    partition::ChainError,
};
use seatbelt_schemas::{
    event::Genesis,
    position::{Partition, Position},
};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    AuditError,
    source::{Item, Source, genesis},
};

/// Commits on their way to one partition's thread.
const QUEUE_MAX: usize = 256;
/// How often progress is shown.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// What was found of one partition.
#[derive(Debug, Serialize)]
struct Finding {
    partition: u8,
    commits: u64,
    events: u64,
    unknown: u64,
    accounts: u64,
    open: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    #[serde(skip)]
    genesis: Option<Genesis>,
}

/// The first thing that does not hold.
#[derive(Debug, Serialize)]
struct Failure {
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    error: String,
}

#[derive(Debug, Serialize)]
struct Report {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ledger: Option<String>,
    commits: u64,
    events: u64,
    partitions: Vec<Finding>,
}

pub(super) async fn verify(
    source: &Source,
    json: bool,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let done = Arc::new(AtomicU64::new(0));
    let progress = show_progress(&done);
    let findings = examine(source, &done).await;
    if let Some(progress) = progress {
        progress.abort();
        // the line is only for people; a terminal that is gone needs none
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    let report = report(findings?);
    print(&report, json, out).map_err(AuditError::Output)?;
    Ok(match report.ok {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// One partition's thread.
struct Worker {
    commits: mpsc::Sender<Stored>,
    finding: JoinHandle<Finding>,
}

async fn examine(
    source: &Source,
    done: &Arc<AtomicU64>,
) -> Result<BTreeMap<Partition, Finding>, AuditError> {
    let mut workers: BTreeMap<Partition, Worker> = BTreeMap::new();
    let mut gaps: BTreeMap<Partition, AuditError> = BTreeMap::new();
    let mut commits = source.commits_in_turns();
    while let Some(item) = commits.next().await {
        match item {
            Ok(Item { partition, stored }) => {
                let worker = workers
                    .entry(partition)
                    .or_insert_with(|| work(partition, done));
                // one that has found its first failure takes no more
                let _ = worker.commits.send(stored).await;
            }
            Err(error) => match gap_of(&error) {
                Some(partition) => drop(gaps.insert(partition, error)),
                None => return Err(error),
            },
        }
    }
    let mut findings = BTreeMap::new();
    for (partition, worker) in workers {
        drop(worker.commits);
        let mut finding = worker.finding.await.expect("a verifier does not panic");
        if let (None, Some(gap)) = (&finding.failure, gaps.remove(&partition)) {
            finding.failure = Some(missing(&gap));
        }
        findings.insert(partition, finding);
    }
    for (partition, gap) in gaps {
        let failure = Some(missing(&gap));
        let finding = Finding {
            failure,
            ..nothing(partition)
        };
        findings.insert(partition, finding);
    }
    Ok(findings)
}

/// A commit that is gone is a finding; a server that does not answer is not.
fn gap_of(error: &AuditError) -> Option<Partition> {
    match error {
        AuditError::Read {
            partition,
            source: ReadError::Gap { .. },
            ..
        } => Some(*partition),
        _ => None,
    }
}

fn missing(gap: &AuditError) -> Failure {
    let sequence = match gap {
        AuditError::Read { at, .. } => Some(at.0),
        _ => None,
    };
    Failure {
        sequence,
        position: None,
        error: with_sources(gap),
    }
}

fn nothing(partition: Partition) -> Finding {
    Finding {
        partition: partition.0,
        commits: 0,
        events: 0,
        unknown: 0,
        accounts: 0,
        open: 0,
        chain: None,
        failure: None,
        genesis: None,
    }
}

fn work(partition: Partition, done: &Arc<AtomicU64>) -> Worker {
    let (commits, queue) = mpsc::channel(QUEUE_MAX);
    let done = Arc::clone(done);
    let finding = tokio::task::spawn_blocking(move || prove(partition, queue, &done));
    Worker { commits, finding }
}

fn prove(partition: Partition, mut queue: mpsc::Receiver<Stored>, done: &AtomicU64) -> Finding {
    let mut verifier = Verifier::new(partition);
    let mut finding = nothing(partition);
    while let Some(stored) = queue.blocking_recv() {
        match verifier.accept(stored.sequence, &stored.payload) {
            Ok(commit) => {
                if finding.genesis.is_none() {
                    finding.genesis = genesis(&commit).cloned();
                }
                finding.commits += 1;
                finding.events += commit.events.len() as u64;
                done.fetch_add(commit.events.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                finding.failure = Some(failure(&error));
                return finding;
            }
        }
    }
    match verifier.finish() {
        Ok(summary) => {
            finding.unknown = summary.unknown;
            finding.accounts = summary.accounts;
            finding.open = summary.open;
            finding.chain = Some(summary.chain.to_string());
        }
        Err(error) => finding.failure = Some(failure(&error)),
    }
    finding
}

fn failure(error: &VerifyError) -> Failure {
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
        error: with_sources(error),
    }
}

fn position_of(error: &ChainError) -> Position {
    match error {
        ChainError::Commit { after, .. } | ChainError::Partition { after, .. } => after.next(),
        ChainError::Gap { expected, .. } => *expected,
        ChainError::Broken { at, .. } | ChainError::Backwards { at, .. } => *at,
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// What holds between partitions: all of them are there, and of one ledger.
fn report(mut findings: BTreeMap<Partition, Finding>) -> Report {
    let genesis = findings
        .values()
        .find_map(|finding| finding.genesis.clone());
    if let Some(genesis) = &genesis {
        for partition in (0..genesis.partitions).map(Partition) {
            let finding = findings
                .entry(partition)
                .or_insert_with(|| nothing(partition));
            if finding.failure.is_none() {
                finding.failure = belongs(finding, genesis);
            }
        }
    }
    let findings: Vec<Finding> = findings.into_values().collect();
    Report {
        ok: genesis.is_some() && findings.iter().all(|finding| finding.failure.is_none()),
        ledger: genesis.map(|genesis| genesis.ledger.to_string()),
        commits: findings.iter().map(|finding| finding.commits).sum(),
        events: findings.iter().map(|finding| finding.events).sum(),
        partitions: findings,
    }
}

fn belongs(finding: &Finding, first: &Genesis) -> Option<Failure> {
    let error = match &finding.genesis {
        None => format!(
            "the journal is empty or missing, yet the ledger was made with {} partitions",
            first.partitions
        ),
        Some(genesis) if genesis.ledger != first.ledger => {
            format!(
                "belongs to ledger {}, not to {}",
                genesis.ledger, first.ledger
            )
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

fn print(report: &Report, json: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
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
    let verdict = if report.ok {
        "everything holds"
    } else {
        "NOT everything holds"
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

/// Counts on standard error while somebody watches.
fn show_progress(done: &Arc<AtomicU64>) -> Option<JoinHandle<()>> {
    if !io::stderr().is_terminal() {
        return None;
    }
    let done = Arc::clone(done);
    Some(tokio::spawn(async move {
        loop {
            tokio::time::sleep(PROGRESS_EVERY).await;
            let events = done.load(Ordering::Relaxed);
            let _ = write!(io::stderr(), "\r\x1b[K{events} events verified");
        }
    }))
}
