//! Where commits come from: a NATS server, the embedded one (the running one, or one started for as
//! long as it is read), or an exported copy.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use seatbelt_bus::{Nats, NatsRole, ProvisionError};
use seatbelt_ledger::{
    journal::{
        Journal, Sequence, Stored,
        export::{END, ExportReader, Exported, Lasts, MESSAGE_BYTES_MAX},
    },
    nats::{Doubt, NatsJournal, OpenError, Witnesses},
};
use seatbelt_schemas::{
    commit::Commit,
    event::{EventBody, Genesis},
    ids::AccountId,
    names::Names,
    position::{Partition, Partitions},
};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::{
    AuditError, SourceArgs, copied,
    live::{self, journal_commits, partitions_on},
    reach::{Reached, reach, reach_at, start},
    sieve::without_skipped,
};
use crate::{
    config::{self, Config},
    nats_server::NatsServer,
};

/// Longest line of an export: a message in hexadecimal, and what stands around it.
const LINE_BYTES_MAX: u64 = 2 * MESSAGE_BYTES_MAX as u64 + 1024;
/// Commits read ahead of whoever takes them.
const READ_AHEAD_MAX: usize = 1024;
/// Bytes of an export read at a time.
const READ_BYTES: usize = 1 << 18;

/// A commit and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub(super) partition: Partition,
    pub(super) stored: Stored,
}

impl From<Exported<'_>> for Item {
    fn from(commit: Exported<'_>) -> Self {
        Self {
            partition: commit.partition,
            stored: Stored {
                sequence: commit.sequence,
                payload: commit.payload.to_vec().into(),
            },
        }
    }
}

/// A line of an export in JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Line<'a> {
    pub(super) partition: u8,
    pub(super) sequence: u64,
    #[serde(borrow)]
    pub(super) payload: Cow<'a, str>,
}

/// An open source.
pub(super) enum Source {
    Server {
        journals: Vec<(Partition, NatsJournal)>,
        partitions: Partitions,
        /// Who else on the server knows of each journal.
        witnesses: Vec<(Partition, Witnesses)>,
        /// Kept while it is read, where it was started for that.
        started: Option<Box<NatsServer>>,
        /// What it was started on, where that is a copy; goes after it.
        copy: Option<TempDir>,
    },
    File(ExportFile),
}

/// The configuration that is read where no place is named, as by every other command.
const CONFIG_DEFAULT: &str = "seatbelt.toml";

/// An exported copy.
#[derive(Debug, Clone)]
pub(super) struct ExportFile {
    pub(super) path: PathBuf,
    /// Whether JSON lines without an end are taken for whole, as the first exports had none.
    pub(super) allow_open_end: bool,
}

impl Source {
    pub(super) async fn open(args: &SourceArgs) -> Result<Self, AuditError> {
        let place = &args.place;
        if let Some(path) = &place.file {
            return Ok(Self::File(ExportFile {
                path: path.clone(),
                allow_open_end: args.allow_open_end,
            }));
        }
        if let Some(url) = &place.nats {
            let names = Names::new(&args.prefix)?;
            return Self::on(reach_at(url).await?, &names).await;
        }
        let path = place.config.as_deref().unwrap_or(Path::new(CONFIG_DEFAULT));
        let nats = Config::load_nats(path)?;
        let role = NatsRole::Auditor;
        let (reached, copied) = match reach(&nats, role).await {
            Err(AuditError::Server(error)) if error.cannot_write() => {
                let copied = copied::copy(&nats)?;
                let of_copy = config::NatsConfig {
                    data_dir: copied.path().to_owned(),
                    ..nats.clone()
                };
                (start(&of_copy, role).await?, Some(copied))
            }
            reached => (reached?, None),
        };
        let mut source = Self::on(reached, &nats.names).await?;
        if let Self::Server { copy, .. } = &mut source {
            *copy = copied;
        }
        Ok(source)
    }

    /// Opens every journal of the ledger on a server.
    async fn on(reached: Reached, names: &Names) -> Result<Self, AuditError> {
        let Reached {
            nats,
            only_reads,
            started,
        } = reached;
        let partitions = partitions_on(&nats, names).await?;
        let witnesses = witnesses(&nats, names, partitions).await;
        let mut journals = Vec::new();
        for partition in partitions.iter() {
            match live::open(&nats, names, partition).await {
                Ok(journal) if only_reads => {
                    journals.push((partition, journal.without_consumers()));
                }
                Ok(journal) => journals.push((partition, journal)),
                // whether a missing journal matters is the audit's to say
                Err(ProvisionError::Missing { .. }) => {}
                Err(source) => return Err(live::open_error(partition, source)),
            }
        }
        Ok(Self::Server {
            journals,
            partitions,
            witnesses,
            started,
            copy: None,
        })
    }

