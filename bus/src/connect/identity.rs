//! Who a connection is: its login, and where its answers go.

use std::fmt;

use thiserror::Error;

use crate::NatsRole;

/// What begins an nkey seed of a user, and how long it is.
const SEED_PREFIX: &str = "SU";
const SEED_CHARS: usize = 58;
/// What is found in a file of credentials as nsc writes it.
const CREDENTIALS_MARK: &str = "BEGIN NATS USER JWT";

/// Not a login. The text itself is not told: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "is no login: write an nkey seed (SU...), user:password, or the credentials that nsc writes"
)]
pub struct InvalidLogin;

#[derive(Clone, Default, PartialEq, Eq)]
pub(super) enum Login {
    #[default]
    None,
    Token(String),
    User(String, String),
    Nkey(String),
    Credentials(String),
}

/// Who a connection is, beside what its address says. The default is what the address says.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub(super) login: Login,
    pub(super) inbox: Option<String>,
}

impl Identity {
    /// A user by name and password.
    pub fn user(name: &str, password: &str) -> Self {
        Self {
            login: Login::User(name.to_owned(), password.to_owned()),
            inbox: None,
        }
    }

    /// A login as it stands in a file or variable.
    pub fn read(text: &str) -> Result<Self, InvalidLogin> {
        let text = text.trim();
        let login = if text.contains(CREDENTIALS_MARK) {
            Login::Credentials(text.to_owned())
        } else if is_seed(text) {
            Login::Nkey(text.to_owned())
        } else {
            match text.split_once(':') {
                Some((user, password)) if !user.is_empty() && !password.is_empty() => {
                    Login::User(user.to_owned(), password.to_owned())
                }
                _ => return Err(InvalidLogin),
            }
        };
        Ok(Self { login, inbox: None })
    }

    /// With its answers where those of a role go.
    #[must_use]
    pub fn as_role(self, role: NatsRole) -> Self {
        Self {
            inbox: Some(role.inbox()),
            ..self
        }
    }
}

fn is_seed(text: &str) -> bool {
    text.len() == SEED_CHARS
        && text.starts_with(SEED_PREFIX)
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("inbox", &self.inbox)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_known_by_its_form() {
        let seed = format!("SU{}", "A7".repeat(28));
        let read = |text: &str| Identity::read(text).map(|who| who.login);
        assert!(read(&format!("{seed}\n")) == Ok(Login::Nkey(seed.clone())));
        let user = Login::User("me".to_owned(), "a:b".to_owned());
        assert!(read("me:a:b") == Ok(user));
        assert!(matches!(
            read("-----BEGIN NATS USER JWT-----\nx"),
            Ok(Login::Credentials(_))
        ));
        for wrong in ["", "me", ":b", "me:", "SUA"] {
            assert!(read(wrong) == Err(InvalidLogin), "{wrong}");
        }
        let shown = format!("{:?}", Identity::read(&seed));
        assert!(!shown.contains(&seed), "{shown}");
    }
}
