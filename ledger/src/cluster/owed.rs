//! Which partitions have yet to hear what their process declares: no reserve is let into these, by whatever
//! process it comes.
//!
//! A journal that could not be gone on from may have been put back from before it was declared. What serves it
//! again would decide by the caps and prices of then until somebody has declared anew (ADR 0048).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{FutureExt as _, future::BoxFuture};
use seatbelt_schemas::{command::CommandError, position::Partition};
use tokio::sync::watch;

use crate::api::{
    Ack, Admin, AdminOutcome, Answer, Exchange, Ledger, Read, Release, Reserve, ReserveOutcome,
    Resize, Resolution, Settle, Standing, Taken,
};

/// What a process owes to partitions; every clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Owed {
    /// How often each has come to be owed; nothing where nobody declares.
    times: Option<Arc<watch::Sender<BTreeMap<Partition, u64>>>>,
}

/// What was owed at one moment. What comes to be owed later is not settled with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Debt(BTreeMap<Partition, u64>);

impl Debt {
    /// The partitions that it is about.
    pub fn partitions(&self) -> BTreeSet<Partition> {
        self.0.keys().copied().collect()
    }

    /// What of it there is without these partitions.
    #[must_use]
    pub fn without(mut self, partitions: &BTreeSet<Partition>) -> Self {
        self.0
            .retain(|partition, _| !partitions.contains(partition));
        self
    }

    /// Whether nothing is owed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Owed {
    /// Of a process that declares, and so may come to owe it.
    pub fn by_who_declares() -> Self {
        let times = watch::Sender::default();
        Self {
            times: Some(Arc::new(times)),
        }
    }

    /// The partition's journal could not be gone on from.
    pub(super) fn owes(&self, partition: Partition) {
        if let Some(times) = &self.times {
            times.send_modify(|times| *times.entry(partition).or_default() += 1);
        }
    }

    /// What is owed now.
    pub fn now(&self) -> Debt {
        let times = self.times.as_ref();
        Debt(
            times
                .map(|times| times.borrow().clone())
                .unwrap_or_default(),
        )
    }

    /// All of it was declared.
    pub fn settle(&self, debt: &Debt) {
        if let Some(times) = &self.times {
            times.send_modify(|times| {
                times.retain(|partition, often| debt.0.get(partition) != Some(often));
            });
        }
    }

    /// Whether reserves are let into the partition.
    pub(super) fn lets_in(&self, partition: Partition) -> Result<(), CommandError> {
        let owes =
            |times: &Arc<watch::Sender<BTreeMap<_, _>>>| times.borrow().contains_key(&partition);
        if !self.times.as_ref().is_some_and(owes) {
            return Ok(());
        }
        let detail = format!("what is declared is not true yet in partition {partition}");
        Err(CommandError::unavailable(detail))
    }
}

/// A partition's ledger as other processes reach it: what is owed keeps their reserves out too.
pub(super) struct Door<L> {
    pub(super) ledger: L,
    pub(super) partition: Partition,
    pub(super) owed: Owed,
}

impl<L: Ledger> Ledger for Door<L> {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        match self.owed.lets_in(self.partition) {
            Ok(()) => self.ledger.reserve(command),
            Err(kept_out) => std::future::ready(Err(kept_out)).boxed(),
        }
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        match self.owed.lets_in(self.partition) {
            Ok(()) => self.ledger.exchange(command),
            Err(kept_out) => std::future::ready(Err(kept_out)).boxed(),
        }
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        self.ledger.resize(command)
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        self.ledger.settle(command, ack)
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        self.ledger.settle_early(command)
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        self.ledger.release(command)
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.ledger.read(query)
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        self.ledger.admin(command)
    }

    fn clock_offsets_ms(&self) -> Vec<(Partition, i64)> {
        self.ledger.clock_offsets_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(1);

    #[test]
    fn what_comes_to_be_owed_while_it_is_declared_is_owed_still() {
        let owed = Owed::by_who_declares();
        assert!(owed.now().is_empty());
        owed.owes(P);
        assert!(owed.lets_in(P).is_err());
        assert!(owed.lets_in(Partition(0)).is_ok());
        let first = owed.now();
        // its journal is put back once more, in the middle
        owed.owes(P);
        owed.settle(&first);
        assert!(owed.lets_in(P).is_err(), "the second time was not settled");
        owed.settle(&owed.now());
        assert!(owed.lets_in(P).is_ok());
    }

    #[test]
    fn a_partition_that_is_not_served_stays_owed() {
        let owed = Owed::by_who_declares();
        owed.owes(P);
        owed.owes(Partition(2));
        let back = owed.now().without(&BTreeSet::from([P]));
        assert_eq!(back.partitions(), BTreeSet::from([Partition(2)]));
        owed.settle(&back);
        assert_eq!(owed.now().partitions(), BTreeSet::from([P]));
    }

    #[test]
    fn who_declares_nothing_owes_nothing() {
        let owed = Owed::default();
        owed.owes(P);
        assert!(owed.lets_in(P).is_ok());
        assert!(owed.now().is_empty());
    }
}
