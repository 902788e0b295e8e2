//! The neurons alive now, from the bucket in which they register.
//!
//! A neuron is alive while its registration is renewed: what counts is when a renewal was seen here,
//! not what its clock says. The bucket is made again where it got lost, so that neurons can register
//! once more.

use std::{collections::HashMap, time::Duration};

use seatbelt_schemas::{ids::NeuronId, names::Names, neuron::NeuronRecord, wire};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{info, warn};

use super::{
    Bucket, Nats, ProvisionError,
    buckets::neuron_bucket,
    cursor::{Cursor, Item},
    stream,
};

/// A neuron not heard of for so long is gone.
pub const NEURON_TTL: Duration = Duration::from_secs(10);
/// Most neurons known at once; more are not taken up.
pub const NEURONS_MAX: usize = 4096;
/// How long a start waits for those that are registered to be read.
const FIRST_MAX: Duration = Duration::from_secs(1);
/// Pause before the bucket is opened again.
const PAUSE: Duration = Duration::from_millis(500);

/// Watches the neurons until the last receiver is gone.
pub async fn watch_neurons(
    nats: &Nats,
    names: &Names,
    replicas: u8,
) -> Result<watch::Receiver<Vec<NeuronRecord>>, ProvisionError> {
    let bucket = neuron_bucket(nats, names, replicas).await?;
    let registered = stream::info(nats, &bucket.stream()).await;
    let registered = registered.map_or(0, |info| info.state.messages);
    let (sender, mut receiver) = watch::channel(Vec::new());
    let (nats, names) = (nats.clone(), names.clone());
    tokio::spawn(async move {
        let mut alive = Alive::default();
        tokio::select! {
            () = sender.closed() => {}
            () = keep_watching(&nats, &names, replicas, bucket, &mut alive, &sender) => {}
        }
    });
    // who asks at once would be told that nobody serves what neurons do; a word of one that left is none
    let all = |records: &Vec<NeuronRecord>| records.len() as u64 >= registered;
    let read = tokio::time::timeout(FIRST_MAX, receiver.wait_for(all)).await;
    drop(read);
    Ok(receiver)
}

async fn keep_watching(
    nats: &Nats,
    names: &Names,
    replicas: u8,
    mut bucket: Bucket,
    alive: &mut Alive,
    sender: &watch::Sender<Vec<NeuronRecord>>,
) {
    loop {
        let cursor = Cursor::after(nats.clone(), bucket.stream(), 0);
        watch_once(cursor, &bucket.subject_prefix(), alive, sender).await;
        bucket = loop {
            match neuron_bucket(nats, names, replicas).await {
                Ok(bucket) => break bucket,
                Err(error) => warn!(%error, "neurons cannot be watched"),
            }
            alive.publish(Instant::now(), sender);
            sleep(PAUSE).await;
        };
    }
}

/// Reads registrations until none came for longer than they last: then the bucket may be another
/// one, and is read from its start.
async fn watch_once(
    mut cursor: Cursor,
    prefix: &str,
    alive: &mut Alive,
    sender: &watch::Sender<Vec<NeuronRecord>>,
) {
    let mut heard = Instant::now();
    loop {
        let quiet = heard + NEURON_TTL + PAUSE;
        tokio::select! {
            biased;
            item = timeout_at(quiet, cursor.next()) => match item {
                Ok(Ok(item)) => {
                    heard = Instant::now();
                    alive.take(prefix, &item, heard);
                }
                Ok(Err(error)) => {
                    warn!(%error, "neurons cannot be watched");
                    return;
                }
                Err(_) => return,
            },
            () = sleep_until(alive.next_end()), if !alive.is_empty() => {}
        }
        alive.publish(Instant::now(), sender);
    }
}

/// Records by neuron, with the time at which each ends unless renewed.
#[derive(Default)]
struct Alive {
    records: HashMap<NeuronId, (NeuronRecord, Instant)>,
}

impl Alive {
    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn next_end(&self) -> Instant {
        let ends = self.records.values().map(|(_, end)| *end);
        ends.min().unwrap_or_else(Instant::now)
    }

    fn take(&mut self, prefix: &str, item: &Item, now: Instant) {
        let message = &item.message.message;
        let key = message.subject.strip_prefix(prefix).unwrap_or_default();
        let operation = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get("KV-Operation"));
        if operation.is_some() || message.payload.is_empty() {
            self.records.retain(|neuron, _| neuron.as_str() != key);
            return;
        }
        match wire::decode::<NeuronRecord>("neuron record", &message.payload) {
            Ok(record) if record.v == 1 && record.neuron.as_str() == key => {
                let known = self.records.contains_key(&record.neuron);
                if !known && self.records.len() >= NEURONS_MAX {
                    warn!(neuron = key, "too many neurons: not taken up");
                    return;
                }
                if !known {
                    info!(neuron = key, url = record.url, "neuron registered");
                }
                let neuron = record.neuron.clone();
                self.records.insert(neuron, (record, now + NEURON_TTL));
            }
            Ok(_) => warn!(
                neuron = key,
                "neuron record of another shape or name: not taken up"
            ),
            Err(error) => warn!(neuron = key, %error, "neuron record not readable"),
        }
    }

    fn publish(&mut self, now: Instant, sender: &watch::Sender<Vec<NeuronRecord>>) {
        self.records.retain(|neuron, (_, end)| {
            let alive = *end > now;
            if !alive {
                warn!(%neuron, "neuron not heard of: gone");
            }
            alive
        });
        let mut records: Vec<_> = self
            .records
            .values()
            .map(|(record, _)| record.clone())
            .collect();
        records.sort_by(|a, b| a.neuron.cmp(&b.neuron));
        sender.send_if_modified(|seen| {
            let changed = *seen != records;
            if changed {
                *seen = records;
            }
            changed
        });
    }
}
