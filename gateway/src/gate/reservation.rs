//! An open hold and its one end: settled at what was used, or given back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use seatbelt_ledger::{
    Pauses,
    api::{Answer, CommandError, Resolution, Settle, Taken},
};
use seatbelt_schemas::{
    event::{OnUnknown, Report},
    ids::{AccountId, Actor, KeyId, ReservationId, RunId},
    meter::Amounts,
    position::Position,
};
use tokio::time::{sleep, timeout};

use super::{
    Gate,
    follow_up::{PAUSE_FIRST, PAUSE_MAX},
    growing::Hold,
    settling::Unsettled,
};
use crate::{
    error::ApiError,
    metrics::{GivenUp, OfKey, Stage},
};

/// An open hold. Settled or released by its holder; dropped otherwise only if a task dies, and then
/// the ledger ends it by expiry.
pub(crate) struct Reservation {
    pub(super) gate: Arc<Gate>,
    pub(crate) account: AccountId,
    pub(crate) key: KeyId,
    pub(crate) id: ReservationId,
    /// What was held at first.
    pub(super) hold: Amounts,
    /// What is held by now, where that changes.
    pub(super) changing: Option<Hold>,
    pub(super) run: Option<RunId>,
    /// How long it waits for what others hold.
    pub(super) patience: Duration,
    /// Calls of the provider's tools whose fees are in the hold.
    pub(crate) tool_calls: u64,
    pub(crate) deadline_ms: u64,
    pub(crate) reserved_at: Instant,
    pub(crate) on_unknown: OnUnknown,
    /// What is counted of its key.
    pub(super) of_key: Option<Arc<OfKey>>,
    pub(super) open: bool,
}

impl Reservation {
    /// What is held now.
    pub(crate) fn hold(&self) -> Amounts {
        self.changing.as_ref().map_or(self.hold, Hold::now)
    }

    /// Replaces the hold by what was used. Returns once the writer's state has it, so that the next
    /// reserve of the same client sees it; durability follows in the background, except where the hold
    /// would not cover the charge.
    pub(crate) async fn settle(mut self, report: Report) -> Result<Position, ApiError> {
        self.close();
        let gate = Arc::clone(&self.gate);
        let mut unsettled = self.unsettled(report);
        let began = Instant::now();
        let taken = timeout(gate.ledger_timeout, async {
            loop {
                match gate.settle_taken(&unsettled.command).await {
                    // no answer is withheld for what its upstream says of it
                    Err(CommandError::Invalid { detail }) if unsettled.corrected() => {
                        let source = unsettled.command.report.source;
                        tracing::warn!(reservation = %self.id, detail, ?source, "settle is not valid; sent corrected");
                    }
                    answer => return answer,
                }
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
            hold: self.hold(),
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
        if let Some(of_key) = &self.of_key {
            of_key.spent(&usage, amounts.cost);
        }
        let covered =
            self.on_unknown == OnUnknown::ChargeHold && amounts.above(&self.hold()).is_zero();
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

    /// The gate that it was taken at.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
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

    pub(super) fn close(&mut self) {
        self.open = false;
        self.not_held();
    }

    fn not_held(&self) {
        let hold = self.hold();
        self.gate.metrics.not_held(&hold);
        if let Some(of_key) = &self.of_key {
            of_key.not_held(&hold);
        }
    }
}

impl Gate {
    async fn settle_taken(&self, command: &Settle) -> Answer<Taken> {
        let mut pauses = Pauses::new(PAUSE_FIRST, PAUSE_MAX);
        loop {
            match self.ledger.settle_early(command.clone()).await {
                Err(CommandError::Unavailable { .. }) => {}
                answer => return answer,
            }
            sleep(pauses.draw()).await;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            self.not_held();
            tracing::error!(reservation = %self.id, "reservation was dropped open; the ledger ends it by expiry");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use seatbelt_ledger::api::Ack;
    use seatbelt_schemas::event::UsageSource;

    use super::*;
    use crate::gate::testing::{Asked, Stub, gate, report, want};

    /// What was asked for the end of a reservation.
    async fn ends(stub: &Arc<Stub>) -> Vec<Asked> {
        let (gate, metrics, tracker) = gate(stub);
        let (reservation, _) = gate.reserve(want()).await.unwrap();
        reservation.settle(report(3)).await.unwrap();
        assert!(
            metrics
                .text()
                .contains("seatbelt_gateway_held_requests 0\n")
        );
        tracker.close();
        tracker.wait().await;
        stub.asked().split_off(1)
    }

    #[tokio::test]
    async fn a_settle_that_lasts_is_asked_once() {
        let stub = Arc::new(Stub::default());
        let once = Asked::Settle(UsageSource::Upstream, Ack::Taken);
        assert_eq!(ends(&stub).await, [once]);
    }

    #[tokio::test]
    async fn a_report_that_is_not_valid_is_settled_at_the_hold() {
        let stub = Arc::new(Stub {
            settle: Box::new(|n| match n {
                0 => Err(CommandError::invalid("odd")),
                _ => Ok(()),
            }),
            ..Stub::default()
        });
        let asked = [UsageSource::Upstream, UsageSource::Hold];
        let asked = asked.map(|source| Asked::Settle(source, Ack::Taken));
        assert_eq!(ends(&stub).await, asked);
    }

    #[tokio::test]
    async fn an_answer_waits_only_where_the_hold_would_not_cover_it() {
        let settled = async |on_unknown| {
            let stub = Arc::new(Stub {
                lasts: false,
                ..Stub::default()
            });
            let (gate, _, _) = gate(&stub);
            let mut want = want();
            want.on_unknown = on_unknown;
            let (reservation, _) = gate.reserve(want).await.unwrap();
            reservation.settle(report(3)).now_or_never().is_some()
        };
        assert!(settled(OnUnknown::ChargeHold).await);
        assert!(!settled(OnUnknown::Release).await);
    }

    #[tokio::test]
    async fn a_release_that_is_not_heard_goes_on_in_the_background() {
        let stub = Arc::new(Stub {
            release: Box::new(|n| match n {
                0 | 1 => Err(CommandError::unavailable("away")),
                _ => Ok(()),
            }),
            ..Stub::default()
        });
        let (gate, _, tracker) = gate(&stub);
        let (reservation, _) = gate.reserve(want()).await.unwrap();
        reservation.release("no answer").await;
        tracker.close();
        tracker.wait().await;
        let releases = stub.asked().split_off(1);
        assert_eq!(releases, vec![Asked::Release("no answer".to_owned()); 3]);
    }
}
