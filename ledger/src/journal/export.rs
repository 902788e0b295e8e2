//! An exported copy of a ledger's journals: every commit with its exact bytes, one frame each.
//!
//! The file begins with [`MAGIC`], whose last digit is the format's version. A frame is one byte
//! partition, eight bytes sequence, four bytes length (big endian) and the payload. Commits of one
//! partition are in order; partitions take turns. The last frame is no commit: it carries
//! [`END`] for a partition and the number of frames before it for a sequence, so a copy that was cut
//! anywhere is known for one. Its payload names each partition (one byte) with the sequence (eight) and
//! the SHA-256 (32) of its last commit, which no later commit chains to. Version 1 had no such payload;
//! it is still read, and says less: a byte changed in a partition's last commit may stay unseen where
//! nothing decides on it.
//!
//! Only one frame at a time is in memory, always in the same room, and the last commit of each
//! partition. What a commit says is not looked at here.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read, Write},
};

use seatbelt_schemas::{
    commit::{COMMIT_BYTES_MAX, ChainHash},
    position::{PARTITIONS_MAX, Partition},
};
use thiserror::Error;

use super::Sequence;

/// How an export begins.
pub const MAGIC: &[u8; MAGIC_BYTES] = b"SEATBELT-EXPORT-2\n";
/// How one began whose end does not tell the last commits.
const MAGIC_OPEN: &[u8; MAGIC_BYTES] = b"SEATBELT-EXPORT-1\n";
const MAGIC_BYTES: usize = 18;
/// What stands for a partition in the last frame.
pub const END: u8 = u8::MAX;
/// Largest message that an export holds. A commit is far smaller; what is no commit and was skipped need
/// not be.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Bytes before each payload.
const HEAD_BYTES: usize = 13;
/// Bytes of the end for each partition.
const LAST_BYTES: usize = 1 + 8 + 32;

const _: () = assert!(PARTITIONS_MAX < END, "no partition has this number");
const _: () = assert!(
    PARTITIONS_MAX as usize * LAST_BYTES <= COMMIT_BYTES_MAX,
    "the end is no larger than a commit"
);

/// The last commit of each partition so far. Kept whole and hashed at the end: hashing every commit would
/// cost whoever reads as much as reading it.
#[derive(Debug, Default)]
pub struct Lasts(BTreeMap<u8, (u64, Vec<u8>)>);

impl Lasts {
    /// Notes the next commit of a partition.
    pub fn note(&mut self, partition: u8, sequence: u64, payload: &[u8]) {
        let (last, bytes) = self.0.entry(partition).or_default();
        *last = sequence;
        bytes.clear();
        bytes.extend_from_slice(payload);
    }

    /// As the end of an export has them: for each partition its number, the sequence of its last commit,
    /// big-endian, and the SHA-256 of that.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() * LAST_BYTES);
        for (partition, (sequence, payload)) in &self.0 {
            bytes.push(*partition);
            bytes.extend_from_slice(&sequence.to_be_bytes());
            bytes.extend_from_slice(&ChainHash::of(payload).0);
        }
        bytes
    }
}

/// Writes an export. Without [`ExportWriter::finish`] the copy is incomplete, and says so when read.
#[derive(Debug)]
pub struct ExportWriter<W> {
    to: W,
    frames: u64,
    lasts: Lasts,
}

impl<W: Write> ExportWriter<W> {
    /// Begins an export.
    pub fn begin(mut to: W) -> io::Result<Self> {
        to.write_all(MAGIC)?;
        Ok(Self {
            to,
            frames: 0,
            lasts: Lasts::default(),
        })
    }

    /// Adds one commit.
    pub fn commit(
        &mut self,
        partition: Partition,
        sequence: Sequence,
        payload: &[u8],
    ) -> io::Result<()> {
        self.frames += 1;
        self.lasts.note(partition.0, sequence.0, payload);
        self.frame(partition.0, sequence.0, payload)
    }

    /// Ends the export and gives back what it was written to, not flushed.
    pub fn finish(mut self) -> io::Result<W> {
        let lasts = self.lasts.encode();
        self.frame(END, self.frames, &lasts)?;
        Ok(self.to)
    }

