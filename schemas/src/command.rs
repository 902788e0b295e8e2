//! Commands to the ledger and their outcomes, as callers in the same process and callers over NATS
//! give and get them.
//!
//! The same command id always has the same outcome; the same id with another content is a conflict.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    budget::Budget,
    cap::{CapSpec, CapStanding},
    event::{KeyIssued, OnShort, OnUnknown, RefusalReason, Report},
    ids::{
        AccountId, Actor, CapId, CommandId, EndUserId, KeyId, ModelId, ReservationId, RunId, TeamId,
    },
    meter::{Amounts, Meter},
    position::Position,
    price::Price,
    scope::Scope,
    window::Window,
};

/// Asks for a hold: of one request, or of the budget of a whole run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reserve {
    /// The command's id, and the reservation's.
    pub id: CommandId,
    /// The account that pays.
    pub account: AccountId,
    /// The key that pays. Its team comes from the ledger.
    pub key: KeyId,
    /// The team that a request of a key without one of its own is for: its caps apply too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub team: Option<TeamId>,
    pub model: Option<ModelId>,
    /// The agent run: a plain label, unless it was opened with a budget.
    pub run: Option<RunId>,
    /// The caller's end user.
    pub end_user: Option<EndUserId>,
    /// Upper bound of the input.
    pub input_tokens: u64,
    /// Output maximum, all choices together.
    pub output_tokens: u64,
    /// Most calls of tools that the provider runs and charges for.
    #[serde(default, skip_serializing_if = "is_none")]
    pub tool_calls: u64,
    /// When the reservation ends by itself, unix ms.
    pub deadline_ms: u64,
    /// How long the caller waits for open holds to resolve, at most.
    pub wait_ms: u64,
    /// What to do when it does not fit whole.
    pub on_short: OnShort,
    /// What to do when nobody reports its usage.
    pub on_unknown: OnUnknown,
    /// Opens `run` with this budget, out of what the key may spend: a run's whole life is one
    /// reservation. It asks for no tokens, no model and no end user itself; while it is open, requests
    /// of the account that name the run spend from the budget. Releasing it closes the run and gives
    /// the rest back, and so does its deadline, whatever `on_unknown` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// A request must be within this open run, which is its own `run`; a budget is taken out of it.
    /// [`CommandError::RunEnded`] where that run, or one that it is within, is not open: without this a
    /// run that has ended is a plain label, and the key pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<RunId>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_none(amount: &u64) -> bool {
    *amount == 0
}

/// Puts a hold in the place of an open one of the same request: one decision, so that nobody takes the room
/// in between, and never are both held. Where the new one does not fit, nothing changes, and the open one stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exchange {
    /// The open reservation that ends, nothing used.
    pub release: ReservationId,
    /// What takes its place, of the same key; no budget of a run. It does not wait.
    pub reserve: Reserve,
}

/// A hold was taken: what the caller may do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub reservation: ReservationId,
    /// Position of its event.
    pub position: Position,
    /// What is held; its output maximum is the one to enforce.
    pub hold: Amounts,
    /// Whether the output maximum is lower than asked.
    pub clamped: bool,
    /// Every cap that limits it, this hold included. Caps in which the open run of a request holds
    /// its share already are left out.
    pub caps: Vec<CapStanding>,
}

/// A reserve was refused: all that a caller needs to understand it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Position of its event.
    pub position: Position,
    /// When it was decided, unix ms.
    pub at_ms: u64,
    pub reason: RefusalReason,
    /// The cap that refused, as the decision met it.
    pub cap: CapStanding,
    /// What was asked for, in that cap's meter.
    pub requested: u64,
    /// When it would fit, unix ms; none where time alone does not help.
    pub resets_at_ms: Option<u64>,
    /// What of that cap open runs hold when this is told: it comes back when they end, and not with the
    /// requests in progress.
    #[serde(default, skip_serializing_if = "is_none")]
    pub held_by_runs: u64,
}

/// The decision on a [`Reserve`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReserveOutcome {
    /// A hold was taken.
    Reserved(Grant),
    /// None was.
    Refused(Box<Refusal>),
}

/// Changes an open hold: up like a reserve, down always.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resize {
    pub id: CommandId,
    pub account: AccountId,
    pub reservation: ReservationId,
    /// New upper bound of the input.
    pub input_tokens: u64,
    /// New output maximum.
    pub output_tokens: u64,
    pub actor: Actor,
}

