//! `audit verify`: proves every partition, each on a thread of its own, and says for each where the
//! first thing stands that does not hold. A copy that cannot be read to its end is proved as far as it
//! goes, and then is an error.

mod report;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
};

use futures::StreamExt;
use seatbelt_ledger::{
    audit::Verifier,
    journal::{ReadError, Sequence, Stored, export::Exported},
};
use seatbelt_schemas::{
    commit::{COMMIT_BYTES_MAX, Commit},
    position::Partition,
};
use tokio::{sync::mpsc, task::JoinHandle};

use self::report::{Finding, doubted, failure, missed, missing, nothing, print, report, unlike};
use super::{
    AuditError,
    checkpoint::{Checkpoint, Mark},
    progress::{Done, show_progress},
    source::{ExportFile, Item, Source, genesis, read_file},
};

/// Commits handed to a partition's thread at once, at most. Waking a thread costs more than proving a
/// small commit.
const BATCH_COMMITS: usize = 64;
/// Bytes handed to a partition's thread at once: so many, and less than one commit more.
const BATCH_BYTES: usize = 1 << 17;
/// Batches on their way to one partition's thread: together about 1 MiB, so that what is read is still
/// in a processor's cache when it is proved.
const QUEUE_MAX: usize = 6;
/// The exit code where nothing fails, and not everything could be decided again.
const NOT_PROVED: u8 = 3;

pub(super) async fn verify(
    source: &Source,
    json: bool,
    checkpoint: Option<&Path>,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let checkpoint = checkpoint.map(Checkpoint::read).transpose()?;
    let done = Arc::new(Done::default());
    let progress = show_progress(source, &done).await;
    let marks = checkpoint.as_ref().map(Checkpoint::marks);
    let (mut findings, error) = examine(source, &done, marks.unwrap_or_default()).await;
    for (partition, doubt) in source.doubts().await {
        let finding = findings
            .entry(partition)
            .or_insert_with(|| nothing(partition));
        finding.failure.get_or_insert_with(|| doubted(&doubt));
    }
    if let Some(progress) = progress {
        progress.abort();
        // the line is only for people; a terminal that is gone needs none
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
    match error {
        // nothing to report on
        Some(error) if findings.is_empty() => Err(error),
        error => {
            let ledger = checkpoint.as_ref().map(Checkpoint::ledger);
            let report = report(findings, error.as_ref(), ledger);
            print(&report, json, out).map_err(AuditError::Output)?;
            match error {
                Some(error) => Err(error),
                None if report.ok => Ok(ExitCode::SUCCESS),
                None if report.holds => Ok(ExitCode::from(NOT_PROVED)),
                None => Ok(ExitCode::FAILURE),
            }
        }
    }
}

type Findings = BTreeMap<Partition, Finding>;
/// What a checkpoint saw of each journal.
type Marks = BTreeMap<Partition, Mark>;

/// What was found, and what kept it from being all.
async fn examine(
    source: &Source,
    done: &Arc<Done>,
    marks: Marks,
) -> (Findings, Option<AuditError>) {
    let mut workers = Workers::new(Arc::clone(done), marks);
    let read = match source {
        Source::File(export) => {
            let export = export.clone();
            let reading = move || {
                let read = read_export(&export, &mut workers);
                (workers, read)
            };
            let read = tokio::task::spawn_blocking(reading).await;
            let (given, read) = read.expect("a reader does not panic");
            workers = given;
            read
        }
        Source::Server { .. } => read_journals(source, &mut workers).await,
    };
    (workers.finish().await, read.err())
}

fn read_export(export: &ExportFile, workers: &mut Workers) -> Result<(), AuditError> {
    let read = Arc::clone(&workers.done.read);
    read_file(export, &read, |commit| {
        let Exported {
            partition,
            sequence,
            payload,
        } = commit;
        if let Some((queue, batch)) = workers.take(partition, sequence, payload) {
            // one that has found its first failure takes no more
            let _ = queue.blocking_send(batch);
        }
        ControlFlow::Continue(())
    })
}

async fn read_journals(source: &Source, workers: &mut Workers) -> Result<(), AuditError> {
    let mut commits = source.commits_in_turns();
    while let Some(item) = commits.next().await {
        match item {
            Ok(Item { partition, stored }) => {
                workers.done.read.fetch_add(1, Ordering::Relaxed);
                let Stored { sequence, payload } = stored;
                if let Some((queue, batch)) = workers.take(partition, sequence, &payload) {
                    let _ = queue.send(batch).await;
                }
            }
            Err(error) => match gap_of(&error) {
                Some(partition) => drop(workers.gaps.insert(partition, error)),
                None => return Err(error),
            },
        }
    }
    Ok(())
}

/// Commits for one partition's thread, one behind the other in one room that is used again and again:
/// fresh memory for each would cost as much as reading it.
#[derive(Debug)]
struct Batch {
    bytes: Vec<u8>,
    /// Each commit's sequence, and where it ends.
    commits: Vec<(Sequence, usize)>,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            bytes: Vec::with_capacity(BATCH_BYTES + COMMIT_BYTES_MAX),
            commits: Vec::with_capacity(BATCH_COMMITS),
        }
    }
}

