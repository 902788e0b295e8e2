//! The settings of every stream and bucket of a ledger: one table, whoever makes what is missing.
//!
//! What is derived can be made again from the journals, and need not be on disk before it is acknowledged.
//! `relied_on` names the settings that are compared at every opening; an operator may change the others.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Compression, Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
};
use seatbelt_schemas::{names::Names, position::Partition};

use super::{
    Nats, ProvisionError,
    first_uses::{FIRST_USE_MAX_AGE, FIRST_USES_MAX},
    neurons::NEURON_TTL,
    stream::{ensure, ensure_derived, inspect},
    threads::THREAD_MAX_AGE,
};

/// What a journal's stream says of itself.
pub const JOURNAL_DESCRIPTION: &str = "seatbelt ledger journal: one commit per message";
/// How long the server knows the id of a usage event: an outbox offers one twice within minutes.
const USAGE_DUPLICATE_WINDOW: Duration = Duration::from_secs(30 * 60);
/// How long the server remembers message ids of the feed: a second belt, nothing relies on it. Short, for it
/// remembers those of messages that were purged too, and these are to be published again soon.
const FEED_DUPLICATE_WINDOW: Duration = Duration::from_secs(2);
/// How long the bucket keeps a lease that nobody renews, or the mark of one that was given back.
const LEASE_MAX_AGE: Duration = Duration::from_secs(60);
/// What the stream behind a bucket begins with.
const BUCKET_STREAM: &str = "KV_";
/// The copies do not matter to who only reads.
const COPIES: &str = "num_replicas";

/// All that could drop, change or hide a commit.
const JOURNAL_RELIED_ON: [&str; 27] = [
    "subjects",
    "storage",
    "retention",
    "discard",
    COPIES,
    "deny_delete",
    "deny_purge",
    "max_msgs",
    "max_bytes",
    "max_age",
    "max_msgs_per_subject",
    "max_msg_size",
    "allow_rollup_hdrs",
    "compression",
    "sealed",
    "no_ack",
    "mirror",
    "sources",
    "subject_transform",
    "republish",
    "persist_mode",
    "allow_msg_ttl",
    "subject_delete_marker_ttl",
    "allow_msg_counter",
    "allow_msg_schedules",
    "allow_atomic",
    "allow_batched",
];

/// How a stream is made, and what of it is relied on.
#[derive(Debug, Clone)]
pub struct Settings {
    config: Config,
    relied_on: Vec<&'static str>,
    derived: bool,
    renewed: bool,
}

impl Settings {
    /// The journal of a partition: the truth.
    pub fn journal(names: &Names, partition: Partition, replicas: u8) -> Self {
        Self {
            config: Config {
                description: Some(JOURNAL_DESCRIPTION.to_owned()),
                retention: RetentionPolicy::Limits,
                discard: DiscardPolicy::New,
                deny_delete: true,
                deny_purge: true,
                compression: Some(Compression::None),
                ..unlimited(
                    names.journal_stream(partition),
                    names.journal_subject(partition),
                    replicas,
                )
            },
            relied_on: JOURNAL_RELIED_ON.to_vec(),
            derived: false,
            renewed: false,
        }
    }

    /// The same to who only reads, as an auditor does.
    pub fn journal_to_read(names: &Names, partition: Partition) -> Self {
        let mut settings = Self::journal(names, partition, 1);
        settings.relied_on.retain(|field| *field != COPIES);
        settings
    }

    /// Usage events of neurons: a source of truth, written through before it is acknowledged, like a journal.
    pub fn usage(names: &Names, replicas: u8) -> Self {
        let (stream, subjects) = (names.usage_stream(), names.usage_subjects());
        Self {
            config: Config {
                duplicate_window: USAGE_DUPLICATE_WINDOW,
                ..unlimited(stream, subjects, replicas)
            },
            relied_on: vec!["subjects", "storage", "persist_mode"],
            derived: false,
            renewed: false,
        }
    }

    /// The public feed.
    pub fn feed(names: &Names, replicas: u8) -> Self {
        let (stream, subjects) = (names.feed_stream(), names.feed_subjects());
        Self {
            config: Config {
                description: Some("seatbelt feed: one event per message".to_owned()),
                duplicate_window: FEED_DUPLICATE_WINDOW,
                persist_mode: Some(PersistenceMode::Async),
                // its headers say much that is the same in each
                compression: Some(Compression::S2),
                ..unlimited(stream, subjects, replicas)
            },
            relied_on: vec!["subjects", "storage"],
            derived: true,
            renewed: false,
        }
    }

    /// The ledger's facts, and how far each journal is known to go.
    pub fn meta(names: &Names, replicas: u8) -> Self {
        Self::bucket(&names.meta_bucket(), replicas)
    }

    /// The secret by which neurons know gateways.
    pub fn secrets(names: &Names, replicas: u8) -> Self {
        Self::bucket(&names.secret_bucket(), replicas)
    }

    /// Snapshots of accounts and partitions.
    pub fn snapshots(names: &Names, replicas: u8) -> Self {
        Self::bucket(&names.snapshot_bucket(), replicas).derived()
    }

    /// Who hosts which partition.
    pub fn leases(names: &Names, replicas: u8) -> Self {
        Self::bucket(&names.lease_bucket(), replicas)
            .derived()
            .for_at_most(LEASE_MAX_AGE)
            .renewed()
    }

    /// Which neurons are alive.
    pub fn neurons(names: &Names, replicas: u8) -> Self {
        Self::bucket(&names.neuron_bucket(), replicas)
            .derived()
            .for_at_most(NEURON_TTL)
    }

