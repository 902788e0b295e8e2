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

use seatbelt_ledger::api::{CommandError, Ledger, Read, Release, Reserve, ReserveOutcome};
use seatbelt_schemas::{
    command::{Fate, Grant, Refusal, Standing},
    event::{OnShort, OnUnknown, RefusalReason},
    ids::{AccountId, Actor, CommandId, EndUserId, KeyId, ModelId, ReservationId, RunId, TeamId},
    meter::Meter,
    position::Position,
    scope::Scope,
};
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use ulid::Ulid;

use crate::{
    clock::{Clock, ms},
    config::{HOLD_GRACE, KeyEntry},
    error::ApiError,
    metrics::{Metrics, Stage},
};

mod exchange;
mod follow_up;
mod growing;
mod reservation;
pub(crate) mod runs;
mod settling;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use exchange::NotExchanged;
pub(crate) use growing::{Growing, NotGrown};
pub(crate) use reservation::Reservation;

use follow_up::{RELEASES_AT_ONCE_MAX, RELEASES_MAX, Undelivered};
use settling::Settling;

/// Accounts whose last position is remembered for their next read. When full, all are forgotten:
/// reads are then as fresh as the snapshot.
const MARKS_MAX: usize = 65_536;
/// How long a reserve has, once the gateway stops, from when it was asked for: one that only waits for its
/// commit is decided by then.
const DECIDED_WITHIN: Duration = Duration::from_millis(250);

/// What to reserve.
#[derive(Debug)]
pub(crate) struct Want {
    pub(crate) account: AccountId,
    pub(crate) key: KeyId,
    /// Of a key that has none of its own.
    pub(crate) team: Option<TeamId>,
    pub(crate) model: ModelId,
    pub(crate) run: Option<RunId>,
    /// It must be in this open run, which is the one above.
    pub(crate) within: Option<RunId>,
    pub(crate) end_user: Option<EndUserId>,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    /// The first slice of these, of a request that may be held slice by slice.
    pub(crate) slice: Option<u64>,
    /// Most calls of the provider's tools that have a fee.
    pub(crate) tool_calls: u64,
    pub(crate) on_short: OnShort,
    pub(crate) on_unknown: OnUnknown,
    /// How long to wait for open holds to resolve; as configured where it says nothing.
    pub(crate) wait: Option<Duration>,
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
    /// No request waits for room any more: the gateway stops.
    stopping: CancellationToken,
    /// For releases that are followed up.
    releases: Arc<Semaphore>,
    release_turns: Semaphore,
}

/// How long each part of a request may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) budget_wait: Duration,
    pub(crate) ledger_timeout: Duration,
    pub(crate) request_timeout: Duration,
}

/// The ledger's word on a reserve.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
enum Decided {
    Held((Reservation, Grant)),
    Refused(Box<(Refusal, Want)>),
}

/// Whether the first slice of what was refused may fit once others end: the whole never would.
fn slice_may_fit(refusal: &Refusal) -> bool {
    let cap = &refusal.cap;
    let never = matches!(
        refusal.reason,
        RefusalReason::Spent | RefusalReason::Unsatisfiable
    );
    never && cap.spent < cap.limit && cap.held > refusal.held_by_runs
}

/// Why nothing is held for a request.
#[derive(Debug)]
pub(crate) enum NotHeld {
    /// The ledger said no: nothing is reserved under its id.
    Denied(ApiError),
    /// Whether it is reserved is not known. It is given back, or ends by its deadline.
    Unknown(ApiError),
}

impl From<&CommandError> for NotHeld {
    fn from(error: &CommandError) -> Self {
        let told = ApiError::from_command(error);
        match error {
            CommandError::Invalid { .. }
            | CommandError::UnknownAccount { .. }
            | CommandError::UnknownKey { .. }
            | CommandError::KeyRevoked { .. }
            | CommandError::RunEnded { .. }
            | CommandError::TooManyRuns { .. } => Self::Denied(told),
            _ => Self::Unknown(told),
        }
    }
}

