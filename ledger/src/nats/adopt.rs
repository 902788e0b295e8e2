//! An operator's word that a journal goes on as it is, although more or other was seen of it.
//!
//! The word is an event: a `writer_started` with `adopted`, appended like any other, so that it fences
//! every writer before it. Then everything that was derived from what is no longer there is taken out,
//! and is derived again from the journal. A run that ends half way is made whole by another one: the
//! journal stays in doubt until the last step.

use std::sync::Arc;

use futures::TryStreamExt;
use seatbelt_bus::{Bucket, Meta, Nats, ProvisionError, stream::ask};
use seatbelt_schemas::{
    commit::{COMMIT_EVENTS_MAX, ChainHash},
    event::Adopted,
    names::Names,
    position::Partition,
};
use thiserror::Error;

use super::{Doubt, NatsJournal, OpenError, Witnesses};
use crate::{
    host::now_ms,
    journal::{AppendError, Journal, ReadError, Sequence},
    recovery::{RecoveryError, RecoverySource},
    resume::Resumed,
    store::StoreError,
    writer::{Caller, Word, Writer, WriterConfig},
};

/// Most snapshots taken out in one round; there are as many rounds as it takes.
const ROUNDS_MAX: u32 = 1_000;

/// The writer that adopts answers nobody.
#[derive(Debug)]
struct Nobody;

impl Caller for Nobody {
    fn is_gone(&self) -> bool {
        true
    }
}

/// Which journal is adopted, and by whom.
#[derive(Debug, Clone)]
pub struct Adoption {
    /// The names of the ledger's streams.
    pub names: Names,
    /// The ledger's facts.
    pub meta: Meta,
    pub partition: Partition,
    /// Copies of every stream.
    pub replicas: u8,
    /// Who says so, for people.
    pub by: String,
}