/// Replaces a hold by what was really used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settle {
    pub id: CommandId,
    pub account: AccountId,
    pub reservation: ReservationId,
    /// What was used.
    pub report: Report,
    pub actor: Actor,
}

/// Gives a hold back, nothing used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Release {
    pub id: CommandId,
    pub account: AccountId,
    pub reservation: ReservationId,
    /// Why, in one phrase.
    pub reason: String,
    /// Who gives it back.
    pub actor: Actor,
}

/// How a reservation stands after a settle, release or resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolution {
    /// Position of the event.
    pub position: Position,
    /// What is charged now (settle, release), or held now (resize).
    pub amounts: Amounts,
}

/// When a settle is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ack {
    /// Once the writer's state has it: the next reserve sees it. Durability follows.
    Taken,
    /// Once it is durable.
    Durable,
}

/// What an operator may do to an account or the price book.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Opens the account; nothing if it is open.
    OpenAccount,
    /// Sets what all costs of the account are multiplied by from now on; nothing if it is already so. Holds
    /// that are open keep what they were taken with.
    SetMultiplier {
        /// In millionths.
        ppm: u64,
    },
    /// Issues a key, or changes its team; nothing if it is already so.
    IssueKey(KeyIssuedData),
    /// Revokes a key; nothing if it is revoked.
    RevokeKey { key: KeyId, reason: Option<String> },
    /// Sets a cap; nothing if it is already so. Counters stay where only limit, hardness or
    /// thresholds change; another scope, meter or window is another cap and begins anew.
    SetCap(CapSpecData),
    /// Removes a cap; nothing if there is none.
    RemoveCap { cap: CapId },
    /// Raises a balance.
    Credit {
        cap: CapId,
        /// By how much, in the meter's unit.
        amount: u64,
        reason: Option<String>,
    },
    /// Corrects what is spent.
    Adjust {
        cap: CapId,
        /// Added to what is spent.
        delta: i64,
        reason: String,
    },
    /// Sets a model's price in this partition; nothing if it is already so. The version given is
    /// ignored: the ledger counts.
    SetPrice(PriceData),
}

/// A key to issue.
pub type KeyIssuedData = KeyIssued;
/// A cap to set.
pub type CapSpecData = CapSpec;
/// A price to set.
pub type PriceData = Price;

/// An operator's command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Admin {
    pub id: CommandId,
    /// The account; [`AccountId::system`] for prices.
    pub account: AccountId,
    pub actor: Actor,
    /// What to do.
    pub change: Change,
}

/// What came of an operator's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminOutcome {
    /// Position of the event; `None` where nothing had to change.
    pub position: Option<Position>,
}

/// Asks how an account stands in the writer's own state, after all that was decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Read {
    pub account: AccountId,
    /// Only the caps that apply to this key; all where absent.
    pub key: Option<KeyId>,
    /// How this run stands too, and only its own caps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// What became of this reservation too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ReservationId>,
}

/// What became of a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Nothing tells of it: it never was, or is not yet.
    Unknown,
    /// It was refused.
    Refused {
        /// Where; a refusal has no end.
        position: Position,
    },
    /// It holds.
    Open,
    /// It was settled, given back, or ended by its deadline.
    Ended {
        /// Where.
        position: Position,
        /// What is charged.
        charge: Amounts,
    },
    /// Another attempt of the same request took its place.
    Replaced {
        /// Where it ended.
        position: Position,
        /// That attempt.
        by: ReservationId,
    },
}

/// How a run stands that is open with a budget of its own. What it spent and holds is told by its caps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStanding {
    /// The reservation that is its budget: released, the run closes.
    pub reservation: ReservationId,
    /// The key that opened it.
    pub key: KeyId,
    /// What was set aside for it.
    pub budget: Budget,
    /// When it was opened, unix ms.
    pub opened_at_ms: u64,
    /// When it ends by itself, unix ms.
    pub deadline_ms: u64,
    /// The runs that it is within, the innermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<RunId>,
}

/// Most runs in one answer of a writer.
pub const STANDING_RUNS_MAX: usize = 256;

