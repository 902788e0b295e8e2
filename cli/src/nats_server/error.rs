//! Why the embedded server is not there, by what the operator does next.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// The embedded server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum NatsServerError {
    /// Install it, or say where it is.
    #[error(
        "no nats-server found (looked at {looked}): run `make setup`, set nats.server or SEATBELT_NATS_SERVER \
         to the program's file, or set nats.url to use a running server"
    )]
    BinaryMissing {
        /// The places looked at.
        looked: String,
    },
    /// Stop the other one, or take another folder.
    #[error("{} is in use by process {holder}: stop it first, or choose another nats.data_dir", data_dir.display())]
    InUse {
        /// The folder.
        data_dir: PathBuf,
        /// Who has it, as far as known.
        holder: String,
    },
    /// Repair the folder or its permissions.
    #[error("could not {action} {}", path.display())]
    Folder {
        /// What was attempted.
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Take a folder with a plainer name.
    #[error("{} cannot stand in a nats-server configuration: use a path of printable UTF-8 text", path.display())]
    UnusablePath {
        /// The folder.
        path: PathBuf,
    },
    /// Take names that are plain words.
    #[error(
        "{what} {name:?} cannot stand in a nats-server configuration: use letters, digits, `_` and `-`"
    )]
    UnusableName {
        /// What is named.
        what: &'static str,
        name: String,
    },
    /// Mend the program file.
    #[error("could not run {}", binary.display())]
    Spawn {
        /// The program.
        binary: PathBuf,
        #[source]
        source: io::Error,
    },
    /// End the process by hand.
    #[error(
        "nats-server process {pid} is left over from an earlier run and does not end: stop it by hand"
    )]
    Stale {
        /// The process.
        pid: i32,
    },
    /// End the process that has the file open.
    #[error(
        "a process left over from an earlier run still holds {} and does not end: stop it by hand (`fuser {}` names it)",
        path.display(), path.display()
    )]
    StaleUnseen {
        /// The file.
        path: PathBuf,
    },
    /// Read the log: usually the port is taken or the store is damaged.
    #[error("nats-server ended while starting ({status}); the end of {}:\n{tail}", log.display())]
    Ended {
        /// How it ended.
        status: ExitStatus,
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// Read the log; a large store may need a longer time.
    #[error("waited {within:?} for nats-server until {condition}; the end of {}:\n{tail}", log.display())]
    NotReady {
        /// What was waited for.
        condition: &'static str,
        /// For how long.
        within: Duration,
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
}

impl NatsServerError {
    /// Whether its folder is there and may only be read.
    pub(crate) fn cannot_write(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
        match self {
            Self::Folder { source, .. } => {
                matches!(source.kind(), PermissionDenied | ReadOnlyFilesystem)
            }
            _ => false,
        }
    }
}
