//! Decisions: state and command in, events or a typed error out. Pure: no clock, no client, and the
//! same input gives the same event bytes, which is what the audit checks.
//!
//! Limits of time and number that protect the ledger from its callers are checked in [`validate`],
//! once, when a command enters; a recorded decision is not judged by them again.

use std::sync::Arc;

use seatbelt_schemas::{
    budget::Budget,
    cap::{CAPS_PER_ACCOUNT_MAX, CAPS_PER_SCOPE_MAX, CapEvidence, CapSpec},
    command::{Change, CommandError},
    event::{
        AccountOpened, Adjusted, Asked, CapRemoved, Credited, EventBody, Expired, KeyIssued,
        KeyRevoked, OnShort, OnUnknown, RefusalReason, Refused, Released, Report, Reserved,
        Resized, Settled, UsageSource,
    },
    ids::{CapId, EndUserId, KeyId, ModelId, ReservationId, RunId},
    meter::{Amounts, Meter},
    price::Price,
    scope::Scopes,
    usage::Usage,
    window::Window,
};

use crate::{
    account::{Account, Cap, Reservation, Run, deciding},
    prices::PriceBook,
};

pub mod follows;
mod run;
pub mod validate;

/// What a decision depends on besides the account.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The time of the decision, unix ms.
    pub at_ms: u64,
    /// The prices in force.
    pub prices: &'a PriceBook,
}

/// A reserve, as far as the decision depends on it.
#[derive(Debug, Clone, Copy)]
pub struct ReserveRequest<'a> {
    /// The id it will have.
    pub reservation: ReservationId,
    /// The key that pays.
    pub key: &'a KeyId,
    /// The model.
    pub model: Option<&'a ModelId>,
    /// The agent run.
    pub run: Option<&'a RunId>,
    /// The caller's end user.
    pub end_user: Option<&'a EndUserId>,
    /// What is asked.
    pub asked: Asked,
    /// The budget to open the run with.
    pub budget: Option<&'a Budget>,
}

/// The decision on a reserve.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It fits.
    Reserve(Reserved),
    /// It would fit once open holds resolve; these caps are short.
    Wait(Vec<CapId>),
    /// It does not fit.
    Refuse(Refused),
}

/// Decides a reserve. With `last_call` there is no waiting any more: what is short is refused.
pub fn reserve(
    account: &Account,
    context: Context<'_>,
    request: ReserveRequest<'_>,
    last_call: bool,
) -> Result<Verdict, CommandError> {
    let scopes = Arc::new(scopes_of(account, &request)?);
    let price = request
        .model
        .and_then(|model| context.prices.current(model));
    let (want, survey) = survey(account, context, &request, &scopes, price)?;
    let fits = if survey.fits() {
        Some(want)
    } else if request.asked.on_short == OnShort::Clamp {
        clamp(limiting(account, &scopes), price, &want, context.at_ms)?
    } else {
        None
    };
    let price = price.map(|price| price.version);
    let Some(hold) = fits else {
        let asked = (request, scopes, want, price);
        return Ok(short(account, context, asked, survey, last_call));
    };
    Ok(Verdict::Reserve(Reserved {
        reservation: request.reservation,
        scopes,
        asked: request.asked,
        hold,
        price,
        budget: request.budget.copied(),
        caps: survey.evidence,
    }))
}

/// What a reserve would hold, and every cap that it would hold it in.
fn survey(
    account: &Account,
    context: Context<'_>,
    request: &ReserveRequest<'_>,
    scopes: &Scopes,
    price: Option<&Price>,
) -> Result<(Amounts, Survey), CommandError> {
    if let Some(budget) = request.budget {
        return survey_budget(account, context, request, scopes, budget);
    }
    let Asked {
        input_tokens,
        output_tokens,
        ..
    } = request.asked;
    let want = amounts(price, input_tokens, output_tokens)?;
    let run = account.run_of(scopes);
    let need = |cap: &Cap| need(run, cap, &want);
    let survey = Survey::of(account.matching(scopes), need, context.at_ms);
    Ok((want, survey))
}

