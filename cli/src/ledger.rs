//! `seatbelt ledger`: what only an operator may decide. Each decision is written in the journal.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use seatbelt_bus::{NatsRole, provision::GenesisError};
use seatbelt_ledger::{
    journal::Sequence,
    nats::{
        adopt::{AdoptError, Adoption, adopt, doubt, holds},
        rebuild::{self, RebuildError},
        skip::{self, SkipError},
    },
};
use seatbelt_schemas::{
    command::CommandError,
    ids::{AccountId, RunId},
    position::Partition,
};
use thiserror::Error;

mod close_run;

use close_run::{Ending, close_run};

use crate::{
    audit::{self, AuditError},
    config::{Config, ConfigError},
    nats_server::{NatsServer, NatsServerError},
};

/// How long the connection may take to be back after the server was started again, and how often it is
/// looked at.
const BACK_MAX: Duration = Duration::from_secs(10);
const BACK_PAUSE: Duration = Duration::from_millis(20);

/// What to decide.
#[derive(Debug, Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Go on from a journal as it is, although it is gone, shorter or another one than it was: what is
    /// missing is given up for good. Stop the gateways and projectors first, start them again after it
    AdoptJournal {
        /// The configuration of the ledger; its embedded server is started if it does not run
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
        /// The partition
        #[arg(long)]
        partition: u8,
        /// Do it; without, only what would be given up is told
        #[arg(long)]
        yes: bool,
    },
    /// Go on behind messages at a journal's end that are no commits. Stop the gateways and projectors first,
    /// start them again after it
    SkipMessage {
        /// The configuration of the ledger; its embedded server is started if it does not run
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
        /// The partition
        #[arg(long)]
        partition: u8,
        /// The message; several times where several stand one behind the other
        #[arg(long, required = true)]
        sequence: Vec<u64>,
        /// Go on although a commit stood there that is damaged: what it held is given up for good
        #[arg(long)]
        give_up: bool,
        /// Do it; without, only what stands there is told
        #[arg(long)]
        yes: bool,
    },
    /// Make bucket META again from the journals' genesis, where it is lost or was made anew. Stop the
    /// gateways and projectors first, start them again after it
    RebuildMeta {
        /// The configuration of the ledger; its embedded server is started if it does not run
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
        /// Do it; without, only what would be written is told
        #[arg(long)]
        yes: bool,
    },
    /// End an open run whose key is gone, and all runs inside it, while the gateways serve: what is left of its
    /// budget goes back
    CloseRun {
        /// The configuration of the ledger
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
        /// The account that pays
        #[arg(long)]
        account: AccountId,
        /// The run
        #[arg(long)]
        run: RunId,
        /// Do it; without, only what it holds is told
        #[arg(long)]
        yes: bool,
    },
}

impl Command {
    fn config(&self) -> &Path {
        match self {
            Self::AdoptJournal { config, .. }
            | Self::SkipMessage { config, .. }
            | Self::RebuildMeta { config, .. }
            | Self::CloseRun { config, .. } => config,
        }
    }
}

