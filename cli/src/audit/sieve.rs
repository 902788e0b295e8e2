//! Takes out of a journal the messages that are no commits and that a later commit says to step over.
//! Everything else passes as it stands, damaged or not: what it means is for whoever reads it.

use std::collections::BTreeMap;

use futures::{
    StreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use seatbelt_ledger::{journal::strays, partition::PartitionState};
use seatbelt_schemas::{
    commit::{ChainHash, Commit},
    position::Partition,
    skipped::{SKIPPED_MAX, Stray},
};

use super::{AuditError, source::Item};

/// The same commits, without what is to be stepped over.
pub(super) fn without_skipped(
    items: BoxStream<'_, Result<Item, AuditError>>,
) -> BoxStream<'_, Result<Item, AuditError>> {
    let mut sieve = Sieve::default();
    let ended = items.map(Some).chain(stream::once(ready(None)));
    let sieved = ended.flat_map(move |next| {
        let (through, error) = match next {
            Some(Ok(item)) => (sieve.push(item), None),
            Some(Err(error)) => (sieve.finish(), Some(error)),
            None => (sieve.finish(), None),
        };
        let through: Vec<_> = through.into_iter().map(Ok).collect();
        stream::iter(through.into_iter().chain(error.map(Err)))
    });
    sieved.boxed()
}

#[derive(Default)]
struct Sieve(BTreeMap<Partition, Journal>);

/// One partition's journal so far, and what it holds back: messages that do not continue it.
struct Journal {
    state: PartitionState,
    held: Vec<Item>,
}

impl Sieve {
    fn push(&mut self, item: Item) -> Vec<Item> {
        let partition = item.partition;
        let journal = self.0.entry(partition).or_insert_with(|| Journal {
            state: PartitionState::new(partition),
            held: Vec::new(),
        });
        journal.push(item)
    }

    fn finish(&mut self) -> Vec<Item> {
        let journals = std::mem::take(&mut self.0).into_values();
        journals.flat_map(|journal| journal.held).collect()
    }
}

impl Journal {
    fn push(&mut self, item: Item) -> Vec<Item> {
        let Ok(commit) = self.state.check(&item.stored.payload) else {
            self.held.push(item);
            return match self.held.len() > SKIPPED_MAX {
                true => self.let_go(),
                false => Vec::new(),
            };
        };
        let strays: Vec<Stray> = self.held.iter().map(stray).collect();
        if strays::word_of(&commit).is_some_and(|word| word.messages == strays) {
            self.held.clear();
        }
        let mut through = self.let_go();
        self.step(&commit, &item);
        through.push(item);
        through
    }

    /// What was held back passes after all.
    fn let_go(&mut self) -> Vec<Item> {
        let through = std::mem::take(&mut self.held);
        for item in &through {
            if let Ok(commit) = Commit::read(&item.stored.payload) {
                self.step(&commit, item);
            }
        }
        through
    }

    fn step(&mut self, commit: &Commit, item: &Item) {
        for stored in &commit.events {
            self.state.pass(&stored.event);
        }
        let hash = ChainHash::of(&item.stored.payload);
        self.state.committed(commit.epoch, hash);
    }
}

fn stray(item: &Item) -> Stray {
    Stray::of(item.stored.sequence.0, &item.stored.payload)
}