/// What becomes of a reserve that does not fit: it waits, or is refused.
fn short(
    account: &Account,
    context: Context<'_>,
    (request, scopes, want, price): (ReserveRequest<'_>, Arc<Scopes>, Amounts, Option<u32>),
    survey: Survey,
    last_call: bool,
) -> Verdict {
    let shortage = match survey.shortage {
        Some(shortage) => shortage,
        None if !last_call => return Verdict::Wait(survey.short),
        None => Shortage {
            reason: RefusalReason::Held,
            cap: survey.short[0].clone(),
            resets_at_ms: None,
        },
    };
    // among those that apply, which are few, however many caps the account has
    let refused_by = account
        .matching(&scopes)
        .find(|cap| cap.spec.cap == shortage.cap);
    let terms = refused_by.map(|cap| cap.terms(context.at_ms));
    Verdict::Refuse(Refused {
        terms,
        reservation: request.reservation,
        scopes,
        asked: request.asked,
        want,
        price,
        budget: request.budget.copied(),
        reason: shortage.reason,
        cap: shortage.cap,
        resets_at_ms: shortage.resets_at_ms,
        caps: survey.evidence,
        count: 1,
        decided_at_ms: None,
    })
}

/// What a request needs of a cap; `None` where that is not known (no price). Nothing where its run
/// holds its share already.
fn need(run: Option<&Run>, cap: &Cap, want: &Amounts) -> Option<u64> {
    if run.is_some_and(|run| run.covers(&cap.spec)) {
        return Some(0);
    }
    want.held_in(cap.spec.meter)
}

/// The caps that a request needs something of.
fn limiting<'a>(account: &'a Account, scopes: &'a Scopes) -> impl Iterator<Item = &'a Cap> {
    let run = account.run_of(scopes);
    account
        .matching(scopes)
        .filter(move |cap| run.is_none_or(|run| !run.covers(&cap.spec)))
}

/// A budget against the caps of its payer: it is no request, of no model, and not yet in a run.
fn survey_budget(
    account: &Account,
    context: Context<'_>,
    request: &ReserveRequest<'_>,
    scopes: &Scopes,
    budget: &Budget,
) -> Result<(Amounts, Survey), CommandError> {
    let run = run::admit(account, request, budget)?;
    let payer = deciding(scopes, Some(budget));
    let need = |cap: &Cap| Some(budget.amount(cap.spec.meter).unwrap_or(0));
    let survey = Survey::of(account.matching(&payer), need, context.at_ms);
    if survey.fits() {
        run::unused(account, run, budget)?;
    }
    Ok((budget.hold(), survey))
}

/// Of the caps at which others stand before it (`blocked`), those that a decided reserve takes something of.
pub(crate) fn contested(
    account: &Account,
    data: &Reserved,
    blocked: impl Fn(&CapId) -> bool,
) -> Vec<CapId> {
    let scopes = deciding(&data.scopes, data.budget.as_ref());
    let takes = |cap: &CapSpec| match &data.budget {
        Some(budget) => budget.amount(cap.meter).is_some(),
        None => account
            .run_of(&data.scopes)
            .is_none_or(|run| !run.covers(cap)),
    };
    account
        .matching(&scopes)
        .filter(|cap| blocked(&cap.spec.cap) && takes(&cap.spec))
        .map(|cap| cap.spec.cap.clone())
        .collect()
}

/// Whose a request is.
pub(crate) fn scopes_of(
    account: &Account,
    request: &ReserveRequest<'_>,
) -> Result<Scopes, CommandError> {
    let key = account
        .key(request.key)
        .ok_or_else(|| CommandError::UnknownKey {
            key: request.key.clone(),
        })?;
    if key.revoked {
        return Err(CommandError::KeyRevoked {
            key: request.key.clone(),
        });
    }
    Ok(Scopes {
        key: key.key.clone(),
        team: key.team.clone(),
        model: request.model.cloned(),
        run: request.run.cloned(),
        end_user: request.end_user.cloned(),
    })
}

/// The bound of a request in every meter.
fn amounts(
    price: Option<&Price>,
    input_tokens: u64,
    output_tokens: u64,
) -> Result<Amounts, CommandError> {
    let cost = match price {
        None => None,
        Some(price) => Some(price.bound(input_tokens, output_tokens).ok_or_else(|| {
            CommandError::invalid(format!(
                "the cost of {input_tokens} + {output_tokens} tokens is not countable"
            ))
        })?),
    };
    Ok(Amounts::request(input_tokens, output_tokens, cost))
}

/// Why a request cannot fit now, whatever becomes of the open holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shortage {
    reason: RefusalReason,
    cap: CapId,
    resets_at_ms: Option<u64>,
}

