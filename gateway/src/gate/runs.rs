//! Runs at the ledger: opened with a budget out of what a key may spend, looked at, and closed.
//!
//! Whether a run fits, and whether it is still open, is decided there. A key sees and closes its own runs; one
//! that was handed out for a run sees and closes that one and those inside it.

use std::{sync::Arc, time::Duration};

use seatbelt_ledger::api::{CommandError, Read, Reserve, ReserveOutcome};
use seatbelt_schemas::{
    budget::Budget,
    command::{Grant, RunStanding, Standing},
    event::{OnShort, OnUnknown},
    ids::{CommandId, ReservationId, RunId},
};
use tokio::time::timeout;

use super::{Gate, NotHeld};
use crate::{
    clock::ms,
    config::KeyEntry,
    error::{ApiError, Case},
};

/// How often runs are looked for inside one that is being closed: each look closes as many as it is told of.
const LOOKS_MAX: usize = 64;

/// What is said of a run that is not open.
const NOT_FOUND: &str = "run_not_found";

/// By how much the clocks of gateways and writers may differ.
const CLOCKS_DIFFER_MS: u64 = 2_000;

/// What to open.
pub(crate) struct Opening {
    pub(crate) run: RunId,
    pub(crate) budget: Budget,
    pub(crate) deadline_ms: u64,
    /// The run to take it out of.
    pub(crate) within: Option<RunId>,
    /// How long to wait for room; as configured where it says nothing.
    pub(crate) wait: Option<Duration>,
}

/// A run that is open, with its caps.
pub(crate) struct Found {
    pub(crate) standing: Standing,
    pub(crate) run: RunStanding,
}

/// What a close did.
pub(crate) enum Closed {
    /// It ended the run, which stood so before, and all inside it.
    Whole(Box<Found>),
    /// The run had ended before. It ended those that were still open inside.
    Inside { ended: u64 },
}

impl Gate {
    /// Opens a run. Dropping the future gives up the wait, and the run if it was opened.
    pub(crate) async fn open_run(
        self: &Arc<Self>,
        key: &KeyEntry,
        opening: Opening,
    ) -> Result<Grant, ApiError> {
        let command = self.opening_command(self.command_id(), key, opening);
        let decided = self.decided(command).await?;
        Ok(self.opened(key, decided)?)
    }

    /// The same under an id that somebody else may ask for, so that the run is kept whether or not this caller is there
    /// to hear of it. Not from `until_ms` on: whoever asks for it then has another one opened.
    pub(crate) async fn open_run_to_keep(
        self: &Arc<Self>,
        key: &Arc<KeyEntry>,
        id: CommandId,
        opening: Opening,
        until_ms: u64,
    ) -> Result<Grant, NotHeld> {
        let patience = self.patience_of(&opening);
        let command = self.opening_command(id, key, opening);
        let (gate, own) = (Arc::clone(self), Arc::clone(key));
        let asked = self
            .tracker
            .spawn(async move { gate.open_before(until_ms, &own, command).await });
        let late = "the opening of a run was not answered in time";
        let late = || NotHeld::Unknown(ApiError::ledger_unavailable(late));
        let answer = timeout(patience, asked).await.map_err(|_| late())?;
        let decided = answer.map_err(|_| late())??;
        self.opened(key, decided)
    }

    async fn open_before(
        self: &Arc<Self>,
        until_ms: u64,
        key: &KeyEntry,
        command: Reserve,
    ) -> Result<ReserveOutcome, NotHeld> {
        let id = command.id.into();
        let run = command.run.clone();
        let decided = self.ledger.reserve(command).await;
        let decided = decided.map_err(|error| NotHeld::from(&error))?;
        let is_open = matches!(decided, ReserveOutcome::Reserved(_));
        if is_open
            && (self.clock)() >= until_ms
            && !self.was_opened_before(until_ms, key, run.as_ref()).await?
        {
            let late = self.release_command(&key.account, &key.key, id, "opened too late");
            self.follow_up_release(late);
            let busy = ApiError::busy("the run took too long to be opened");
            return Err(NotHeld::Unknown(busy));
        }
        Ok(decided)
    }