    /// The journals that are not what META, the partition records or the feed have seen of them. Whatever
    /// of these cannot be read here has seen nothing.
    pub(super) async fn doubts(&self) -> Vec<(Partition, Doubt)> {
        let Self::Server { witnesses, .. } = self else {
            return Vec::new();
        };
        let mut doubts = Vec::new();
        for (partition, witnesses) in witnesses {
            if let Err(OpenError::Doubt(doubt)) = witnesses.look().await {
                doubts.push((*partition, doubt));
            }
        }
        doubts
    }

    /// How many partitions the ledger was made with.
    pub(super) async fn partitions(&self) -> Result<Partitions, AuditError> {
        match self {
            Self::Server { partitions, .. } => Ok(*partitions),
            Self::File(export) => {
                let first = self.file_commits(export).next().await;
                let item = first.ok_or_else(|| AuditError::NoLedger {
                    detail: format!("{} is empty", export.path.display()),
                })??;
                partitions_of(item.partition, &item.stored)
            }
        }
    }

    /// Every commit: in order within each partition, one partition after the other, or as they come.
    pub(super) fn commits(&self) -> BoxStream<'_, Result<Item, AuditError>> {
        without_skipped(match self {
            Self::File(export) => self.file_commits(export),
            Self::Server { journals, .. } => stream::iter(journals)
                .flat_map(|(partition, journal)| journal_commits(*partition, journal))
                .boxed(),
        })
    }

    /// Every message, partitions taking turns.
    pub(super) fn commits_in_turns(&self) -> BoxStream<'_, Result<Item, AuditError>> {
        match self {
            Self::File(export) => self.file_commits(export),
            Self::Server { journals, .. } => stream::select_all(
                journals
                    .iter()
                    .map(|(partition, journal)| journal_commits(*partition, journal)),
            )
            .boxed(),
        }
    }

    /// The commits of the partition that an account lives in.
    pub(super) async fn commits_around(
        &self,
        account: &AccountId,
    ) -> Result<BoxStream<'_, Result<Item, AuditError>>, AuditError> {
        let home = self.partitions().await?.of(account);
        Ok(without_skipped(match self {
            Self::File(export) => self
                .file_commits(export)
                .filter(move |item| {
                    let here = !matches!(item, Ok(item) if item.partition != home);
                    async move { here }
                })
                .boxed(),
            Self::Server { journals, .. } => {
                let journal = journals.iter().find(|(partition, _)| *partition == home);
                stream::iter(journal)
                    .flat_map(|(partition, journal)| journal_commits(*partition, journal))
                    .boxed()
            }
        }))
    }

    /// How much there is to read, in the unit that [`read_file`] counts in or in commits.
    pub(super) async fn size(&self) -> Option<u64> {
        match self {
            Self::File(export) => {
                let about = std::fs::metadata(&export.path).ok()?;
                about.is_file().then_some(about.len())
            }
            Self::Server { journals, .. } => {
                let mut commits = 0;
                for (_, journal) in journals {
                    commits += journal.end().await.ok()?.0;
                }
                Some(commits)
            }
        }
    }

    fn file_commits(&self, export: &ExportFile) -> BoxStream<'_, Result<Item, AuditError>> {
        let (sender, receiver) = mpsc::channel(READ_AHEAD_MAX);
        let export = export.clone();
        tokio::task::spawn_blocking(move || {
            let taken = read_file(&export, &Arc::default(), |commit| {
                match sender.blocking_send(Ok(commit.into())) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            });
            if let Err(error) = taken {
                // whoever took the commits may be gone
                let _ = sender.blocking_send(Err(error));
            }
        });
        stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|item| (item, receiver))
        })
        .boxed()
    }

    /// Stops the server if it was started for this.
    pub(super) async fn close(self) {
        if let Self::Server {
            journals,
            witnesses,
            started: Some(server),
            copy,
            ..
        } = self
        {
            // the connection first: its end is no loss then
            drop((journals, witnesses));
            server.stop().await;
            drop(copy);
        }
    }
}

/// Those who may know of each journal of the ledger; nobody where META cannot be read.
async fn witnesses(
    nats: &Nats,
    names: &Names,
    partitions: Partitions,
) -> Vec<(Partition, Witnesses)> {
    let Ok(meta) = seatbelt_bus::meta(nats, names).await else {
        return Vec::new();
    };
    let of = |partition| Witnesses::new(nats, names, partition, &meta.ledger);
    partitions
        .iter()
        .map(|partition| (partition, of(partition)))
        .collect()
}

