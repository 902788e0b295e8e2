//! `seatbelt ledger`: what only an operator may decide. Each decision is an event of the journal.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Subcommand};
use seatbelt_ledger::nats::{
    self,
    adopt::{AdoptError, Adoption, adopt, doubt},
    provision::GenesisError,
};
use seatbelt_schemas::position::Partition;
use thiserror::Error;

use crate::{
    audit::{self, AuditError},
    config::{Config, ConfigError},
};

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
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The partition
        #[arg(long)]
        partition: u8,
        /// Do it; without, only what would be given up is told
        #[arg(long)]
        yes: bool,
    },
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
        /// The last one.
        last: u8,
        /// What was asked for.
        asked: u8,
    },
    /// The journal is not adopted.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// Standard output is gone or full.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// Carries an operator's decision out. The exit code is 0 only if it is carried out.
pub async fn run(args: LedgerArgs) -> Result<ExitCode, LedgerError> {
    let Command::AdoptJournal {
        config,
        partition,
        yes,
    } = args.command;
    let config = Config::load(&config)?.nats;
    let (connected, started) = audit::reach(&config).await?;
    let done = adopt_journal(&connected, &config, partition, yes).await;
    drop(connected);
    if let Some(server) = started {
        server.stop().await;
    }
    done
}

async fn adopt_journal(
    connected: &nats::Nats,
    config: &crate::config::Nats,
    asked: u8,
    yes: bool,
) -> Result<ExitCode, LedgerError> {
    let meta = nats::meta(connected, &config.names).await?;
    let last = u8::from(meta.partitions).saturating_sub(1);
    if asked > last {
        return Err(LedgerError::NoPartition { last, asked });
    }
    let adoption = Adoption {
        names: config.names.clone(),
        meta,
        partition: Partition(asked),
        replicas: config.replicas,
        by: format!("operator (adopt-journal, pid {})", std::process::id()),
    };
    let mut out = io::stdout();
    if yes {
        let end = adopt(connected, &adoption).await?;
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