    /// Whether the ledger opened a run while whoever asked for it again was still told to wait: then it may have been
    /// handed out since, and is kept. What counts is when it was opened, and not when this gateway came to hear of it.
    async fn was_opened_before(
        &self,
        until_ms: u64,
        key: &KeyEntry,
        run: Option<&RunId>,
    ) -> Result<bool, NotHeld> {
        let Some(run) = run else { return Ok(false) };
        match self.run(key, run).await {
            Ok(found) => Ok(found.run.opened_at_ms.saturating_add(CLOCKS_DIFFER_MS) < until_ms),
            Err(error) if error.code() == NOT_FOUND => Ok(false),
            Err(error) => Err(NotHeld::Unknown(error)),
        }
    }

    /// How long the answer to an opening is awaited.
    pub(crate) fn patience_of(&self, opening: &Opening) -> Duration {
        self.patience(opening.wait.unwrap_or(self.budget_wait))
    }

    fn opening_command(&self, id: CommandId, key: &KeyEntry, opening: Opening) -> Reserve {
        Reserve {
            team: None,
            id,
            account: key.account.clone(),
            key: key.key.clone(),
            model: None,
            run: Some(opening.run),
            end_user: None,
            input_tokens: 0,
            output_tokens: 0,
            tool_calls: 0,
            deadline_ms: opening.deadline_ms,
            wait_ms: ms(opening.wait.unwrap_or(self.budget_wait)),
            on_short: OnShort::Refuse,
            on_unknown: OnUnknown::Release,
            budget: Some(opening.budget),
            within: opening.within,
        }
    }

    fn opened(&self, key: &KeyEntry, decided: ReserveOutcome) -> Result<Grant, NotHeld> {
        match decided {
            ReserveOutcome::Reserved(grant) => {
                self.mark(&key.account, grant.position);
                Ok(grant)
            }
            ReserveOutcome::Refused(refusal) => {
                self.mark(&key.account, refusal.position);
                self.metrics.refused(refusal.reason);
                let refused = ApiError::refused(&refusal, (self.clock)());
                Err(NotHeld::Denied(refused))
            }
        }
    }

    /// An open run that the key may see.
    pub(crate) async fn run(&self, key: &KeyEntry, run: &RunId) -> Result<Found, ApiError> {
        let query = Read {
            account: key.account.clone(),
            key: None,
            run: Some(run.clone()),
            reservation: None,
        };
        let mut standing = self.read(query).await?;
        let found = standing.run.take().filter(|found| is_own(key, run, found));
        let run = *found.ok_or_else(|| ApiError::run_not_found(run.as_str()))?;
        Ok(Found { standing, run })
    }

    /// Closes a run, and then all that are inside it: itself first, for then nothing is opened inside any more.
    /// Goes on where the caller leaves. Asked again, it closes those that are left.
    pub(crate) async fn close_run(
        self: &Arc<Self>,
        key: Arc<KeyEntry>,
        run: RunId,
    ) -> Result<Closed, ApiError> {
        let gate = Arc::clone(self);
        let closing = async move { gate.close_whole(&key, &run).await };
        let closed = self.tracker.spawn(closing).await;
        closed.unwrap_or_else(|died| {
            let message = "the run could not be closed";
            Err(ApiError::new(Case::Internal, message).log(died.to_string()))
        })
    }

    async fn close_whole(&self, key: &KeyEntry, run: &RunId) -> Result<Closed, ApiError> {
        let found = self.run(key, run).await;
        match &found {
            Ok(found) => self.end_run(key, found.run.reservation).await?,
            // it may have ended, and left others inside: that is for those who could have closed it
            Err(error) if error.code() == NOT_FOUND && may_have_closed(key, run) => {}
            Err(_) => return found.map(Box::new).map(Closed::Whole),
        }
        let mut ended = 0;
        for _ in 0..LOOKS_MAX {
            match self.close_inside(key, run).await? {
                0 => break,
                more => ended += more,
            }
        }
        match found {
            Err(_) if ended > 0 => Ok(Closed::Inside { ended }),
            found => found.map(Box::new).map(Closed::Whole),
        }
    }