/// How an account stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    pub account: AccountId,
    /// Position of the partition when it was read.
    pub position: Position,
    /// When it was read, unix ms.
    pub at_ms: u64,
    /// Open reservations.
    pub open: u64,
    /// What all its costs are multiplied by, in millionths; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
    /// The caps, by scope and id; at most [`STANDING_CAPS_MAX`] where the writer answers.
    pub caps: Vec<CapStanding>,
    /// Whether there are more: ask by key for those that apply to it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// How many keys the account has that are not revoked; `None` of a snapshot, and of a writer that does not
    /// tell it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_keys: Option<u64>,
    /// The run that was asked for, where it is open with a budget of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Box<RunStanding>>,
    /// Open runs within the one that was asked for, whether that is open or not, the innermost first; at most
    /// [`STANDING_RUNS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inside: Vec<RunId>,
    /// What became of the reservation that was asked for; `None` of a writer that does not tell it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fate: Option<Fate>,
}

/// Most caps in one answer of a writer: it is one message, and has to stay below what a NATS server lets
/// through by default.
pub const STANDING_CAPS_MAX: usize = 1024;

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A command that was not carried out, by what the caller does next. Nothing changed, except where
/// [`CommandError::Unavailable`] says that the outcome is not known.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandError {
    /// Malformed: correct it.
    #[error("invalid command: {detail}")]
    Invalid {
        /// What is wrong with it.
        detail: String,
    },
    /// For another partition: send it there.
    #[error(
        "account {account} does not belong to partition {partition:02}: send the command to its own partition"
    )]
    WrongPartition {
        account: AccountId,
        /// The partition that was asked.
        partition: u8,
    },
    /// There is no such account.
    #[error("account {account} is not known: open it first")]
    UnknownAccount { account: AccountId },
    /// There is no such key.
    #[error("key {key} is not known: issue it first")]
    UnknownKey { key: KeyId },
    /// The key was revoked.
    #[error("key {key} is revoked: use another one")]
    KeyRevoked { key: KeyId },
    /// The run is not open, or one that it is within is not.
    #[error(
        "run {run} is not open: it was closed, its time is up, or a run that it is within has ended; open another one"
    )]
    RunEnded {
        /// The run that is not open.
        run: RunId,
    },
    /// The account's runs have as many caps as they may: close some, or let their time end.
    #[error(
        "the account has {open} runs open, and no room for the caps of another: close those that are not used any more, or wait until their time is up"
    )]
    TooManyRuns {
        /// Runs that are open.
        open: u64,
    },
    /// There is no such cap.
    #[error("cap {cap} is not known: set it first")]
    UnknownCap { cap: CapId },
    /// There is no such reservation.
    #[error("reservation {reservation} is not known: reserve first")]
    UnknownReservation { reservation: ReservationId },
    /// The reservation has ended already, by another command.
    #[error("reservation {reservation} has ended already at position {position}")]
    AlreadyResolved {
        reservation: ReservationId,
        /// Where it ended.
        position: Position,
    },
    /// A hold cannot grow so far, or not be exchanged; the reservation stays as it is.
    #[error(
        "hold cannot grow: cap {cap} has {available} {meter} available and {requested} more were asked for"
    )]
    Short {
        /// The cap that is short.
        cap: CapId,
        /// What it counts.
        meter: Meter,
        /// What it has.
        available: u64,
        /// What was asked for on top.
        requested: u64,
    },
    /// The same id came with another content: use a new id.
    #[error("command {id} was given before with another content: use a new id")]
    Conflict { id: CommandId },
    /// Not now: try again with the same id. What became of this command may not be known.
    #[error("ledger unavailable: {detail}")]
    Unavailable { detail: String },
}

impl CommandError {
    /// A malformed command.
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::Invalid {
            detail: detail.into(),
        }
    }

    /// Not now.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::Unavailable {
            detail: detail.into(),
        }
    }
}

/// Where a cap's numbers come from, for callers that only know its parts.
pub fn declared_cap_id(scope: &Scope, meter: Meter, window: Window) -> String {
    use crate::window::Period;
    let window = match window {
        Window::Balance => "balance".to_owned(),
        Window::Rolling { seconds } => format!("rolling-{seconds}"),
        Window::Calendar { period } => match period {
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
        }
        .to_owned(),
    };
    match scope.id() {
        None => format!("account/{meter}/{window}"),
        Some(id) => format!("{}/{id}/{meter}/{window}", scope.kind()),
    }
}
