//! What a ledger needs on a NATS server before anything runs: its own facts, and the streams and
//! buckets that its parts share.
//!
//! The facts are written once and never changed: the ledger's id is made at the first start, the
//! number of partitions is fixed then. Journals are made by whoever hosts them.

use std::time::Duration;

use seatbelt_schemas::{
    chain::in_one_line,
    ids::LedgerId,
    names::Names,
    position::Partitions,
    wire::{self, WireError},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use tracing::debug;
use ulid::Ulid;

use super::{
    Bucket, FeedStream, Nats, ProvisionError, bucket,
    buckets::{lease_bucket, meta_bucket, neuron_bucket, snapshot_bucket},
    left_over::left_over,
    neuron_secret::{NEURON_SECRET_KEY, make_neuron_secret},
    settings::Settings,
};
use crate::kept::{Revision, StoreError, WriteError};

/// Key of the facts in bucket `SEATBELT_META`.
pub const META_KEY: &str = "ledger";
/// What is fixed at genesis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Version of this shape: 1.
    pub v: u8,
    /// The ledger's id, first part of every `ce-id`.
    pub ledger: LedgerId,
    /// How many partitions it has.
    pub partitions: Partitions,
}

impl Meta {
    /// The version that is written.
    pub const VERSION: u8 = 1;

    /// Whether the configuration says what is fixed.
    pub fn check(&self, configured: Partitions) -> Result<(), GenesisError> {
        let (fixed, configured) = (self.partitions.into(), configured.into());
        match fixed == configured {
            true => Ok(()),
            false => Err(GenesisError::Partitions { fixed, configured }),
        }
    }
}

/// How a ledger is laid out.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Number of partitions, as configured.
    pub partitions: Partitions,
    /// Copies of every stream: 1, or 3 on a cluster.
    pub replicas: u8,
}