/// Why nothing was decided.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// Correct the configuration.
    #[error("cannot use the configuration")]
    Config(#[from] ConfigError),
    /// The server is not there.
    #[error(transparent)]
    Reach(#[from] AuditError),
    /// There is no ledger, or it does not answer.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The ledger has no such partition.
    #[error("the ledger has partitions 0 to {last}: there is no partition {asked}")]
    NoPartition {
        last: u8,
        /// What was asked for.
        asked: u8,
    },
    /// The journal is not adopted.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// Nothing is skipped.
    #[error(transparent)]
    Skip(#[from] SkipError),
    /// The facts are not made again.
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    /// Nothing to end.
    #[error(
        "account {account} has no open run {run}: `GET /v1/key` and the caps of `seatbelt audit show` name those that it has"
    )]
    NoRun { account: AccountId, run: RunId },
    /// Whoever serves the partition did not answer.
    #[error("the run is not ended: a gateway has to serve the ledger meanwhile")]
    NotServed(#[source] CommandError),
    /// Whoever serves the partition did not carry it out.
    #[error("the run is not ended")]
    NotEnded(#[source] CommandError),
    /// What was adopted is not there any more after the server was started again.
    #[error(
        "the adoption of partition {partition} was written and did not hold when the server was started again: {detail}; stop everything, take the folder of stream {stream} away from nats.data_dir, and run the command again"
    )]
    DidNotHold {
        partition: Partition,
        stream: String,
        /// What was found.
        detail: String,
    },
    /// The server that was started for the command does not start again.
    #[error(
        "the adoption is written; whether it holds is not known: the server does not start again"
    )]
    Unproved(#[source] NatsServerError),
    /// Standard output is gone or full.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl From<CommandError> for LedgerError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Unavailable { .. } => Self::NotServed(error),
            _ => Self::NotEnded(error),
        }
    }
}

/// Carries an operator's decision out. The exit code is 0 only if it is carried out.
pub async fn run(args: LedgerArgs) -> Result<ExitCode, LedgerError> {
    let config = Config::load_nats(args.command.config())?;
    let reached = audit::reach(&config, NatsRole::Provisioning).await?;
    let (connected, mut started) = (reached.nats, reached.started);
    let done = match args.command {
        Command::AdoptJournal { partition, yes, .. } => {
            adopt_journal(&connected, &config, partition, yes, started.as_deref_mut()).await
        }
        Command::SkipMessage {
            partition,
            sequence,
            give_up,
            yes,
            ..
        } => match yes {
            // large, and there is one of it
            true => {
                let skipped = skip_message(&connected, &config, partition, &sequence, give_up);
                Box::pin(skipped).await
            }
            false => tell_message(&connected, &config, partition).await,
        },
        Command::RebuildMeta { yes, .. } => rebuild_meta(&connected, &config, yes).await,
        Command::CloseRun {
            account, run, yes, ..
        } => {
            let by = by("close-run");
            close_run(&connected, &config, &Ending { account, run, by }, yes).await
        }
    };
    drop(connected);
    if let Some(server) = started {
        server.stop().await;
    }
    done
}

/// Who decides, for people.
fn by(command: &str) -> String {
    format!("operator ({command}, pid {})", std::process::id())
}

/// One journal of the ledger that a configuration means.
async fn one_journal(
    connected: &seatbelt_bus::Nats,
    config: &crate::config::NatsConfig,
    asked: u8,
    command: &str,
) -> Result<Adoption, LedgerError> {
    let meta = seatbelt_bus::meta(connected, &config.names).await?;
    let last = u8::from(meta.partitions).saturating_sub(1);
    if asked > last {
        return Err(LedgerError::NoPartition { last, asked });
    }
    Ok(Adoption {
        names: config.names.clone(),
        meta,
        partition: Partition(asked),
        replicas: config.replicas,
        by: by(command),
    })
}

async fn skip_message(
    connected: &seatbelt_bus::Nats,
    config: &crate::config::NatsConfig,
    asked: u8,
    sequences: &[u64],
    give_up: bool,
) -> Result<ExitCode, LedgerError> {
    let journal = one_journal(connected, config, asked, "skip-message").await?;
    let said = skip::skip(connected, &journal, sequences, give_up).await?;
    writeln!(
        io::stdout(),
        "partition {asked} goes on at sequence {said}: start the gateways and projectors again"
    )?;
    Ok(ExitCode::SUCCESS)
}

