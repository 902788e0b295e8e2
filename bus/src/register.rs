//! A neuron in the bucket in which neurons register.
//!
//! The registration is written again and again and dies with its neuron by the bucket's age limit; a
//! neuron that stops in order deletes it at once. A bucket that got lost is made again by whoever
//! watches neurons, and not here: a neuron's user on NATS may not.

use std::{sync::Arc, time::Duration};

use seatbelt_schemas::{ids::NeuronId, names::Names, neuron::NeuronRecord, wire};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Bucket, Nats, ProvisionError, buckets::neuron_bucket, neurons::NEURON_TTL};

/// Time between two registrations.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

const _: () = assert!(
    NEURON_TTL.as_millis() >= 3 * HEARTBEAT.as_millis(),
    "two late registrations must not cost a neuron its place"
);

/// The place of one neuron.
#[derive(Debug)]
pub struct Register {
    bucket: Bucket,
    neuron: NeuronId,
}

impl Register {
    /// Makes the bucket if it is not there.
    pub async fn open(
        nats: &Nats,
        names: &Names,
        replicas: u8,
        neuron: &NeuronId,
    ) -> Result<Self, ProvisionError> {
        neuron_bucket(nats, names, replicas).await?;
        Ok(Self {
            bucket: Bucket::at(nats, &names.neuron_bucket()),
            neuron: neuron.clone(),
        })
    }

    /// Writes what `record` gives, now and at every heartbeat, until `stop`; then takes it back.
    pub async fn keep(
        self,
        record: Arc<dyn Fn() -> NeuronRecord + Send + Sync>,
        stop: CancellationToken,
    ) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = stop.cancelled() => break,
            }
            let value = wire::encode(&record()).into();
            if let Err(error) = self.bucket.overwrite(self.neuron.as_str(), value).await {
                warn!(%error, "the neuron's registration was not written, the next heartbeat tries again");
            }
        }
        if let Err(error) = self.bucket.remove(self.neuron.as_str()).await {
            warn!(%error, "the neuron's registration was not taken back, it ends by its age");
        }
    }
}