impl Shortage {
    /// Which shortage a caller must hear of when several caps refuse: the one that time does not
    /// cure before the one that it does, and of these the latest.
    fn weight(&self) -> (u8, u64) {
        match self.reason {
            RefusalReason::Unpriced => (3, 0),
            RefusalReason::Spent if self.resets_at_ms.is_none() => (2, 0),
            RefusalReason::Unsatisfiable => (1, self.resets_at_ms.unwrap_or(0)),
            RefusalReason::Spent | RefusalReason::Held => (0, self.resets_at_ms.unwrap_or(0)),
        }
    }
}

/// Every matching cap against one want.
struct Survey {
    evidence: Vec<CapEvidence>,
    /// The weightiest shortage that waiting for holds does not cure.
    shortage: Option<Shortage>,
    /// Caps that are short only because of open holds.
    short: Vec<CapId>,
}

impl Survey {
    fn of<'a>(
        caps: impl Iterator<Item = &'a Cap>,
        need: impl Fn(&Cap) -> Option<u64>,
        at_ms: u64,
    ) -> Self {
        let mut survey = Self {
            evidence: Vec::with_capacity(2),
            shortage: None,
            short: Vec::new(),
        };
        for cap in caps {
            let evidence = cap.evidence(at_ms);
            if cap.spec.hard {
                survey.weigh(cap, &evidence, need(cap), at_ms);
            }
            survey.evidence.push(evidence);
        }
        survey
    }

    fn weigh(&mut self, cap: &Cap, evidence: &CapEvidence, need: Option<u64>, at_ms: u64) {
        let empty_room = evidence.limit.saturating_sub(evidence.spent);
        match need {
            Some(need) if need <= empty_room => {
                if need > empty_room.saturating_sub(evidence.held) {
                    self.short.push(evidence.cap.clone());
                }
            }
            need => {
                let shortage = shortage(cap, evidence, need, at_ms);
                if self
                    .shortage
                    .as_ref()
                    .is_none_or(|known| known.weight() < shortage.weight())
                {
                    self.shortage = Some(shortage);
                }
            }
        }
    }

    fn fits(&self) -> bool {
        self.shortage.is_none() && self.short.is_empty()
    }
}

fn shortage(cap: &Cap, evidence: &CapEvidence, need: Option<u64>, at_ms: u64) -> Shortage {
    let window = cap.spec.window;
    let (reason, resets_at_ms) = match need {
        None => (RefusalReason::Unpriced, None),
        Some(_) if !window.resets() => (RefusalReason::Spent, None),
        Some(need) if need > evidence.limit => (
            RefusalReason::Unsatisfiable,
            window.length_ms(at_ms).map(|length| at_ms + length),
        ),
        Some(need) => {
            let shortfall = need - (evidence.limit - evidence.spent.min(evidence.limit))
                + evidence.spent.saturating_sub(evidence.limit);
            (
                RefusalReason::Spent,
                cap.counter.aged_out_ms(window, at_ms, shortfall),
            )
        }
    };
    Shortage {
        reason,
        cap: evidence.cap.clone(),
        resets_at_ms,
    }
}