impl Batch {
    fn push(&mut self, sequence: Sequence, payload: &[u8]) {
        self.bytes.extend_from_slice(payload);
        self.commits.push((sequence, self.bytes.len()));
    }

    fn is_full(&self) -> bool {
        self.commits.len() >= BATCH_COMMITS || self.bytes.len() >= BATCH_BYTES
    }

    fn iter(&self) -> impl Iterator<Item = (Sequence, &[u8])> {
        let mut begin = 0;
        self.commits.iter().map(move |(sequence, end)| {
            let payload = &self.bytes[begin..*end];
            begin = *end;
            (*sequence, payload)
        })
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.commits.clear();
    }
}

/// One partition's thread.
struct Worker {
    queue: mpsc::Sender<Batch>,
    /// What it is done with.
    done_with: mpsc::Receiver<Batch>,
    /// What is handed over next.
    batch: Batch,
    finding: JoinHandle<Finding>,
}

/// The threads of all partitions seen so far.
struct Workers {
    done: Arc<Done>,
    marks: Marks,
    workers: BTreeMap<Partition, Worker>,
    gaps: BTreeMap<Partition, AuditError>,
}

impl Workers {
    fn new(done: Arc<Done>, marks: Marks) -> Self {
        Self {
            done,
            marks,
            workers: BTreeMap::new(),
            gaps: BTreeMap::new(),
        }
    }

    /// Takes a commit for its partition; gives back what is to be handed over now.
    fn take(
        &mut self,
        partition: Partition,
        sequence: Sequence,
        payload: &[u8],
    ) -> Option<(&mpsc::Sender<Batch>, Batch)> {
        let worker = self
            .workers
            .entry(partition)
            .or_insert_with(|| work(partition, &self.done, self.marks.remove(&partition)));
        worker.batch.push(sequence, payload);
        if !worker.batch.is_full() {
            return None;
        }
        let room = worker.done_with.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut worker.batch, room);
        Some((&worker.queue, batch))
    }

    /// Waits for what every thread finds.
    async fn finish(mut self) -> Findings {
        let mut findings = BTreeMap::new();
        for worker in self.workers.values_mut() {
            let rest = std::mem::take(&mut worker.batch);
            let _ = worker.queue.send(rest).await;
        }
        for (partition, worker) in self.workers {
            drop(worker.queue);
            let mut finding = worker.finding.await.expect("a verifier does not panic");
            if let (None, Some(gap)) = (&finding.failure, self.gaps.remove(&partition)) {
                finding.failure = Some(missing(&gap));
            }
            findings.insert(partition, finding);
        }
        for (partition, mark) in self.marks {
            let finding = missed(&mark, nothing(partition));
            findings.insert(partition, finding);
        }
        for (partition, gap) in self.gaps {
            let failure = Some(missing(&gap));
            let finding = Finding {
                failure,
                ..nothing(partition)
            };
            findings.insert(partition, finding);
        }
        findings
    }
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

fn work(partition: Partition, done: &Arc<Done>, mark: Option<Mark>) -> Worker {
    let (queue, batches) = mpsc::channel(QUEUE_MAX);
    let (give_back, done_with) = mpsc::channel(QUEUE_MAX);
    let done = Arc::clone(done);
    let proving = move || {
        let finding = prove(partition, batches, &give_back, &done, mark.as_ref());
        match &mark {
            Some(mark) => missed(mark, finding),
            None => finding,
        }
    };
    let finding = tokio::task::spawn_blocking(proving);
    Worker {
        queue,
        done_with,
        batch: Batch::default(),
        finding,
    }
}

fn prove(
    partition: Partition,
    mut batches: mpsc::Receiver<Batch>,
    give_back: &mpsc::Sender<Batch>,
    done: &Done,
    mark: Option<&Mark>,
) -> Finding {
    let mut verifier = Verifier::new(partition);
    let mut finding = nothing(partition);
    while let Some(mut batch) = batches.blocking_recv() {
        let before = finding.events;
        for (sequence, payload) in batch.iter() {
            match verifier.accept(sequence, payload) {
                // no commit: one that follows must say that it is to be stepped over
                Ok(0) => {}
                Ok(events) => {
                    if finding.commits == 0 {
                        let first = Commit::decode(payload).ok();
                        finding.genesis = first.as_ref().and_then(genesis).cloned();
                    }
                    finding.commits += 1;
                    finding.end = sequence;
                    finding.events += events;
                    let mark = mark.filter(|mark| mark.is_at(sequence));
                    let position = verifier.state().position();
                    if let Some(error) = mark.and_then(|mark| mark.differs(payload, position)) {
                        finding.failure = Some(unlike(sequence, error));
                        return finding;
                    }
                }
                Err(error) => {
                    finding.failure = Some(failure(&error));
                    return finding;
                }
            }
        }
        let events = finding.events - before;
        done.events.fetch_add(events, Ordering::Relaxed);
        batch.clear();
        // a reader that has come to its end needs no more room
        let _ = give_back.try_send(batch);
    }
    match verifier.finish() {
        Ok(summary) => {
            finding.unknown = summary.unknown;
            finding.accounts = summary.accounts;
            finding.open = summary.open;
            finding.skipped = summary.skipped;
            finding.chain = Some(summary.chain.to_string());
        }
        Err(error) => finding.failure = Some(failure(&error)),
    }
    finding
}
