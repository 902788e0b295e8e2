//! `audit export`: every commit with its exact bytes, as binary frames or one JSON object a line.

use std::{
    borrow::Cow,
    fs::File,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use futures::TryStreamExt;
use seatbelt_ledger::journal::export::{END, ExportWriter, Lasts};

use super::{
    AuditError,
    source::{Item, Line, Source},
};

/// Bytes kept back before the file is written to.
const WRITE_BYTES: usize = 1 << 18;

pub(super) async fn export(
    source: &Source,
    output: Option<PathBuf>,
    json: bool,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let Some(path) = output else {
        write(source, json, out, AuditError::Output).await?;
        return Ok(ExitCode::SUCCESS);
    };
    let failed = |source| AuditError::File {
        action: "write",
        path: path.clone(),
        source,
    };
    // an earlier export is evidence: it is never overwritten
    let file = File::create_new(&path).map_err(failed)?;
    let mut file = BufWriter::with_capacity(WRITE_BYTES, file);
    write(source, json, &mut file, failed).await?;
    let file = file
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

/// An export that breaks off has no end: it is known for incomplete.
async fn write(
    source: &Source,
    json: bool,
    out: &mut (dyn Write + Send),
    failed: impl Fn(io::Error) -> AuditError,
) -> Result<(), AuditError> {
    let mut commits = source.commits_in_turns();
    if json {
        let (mut count, mut lasts) = (0, Lasts::default());
        while let Some(Item { partition, stored }) = commits.try_next().await? {
            count += 1;
            lasts.note(partition.0, stored.sequence.0, &stored.payload);
            write_line((partition.0, stored.sequence.0), &stored.payload, out).map_err(&failed)?;
        }
        return write_line((END, count), &lasts.encode(), out).map_err(failed);
    }
    let mut frames = ExportWriter::begin(out).map_err(&failed)?;
    while let Some(Item { partition, stored }) = commits.try_next().await? {
        frames
            .commit(partition, stored.sequence, &stored.payload)
            .map_err(&failed)?;
    }
    frames.finish().map(drop).map_err(failed)
}

/// One commit; or the end, as the last frame of a binary export has it.
fn write_line(
    (partition, sequence): (u8, u64),
    payload: &[u8],
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    let line = Line {
        partition,
        sequence,
        payload: Cow::Owned(hex::encode(payload)),
    };
    let mut text = serde_json::to_vec(&line).expect("numbers and hexadecimal encode to JSON");
    text.push(b'\n');
    out.write_all(&text)
}
