//! What tests and benchmarks of every crate begin with: an account with one key and a cap, the commands
//! of whoever pays from it, and how a process hosts a ledger of one partition. Never used by the product.

use seatbelt_schemas::{
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    command::{Admin, Change, Release, Reserve, Settle},
    event::{KeyIssued, OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, Actor, CapId, CommandId, KeyId, LedgerId, ReservationId},
    meter::Meter,
    position::Partitions,
    scope::Scope,
    usage::Usage,
    window::Window,
};

use crate::{
    host::{HostConfig, clock::HostClock, now_ms},
    writer::WriterConfig,
};

pub mod clock;

/// An account and its key.
#[derive(Debug, Clone)]
pub struct Payer {
    pub account: AccountId,
    pub key: KeyId,
}

impl Payer {
    /// Whoever pays from `account` with `key`.
    ///
    /// # Panics
    /// Where these are no ids.
    pub fn new(account: &str, key: &str) -> Self {
        Self {
            account: AccountId::new(account).expect("an account id"),
            key: KeyId::new(key).expect("a key id"),
        }
    }

    /// What opens the account, issues the key and sets a cap.
    pub fn changes(&self, cap: CapSpec) -> [Change; 3] {
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

    /// A change of the account, by an operator.
    pub fn admin(&self, change: Change) -> Admin {
        Admin {
            id: command_id(),
            account: self.account.clone(),
            actor: Actor::operator("test"),
            change,
        }
    }

    /// Asks for a hold of output tokens for a minute, without waiting.
    pub fn reserve(&self, output_tokens: u64) -> Reserve {
        Reserve {
            team: None,
            id: command_id(),
            account: self.account.clone(),
            key: self.key.clone(),
            model: None,
            run: None,
            end_user: None,
            input_tokens: 0,
            output_tokens,
            tool_calls: 0,
            deadline_ms: now_ms() + 60_000,
            wait_ms: 0,
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::ChargeHold,
            budget: None,
            within: None,
        }
    }

    /// Reports what a reservation used.
    pub fn settle(&self, reservation: ReservationId, output_tokens: u64) -> Settle {
        let report = Report {
            usage: Usage {
                output_tokens,
                ..Usage::default()
            },
            upstream: "test".to_owned(),
            source: UsageSource::Upstream,
            finish: None,
            timings: Timings::default(),
        };
        Settle {
            id: command_id(),
            account: self.account.clone(),
            reservation,
            report,
            actor: Actor::key(&self.key),
        }
    }

    /// Gives a reservation back.
    pub fn release(&self, reservation: ReservationId) -> Release {
        Release {
            id: command_id(),
            account: self.account.clone(),
            reservation,
            reason: "test".to_owned(),
            actor: Actor::key(&self.key),
        }
    }
}

/// A new id.
pub fn command_id() -> CommandId {
    ulid::Ulid::new().into()
}

/// A hard cap on a balance of tokens.
///
/// # Panics
/// Where `cap` is no id.
pub fn balance(cap: &str, scope: Scope, limit: u64) -> CapSpec {
    CapSpec {
        cap: CapId::new(cap).expect("a cap id"),
        scope,
        meter: Meter::Tokens,
        window: Window::Balance,
        limit,
        hard: true,
        thresholds: THRESHOLDS_DEFAULT.to_vec(),
    }
}

/// How `writer` hosts a ledger of one partition.
///
/// # Panics
/// Never: one partition is possible.
pub fn one_partition(writer: &str) -> HostConfig {
    HostConfig {
        partitions: Partitions::try_from(1).expect("one is possible"),
        ledger: LedgerId::new("test").expect("a ledger id"),
        writer: writer.to_owned(),
        expiry_grace_ms: 1000,
        accounts_max: WriterConfig::ACCOUNTS_MAX_DEFAULT,
        clock: HostClock::machine(),
    }
}