impl From<NotHeld> for ApiError {
    fn from(why: NotHeld) -> Self {
        match why {
            NotHeld::Denied(error) | NotHeld::Unknown(error) => error,
        }
    }
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
            stopping: CancellationToken::new(),
            releases: Arc::new(Semaphore::new(RELEASES_MAX)),
            release_turns: Semaphore::new(RELEASES_AT_ONCE_MAX),
        }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn ledger(&self) -> &dyn Ledger {
        self.ledger.as_ref()
    }

    /// Tells all that wait for room that this gateway stops: another one can take them.
    pub(crate) fn stop_waiting(&self) {
        self.stopping.cancel();
    }

    /// Ends once the gateway stops, for a reserve that has had the time in which one is decided that
    /// does not wait.
    async fn stopped(&self, asked_at: tokio::time::Instant) {
        self.stopping.cancelled().await;
        tokio::time::sleep_until(asked_at + DECIDED_WITHIN).await;
    }

    pub(crate) fn command_id(&self) -> CommandId {
        CommandId::from_parts((self.clock)(), Ulid::new().random())
    }

    /// Asks for a hold. Dropping the future gives up the wait, and the hold if one was taken.
    /// Of a request that may be held in slices, the first one is asked for where all of it would never fit, but the
    /// slice may once others end.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        want: Want,
    ) -> Result<(Reservation, Grant), ApiError> {
        let refused = match self.asked(self.command_id(), want).await? {
            Decided::Held(held) => return Ok(held),
            Decided::Refused(refused) => refused,
        };
        let (refusal, mut want) = *refused;
        let Some(slice) = want.slice.take().filter(|_| slice_may_fit(&refusal)) else {
            return Err(self.refused(&refusal, &want));
        };
        want.output_tokens = want.output_tokens.min(slice);
        Ok(self.reserve_as(self.command_id(), want).await?)
    }

    /// The same, under an id that somebody knows already.
    pub(crate) async fn reserve_as(
        self: &Arc<Self>,
        id: CommandId,
        want: Want,
    ) -> Result<(Reservation, Grant), NotHeld> {
        match self.asked(id, want).await? {
            Decided::Held(held) => Ok(held),
            Decided::Refused(refused) => Err(NotHeld::Denied(self.refused(&refused.0, &refused.1))),
        }
    }

    async fn asked(self: &Arc<Self>, id: CommandId, want: Want) -> Result<Decided, NotHeld> {
        let command = self.reserve_command(id, &want);
        let deadline_ms = command.deadline_ms;
        Ok(match self.decided(command).await? {
            ReserveOutcome::Reserved(grant) => {
                Decided::Held((self.granted(want, deadline_ms, &grant), grant))
            }
            ReserveOutcome::Refused(refusal) => Decided::Refused(Box::new((*refusal, want))),
        })
    }

    /// Counts a refusal, and says it.
    fn refused(&self, refusal: &Refusal, want: &Want) -> ApiError {
        self.mark(&want.account, refusal.position);
        self.metrics.refused(refusal.reason);
        if let Some(of_key) = self.metrics.of_key(&want.account, &want.key) {
            of_key.refused(refusal);
        }
        ApiError::refused(refusal, (self.clock)())
    }

    /// A hold that the ledger granted.
    fn granted(self: &Arc<Self>, want: Want, deadline_ms: u64, grant: &Grant) -> Reservation {
        let of_key = self.metrics.of_key(&want.account, &want.key);
        self.mark(&want.account, grant.position);
        self.metrics.held(&grant.hold);
        if let Some(of_key) = &of_key {
            of_key.held(&grant.hold, &grant.caps);
        }
        let patience = self.wait(&want);
        Reservation {
            changing: None,
            run: want.run,
            patience,
            gate: Arc::clone(self),
            account: want.account,
            key: want.key,
            id: grant.reservation,
            hold: grant.hold,
            tool_calls: want.tool_calls,
            deadline_ms,
            reserved_at: Instant::now(),
            on_unknown: want.on_unknown,
            of_key,
            open: true,
        }
    }

    /// The ledger's decision. Where none is known, because the caller left or the ledger did not
    /// answer, what may have been held is released.
    async fn decided(self: &Arc<Self>, command: Reserve) -> Result<ReserveOutcome, NotHeld> {
        let asked_at = Instant::now();
        let (account, key) = (command.account.clone(), command.key.clone());
        let mut undelivered = Undelivered {
            gate: self,
            account: &account,
            key: &key,
            id: command.id.into(),
            armed: true,
        };
        let patience = self.patience(Duration::from_millis(command.wait_ms));
        let answer = tokio::select! {
            biased;
            answer = timeout(patience, self.ledger.reserve(command)) => answer,
            () = self.stopped(tokio::time::Instant::now()) => {
                let busy = "the gateway is stopping, and room for the request is awaited";
                return Err(NotHeld::Unknown(ApiError::busy(busy)));
            }
        };
        let away = matches!(answer, Err(_) | Ok(Err(CommandError::Unavailable { .. })));
        if away {
            self.metrics.ledger_unavailable();
        } else {
            undelivered.armed = false;
            self.metrics.stage(Stage::Reserve, asked_at.elapsed());
        }
        let late = || ApiError::ledger_unavailable("reserve was not answered in time");
        let answer = answer.map_err(|_| NotHeld::Unknown(late()))?;
        answer.map_err(|error| NotHeld::from(&error))
    }

    /// Whether a cap of the key has nothing left, even when all that is held comes back. Asked for only where
    /// there is no count without a neuron's help.
    pub(crate) async fn is_spent(&self, key: &KeyEntry) -> Result<bool, ApiError> {
        let standing = self.standing(key, Some(key.key.clone())).await?;
        Ok(standing.caps.iter().any(|cap| {
            let of_all =
                matches!(cap.scope, Scope::Account) || cap.scope == Scope::Key(key.key.clone());
            of_all && cap.spent >= cap.limit
        }))
    }

    /// Whether any cap on what the key spends counts tokens or money, so that a request needs a bound.
    /// Asked for only where a request has none: caps may be set at any time, and the writer knows.
    pub(crate) async fn bounds(&self, key: &KeyEntry) -> Result<bool, ApiError> {
        // those of models and end users too
        let standing = self.standing(key, None).await?;
        let bounded = standing.caps.iter().any(|cap| {
            let of_another = matches!(&cap.scope, Scope::Key(other) if *other != key.key);
            let counts = !matches!(cap.meter, Meter::Requests | Meter::Concurrency);
            counts && !of_another
        });
        // one that was not told may count too
        Ok(bounded || standing.more)
    }

    async fn standing(&self, key: &KeyEntry, of: Option<KeyId>) -> Result<Standing, ApiError> {
        let account = key.account.clone();
        let (key, run) = (of, None);
        self.read(Read {
            account,
            key,
            run,
            reservation: None,
        })
        .await
    }

    /// Asks the ledger how something stands.
    async fn read(&self, query: Read) -> Result<Standing, ApiError> {
        let late = || ApiError::ledger_unavailable("read was not answered in time");
        timeout(self.ledger_timeout, self.ledger.read(query))
            .await
            .map_err(|_| late())?
            .map_err(|error| ApiError::from_command(&error))
    }

    /// What became of a reservation of an account.
    pub(crate) async fn fate(
        &self,
        account: &AccountId,
        reservation: ReservationId,
    ) -> Result<Fate, ApiError> {
        let query = Read {
            account: account.clone(),
            key: None,
            run: None,
            reservation: Some(reservation),
        };
        let untold =
            || ApiError::ledger_unavailable("the partition's writer is of an older release");
        self.read(query).await?.fate.ok_or_else(untold)
    }

    /// How long an answer to a reserve is awaited that may wait for so long itself.
    fn patience(&self, wait: Duration) -> Duration {
        wait + self.ledger_timeout
    }

    /// How long the answer to one is awaited.
    pub(crate) fn patience_for(&self, want: &Want) -> Duration {
        self.patience(self.wait(want))
    }

    fn wait(&self, want: &Want) -> Duration {
        want.wait.unwrap_or(self.budget_wait)
    }

    fn reserve_command(&self, id: CommandId, want: &Want) -> Reserve {
        let wait = self.wait(want);
        let life = wait + self.request_timeout + HOLD_GRACE;
        Reserve {
            team: want.team.clone(),
            id,
            account: want.account.clone(),
            key: want.key.clone(),
            model: Some(want.model.clone()),
            run: want.run.clone(),
            end_user: want.end_user.clone(),
            input_tokens: want.input_tokens,
            output_tokens: want.output_tokens,
            tool_calls: want.tool_calls,
            deadline_ms: (self.clock)().saturating_add(ms(life)),
            wait_ms: ms(wait),
            on_short: want.on_short,
            on_unknown: want.on_unknown,
            budget: None,
            within: want.within.clone(),
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::{
        testing::{Asked, Stub, cap, gate, key, want},
        *,
    };

    #[tokio::test]
    async fn a_grant_is_counted_as_held_and_remembered() {
        let (gate, metrics, _) = gate(&Arc::new(Stub::default()));
        let want = want();
        let account = want.account.clone();
        let (reservation, grant) = gate.reserve(want).await.unwrap();
        assert_eq!(reservation.hold(), grant.hold);
        assert!(
            metrics
                .text()
                .contains("seatbelt_gateway_held_requests 1\n")
        );
        assert_eq!(gate.marked(&account), Some(grant.position));
        drop(reservation);
        assert!(
            metrics
                .text()
                .contains("seatbelt_gateway_held_requests 0\n")
        );
    }

    #[tokio::test]
    async fn a_reserve_that_nobody_waits_for_is_released() {
        let stub = Arc::new(Stub {
            reserve_hangs: true,
            ..Stub::default()
        });
        let (gate, _, tracker) = gate(&stub);
        assert!(gate.reserve(want()).now_or_never().is_none());
        tracker.close();
        tracker.wait().await;
        let released = Asked::Release("reserve was not delivered".to_owned());
        assert_eq!(stub.asked().last(), Some(&released));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_when_the_gateway_stops_is_told_at_once_and_holds_nothing() {
        let stub = Arc::new(Stub {
            reserve_hangs: true,
            ..Stub::default()
        });
        let (gate, _, tracker) = gate(&stub);
        let begun = tokio::time::Instant::now();
        let mut want = want();
        want.wait = Some(Duration::from_secs(40));
        let waiting = gate.reserve(want);
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        tokio::time::advance(DECIDED_WITHIN).await;
        gate.stop_waiting();
        let told = waiting.now_or_never().expect("at once").err().unwrap();
        let response = told.into_response(seatbelt_dialects::Dialect::OpenAi);
        assert_eq!(response.status().as_u16(), 503);
        assert_eq!(response.headers()["x-should-retry"], "true");
        tracker.close();
        tracker.wait().await;
        let released = Asked::Release("reserve was not delivered".to_owned());
        assert_eq!(stub.asked().last(), Some(&released));
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn what_is_being_decided_when_the_gateway_stops_is_decided() {
        let (gate, _, _) = gate(&Arc::new(Stub::default()));
        gate.stop_waiting();
        assert!(gate.reserve(want()).await.is_ok());
    }

    #[tokio::test]
    async fn where_there_are_more_caps_than_are_told_one_may_bound() {
        let (gate, _, _) = gate(&Arc::new(Stub {
            caps: vec![cap(Meter::Requests)],
            more: true,
            ..Stub::default()
        }));
        assert!(gate.bounds(&key()).await.unwrap());
    }

    #[tokio::test]
    async fn only_what_counts_for_the_key_bounds_it() {
        let bounds = async |cap| {
            let caps = vec![cap];
            let (gate, _, _) = gate(&Arc::new(Stub {
                caps,
                ..Stub::default()
            }));
            gate.bounds(&key()).await.unwrap()
        };
        assert!(bounds(cap(Meter::Tokens)).await);
        assert!(bounds(cap(Meter::Cost)).await);
        assert!(!bounds(cap(Meter::Requests)).await);
        assert!(!bounds(cap(Meter::Concurrency)).await);
        let mut of_another = cap(Meter::Tokens);
        of_another.scope = Scope::Key(KeyId::new("other").unwrap());
        assert!(!bounds(of_another).await);
        let mut own = cap(Meter::Tokens);
        own.scope = Scope::Key(key().key);
        assert!(bounds(own).await);
    }

    #[test]
    fn what_was_remembered_never_goes_back() {
        let (gate, _, _) = gate(&Arc::new(Stub::default()));
        let account = key().account;
        assert_eq!(gate.marked(&account), None);
        gate.mark(&account, Position(9));
        gate.mark(&account, Position(3));
        assert_eq!(gate.marked(&account), Some(Position(9)));
    }
}