/// The largest hold with less output that fits now; `None` where not even one output token does.
fn clamp<'a>(
    caps: impl Iterator<Item = &'a Cap>,
    price: Option<&Price>,
    want: &Amounts,
    at_ms: u64,
) -> Result<Option<Amounts>, CommandError> {
    let mut output = want.output_tokens;
    for cap in caps.filter(|cap| cap.spec.hard) {
        let room = cap
            .limit()
            .saturating_sub(cap.spent(at_ms))
            .saturating_sub(cap.held);
        let fits = |output: u64| match cap.spec.meter {
            Meter::Tokens => want.input_tokens.saturating_add(output) <= room,
            Meter::OutputTokens => output <= room,
            Meter::Cost => price
                .and_then(|price| price.bound(want.input_tokens, output))
                .is_some_and(|cost| cost <= room),
            Meter::Requests | Meter::Concurrency | Meter::InputTokens => want
                .held_in(cap.spec.meter)
                .is_some_and(|need| need <= room),
        };
        output = largest(output, fits);
    }
    if output == 0 {
        return Ok(None);
    }
    amounts(price, want.input_tokens, output).map(Some)
}

/// The largest number from 1 to `most` that fits, where every smaller one fits too; 0 if none.
fn largest(most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

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
    let run = account.run_of(&open.scopes);
    let hold = amounts(price_of(open, context), input_tokens, output_tokens)?;
    let mut caps = Vec::with_capacity(2);
    for cap in account.matching(&open.scopes) {
        let evidence = cap.evidence(context.at_ms);
        let old = need(run, cap, &open.hold).unwrap_or(0);
        let more = need(run, cap, &hold).unwrap_or(0).saturating_sub(old);
        let available = evidence
            .limit
            .saturating_sub(evidence.spent)
            .saturating_sub(evidence.held);
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
        caps,
    })
}

fn price_of<'a>(open: &Reservation, context: Context<'a>) -> Option<&'a Price> {
    context
        .prices
        .version(open.scopes.model.as_ref()?, open.price?)
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
        reserved_at_ms: open.at_ms,
        late,
    })
}

/// What a report comes to. Where nothing was reported the whole hold is charged, its dearest cost
/// included; where tokens were only counted, their kinds are not known and the dearest rate applies.
fn charge(
    open: &Reservation,
    price: Option<&Price>,
    report: &Report,
) -> Result<Amounts, CommandError> {
    let Usage {
        input_tokens,
        output_tokens,
        ..
    } = report.usage;
    let countable = |cost: Option<u64>| {
        let uncountable =
            || CommandError::invalid("the cost of the reported usage is not countable");
        cost.map(Some).ok_or_else(uncountable)
    };
    let cost = match (report.source, price) {
        (UsageSource::Hold, _) => return Ok(open.hold),
        (_, None) => None,
        (UsageSource::Counted, Some(price)) => countable(price.bound(input_tokens, output_tokens))?,
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

/// The change that an operator's event came from; `None` for every other event.
pub fn change_of(body: &EventBody) -> Option<Change> {
    Some(match body {
        EventBody::AccountOpened(_) => Change::OpenAccount,
        EventBody::KeyIssued(data) => Change::IssueKey(data.clone()),
        EventBody::KeyRevoked(KeyRevoked { key, reason }) => Change::RevokeKey {
            key: key.clone(),
            reason: reason.clone(),
        },
        EventBody::CapSet(spec) => Change::SetCap(spec.clone()),
        EventBody::CapRemoved(CapRemoved { cap }) => Change::RemoveCap { cap: cap.clone() },
        EventBody::Credited(Credited {
            cap,
            amount,
            reason,
        }) => Change::Credit {
            cap: cap.clone(),
            amount: *amount,
            reason: reason.clone(),
        },
        EventBody::Adjusted(Adjusted { cap, delta, reason }) => Change::Adjust {
            cap: cap.clone(),
            delta: *delta,
            reason: reason.clone(),
        },
        EventBody::PriceSet(price) => Change::SetPrice(price.clone()),
        _ => return None,
    })
}

/// Decides an operator's change of an account; `None` where nothing has to change.
pub fn change(account: &Account, change: &Change) -> Result<Option<EventBody>, CommandError> {
    match change {
        Change::OpenAccount => Ok((!account.is_open()).then(|| AccountOpened {}.into())),
        Change::IssueKey(data) => Ok(issue(account, data)),
        Change::RevokeKey { key, reason } => revoke(account, key, reason.as_ref()),
        Change::SetCap(spec) => set_cap(account, spec),
        Change::RemoveCap { cap } => {
            operators(account, cap)?;
            let known = account.cap(cap);
            Ok(known.map(|_| CapRemoved { cap: cap.clone() }.into()))
        }
        Change::Credit {
            cap,
            amount,
            reason,
        } => {
            operators(account, cap)?;
            let known = known_cap(account, cap)?;
            if known.spec.window != Window::Balance {
                return Err(CommandError::invalid(format!(
                    "cap {cap} resets by itself: only a balance can be credited"
                )));
            }
            Ok(Some(
                Credited {
                    cap: cap.clone(),
                    amount: *amount,
                    reason: reason.clone(),
                }
                .into(),
            ))
        }
        Change::Adjust { cap, delta, reason } => {
            operators(account, cap)?;
            known_cap(account, cap)?;
            Ok(Some(
                Adjusted {
                    cap: cap.clone(),
                    delta: *delta,
                    reason: reason.clone(),
                }
                .into(),
            ))
        }
        Change::SetPrice(_) => Err(CommandError::invalid(
            "prices belong to the partition: give the account as \"_\"",
        )),
    }
}

/// Decides a change of the price book; `None` where the price is in force already.
pub fn set_price(prices: &PriceBook, price: &Price) -> Result<Option<Price>, CommandError> {
    let current = prices.current(&price.model);
    if current.is_some_and(|known| known.same_terms(price)) {
        return Ok(None);
    }
    let last = current.map_or(0, |known| known.version);
    let version = last
        .checked_add(1)
        .ok_or_else(|| CommandError::invalid("price versions are used up"))?;
    Ok(Some(Price {
        version,
        ..price.clone()
    }))
}

fn known_cap<'a>(account: &'a Account, cap: &CapId) -> Result<&'a Cap, CommandError> {
    account
        .cap(cap)
        .ok_or_else(|| CommandError::UnknownCap { cap: cap.clone() })
}

