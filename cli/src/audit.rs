//! `seatbelt audit`: reads a ledger's journal, or an exported copy of it, and never writes to it.
//!
//! The exit code is 0 only if everything holds. What is not as it should be is told with its place:
//! partition, sequence (the commit) and position (the event). An export holds the stored bytes of every
//! commit, so it proves exactly what the journal proves. It is written as binary frames
//! ([`export`](seatbelt_ledger::journal::export)) or, for other tools, as JSON lines
//! `{"partition":0,"sequence":1,"payload":"<hex>"}`; both are read. Commits of one partition are in
//! order; partitions take turns.

mod account;
pub(crate) mod checkpoint;
mod copied;
mod export;
mod live;
mod progress;
mod reach;
mod replay;
mod show;
mod sieve;
mod source;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Subcommand};
use seatbelt_bus::{ConnectError, ProvisionError};
use seatbelt_ledger::journal::{ReadError, Sequence, export::ExportError};
use seatbelt_schemas::{
    command::CommandError,
    commit::CommitError,
    ids::AccountId,
    names::{InvalidPrefix, PREFIX_DEFAULT},
    position::Partition,
    wire::WireError,
};
use thiserror::Error;

pub(crate) use self::reach::reach;
use self::{show::At, source::Source};
use crate::{config::ConfigError, login::DialError, nats_server::NatsServerError};

/// What to audit, and how.
#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prove the whole journal: chain, positions, every decision again, caps, one end per reservation
    Verify {
        #[command(flatten)]
        source: SourceArgs,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        /// Fail where a journal does not hold what this file, written by `audit checkpoint`, has seen of it
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
    },
    /// Note where the journals end, in a file to be kept away from the server
    Checkpoint {
        #[command(flatten)]
        source: SourceArgs,
        /// The file; one that is there is replaced if the journals still hold what it has seen
        #[arg(long, short, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print every event, one a line
    Replay {
        #[command(flatten)]
        source: SourceArgs,
        /// Print JSON objects instead of text
        #[arg(long)]
        json: bool,
        /// Only the events of this account
        #[arg(long)]
        account: Option<AccountId>,
    },
    /// Print how an account stood at some position or time
    Show {
        #[command(flatten)]
        source: SourceArgs,
        /// The account
        account: AccountId,
        /// A position of its partition, or a time such as 2026-11-23T09:30:00Z; the end where absent
        #[arg(long)]
        at: Option<At>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Copy every commit with its exact bytes, for `--file`
    Export {
        #[command(flatten)]
        source: SourceArgs,
        /// Write to this file, which must not exist, instead of standard output
        #[arg(long, short)]
        output: Option<PathBuf>,
        /// Write JSON objects, one a line, instead of the compact binary form
        #[arg(long)]
        json: bool,
    },
    /// Prove that one event is in a signed checkpoint: not built yet, and not offered before it is
    #[command(hide = true)]
    Prove {
        #[command(flatten)]
        source: SourceArgs,
    },
}

/// Where the journal is read from: one of the three, seatbelt.toml's ledger where none is named.
#[derive(Debug, Args)]
struct SourceArgs {
    #[command(flatten)]
    place: AuditedLedger,
    /// Name prefix of the ledger's streams, with --nats
    #[arg(long, default_value = PREFIX_DEFAULT, conflicts_with_all = ["config", "file"])]
    prefix: String,
    /// Take an export whose end does not tell its last commits, as version 0.1.0 wrote them; that it is whole
    /// is not known then
    #[arg(long, conflicts_with_all = ["config", "nats"])]
    allow_open_end: bool,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct AuditedLedger {
    /// The configuration of the ledger; its embedded server is started if it does not run
    /// [default: seatbelt.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A NATS server: nats://user:password@host:port
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// An exported copy; `-` reads standard input
    #[arg(long, value_name = "EXPORT")]
    file: Option<PathBuf>,
}

/// Why an audit could not be carried out. What an audit finds is no error of this kind.
#[derive(Debug, Error)]
pub enum AuditError {
    /// Correct the configuration.
    #[error("cannot use the configuration")]
    Config(#[from] ConfigError),
    /// Correct the prefix.
    #[error(transparent)]
    Prefix(#[from] InvalidPrefix),
    /// There is nothing to audit yet.
    #[error("no ledger was ever kept in {}: check nats.data_dir", .data_dir.display())]
    NoData {
        /// The folder.
        data_dir: PathBuf,
    },
    /// Repair what keeps the embedded server from starting.
    #[error("cannot start the embedded server to read from")]
    Server(#[from] NatsServerError),
    /// Correct the address, or start the server.
    #[error("cannot connect to read the journal")]
    Connect(#[from] ConnectError),
    /// Correct the address or the login, or start the server.
    #[error("cannot connect to read the journal")]
    Dial(#[from] DialError),
    /// The journal is not there, or not as it must be.
    #[error("cannot open the journal of partition {partition}")]
    Open {
        partition: Partition,
        #[source]
        source: ProvisionError,
    },
    /// There is a server, and no ledger on it.
    #[error("there is no ledger here: {detail}")]
    NoLedger {
        /// What was found instead.
        detail: String,
    },
    /// The journal could not be read to its end: try again, or verify to see what is damaged.
    #[error("cannot read partition {partition} at sequence {at}")]
    Read {
        partition: Partition,
        at: Sequence,
        #[source]
        source: ReadError,
    },
    /// A commit is not readable: verify says what else is wrong.
    #[error("cannot read the commit of partition {partition} at sequence {at}")]
    Commit {
        partition: Partition,
        at: Sequence,
        /// What is wrong with it.
        #[source]
        source: CommitError,
    },
    /// An event is not readable as JSON.
    #[error("cannot print event {position} of partition {partition}")]
    Event {
        partition: Partition,
        /// Which event.
        position: u64,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// An export could not be read on.
    #[error("cannot read the export {}", .path.display())]
    Export {
        /// The file.
        path: PathBuf,
        /// Why not, and where.
        #[source]
        source: ExportError,
    },
    /// A terminal cannot show an export.
    #[error(
        "an export is binary: name a file with --output, redirect the output, or ask for --json"
    )]
    Terminal,
    /// A line of an export is not one.
    #[error("{}, line {line}: {detail}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// An export stops without an end that tells its last commits: export again, or take it as it is.
    #[error(
        "{} has no end that tells its last commits: it was cut, or written by version 0.1.0; export again, or give --allow-open-end to go by what is there",
        .path.display()
    )]
    OpenEnd {
        /// The file.
        path: PathBuf,
    },
    /// Not a checkpoint: give the file that `audit checkpoint` wrote.
    #[error("{} is no checkpoint: {detail}", .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// A checkpoint without a partition would not guard it.
    #[error(
        "no checkpoint is written: the journal of partition {partition} is empty or missing; see `audit verify`, and restore or adopt it first"
    )]
    Incomplete { partition: Partition },
    /// The journals are not those that the former checkpoint saw.
    #[error(
        "the checkpoint that is there is kept, for the journals do not hold what it has seen: {detail}; run `audit verify --checkpoint` and restore what is lost, or name another file"
    )]
    NotReplaced {
        /// What they do not hold.
        detail: String,
    },
    /// The account never had an event.
    #[error("account {account} is not in this ledger up to there")]
    NoAccount { account: AccountId },
    /// An event cannot be applied: verify says what is wrong with the journal.
    #[error("cannot replay account {account}")]
    Account {
        account: AccountId,
        #[source]
        source: CommandError,
    },
    /// An auditor writes nothing, and loads one account at a time.
    #[error("an auditor reads one account at a time, and nothing else")]
    OnlyRead,
    /// Standard output is gone or full.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// Not part of this version.
    #[error(
        "`audit prove` is not part of this version: it has no signed checkpoints; use `audit verify`, which proves the whole journal"
    )]
    NotBuilt,
}

