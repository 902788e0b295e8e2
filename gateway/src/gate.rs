//! The gateway's side of the ledger: reserve before work, exactly one end after it.
//!
//! A reservation is held by a value that can only be settled or released. Answers that are unsure are
//! followed up in the background, bounded in time and awaited at shutdown: an undelivered reserve is
//! released, and a settle is sent again where the answer that it lasts did not come. Nothing is decided
//! here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use seatbelt_ledger::api::{
    Answer, CommandError, Ledger, Read, Release, Reserve, ReserveOutcome, Resolution, Settle, Taken,
};
use seatbelt_schemas::{
    command::Grant,
    event::{OnShort, OnUnknown, Report},
    ids::{AccountId, Actor, CommandId, EndUserId, KeyId, ModelId, ReservationId, RunId},
    meter::{Amounts, Meter},
    position::Position,
    scope::Scope,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use ulid::Ulid;

use crate::{
    clock::{Clock, ms},
    config::{HOLD_GRACE, KeyEntry},
    error::ApiError,
    metrics::{GivenUp, Metrics, Stage},
};

mod settling;

use settling::{Lasting, Settling, Unsettled};

/// How long a release is sent again in the background before the hold is left to expiry.
const FOLLOW_UP_MAX: Duration = Duration::from_secs(120);
/// How long the release of a reserve that nobody answered waits for that reserve to turn up.
const UNKNOWN_MAX: Duration = Duration::from_secs(5);
/// Pause before a command is sent again: doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Accounts whose last position is remembered for their next read. When full, all are forgotten:
/// reads are then as fresh as the snapshot.
const MARKS_MAX: usize = 65_536;

/// What to reserve.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) account: AccountId,
    pub(crate) key: KeyId,
    pub(crate) model: ModelId,
    pub(crate) run: Option<RunId>,
    pub(crate) end_user: Option<EndUserId>,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) on_short: OnShort,
    pub(crate) on_unknown: OnUnknown,
}

/// The ledger with what its callers here share.
pub(crate) struct Gate {
    ledger: Arc<dyn Ledger>,
    clock: Clock,
    budget_wait: Duration,
    ledger_timeout: Duration,
    request_timeout: Duration,
    tracker: TaskTracker,
    metrics: Arc<Metrics>,
    marks: Mutex<HashMap<AccountId, Position>>,
    settling: Arc<Settling>,
}

/// How long each part of a request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) budget_wait: Duration,
    pub(crate) ledger_timeout: Duration,
    pub(crate) request_timeout: Duration,
}

impl Gate {
    pub(crate) fn new(
        ledger: Arc<dyn Ledger>,
        clock: Clock,
        patience: Patience,
        tracker: TaskTracker,
        metrics: Arc<Metrics>,
        cut: CancellationToken,
    ) -> Self {
        let settling = Settling::new(
            Arc::clone(&ledger),
            Arc::clone(&clock),
            patience.ledger_timeout,
            Arc::clone(&metrics),
            cut,
        );
        Self {
            settling,
            ledger,
            clock,
            budget_wait: patience.budget_wait,
            ledger_timeout: patience.ledger_timeout,
            request_timeout: patience.request_timeout,
            tracker,
            metrics,
            marks: Mutex::default(),
        }
    }

    pub(crate) fn ledger(&self) -> &dyn Ledger {
        self.ledger.as_ref()
    }

    fn command_id(&self) -> CommandId {
        CommandId::from_parts((self.clock)(), Ulid::new().random())
    }

