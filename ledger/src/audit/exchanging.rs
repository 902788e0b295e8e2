//! A hold in the place of another: the one that made room and the one that took it are one decision, next to
//! each other in one commit, and the attempts of a request count up by one.

use seatbelt_schemas::{
    claim::Claim,
    event::{Attempt, Event, EventBody, EventOf, Released},
    ids::{AccountId, CommandId, KeyId, ReservationId},
};

use super::checks::Check;
use crate::{account::Account, decide::exchange};

/// A hold was released to make room: what must come next.
#[derive(Debug)]
pub(super) struct Exchanging {
    account: AccountId,
    cause: CommandId,
    by: ReservationId,
    key: KeyId,
    /// Which attempt takes its place.
    pub(super) attempt: Attempt,
}

/// Decides again the end of a hold that makes room.
pub(super) fn leave(
    account: &Account,
    event: &EventOf<()>,
    recorded: &Released,
) -> Result<Released, String> {
    // the reservation has the id of the command, as every one has
    let by = (ReservationId::from(event.cause), &recorded.key);
    let left = exchange::leave(account, recorded.reservation, by);
    left.map(|(released, _)| released)
        .map_err(|error| error.to_string())
}

impl Exchanging {
    /// What an event that is about to be applied begins.
    pub(super) fn begun_by(
        account: Option<&Account>,
        event: &Event,
    ) -> Result<Option<Self>, String> {
        let (Some(account), EventBody::Released(data)) = (account, &event.body) else {
            return Ok(None);
        };
        let Some(by) = data.replaced_by else {
            return Ok(None);
        };
        let (_, attempt) = exchange::leave(account, data.reservation, (by, &data.key))
            .map_err(|error| error.to_string())?;
        Ok(Some(Self {
            account: event.account.clone(),
            cause: event.cause,
            by,
            key: data.key.clone(),
            attempt,
        }))
    }

    /// Whether the event that follows is what took the place.
    pub(super) fn goes_on_with(&self, event: &EventOf<()>, claim: &Claim) -> Result<(), String> {
        let is_it = match claim {
            Claim::Reserved(claim) => claim.reservation == self.by && claim.scopes.key == self.key,
            _ => false,
        };
        let is_it = is_it && event.account == self.account && event.cause == self.cause;
        if !Check::Exchange.finds(!is_it) {
            return Ok(());
        }
        Err(format!(
            "stands where `reserved` of {} belongs, for which a hold made room",
            self.by
        ))
    }

    /// What is wrong where nothing follows in its commit.
    pub(super) fn cut(&self) -> String {
        format!(
            "is in a commit that ends before the `reserved` of {}, for which a hold made room",
            self.by
        )
    }
}
