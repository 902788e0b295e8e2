//! `seatbelt nats`: what an operator of an outside NATS needs for a ledger.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use seatbelt_bus::NatsRole;
use thiserror::Error;

use crate::{
    config::{self, Config, ConfigError},
    login::{DialError, Dialler},
    nats_server::{
        accounts::{Credential, Roles, render},
        keys::UserKey,
    },
    roles::{self, BusError},
};

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// What to do.
#[derive(Debug, Args)]
pub struct NatsArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the accounts and users of a nats-server, with what each role may do. The users' keys are made
    /// where they are missing; what is printed holds none of them
    Config {
        /// The configuration of the ledger: its name prefix and number of partitions count
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
        /// Folder of the keys, one file for each role: give each process those of its own roles alone
        #[arg(long, value_name = "FOLDER")]
        keys: PathBuf,
    },
    /// Make the streams and buckets of the ledger, as the user that may; the roles make none
    Provision {
        /// The configuration of the ledger
        #[arg(long, value_name = "FILE", default_value = "seatbelt.toml")]
        config: PathBuf,
    },
}

/// Why it was not done.
#[derive(Debug, Error)]
pub enum NatsCommandError {
    /// Correct the configuration.
    #[error("cannot use the configuration")]
    Config(#[from] ConfigError),
    /// Set nats.url.
    #[error("nats.url is missing: an embedded server is provisioned by `seatbelt up`")]
    NeedsUrl,
    /// Make the folder writable, or name another one.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Remove the file to have a new key made.
    #[error("{} holds no key of a user: remove it to have a new one made", .path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The server cannot be used.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The ledger's facts, streams and buckets.
    #[error(transparent)]
    Ledger(#[from] BusError),
    /// Standard output is gone or full.
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

/// Carries it out.
pub async fn run(args: NatsArgs) -> Result<ExitCode, NatsCommandError> {
    match args.command {
        Command::Config { config, keys } => {
            let nats = Config::load_nats(&config)?;
            let text = server_configuration(&nats, &keys)?;
            io::stdout().write_all(text.as_bytes())?;
        }
        Command::Provision { config } => {
            let nats = Config::load_nats(&config)?;
            if nats.url.is_none() {
                return Err(NatsCommandError::NeedsUrl);
            }
            let mut dialler = Dialler::new(&nats, None, "seatbelt-provision", PATIENCE);
            let connected = dialler.of(NatsRole::Provisioning).await?;
            let meta = roles::provision(&nats, &connected).await?;
            let (ledger, partitions) = (meta.ledger, u8::from(meta.partitions));
            writeln!(
                io::stdout(),
                "ledger {ledger} is there, with {partitions} partitions"
            )?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn server_configuration(
    nats: &config::NatsConfig,
    keys: &Path,
) -> Result<String, NatsCommandError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(keys);
    made.map_err(failed("make", keys))?;
    let mut users = Vec::new();
    for role in NatsRole::OUTSIDE {
        let key = key_of(&keys.join(format!("{role}.nk")))?;
        users.push((role, Credential::Nkey(key.public())));
    }
    let roles = Roles {
        names: nats.names.clone(),
        partitions: nats.partitions,
        users,
    };
    let mut text = String::from(
        "# Accounts and users of a seatbelt ledger; it holds public keys alone. `include` it in the configuration\n\
         # of nats-server, which also needs a jetstream block with sync_interval: always, or three servers. Put your\n\
         # own administrators beside these users. In seatbelt.toml:\n#\n# [nats.users]\n",
    );
    for role in NatsRole::OUTSIDE {
        let path = keys.join(format!("{role}.nk"));
        text.push_str(&format!(
            "# {role}_file = {:?}\n",
            path.display().to_string()
        ));
    }
    text.push('\n');
    text.push_str(&render(None, Some(&roles)));
    Ok(text)
}

/// The key in a file, made if it is missing.
fn key_of(path: &Path) -> Result<UserKey, NatsCommandError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    match opened {
        Ok(mut file) => {
            let key = UserKey::new();
            let written = writeln!(file, "{}", key.seed()).and_then(|()| file.sync_all());
            written.map_err(failed("write", path))?;
            Ok(key)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let text = std::fs::read_to_string(path).map_err(failed("read", path))?;
            UserKey::from_seed(&text).ok_or_else(|| NatsCommandError::NoKey {
                path: path.to_owned(),
            })
        }
        Err(error) => Err(failed("make", path)(error)),
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> NatsCommandError + use<> {
    let path = path.to_owned();
    move |source| NatsCommandError::File {
        action,
        path,
        source,
    }
}