    /// Asks for a hold. Dropping the future gives up the wait, and the hold if one was taken.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        want: Want,
    ) -> Result<(Reservation, Grant), ApiError> {
        let command = self.reserve_command(&want);
        let deadline_ms = command.deadline_ms;
        match self.decided(&want, command).await? {
            ReserveOutcome::Reserved(grant) => {
                self.mark(&want.account, grant.position);
                self.metrics.held(&grant.hold);
                let reservation = Reservation {
                    gate: Arc::clone(self),
                    account: want.account,
                    key: want.key,
                    id: grant.reservation,
                    hold: grant.hold,
                    deadline_ms,
                    reserved_at: Instant::now(),
                    on_unknown: want.on_unknown,
                    open: true,
                };
                Ok((reservation, grant))
            }
            ReserveOutcome::Refused(refusal) => {
                self.mark(&want.account, refusal.position);
                self.metrics.refused(refusal.reason);
                Err(ApiError::refused(&refusal, (self.clock)()))
            }
        }
    }

    /// The ledger's decision. Where none is known, because the caller left or the ledger did not
    /// answer, what may have been held is released.
    async fn decided(
        self: &Arc<Self>,
        want: &Want,
        command: Reserve,
    ) -> Result<ReserveOutcome, ApiError> {
        let asked_at = Instant::now();
        let mut undelivered = Undelivered {
            gate: self,
            account: &want.account,
            key: &want.key,
            id: command.id.into(),
            armed: true,
        };
        let patience = self.budget_wait + self.ledger_timeout;
        let answer = timeout(patience, self.ledger.reserve(command)).await;
        let away = matches!(answer, Err(_) | Ok(Err(CommandError::Unavailable { .. })));
        if away {
            self.metrics.ledger_unavailable();
        } else {
            undelivered.armed = false;
            self.metrics.stage(Stage::Reserve, asked_at.elapsed());
        }
        let late = || ApiError::ledger_unavailable("reserve was not answered in time");
        answer
            .map_err(|_| late())?
            .map_err(|error| ApiError::from_command(&error))
    }

    /// Whether any cap on what the key spends counts tokens or money, so that a request needs a bound.
    /// Asked for only where a request has none: caps may be set at any time, and the writer knows.
    pub(crate) async fn bounds(&self, key: &KeyEntry) -> Result<bool, ApiError> {
        let query = Read {
            account: key.account.clone(),
            key: None, // those of models and end users too
        };
        let late = || ApiError::ledger_unavailable("read was not answered in time");
        let standing = timeout(self.ledger_timeout, self.ledger.read(query))
            .await
            .map_err(|_| late())?
            .map_err(|error| ApiError::from_command(&error))?;
        Ok(standing.caps.iter().any(|cap| {
            let of_another = matches!(&cap.scope, Scope::Key(other) if *other != key.key);
            let counts = !matches!(cap.meter, Meter::Requests | Meter::Concurrency);
            counts && !of_another
        }))
    }

    fn reserve_command(&self, want: &Want) -> Reserve {
        let life = self.budget_wait + self.request_timeout + HOLD_GRACE;
        Reserve {
            id: self.command_id(),
            account: want.account.clone(),
            key: want.key.clone(),
            model: Some(want.model.clone()),
            run: want.run.clone(),
            end_user: want.end_user.clone(),
            input_tokens: want.input_tokens,
            output_tokens: want.output_tokens,
            deadline_ms: (self.clock)().saturating_add(ms(life)),
            wait_ms: ms(self.budget_wait),
            on_short: want.on_short,
            on_unknown: want.on_unknown,
            budget: None,
        }
    }

    /// The last position this gateway was told for the account.
    pub(crate) fn marked(&self, account: &AccountId) -> Option<Position> {
        self.marks
            .lock()
            .expect("no holder of the lock panics")
            .get(account)
            .copied()
    }

    fn mark(&self, account: &AccountId, position: Position) {
        let mut marks = self.marks.lock().expect("no holder of the lock panics");
        if let Some(known) = marks.get_mut(account) {
            *known = position.max(*known);
            return;
        }
        if marks.len() >= MARKS_MAX {
            marks.clear();
        }
        marks.insert(account.clone(), position);
    }

    /// Sees to it that a settle lasts, and tells when it does; never where it was given up.
    fn follow_up_settle(
        self: &Arc<Self>,
        unsettled: Unsettled,
        lasting: Option<Lasting>,
    ) -> oneshot::Receiver<Position> {
        let (lasts, told) = oneshot::channel();
        let account = unsettled.command.account.clone();
        let Some(kept) = self.settling.keep(unsettled) else {
            return told;
        };
        let gate = Arc::clone(self);
        self.tracker.spawn(async move {
            if let Some(position) = kept.until_it_lasts(lasting).await {
                gate.mark(&account, position);
                // whoever did not have to wait is gone
                let _ = lasts.send(position);
            }
        });
        told
    }

    /// Releases in the background, until it is known to be done or never to have been reserved.
    fn follow_up_release(self: &Arc<Self>, command: Release) {
        let gate = Arc::clone(self);
        self.tracker.spawn(async move {
            let began = Instant::now();
            let mut pause = PAUSE_FIRST;
            loop {
                let bound = match timeout(gate.ledger_timeout, gate.ledger.release(command.clone())).await {
                    Ok(Ok(resolution)) => return gate.mark(&command.account, resolution.position),
                    Ok(Err(CommandError::UnknownReservation { .. })) => UNKNOWN_MAX,
                    Ok(Err(CommandError::Unavailable { .. })) | Err(_) => FOLLOW_UP_MAX,
                    Ok(Err(error)) => {
                        return tracing::debug!(reservation = %command.reservation, %error, "nothing to release");
                    }
                };
                if began.elapsed() >= bound {
                    return tracing::debug!(reservation = %command.reservation, "release was given up");
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        });
    }

    fn release_command(
        &self,
        account: &AccountId,
        key: &KeyId,
        reservation: ReservationId,
        reason: &str,
    ) -> Release {
        Release {
            id: self.command_id(),
            account: account.clone(),
            reservation,
            reason: reason.to_owned(),
            actor: Actor::key(key),
        }
    }
}

/// A reserve whose outcome has not come: releases it when dropped.
struct Undelivered<'a> {
    gate: &'a Arc<Gate>,
    account: &'a AccountId,
    key: &'a KeyId,
    id: ReservationId,
    armed: bool,
}