    fn frame(&mut self, partition: u8, number: u64, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut head = [0; HEAD_BYTES];
        head[0] = partition;
        head[1..9].copy_from_slice(&number.to_be_bytes());
        head[9..].copy_from_slice(&length.to_be_bytes());
        self.to.write_all(&head)?;
        self.to.write_all(payload)
    }
}

/// Why an export cannot be read on.
#[derive(Debug, Error)]
pub enum ExportError {
    /// Reading failed: try again.
    #[error("cannot read on at byte {offset}")]
    Io {
        /// Where, from the start of the file.
        offset: u64,
        #[source]
        source: io::Error,
    },
    /// Not an export of this version: give another file, or use a newer build.
    #[error("the file does not begin as an export of version 1 or 2")]
    Foreign,
    /// The copy is cut: export again.
    #[error("the copy is cut off at byte {offset}, inside or before a frame: export again")]
    Truncated {
        /// Where the file ends.
        offset: u64,
    },
    /// A frame is none: the copy was changed after it was written.
    #[error("the frame at byte {offset} is damaged: {detail}")]
    Damaged {
        /// Where the frame begins.
        offset: u64,
        /// What is wrong with it.
        detail: String,
    },
}

/// Reads an export, frame by frame.
#[derive(Debug)]
pub struct ExportReader<R> {
    from: R,
    /// How many bytes have been read.
    offset: u64,
    frames: u64,
    /// What the end must tell; `None` for an export of version 1.
    lasts: Option<Lasts>,
    ended: bool,
    /// What was read last; kept for its room.
    bytes: Vec<u8>,
}

/// A commit as an export has it, until the next is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported<'a> {
    pub partition: Partition,
    pub sequence: Sequence,
    /// Its bytes, as stored.
    pub payload: &'a [u8],
}

impl<R: BufRead> ExportReader<R> {
    /// Reads from the very start of an export.
    pub fn new(from: R) -> Self {
        Self {
            from,
            offset: 0,
            frames: 0,
            lasts: None,
            ended: false,
            bytes: Vec::new(),
        }
    }

