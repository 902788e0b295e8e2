//! One account with a token cap, and a caller that reserves and settles.

use std::sync::Arc;

use seatbelt_ledger::{
    api::{Ack, Admin, Ledger, Reserve, ReserveOutcome, Settle},
    host::now_ms,
    testing::{self, balance},
};
use seatbelt_schemas::{
    command::{Change, Grant},
    ids::{AccountId, CommandId},
    scope::Scope,
};

/// An account and the way to its ledger.
#[derive(Clone)]
pub(crate) struct Payer {
    ledger: Arc<dyn Ledger>,
    payer: testing::Payer,
}

impl Payer {
    /// Account number `number`, open or not.
    pub(crate) fn new(ledger: &Arc<dyn Ledger>, number: usize) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            payer: testing::Payer::new(account(number).as_str(), "key-bench"),
        }
    }

    /// The same account through another ledger.
    pub(crate) fn through(&self, ledger: &Arc<dyn Ledger>) -> Self {
        let ledger = Arc::clone(ledger);
        Self {
            ledger,
            ..self.clone()
        }
    }

    /// The way to its ledger.
    pub(crate) fn ledger(&self) -> Arc<dyn Ledger> {
        Arc::clone(&self.ledger)
    }

    /// What opens it.
    pub(crate) fn changes(&self) -> [Change; 3] {
        let scope = Scope::Key(self.payer.key.clone());
        self.payer
            .changes(balance("key/key-bench/tokens/balance", scope, 1 << 60))
    }

    pub(crate) async fn open(&self) {
        for change in self.changes() {
            self.ledger.admin(self.admin(change)).await.unwrap();
        }
    }

    pub(crate) fn admin(&self, change: Change) -> Admin {
        self.payer.admin(change)
    }

    pub(crate) fn reserve_command(&self) -> Reserve {
        Reserve {
            input_tokens: 20,
            deadline_ms: now_ms() + 600_000,
            wait_ms: 2000,
            ..self.payer.reserve(64)
        }
    }

    pub(crate) async fn reserve(&self) -> Grant {
        let outcome = self.ledger.reserve(self.reserve_command());
        match outcome.await.unwrap() {
            ReserveOutcome::Reserved(grant) => grant,
            ReserveOutcome::Refused(refusal) => panic!("refused: {refusal:?}"),
        }
    }

    pub(crate) async fn release(&self, grant: &Grant) {
        let command = self.payer.release(grant.reservation);
        self.ledger.release(command).await.unwrap();
    }

    pub(crate) fn settle_command(&self, reservation: CommandId) -> Settle {
        let mut command = self.payer.settle(reservation.into(), 5);
        command.report.usage.input_tokens = 10;
        command.report.finish = Some("stop".to_owned());
        command
    }

    pub(crate) async fn settle(&self, grant: &Grant) {
        let command = self.settle_command(grant.reservation.into());
        self.ledger.settle(command, Ack::Durable).await.unwrap();
    }
}

pub(crate) fn account(number: usize) -> AccountId {
    AccountId::new(format!("acct-{number}")).unwrap()
}
