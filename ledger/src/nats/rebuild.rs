//! Makes a ledger's facts again from its journals, where bucket META was lost, or was made anew by a start
//! that found none.
//!
//! Each journal's genesis tells the ledger's id and its number of partitions; all that are there must agree.
//! One that is gone is put on record as gone: nobody begins it anew. An operator's word is appended to each journal that nothing else speaks against, and the facts
//! are written last, so that a run cut short is made whole by another one. How far each journal went is
//! known by fewer witnesses then: META forgets, the partition record and the feed do not.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use seatbelt_bus::{
    Bucket, Meta, Nats, ProvisionError, Settings, bucket::is_damage, meta_bucket,
    provision::META_KEY,
};
use seatbelt_schemas::{
    commit::Commit,
    event::{EventBody, Genesis},
    names::Names,
    position::{PARTITIONS_MAX, Partition, Partitions},
    wire,
};
use thiserror::Error;
use tracing::warn;

use super::{
    NatsJournal, OpenError, Witnesses,
    adopt::{Adoption, server_ms},
};
use crate::{
    journal::{AppendError, Journal, ReadError, Sequence},
    outcomes::HOT_MAX,
    recovery::{RecoveryError, RecoverySource},
    store::{Kept, Revision, StoreError, WriteError},
    writer::Word,
};

