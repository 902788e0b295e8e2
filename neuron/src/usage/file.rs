//! The outbox file: records one after another, each with its length and a check of its bytes.
//!
//! Opening reads what is pending and writes it to a fresh file, so the file holds no more than what
//! came since, and a torn end is gone. One process at a time: a lock file says so.
//!
//! A file that could not be written is not written on: what is at its end is not known. A fresh one takes its
//! place as soon as the disk takes it, with all that is pending, which memory has.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::unix_ms;

const FILE: &str = "usage.outbox";
const FRESH_FILE: &str = "usage.outbox.new";
const LOCK_FILE: &str = "usage.lock";
const CHECK_BYTES: usize = 8;
/// Largest record that is looked for behind damage: an event is some hundred bytes, and its ids and names are bounded.
const RECORD_BYTES_LIKELY: usize = 64 * 1024;
const HEAD_BYTES: usize = 4 + CHECK_BYTES;
/// A file as large as this is written anew with only what is pending, if that is less than half of it:
/// so what is written anew was written once before, on average.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const GROWTH_MAX: u64 = 2;

/// One line of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// A request is about to run; the event is what to report if its end is never written.
    Begun { n: u64, id: String, event: Bytes },
    /// A request ended with this event.
    Ended { n: u64, id: String, event: Bytes },
    /// The sink took the event.
    Taken { n: u64 },
}

/// An event waiting for the sink, or for its request to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) id: String,
    pub(super) event: Bytes,
    pub(super) ended: bool,
}

/// The open file and what is pending in it.
#[derive(Debug)]
pub(super) struct OutboxFile {
    folder: PathBuf,
    file: File,
    bytes: u64,
    /// Its size when it was fresh.
    fresh_bytes: u64,
    /// All that was written to it is known to be there.
    sound: bool,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) next: u64,
    lock: File,
}

impl OutboxFile {
    /// Opens the outbox in `folder`. A request that had begun and never ended counts as ended.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let lock = locked(folder)?;
        let mut pending = BTreeMap::new();
        let next = replay(folder, &mut pending)?;
        for event in pending.values_mut() {
            event.ended = true;
        }
        let (file, bytes) = write_fresh(folder, &pending)?;
        Ok(Self {
            folder: folder.to_owned(),
            file,
            bytes,
            fresh_bytes: bytes,
            sound: true,
            pending,
            next,
            lock,
        })
    }

    /// Writes records in one go; with `sync` they are on disk when this returns. After an error they are
    /// pending all the same, and on disk once [`Self::heal`] has worked.
    pub(super) fn append(&mut self, records: &[Record], sync: bool) -> io::Result<()> {
        for record in records {
            apply(record.clone(), &mut self.pending);
        }
        if !self.sound {
            return Err(io::Error::other("the file waits to be written anew"));
        }
        let mut bytes = Vec::new();
        for record in records {
            frame(record, &mut bytes);
        }
        self.sound = false;
        if is_deleted(&self.file)? {
            tracing::warn!(folder = %self.folder.display(), "the usage outbox was deleted beneath this neuron: it is written anew");
            return self.renew();
        }
        self.file.write_all(&bytes)?;
        if sync {
            self.file.sync_data()?;
        }
        self.sound = true;
        self.bytes += bytes.len() as u64;
        if self.bytes > FILE_BYTES_MAX.max(self.fresh_bytes.saturating_mul(GROWTH_MAX))
            && let Err(error) = self.renew()
        {
            // All is in the old file, which can grow on.
            tracing::warn!(%error, "the usage outbox was not written anew, and grows");
            self.fresh_bytes = self.bytes;
        }
        Ok(())
    }

    /// Puts a fresh file in the place of one that could not be written.
    pub(super) fn heal(&mut self) -> io::Result<()> {
        self.renew()
    }

    fn renew(&mut self) -> io::Result<()> {
        if is_deleted(&self.lock)? {
            self.lock = locked(&self.folder)?;
        }
        let (file, bytes) = write_fresh(&self.folder, &self.pending)?;
        (self.file, self.bytes, self.fresh_bytes) = (file, bytes, bytes);
        self.sound = true;
        Ok(())
    }
}

