//! A ledger while its processes are of different releases: what an earlier one left is never half
//! understood and costs a start, and a writer that meets what a later one left says so (docs/upgrade.md).
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use seatbelt_ledger::{
    api::{Ack, Answer, CommandError, Ledger, Read, ReserveOutcome},
    host::LedgerHost,
    journal::memory::MemoryJournal,
    partition::Head,
    snapshot::{AccountSnapshot, History, PartitionRecord, RECORD_VERSION},
    store::SnapshotStore,
    testing::{Payer, balance, one_partition},
};
use seatbelt_projector::{
    ProjectorParts,
    store::memory::{MemoryFeed, MemorySnapshots},
};
use seatbelt_schemas::{ids::AccountId, names::Names, position::Partition, scope::Scope, wire};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

const P: Partition = Partition(0);
const PATIENCE: Duration = Duration::from_secs(20);

/// The record as releases before the directory of accounts wrote it (versions 1 and 2): the golden
/// form, never to be changed.
#[derive(Serialize)]
struct Earlier {
    v: u8,
    projector: Option<String>,
    sequence: u64,
    head: Head,
    checked_at_ms: u64,
    /// Since version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<History>,
    open: Option<Vec<AccountId>>,
}

struct World {
    journal: MemoryJournal,
    snapshots: MemorySnapshots,
    payer: Payer,
}

impl World {
    /// An account that has spent 30 of 100, projected.
    async fn new() -> Self {
        let world = Self {
            journal: MemoryJournal::new(),
            snapshots: MemorySnapshots::default(),
            payer: Payer::new("a", "key"),
        };
        let host = world.host().await;
        let payer = &world.payer;
        for change in payer.changes(balance("cap", Scope::Account, 100)) {
            host.admin(payer.admin(change)).await.unwrap();
        }
        let command = payer.reserve(30);
        let outcome = host.reserve(command.clone()).await.unwrap();
        assert!(matches!(outcome, ReserveOutcome::Reserved(_)));
        let settle = payer.settle(command.id.into(), 30);
        host.settle(settle, Ack::Durable).await.unwrap();
        host.stop().await;
        world.project().await;
        world
    }

    async fn host(&self) -> Arc<LedgerHost> {
        let snapshots: Arc<dyn SnapshotStore> = Arc::new(self.snapshots.clone());
        let journals = vec![self.journal.clone()];
        let host = LedgerHost::start_from(&one_partition("test"), journals, Some(&snapshots));
        host.ready().await.unwrap();
        host
    }

    /// Lets a projector of this release come and go.
    async fn project(&self) {
        let parts = ProjectorParts {
            names: Names::default(),
            projector: "p".to_owned(),
            journals: vec![(P, Arc::new(self.journal.clone()))],
            snapshots: Arc::new(self.snapshots.clone()),
            feed: Arc::new(MemoryFeed::default()),
        };
        let stop = CancellationToken::new();
        let projector = tokio::spawn(seatbelt_projector::run(parts, stop.clone()));
        let end = self.journal.commits().len() as u64;
        let projected = async {
            while self.record().is_none_or(|record| record.sequence < end) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, projected).await.unwrap();
        stop.cancel();
        projector.await.unwrap().unwrap();
    }

    /// The record, if it is of this release.
    fn record(&self) -> Option<PartitionRecord> {
        let kept = self.snapshots.peek(&Names::snapshot_partition_key(P))?;
        PartitionRecord::decode(&kept).ok()
    }

    fn put_record(&self, bytes: impl Into<Bytes>) {
        let key = Names::snapshot_partition_key(P);
        self.snapshots.overwrite(&key, bytes.into());
    }

    /// Leaves the record as an earlier release would have.
    fn go_back_to(&self, version: u8) {
        let now = self.record().unwrap();
        let earlier = Earlier {
            v: version,
            projector: now.projector,
            sequence: now.sequence,
            head: now.head,
            checked_at_ms: now.checked_at_ms,
            history: (version > 1).then_some(now.history),
            open: now.open,
        };
        self.put_record(wire::encode(&earlier));
    }

    async fn spent(&self, host: &LedgerHost) -> Answer<u64> {
        self.spent_by(host, "a").await
    }

    async fn spent_by(&self, host: &LedgerHost, name: &str) -> Answer<u64> {
        let account = AccountId::new(name).unwrap();
        let standing = host
            .read(Read {
                account,
                key: None,
                run: None,
                reservation: None,
            })
            .await?;
        Ok(standing.caps[0].spent)
    }
}

#[tokio::test]
async fn the_record_of_an_earlier_release_costs_a_start_and_no_account() {
    for version in [1, 2] {
        let world = World::new().await;
        world.go_back_to(version);
        // gateways first ...
        let host = world.host().await;
        assert_eq!(world.spent(&host).await, Ok(30), "version {version}");
        // ... then projectors
        world.project().await;
        let record = world.record().expect("of this release");
        assert_eq!(record.v, RECORD_VERSION);
        let key = Names::snapshot_account_key(&world.payer.account);
        let kept = world.snapshots.peek(&key).expect("a snapshot");
        assert!(AccountSnapshot::decode(&kept).is_ok());
        host.stop().await;
    }
}

#[tokio::test]
async fn a_snapshot_without_its_account_is_not_believed_because_of_an_earlier_record() {
    let world = World::new().await;
    world.go_back_to(2);
    // lost; the earlier record does not say which accounts there are
    world
        .snapshots
        .forget(&Names::snapshot_account_key(&world.payer.account));
    let host = world.host().await;
    assert_eq!(world.spent(&host).await, Ok(30));
    host.stop().await;
}

#[tokio::test]
async fn a_running_writer_that_meets_a_later_record_asks_to_be_upgraded() {
    let world = World::new().await;
    let host = world.host().await;
    let good = world.record().unwrap();
    let mut later = good.clone();
    later.v = RECORD_VERSION + 1;
    world.put_record(later.encode());
    assert_eq!(world.spent(&host).await, Ok(30), "it is in memory");
    // nobody knows any more which accounts there are
    let answer = world.spent_by(&host, "b").await;
    assert!(
        matches!(&answer, Err(CommandError::Unavailable { detail }) if detail.contains("upgrade")),
        "{answer:?}"
    );
    // the projectors went back before the gateways
    world.put_record(good.encode());
    let answer = world.spent_by(&host, "b").await;
    assert!(
        matches!(answer, Err(CommandError::UnknownAccount { .. })),
        "{answer:?}"
    );
    host.stop().await;
}
