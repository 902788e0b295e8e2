//! The secret by which a deployment's neurons know its gateways: made once, kept in a bucket of its own,
//! which only they may read.
//!
//! Made by whoever provisions first, also for a ledger that is older than the secret; one that stands
//! beside the facts, where it was kept at first, is moved from there. Where the bucket was lost the next
//! start makes another one: then every gateway and neuron has to be started again.

use bytes::Bytes;
use seatbelt_schemas::{names::Names, neuron::signature::NeuronSecret};

use super::{Bucket, Nats, ProvisionError, provision::GenesisError, settings::Settings};
use crate::kept::WriteError;

/// Key in bucket `SEATBELT_SECRETS`.
pub(crate) const NEURON_SECRET_KEY: &str = "neuron_secret";

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
    let bucket = Bucket::open(nats, Settings::secrets(names, replicas)).await?;
    let meta = Bucket::at(nats, &names.meta_bucket());
    let former = meta.read(NEURON_SECRET_KEY).await?.value;
    loop {
        let kept = bucket.read(NEURON_SECRET_KEY).await?;
        if let Some(value) = kept.value {
            bytes_of(&names.secret_bucket(), &value)?;
            break;
        }
        let bytes = match &former {
            Some(value) => bytes_of(&names.meta_bucket(), value)?,
            None => random(),
        };
        let value = Bytes::copy_from_slice(&bytes);
        match bucket.write(NEURON_SECRET_KEY, kept.revision, value).await {
            // read back: what counts is what is kept; where another process was first, what it made
            Ok(_) | Err(WriteError::Moved) => {}
            Err(WriteError::Unreachable(error)) => return Err(error.into()),
        }
    }
    if former.is_some() {
        meta.forget(NEURON_SECRET_KEY).await?;
    }
    Ok(())
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