/// The folder, made where it is missing, for this process alone.
fn locked(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(LOCK_FILE))?;
    lock.try_lock().map_err(|_| {
        let words =
            "another neuron uses this outbox: give each neuron a data_dir of its own in [nats]";
        io::Error::new(io::ErrorKind::WouldBlock, words)
    })?;
    Ok(lock)
}

/// Whether an open file has no name any more: what is written to it nobody will find.
fn is_deleted(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.nlink() == 0)
}

/// Reads the file into `pending`; gives the next free number.
fn replay(folder: &Path, pending: &mut BTreeMap<u64, Pending>) -> io::Result<u64> {
    let path = folder.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let (mut rest, mut next) = (bytes.as_slice(), 0);
    let mut damaged = Vec::new();
    while !rest.is_empty() {
        let Some((record, after)) = parse(rest) else {
            let lost = rest.len() - behind_damage(rest).len();
            damaged.extend_from_slice(&rest[..lost]);
            rest = &rest[lost..];
            continue;
        };
        next = next.max(number(&record) + 1);
        apply(record, pending);
        rest = after;
    }
    if !damaged.is_empty() {
        put_aside(folder, &damaged)?;
    }
    Ok(next)
}

/// Keeps what cannot be read for whoever wants to look. A crash in the middle of a write leaves a torn end, which
/// nobody was told of; damage before the end may be an event that is never reported.
fn put_aside(folder: &Path, damaged: &[u8]) -> io::Result<()> {
    let aside = folder.join(format!("{FILE}.torn-{}", unix_ms()));
    fs::write(&aside, damaged).inspect_err(|_| {
        // On a disk that is full each start would leave another, and empty.
        let _ = fs::remove_file(&aside);
    })?;
    tracing::warn!(
        bytes = damaged.len(), kept = %aside.display(),
        "the usage outbox had parts that cannot be read: after a crash a torn end is nothing; else see to the disk, since a usage event may be lost, and its reservation is then charged at its hold"
    );
    Ok(())
}

/// What follows the damage that these bytes begin with: from the next record that is whole. Nothing else passes
/// its check by chance.
fn behind_damage(bytes: &[u8]) -> &[u8] {
    let starts = (1..bytes.len()).map(|at| &bytes[at..]);
    let mut whole = starts.filter(|rest| is_plausible(rest) && parse(rest).is_some());
    whole.next().unwrap_or_default()
}

fn write_fresh(folder: &Path, pending: &BTreeMap<u64, Pending>) -> io::Result<(File, u64)> {
    let mut bytes = Vec::new();
    for (n, Pending { id, event, ended }) in pending {
        let (n, id, event) = (*n, id.clone(), event.clone());
        let record = if *ended {
            Record::Ended { n, id, event }
        } else {
            Record::Begun { n, id, event }
        };
        frame(&record, &mut bytes);
    }
    let fresh = folder.join(FRESH_FILE);
    let file = written(&fresh, &bytes).inspect_err(|_| {
        // On a disk that is full it would be in the way of others.
        let _ = fs::remove_file(&fresh);
    })?;
    fs::rename(&fresh, folder.join(FILE))?;
    File::open(folder)?.sync_all()?;
    Ok((file, bytes.len() as u64))
}

fn written(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(file)
}

fn apply(record: Record, pending: &mut BTreeMap<u64, Pending>) {
    match record {
        Record::Begun { n, id, event } => drop(pending.insert(
            n,
            Pending {
                id,
                event,
                ended: false,
            },
        )),
        Record::Ended { n, id, event } => drop(pending.insert(
            n,
            Pending {
                id,
                event,
                ended: true,
            },
        )),
        Record::Taken { n } => drop(pending.remove(&n)),
    }
}

fn number(record: &Record) -> u64 {
    match record {
        Record::Begun { n, .. } | Record::Ended { n, .. } | Record::Taken { n } => *n,
    }
}

