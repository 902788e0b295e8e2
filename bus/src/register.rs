//! A neuron in the bucket in which neurons register.
//!
//! The registration is written again and again and dies with its neuron by the bucket's age limit; a
//! neuron that stops in order deletes it at once. A bucket that got lost is made again by whoever
//! watches neurons, and not here: a neuron's user on NATS may not.
//!
//! Each registration says which one it follows. Where another was written in between again and again, another neuron
//! lives under the same id: both are told, and neither takes back what the other wrote.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use seatbelt_schemas::{
    chain::in_one_line, ids::NeuronId, names::Names, neuron::NeuronRecord, wire,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Bucket, Nats, ProvisionError,
    buckets::neuron_bucket,
    kept::{Revision, WriteError},
    neurons::NEURON_TTL,
};

/// Time between two registrations.
pub const HEARTBEAT: Duration = Duration::from_secs(2);

const _: () = assert!(
    NEURON_TTL.as_millis() >= 3 * HEARTBEAT.as_millis(),
    "two late registrations must not cost a neuron its place"
);

/// Of the last four heartbeats, those that find another's registration: once, a bucket may have been made again
/// or a word lost. Not in a row, since two whose hearts beat together find each other's every other time.
const TWIN_FROM: u32 = 2;
const LOOKED_BACK: u8 = 0b1111;

/// Whether another neuron registers under the same id.
#[derive(Debug, Clone, Default)]
pub struct Twin(Arc<AtomicBool>);

impl Twin {
    /// That it does, for people, with the remedy.
    pub fn warning(&self) -> Option<String> {
        let text = "another neuron registers under this neuron's id: gateways see one of them at a time; give each its own neuron.id";
        self.0.load(Ordering::Relaxed).then(|| text.to_owned())
    }
}

/// Heartbeats in a row that were not written, from which on no gateway sees the neuron any more.
const MISSED_FROM: u32 = 5;
const _: () = assert!(HEARTBEAT.as_millis() * MISSED_FROM as u128 >= NEURON_TTL.as_millis());

/// Whether what a neuron registers is kept.
#[derive(Debug, Clone, Default)]
pub struct Unseen(Arc<Mutex<Option<String>>>);

impl Unseen {
    /// That it is not, for people, with the remedy.
    pub fn warning(&self) -> Option<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        // no code panics while it holds the lock
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in that so many heartbeats in a row were not written, and why; says it where it is news.
    fn missed(&self, heartbeats: u32, bucket: &str, failure: &str) {
        if heartbeats < MISSED_FROM {
            return;
        }
        let warning = format!(
            "bucket {bucket} has not taken this neuron's registration {heartbeats} times in a row ({failure}): gateways send it nothing; if it lasts although the server is well, make room in its store, or delete the bucket, which a gateway then makes again"
        );
        if self.lock().replace(warning.clone()).is_none() {
            error!("{warning}");
        }
    }

    fn kept(&self) {
        if self.lock().take().is_some() {
            info!("the neuron's registration is kept again");
        }
    }
}

