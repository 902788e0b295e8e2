//! The secret by which a deployment's neurons know its gateways: made once, kept beside the facts.
//!
//! Made by whoever provisions first, also for a ledger that is older than the secret. Where bucket META
//! was lost the next start makes another one: then every gateway and neuron has to be started again.

use seatbelt_schemas::{names::Names, neuron::signature::NeuronSecret};

use super::{
    Nats,
    provision::{GenesisError, open_meta},
};
use crate::store::WriteError;

/// Key in bucket `SEATBELT_META`.
pub(super) const NEURON_SECRET_KEY: &str = "neuron_secret";

/// The secret, made if missing; the same in all processes, also where many make it at once.
pub async fn neuron_secret(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<NeuronSecret, GenesisError> {
    let bucket = open_meta(nats, names, replicas).await?;
    loop {
        let kept = bucket.read(NEURON_SECRET_KEY).await?;
        if let Some(value) = kept.value {
            let bytes = <[u8; NeuronSecret::BYTES]>::try_from(&value[..]);
            let bytes = bytes.map_err(|_| GenesisError::NoSecret {
                bucket: names.meta_bucket(),
            })?;
            return Ok(NeuronSecret::new(bytes));
        }
        let mut random = [0; NeuronSecret::BYTES];
        getrandom::fill(&mut random).expect("the system gives random bytes");
        let made = bucket.write(NEURON_SECRET_KEY, kept.revision, random.to_vec().into());
        match made.await {
            // read back: what counts is what is kept; where another process was first, what it made
            Ok(_) | Err(WriteError::Moved) => {}
            Err(WriteError::Unreachable(error)) => return Err(error.into()),
        }
    }
}