fn frame(record: &Record, to: &mut Vec<u8>) {
    let body = rmp_serde::to_vec_named(record).expect("a record encodes to MessagePack");
    let length = u32::try_from(body.len()).expect("a record is far below 4 GiB");
    to.extend_from_slice(&length.to_le_bytes());
    to.extend_from_slice(&check(&body));
    to.extend_from_slice(&body);
}

/// Whether these bytes begin with the length of a record, so that its check is worth its time.
fn is_plausible(bytes: &[u8]) -> bool {
    let length = bytes
        .first_chunk()
        .map(|length| u32::from_le_bytes(*length));
    length.is_some_and(|length| length as usize <= RECORD_BYTES_LIKELY)
}

/// The first record of `bytes` and what follows; none at the end or at damage.
fn parse(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (length, expected) = head.split_at(4);
    let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
    let (body, after) = rest.split_at_checked(length)?;
    if check(body) != expected {
        return None;
    }
    Some((rmp_serde::from_slice(body).ok()?, after))
}

fn check(body: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::digest(body);
    std::array::from_fn(|n| digest[n])
}

#[cfg(test)]
impl OutboxFile {
    /// From here on the disk is full, until `heal` can write a fresh file.
    pub(super) fn fill_disk(&mut self) {
        self.file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        fs::create_dir(self.folder.join(FRESH_FILE)).unwrap();
    }

