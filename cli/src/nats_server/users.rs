//! The users of an embedded server: one that may do everything but harm to journals, for people's tools,
//! and one for each role, by keys that live as long as the process.

use seatbelt_bus::{Identity, NatsRole};
use seatbelt_schemas::{names::Names, position::Partitions};

use super::{
    Password, USER,
    accounts::{Credential, Full, Roles},
    folder::DataFolder,
    keys::UserKey,
};
use crate::nats_server::NatsServerError;

/// The roles of parts of a process alone; their keys are known to nobody else.
const PARTS: [NatsRole; 3] = [NatsRole::Gateway, NatsRole::Projector, NatsRole::Neuron];
/// The roles of tools, too, which find their passwords in the folder.
pub(super) const TOOLS: [NatsRole; 2] = [NatsRole::Provisioning, NatsRole::Reader];

/// The ledger whose roles have users.
#[derive(Clone, Debug)]
pub struct LedgerOf {
    /// Names of its streams.
    pub names: Names,
    /// How many partitions it has.
    pub partitions: Partitions,
}

/// All users of one server.
#[derive(Debug)]
pub(super) struct Users {
    /// Of the one that may do everything.
    pub(super) password: Password,
    roles: Option<RoleUsers>,
}

#[derive(Debug)]
struct RoleUsers {
    ledger: LedgerOf,
    keys: Vec<(NatsRole, UserKey)>,
    passwords: Vec<(NatsRole, Password)>,
}

impl Users {
    /// Those of a server in a folder; without a ledger there is only the one.
    pub(super) fn new(
        folder: &DataFolder,
        password: Password,
        ledger: Option<LedgerOf>,
    ) -> Result<Self, NatsServerError> {
        let roles = match ledger {
            Some(ledger) => {
                let passwords = TOOLS.map(|role| Ok((role, folder.password_of(role)?)));
                Some(RoleUsers {
                    ledger,
                    keys: PARTS.map(|role| (role, UserKey::new())).into(),
                    passwords: passwords.into_iter().collect::<Result<_, _>>()?,
                })
            }
            None => None,
        };
        Ok(Self { password, roles })
    }

    pub(super) fn full(&self, denied: Vec<String>) -> Full {
        let password = self.password.expose().to_owned();
        Full {
            known: Credential::Password(USER.to_owned(), password),
            denied,
        }
    }

    pub(super) fn roles(&self) -> Option<Roles> {
        let roles = self.roles.as_ref()?;
        let keys = roles.keys.iter();
        let keys = keys.map(|(role, key)| (*role, Credential::Nkey(key.public())));
        let tools = roles.passwords.iter().map(|(role, password)| {
            let password = password.expose().to_owned();
            (
                *role,
                Credential::Password(role.name().to_owned(), password),
            )
        });
        Some(Roles {
            names: roles.ledger.names.clone(),
            partitions: roles.ledger.partitions,
            users: keys.chain(tools).collect(),
        })
    }

    /// Who a part of this process is; `None` where roles have no users.
    pub(super) fn identity(&self, role: NatsRole) -> Option<Identity> {
        if let Some(password) = self.password_of(role) {
            return Some(Identity::user(role.name(), password.expose()).as_role(role));
        }
        let mut keys = self.roles.as_ref()?.keys.iter();
        let (_, key) = keys.find(|(known, _)| *known == role)?;
        Some(key.identity(role))
    }

    /// What a tool logs in with as a role.
    pub(super) fn password_of(&self, role: NatsRole) -> Option<&Password> {
        let mut passwords = self.roles.as_ref()?.passwords.iter();
        let (_, password) = passwords.find(|(known, _)| *known == role)?;
        Some(password)
    }
}