impl Drop for Undelivered<'_> {
    fn drop(&mut self) {
        if self.armed {
            let command = self.gate.release_command(
                self.account,
                self.key,
                self.id,
                "reserve was not delivered",
            );
            self.gate.follow_up_release(command);
        }
    }
}

/// An open hold. Settled or released by its holder; dropped otherwise only if a task dies, and then
/// the ledger ends it by expiry.
pub(crate) struct Reservation {
    gate: Arc<Gate>,
    pub(crate) account: AccountId,
    pub(crate) key: KeyId,
    pub(crate) id: ReservationId,
    pub(crate) hold: Amounts,
    pub(crate) deadline_ms: u64,
    pub(crate) reserved_at: Instant,
    pub(crate) on_unknown: OnUnknown,
    open: bool,
}

impl Reservation {
    /// Replaces the hold by what was used. Returns once the writer's state has it, so that the next
    /// reserve of the same client sees it; durability follows in the background, except where the hold
    /// would not cover the charge.
    pub(crate) async fn settle(mut self, report: Report) -> Result<Position, ApiError> {
        self.close();
        let gate = Arc::clone(&self.gate);
        let mut unsettled = self.unsettled(report);
        let began = Instant::now();
        let taken = timeout(gate.ledger_timeout, async {
            match gate.settle_taken(&unsettled.command).await {
                // no answer is withheld for what its upstream says of it
                Err(CommandError::Invalid { detail }) => {
                    tracing::warn!(reservation = %self.id, detail, "report is not valid; settled at the hold");
                    unsettled.at_hold((gate.clock)());
                    gate.settle_taken(&unsettled.command).await
                }
                answer => answer,
            }
        })
        .await;
        gate.metrics.stage(Stage::Settle, began.elapsed());
        match taken {
            Ok(Ok(taken)) => {
                let left = gate.ledger_timeout.saturating_sub(began.elapsed());
                self.taken(unsettled, taken, left).await
            }
            // reconciled by another part meanwhile: it has its one end
            Ok(Err(error @ CommandError::AlreadyResolved { position, .. })) => {
                gate.settling
                    .give_up(&unsettled, GivenUp::Ended, &error.to_string());
                gate.mark(&self.account, position);
                Ok(position)
            }
            Ok(Err(error)) => {
                gate.settling
                    .give_up(&unsettled, GivenUp::Refused, &error.to_string());
                Err(ApiError::not_recorded(format!(
                    "settle was not accepted: {error}"
                )))
            }
            Err(_) => {
                gate.metrics.ledger_unavailable();
                drop(gate.follow_up_settle(unsettled, None));
                Err(ApiError::not_recorded("settle was not taken in time"))
            }
        }
    }

