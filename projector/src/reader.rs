//! Reading snapshots: how an account stood when the projector last wrote it, and how long ago that
//! was known to be current. For reading only; every decision is made by the partition's writer.

use std::sync::Arc;

use futures::{FutureExt, future::BoxFuture};
use seatbelt_ledger::{
    api::{SnapshotError, SnapshotStanding, Snapshots, Standing},
    snapshot::{AccountOutline, PartitionRecord},
};
use seatbelt_schemas::{
    ids::{AccountId, KeyId},
    names::Names,
    position::Partitions,
};

use crate::store::SnapshotStore;

/// Snapshots as gateways read them.
pub struct SnapshotReader {
    store: Arc<dyn SnapshotStore>,
    partitions: Partitions,
}

impl SnapshotReader {
    /// A reader of a ledger with so many partitions.
    pub fn new(store: Arc<dyn SnapshotStore>, partitions: Partitions) -> Self {
        Self { store, partitions }
    }

    async fn read(
        &self,
        account: &AccountId,
        key: Option<&KeyId>,
        at_ms: u64,
    ) -> Result<Option<SnapshotStanding>, Box<dyn std::error::Error + Send + Sync>> {
        let partition = Names::snapshot_partition_key(self.partitions.of(account));
        // the partition first: what it vouches for is then in the account's snapshot, which is
        // written before it and read after it
        let vouched = self.store.read(&partition).await?;
        let Some(snapshot) = AccountOutline::read(&*self.store, account).await? else {
            return Ok(None);
        };
        let vouched = vouched
            .value
            .map(|value| PartitionRecord::decode(&value))
            .transpose()?;
        let (position, current_ms) = vouched.map_or((snapshot.position, 0), |record| {
            (record.head.position, record.checked_at_ms)
        });
        let standing = Standing {
            account: snapshot.account,
            position: position.max(snapshot.position),
            at_ms: snapshot.at_ms,
            open: snapshot.open,
            multiplier_ppm: snapshot.state.multiplier_ppm(),
            caps: snapshot.state.standings(key, None, at_ms).collect(),
            live_keys: None,
            run: None,
            inside: Vec::new(),
            fate: None,
            more: false,
        };
        let age_ms = at_ms.saturating_sub(current_ms.max(snapshot.at_ms));
        Ok(Some(SnapshotStanding { standing, age_ms }))
    }
}

impl Snapshots for SnapshotReader {
    fn standing(
        &self,
        account: AccountId,
        key: Option<KeyId>,
        at_ms: u64,
    ) -> BoxFuture<'_, Result<Option<SnapshotStanding>, SnapshotError>> {
        async move {
            let read = self.read(&account, key.as_ref(), at_ms).await;
            read.map_err(|source| SnapshotError { account, source })
        }
        .boxed()
    }
}
