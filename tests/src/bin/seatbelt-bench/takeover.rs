//! What saturation costs a takeover: callers reserve and settle over many accounts without pause, beside a
//! projector that writes snapshots and the feed; then another writer takes the partition over, reading
//! what the snapshots do not have yet from the journal's end.

use std::{sync::Arc, time::Instant};

use seatbelt_bus::{Bucket, FeedStream, snapshot_bucket};
use seatbelt_ledger::{
    api::Ledger, host::LedgerHost, journal::Journal, nats::NatsJournal, snapshot::PartitionRecord,
    store::SnapshotStore,
};
use seatbelt_projector::ProjectorParts;
use seatbelt_schemas::{
    commit::Commit,
    names::Names,
    position::{Partition, Position},
};
use seatbelt_tests::nats::TestNats;
use tokio_util::sync::CancellationToken;

use crate::ledger::{HOT_CALLERS, config, open, open_many, saturated};

const PREFIX: &str = "takeover";
const P: Partition = Partition(0);
const ROUNDS: usize = 3;

pub(crate) async fn measure() {
    let server = TestNats::start().await;
    let nats = server.connect("bench").await;
    let names = Names::new(PREFIX).unwrap();
    let journal = open(&nats, PREFIX).await;
    let bucket = Arc::new(snapshot_bucket(&nats, &names, 1).await.unwrap());
    let parts = ProjectorParts {
        names: names.clone(),
        projector: "bench".to_owned(),
        journals: vec![(P, Arc::new(journal.clone()))],
        snapshots: Arc::<Bucket>::clone(&bucket),
        feed: Arc::new(FeedStream::open(&nats, &names, 1).await.unwrap()),
    };
    let stop = CancellationToken::new();
    let projecting = tokio::spawn(seatbelt_projector::run(parts, stop.clone()));
    println!("\nledger, taken over after {HOT_CALLERS} callers on many accounts, projector beside");
    println!(
        "{:>14} {:>14} {:>18} {:>16}",
        "decisions/s", "events", "not in snapshots", "serves after s"
    );
    let mut host = start(&journal, &bucket).await;
    let ledger: Arc<dyn Ledger> = host.clone();
    let payers = open_many(&ledger).await;
    for _ in 0..ROUNDS {
        let ledger: Arc<dyn Ledger> = host.clone();
        let payers = payers.iter().map(|payer| payer.through(&ledger));
        let rate = saturated(payers.collect()).await;
        let (end, projected) = (end_of(&journal).await, projected(&bucket).await);
        let begun = Instant::now();
        let newer = start(&journal, &bucket).await;
        println!(
            "{rate:>14.0} {end:>14} {:>18} {:>16.2}",
            end.0.saturating_sub(projected.0),
            begun.elapsed().as_secs_f64()
        );
        std::mem::replace(&mut host, newer).stop().await;
    }
    host.stop().await;
    stop.cancel();
    projecting.await.unwrap().unwrap();
}

async fn start(journal: &NatsJournal, bucket: &Arc<Bucket>) -> Arc<LedgerHost> {
    let snapshots: Arc<dyn SnapshotStore> = Arc::<Bucket>::clone(bucket);
    let host = LedgerHost::start_from(&config(), vec![journal.clone()], Some(&snapshots));
    host.ready().await.unwrap();
    host
}

/// Where the journal ends.
async fn end_of(journal: &NatsJournal) -> Position {
    let end = journal.end().await.unwrap();
    let stored = journal.get(end).await.unwrap().unwrap();
    Commit::read(&stored.payload).unwrap().last_position()
}

/// Up to where the snapshots are current.
async fn projected(bucket: &Bucket) -> Position {
    let key = Names::snapshot_partition_key(P);
    let value = bucket.read(&key).await.unwrap().value.unwrap();
    PartitionRecord::decode(&value).unwrap().head.position
}