    fn unsettled(&self, report: Report) -> Unsettled {
        Unsettled {
            command: Settle {
                id: self.gate.command_id(),
                account: self.account.clone(),
                reservation: self.id,
                report,
                actor: Actor::key(&self.key),
            },
            hold: self.hold,
            deadline_ms: self.deadline_ms,
            charge: None,
        }
    }

    /// Decides whether the answer may go out before its settle lasts. If everything dies in between, the
    /// reservation ends by its deadline: that must then be the truth, or above it.
    async fn taken(
        &self,
        mut unsettled: Unsettled,
        taken: Taken,
        left: Duration,
    ) -> Result<Position, ApiError> {
        let Resolution { position, amounts } = taken.resolution;
        unsettled.charge = Some(amounts);
        let usage = unsettled.command.report.usage;
        self.gate.mark(&self.account, position);
        self.gate.metrics.spent(&usage, amounts.cost);
        let covered =
            self.on_unknown == OnUnknown::ChargeHold && amounts.above(&self.hold).is_zero();
        let lasts = self.gate.follow_up_settle(unsettled, Some(taken.lasting));
        if covered {
            return Ok(position);
        }
        match timeout(left, lasts).await {
            Ok(Ok(position)) => Ok(position),
            Ok(Err(_)) | Err(_) => Err(ApiError::not_recorded(
                "a settle that its hold does not cover did not last in time",
            )),
        }
    }

    /// Gives the hold back: nothing was used. Returns once that is durable, or in any case after a
    /// while; then it goes on in the background.
    pub(crate) async fn release(mut self, reason: &str) {
        self.close();
        let gate = Arc::clone(&self.gate);
        let command = gate.release_command(&self.account, &self.key, self.id, reason);
        match timeout(gate.ledger_timeout, gate.ledger.release(command.clone())).await {
            Ok(Ok(resolution)) => gate.mark(&self.account, resolution.position),
            Ok(Err(CommandError::AlreadyResolved { position, .. })) => {
                gate.mark(&self.account, position);
            }
            Ok(Err(error @ CommandError::Unavailable { .. })) => {
                tracing::debug!(reservation = %self.id, %error, "release goes on in the background");
                gate.follow_up_release(command);
            }
            Ok(Err(error)) => {
                tracing::error!(reservation = %self.id, %error, "release was not accepted");
            }
            Err(_) => gate.follow_up_release(command),
        }
    }

    fn close(&mut self) {
        self.open = false;
        self.gate.metrics.not_held(&self.hold);
    }
}

impl Gate {
    async fn settle_taken(&self, command: &Settle) -> Answer<Taken> {
        let mut pause = PAUSE_FIRST;
        loop {
            match self.ledger.settle_early(command.clone()).await {
                Err(CommandError::Unavailable { .. }) => {}
                answer => return answer,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            self.gate.metrics.not_held(&self.hold);
            tracing::error!(reservation = %self.id, "reservation was dropped open; the ledger ends it by expiry");
        }
    }
}
