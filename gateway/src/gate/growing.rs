//! A hold that changes while its request runs: made smaller once it is known to be more than a slice, and larger as
//! the answer grows.
//!
//! One change at a time, and each until it is known what became of it: one that is still on its way when the next is
//! made could come after it, and leave less held than its neuron was told.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use seatbelt_ledger::{
    Pauses,
    api::{CommandError, Read, Resize},
};
use seatbelt_schemas::{
    ids::{AccountId, Actor, CapId, KeyId, ReservationId, RunId},
    meter::{Amounts, Meter},
};
use tokio::time::{sleep, timeout};

use super::{
    Gate, Reservation,
    follow_up::{PAUSE_FIRST, PAUSE_MAX},
};
use crate::metrics::OfKey;

/// What is held, told by whoever changes it.
#[derive(Debug, Clone)]
pub(super) struct Hold(Arc<Mutex<Amounts>>);

impl Hold {
    fn of(amounts: Amounts) -> Self {
        Self(Arc::new(Mutex::new(amounts)))
    }

    pub(super) fn now(&self) -> Amounts {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Amounts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes the hold of a reservation that somebody else has.
pub(crate) struct Growing {
    gate: Arc<Gate>,
    account: AccountId,
    key: KeyId,
    run: Option<RunId>,
    id: ReservationId,
    hold: Hold,
    of_key: Option<Arc<OfKey>>,
    /// How long its request waits for what others hold.
    pub(crate) patience: Duration,
}

/// Why a hold is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotGrown {
    /// A cap has less.
    Short {
        cap: CapId,
        meter: Meter,
        available: u64,
        requested: u64,
    },
    /// It cannot be changed any more.
    Over,
}

impl Reservation {
    /// Lets somebody change the hold from now on.
    pub(crate) fn growing(&mut self) -> Growing {
        let hold = Hold::of(self.hold());
        self.changing = Some(hold.clone());
        Growing {
            gate: Arc::clone(&self.gate),
            account: self.account.clone(),
            key: self.key.clone(),
            run: self.run.clone(),
            id: self.id,
            hold,
            of_key: self.of_key.clone(),
            patience: self.patience,
        }
    }
}

impl Growing {
    /// Output tokens that are held now.
    pub(crate) fn output_tokens(&self) -> u64 {
        self.hold.now().output_tokens
    }

    /// Holds so much output from now on. Asks for as long as it takes to know.
    pub(crate) async fn to(&self, output_tokens: u64) -> Result<(), NotGrown> {
        let command = Resize {
            id: self.gate.command_id(),
            account: self.account.clone(),
            reservation: self.id,
            input_tokens: self.hold.now().input_tokens,
            output_tokens,
            actor: Actor::key(&self.key),
        };
        let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
        loop {
            let asked = self.gate.ledger.resize(command.clone());
            match timeout(self.gate.ledger_timeout, asked).await {
                Ok(Ok(resolution)) => {
                    self.becomes(resolution.amounts);
                    self.gate.mark(&self.account, resolution.position);
                    return Ok(());
                }
                Ok(Err(CommandError::Short {
                    cap,
                    meter,
                    available,
                    requested,
                })) => {
                    return Err(NotGrown::Short {
                        cap,
                        meter,
                        available,
                        requested,
                    });
                }
                Ok(Err(CommandError::Unavailable { .. })) | Err(_) => {
                    self.gate.metrics.ledger_unavailable();
                    sleep(pauses.draw()).await;
                }
                Ok(Err(error)) => {
                    tracing::debug!(reservation = %self.id, %error, "a hold is not changed any more");
                    return Err(NotGrown::Over);
                }
            }
        }
    }

    /// Whether others hold some of a cap, which may come back. As if so where that cannot be asked.
    pub(crate) async fn others_hold(&self, cap: &CapId, meter: Meter) -> bool {
        let own = self.hold.now().held_in(meter).unwrap_or(0);
        // the caps of a run are told apart from all others
        let runs = self.run.iter().cloned().map(Some).chain([None]);
        for run in runs {
            let query = Read {
                account: self.account.clone(),
                key: Some(self.key.clone()).filter(|_| run.is_none()),
                run,
                reservation: None,
            };
            let Ok(standing) = self.gate.read(query).await else {
                return true;
            };
            let mut caps = standing.caps.into_iter();
            if let Some(found) = caps.find(|one| one.cap == *cap) {
                return found.held > own;
            }
        }
        false
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    fn becomes(&self, amounts: Amounts) {
        let before = std::mem::replace(&mut *self.hold.lock(), amounts);
        self.gate.metrics.held(&amounts);
        self.gate.metrics.not_held(&before);
        if let Some(of_key) = &self.of_key {
            of_key.held(&amounts, &[]);
            of_key.not_held(&before);
        }
    }
}
