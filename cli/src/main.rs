//! The binary: reads the command line, starts the roles it names, runs until told to stop, and
//! prints every error in one place. Everything else lives in the library.

use std::{io::Write, path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use seatbelt_cli::{
    audit::{self, AuditArgs},
    config::Config,
    ledger::{self, LedgerArgs},
    logging::{self, LogFormat},
    nats::{self, NatsArgs},
    prices::{self, PricesArgs},
    roles::{self, Ready, Role},
    signals,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hard spend caps for AI inference, on an event ledger that anyone can replay.
#[derive(Parser)]
#[command(name = "seatbelt", version)]
struct Cli {
    /// How logs are written to standard error; what is logged: SEATBELT_LOG (default "info").
    #[arg(long, value_enum, global = true, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All roles in one process, with an embedded nats-server unless nats.url is given.
    Up(Configured),
    /// The gateway and its ledger writers, on an existing NATS.
    Gateway(Configured),
    /// The projector, on an existing NATS.
    Projector(Configured),
    /// A neuron, on an existing NATS.
    Neuron(Configured),
    /// Reads the journal and checks it; never writes.
    Audit(AuditArgs),
    /// What an operator decides about a ledger's journals.
    Ledger(LedgerArgs),
    /// What the operator of an outside NATS needs for a ledger.
    Nats(NatsArgs),
    /// Price books out of public price lists; never applied by themselves.
    Prices(PricesArgs),
}

#[derive(Args)]
struct Configured {
    /// The configuration file.
    #[arg(long, default_value = "seatbelt.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = logging::start(cli.log_format)
        .map_err(anyhow::Error::from)
        .and_then(|()| run(cli.command));
    ended.unwrap_or_else(|error| {
        report(&error);
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let (role, configured) = match command {
        Command::Up(configured) => (Role::All, configured),
        Command::Gateway(configured) => (Role::Gateway, configured),
        Command::Projector(configured) => (Role::Projector, configured),
        Command::Neuron(configured) => (Role::Neuron, configured),
        Command::Ledger(args) => return ledger::run(args).await.map_err(Into::into),
        Command::Nats(args) => return nats::run(args).await.map_err(Into::into),
        Command::Prices(args) => return prices::run(args).map_err(Into::into),
        Command::Audit(args) => return audit::run(args).await.map_err(Into::into),
    };
    let config = Config::load(&configured.config)?;
    let stop = signals::stop_on_signal()?;
    // large, and there is one of it
    Box::pin(roles::run(role, &config, stop, announce)).await?;
    Ok(ExitCode::SUCCESS)
}

/// The one line on standard output, and the same for people on standard error.
fn announce(ready: &Ready) {
    // a reader that went away is no reason to stop serving
    let _ = writeln!(std::io::stdout(), "{}", ready.line());
    let _ = writeln!(std::io::stderr(), "{}", ready.text());
}

/// An error and what caused it, one a line.
fn report(error: &anyhow::Error) {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  caused by: {cause}"));
    }
    let _ = writeln!(std::io::stderr(), "{text}");
}
