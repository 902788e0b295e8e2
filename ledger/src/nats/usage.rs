//! Usage events of neurons, as the ledger's callers wait for them.

use std::time::Duration;

use futures::future::BoxFuture;
use seatbelt_bus::NatsUsageEvents;
use seatbelt_schemas::{ids::ReservationId, usage::UsageEvent};

use crate::api::UsageEvents;

impl UsageEvents for NatsUsageEvents {
    fn usage(
        &self,
        reservation: ReservationId,
        patience: Duration,
    ) -> BoxFuture<'static, Option<UsageEvent>> {
        NatsUsageEvents::usage(self, reservation, patience)
    }
}