/// A cap is an operator's to change, unless an open run brought it with it.
fn operators(account: &Account, cap: &CapId) -> Result<(), CommandError> {
    let known = account.cap(cap);
    match known.and_then(|known| account.run_with_cap(&known.spec)) {
        None => Ok(()),
        Some(run) => Err(CommandError::invalid(format!(
            "cap {cap} is the budget of an open run: release reservation {} to close the run",
            run.reservation
        ))),
    }
}

fn issue(account: &Account, data: &KeyIssued) -> Option<EventBody> {
    let same = account.key(&data.key).is_some_and(|known| {
        !known.revoked && known.team == data.team && known.secret_sha256 == data.secret_sha256
    });
    (!same).then(|| data.clone().into())
}

fn revoke(
    account: &Account,
    key: &KeyId,
    reason: Option<&String>,
) -> Result<Option<EventBody>, CommandError> {
    let known = account
        .key(key)
        .ok_or_else(|| CommandError::UnknownKey { key: key.clone() })?;
    Ok((!known.revoked).then(|| {
        KeyRevoked {
            key: key.clone(),
            reason: reason.cloned(),
        }
        .into()
    }))
}

fn set_cap(account: &Account, spec: &CapSpec) -> Result<Option<EventBody>, CommandError> {
    operators(account, &spec.cap)?;
    let known = account.cap(&spec.cap);
    if known.is_some_and(|known| known.spec == *spec) {
        return Ok(None);
    }
    let moves = known.is_none_or(|known| known.spec.scope != spec.scope);
    if moves && account.caps_of(&spec.scope).len() >= CAPS_PER_SCOPE_MAX {
        return Err(CommandError::invalid(format!(
            "{} has {CAPS_PER_SCOPE_MAX} caps already: remove one first",
            spec.scope
        )));
    }
    if known.is_none() && account.caps().len() >= CAPS_PER_ACCOUNT_MAX {
        return Err(CommandError::invalid(format!(
            "the account has {CAPS_PER_ACCOUNT_MAX} caps already: remove one first"
        )));
    }
    Ok(Some(spec.clone().into()))
}
