//! The journals of a ledger that was just made.

use std::collections::BTreeMap;

use seatbelt_bus::{GenesisError, Meta, Nats, ProvisionError};
use seatbelt_schemas::{names::Names, position::Partition};
use tracing::debug;

use super::{OpenError, Sighting, Witnesses};

/// Begins every journal that nobody ever saw, so that those who append to journals and those who read
/// them need make none. One that is in doubt is left as it is: whoever opens it next says why. `seen` is
/// what a checkpoint saw.
pub async fn begin_journals(
    nats: &Nats,
    names: &Names,
    meta: &Meta,
    replicas: u8,
    seen: &BTreeMap<Partition, Sighting>,
) -> Result<(), GenesisError> {
    for partition in meta.partitions.iter() {
        let witnesses = Witnesses::new(nats, names, partition, &meta.ledger);
        let witnesses = witnesses.and_checkpoint(seen.get(&partition).copied());
        match witnesses.open(replicas, None).await {
            Err(OpenError::Store(error)) => return Err(error.into()),
            Err(OpenError::Provision(error @ ProvisionError::Unreachable { .. })) => {
                return Err(error.into());
            }
            Err(error) => debug!(%partition, %error, "journal not begun"),
            Ok(_) => {}
        }
    }
    Ok(())
}