    pub(super) fn free_disk(folder: &Path) {
        fs::remove_dir(folder.join(FRESH_FILE)).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(n: u64) -> Record {
        Record::Ended {
            n,
            id: format!("id-{n}"),
            event: Bytes::from(vec![7; 40]),
        }
    }

    fn begun(n: u64) -> Record {
        Record::Begun {
            n,
            id: format!("id-{n}"),
            event: Bytes::from_static(b"lost"),
        }
    }

    #[test]
    fn what_was_not_taken_is_pending_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = OutboxFile::open(folder.path()).unwrap();
        file.append(
            &[begun(0), ended(0), ended(1), Record::Taken { n: 0 }],
            true,
        )
        .unwrap();
        drop(file);
        let file = OutboxFile::open(folder.path()).unwrap();
        assert_eq!(file.pending.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(file.next, 2);
    }

    #[test]
    fn damage_in_the_middle_costs_no_other_record() {
        for (damaged, lost) in [(20, 1), (0, 1), (3, 1), (5, 1)] {
            let folder = tempfile::tempdir().unwrap();
            let mut file = OutboxFile::open(folder.path()).unwrap();
            let mut record = Vec::new();
            frame(&ended(0), &mut record);
            let records: Vec<Record> = (0..9).map(ended).collect();
            file.append(&records, true).unwrap();
            drop(file);
            let path = folder.path().join(FILE);
            let mut bytes = fs::read(&path).unwrap();
            // within the second record: its body, its length, its check
            bytes[record.len() + damaged] ^= 0x10;
            fs::write(&path, bytes).unwrap();
            let file = OutboxFile::open(folder.path()).unwrap();
            let left: Vec<u64> = file.pending.keys().copied().collect();
            assert_eq!(left.len(), 9 - lost, "{damaged}: {left:?}");
            assert!(!left.contains(&1) && file.next == 9);
            let names = fs::read_dir(folder.path()).unwrap();
            let aside = names.filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().contains(".torn-")
            });
            assert_eq!(aside.count(), 1);
        }
    }

    #[test]
    fn an_outbox_that_is_deleted_beneath_its_neuron_is_written_anew() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("data/outbox");
        let mut file = OutboxFile::open(&folder).unwrap();
        file.append(&[begun(0), ended(1)], true).unwrap();
        fs::remove_dir_all(parent.path().join("data")).unwrap();
        file.append(&[ended(0)], true).unwrap();
        assert!(OutboxFile::open(&folder).is_err(), "it is locked again");
        file.append(&[Record::Taken { n: 1 }], false).unwrap();
        drop(file);
        let file = OutboxFile::open(&folder).unwrap();
        assert_eq!(file.pending.keys().copied().collect::<Vec<_>>(), [0]);
        assert!(file.pending[&0].event.len() == 40);
    }

    #[test]
    fn a_request_that_never_ended_is_reported_as_it_was_begun() {
        let folder = tempfile::tempdir().unwrap();
        OutboxFile::open(folder.path())
            .unwrap()
            .append(&[begun(3)], false)
            .unwrap();
        let file = OutboxFile::open(folder.path()).unwrap();
        let expected = Pending {
            id: "id-3".to_owned(),
            event: Bytes::from_static(b"lost"),
            ended: true,
        };
        assert_eq!(file.pending[&3], expected);
    }

    #[test]
    fn a_torn_end_at_any_byte_loses_only_the_torn_record() {
        let folder = tempfile::tempdir().unwrap();
        OutboxFile::open(folder.path())
            .unwrap()
            .append(&[ended(0), ended(1)], true)
            .unwrap();
        let whole = fs::read(folder.path().join(FILE)).unwrap();
        let first = whole.len() / 2;
        for cut in first..whole.len() {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(FILE), &whole[..cut]).unwrap();
            let file = OutboxFile::open(folder.path()).unwrap();
            assert_eq!(file.pending.len(), 1, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        let mut bytes = Vec::new();
        frame(&ended(1), &mut bytes);
        assert!(parse(&bytes).is_some());
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            assert!(parse(&bad).is_none(), "byte {at}");
        }
    }

    #[test]
    fn the_file_is_written_anew_before_it_grows_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = OutboxFile::open(folder.path()).unwrap();
        let large = |n| Record::Ended {
            n,
            id: String::new(),
            event: Bytes::from(vec![0; 1 << 20]),
        };
        for n in 0..20 {
            file.append(&[large(n), Record::Taken { n }], false)
                .unwrap();
        }
        assert!(fs::metadata(folder.path().join(FILE)).unwrap().len() < FILE_BYTES_MAX);
        file.append(&[ended(99)], false).unwrap();
        drop(file);
        assert_eq!(OutboxFile::open(folder.path()).unwrap().pending.len(), 1);
    }

    #[test]
    fn what_is_pending_is_not_written_anew_with_every_batch() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = OutboxFile::open(folder.path()).unwrap();
        let mut written = 0;
        for n in 0..64 {
            let before = file.bytes;
            let large = Record::Ended {
                n,
                id: String::new(),
                event: Bytes::from(vec![0; 1 << 20]),
            };
            file.append(&[large], false).unwrap();
            written += if file.bytes == file.fresh_bytes {
                file.bytes
            } else {
                file.bytes - before
            };
        }
        let pending = 64 << 20;
        assert!(
            written <= 3 * pending,
            "{} MiB written for 64",
            written >> 20
        );
        drop(file);
        assert_eq!(OutboxFile::open(folder.path()).unwrap().pending.len(), 64);
    }

    #[test]
    fn a_disk_that_was_full_loses_nothing_once_it_is_freed() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = OutboxFile::open(folder.path()).unwrap();
        file.append(&[ended(0), begun(1)], true).unwrap();
        file.fill_disk();
        assert!(file.append(&[ended(1)], true).is_err());
        assert!(
            file.append(&[ended(2), Record::Taken { n: 0 }], true)
                .is_err()
        );
        assert!(file.heal().is_err());
        OutboxFile::free_disk(folder.path());
        file.heal().unwrap();
        file.append(&[ended(3)], true).unwrap();
        drop(file);
        let file = OutboxFile::open(folder.path()).unwrap();
        assert_eq!(file.pending.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(file.pending[&1].id, "id-1");
    }

    #[test]
    fn two_cannot_share_an_outbox() {
        let folder = tempfile::tempdir().unwrap();
        let _first = OutboxFile::open(folder.path()).unwrap();
        assert_eq!(
            OutboxFile::open(folder.path()).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }
}
