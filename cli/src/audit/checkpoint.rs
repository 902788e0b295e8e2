//! Checkpoints: where each journal ended at some moment, in a small file that is kept away from the
//! server. Streams, snapshots, feed and META that were all put back from one older backup agree with each
//! other; a checkpoint taken later does not agree with them.
//!
//! A checkpoint is replaced only by one of a journal that still holds all that it has seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read, Write},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use seatbelt_ledger::{
    journal::{Journal, ReadError, Sequence, Stored},
    nats::Sighting,
};
use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    event::Genesis,
    ids::LedgerId,
    position::{PARTITIONS_MAX, Partition, Position},
};
use serde::{Deserialize, Serialize};

use super::{
    AuditError,
    source::{ExportFile, Item, Source, genesis, read_file},
};

/// Largest file that is read as a checkpoint: a hundred partitions take some 15 kB.
const BYTES_MAX: u64 = 1 << 16;
const VERSION: u8 = 1;

/// Where each journal of a ledger ended at some moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checkpoint {
    v: u8,
    ledger: LedgerId,
    partitions: Vec<Mark>,
}

/// The last commit of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    partition: u8,
    /// The last position.
    position: u64,
    /// The last commit's sequence.
    sequence: u64,
    /// Its SHA-256, hexadecimal.
    sha256: String,
}

impl Checkpoint {
    pub(crate) fn read(path: &Path) -> Result<Self, AuditError> {
        let mut text = String::new();
        let file = File::open(path).map_err(|source| failed("open", path, source))?;
        let read = file.take(BYTES_MAX).read_to_string(&mut text);
        read.map_err(|source| failed("read", path, source))?;
        let wrong = |detail| AuditError::Checkpoint {
            path: path.to_owned(),
            detail,
        };
        let checkpoint: Self =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if checkpoint.v != VERSION {
            return Err(wrong(format!("version {} is not known", checkpoint.v)));
        }
        checkpoint.check().map_err(wrong)?;
        Ok(checkpoint)
    }

    /// Whether each mark can be one, and there are any: one that cannot would guard nothing.
    fn check(&self) -> Result<(), String> {
        if self.partitions.is_empty() {
            return Err("it names no partition".to_owned());
        }
        let mut seen = BTreeSet::new();
        for mark in &self.partitions {
            let partition = Partition(mark.partition);
            let wrong = |what| Err(format!("what it says of partition {partition} {what}"));
            if mark.partition >= PARTITIONS_MAX || !seen.insert(mark.partition) {
                return wrong("cannot be, or stands there twice");
            }
            if mark.sequence == 0 || mark.position == 0 {
                return wrong("is before the first commit");
            }
            if mark.hash().is_none() {
                return wrong("has no SHA-256");
            }
        }
        Ok(())
    }

    pub(crate) fn ledger(&self) -> &LedgerId {
        &self.ledger
    }

    /// What it saw of each journal.
    pub(super) fn marks(&self) -> BTreeMap<Partition, Mark> {
        let marks = self.partitions.iter();
        marks
            .map(|mark| (Partition(mark.partition), mark.clone()))
            .collect()
    }

    /// The same, for who opens the journals.
    pub(crate) fn known(&self) -> BTreeMap<Partition, Sighting> {
        let known = |mark: &Mark| {
            Some(Sighting {
                by: "the checkpoint",
                at: Sequence(mark.sequence),
                hash: mark.hash()?,
            })
        };
        let marks = self.partitions.iter();
        marks
            .filter_map(|mark| Some((Partition(mark.partition), known(mark)?)))
            .collect()
    }

    fn tell(&self, path: &Path, out: &mut (dyn Write + Send)) -> io::Result<()> {
        for mark in &self.partitions {
            let (partition, at) = (Partition(mark.partition), mark.sequence);
            let position = mark.position;
            writeln!(
                out,
                "partition {partition}: sequence {at}, position {position}"
            )?;
        }
        writeln!(out, "ledger {}: noted in {}", self.ledger, path.display())
    }

    /// Whole or not at all, and on disk.
    fn write(&self, path: &Path) -> Result<(), AuditError> {
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let write = || {
            let mut file = File::create_new(&part)?;
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&part, path)
        };
        write().map_err(|source| failed("write", path, source))
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> AuditError {
    let path = path.to_owned();
    AuditError::File {
        action,
        path,
        source,
    }
}

impl Mark {
    fn of(partition: Partition, stored: &Stored) -> Result<Self, AuditError> {
        let at = stored.sequence;
        let commit = Commit::read(&stored.payload).map_err(|source| AuditError::Commit {
            partition,
            at,
            source,
        })?;
        let last = commit.events.last();
        let Position(position) = last.map_or(Position(0), |last| last.event.position);
        Ok(Self {
            partition: partition.0,
            position,
            sequence: at.0,
            sha256: ChainHash::of(&stored.payload).to_string(),
        })
    }

    fn hash(&self) -> Option<ChainHash> {
        let mut hash = [0; 32];
        hex::decode_to_slice(&self.sha256, &mut hash).ok()?;
        Some(ChainHash(hash))
    }

    /// Whether this is the place.
    pub(super) fn is_at(&self, sequence: Sequence) -> bool {
        self.sequence == sequence.0
    }

