//! A ledger for the unit tests of the rooms: it answers what a test says, and keeps what it was asked.

use std::{
    future::pending,
    sync::{Arc, Mutex},
};

use futures::{FutureExt, future::BoxFuture};
use seatbelt_ledger::api::{
    Ack, Admin, AdminOutcome, CommandError, Ledger, Read, Release, Reserve, ReserveOutcome, Resize,
    Resolution, Settle, Standing, Taken,
};
use seatbelt_schemas::{
    cap::CapStanding,
    command::{Grant, RunStanding},
    event::{OnShort, OnUnknown, Report, Timings, UsageSource},
    ids::{AccountId, CapId, KeyId, ModelId},
    meter::{Amounts, Meter},
    position::Position,
    scope::Scope,
    usage::Usage,
    window::Window,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Gate, Patience, Want};
use crate::{
    config::{BUDGET_WAIT_MS, KeyEntry, KeySecret, LEDGER_TIMEOUT_MS, REQUEST_TIMEOUT_MS},
    metrics::Metrics,
};

/// What a stub was asked, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Reserve { input: u64, output: u64 },
    Resize { output: u64 },
    Settle(UsageSource, Ack),
    Release(String),
    Read,
}

type Say<T> = Box<dyn Fn(u32) -> Result<T, CommandError> + Send + Sync>;

/// Answers by the number of the question of its kind.
pub(crate) struct Stub {
    pub(crate) caps: Vec<CapStanding>,
    /// Whether there are more than these.
    pub(crate) more: bool,
    /// The run that any question finds.
    pub(crate) run: Option<Box<RunStanding>>,
    pub(crate) reserve_hangs: bool,
    /// Whether the second answer to a settle says that it lasts, or never comes.
    pub(crate) lasts: bool,
    /// What a hold becomes is what was asked for, or what is said.
    pub(crate) resize: Say<()>,
    pub(crate) settle: Say<()>,
    pub(crate) release: Say<()>,
    pub(crate) asked: Mutex<Vec<Asked>>,
}

impl Default for Stub {
    fn default() -> Self {
        Self {
            caps: Vec::new(),
            more: false,
            run: None,
            reserve_hangs: false,
            lasts: true,
            resize: Box::new(|_| Ok(())),
            settle: Box::new(|_| Ok(())),
            release: Box::new(|_| Ok(())),
            asked: Mutex::default(),
        }
    }
}

impl Stub {
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Keeps a question, and says how many of its kind came before.
    fn note(&self, asked: Asked) -> u32 {
        let mut all = self.asked.lock().unwrap();
        let kind = std::mem::discriminant(&asked);
        let before = all
            .iter()
            .filter(|one| std::mem::discriminant(*one) == kind);
        let before = u32::try_from(before.count()).unwrap();
        all.push(asked);
        before
    }
}

fn resolution() -> Resolution {
    Resolution {
        position: Position(8),
        amounts: Amounts::request(1, 1, None),
    }
}