    /// The next commit; `None` at the end of a whole export. After an error nothing more is read.
    pub fn next_commit(&mut self) -> Result<Option<Exported<'_>>, ExportError> {
        if self.ended {
            return Ok(None);
        }
        let next = self.begin().and_then(|()| self.frame());
        self.ended = !matches!(next, Ok(Some(_)));
        Ok(next?.map(|(partition, sequence)| Exported {
            partition,
            sequence,
            payload: &self.bytes,
        }))
    }

    /// Whether its end tells the last commits: one of version 1 does not, and may have lost them.
    pub fn tells_lasts(&self) -> bool {
        self.lasts.is_some()
    }

    fn begin(&mut self) -> Result<(), ExportError> {
        if self.offset > 0 {
            return Ok(());
        }
        self.read(MAGIC.len())?;
        match self.bytes.len() {
            // as far as it goes it may be one
            1..MAGIC_BYTES
                if [MAGIC, MAGIC_OPEN]
                    .iter()
                    .any(|magic| magic.starts_with(&self.bytes)) =>
            {
                Err(self.truncated())
            }
            _ if self.bytes == MAGIC => {
                self.lasts = Some(Lasts::default());
                Ok(())
            }
            _ if self.bytes == MAGIC_OPEN => Ok(()),
            _ => Err(ExportError::Foreign),
        }
    }

    /// Reads a frame; its payload is what was read last.
    fn frame(&mut self) -> Result<Option<(Partition, Sequence)>, ExportError> {
        let offset = self.offset;
        self.read(HEAD_BYTES)?;
        let head = <&[u8; HEAD_BYTES]>::try_from(&self.bytes[..]);
        let (partition, number, length) = parts(head.map_err(|_| self.truncated())?);
        if partition == END {
            return self.end(offset, number, length).map(|()| None);
        }
        let damaged = |detail| Err(ExportError::Damaged { offset, detail });
        if partition >= PARTITIONS_MAX {
            return damaged(format!("partition {partition} is not possible"));
        }
        if length > MESSAGE_BYTES_MAX {
            return damaged(format!(
                "{length} bytes instead of at most {MESSAGE_BYTES_MAX}"
            ));
        }
        self.read(length)?;
        if self.bytes.len() < length {
            return Err(self.truncated());
        }
        self.frames += 1;
        if let Some(lasts) = &mut self.lasts {
            lasts.note(partition, number, &self.bytes);
        }
        Ok(Some((Partition(partition), Sequence(number))))
    }

    fn end(&mut self, offset: u64, frames: u64, length: usize) -> Result<(), ExportError> {
        let damaged = |detail| Err(ExportError::Damaged { offset, detail });
        let lasts = self.lasts.as_ref().map(Lasts::encode).unwrap_or_default();
        if length != lasts.len() || frames != self.frames {
            let read = self.frames;
            return damaged(format!(
                "it ends an export of {frames} commits, {read} were read"
            ));
        }
        self.read(length)?;
        if self.bytes.len() < length {
            return Err(self.truncated());
        }
        if self.bytes != lasts {
            let detail = "the last commit of a partition is not the one that was exported";
            return damaged(detail.to_owned());
        }
        let offset = self.offset;
        self.read(1)?;
        if self.bytes.is_empty() {
            return Ok(());
        }
        let detail = "it follows the end of the export".to_owned();
        Err(ExportError::Damaged { offset, detail })
    }

    fn truncated(&self) -> ExportError {
        let offset = self.offset;
        ExportError::Truncated { offset }
    }

    /// Reads so many bytes, or fewer where the file ends.
    fn read(&mut self, length: usize) -> Result<(), ExportError> {
        self.bytes.clear();
        let from = self.from.by_ref();
        let read = from.take(length as u64).read_to_end(&mut self.bytes);
        self.offset += self.bytes.len() as u64;
        let offset = self.offset;
        read.map(drop)
            .map_err(|source| ExportError::Io { offset, source })
    }
}