    /// Closes as many runs inside a run as one look tells of and the key may see; how many there were.
    async fn close_inside(&self, key: &KeyEntry, run: &RunId) -> Result<u64, ApiError> {
        let query = Read {
            account: key.account.clone(),
            key: None,
            run: Some(run.clone()),
            reservation: None,
        };
        let mut ended = 0;
        for inner in self.read(query).await?.inside {
            match self.run(key, &inner).await {
                Ok(inner) => {
                    self.end_run(key, inner.run.reservation).await?;
                    ended += 1;
                }
                Err(error) if error.code() == NOT_FOUND => {} // it ended meanwhile
                Err(error) => return Err(error),
            }
        }
        Ok(ended)
    }

    async fn end_run(&self, key: &KeyEntry, run: ReservationId) -> Result<(), ApiError> {
        let release = self.release_command(&key.account, &key.key, run, "run closed");
        let answer = timeout(self.ledger_timeout, self.ledger.release(release)).await;
        match answer {
            Ok(Ok(resolution)) => self.mark(&key.account, resolution.position),
            Ok(Err(CommandError::AlreadyResolved { position, .. })) => {
                self.mark(&key.account, position);
            }
            Ok(Err(error)) => return Err(ApiError::from_command(&error)),
            Err(_) => {
                return Err(ApiError::ledger_unavailable(
                    "release was not answered in time",
                ));
            }
        }
        Ok(())
    }
}

/// Whether the key is one that could have closed a run that is open no more: none that is inside it.
fn may_have_closed(key: &KeyEntry, run: &RunId) -> bool {
    let within = key.within.as_ref();
    within.is_none_or(|within| within.run == *run)
}

/// Whether a run is the key's to see: opened by it, and where the key is a run's own, that run or inside it.
fn is_own(key: &KeyEntry, id: &RunId, found: &RunStanding) -> bool {
    let within = key.within.as_ref().map(|within| &within.run);
    found.key == key.key && within.is_none_or(|own| own == id || found.within.contains(own))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::testing::{self, Asked, Stub};

    /// Opens a run of which nobody counts on the opening from then on; the ledger opened it at that time, or does not know
    /// of it any more.
    async fn opened_before(until_ms: u64, opened_at_ms: Option<u64>) -> (bool, Vec<Asked>) {
        let budget: Budget = serde_json::from_str(r#"{"requests":1}"#).unwrap();
        let key = Arc::new(testing::key());
        let run = opened_at_ms.map(|opened_at_ms| {
            Box::new(RunStanding {
                reservation: CommandId::from_parts(1, 1).into(),
                key: key.key.clone(),
                budget,
                opened_at_ms,
                deadline_ms: u64::MAX,
                within: Vec::new(),
            })
        });
        let stub = Arc::new(Stub {
            run,
            ..Stub::default()
        });
        let (gate, _, tracker) = testing::gate(&stub);
        let opening = Opening {
            run: RunId::new("r").unwrap(),
            budget,
            deadline_ms: u64::MAX,
            within: None,
            wait: None,
        };
        let id = gate.command_id();
        let opened = gate.open_run_to_keep(&key, id, opening, until_ms).await;
        tracker.close();
        tracker.wait().await;
        (opened.is_ok(), stub.asked())
    }

    #[tokio::test]
    async fn a_run_that_is_opened_too_late_is_given_back_and_one_that_is_heard_of_too_late_is_kept()
    {
        let reserved = Asked::Reserve {
            input: 0,
            output: 0,
        };
        let released = Asked::Release("opened too late".to_owned());
        let back = vec![reserved.clone(), Asked::Read, released];
        assert_eq!(opened_before(10_000, None).await, (false, back.clone()));
        assert_eq!(opened_before(10_000, Some(10_000)).await, (false, back));
        // whoever asked again in between was told of it
        let kept = vec![reserved.clone(), Asked::Read];
        assert_eq!(opened_before(10_000, Some(5_000)).await, (true, kept));
        let in_time = opened_before(u64::MAX, None).await;
        assert_eq!(in_time, (true, vec![reserved]));
    }
}
