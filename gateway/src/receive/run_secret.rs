//! The secrets that are handed out for runs: what one says, and who it is believed from.
//!
//! A secret is signed and kept nowhere: `sk-run-1.<account>.<key>.<run>.<deadline ms>.<code>`, the code made
//! with what only gateways have together, the deployment's secret and the hash of the secret of the key
//! that opened the run. So every gateway knows it after every restart, and it is nothing any more once the
//! key is gone or has another secret. Whether the run is still open only the ledger knows, at each reserve.

use std::sync::Arc;

use seatbelt_schemas::{
    ids::{AccountId, KeyId, RunId},
    neuron::signature::NeuronSecret,
};

use crate::{
    clock::Clock,
    config::{KeyEntry, KeyTable, Within},
    error::ApiError,
};

/// What every one begins with.
const PREFIX: &str = "sk-run-1.";
/// What its code is made for.
const PURPOSE: &str = "run secret 1";
/// Longer than any: four ids and numbers with their dots.
const LENGTH_MAX: usize = 512;

/// Makes and reads them.
pub(crate) struct RunSecrets {
    secret: NeuronSecret,
    clock: Clock,
}

impl RunSecrets {
    pub(crate) fn new(secret: NeuronSecret, clock: Clock) -> Self {
        Self { secret, clock }
    }

    /// The secret for a run that `key` opened.
    pub(crate) fn issue(&self, key: &KeyEntry, within: &Within) -> String {
        let said = said(key, within);
        let code = self.secret.code(PURPOSE, &parts(&said, key));
        format!("{PREFIX}{said}.{code}")
    }

    /// The key that a secret stands for: the one that opened the run, within that run alone. None where it is
    /// no secret of this kind.
    pub(super) fn caller(
        &self,
        secret: &str,
        keys: &KeyTable,
    ) -> Option<Result<Arc<KeyEntry>, ApiError>> {
        let said = secret.strip_prefix(PREFIX)?;
        Some(self.believed(said, keys).and_then(|key| {
            let within = key.within.as_ref().expect("it was made with a run");
            if within.deadline_ms <= (self.clock)() {
                return Err(ApiError::run_ended(&within.run, "its time is up"));
            }
            Ok(Arc::new(key))
        }))
    }

    fn believed(&self, text: &str, keys: &KeyTable) -> Result<KeyEntry, ApiError> {
        let wrong = || {
            ApiError::invalid_key()
                .log("a run's secret that no key of this configuration vouches for")
        };
        let (said, code) = text
            .rsplit_once('.')
            .filter(|_| text.len() <= LENGTH_MAX)
            .ok_or_else(wrong)?;
        let (account, key, within) = read(said).ok_or_else(wrong)?;
        let vouches = |key: &&Arc<KeyEntry>| self.secret.vouches(PURPOSE, &parts(said, key), code);
        let entry = keys.of_id(account, key).iter().find(vouches);
        let entry = entry.ok_or_else(wrong)?;
        Ok(KeyEntry {
            within: Some(within),
            ..KeyEntry::clone(entry)
        })
    }
}

fn said(key: &KeyEntry, within: &Within) -> String {
    let KeyEntry { account, key, .. } = key;
    let Within { run, deadline_ms } = within;
    format!("{account}.{key}.{run}.{deadline_ms}")
}

fn parts<'a>(said: &'a str, key: &'a KeyEntry) -> [&'a [u8]; 2] {
    [said.as_bytes(), key.secret.bytes()]
}

/// Ids have no dots.
fn read(said: &str) -> Option<(AccountId, KeyId, Within)> {
    let parts: Vec<&str> = said.split('.').collect();
    let [account, key, run, deadline_ms] = parts[..] else {
        return None;
    };
    let within = Within {
        run: RunId::new(run).ok()?,
        deadline_ms: deadline_ms.parse().ok()?,
    };
    Some((AccountId::new(account).ok()?, KeyId::new(key).ok()?, within))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeySecret;

    const NOW_MS: u64 = 1_000;

    fn secrets(byte: u8) -> RunSecrets {
        RunSecrets::new(NeuronSecret::new([byte; 32]), Arc::new(|| NOW_MS))
    }

    fn key(secret: &str, id: &str) -> KeyEntry {
        KeyEntry::new(
            KeySecret::hash(secret),
            AccountId::new("a").unwrap(),
            KeyId::new(id).unwrap(),
        )
    }

    fn within(deadline_ms: u64) -> Within {
        Within {
            run: RunId::new("r-1").unwrap(),
            deadline_ms,
        }
    }

    fn code(secret: &str, keys: &[KeyEntry]) -> Option<Result<Option<Within>, &'static str>> {
        let keys = KeyTable::new(keys.to_vec()).unwrap();
        let found = secrets(7).caller(secret, &keys)?;
        Some(
            found
                .map(|key| key.within.clone())
                .map_err(|error| error.code()),
        )
    }

    #[test]
    fn a_secret_is_its_key_within_its_run() {
        let key = key("sk-parent", "k");
        let secret = secrets(7).issue(&key, &within(2_000));
        let found = code(&secret, std::slice::from_ref(&key));
        assert_eq!(found, Some(Ok(Some(within(2_000)))));
        assert!(!secret.contains("sk-parent"));
        assert_eq!(code("sk-parent", &[key]), None, "no secret of a run");
    }

    #[test]
    fn it_goes_with_the_time_the_key_and_the_keys_secret() {
        let parent = key("sk-parent", "k");
        let late = secrets(7).issue(&parent, &within(NOW_MS));
        assert_eq!(
            code(&late, std::slice::from_ref(&parent)),
            Some(Err("run_ended"))
        );
        let secret = secrets(7).issue(&parent, &within(2_000));
        let rotated = key("sk-new", "k");
        let wrong = Some(Err("invalid_api_key"));
        assert_eq!(code(&secret, std::slice::from_ref(&rotated)), wrong);
        assert_eq!(code(&secret, &[key("sk-parent", "other")]), wrong);
        assert_eq!(code(&secret, &[]), wrong);
        assert!(
            code(&secret, &[rotated, parent]).unwrap().is_ok(),
            "both while one goes"
        );
    }

    #[test]
    fn nothing_of_it_can_be_changed() {
        let key = key("sk-parent", "k");
        let secret = secrets(7).issue(&key, &within(2_000));
        let wrong = Some(Err("invalid_api_key"));
        let forged = [
            secret.replace(".2000.", ".9000."),
            secret.replace(".r-1.", ".r-2."),
            secret.replace(".a.", ".b."),
            secrets(8).issue(&key, &within(2_000)),
            format!("{secret}0"),
            format!("{PREFIX}."),
            format!("{PREFIX}a.k.r-1.2000"),
            format!("{PREFIX}a.k.r-1.2000."),
            format!("{PREFIX}{}", "a".repeat(5_000)),
        ];
        for forged in forged {
            assert_eq!(code(&forged, std::slice::from_ref(&key)), wrong, "{forged}");
        }
    }
}