/// What stands before a payload.
fn parts(head: &[u8; HEAD_BYTES]) -> (u8, u64, usize) {
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |number: u64, byte| number << 8 | u64::from(*byte))
    };
    let length = usize::try_from(number(&head[9..])).expect("four bytes fit a length");
    (head[0], number(&head[1..9]), length)
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;

    type Owned = (Partition, Sequence, Vec<u8>);

    fn commits() -> Vec<Owned> {
        let of =
            |partition, number, payload: Vec<u8>| (Partition(partition), Sequence(number), payload);
        vec![
            of(0, 1, vec![1, 2, 3]),
            of(1, 1, Vec::new()),
            of(0, 2, vec![7; COMMIT_BYTES_MAX]),
            of(99, u64::MAX, vec![9]),
        ]
    }

    fn export() -> Vec<u8> {
        let mut writer = ExportWriter::begin(Vec::new()).unwrap();
        for (partition, sequence, payload) in commits() {
            writer.commit(partition, sequence, &payload).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(mut bytes: &[u8]) -> (Vec<Owned>, Result<(), ExportError>) {
        // a small buffer, so that frames begin within one read and end in another
        let mut reader = ExportReader::new(BufReader::with_capacity(100, &mut bytes));
        let mut found = Vec::new();
        loop {
            match reader.next_commit() {
                Ok(Some(commit)) => {
                    let payload = commit.payload.to_vec();
                    found.push((commit.partition, commit.sequence, payload));
                }
                Ok(None) => return (found, Ok(())),
                Err(error) => {
                    assert!(
                        matches!(reader.next_commit(), Ok(None)),
                        "nothing follows an error"
                    );
                    return (found, Err(error));
                }
            }
        }
    }

    #[test]
    fn an_export_reads_back_as_it_was_written() {
        let (found, end) = read(&export());
        end.unwrap();
        assert_eq!(found, commits());
        let none = ExportWriter::begin(Vec::new()).unwrap().finish().unwrap();
        assert!(matches!(read(&none), (found, Ok(())) if found.is_empty()));
    }

    #[test]
    fn frames_that_begin_within_one_read_and_end_in_the_next_keep_their_bytes() {
        let mut writer = ExportWriter::begin(Vec::new()).unwrap();
        let payload =
            |number: u64| vec![number.to_be_bytes()[7]; 40_000 + usize::try_from(number).unwrap()];
        for number in 1..=100 {
            writer
                .commit(Partition(0), Sequence(number), &payload(number))
                .unwrap();
        }
        let (found, end) = read(&writer.finish().unwrap());
        end.unwrap();
        for (number, (_, sequence, found)) in (1..).zip(&found) {
            assert_eq!(
                (*sequence, &found[..]),
                (Sequence(number), &payload(number)[..])
            );
        }
        assert_eq!(found.len(), 100);
    }

    #[test]
    fn an_export_that_was_cut_anywhere_says_where() {
        let whole = export();
        let ends = (1..200).chain(whole.len() - 200..whole.len());
        for end in ends {
            let (found, error) = read(&whole[..end]);
            assert!(
                matches!(error, Err(ExportError::Truncated { offset }) if offset == end as u64),
                "cut at {end}: {error:?}"
            );
            assert_eq!(found, commits()[..found.len()], "what came before is read");
        }
        assert!(
            matches!(read(&[]).1, Err(ExportError::Foreign)),
            "nothing is no export"
        );
    }

    #[test]
    fn what_is_no_export_is_not_read() {
        for foreign in [&b"{\"partition\":0}\n"[..], b"SEATBELT-EXPORT-3\n", b"x"] {
            assert!(
                matches!(read(foreign).1, Err(ExportError::Foreign)),
                "{foreign:?}"
            );
        }
    }

    /// Whatever a commit says, its bytes are told by the end, or by the commit that follows it.
    #[test]
    fn a_bit_changed_in_the_last_commit_of_any_partition_is_found() {
        let whole = export();
        let end = whole.len() - HEAD_BYTES - 3 * LAST_BYTES;
        let third = MAGIC.len() + 3 * HEAD_BYTES + 3;
        let last_of_1 = MAGIC.len() + HEAD_BYTES + 3;
        let places = (third..third + 300)
            .chain(end - 300..whole.len())
            .chain(last_of_1..last_of_1 + HEAD_BYTES);
        for place in places {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            assert!(read(&bytes).1.is_err(), "byte {place}");
        }
    }

    #[test]
    fn an_export_of_version_1_is_still_read() {
        let whole = export();
        let mut open = whole[..whole.len() - 3 * LAST_BYTES].to_vec();
        open[..MAGIC_BYTES].copy_from_slice(MAGIC_OPEN);
        let length = open.len() - 4;
        open[length..].fill(0);
        let (found, end) = read(&open);
        end.unwrap();
        assert_eq!(found, commits());
    }

    #[track_caller]
    fn damage_is_found_at(place: u64, change: impl Fn(&mut Vec<u8>)) {
        let mut bytes = export();
        change(&mut bytes);
        let error = read(&bytes).1;
        assert!(
            matches!(error, Err(ExportError::Damaged { offset, .. }) if offset == place),
            "{error:?}"
        );
    }

    #[test]
    fn a_damaged_frame_is_found_where_it_begins() {
        let first = MAGIC.len();
        let second = first + HEAD_BYTES + 3;
        let last = export().len() - HEAD_BYTES - 3 * LAST_BYTES;
        damage_is_found_at(second as u64, |bytes| bytes[second] = 100);
        damage_is_found_at(second as u64, |bytes| bytes[second + 9] = 1);
        damage_is_found_at(last as u64, |bytes| bytes[last + 8] = 3);
        damage_is_found_at(export().len() as u64, |bytes| bytes.push(0));
        // a whole frame taken out is known from the count
        damage_is_found_at((last - HEAD_BYTES) as u64, |bytes| {
            bytes.drain(second..second + HEAD_BYTES);
        });
    }
}
