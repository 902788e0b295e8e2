//! One account with a token cap, and the commands of a caller that reserves and settles.

use std::sync::Arc;

use seatbelt_ledger::{
    api::{Ack, Admin, Ledger, Release, Reserve, ReserveOutcome, Settle},
    host::now_ms,
};
use seatbelt_schemas::{
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::{Change, Grant},
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, KeyId},
    meter::Meter,
    scope::Scope,
    usage::Usage,
    window::Window,
};

/// An account and the way to its ledger.
#[derive(Clone)]
pub(crate) struct Payer {
    ledger: Arc<dyn Ledger>,
    account: AccountId,
    key: KeyId,
}

impl Payer {
    /// Account number `number`, open or not.
    pub(crate) fn new(ledger: &Arc<dyn Ledger>, number: usize) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            account: account(number),
            key: KeyId::new("key-bench").unwrap(),
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
        let cap = CapSpec {
            cap: CapId::new("key/key-bench/tokens/balance").unwrap(),
            scope: Scope::Key(self.key.clone()),
            meter: Meter::Tokens,
            window: Window::Balance,
            limit: 1 << 60,
            hard: true,
            thresholds: THRESHOLDS_DEFAULT.to_vec(),
        };
        let issued = KeyIssued {
            key: self.key.clone(),
            team: None,
            secret_sha256: None,
        };
        [
            Change::OpenAccount,
            Change::IssueKey(issued),
            Change::SetCap(cap),
        ]
    }

    pub(crate) async fn open(&self) {
        for change in self.changes() {
            self.ledger.admin(self.admin(change)).await.unwrap();
        }
    }

    pub(crate) fn admin(&self, change: Change) -> Admin {
        Admin {
            id: command_id(),
            account: self.account.clone(),
            actor: Actor::operator("bench"),
            change,
        }
    }

    pub(crate) fn reserve_command(&self) -> Reserve {
        Reserve {
            id: command_id(),
            account: self.account.clone(),
            key: self.key.clone(),
            model: None,
            run: None,
            end_user: None,
            input_tokens: 20,
            output_tokens: 64,
            deadline_ms: now_ms() + 600_000,
            wait_ms: 2000,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
            budget: None,
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
        let command = Release {
            id: command_id(),
            account: self.account.clone(),
            reservation: grant.reservation,
            reason: "bench".to_owned(),
            actor: Actor::key(&self.key),
        };
        self.ledger.release(command).await.unwrap();
    }

    pub(crate) fn settle_command(&self, reservation: CommandId) -> Settle {
        let report = Report {
            usage: Usage {
                input_tokens: 10,
                output_tokens: 5,
                ..Usage::default()
            },
            upstream: "static".to_owned(),
            source: UsageSource::Upstream,
            finish: Some("stop".to_owned()),
            timings: Timings::default(),
        };
        Settle {
            id: command_id(),
            account: self.account.clone(),
            reservation: reservation.into(),
            report,
            actor: Actor::key(&self.key),
        }
    }

    pub(crate) async fn settle(&self, grant: &Grant) {
        let mut command = self.settle_command(command_id());
        command.reservation = grant.reservation;
        self.ledger.settle(command, Ack::Durable).await.unwrap();
    }
}

pub(crate) fn account(number: usize) -> AccountId {
    AccountId::new(format!("acct-{number}")).unwrap()
}

pub(crate) fn command_id() -> CommandId {
    ulid::Ulid::new().into()
}
