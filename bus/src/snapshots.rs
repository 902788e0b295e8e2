//! The bucket of snapshots: bytes by key, written only where nobody wrote meanwhile.
//!
//! Derived from the journal, so it may lose its end with a server and is then written again. What the
//! values mean is the projector's.

use seatbelt_schemas::names::Names;

use super::{Bucket, Nats, ProvisionError, bucket::Keeping};
use std::time::Duration;

/// Opens the bucket of snapshots, made if missing with `replicas` copies.
pub async fn snapshot_bucket(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<Bucket, ProvisionError> {
    let keeping = Keeping {
        replicas: usize::from(replicas),
        max_age: Duration::ZERO,
        derived: true,
    };
    Bucket::open(nats, &names.snapshot_bucket(), keeping).await
}
