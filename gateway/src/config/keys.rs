//! The keys of clients: whose they are, and how their requests are decided.

use std::{collections::HashMap, fmt, sync::Arc};

use seatbelt_schemas::{
    event::{OnShort, OnUnknown},
    ids::{AccountId, KeyId, RunId, TeamId},
};
use sha2::{Digest, Sha256};

/// A client's secret, hashed: what is kept and compared instead of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeySecret([u8; 32]);

impl KeySecret {
    /// Hashes a secret with SHA-256.
    pub fn hash(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Takes a hash made elsewhere.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(..)")
    }
}

/// A client's key: whose it is and how its requests are decided.
#[derive(Debug, Clone)]
pub struct KeyEntry {
    /// The hashed secret.
    pub secret: KeySecret,
    /// The account that pays.
    pub account: AccountId,
    /// The key's public id.
    pub key: KeyId,
    /// Teams that its requests may name.
    pub teams: Vec<TeamId>,
    /// What to do with a request that does not fit whole; a request may say otherwise. Where neither does, one that
    /// names no maximum is held in slices if it can be, and refused if not.
    pub on_short: Option<OnShort>,
    /// How a reservation ends whose usage nobody reported.
    pub on_unknown: OnUnknown,
    /// The run that it can spend within, and nowhere else: of a key that was handed out for a run.
    pub within: Option<Within>,
}

/// The run that a key was handed out for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Within {
    pub run: RunId,
    /// When it ends by itself, unix ms.
    pub deadline_ms: u64,
}

impl KeyEntry {
    /// A key with the default policies.
    pub fn new(secret: KeySecret, account: AccountId, key: KeyId) -> Self {
        Self {
            secret,
            account,
            key,
            teams: Vec::new(),
            on_short: None,
            on_unknown: OnUnknown::default(),
            within: None,
        }
    }
}

/// The keys that a gateway knows, by their hashed secrets.
#[derive(Debug, Clone, Default)]
pub struct KeyTable {
    by_secret: HashMap<KeySecret, Arc<KeyEntry>>,
    /// A key may have more than one secret.
    by_id: HashMap<(AccountId, KeyId), Vec<Arc<KeyEntry>>>,
}

impl KeyTable {
    /// All keys, or every mistake in them, in words.
    pub fn new(keys: Vec<KeyEntry>) -> Result<Self, Vec<String>> {
        let (mut table, mut found) = (Self::default(), Vec::new());
        for entry in keys.into_iter().map(Arc::new) {
            if entry.account.is_system() {
                found.push(format!(
                    "key {} belongs to account _, which is reserved: use another account id",
                    entry.key
                ));
            }
            let id = (entry.account.clone(), entry.key.clone());
            table.by_id.entry(id).or_default().push(Arc::clone(&entry));
            if let Some(other) = table.by_secret.insert(entry.secret, Arc::clone(&entry)) {
                found.push(format!(
                    "keys {} and {} have the same secret: give each its own",
                    other.key, entry.key
                ));
            }
        }
        match found.is_empty() {
            true => Ok(table),
            false => Err(found),
        }
    }

    pub(crate) fn get(&self, secret: &KeySecret) -> Option<Arc<KeyEntry>> {
        self.by_secret.get(secret).map(Arc::clone)
    }

    /// The key of that id, once for each of its secrets.
    pub(crate) fn of_id(&self, account: AccountId, key: KeyId) -> &[Arc<KeyEntry>] {
        self.by_id.get(&(account, key)).map_or(&[], Vec::as_slice)
    }
}
