//! What goes on in the background once a caller has its answer, or has left: bounded in time, counted by
//! the tracker, and awaited at shutdown.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use seatbelt_ledger::{
    Pauses,
    api::{Answer, CommandError, Release, Resolution},
};
use seatbelt_schemas::{
    ids::{AccountId, KeyId, ReservationId},
    position::Position,
};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

use super::{
    Gate,
    settling::{Lasting, Unsettled, of_its_time},
};
use crate::{
    config::{FOLLOW_UP_MAX, STOPPING_MAX, UNKNOWN_MAX},
    error::Seldom,
};

/// Pause before a command is sent again: doubled each time.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(20);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Most releases that are followed up at once; a further one is left to the expiry of its hold.
pub(super) const RELEASES_MAX: usize = 16_384;
/// Of these, sent at the same time: a ledger that is back must not be flooded.
pub(super) const RELEASES_AT_ONCE_MAX: usize = 256;

impl Gate {
    /// Sees to it that a settle lasts, and tells when it does; never where it was given up.
    pub(super) fn follow_up_settle(
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
    pub(super) fn follow_up_release(self: &Arc<Self>, mut command: Release) {
        static FULL: LazyLock<Seldom> = LazyLock::new(Seldom::default);
        let Ok(room) = Arc::clone(&self.releases).try_acquire_owned() else {
            if let Some(left_out) = FULL.note("full", Instant::now()) {
                tracing::warn!(
                    left_out,
                    "more holds are to be given back than are kept: the ledger ends them by expiry"
                );
            }
            return;
        };
        let gate = Arc::clone(self);
        self.tracker.spawn(async move {
            let _room = room;
            let began = Instant::now();
            let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
            let mut stopping = None;
            loop {
                let bound = match timeout(gate.ledger_timeout, gate.release_in_turn(command.clone())).await {
                    Ok(Ok(resolution)) => return gate.mark(&command.account, resolution.position),
                    Ok(Err(CommandError::UnknownReservation { .. })) => UNKNOWN_MAX,
                    Ok(Err(CommandError::Unavailable { .. })) | Err(_) => FOLLOW_UP_MAX,
                    // a clock that is ahead makes ids that the ledger takes for none
                    Ok(Err(CommandError::Invalid { .. })) if command.id.at_ms() != command.reservation.at_ms() => {
                        command.id = of_its_time(command.reservation);
                        continue;
                    }
                    Ok(Err(error)) => {
                        return tracing::debug!(reservation = %command.reservation, %error, "nothing to release");
                    }
                };
                if gate.tracker.is_closed() {
                    stopping.get_or_insert_with(Instant::now);
                }
                // an orderly stop does not wait for a partition that nobody serves
                let late = stopping.is_some_and(|since: Instant| since.elapsed() >= STOPPING_MAX);
                if late || began.elapsed() >= bound {
                    return tracing::debug!(reservation = %command.reservation, "release was given up");
                }
                sleep(pauses.draw()).await;
            }
        });
    }
}

impl Gate {
    async fn release_in_turn(&self, command: Release) -> Answer<Resolution> {
        let _turn = self.release_turns.acquire().await;
        self.ledger.release(command).await
    }
}

/// A reserve whose outcome has not come: releases it when dropped.
pub(super) struct Undelivered<'a> {
    pub(super) gate: &'a Arc<Gate>,
    pub(super) account: &'a AccountId,
    pub(super) key: &'a KeyId,
    pub(super) id: ReservationId,
    pub(super) armed: bool,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate::testing::{Stub, gate, key};

    #[tokio::test(start_paused = true)]
    async fn releases_that_are_followed_up_are_bounded_in_number_and_in_time() {
        let stub = Arc::new(Stub {
            release: Box::new(|_| Err(CommandError::unavailable("away"))),
            ..Stub::default()
        });
        let (gate, _, tracker) = gate(&stub);
        let key = key();
        let release = || {
            let id = gate.command_id().into();
            let command = gate.release_command(&key.account, &key.key, id, "not delivered");
            gate.follow_up_release(command);
        };
        (0..RELEASES_MAX + 10).for_each(|_| release());
        assert_eq!(tracker.len(), RELEASES_MAX);
        tracker.close();
        tracker.wait().await;
        release();
        assert_eq!(tracker.len(), 1, "room comes back");
    }
}
