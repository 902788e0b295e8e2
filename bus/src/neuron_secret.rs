//! The secret by which a deployment's neurons know its gateways: made once, kept in a bucket of its own,
//! which only they may read.
//!
//! Made by whoever provisions first, also for a ledger that is older than the secret; one that stands
//! beside the facts, where it was kept at first, is moved from there. Where the bucket was lost, or the
//! server cannot read or write it any more, or it is none, the next start makes another one: then every gateway and neuron
//! has to be started again.

use bytes::Bytes;
use seatbelt_schemas::{chain::in_one_line, names::Names, neuron::signature::NeuronSecret};
use tracing::error;

use super::{Bucket, Nats, ProvisionError, bucket, provision::GenesisError, settings::Settings};
use crate::kept::{StoreError, WriteError};

/// Key in bucket `SEATBELT_SECRETS`.
pub(crate) const NEURON_SECRET_KEY: &str = "neuron_secret";

/// How often the secret is written until it can be read.
const TRIES_MAX: u32 = 8;

/// The secret of a ledger that was provisioned.
pub async fn neuron_secret(nats: &Nats, names: &Names) -> Result<NeuronSecret, GenesisError> {
    let name = names.secret_bucket();
    let missing = || GenesisError::Missing {
        bucket: name.clone(),
    };
    let bucket = match Bucket::open_existing(nats, &name).await {
        Err(ProvisionError::Missing { .. }) => return Err(missing()),
        other => other?,
    };
    let value = bucket.read(NEURON_SECRET_KEY).await?.value;
    Ok(NeuronSecret::new(bytes_of(
        &name,
        &value.ok_or_else(missing)?,
    )?))
}

/// Makes the secret if it is missing; it is the same in all processes, also where many make it at once.
pub async fn make_neuron_secret(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<(), GenesisError> {
    let name = names.secret_bucket();
    let meta = Bucket::at(nats, &names.meta_bucket());
    let former = meta.read(NEURON_SECRET_KEY).await?.value;
    let secret = match &former {
        Some(value) => bytes_of(&names.meta_bucket(), value)?,
        None => random(),
    };
    let settings = Settings::secrets(names, replicas);
    let bucket = Bucket::open(nats, settings.clone()).await?;
    let kept = keep(&bucket, &name, &secret).await;
    if let Err(Unkept::Damaged(error)) = kept {
        let error = in_one_line(&error);
        error!(
            bucket = name,
            error,
            "the server keeps no secret there any more: the bucket is made again; start every gateway and neuron again"
        );
        let bucket = Bucket::open_anew(nats, settings).await?;
        keep(&bucket, &name, &secret).await?;
    } else {
        kept?;
    }
    if former.is_some() {
        meta.forget(NEURON_SECRET_KEY).await?;
    }
    Ok(())
}

/// Why no secret is kept.
enum Unkept {
    /// There is none that could be read, and none can be written.
    Damaged(StoreError),
    /// Whatever else.
    Other(GenesisError),
}

impl From<Unkept> for GenesisError {
    fn from(unkept: Unkept) -> Self {
        match unkept {
            Unkept::Damaged(error) => error.into(),
            Unkept::Other(error) => error,
        }
    }
}

/// Keeps the secret unless there is one, and reads it back: what counts is what is kept; where another process
/// was first, what it made.
async fn keep(
    bucket: &Bucket,
    name: &str,
    secret: &[u8; NeuronSecret::BYTES],
) -> Result<(), Unkept> {
    for _ in 0..TRIES_MAX {
        let kept = match bucket.read(NEURON_SECRET_KEY).await {
            Err(error) if bucket::is_damage(&error) => return Err(Unkept::Damaged(error)),
            kept => kept.map_err(|error| Unkept::Other(error.into()))?,
        };
        if let Some(value) = kept.value {
            if bytes_of(name, &value).is_ok() {
                return Ok(());
            }
            // of no use to anybody, and no command takes it out
            error!(
                bucket = name,
                "what is kept there is no secret: it is made again; start every gateway and neuron again"
            );
        }
        let value = Bytes::copy_from_slice(secret);
        match bucket.write(NEURON_SECRET_KEY, kept.revision, value).await {
            Ok(_) | Err(WriteError::Moved) => {}
            Err(WriteError::Unreachable(error)) => return Err(Unkept::Damaged(error)),
        }
    }
    Err(Unkept::Damaged(StoreError {
        action: format!("read {NEURON_SECRET_KEY} in bucket {name}"),
        source: "what was written there is not there".into(),
    }))
}

fn bytes_of(bucket: &str, value: &[u8]) -> Result<[u8; NeuronSecret::BYTES], GenesisError> {
    value.try_into().map_err(|_| GenesisError::NoSecret {
        bucket: bucket.to_owned(),
    })
}

fn random() -> [u8; NeuronSecret::BYTES] {
    let mut random = [0; NeuronSecret::BYTES];
    getrandom::fill(&mut random).expect("the system gives random bytes");
    random
}