/// Why the ledger cannot start on this server, by what to do next.
#[derive(Debug, Error)]
pub enum GenesisError {
    /// The ledger was made with another number of partitions: configure that one.
    #[error(
        "the ledger has {fixed} partitions since genesis, but nats.partitions is {configured}: set it to {fixed}"
    )]
    Partitions {
        /// What is fixed.
        fixed: u8,
        /// What is configured.
        configured: u8,
    },
    /// The facts do not decode: the bucket was written by something else.
    #[error(
        "key {META_KEY} of bucket {bucket} is not the facts of a ledger: where there are journals, `seatbelt ledger rebuild-meta` makes it again from them; where there are none, use another name prefix"
    )]
    Unreadable {
        bucket: String,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
    /// The bucket is damaged: make it again from the journals.
    #[error(
        "key {META_KEY} of bucket {bucket} can neither be read nor written, although the server is there: where there are journals, `seatbelt ledger rebuild-meta` makes it again from them; see the log of nats-server"
    )]
    Damaged {
        bucket: String,
        /// What the server says.
        #[source]
        source: StoreError,
    },
    /// Something else wrote there: have it made again.
    #[error(
        "key {NEURON_SECRET_KEY} of bucket {bucket} is not 32 bytes: `seatbelt nats provision`, or the next start of `seatbelt up`, makes it again; then start every gateway and neuron again"
    )]
    NoSecret { bucket: String },
    /// There is no ledger under this prefix, and the caller only reads.
    #[error(
        "there is no ledger under bucket {bucket}: start it once, run `seatbelt nats provision`, or correct the name prefix"
    )]
    Missing { bucket: String },
    /// The facts were lost: make them again from the journals, or restore a backup.
    #[error(
        "key {META_KEY} of bucket {bucket} is not there, but stream {stream} holds what a ledger left: restore the bucket; where there are journals, `seatbelt ledger rebuild-meta` makes it again from them; for a new ledger delete what is left, or use another name prefix"
    )]
    Lost { bucket: String, stream: String },
    /// Somebody deleted the facts: make them again from the journals.
    #[error(
        "key {META_KEY} of bucket {bucket} was deleted: where there are journals, `seatbelt ledger rebuild-meta` makes it again from them; where there are none, purge the bucket or use another name prefix"
    )]
    Deleted { bucket: String },
    /// A stream or bucket cannot be used.
    #[error(transparent)]
    Provision(#[from] ProvisionError),
    /// The server does not answer: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How long a server that is not ready yet is waited for: a cluster that has just started knows its peers
/// only after some seconds.
const READY_WAIT: Duration = Duration::from_secs(20);
const READY_PAUSE: Duration = Duration::from_millis(250);

/// Makes what is missing, checks what is there, and gives the ledger's facts. Safe to run in many
/// processes at once.
pub async fn provision(nats: &Nats, names: &Names, layout: Layout) -> Result<Meta, GenesisError> {
    let until = Instant::now() + READY_WAIT;
    loop {
        match provision_now(nats, names, layout).await {
            Err(GenesisError::Provision(ProvisionError::Unreachable { stream, source }))
                if Instant::now() < until =>
            {
                let error = in_one_line(&*source);
                debug!(stream, error, "the server is not ready to keep it yet");
                sleep(READY_PAUSE).await;
            }
            done => return done,
        }
    }
}

async fn provision_now(nats: &Nats, names: &Names, layout: Layout) -> Result<Meta, GenesisError> {
    let meta = genesis(nats, names, layout).await?;
    let replicas = layout.replicas;
    make_neuron_secret(nats, names, replicas).await?;
    FeedStream::open(nats, names, replicas).await?;
    Settings::usage(names, replicas).ensure(nats).await?;
    snapshot_bucket(nats, names, replicas).await?;
    neuron_bucket(nats, names, replicas).await?;
    lease_bucket(nats, names, replicas).await?;
    Settings::threads(names, replicas).ensure(nats).await?;
    Settings::first_uses(names, replicas).ensure(nats).await?;
    Ok(meta)
}

/// The facts of a ledger that exists, for who only reads.
pub async fn meta(nats: &Nats, names: &Names) -> Result<Meta, GenesisError> {
    let name = names.meta_bucket();
    let missing = || GenesisError::Missing {
        bucket: name.clone(),
    };
    let bucket = match Bucket::open_existing(nats, &name).await {
        Err(ProvisionError::Missing { .. }) => return Err(missing()),
        other => other?,
    };
    read(&bucket, &name).await?.ok_or_else(missing)
}

/// As [`meta`], of a ledger with that many partitions.
pub async fn meta_of(
    nats: &Nats,
    names: &Names,
    partitions: Partitions,
) -> Result<Meta, GenesisError> {
    let meta = meta(nats, names).await?;
    meta.check(partitions)?;
    Ok(meta)
}

async fn genesis(nats: &Nats, names: &Names, layout: Layout) -> Result<Meta, GenesisError> {
    let name = names.meta_bucket();
    let bucket = meta_bucket(nats, names, layout.replicas).await?;
    let found = match read(&bucket, &name).await? {
        Some(meta) => meta,
        None => begin(nats, names, layout, &bucket).await?,
    };
    found.check(layout.partitions)?;
    Ok(found)
}

async fn read(bucket: &Bucket, name: &str) -> Result<Option<Meta>, GenesisError> {
    let kept = match bucket.read(META_KEY).await {
        Err(source) if bucket::is_damage(&source) => {
            let bucket = name.to_owned();
            return Err(GenesisError::Damaged { bucket, source });
        }
        kept => kept?,
    };
    let Some(bytes) = kept.value else {
        // a key that was never written has no revision: only that one is ours to write
        return match kept.revision {
            Revision(0) => Ok(None),
            _ => Err(GenesisError::Deleted {
                bucket: name.to_owned(),
            }),
        };
    };
    let unreadable = |source| GenesisError::Unreadable {
        bucket: name.to_owned(),
        source,
    };
    let meta: Meta = wire::decode("ledger facts", &bytes).map_err(unreadable)?;
    if meta.v != Meta::VERSION {
        let (what, found) = ("ledger facts", meta.v);
        return Err(unreadable(WireError::Version { what, found }));
    }
    Ok(Some(meta))
}

/// Makes the facts of a new ledger, unless they are those of one that was there that are missing.
async fn begin(
    nats: &Nats,
    names: &Names,
    layout: Layout,
    bucket: &Bucket,
) -> Result<Meta, GenesisError> {
    let name = names.meta_bucket();
    let Some(stream) = left_over(nats, names).await? else {
        return create(bucket, &name, layout.partitions).await;
    };
    // whoever else starts at the same moment makes the facts first
    let meanwhile = read(bucket, &name).await?;
    let bucket = name;
    meanwhile.ok_or(GenesisError::Lost { bucket, stream })
}

async fn create(bucket: &Bucket, name: &str, partitions: Partitions) -> Result<Meta, GenesisError> {
    let id = Ulid::new().to_string().to_lowercase();
    let ledger = LedgerId::new(id).expect("a ULID in lower case is a valid ledger id");
    let meta = Meta {
        v: Meta::VERSION,
        ledger,
        partitions,
    };
    match bucket
        .write(META_KEY, Revision(0), wire::encode(&meta).into())
        .await
    {
        Ok(_) => Ok(meta),
        Err(WriteError::Unreachable(source)) => Err(GenesisError::Damaged {
            bucket: name.to_owned(),
            source,
        }),
        // another process made it at the same moment
        Err(WriteError::Moved) => read(bucket, name)
            .await?
            .ok_or_else(|| GenesisError::Missing {
                bucket: name.to_owned(),
            }),
    }
}
