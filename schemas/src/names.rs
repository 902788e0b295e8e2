//! Names of streams, subjects and buckets: one prefix, lower case in subjects, upper case in
//! streams and buckets.

use thiserror::Error;

use crate::{
    ids::{AccountId, NeuronId},
    position::Partition,
};

/// Prefix used where the configuration names none.
pub const PREFIX_DEFAULT: &str = "seatbelt";

/// A prefix that cannot be part of subjects and stream names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("name prefix {0:?} is not valid: use 1 to 32 characters of a-z 0-9 _")]
pub struct InvalidPrefix(pub String);

/// All names under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    lower: String,
    upper: String,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            lower: PREFIX_DEFAULT.to_owned(),
            upper: PREFIX_DEFAULT.to_uppercase(),
        }
    }
}

impl Names {
    /// Names under `prefix`.
    pub fn new(prefix: &str) -> Result<Self, InvalidPrefix> {
        let fits = (1..=32).contains(&prefix.len())
            && prefix
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !fits {
            return Err(InvalidPrefix(prefix.chars().take(80).collect()));
        }
        Ok(Self {
            lower: prefix.to_owned(),
            upper: prefix.to_uppercase(),
        })
    }

    /// Stream of a partition's journal.
    pub fn journal_stream(&self, partition: Partition) -> String {
        format!("{}_JOURNAL_{partition}", self.upper)
    }

    /// The one subject of a partition's journal.
    pub fn journal_subject(&self, partition: Partition) -> String {
        format!("{}.journal.v1.{partition}", self.lower)
    }

    /// Request subject of a partition's writer for one verb.
    pub fn ledger_subject(&self, partition: Partition, verb: &str) -> String {
        format!("{}.ledger.v1.{partition}.{verb}", self.lower)
    }

    /// All request subjects of all partitions' writers.
    pub fn ledger_subjects(&self) -> String {
        format!("{}.ledger.v1.*.*", self.lower)
    }

    /// Bucket of the ledger's own facts: its id and number of partitions.
    pub fn meta_bucket(&self) -> String {
        format!("{}_META", self.upper)
    }

    /// Bucket of what gateways and neurons know and others must not.
    pub fn secret_bucket(&self) -> String {
        format!("{}_SECRETS", self.upper)
    }

    /// Bucket of the writers' leases.
    pub fn lease_bucket(&self) -> String {
        format!("{}_LEASES", self.upper)
    }

    /// Bucket of the responses that upstreams keep, and whose they are.
    pub fn thread_bucket(&self) -> String {
        format!("{}_THREADS", self.upper)
    }

    /// Bucket of the requests that clients may repeat under a key of their own.
    pub fn first_use_bucket(&self) -> String {
        format!("{}_IDEMPOTENCE", self.upper)
    }

    pub fn snapshot_bucket(&self) -> String {
        format!("{}_SNAPSHOTS", self.upper)
    }

    /// Key of an account's snapshot.
    pub fn snapshot_account_key(account: &AccountId) -> String {
        format!("account.{account}")
    }

    /// All keys of accounts' snapshots, and of none of their pieces.
    pub fn snapshot_account_keys() -> &'static str {
        "account.*"
    }

    /// The account of a key of its snapshot, and of no piece of it.
    pub fn snapshot_head_account(key: &str) -> Option<AccountId> {
        AccountId::new(key.strip_prefix("account.")?).ok()
    }

    /// Key of one piece of the snapshot of an account that is too large for one value.
    pub fn snapshot_piece_key(account: &AccountId, number: u32) -> String {
        format!("account.{account}.{number}")
    }

    /// The account of a key of its snapshot or of a piece of it.
    pub fn snapshot_key_account(key: &str) -> Option<AccountId> {
        let rest = key.strip_prefix("account.")?;
        let (account, piece) = rest.split_once('.').unwrap_or((rest, "0"));
        let _: u32 = piece.parse().ok()?;
        AccountId::new(account).ok()
    }

    /// Key of the position up to which a partition's snapshots are current.
    pub fn snapshot_partition_key(partition: Partition) -> String {
        format!("partition.{partition}")
    }

    /// Key of one of the two roots of a partition's directory of accounts.
    pub fn snapshot_directory_key(partition: Partition, slot: u8) -> String {
        format!("directory.{partition}.{slot}")
    }

    /// Key of one of the two values of a shard of a partition's directory.
    pub fn snapshot_directory_shard_key(partition: Partition, shard: u8, slot: u8) -> String {
        format!("directory.{partition}.{shard:02x}.{slot}")
    }

    /// Stream of the public feed.
    pub fn feed_stream(&self) -> String {
        format!("{}_FEED", self.upper)
    }

    /// Feed subject of one event.
    pub fn feed_subject(&self, account: &AccountId, kind: &str) -> String {
        format!("{}.spend.v1.{account}.{kind}", self.lower)
    }

    /// All feed subjects.
    pub fn feed_subjects(&self) -> String {
        format!("{}.spend.v1.>", self.lower)
    }

    /// CloudEvents type of a kind.
    pub fn feed_type(&self, kind: &str) -> String {
        format!("{}.spend.{kind}.v1", self.lower)
    }

    /// Stream of the neurons' usage events.
    pub fn usage_stream(&self) -> String {
        format!("{}_USAGE", self.upper)
    }

    /// Usage subject of one neuron.
    pub fn usage_subject(&self, neuron: &NeuronId) -> String {
        format!("{}.usage.v1.{neuron}", self.lower)
    }

    /// All usage subjects.
    pub fn usage_subjects(&self) -> String {
        format!("{}.usage.v1.>", self.lower)
    }

    /// Bucket in which neurons register.
    pub fn neuron_bucket(&self) -> String {
        format!("{}_NEURONS", self.upper)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_contract() {
        let names = Names::default();
        assert_eq!(names.journal_stream(Partition(3)), "SEATBELT_JOURNAL_03");
        assert_eq!(
            names.journal_subject(Partition(3)),
            "seatbelt.journal.v1.03"
        );
        assert_eq!(
            names.ledger_subject(Partition(0), "reserve"),
            "seatbelt.ledger.v1.00.reserve"
        );
        let account = AccountId::new("acct-cap").unwrap();
        assert_eq!(
            names.feed_subject(&account, "settled"),
            "seatbelt.spend.v1.acct-cap.settled"
        );
        assert_eq!(names.feed_type("settled"), "seatbelt.spend.settled.v1");
        assert_eq!(names.snapshot_bucket(), "SEATBELT_SNAPSHOTS");
        assert_eq!(names.thread_bucket(), "SEATBELT_THREADS");
        assert_eq!(names.first_use_bucket(), "SEATBELT_IDEMPOTENCE");
        assert_eq!(Names::snapshot_account_key(&account), "account.acct-cap");
        assert_eq!(Names::snapshot_piece_key(&account, 7), "account.acct-cap.7");
        for key in ["account.acct-cap", "account.acct-cap.7"] {
            assert_eq!(Names::snapshot_key_account(key), Some(account.clone()));
        }
        let head = Names::snapshot_head_account("account.acct-cap");
        assert_eq!(head, Some(account));
        assert_eq!(Names::snapshot_head_account("account.acct-cap.7"), None);
        for key in ["account.acct-cap.x", "account.a.b.7", "feed.00"] {
            assert_eq!(Names::snapshot_key_account(key), None, "{key}");
        }
    }

    #[test]
    fn a_prefix_is_a_plain_word() {
        assert!(Names::new("acme_1").is_ok());
        for bad in ["", "A", "a.b", "a-b", "a b"] {
            assert!(Names::new(bad).is_err(), "{bad:?}");
        }
    }
}
