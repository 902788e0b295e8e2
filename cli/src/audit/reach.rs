//! The server that a ledger is read from or repaired on: one at an address, the embedded one that runs, or
//! one started on its folder for as long as it takes.

use std::{path::Path, time::Duration};

use seatbelt_bus::{Identity, Nats, NatsRole, connect, connect_as};
use seatbelt_schemas::position::{PARTITIONS_MAX, Partitions};
use serde::Deserialize;

use super::AuditError;
use crate::{
    config,
    login::Dialler,
    nats_server::{NatsServer, NatsServerOptions},
    roles::embedded_options,
};

/// By what the server's own tools list the connection.
const NAME: &str = "seatbelt-audit";
/// How long a server may take to answer at first.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long the address in `nats.json` may take to answer before the server counts as gone.
const RUNNING_PATIENCE: Duration = Duration::from_secs(2);

/// A server that was reached.
pub(crate) struct Reached {
    pub(crate) nats: Nats,
    /// Whether the user may make no consumers.
    pub(super) only_reads: bool,
    /// The embedded server, where it was started for this.
    pub(crate) started: Option<Box<NatsServer>>,
}

/// A server at an address, as whoever the address says.
pub(super) async fn reach_at(url: &str) -> Result<Reached, AuditError> {
    Ok(Reached {
        nats: dial(url, CONNECT_PATIENCE).await?,
        only_reads: false,
        started: None,
    })
}

/// The server that a configuration means, as a role.
pub(crate) async fn reach(
    nats: &config::NatsConfig,
    role: NatsRole,
) -> Result<Reached, AuditError> {
    if nats.url.is_none() {
        return embedded(nats, role).await;
    }
    let mut dialler = Dialler::new(nats, None, NAME, CONNECT_PATIENCE);
    Ok(Reached {
        nats: dialler.of(role).await?,
        only_reads: role == NatsRole::Auditor && nats.users.of(role).is_some(),
        started: None,
    })
}

async fn dial(url: &str, patience: Duration) -> Result<Nats, AuditError> {
    Ok(connect(url, NAME, patience).await?)
}

/// The running embedded server, or one started to be read.
async fn embedded(nats: &config::NatsConfig, role: NatsRole) -> Result<Reached, AuditError> {
    let data_dir = nats.data_dir.clone();
    if let Some(running) = running(&data_dir, role).await {
        return Ok(running);
    }
    if !data_dir.join("jetstream").is_dir() {
        return Err(AuditError::NoData { data_dir });
    }
    start(nats, role).await
}

/// The embedded server that runs on a folder, as the role where it has a user for it.
async fn running(data_dir: &Path, role: NatsRole) -> Option<Reached> {
    let address = announced(data_dir)?;
    let reader = role == NatsRole::Auditor;
    let of_role = match reader {
        true => address.reader_url,
        false => address.provisioning_url,
    };
    let who = match (&of_role, reader) {
        (Some(_), false) => Identity::default().as_role(role),
        _ => Identity::default(),
    };
    let only_reads = reader && of_role.is_some();
    let url = of_role.unwrap_or(address.url);
    // the file of a server that was killed leads nowhere
    let nats = connect_as(&url, &who, NAME, RUNNING_PATIENCE).await.ok()?;
    Some(Reached {
        nats,
        only_reads,
        started: None,
    })
}

/// A server on a folder, for as long as it is needed.
pub(super) async fn start(
    nats: &config::NatsConfig,
    role: NatsRole,
) -> Result<Reached, AuditError> {
    // how many partitions there are says the ledger; what the configuration says may be a mistake
    let most = Partitions::try_from(PARTITIONS_MAX).expect("the most is within bounds");
    let options = NatsServerOptions {
        port: 0,
        ..embedded_options(nats, most)?
    };
    let server = NatsServer::start(options).await?;
    let only_reads = role == NatsRole::Auditor;
    let connected = match server.reader_url().filter(|_| only_reads) {
        Some(url) => dial(&url, CONNECT_PATIENCE).await?,
        None => {
            let mut dialler = Dialler::new(nats, Some(&server), NAME, CONNECT_PATIENCE);
            dialler.of(role).await?
        }
    };
    Ok(Reached {
        nats: connected,
        only_reads,
        started: Some(Box::new(server)),
    })
}

#[derive(Deserialize)]
struct Address {
    url: String,
    reader_url: Option<String>,
    provisioning_url: Option<String>,
}

fn announced(data_dir: &Path) -> Option<Address> {
    let text = std::fs::read_to_string(data_dir.join("nats.json")).ok()?;
    serde_json::from_str(&text).ok()
}
