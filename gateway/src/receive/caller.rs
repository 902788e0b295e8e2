//! Who calls: the key that a request carries, looked up by its hash.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use tokio::sync::watch;

use crate::{
    config::{KeyEntry, KeySecret, KeyTable},
    error::ApiError,
    receive::run_secret::RunSecrets,
};

/// The headers in which the SDKs of Anthropic and of Azure send the key.
const PLAIN: [&str; 2] = ["x-api-key", "api-key"];

/// The keys this gateway knows now.
pub(crate) struct Keyring {
    keys: watch::Receiver<KeyTable>,
    require_auth: bool,
    /// Those that were handed out for runs.
    pub(crate) of_runs: RunSecrets,
}

impl Keyring {
    pub(crate) fn new(
        keys: watch::Receiver<KeyTable>,
        require_auth: bool,
        of_runs: RunSecrets,
    ) -> Self {
        Self {
            keys,
            require_auth,
            of_runs,
        }
    }

    /// The caller's key; `None` for a request without one where that is allowed. A wrong key is
    /// never taken for none.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Option<Arc<KeyEntry>>, ApiError> {
        match secret(headers) {
            Some(secret) => self.known(secret).map(Some),
            None if self.require_auth || names_a_key(headers) => Err(ApiError::invalid_key()),
            None => Ok(None),
        }
    }
}

impl Keyring {
    /// A key that is declared, else one that was handed out for a run.
    fn known(&self, secret: &str) -> Result<Arc<KeyEntry>, ApiError> {
        let keys = self.keys.borrow();
        match keys.get(&KeySecret::hash(secret)) {
            Some(key) => Ok(key),
            None => self
                .of_runs
                .caller(secret, &keys)
                .unwrap_or_else(|| Err(ApiError::invalid_key())),
        }
    }
}

fn secret(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    });
    let sent = |name: &&str| headers.get(*name)?.to_str().ok().map(str::trim);
    let plain = || PLAIN.iter().find_map(sent);
    bearer.or_else(plain).filter(|secret| !secret.is_empty())
}

/// Whether a key was meant to be sent, readable or not.
fn names_a_key(headers: &HeaderMap) -> bool {
    let mut plain = PLAIN.iter();
    headers.contains_key(header::AUTHORIZATION) || plain.any(|name| headers.contains_key(*name))
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{
        ids::{AccountId, KeyId},
        neuron::signature::NeuronSecret,
    };

    use super::*;

    fn caller(require_auth: bool, sent: &[(&'static str, &str)]) -> Option<Option<String>> {
        let entry = KeyEntry::new(
            KeySecret::hash("sk-good"),
            AccountId::new("a").unwrap(),
            KeyId::new("k").unwrap(),
        );
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.insert(*name, value.parse().unwrap());
        }
        let keys = watch::channel(KeyTable::new(vec![entry]).unwrap()).1;
        let of_runs = RunSecrets::new(NeuronSecret::new([7; 32]), Arc::new(|| 0));
        let keyring = Keyring::new(keys, require_auth, of_runs);
        let found = keyring.caller(&headers).ok()?;
        Some(found.map(|entry| entry.key.to_string()))
    }

    #[test]
    fn a_key_is_taken_from_any_of_its_headers() {
        let good = Some(Some("k".to_owned()));
        assert_eq!(caller(true, &[("authorization", "Bearer sk-good")]), good);
        assert_eq!(caller(true, &[("authorization", "bearer  sk-good ")]), good);
        assert_eq!(caller(true, &[("x-api-key", "sk-good")]), good);
        assert_eq!(caller(true, &[("api-key", "sk-good")]), good);
    }

    #[test]
    fn a_wrong_key_is_refused_even_where_none_is_needed() {
        for require_auth in [true, false] {
            for sent in [
                ("authorization", "Bearer sk-bad"),
                ("x-api-key", "x"),
                ("authorization", "Basic eDp5"),
                ("x-api-key", ""),
                ("api-key", "sk-bad"),
            ] {
                assert_eq!(caller(require_auth, &[sent]), None, "{sent:?}");
            }
        }
        assert_eq!(caller(true, &[]), None);
        assert_eq!(caller(false, &[]), Some(None));
    }
}
