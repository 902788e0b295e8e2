//! The buckets that many parts of a ledger open, made where they are missing.

use seatbelt_schemas::names::Names;

use super::{Bucket, Nats, ProvisionError, settings::Settings};

/// The bucket of snapshots: bytes by key, written only where nobody wrote meanwhile. What the values mean
/// is the projector's.
pub async fn snapshot_bucket(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<Bucket, ProvisionError> {
    Bucket::open(nats, Settings::snapshots(names, replicas)).await
}

/// The bucket of leases: who hosts a partition's writer, for a minute at the most.
pub async fn lease_bucket(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<Bucket, ProvisionError> {
    Bucket::open(nats, Settings::leases(names, replicas)).await
}

/// The bucket in which neurons register.
pub async fn neuron_bucket(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<Bucket, ProvisionError> {
    Bucket::open(nats, Settings::neurons(names, replicas)).await
}

/// The bucket of the ledger's facts.
pub async fn meta_bucket(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<Bucket, ProvisionError> {
    Bucket::open(nats, Settings::meta(names, replicas)).await
}