/// Why the facts are not made again, by what to do next.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// Nothing is to be done.
    #[error("META names ledger {0}, as the journals do: nothing is lost there")]
    Whole(String),
    /// There is nothing to make them from.
    #[error(
        "there is no journal to make META from: restore the journals first, or start a new ledger"
    )]
    NoJournal,
    /// The journals are not all of one ledger.
    #[error("the journal of partition {partition} {detail}: restore it, or take it away, first")]
    Journal {
        partition: Partition,
        /// What is wrong with it.
        detail: String,
    },
    /// The server does not answer, or a stream cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Somebody appends, or nobody knows: run the command again.
    #[error("the word was not written: stop the gateways and run the command again")]
    Append(#[from] AppendError),
    /// The facts are not written: run the command again.
    #[error("cannot write META: run the command again")]
    Write(#[from] WriteError),
}

impl From<ProvisionError> for RebuildError {
    fn from(error: ProvisionError) -> Self {
        OpenError::from(error).into()
    }
}

impl From<ReadError> for RebuildError {
    fn from(error: ReadError) -> Self {
        OpenError::from(error).into()
    }
}

impl From<StoreError> for RebuildError {
    fn from(error: StoreError) -> Self {
        OpenError::from(error).into()
    }
}

/// A partition whose journal got no word, and why.
pub type Unsaid = (Partition, String);

/// The facts as the journals tell them, where META tells others or none, and the partitions whose journals
/// are gone; changes nothing.
pub async fn facts(nats: &Nats, names: &Names) -> Result<(Meta, Vec<Partition>), RebuildError> {
    let mut found: Option<Genesis> = None;
    let mut there = BTreeSet::new();
    for partition in (0..PARTITIONS_MAX).map(Partition) {
        let Some(genesis) = genesis(nats, names, partition).await? else {
            continue;
        };
        let first = found.get_or_insert_with(|| genesis.clone());
        if (&genesis.ledger, genesis.partitions) != (&first.ledger, first.partitions) {
            let detail = format!(
                "is of ledger {}, others of {}",
                genesis.ledger, first.ledger
            );
            return Err(RebuildError::Journal { partition, detail });
        }
        there.insert(partition);
    }
    let found = found.ok_or(RebuildError::NoJournal)?;
    let last = there.last().copied().unwrap_or(Partition(0));
    let wrong = |detail: String| RebuildError::Journal {
        partition: last,
        detail,
    };
    let partitions = Partitions::try_from(found.partitions);
    let partitions = partitions.map_err(|error| wrong(error.to_string()))?;
    if last.0 >= found.partitions {
        let detail = format!("is none of its ledger, which has {}", found.partitions);
        return Err(wrong(detail));
    }
    let gone = partitions.iter().filter(|one| !there.contains(one));
    let gone = gone.collect();
    let meta = Meta {
        v: Meta::VERSION,
        ledger: found.ledger,
        partitions,
    };
    Ok((meta, gone))
}

/// What a journal says of its ledger; `None` where there is none.
async fn genesis(
    nats: &Nats,
    names: &Names,
    partition: Partition,
) -> Result<Option<Genesis>, RebuildError> {
    let journal = match NatsJournal::open_existing(nats, names, partition).await {
        Err(ProvisionError::Missing { .. }) => return Ok(None),
        other => other?,
    };
    let first = journal.get(Sequence(1)).await?;
    let commit = first.and_then(|first| Commit::read(&first.payload).ok());
    let body = commit.map(|commit| commit.events[0].event.body.clone());
    match body {
        Some(EventBody::Genesis(genesis)) if genesis.partition == partition.0 => Ok(Some(genesis)),
        _ => Err(RebuildError::Journal {
            partition,
            detail: "does not begin with genesis".to_owned(),
        }),
    }
}

/// Writes the facts that the journals tell, where META tells others or none; gives them, and the
/// partitions that nothing was said in because something speaks against their journals.
pub async fn rebuild(
    nats: &Nats,
    names: &Names,
    replicas: u8,
    by: &str,
) -> Result<(Meta, Vec<Unsaid>), RebuildError> {
    let (meta, gone) = facts(nats, names).await?;
    let bucket = meta_bucket(nats, names, replicas).await?;
    let kept = match bucket.read(META_KEY).await {
        Err(error) if is_damage(&error) => Kept {
            value: None,
            revision: Revision(0),
        },
        kept => kept?,
    };
    let known = kept.value.as_ref();
    let known = known.and_then(|value| wire::decode::<Meta>("ledger facts", value).ok());
    if known.is_some_and(|known| known == meta) {
        return Err(RebuildError::Whole(meta.ledger.to_string()));
    }
    let mut unsaid = Vec::new();
    for partition in meta.partitions.iter() {
        let adoption = Adoption {
            names: names.clone(),
            meta: meta.clone(),
            partition,
            replicas,
            by: by.to_owned(),
        };
        if gone.contains(&partition) {
            // before the facts, without which nobody starts; a bucket that is damaged is made again below
            let _ = adoption.witnesses(nats).miss().await;
        } else if let Some(reason) = say(nats, &adoption).await? {
            unsaid.push((partition, reason));
        }
    }
    let facts = Bytes::from(wire::encode(&meta));
    let written = bucket.write(META_KEY, kept.revision, facts.clone()).await;
    match (written, bucket.read(META_KEY).await) {
        (Ok(_), Ok(there)) if there.value == Some(facts.clone()) => {}
        (Err(error @ WriteError::Moved), _) => return Err(error.into()),
        _ => write_anew(nats, names, (&meta, replicas), &bucket, facts).await?,
    }
    for partition in gone {
        let witnesses = Witnesses::new(nats, names, partition, &meta.ledger);
        witnesses.miss().await?;
        let reason = match witnesses.look().await {
            Err(OpenError::Doubt(doubt)) => doubt.to_string(),
            other => return other.map(|()| (meta, unsaid)).map_err(Into::into),
        };
        unsaid.push((partition, reason));
    }
    Ok((meta, unsaid))
}

/// Makes the bucket again where the server keeps nothing there any more, with what can still be read of how far
/// the journals go.
async fn write_anew(
    nats: &Nats,
    names: &Names,
    (meta, replicas): (&Meta, u8),
    damaged: &Bucket,
    facts: Bytes,
) -> Result<(), RebuildError> {
    warn!("the server keeps nothing in bucket META any more: it is made again");
    let mut values = vec![(META_KEY.to_owned(), facts)];
    for partition in meta.partitions.iter() {
        let key = format!("journal.{partition}");
        let kept = damaged.read(&key).await.ok();
        values.extend(kept.and_then(|kept| Some((key, kept.value?))));
    }
    let bucket = Bucket::open_anew(nats, Settings::meta(names, replicas)).await?;
    for (key, value) in values {
        bucket.write(&key, Revision(0), value).await?;
    }
    Ok(())
}

/// Has the journal say that META was made again; gives what keeps it from that.
async fn say(nats: &Nats, adoption: &Adoption) -> Result<Option<String>, RebuildError> {
    match adoption.witnesses(nats).look().await {
        Ok(()) => {}
        Err(OpenError::Doubt(doubt)) => return Ok(Some(doubt.to_string())),
        Err(other) => return Err(other.into()),
    }
    let (names, partition) = (&adoption.names, adoption.partition);
    let journal = NatsJournal::reopen(nats, names, partition, adoption.replicas).await?;
    let source = RecoverySource {
        journal: Arc::new(journal.clone()),
        snapshots: None,
        partition,
        hot_max: HOT_MAX,
    };
    let (resumed, _) = match source.recover().await {
        Ok(recovered) => recovered,
        Err(error @ RecoveryError::Chain { .. }) => return Ok(Some(error.to_string())),
        Err(RecoveryError::Damaged(error)) => return Err(error.into()),
        Err(error @ (RecoveryError::Changed(_) | RecoveryError::Newer(_))) => {
            return Ok(Some(error.to_string()));
        }
    };
    let reason = "bucket META was lost and is made again from genesis".to_owned();
    let word = Word {
        adopted: Some(adoption.adopted(resumed.tail, reason)),
        skipped: None,
    };
    let now_ms = server_ms(&journal).await?;
    adoption.say(&journal, resumed, now_ms, word).await?;
    Ok(None)
}
