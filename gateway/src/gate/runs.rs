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

use super::Gate;
use crate::{
    clock::ms,
    config::KeyEntry,
    error::{ApiError, Case},
};

/// How often runs are looked for inside one that is being closed: each look closes as many as it is told of.
const LOOKS_MAX: usize = 64;

/// What is said of a run that is not open.
const NOT_FOUND: &str = "run_not_found";

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
        self.opened(key, decided)
    }

    /// The same under an id that somebody else may ask for, so that the run is kept whether or not this caller is there
    /// to hear of it. Not from `until_ms` on: whoever asks for it then has another one opened.
    pub(crate) async fn open_run_to_keep(
        self: &Arc<Self>,
        key: &Arc<KeyEntry>,
        id: CommandId,
        opening: Opening,
        until_ms: u64,
    ) -> Result<Grant, ApiError> {
        let patience = self.patience_of(&opening);
        let command = self.opening_command(id, key, opening);
        let (gate, own) = (Arc::clone(self), Arc::clone(key));
        let asked = self
            .tracker
            .spawn(async move { gate.open_before(until_ms, &own, command).await });
        let late = || ApiError::ledger_unavailable("the opening of a run was not answered in time");
        let answer = timeout(patience, asked).await.map_err(|_| late())?;
        let decided = answer.map_err(|_| late())??;
        self.opened(key, decided)
    }

    async fn open_before(
        self: &Arc<Self>,
        until_ms: u64,
        key: &KeyEntry,
        command: Reserve,
    ) -> Result<ReserveOutcome, ApiError> {
        let id = command.id.into();
        let decided = self.ledger.reserve(command).await;
        let decided = decided.map_err(|error| ApiError::from_command(&error))?;
        let is_open = matches!(decided, ReserveOutcome::Reserved(_));
        if is_open && (self.clock)() >= until_ms {
            let late = self.release_command(&key.account, &key.key, id, "opened too late");
            self.follow_up_release(late);
            return Err(ApiError::busy("the run took too long to be opened"));
        }
        Ok(decided)
    }

    /// How long the answer to an opening is awaited.
    pub(crate) fn patience_of(&self, opening: &Opening) -> Duration {
        self.patience(opening.wait.unwrap_or(self.budget_wait))
    }

    fn opening_command(&self, id: CommandId, key: &KeyEntry, opening: Opening) -> Reserve {
        Reserve {
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

    fn opened(&self, key: &KeyEntry, decided: ReserveOutcome) -> Result<Grant, ApiError> {
        match decided {
            ReserveOutcome::Reserved(grant) => {
                self.mark(&key.account, grant.position);
                Ok(grant)
            }
            ReserveOutcome::Refused(refusal) => {
                self.mark(&key.account, refusal.position);
                self.metrics.refused(refusal.reason);
                Err(ApiError::refused(&refusal, (self.clock)()))
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

    /// Opens a run of which nobody counts on the opening from then on.
    async fn opened_before(until_ms: u64) -> (bool, Vec<Asked>) {
        let stub = Arc::new(Stub::default());
        let (gate, _, tracker) = testing::gate(&stub);
        let opening = Opening {
            run: RunId::new("r").unwrap(),
            budget: serde_json::from_str(r#"{"requests":1}"#).unwrap(),
            deadline_ms: u64::MAX,
            within: None,
            wait: None,
        };
        let (key, id) = (Arc::new(testing::key()), gate.command_id());
        let opened = gate.open_run_to_keep(&key, id, opening, until_ms).await;
        tracker.close();
        tracker.wait().await;
        (opened.is_ok(), stub.asked())
    }

    #[tokio::test]
    async fn a_run_that_is_opened_too_late_is_given_back() {
        let reserved = Asked::Reserve {
            input: 0,
            output: 0,
        };
        let released = Asked::Release("opened too late".to_owned());
        assert_eq!(
            opened_before(0).await,
            (false, vec![reserved.clone(), released])
        );
        assert_eq!(opened_before(u64::MAX).await, (true, vec![reserved]));
    }
}