/// Carries an audit out, printing to standard output.
pub async fn run(args: AuditArgs) -> Result<ExitCode, AuditError> {
    if let Command::Export {
        output: None,
        json: false,
        ..
    } = &args.command
        && io::stdout().is_terminal()
    {
        return Err(AuditError::Terminal);
    }
    let mut out = BufWriter::new(io::stdout());
    let done = run_to(args, &mut out).await;
    let flushed = out.flush().map_err(AuditError::Output);
    match done.and_then(|code| flushed.map(|()| code)) {
        // whoever read the output has seen enough of it
        Err(AuditError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        other => other,
    }
}

/// As [`run`], printing to `out`.
pub(crate) async fn run_to(
    args: AuditArgs,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, AuditError> {
    let source = match &args.command {
        Command::Verify { source, .. }
        | Command::Checkpoint { source, .. }
        | Command::Replay { source, .. }
        | Command::Show { source, .. }
        | Command::Export { source, .. } => Source::open(source).await?,
        Command::Prove { .. } => return Err(AuditError::NotBuilt),
    };
    let done = match args.command {
        Command::Verify {
            json, checkpoint, ..
        } => verify::verify(&source, json, checkpoint.as_deref(), out).await,
        Command::Checkpoint { out: path, .. } => checkpoint::checkpoint(&source, path, out).await,
        Command::Replay { json, account, .. } => {
            replay::replay(&source, json, account.as_ref(), out).await
        }
        Command::Show {
            account, at, json, ..
        } => show::show(&source, account, at, json, out).await,
        Command::Export { output, json, .. } => export::export(&source, output, json, out).await,
        Command::Prove { .. } => Err(AuditError::NotBuilt),
    };
    source.close().await;
    done
}