async fn tell_message(
    connected: &seatbelt_bus::Nats,
    config: &crate::config::NatsConfig,
    asked: u8,
) -> Result<ExitCode, LedgerError> {
    let journal = one_journal(connected, config, asked, "skip-message").await?;
    let found = skip::find(connected, &journal).await?;
    let mut out = io::stdout();
    let after = found.after;
    writeln!(
        out,
        "the last commit of partition {asked} is sequence {after}"
    )?;
    for message in &found.messages {
        let (at, sha256) = (message.sequence, &message.sha256);
        writeln!(
            out,
            "sequence {at} is no commit that follows it (SHA-256 {sha256})"
        )?;
    }
    match found.damaged {
        Some(by) => writeln!(
            out,
            "a commit stood there and is damaged ({by} says so): restore the stream from a backup, or give its events up with --give-up"
        )?,
        None => writeln!(
            out,
            "nobody has seen a commit there; if one stood there and was acknowledged in the last moments, what it held is given up"
        )?,
    }
    writeln!(out, "nothing was changed: skip it with --yes")?;
    Ok(ExitCode::FAILURE)
}

async fn rebuild_meta(
    connected: &seatbelt_bus::Nats,
    config: &crate::config::NatsConfig,
    yes: bool,
) -> Result<ExitCode, LedgerError> {
    let mut out = io::stdout();
    if !yes {
        let (meta, gone) = rebuild::facts(connected, &config.names).await?;
        let (ledger, partitions) = (meta.ledger, u8::from(meta.partitions));
        writeln!(
            out,
            "the journals are of ledger {ledger} with {partitions} partitions"
        )?;
        for partition in gone {
            writeln!(
                out,
                "that of partition {partition} is gone: it is not served until it is restored or adopted"
            )?;
        }
        writeln!(
            out,
            "nothing was changed: META is made from them with --yes"
        )?;
        return Ok(ExitCode::FAILURE);
    }
    let (names, by) = (&config.names, by("rebuild-meta"));
    let (meta, unsaid) = rebuild::rebuild(connected, names, config.replicas, &by).await?;
    writeln!(
        out,
        "META names ledger {} again: start the gateways and projectors",
        meta.ledger
    )?;
    for (partition, reason) in unsaid {
        writeln!(out, "partition {partition} is not served yet: {reason}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts the server again and reads back what was adopted. In order: what was derived is taken out of a bucket
/// that need not be synced, and a crash may bring it back. Where a server runs that others use, this is left to
/// its next start.
async fn prove(
    connected: &seatbelt_bus::Nats,
    adoption: &Adoption,
    end: Sequence,
    server: &mut NatsServer,
) -> Result<(), LedgerError> {
    server.renew().await.map_err(LedgerError::Unproved)?;
    let back = tokio::time::timeout(BACK_MAX, async {
        while !connected.settled().await {
            tokio::time::sleep(BACK_PAUSE).await;
        }
    });
    // one that does not come back is told by what is asked next
    let _ = back.await;
    match holds(connected, adoption, end).await? {
        None => Ok(()),
        Some(detail) => Err(LedgerError::DidNotHold {
            partition: adoption.partition,
            stream: adoption.names.journal_stream(adoption.partition),
            detail,
        }),
    }
}

async fn adopt_journal(
    connected: &seatbelt_bus::Nats,
    config: &crate::config::NatsConfig,
    asked: u8,
    yes: bool,
    server: Option<&mut NatsServer>,
) -> Result<ExitCode, LedgerError> {
    let adoption = one_journal(connected, config, asked, "adopt-journal").await?;
    let mut out = io::stdout();
    if yes {
        let end = adopt(connected, &adoption).await?;
        if let Some(server) = server {
            prove(connected, &adoption, end, server).await?;
        }
        writeln!(
            out,
            "partition {asked} goes on after sequence {end}: start the gateways and projectors again"
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    match doubt(connected, &adoption).await? {
        None => Err(AdoptError::NoDoubt(adoption.partition).into()),
        Some(doubt) => {
            writeln!(out, "{doubt}")?;
            writeln!(
                out,
                "nothing was changed: what is missing is given up for good with --yes"
            )?;
            Ok(ExitCode::FAILURE)
        }
    }
}
