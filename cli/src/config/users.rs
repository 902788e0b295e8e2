//! `[nats.users]`: who each role is on an outside server, in a file or a variable of the environment.
//!
//! A role that is not named here is who the address says. Nothing is read here but the environment: a
//! process needs the logins of its own roles alone.

use std::{fmt, path::PathBuf};

use seatbelt_bus::NatsRole;

use secrecy::SecretString;

use super::{Context, reader::Section};

/// Where a login is found.
#[derive(Debug, Clone)]
pub enum LoginSource {
    /// In a file.
    File(PathBuf),
    /// In a variable of the environment, and its value if it is set.
    Variable {
        name: String,
        value: Option<SecretString>,
    },
}

impl fmt::Display for LoginSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable { name, .. } => write!(f, "variable {name}"),
        }
    }
}

/// `[nats.users]`
#[derive(Debug, Clone, Default)]
pub struct Users(Vec<(NatsRole, LoginSource)>);

/// The fields of each role.
const FIELDS: [(NatsRole, &str, &str); 6] = [
    (
        NatsRole::Provisioning,
        "provisioning_file",
        "provisioning_env",
    ),
    (NatsRole::Gateway, "gateway_file", "gateway_env"),
    (NatsRole::Projector, "projector_file", "projector_env"),
    (NatsRole::Neuron, "neuron_file", "neuron_env"),
    (NatsRole::Auditor, "auditor_file", "auditor_env"),
    (NatsRole::Billing, "billing_file", "billing_env"),
];

impl Users {
    pub(super) fn read(mut section: Section, context: &Context<'_>) -> Self {
        let mut users = Vec::new();
        for (role, file, variable) in FIELDS {
            let path = section.text(file).map(|path| context.path(&path));
            let name = section.text(variable);
            if path.is_some() && name.is_some() {
                section.mistake(
                    variable,
                    format!("is given beside {file}: give one of them"),
                );
            }
            let value = name.as_ref().and_then(|name| {
                let value = context.environment.get(name)?;
                Some(SecretString::from(value.as_str()))
            });
            let source = match (path, name) {
                (Some(path), _) => LoginSource::File(path),
                (None, Some(name)) => LoginSource::Variable { name, value },
                (None, None) => continue,
            };
            users.push((role, source));
        }
        section.finish();
        Self(users)
    }

    /// Where the login of a role is; `None` for one that is who the address says.
    pub fn of(&self, role: NatsRole) -> Option<&LoginSource> {
        let mut users = self.0.iter();
        users
            .find(|(known, _)| *known == role)
            .map(|(_, source)| source)
    }

    /// Whether every role is who the address says.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path};

    use secrecy::ExposeSecret;

    use super::*;
    use crate::config::Config;

    fn users(text: &str) -> Result<Users, String> {
        let environment = BTreeMap::from([("KEY".to_owned(), "me:pw".to_owned())]);
        let nats = Config::nats_from_text(text, &environment, Path::new("/etc/seatbelt"));
        nats.map(|nats| nats.users)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_login_is_in_a_file_or_in_a_variable() {
        let told = users(
            "[nats]\nurl = \"nats://n\"\n[nats.users]\ngateway_file = \"g.nk\"\nneuron_env = \"KEY\"\nauditor_env = \"NONE\"\n",
        );
        let told = told.unwrap();
        let Some(LoginSource::File(file)) = told.of(NatsRole::Gateway) else {
            panic!("{told:?}");
        };
        assert_eq!(file, Path::new("/etc/seatbelt/g.nk"));
        let Some(LoginSource::Variable {
            value: Some(value), ..
        }) = told.of(NatsRole::Neuron)
        else {
            panic!("{told:?}");
        };
        assert_eq!(value.expose_secret(), "me:pw");
        // a process needs the logins of its own roles alone
        let unset = told.of(NatsRole::Auditor);
        assert!(matches!(
            unset,
            Some(LoginSource::Variable { value: None, .. })
        ));
        assert!(told.of(NatsRole::Billing).is_none());
        assert!(!format!("{told:?}").contains("me:pw"), "{told:?}");
    }

    #[test]
    fn a_role_has_one_login_and_an_embedded_server_none() {
        let both =
            "[nats]\nurl = \"nats://n\"\nusers = { gateway_file = \"a\", gateway_env = \"B\" }\n";
        let told = users(both).unwrap_err();
        assert!(told.contains("nats.users.gateway_env"), "{told}");
        let told = users("[nats.users]\ngateway_file = \"a\"\n").unwrap_err();
        assert!(told.contains("set nats.url"), "{told}");
    }
}
