//! What a ledger left on a server that has no facts of one: its facts were lost, and others must not be made.

use futures::future::try_join_all;
use seatbelt_schemas::{
    names::Names,
    position::{PARTITIONS_MAX, Partition},
};

use super::{
    Nats, ProvisionError,
    settings::bucket_stream,
    stream::{info, provision_error},
};

/// The first stream under these names that holds anything, of those that only a ledger fills: journals
/// first. One that is there and cannot be read counts.
pub(crate) async fn left_over(
    nats: &Nats,
    names: &Names,
) -> Result<Option<String>, ProvisionError> {
    let journals = (0..PARTITIONS_MAX).map(|number| names.journal_stream(Partition(number)));
    let derived = [names.feed_stream(), bucket_stream(&names.snapshot_bucket())];
    let looks = journals
        .chain(derived)
        .map(async |stream| match holds_any(nats, &stream).await {
            Ok(any) => Ok(any.then_some(stream)),
            Err(error) => Err(error),
        });
    let found = try_join_all(looks).await?;
    Ok(found.into_iter().flatten().next())
}

async fn holds_any(nats: &Nats, stream: &str) -> Result<bool, ProvisionError> {
    let looked = info(nats, stream).await;
    match looked.map_err(|error| provision_error(stream, error)) {
        Ok(found) => Ok(found.state.messages > 0),
        Err(ProvisionError::Missing { .. }) => Ok(false),
        Err(error @ ProvisionError::Unreachable { .. }) => Err(error),
        Err(ProvisionError::Refused { .. } | ProvisionError::Differs { .. }) => Ok(true),
    }
}
