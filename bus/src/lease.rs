//! The bucket of leases: who hosts a partition's writer, for a minute at the most.

use std::time::Duration;

use seatbelt_schemas::names::Names;

use super::{Bucket, Nats, ProvisionError, bucket::Keeping};

/// How long the bucket keeps a lease that nobody renews, or the mark of one that was given back.
const BUCKET_MAX_AGE: Duration = Duration::from_secs(60);

/// Opens the bucket, made if missing with `replicas` copies.
pub async fn lease_bucket(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<Bucket, ProvisionError> {
    let keeping = Keeping {
        replicas: usize::from(replicas),
        max_age: BUCKET_MAX_AGE,
        derived: true,
    };
    Bucket::open(nats, &names.lease_bucket(), keeping).await
}
