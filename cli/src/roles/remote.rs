//! The ledger as a process sees it that hosts no partition: every account's calls go by NATS request
//! to whoever hosts its partition.

use std::time::Duration;

use futures::future::BoxFuture;
use seatbelt_ledger::{
    api::{
        Ack, Admin, AdminOutcome, Answer, Exchange, Ledger, Read, Release, Reserve, ReserveOutcome,
        Resize, Resolution, Settle, Standing, Taken,
    },
    remote::RemoteLedger,
};
use seatbelt_schemas::{ids::AccountId, position::Partitions};

use super::Bus;

/// How long a call is tried again; longer than a takeover takes.
const PATIENCE: Duration = Duration::from_secs(4);

/// All partitions, each behind its own requests.
pub(super) struct Remote {
    partitions: Partitions,
    ledgers: Vec<RemoteLedger>,
}

impl Remote {
    pub(super) fn new(bus: &Bus) -> Self {
        let partitions = bus.meta.partitions;
        let ledgers = partitions
            .iter()
            .map(|partition| RemoteLedger::new(&bus.nats, &bus.names, partition, PATIENCE));
        Self {
            partitions,
            ledgers: ledgers.collect(),
        }
    }

    fn of(&self, account: &AccountId) -> &RemoteLedger {
        &self.ledgers[usize::from(self.partitions.of(account).0)]
    }
}

impl Ledger for Remote {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        self.of(&command.account).reserve(command)
    }

    fn exchange(&self, command: Exchange) -> BoxFuture<'_, Answer<ReserveOutcome>> {
        self.of(&command.reserve.account).exchange(command)
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).resize(command)
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).settle(command, ack)
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Answer<Taken>> {
        self.of(&command.account).settle_early(command)
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Answer<Resolution>> {
        self.of(&command.account).release(command)
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Answer<Standing>> {
        self.of(&query.account).read(query)
    }

    fn admin(&self, command: Admin) -> BoxFuture<'_, Answer<AdminOutcome>> {
        self.of(&command.account).admin(command)
    }
}