/// What genesis says.
pub(super) fn genesis(commit: &Commit) -> Option<&Genesis> {
    match &commit.events.first()?.event.body {
        EventBody::Genesis(genesis) => Some(genesis),
        _ => None,
    }
}

pub(super) fn partitions_of(
    partition: Partition,
    stored: &Stored,
) -> Result<Partitions, AuditError> {
    let at = stored.sequence;
    let commit = Commit::read(&stored.payload).map_err(|source| AuditError::Commit {
        partition,
        at,
        source,
    })?;
    let count = genesis(&commit).map(|genesis| Partitions::try_from(genesis.partitions));
    count
        .and_then(Result::ok)
        .ok_or_else(|| AuditError::NoLedger {
            detail: format!("partition {partition} does not begin with genesis"),
        })
}

/// Reads an export in either form, one commit after the other, until `take` has seen enough. Counts
/// in `done` the bytes that have been read.
pub(super) fn read_file(
    export: &ExportFile,
    done: &Arc<AtomicU64>,
    take: impl FnMut(Exported<'_>) -> ControlFlow<()>,
) -> Result<(), AuditError> {
    let path = &export.path;
    let file: io::Result<Box<dyn Read>> = match path.to_str() {
        Some("-") => Ok(Box::new(io::stdin())),
        _ => File::open(path).map(|file| Box::new(file) as Box<dyn Read>),
    };
    let failed = |action| move |source| file_error(action, path, source);
    let counted = CountedReader {
        from: file.map_err(failed("open"))?,
        done,
    };
    let mut reader = BufReader::with_capacity(READ_BYTES, counted);
    match reader.fill_buf().map_err(failed("read"))?.first() {
        None => Ok(()),
        Some(b'{') => read_lines(export, reader, take),
        Some(_) => read_frames(export, reader, take),
    }
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> AuditError {
    let path = path.to_owned();
    AuditError::File {
        action,
        path,
        source,
    }
}

/// Counts what is read.
struct CountedReader<'a, R> {
    from: R,
    done: &'a AtomicU64,
}

impl<R: Read> Read for CountedReader<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.done.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

fn read_frames(
    export: &ExportFile,
    reader: impl BufRead,
    mut take: impl FnMut(Exported<'_>) -> ControlFlow<()>,
) -> Result<(), AuditError> {
    let mut frames = ExportReader::new(reader);
    let path = || export.path.clone();
    loop {
        let next = frames.next_commit().map_err(|source| AuditError::Export {
            path: path(),
            source,
        })?;
        let Some(commit) = next else { break };
        if take(commit).is_break() {
            return Ok(());
        }
    }
    match frames.tells_lasts() || export.allow_open_end {
        true => Ok(()),
        false => Err(AuditError::OpenEnd { path: path() }),
    }
}

fn read_lines(
    export: &ExportFile,
    mut reader: impl BufRead,
    mut take: impl FnMut(Exported<'_>) -> ControlFlow<()>,
) -> Result<(), AuditError> {
    let path = &export.path;
    let (mut text, mut payload) = (Vec::new(), Vec::new());
    let (mut count, mut lasts, mut ended) = (0, Lasts::default(), false);
    for line in 1.. {
        text.clear();
        let read = reader
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut text);
        if read.map_err(|source| file_error("read", path, source))? == 0 {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |detail| {
            let path = path.clone();
            AuditError::Line { path, line, detail }
        };
        let commit = parse(&text, &mut payload).map_err(wrong)?;
        if ended {
            return Err(wrong("the export has ended before this line".to_owned()));
        }
        if commit.partition.0 == END {
            ended = true;
            if commit.sequence.0 != count || commit.payload != lasts.encode() {
                return Err(wrong(
                    "the end does not fit the commits before it: export again".to_owned(),
                ));
            }
            continue;
        }
        count += 1;
        lasts.note(commit.partition.0, commit.sequence.0, commit.payload);
        if take(commit).is_break() {
            return Ok(());
        }
    }
    if ended || export.allow_open_end {
        return Ok(());
    }
    Err(AuditError::OpenEnd { path: path.clone() })
}

/// Reads a line; its payload is put into `payload`.
fn parse<'a>(text: &[u8], payload: &'a mut Vec<u8>) -> Result<Exported<'a>, String> {
    let line: Line<'_> = serde_json::from_slice(text)
        .map_err(|error| format!("not a commit as `audit export` writes it: {error}"))?;
    payload.resize(line.payload.len() / 2, 0);
    hex::decode_to_slice(line.payload.as_bytes(), payload)
        .map_err(|error| format!("the payload is not hexadecimal: {error}"))?;
    Ok(Exported {
        partition: Partition(line.partition),
        sequence: Sequence(line.sequence),
        payload,
    })
}
