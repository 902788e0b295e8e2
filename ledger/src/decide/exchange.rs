//! A hold in the place of another one of the same request: the open one is released, and the new one decided as
//! if it had never been there. Both, or neither.

use seatbelt_schemas::{
    command::CommandError,
    event::{Attempt, RefusalReason, Refused, Released, Reserved},
    ids::{KeyId, ReservationId},
};

use super::{Verdict, run};
use crate::account::Account;

/// Most attempts of one request.
pub const ATTEMPTS_MAX: u32 = 64;
/// Why the one that makes room ends.
const REASON: &str = "another attempt took its place";

/// Decides the end of the hold that makes room for `by`, a reservation of `key`; and which attempt that is.
pub fn leave(
    account: &Account,
    reservation: ReservationId,
    (by, key): (ReservationId, &KeyId),
) -> Result<(Released, Attempt), CommandError> {
    let open = account
        .open()
        .get(&reservation)
        .ok_or(CommandError::UnknownReservation { reservation })?;
    run::is_request(account, reservation, open)?;
    if open.scopes.key != *key {
        return Err(CommandError::invalid(format!(
            "reservation {reservation} is of key {}: another attempt is of the same key",
            open.scopes.key
        )));
    }
    let before = open.attempt.unwrap_or(Attempt {
        of: reservation,
        n: 1,
    });
    if before.n >= ATTEMPTS_MAX {
        return Err(CommandError::invalid(format!(
            "reservation {reservation} is attempt {ATTEMPTS_MAX} of its request: no more are made"
        )));
    }
    let released = Released {
        reservation,
        key: key.clone(),
        reason: REASON.to_owned(),
        replaced_by: Some(by),
    };
    let n = before.n + 1;
    Ok((released, Attempt { n, ..before }))
}

/// What a refusal of the new hold is told as: no event records it, for nothing has changed.
fn does_not_fit(account: &Account, refused: &Refused) -> CommandError {
    let Refused {
        reason, cap, want, ..
    } = refused;
    let known = account.cap(cap);
    let numbers = refused.caps.iter().find(|known| known.cap == *cap);
    let (Some(known), Some(numbers)) = (known, numbers) else {
        return CommandError::UnknownCap { cap: cap.clone() };
    };
    let meter = known.spec.meter;
    if *reason == RefusalReason::Unpriced {
        return CommandError::invalid(format!(
            "cap {cap} counts {meter} and the model has no price: give it one, or take another model"
        ));
    }
    let spoken_for = numbers.spent.saturating_add(numbers.held);
    CommandError::Short {
        cap: cap.clone(),
        meter,
        available: numbers.limit.saturating_sub(spoken_for),
        requested: want.held_in(meter).unwrap_or(0),
    }
}

/// What came of the new hold, on an account without the old one.
pub fn taken(account: &Account, verdict: Verdict) -> Result<Reserved, CommandError> {
    match verdict {
        Verdict::Reserve(reserved) => Ok(reserved),
        Verdict::Refuse(refused) => Err(does_not_fit(account, &refused)),
        // decided with the last call, nothing waits
        Verdict::Wait(_) => Err(CommandError::unavailable("no room yet")),
    }
}
