//! `audit export`: every commit with its exact bytes, one JSON object a line.

use std::{
    borrow::Cow,
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use futures::TryStreamExt;

use super::{
    AuditError,
    source::{Line, Source},
};

pub(super) async fn export(
    source: &Source,
    output: Option<PathBuf>,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let Some(path) = output else {
        write(source, out, AuditError::Output).await?;
        return Ok(ExitCode::SUCCESS);
    };
    let failed = |source| AuditError::File {
        action: "write",
        path: path.clone(),
        source,
    };
    // an earlier export is evidence: it is never overwritten
    let mut file = BufWriter::new(File::create_new(&path).map_err(failed)?);
    write(source, &mut file, failed).await?;
    let file = file
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}

async fn write(
    source: &Source,
    out: &mut (dyn Write + Send),
    failed: impl Fn(std::io::Error) -> AuditError,
) -> Result<(), AuditError> {
    let mut commits = source.commits_in_turns();
    while let Some(item) = commits.try_next().await? {
        let line = Line {
            partition: item.partition.0,
            sequence: item.stored.sequence.0,
            payload: Cow::Owned(hex::encode(&item.stored.payload)),
        };
        let mut text = serde_json::to_vec(&line).expect("numbers and hexadecimal encode to JSON");
        text.push(b'\n');
        out.write_all(&text).map_err(&failed)?;
    }
    Ok(())
}
