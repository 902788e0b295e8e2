//! A ledger whose partitions take requests only once what is declared is true there: one that comes back from an
//! older journal is served before it has heard, and would decide by the caps and prices of then.

use std::{collections::BTreeSet, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use seatbelt_ledger::api::{
    Ack, Admin, AdminOutcome, Answer, Ledger, Read, Release, Reserve, ReserveOutcome, Resize,
    Resolution, Settle, Standing, Taken,
};
use seatbelt_schemas::{
    command::CommandError,
    position::{Partition, Partitions},
};
use tokio::sync::watch;

/// The ledger of a gateway.
pub(super) struct Undeclared {
    pub(super) ledger: Arc<dyn Ledger>,
    /// The partitions that have yet to hear.
    pub(super) owed: watch::Receiver<BTreeSet<Partition>>,
    pub(super) partitions: Partitions,
}

impl Ledger for Undeclared {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        let partition = self.partitions.of(&command.account);
        if self.owed.borrow().contains(&partition) {
            let detail = format!("what is declared is not true yet in partition {partition}");
            return std::future::ready(Err(CommandError::unavailable(detail))).boxed();
        }
        self.ledger.reserve(command)
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