/// The place of one neuron.
#[derive(Debug)]
pub struct Register {
    bucket: Bucket,
    neuron: NeuronId,
    name: String,
    twin: Twin,
    unseen: Unseen,
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
            name: names.neuron_bucket(),
            twin: Twin::default(),
            unseen: Unseen::default(),
        })
    }

    /// Tells whether another neuron has the same id.
    pub fn twin(&self) -> Twin {
        self.twin.clone()
    }

    /// Tells whether gateways see it.
    pub fn unseen(&self) -> Unseen {
        self.unseen.clone()
    }

    /// Writes what `record` gives, now and at every heartbeat, until `stop`; then takes it back.
    pub async fn keep(
        self,
        record: Arc<dyn Fn() -> NeuronRecord + Send + Sync>,
        stop: CancellationToken,
    ) {
        let mut beat = tokio::time::interval(HEARTBEAT);
        let (mut last, mut missed) = (Last::default(), 0);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                () = stop.cancelled() => break,
            }
            match self.write(&mut last, &record()).await {
                Ok(()) => {
                    missed = 0;
                    self.unseen.kept();
                }
                Err(error) => {
                    missed += 1;
                    warn!(%error, "the neuron's registration was not written, the next heartbeat tries again");
                    self.unseen.missed(missed, &self.name, &in_one_line(&error));
                }
            }
        }
        self.take_back(last).await;
    }

    async fn write(&self, last: &mut Last, record: &NeuronRecord) -> Result<(), WriteError> {
        let (key, value) = (
            self.neuron.as_str(),
            bytes::Bytes::from(wire::encode(record)),
        );
        if let Some(revision) = last.revision {
            match self.bucket.write(key, revision, value.clone()).await {
                Ok(revision) => {
                    last.followed(revision);
                    self.tell(last.is_doubled());
                    return Ok(());
                }
                Err(WriteError::Moved) => last.another(),
                Err(error) => return Err(error),
            }
            self.tell(last.is_doubled());
        }
        last.revision = Some(self.bucket.overwrite(key, value).await?);
        Ok(())
    }

    /// Says it where it is news.
    fn tell(&self, doubled: bool) {
        let was = self.twin.0.swap(doubled, Ordering::Relaxed);
        match self.twin.warning() {
            Some(text) if !was => warn!(neuron = %self.neuron, "{text}"),
            None if was => {
                info!(neuron = %self.neuron, "no other neuron registers under this id any more");
            }
            _ => {}
        }
    }

    /// Deletes what was written last, and nothing else.
    async fn take_back(self, last: Last) {
        let Some(revision) = last.revision else {
            return;
        };
        match self.bucket.delete(self.neuron.as_str(), revision).await {
            Ok(()) => {}
            Err(WriteError::Moved) => {
                warn!(neuron = %self.neuron, "the registration is another neuron's by now, and stays");
            }
            Err(error) => {
                warn!(%error, "the neuron's registration was not taken back, it ends by its age");
            }
        }
    }
}

/// What was written last, and in which of the last heartbeats another's registration was found.
#[derive(Debug, Default)]
struct Last {
    revision: Option<Revision>,
    /// A bit for each, the newest last.
    others: u8,
}

impl Last {
    fn followed(&mut self, revision: Revision) {
        *self = Self {
            revision: Some(revision),
            others: self.others << 1,
        };
    }

    fn another(&mut self) {
        self.others = self.others << 1 | 1;
    }

    fn is_doubled(&self) -> bool {
        (self.others & LOOKED_BACK).count_ones() >= TWIN_FROM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_that_is_not_kept_is_told_once_no_gateway_sees_it() {
        let unseen = Unseen::default();
        for heartbeats in 1..MISSED_FROM {
            unseen.missed(heartbeats, "SEATBELT_NEURONS", "no space");
            assert_eq!(unseen.warning(), None);
        }
        unseen.missed(MISSED_FROM, "SEATBELT_NEURONS", "no space");
        let warning = unseen.warning().unwrap();
        let named = warning.contains("SEATBELT_NEURONS") && warning.contains("no space");
        assert!(named, "{warning}");
        unseen.kept();
        assert_eq!(unseen.warning(), None);
    }

    #[test]
    fn another_is_there_where_it_is_found_again_and_again() {
        let mut last = Last::default();
        last.another();
        assert!(!last.is_doubled(), "the bucket may have been made again");
        for revision in 1..=3 {
            last.followed(Revision(revision));
        }
        last.another();
        assert!(!last.is_doubled());
        last.followed(Revision(7));
        last.another();
        assert!(last.is_doubled(), "every other time");
        for revision in 8..=10 {
            last.followed(Revision(revision));
        }
        assert!(!last.is_doubled());
    }
}
