//! A copy of a data folder that cannot be written to, for a server that has to write where it reads: a backup on a
//! read-only disk is audited without being touched.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use tempfile::TempDir;

use super::AuditError;
use crate::config;

/// What of a data folder the server reads.
const STREAMS: &str = "jetstream";

/// Copies what the server reads into a new folder of our own, gone when dropped. Says so: it takes time and room.
pub(super) fn copy(nats: &config::NatsConfig) -> Result<TempDir, AuditError> {
    let folder = tempfile::Builder::new().prefix("seatbelt-audit-").tempdir();
    let folder =
        folder.map_err(|source| failed("make a folder in", &std::env::temp_dir(), source))?;
    let (from, to) = (nats.data_dir.join(STREAMS), folder.path().join(STREAMS));
    // the line is only for people
    let _ = writeln!(
        io::stderr(),
        "{} cannot be written to: reading a copy of it in {} (TMPDIR says where)",
        nats.data_dir.display(),
        folder.path().display()
    );
    copy_all(&from, &to).map_err(|source| failed("copy", &from, source))?;
    Ok(folder)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> AuditError {
    let path = path.to_owned();
    AuditError::File {
        action,
        path,
        source,
    }
}

/// Folders and files; links are not followed, for the server makes none.
fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_all(&entry.path(), &to)?;
        } else if kind.is_file() {
            // the bytes alone: what may not be written there may be written here
            let mut file = fs::File::create_new(&to)?;
            io::copy(&mut fs::File::open(entry.path())?, &mut file)?;
        }
    }
    Ok(())
}
