//! Opening a run with a budget of its own: what such a reserve must and must not say, and what stands
//! in its way. Whether the budget fits is decided like any reserve, by its payer's caps.

use seatbelt_schemas::{
    budget::Budget,
    cap::{CAPS_PER_SCOPE_MAX, CAPS_WITH_RUNS_MAX},
    command::CommandError,
    event::OnShort,
    ids::{ReservationId, RunId},
    scope::Scope,
};

use super::ReserveRequest;
use crate::account::{Account, RUN_DEPTH_MAX, Reservation};

/// Checks what can be told without looking at open reservations; returns the run to open.
pub(super) fn admit<'a>(
    account: &Account,
    request: &ReserveRequest<'a>,
    budget: &Budget,
) -> Result<&'a RunId, CommandError> {
    let run = request.run.ok_or_else(|| {
        CommandError::invalid("a budget is a run's: name the run that it is to open")
    })?;
    let asked = &request.asked;
    if request.model.is_some()
        || request.team.is_some()
        || request.end_user.is_some()
        || asked.input_tokens > 0
        || asked.output_tokens > 0
        || asked.tool_calls > 0
    {
        return Err(CommandError::invalid(
            "a budget is no request: leave team, model, end user and tokens to the requests of the run",
        ));
    }
    if asked.on_short == OnShort::Clamp {
        return Err(CommandError::invalid(
            "a budget is not clamped: open the run with on_short refuse, or with less",
        ));
    }
    if let Some(open) = account.runs().get(run) {
        return Err(CommandError::invalid(format!(
            "run {run} is open already as reservation {}: release it first, or open another run",
            open.reservation
        )));
    }
    if let Some(within) = request.within {
        out_of(account, request, budget, within)?;
    }
    room_for_caps(account, run, budget.iter().count())?;
    Ok(run)
}

/// Refuses what must be within an open run where that, or one around it, has ended.
pub(super) fn is_open(account: &Account, request: &ReserveRequest<'_>) -> Result<(), CommandError> {
    let Some(within) = request.within else {
        return Ok(());
    };
    if request.budget.is_none() && request.run != Some(within) {
        return Err(CommandError::invalid(
            "a request is within its own run: give the same id as run and as within",
        ));
    }
    match account.run_ended(within) {
        None => Ok(()),
        Some(run) => Err(CommandError::RunEnded { run: run.clone() }),
    }
}

/// What a budget that is taken out of an open run must keep to: the run's own key, its time, and every
/// meter in which it is limited itself, or more could be spent inside than the run has.
fn out_of(
    account: &Account,
    request: &ReserveRequest<'_>,
    budget: &Budget,
    within: &RunId,
) -> Result<(), CommandError> {
    let ended = || CommandError::RunEnded {
        run: within.clone(),
    };
    let outer = account.runs().get(within).ok_or_else(ended)?;
    let open = account.open().get(&outer.reservation).ok_or_else(ended)?;
    if outer.payer.key != *request.key {
        return Err(CommandError::invalid(format!(
            "run {within} was opened by another key: only that one opens runs within it"
        )));
    }
    if outer.within.len() + 1 >= RUN_DEPTH_MAX {
        return Err(CommandError::invalid(format!(
            "run {within} lies {RUN_DEPTH_MAX} deep already: open the run further out"
        )));
    }
    if request.asked.deadline_ms > open.asked.deadline_ms {
        return Err(CommandError::invalid(format!(
            "run {within} ends before: give a deadline_ms of at most {}",
            open.asked.deadline_ms
        )));
    }
    let mut limited = outer.budget.iter().map(|(meter, _)| meter);
    match limited.find(|meter| budget.amount(*meter).is_none()) {
        None => Ok(()),
        Some(meter) => Err(CommandError::invalid(format!(
            "run {within} has a budget in {meter}: give an amount of {meter} too"
        ))),
    }
}

fn room_for_caps(account: &Account, run: &RunId, more: usize) -> Result<(), CommandError> {
    let scope = Scope::Run(run.clone());
    if account.caps_of(&scope).len() + more > CAPS_PER_SCOPE_MAX {
        return Err(CommandError::invalid(format!(
            "run {run} would have more than {CAPS_PER_SCOPE_MAX} caps: remove one first"
        )));
    }
    if account.caps().len() + more > CAPS_WITH_RUNS_MAX {
        return Err(CommandError::invalid(format!(
            "the account would have more than {CAPS_WITH_RUNS_MAX} caps: remove one or close a run first"
        )));
    }
    Ok(())
}

/// Checks what only what is open and every cap can tell; once, when the budget fits.
pub(super) fn unused(account: &Account, run: &RunId, budget: &Budget) -> Result<(), CommandError> {
    if account.has_open_of(run) {
        return Err(CommandError::invalid(format!(
            "run {run} has open reservations from before: let them end first, or open another run"
        )));
    }
    let taken = budget
        .caps(run)
        .find(|spec| account.cap(&spec.cap).is_some());
    match taken {
        None => Ok(()),
        Some(spec) => Err(CommandError::invalid(format!(
            "cap id {} is taken: remove that cap first",
            spec.cap
        ))),
    }
}

/// Refuses what is done to a request and not to the budget of a run.
pub(super) fn is_request(
    account: &Account,
    id: ReservationId,
    open: &Reservation,
) -> Result<(), CommandError> {
    match (account.run_held_by(id, open), &open.scopes.run) {
        (Some(_), Some(run)) => Err(CommandError::invalid(format!(
            "reservation {id} is the budget of run {run}: its requests are settled and resized by themselves, release it to close the run"
        ))),
        _ => Ok(()),
    }
}
