//! Another attempt's hold in the place of one that used nothing.

use std::sync::{Arc, LazyLock};

use seatbelt_ledger::api::{CommandError, Exchange, ReserveOutcome};
use seatbelt_schemas::command::Grant;
use tokio::time::timeout;

use crate::error::Seldom;

use super::{Gate, Reservation, Want, follow_up::Undelivered};

/// Why the other hold was not taken; the one that was to make room is its owner's to end.
pub(crate) struct NotExchanged {
    pub(crate) reservation: Reservation,
    /// Whether that is for want of room, and not for anything that is wrong.
    pub(crate) is_short: bool,
}

impl Gate {
    /// Puts a hold in the place of one of the same request. Where what came of it is not known, the new one is
    /// released in the background, whichever of them is held.
    pub(crate) async fn exchange(
        self: &Arc<Self>,
        mut reservation: Reservation,
        want: Want,
    ) -> Result<(Reservation, Grant), NotExchanged> {
        let reserve = self.reserve_command(self.command_id(), &want);
        let deadline_ms = reserve.deadline_ms;
        let mut undelivered = Undelivered {
            gate: self,
            account: &want.account,
            key: &want.key,
            id: reserve.id.into(),
            armed: true,
        };
        let release = reservation.id;
        let exchange = Exchange { release, reserve };
        let answer = timeout(self.ledger_timeout, self.ledger.exchange(exchange)).await;
        let error = match answer {
            Ok(Ok(ReserveOutcome::Reserved(grant))) => {
                undelivered.armed = false;
                drop(undelivered);
                reservation.close();
                return Ok((self.granted(want, deadline_ms, &grant), grant));
            }
            Ok(Ok(ReserveOutcome::Refused(_))) => None,
            Ok(Err(CommandError::Unavailable { .. })) | Err(_) => {
                self.metrics.ledger_unavailable();
                return Err(NotExchanged {
                    reservation,
                    is_short: false,
                });
            }
            Ok(Err(error)) => Some(error),
        };
        undelivered.armed = false;
        let is_short = matches!(error, None | Some(CommandError::Short { .. }));
        static TOLD: LazyLock<Seldom> = LazyLock::new(Seldom::default);
        if let Some(error) = error.filter(|_| !is_short) {
            // of one without a price it is so with every request
            let kind = format!("{:?}", std::mem::discriminant(&error));
            if let Some(left_out) = TOLD.note(&kind, std::time::Instant::now()) {
                tracing::warn!(reservation = %release, %error, left_out, "another attempt was not let in");
            }
        }
        Err(NotExchanged {
            reservation,
            is_short,
        })
    }
}