    /// What is wrong with the commit at its place, after which the journal stands at `position`.
    pub(super) fn differs(&self, payload: &[u8], position: Position) -> Option<String> {
        let same = ChainHash::of(payload).to_string() == self.sha256;
        if same && position.0 == self.position {
            return None;
        }
        Some("is another commit than the checkpoint saw there".to_owned())
    }

    /// What is wrong with a journal that ends at `end`.
    pub(super) fn missed(&self, end: Sequence) -> Option<String> {
        (self.sequence > end.0).then(|| {
            format!(
                "the journal ends at sequence {end}, but the checkpoint saw it go on to {}, position {}",
                self.sequence, self.position
            )
        })
    }
}

/// `audit checkpoint`: notes where the journals end. It proves nothing about what stands in them.
pub(super) async fn checkpoint(
    source: &Source,
    path: PathBuf,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let former = match path.exists() {
        true => Some(Checkpoint::read(&path)?),
        false => None,
    };
    let found = take(source, former.as_ref()).await?;
    found.write(&path)?;
    found.tell(&path, out).map_err(AuditError::Output)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the journals end, if they hold what the former checkpoint saw.
async fn take(source: &Source, former: Option<&Checkpoint>) -> Result<Checkpoint, AuditError> {
    let mut seen = Seen {
        marks: former.map(Checkpoint::marks).unwrap_or_default(),
        ..Seen::default()
    };
    match source {
        Source::File(export) => {
            let export = export.clone();
            let reading = move || seen.file(&export).map(|()| seen);
            let read = tokio::task::spawn_blocking(reading).await;
            seen = read.expect("a reader does not panic")?;
        }
        Source::Server { journals, .. } => {
            for (partition, journal) in journals {
                seen.journal(*partition, journal).await?;
            }
        }
    }
    seen.finish(former)
}

/// The ends of the journals read so far.
#[derive(Default)]
struct Seen {
    marks: BTreeMap<Partition, Mark>,
    genesis: Option<Genesis>,
    lasts: BTreeMap<Partition, Stored>,
    wrong: Option<(Partition, String)>,
}

impl Seen {
    fn file(&mut self, export: &ExportFile) -> Result<(), AuditError> {
        read_file(export, &Arc::default(), |commit| {
            let Item { partition, stored } = commit.into();
            self.commit(partition, stored);
            ControlFlow::Continue(())
        })
    }

    /// The first commit, the one that the former checkpoint saw, and the last one.
    async fn journal(
        &mut self,
        partition: Partition,
        journal: &impl Journal,
    ) -> Result<(), AuditError> {
        let read = |at, source| AuditError::Read {
            partition,
            at,
            source,
        };
        let first = Sequence(1);
        let end = journal.end().await.map_err(|source| read(first, source))?;
        let mark = self.marks.get(&partition);
        let places = [
            Some(first),
            mark.map(|mark| Sequence(mark.sequence)),
            Some(end),
        ];
        for at in places.into_iter().flatten().filter(|at| *at <= end) {
            match journal.get(at).await {
                Ok(Some(stored)) => self.commit(partition, stored),
                Ok(None) => return Err(read(at, ReadError::Gap { at })),
                Err(source) => return Err(read(at, source)),
            }
        }
        Ok(())
    }

    fn commit(&mut self, partition: Partition, stored: Stored) {
        if stored.sequence == Sequence(1) && self.genesis.is_none() {
            let first = Commit::read(&stored.payload).ok();
            self.genesis = first.as_ref().and_then(genesis).cloned();
        }
        let mark = self.marks.get(&partition);
        if let Some(mark) = mark.filter(|mark| mark.is_at(stored.sequence)) {
            let position = Mark::of(partition, &stored).map_or(0, |found| found.position);
            let wrong = mark.differs(&stored.payload, Position(position));
            let wrong =
                wrong.map(|wrong| (partition, format!("sequence {} {wrong}", mark.sequence)));
            self.wrong = self.wrong.take().or(wrong);
        }
        self.lasts.insert(partition, stored);
    }

    fn finish(self, former: Option<&Checkpoint>) -> Result<Checkpoint, AuditError> {
        let genesis = self.genesis.ok_or_else(|| AuditError::NoLedger {
            detail: "no journal begins with genesis".to_owned(),
        })?;
        let ledger = genesis.ledger;
        let other = former.filter(|former| former.ledger != ledger);
        let other = other.map(|other| format!("it is of ledger {}, not {ledger}", other.ledger));
        let shorter = self.marks.iter().find_map(|(partition, mark)| {
            let end = self
                .lasts
                .get(partition)
                .map_or(Sequence(0), |last| last.sequence);
            Some((*partition, mark.missed(end)?))
        });
        let wrong = self.wrong.or(shorter);
        let wrong = wrong.map(|(partition, wrong)| format!("partition {partition}: {wrong}"));
        if let Some(detail) = other.or(wrong) {
            return Err(AuditError::NotReplaced { detail });
        }
        let mut all = (0..genesis.partitions).map(Partition);
        if let Some(partition) = all.find(|partition| !self.lasts.contains_key(partition)) {
            return Err(AuditError::Incomplete { partition });
        }
        let lasts = self.lasts.iter();
        let partitions = lasts.map(|(partition, last)| Mark::of(*partition, last));
        Ok(Checkpoint {
            v: VERSION,
            ledger,
            partitions: partitions.collect::<Result<_, _>>()?,
        })
    }
}