    /// Whose the responses are that upstreams keep: known to nobody else.
    pub fn threads(names: &Names, replicas: u8) -> Self {
        Self::bucket(&names.thread_bucket(), replicas).for_at_most(THREAD_MAX_AGE)
    }

    /// What clients may repeat: known to nobody else, and of as many as are never a disk full.
    pub fn first_uses(names: &Names, replicas: u8) -> Self {
        let mut settings = Self::bucket(&names.first_use_bucket(), replicas);
        settings.config.max_messages = FIRST_USES_MAX;
        // what was refused is taken out again
        settings.config.deny_delete = false;
        settings.for_at_most(FIRST_USE_MAX_AGE)
    }

    /// A bucket of which each key's last value is kept for good.
    fn bucket(name: &str, replicas: u8) -> Self {
        let subjects = format!("$KV.{name}.>");
        Self {
            config: Config {
                discard: DiscardPolicy::New,
                max_messages_per_subject: 1,
                allow_rollup: true,
                deny_delete: true,
                ..unlimited(bucket_stream(name), subjects, replicas)
            },
            relied_on: vec!["subjects", "max_msgs_per_subject"],
            derived: false,
            renewed: false,
        }
    }

    fn derived(mut self) -> Self {
        self.config.persist_mode = Some(PersistenceMode::Async);
        Self {
            derived: true,
            ..self
        }
    }

    fn for_at_most(mut self, age: Duration) -> Self {
        self.config.max_age = age;
        self
    }

    fn renewed(self) -> Self {
        Self {
            renewed: true,
            ..self
        }
    }

    /// The stream's name.
    pub fn stream(&self) -> &str {
        &self.config.name
    }

    /// The bucket's name, where it is one.
    pub(crate) fn bucket_name(&self) -> Option<&str> {
        self.config.name.strip_prefix(BUCKET_STREAM)
    }

    /// Whether it can be made again from the journals, or from what others write anew.
    pub fn is_derived(&self) -> bool {
        self.derived
    }

    /// Whether who writes there may take it out and make it again: no value is worth keeping.
    pub(crate) fn is_renewed(&self) -> bool {
        self.renewed
    }

    /// Makes the stream if it is missing, and compares what is relied on if it is there.
    pub async fn ensure(&self, nats: &Nats) -> Result<(), ProvisionError> {
        match self.derived {
            true => ensure_derived(nats, self.config.clone(), &self.relied_on).await,
            false => ensure(nats, &self.config, &self.relied_on).await,
        }
    }

    /// Compares what is relied on; the stream must be there.
    pub async fn inspect(&self, nats: &Nats) -> Result<(), ProvisionError> {
        inspect(nats, &self.config, &self.relied_on).await
    }
}

/// Name of the stream behind a bucket.
pub(crate) fn bucket_stream(bucket: &str) -> String {
    format!("{BUCKET_STREAM}{bucket}")
}

/// On file, with room for whatever comes.
fn unlimited(name: String, subjects: String, replicas: u8) -> Config {
    Config {
        name,
        subjects: vec![subjects],
        storage: StorageType::File,
        num_replicas: usize::from(replicas),
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_message_size: -1,
        max_consumers: -1,
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Settings> {
        let (names, replicas) = (&Names::default(), 3);
        let partition = Partition(0);
        vec![
            Settings::journal(names, partition, replicas),
            Settings::usage(names, replicas),
            Settings::meta(names, replicas),
            Settings::secrets(names, replicas),
            Settings::feed(names, replicas),
            Settings::snapshots(names, replicas),
            Settings::leases(names, replicas),
            Settings::neurons(names, replicas),
            Settings::threads(names, replicas),
            Settings::first_uses(names, replicas),
        ]
    }

    #[test]
    fn what_cannot_be_derived_is_on_disk_before_it_is_acknowledged() {
        for settings in all() {
            let config = &settings.config;
            let lazily = config.persist_mode == Some(PersistenceMode::Async);
            assert_eq!(lazily, settings.derived, "{}", config.name);
            assert_eq!(config.storage, StorageType::File, "{}", config.name);
            assert_eq!(config.num_replicas, 3, "{}", config.name);
        }
        let truths = all().into_iter().filter(|settings| !settings.derived);
        let truths: Vec<_> = truths.map(|settings| settings.config.name).collect();
        assert_eq!(
            truths,
            [
                "SEATBELT_JOURNAL_00",
                "SEATBELT_USAGE",
                "KV_SEATBELT_META",
                "KV_SEATBELT_SECRETS",
                "KV_SEATBELT_THREADS",
                "KV_SEATBELT_IDEMPOTENCE"
            ]
        );
    }

    #[test]
    fn only_what_says_that_somebody_lives_or_an_upstream_forgets_grows_old() {
        let old = all().into_iter().filter_map(|settings| {
            let age = settings.config.max_age;
            (!age.is_zero()).then(|| (settings.config.name.clone(), age.as_secs()))
        });
        let expected = [
            ("KV_SEATBELT_LEASES", 60),
            ("KV_SEATBELT_NEURONS", 10),
            ("KV_SEATBELT_THREADS", 30 * 24 * 60 * 60),
            ("KV_SEATBELT_IDEMPOTENCE", 24 * 60 * 60),
        ];
        let expected = expected.map(|(stream, secs)| (stream.to_owned(), secs));
        assert_eq!(old.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn who_only_reads_a_journal_relies_on_all_but_its_copies() {
        let partition = Partition(0);
        let settings = Settings::journal_to_read(&Names::default(), partition);
        assert_eq!(settings.relied_on.len(), JOURNAL_RELIED_ON.len() - 1);
        assert!(!settings.relied_on.contains(&COPIES));
    }
}
