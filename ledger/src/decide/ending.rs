//! What becomes of a hold: it is changed, replaced by what was used, given back, or ended by its deadline.

use std::sync::Arc;

use seatbelt_schemas::{
    command::CommandError,
    event::{Expired, OnUnknown, Released, Report, Resized, Settled, UsageSource},
    ids::ReservationId,
    meter::Amounts,
    price::Terms,
    usage::Usage,
};

use super::{
    Context,
    reserve::{Bounds, amounts},
    run,
    taking::Taking,
};
use crate::account::{Account, Reservation};

/// Decides a resize: up like a reserve that does not wait, down always.
pub fn resize(
    account: &Account,
    context: Context<'_>,
    reservation: ReservationId,
    input_tokens: u64,
    output_tokens: u64,
) -> Result<Resized, CommandError> {
    let open = account
        .open()
        .get(&reservation)
        .ok_or(CommandError::UnknownReservation { reservation })?;
    run::is_request(account, reservation, open)?;
    let most = Bounds {
        input_tokens,
        output_tokens,
        tool_calls: open.asked.tool_calls,
    };
    let hold = amounts(price_of(open, context), most)?;
    let (mut caps, mut uncovered) = (Vec::with_capacity(2), false);
    for cap in account.matching(&open.scopes) {
        let evidence = cap.evidence(context.at_ms);
        let taking = Taking::of(account, context, &open.scopes, cap);
        let old = taking.need(cap, &open.hold).unwrap_or(0);
        let more = taking.need(cap, &hold).unwrap_or(0).saturating_sub(old);
        let available = evidence
            .limit
            .saturating_sub(evidence.spent)
            .saturating_sub(taking.held().unwrap_or(0));
        uncovered |= taking.is_uncovered();
        if cap.spec.hard && more > available {
            let (cap, meter) = (evidence.cap, cap.spec.meter);
            return Err(CommandError::Short {
                cap,
                meter,
                available,
                requested: more,
            });
        }
        caps.push(evidence);
    }
    Ok(Resized {
        reservation,
        key: open.scopes.key.clone(),
        hold,
        uncovered,
        caps,
    })
}

fn price_of<'a>(open: &Reservation, context: Context<'a>) -> Option<Terms<'a>> {
    let model = open.scopes.model.as_ref()?;
    let price = context.prices.version(model, open.price?)?;
    Some(Terms::of(price, open.multiplier_ppm))
}

/// Decides a settle, also of a reservation that has expired. The truth is charged whole, even above
/// the hold.
pub fn settle(
    account: &Account,
    context: Context<'_>,
    reservation: ReservationId,
    report: Report,
) -> Result<Settled, CommandError> {
    let (open, late) = match (
        account.open().get(&reservation),
        account.expired().get(&reservation),
    ) {
        (Some(open), _) => (open, false),
        (None, Some(expired)) => (&expired.reservation, true),
        (None, None) => return Err(CommandError::UnknownReservation { reservation }),
    };
    if !late {
        run::is_request(account, reservation, open)?;
    }
    let charge = charge(open, price_of(open, context), &report)?;
    Ok(Settled {
        reservation,
        scopes: Arc::clone(&open.scopes),
        report,
        model: open.scopes.model.clone(),
        charge,
        price: open.price,
        multiplier_ppm: open.multiplier_ppm,
        reserved_at_ms: open.at_ms,
        late,
        attempt: open.attempt,
    })
}

/// What a report comes to. Where nothing was reported the whole hold is charged, its dearest cost
/// included; where tokens were only counted, their kinds are not known and the dearest rate applies.
fn charge(
    open: &Reservation,
    price: Option<Terms<'_>>,
    report: &Report,
) -> Result<Amounts, CommandError> {
    let Usage {
        input_tokens,
        output_tokens,
        tool_calls,
        ..
    } = report.usage;
    let counted = Bounds {
        input_tokens,
        output_tokens,
        tool_calls,
    };
    let countable = |cost: Option<u64>| {
        let uncountable =
            || CommandError::invalid("the cost of the reported usage is not countable");
        cost.map(Some).ok_or_else(uncountable)
    };
    let cost = match (report.source, price) {
        (UsageSource::Hold, _) => return Ok(open.hold),
        (_, None) => None,
        (UsageSource::Counted, Some(price)) => countable(counted.cost(price))?,
        (UsageSource::Neuron | UsageSource::Upstream, Some(price)) => {
            countable(price.cost(&report.usage))?
        }
    };
    Ok(Amounts::request(input_tokens, output_tokens, cost))
}

/// Decides a release.
pub fn release(
    account: &Account,
    reservation: ReservationId,
    reason: &str,
) -> Result<Released, CommandError> {
    let open = account
        .open()
        .get(&reservation)
        .ok_or(CommandError::UnknownReservation { reservation })?;
    Ok(Released {
        reservation,
        key: open.scopes.key.clone(),
        reason: reason.to_owned(),
        replaced_by: None,
    })
}

/// Decides the end of a reservation whose deadline has passed; `None` where it is not open or not due.
/// A run's budget is no usage of anybody: what is left of it goes back, whatever the policy.
pub fn expire(
    account: &Account,
    at_ms: u64,
    grace_ms: u64,
    reservation: ReservationId,
) -> Option<Expired> {
    let open = account.open().get(&reservation)?;
    if at_ms < open.asked.deadline_ms.saturating_add(grace_ms) {
        return None;
    }
    let policy = match account.run_held_by(reservation, open) {
        None => open.asked.on_unknown,
        Some(_) => OnUnknown::Release,
    };
    let charge = match policy {
        OnUnknown::ChargeHold => open.hold,
        OnUnknown::Release => Amounts::zero(),
    };
    let (key, reserved_at_ms) = (open.scopes.key.clone(), open.at_ms);
    Some(Expired {
        reservation,
        key,
        policy,
        charge,
        reserved_at_ms,
    })
}