/// Why a journal was not adopted, by what to do next.
#[derive(Debug, Error)]
pub enum AdoptError {
    /// Nothing is to be done.
    #[error("nothing speaks against the journal of partition {0}: it needs no adoption")]
    NoDoubt(Partition),
    /// The journal cannot become this ledger's, or not as it is.
    #[error(transparent)]
    Unfit(Doubt),
    /// The journal or its witnesses cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What there is of it does not hold together.
    #[error(
        "the journal as it is cannot be gone on from: restore it; a last commit that is damaged can be given up with `seatbelt ledger skip-message --give-up`"
    )]
    Damaged(#[from] RecoveryError),
    /// Somebody appends, or nobody knows: run the command again.
    #[error("the adoption was not written: stop the gateways and run the command again")]
    Append(#[from] AppendError),
    /// What was derived could not be taken out: run the command again.
    #[error("what was derived from the former journal is not all taken out: run the command again")]
    Derived(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for AdoptError {
    fn from(error: StoreError) -> Self {
        Self::Derived(error.into())
    }
}

impl From<ProvisionError> for AdoptError {
    fn from(error: ProvisionError) -> Self {
        OpenError::from(error).into()
    }
}

/// What speaks against a partition's journal; `None` where nothing does.
pub async fn doubt(nats: &Nats, adoption: &Adoption) -> Result<Option<Doubt>, AdoptError> {
    let witnesses = adoption.witnesses(nats);
    match witnesses.look().await {
        Ok(()) => Ok(hole(nats, adoption).await?),
        Err(OpenError::Doubt(doubt)) => Ok(Some(doubt)),
        Err(other) => Err(other.into()),
    }
}

/// The first commit that the server does not have any more although it says so: what it says of the stream,
/// and the commits that others saw, need not tell.
async fn hole(nats: &Nats, adoption: &Adoption) -> Result<Option<Doubt>, OpenError> {
    let (names, partition) = (&adoption.names, adoption.partition);
    let journal = match NatsJournal::open_existing(nats, names, partition).await {
        Err(ProvisionError::Missing { .. }) => return Ok(None),
        other => other?,
    };
    let end = journal.end().await?;
    let mut commits = journal.replay(Sequence(0), end);
    loop {
        match commits.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(ReadError::Gap { at }) => return Ok(Some(Doubt::Hole { partition, at })),
            Err(other) => return Err(other.into()),
        }
    }
}

/// Goes on from the journal as it is, and gives where it ended.
pub async fn adopt(nats: &Nats, adoption: &Adoption) -> Result<Sequence, AdoptError> {
    let reason = match doubt(nats, adoption).await? {
        None => return Err(AdoptError::NoDoubt(adoption.partition)),
        Some(doubt @ (Doubt::Foreign { .. } | Doubt::Hole { .. })) => {
            return Err(AdoptError::Unfit(doubt));
        }
        Some(doubt) => doubt.to_string(),
    };
    let (partition, names) = (adoption.partition, &adoption.names);
    let journal = NatsJournal::open(nats, names, partition, adoption.replicas).await?;
    // a stream that was found again on what the disk still had of it: its settings may not be there
    journal.keep_settings().await?;
    let end = journal.end().await.map_err(OpenError::from)?;
    let last = adoption.append(&journal, end, reason).await?;
    adoption.forget(nats).await?;
    adoption.witnesses(nats).replace(&journal, last).await?;
    Ok(end)
}

/// Whether an adoption holds, asked of a server that was started again since: gives what speaks against it.
pub async fn holds(
    nats: &Nats,
    adoption: &Adoption,
    end: Sequence,
) -> Result<Option<String>, AdoptError> {
    if let Some(doubt) = doubt(nats, adoption).await? {
        return Ok(Some(doubt.to_string()));
    }
    let (names, partition) = (&adoption.names, adoption.partition);
    let journal = NatsJournal::open_existing(nats, names, partition).await?;
    let found = journal.end().await.map_err(OpenError::from)?;
    Ok((found <= end).then(|| format!("the journal ends at sequence {found} again")))
}

/// The time by the clock that the writers are held to, wherever the operator sits.
pub(super) async fn server_ms(journal: &NatsJournal) -> Result<u64, OpenError> {
    Ok(journal.server_ms().await?.unwrap_or_else(now_ms))
}

impl Adoption {
    pub(super) fn witnesses(&self, nats: &Nats) -> Witnesses {
        Witnesses::new(nats, &self.names, self.partition, &self.meta.ledger)
    }

    async fn append(
        &self,
        journal: &NatsJournal,
        end: Sequence,
        reason: String,
    ) -> Result<(Sequence, ChainHash), AdoptError> {
        let source = RecoverySource {
            journal: Arc::new(journal.clone()),
            snapshots: None,
            partition: self.partition,
            hot_max: crate::outcomes::HOT_MAX,
        };
        let (resumed, _) = source.recover().await?;
        let word = Word {
            adopted: Some(self.adopted(end, reason)),
            skipped: None,
        };
        let now_ms = server_ms(journal).await?;
        Ok(self.say(journal, resumed, now_ms, word).await?)
    }

    pub(super) fn adopted(&self, end: Sequence, reason: String) -> Adopted {
        Adopted {
            end: end.0,
            reason,
            by: self.by.clone(),
        }
    }

    /// Appends a writer's start with an operator's word; gives the commit's place and hash.
    pub(super) async fn say(
        &self,
        journal: &NatsJournal,
        resumed: Resumed,
        now_ms: u64,
        word: Word,
    ) -> Result<(Sequence, ChainHash), AppendError> {
        let mut writer: Writer<Nobody> = Writer::start_on(self.config(), resumed, now_ms, word);
        let (expected, payload) = writer
            .take_append()
            .expect("a writer that starts has its start to append");
        let hash = ChainHash::of(&payload);
        Ok((journal.append(expected, payload).await?, hash))
    }

    fn config(&self) -> WriterConfig {
        WriterConfig {
            partition: self.partition,
            partitions: self.meta.partitions,
            ledger: self.meta.ledger.clone(),
            writer: self.by.clone(),
            expiry_grace_ms: 0,
            single_refusals_per_second: WriterConfig::SINGLE_REFUSALS_DEFAULT,
            accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
            commit_events_max: COMMIT_EVENTS_MAX,
            settle_linger_ms: WriterConfig::SETTLE_LINGER_MS_DEFAULT,
        }
    }

    /// Takes out what was derived: this partition's record and snapshots, and the feed, which all
    /// partitions share and whose messages are made again with the same ids.
    pub(super) async fn forget(&self, nats: &Nats) -> Result<(), AdoptError> {
        let bucket = Bucket::at(nats, &self.names.snapshot_bucket());
        if bucket.exists().await? {
            let record = Names::snapshot_partition_key(self.partition);
            bucket.forget(&record).await?;
            for partition in self.meta.partitions.iter() {
                bucket.forget(&format!("feed.{partition}")).await?;
            }
            for _ in 0..ROUNDS_MAX {
                let keys = bucket.keys("account").await?;
                let ours = keys.iter().filter(|key| self.is_ours(key));
                let mut found = false;
                for key in ours {
                    bucket.forget(key).await?;
                    found = true;
                }
                if !found {
                    break;
                }
            }
        }
        let subject = format!("STREAM.DELETE.{}", self.names.feed_stream());
        let body = serde_json::json!({});
        match ask::<serde_json::Value>(nats, subject, &body).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_missing() => Ok(()),
            Err(error) => Err(AdoptError::Derived(error.into())),
        }
    }

    fn is_ours(&self, key: &str) -> bool {
        let account = Names::snapshot_key_account(key);
        account.is_some_and(|account| self.meta.partitions.of(&account) == self.partition)
    }
}