impl Ledger for Stub {
    fn reserve(&self, command: Reserve) -> BoxFuture<'_, Result<ReserveOutcome, CommandError>> {
        let (input, output) = (command.input_tokens, command.output_tokens);
        self.note(Asked::Reserve { input, output });
        let grant = Grant {
            reservation: command.id.into(),
            position: Position(7),
            hold: Amounts::request(input, output, None),
            clamped: false,
            caps: Vec::new(),
        };
        if self.reserve_hangs {
            return pending().boxed();
        }
        async move { Ok(ReserveOutcome::Reserved(grant)) }.boxed()
    }

    fn resize(&self, command: Resize) -> BoxFuture<'_, Result<Resolution, CommandError>> {
        let (input, output) = (command.input_tokens, command.output_tokens);
        let n = self.note(Asked::Resize { output });
        let said = (self.resize)(n);
        let resolution = Resolution {
            position: Position(8),
            amounts: Amounts::request(input, output, None),
        };
        async move { said.map(|()| resolution) }.boxed()
    }

    fn settle(&self, command: Settle, ack: Ack) -> BoxFuture<'_, Result<Resolution, CommandError>> {
        let n = self.note(Asked::Settle(command.report.source, ack));
        let said = (self.settle)(n);
        async move { said.map(|()| resolution()) }.boxed()
    }

    fn settle_early(&self, command: Settle) -> BoxFuture<'_, Result<Taken, CommandError>> {
        let n = self.note(Asked::Settle(command.report.source, Ack::Taken));
        let said = (self.settle)(n);
        let lasting = match self.lasts {
            true => async { Ok(resolution()) }.boxed(),
            false => pending().boxed(),
        };
        let taken = Taken {
            resolution: resolution(),
            lasting,
        };
        async move { said.map(|()| taken) }.boxed()
    }

    fn release(&self, command: Release) -> BoxFuture<'_, Result<Resolution, CommandError>> {
        let n = self.note(Asked::Release(command.reason));
        let said = (self.release)(n);
        async move { said.map(|()| resolution()) }.boxed()
    }

    fn read(&self, query: Read) -> BoxFuture<'_, Result<Standing, CommandError>> {
        self.note(Asked::Read);
        let standing = Standing {
            account: query.account,
            position: Position(7),
            at_ms: 1,
            open: 0,
            multiplier_ppm: None,
            caps: self.caps.clone(),
            live_keys: None,
            run: self.run.clone(),
            inside: Vec::new(),
            fate: None,
            more: self.more,
        };
        async move { Ok(standing) }.boxed()
    }

    fn admin(&self, _: Admin) -> BoxFuture<'_, Result<AdminOutcome, CommandError>> {
        unreachable!("the gateway changes no account")
    }
}

/// A gate before `stub`, its metrics, and what it left running.
pub(crate) fn gate(stub: &Arc<Stub>) -> (Arc<Gate>, Arc<Metrics>, TaskTracker) {
    let (metrics, tracker) = (Arc::new(Metrics::new(true)), TaskTracker::new());
    let patience = Patience {
        budget_wait: BUDGET_WAIT_MS.default_ms(),
        ledger_timeout: LEDGER_TIMEOUT_MS.default_ms(),
        request_timeout: REQUEST_TIMEOUT_MS.default_ms(),
    };
    let ledger: Arc<dyn Ledger> = Arc::<Stub>::clone(stub);
    let clock = Arc::new(|| 1_700_000_000_000);
    let gate = Gate::new(
        ledger,
        clock,
        patience,
        tracker.clone(),
        Arc::clone(&metrics),
        CancellationToken::new(),
    );
    (Arc::new(gate), metrics, tracker)
}

pub(crate) fn key() -> KeyEntry {
    KeyEntry::new(
        KeySecret::hash("sk"),
        AccountId::new("a").unwrap(),
        KeyId::new("k").unwrap(),
    )
}

pub(crate) fn cap(meter: Meter) -> CapStanding {
    CapStanding {
        cap: CapId::new("c").unwrap(),
        scope: Scope::Account,
        meter,
        window: Window::Balance,
        limit: 100,
        spent: 0,
        held: 0,
        resets_at_ms: None,
    }
}

pub(crate) fn want() -> Want {
    let key = key();
    Want {
        account: key.account,
        key: key.key,
        team: None,
        model: ModelId::new("m").unwrap(),
        run: None,
        within: None,
        end_user: None,
        input_tokens: 5,
        output_tokens: 10,
        slice: None,
        tool_calls: 0,
        on_short: OnShort::Refuse,
        on_unknown: OnUnknown::ChargeHold,
        wait: None,
    }
}

/// What an upstream says that it used.
pub(crate) fn report(output_tokens: u64) -> Report {
    Report {
        usage: Usage {
            input_tokens: 5,
            output_tokens,
            ..Usage::default()
        },
        upstream: "u".to_owned(),
        source: UsageSource::Upstream,
        finish: None,
        timings: Timings {
            first_byte_ms: 1,
            total_ms: 2,
        },
    }
}
