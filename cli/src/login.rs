//! Who this process is on NATS, for each of its roles: as the configuration says, or by the embedded
//! server's own keys.

use std::{os::unix::fs::PermissionsExt, path::Path, time::Duration};

use seatbelt_bus::{ConnectError, Identity, InvalidLogin, Nats, NatsRole, connect, connect_as};
use secrecy::ExposeSecret;
use thiserror::Error;
use tracing::warn;

use crate::{
    config::{self, LoginSource},
    nats_server::NatsServer,
};

/// Why it is not known who a role is.
#[derive(Debug, Error)]
pub enum LoginError {
    /// Put the file there, or correct nats.users.
    #[error("cannot read the login of role {role} from {place}")]
    Unreadable {
        role: NatsRole,
        /// Where it should be.
        place: String,
        #[source]
        source: std::io::Error,
    },
    /// Set the variable, or correct nats.users.
    #[error("the login of role {role} is in {place}, which is not set")]
    Unset {
        role: NatsRole,
        /// Where it should be.
        place: String,
    },
    /// Correct it.
    #[error("the login of role {role} in {place} {source}")]
    Invalid {
        role: NatsRole,
        /// Where it is.
        place: String,
        /// What it should be.
        source: InvalidLogin,
    },
}

/// Who a role is on an existing server; `None` where it is who the address says.
pub(crate) fn configured(
    nats: &config::NatsConfig,
    role: NatsRole,
) -> Result<Option<Identity>, LoginError> {
    let Some(source) = nats.users.of(role) else {
        return Ok(None);
    };
    let place = source.to_string();
    let text = match source {
        LoginSource::File(path) => {
            let read = std::fs::read_to_string(path);
            let text = read.map_err(|source| LoginError::Unreadable {
                role,
                place: place.clone(),
                source,
            })?;
            warn_if_open(path);
            text
        }
        LoginSource::Variable { value: None, .. } => return Err(LoginError::Unset { role, place }),
        LoginSource::Variable {
            value: Some(value), ..
        } => value.expose_secret().to_owned(),
    };
    match Identity::read(&text) {
        Ok(identity) => Ok(Some(identity.as_role(role))),
        Err(source) => Err(LoginError::Invalid {
            role,
            place,
            source,
        }),
    }
}

fn warn_if_open(path: &Path) {
    const OTHERS: u32 = 0o077;
    let open = std::fs::metadata(path).is_ok_and(|file| file.permissions().mode() & OTHERS != 0);
    if open {
        warn!(path = %path.display(), "others may read this login: give it mode 0600");
    }
}

/// Why a role is not connected.
#[derive(Debug, Error)]
pub enum DialError {
    /// It is not known who it is.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The server cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
}

/// The connections of a process, one for each user that it is.
pub(crate) struct Dialler<'a> {
    from: &'a config::NatsConfig,
    server: Option<&'a NatsServer>,
    /// By what the server's own tools list them.
    name: &'a str,
    patience: Duration,
    /// With no role: as the address says.
    made: Vec<(Option<NatsRole>, Nats)>,
}

impl<'a> Dialler<'a> {
    pub(crate) fn new(
        from: &'a config::NatsConfig,
        server: Option<&'a NatsServer>,
        name: &'a str,
        patience: Duration,
    ) -> Self {
        Self {
            from,
            server,
            name,
            patience,
            made: Vec::new(),
        }
    }

    /// The connection of a role.
    pub(crate) async fn of(&mut self, role: NatsRole) -> Result<Nats, DialError> {
        let identity = match self.server {
            Some(server) => server.identity(role),
            None => configured(self.from, role)?,
        };
        let key = identity.as_ref().map(|_| role);
        if let Some((_, known)) = self.made.iter().find(|(known, _)| *known == key) {
            return Ok(known.clone());
        }
        let url = self.url();
        let nats = match identity {
            Some(identity) => {
                let name = format!("{} {role}", self.name);
                connect_as(&url, &identity, &name, self.patience).await?
            }
            None => connect(&url, self.name, self.patience).await?,
        };
        self.made.push((key, nats.clone()));
        Ok(nats)
    }

    /// Whether this process may make what a ledger needs on the server: it is told a user for that, or is
    /// the same user for everything.
    pub(crate) fn provisions(&self) -> bool {
        let users = &self.from.users;
        self.server.is_some()
            || users.is_empty()
            || users.of(NatsRole::Provisioning).is_some()
            || self.url().contains('@')
    }

    fn url(&self) -> String {
        match (self.server, &self.from.url) {
            (Some(server), _) => match server.identity(NatsRole::Gateway) {
                Some(_) => server.host_url(),
                None => server.url(),
            },
            (None, Some(url)) => url.expose_secret().to_owned(),
            (None, None) => unreachable!("without a url the server is embedded"),
        }
    }
}
