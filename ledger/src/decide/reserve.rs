//! Reserves: what is asked against every cap that it is in, and what becomes of it: a hold, a wait or a refusal.

use std::sync::Arc;

use seatbelt_schemas::{
    budget::Budget,
    cap::{CapEvidence, CapSpec},
    command::CommandError,
    event::{Asked, Attempt, OnShort, RefusalReason, Refused, Reserved},
    ids::{CapId, EndUserId, KeyId, ModelId, ReservationId, RunId, TeamId},
    meter::{Amounts, Meter},
    price::Terms,
    scope::Scopes,
};

use super::{Context, run, taking::Taking};
use crate::account::{Account, Cap, Key, deciding};

/// A reserve, as far as the decision depends on it.
#[derive(Debug, Clone, Copy)]
pub struct ReserveRequest<'a> {
    /// The id it will have.
    pub reservation: ReservationId,
    /// The key that pays.
    pub key: &'a KeyId,
    /// The team that it is for, where its key has none of its own.
    pub team: Option<&'a TeamId>,
    pub model: Option<&'a ModelId>,
    /// The agent run.
    pub run: Option<&'a RunId>,
    /// The caller's end user.
    pub end_user: Option<&'a EndUserId>,
    pub asked: Asked,
    /// The budget to open the run with.
    pub budget: Option<&'a Budget>,
    /// The open run that a request must be in, or that the budget is taken out of.
    pub within: Option<&'a RunId>,
    /// Which attempt of its request it is, where it takes the place of another.
    pub attempt: Option<Attempt>,
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
    run::is_open(account, &request)?;
    let price = request
        .model
        .and_then(|model| context.prices.current(model))
        .map(|price| Terms::of(price, account.multiplier_ppm()));
    let (want, survey) = survey(account, context, &request, &scopes, price)?;
    let fits = if survey.fits() {
        Some(want)
    } else if request.asked.on_short == OnShort::Clamp {
        let most = Bounds::of(&request.asked);
        let limiting = limiting(account, context, &scopes);
        clamp(limiting, price, most, context.at_ms)?
    } else {
        None
    };
    let Some(hold) = fits else {
        let asked = (request, scopes, want, price);
        return Ok(short(account, context, asked, survey, last_call));
    };
    Ok(Verdict::Reserve(Reserved {
        reservation: request.reservation,
        scopes,
        asked: request.asked,
        hold,
        price: price.map(|terms| terms.price.version),
        multiplier_ppm: price.and_then(|terms| terms.account_ppm),
        budget: request.budget.copied(),
        within: out_of(&request).cloned(),
        attempt: request.attempt,
        uncovered: survey.uncovered,
        caps: survey.evidence,
    }))
}

/// What a reserve would hold, and every cap that it would hold it in.
fn survey(
    account: &Account,
    context: Context<'_>,
    request: &ReserveRequest<'_>,
    scopes: &Scopes,
    price: Option<Terms<'_>>,
) -> Result<(Amounts, Survey), CommandError> {
    if let Some(budget) = request.budget {
        return survey_budget(account, context, request, scopes, budget);
    }
    let want = amounts(price, Bounds::of(&request.asked))?;
    let need = |cap: &Cap| {
        let taking = Taking::of(account, context, scopes, cap);
        Need {
            amount: taking.need(cap, &want),
            held: taking.held().unwrap_or(cap.held),
            uncovered: taking.is_uncovered(),
        }
    };
    let survey = Survey::of(account.matching(scopes), need, context.at_ms);
    Ok((want, survey))
}

/// What becomes of a reserve that does not fit: it waits, or is refused.
fn short(
    account: &Account,
    context: Context<'_>,
    (request, scopes, want, price): (ReserveRequest<'_>, Arc<Scopes>, Amounts, Option<Terms<'_>>),
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
    let decided_by = deciding(&scopes, request.budget, request.within);
    let refused_by = account
        .matching(&decided_by)
        .find(|cap| cap.spec.cap == shortage.cap);
    let terms = refused_by.map(|cap| cap.terms(context.at_ms));
    Verdict::Refuse(Refused {
        terms,
        uncovered: survey.uncovered,
        reservation: request.reservation,
        scopes,
        asked: request.asked,
        want,
        price: price.map(|terms| terms.price.version),
        multiplier_ppm: price.and_then(|terms| terms.account_ppm),
        budget: request.budget.copied(),
        within: out_of(&request).cloned(),
        reason: shortage.reason,
        cap: shortage.cap,
        resets_at_ms: shortage.resets_at_ms,
        caps: survey.evidence,
        count: 1,
        decided_at_ms: None,
    })
}

/// The caps that a request needs something of, each with what is held there against it.
fn limiting<'a>(
    account: &'a Account,
    context: Context<'a>,
    scopes: &'a Scopes,
) -> impl Iterator<Item = (&'a Cap, u64)> {
    let caps = account.matching(scopes);
    caps.filter_map(move |cap| {
        let taking = Taking::of(account, context, scopes, cap);
        taking.held().map(|held| (cap, held))
    })
}

/// The run that a budget is taken out of.
fn out_of<'a>(request: &ReserveRequest<'a>) -> Option<&'a RunId> {
    request.budget.and(request.within)
}

/// A budget against the caps of its payer, and of the run that it is taken out of: it is no request, of
/// no model, and not yet in the run that it opens.
fn survey_budget(
    account: &Account,
    context: Context<'_>,
    request: &ReserveRequest<'_>,
    scopes: &Scopes,
    budget: &Budget,
) -> Result<(Amounts, Survey), CommandError> {
    let run = run::admit(account, request, budget)?;
    let payer = deciding(scopes, Some(budget), request.within);
    let outer = account.run_of(&payer);
    let need = |cap: &Cap| {
        let amount = match outer {
            Some(outer) if outer.covers(&cap.spec) => 0, // it holds there already what it gives
            _ => budget.amount(cap.spec.meter).unwrap_or(0),
        };
        Need {
            amount: Some(amount),
            held: cap.held,
            uncovered: false,
        }
    };
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
    let scopes = deciding(&data.scopes, data.budget.as_ref(), data.within.as_ref());
    let run = account.run_of(&scopes);
    let takes = |cap: &CapSpec| {
        let held_already = run.is_some_and(|run| run.covers(cap));
        let budget = data.budget.as_ref();
        !held_already && budget.is_none_or(|budget| budget.amount(cap.meter).is_some())
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
    // the room that a run gives an inner one is its payer's, whatever the key's team is by now
    let outer = out_of(request).and_then(|outer| account.runs().get(outer));
    let team = match (outer, request.team) {
        (Some(outer), _) => outer.payer.team.clone(),
        (None, None) => key.team.clone(),
        (None, Some(named)) => Some(named_team(key, named)?),
    };
    Ok(Scopes {
        key: key.key.clone(),
        team,
        model: request.model.cloned(),
        run: request.run.cloned(),
        end_user: request.end_user.cloned(),
    })
}

/// The team that a request names: that of its key, or any where the key has none, whose caps apply in any case.
fn named_team(key: &Key, named: &TeamId) -> Result<TeamId, CommandError> {
    match &key.team {
        Some(own) if own != named => Err(CommandError::invalid(format!(
            "key {} is of team {own}: name no other team",
            key.key
        ))),
        _ => Ok(named.clone()),
    }
}

/// The most that a request can use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) tool_calls: u64,
}

impl Bounds {
    fn of(asked: &Asked) -> Self {
        Self {
            input_tokens: asked.input_tokens,
            output_tokens: asked.output_tokens,
            tool_calls: asked.tool_calls,
        }
    }

    /// The most that it can cost; `None` where that is not countable.
    pub(super) fn cost(self, terms: Terms<'_>) -> Option<u64> {
        terms.bound(self.input_tokens, self.output_tokens, self.tool_calls)
    }
}

/// The bound of a request in every meter.
pub(super) fn amounts(price: Option<Terms<'_>>, most: Bounds) -> Result<Amounts, CommandError> {
    let Bounds {
        input_tokens,
        output_tokens,
        ..
    } = most;
    let cost = match price {
        None => None,
        Some(price) => Some(most.cost(price).ok_or_else(|| {
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

/// What is needed of one cap.
struct Need {
    /// `None` where that is not known (no price).
    amount: Option<u64>,
    /// What is held there against it.
    held: u64,
    /// Whether it is needed although a run holds for it.
    uncovered: bool,
}

/// Every matching cap against one want.
struct Survey {
    evidence: Vec<CapEvidence>,
    /// Whether a run holds for it in a cap where that counts for nothing.
    uncovered: bool,
    /// The weightiest shortage that waiting for holds does not cure.
    shortage: Option<Shortage>,
    /// Caps that are short only because of open holds.
    short: Vec<CapId>,
}

impl Survey {
    fn of<'a>(
        caps: impl Iterator<Item = &'a Cap>,
        need: impl Fn(&Cap) -> Need,
        at_ms: u64,
    ) -> Self {
        let mut survey = Self {
            evidence: Vec::with_capacity(2),
            uncovered: false,
            shortage: None,
            short: Vec::new(),
        };
        for cap in caps {
            let evidence = cap.evidence(at_ms);
            if cap.spec.hard {
                let need = need(cap);
                survey.uncovered |= need.uncovered;
                survey.weigh(cap, &evidence, &need, at_ms);
            }
            survey.evidence.push(evidence);
        }
        survey
    }

    fn weigh(&mut self, cap: &Cap, evidence: &CapEvidence, needed: &Need, at_ms: u64) {
        let empty_room = evidence.limit.saturating_sub(evidence.spent);
        match needed.amount {
            Some(need) if need <= empty_room => {
                if need > empty_room.saturating_sub(needed.held) {
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
    caps: impl Iterator<Item = (&'a Cap, u64)>,
    price: Option<Terms<'_>>,
    most: Bounds,
    at_ms: u64,
) -> Result<Option<Amounts>, CommandError> {
    let mut output = most.output_tokens;
    let with = |output_tokens| Bounds {
        output_tokens,
        ..most
    };
    for (cap, held) in caps.filter(|(cap, _)| cap.spec.hard) {
        let room = cap
            .limit()
            .saturating_sub(cap.spent(at_ms))
            .saturating_sub(held);
        let fits = |output: u64| match cap.spec.meter {
            Meter::Tokens => most.input_tokens.saturating_add(output) <= room,
            Meter::OutputTokens => output <= room,
            Meter::InputTokens => most.input_tokens <= room,
            Meter::Requests | Meter::Concurrency => 1 <= room,
            Meter::Cost => price
                .and_then(|price| with(output).cost(price))
                .is_some_and(|cost| cost <= room),
        };
        output = largest(output, fits);
    }
    if output == 0 {
        return Ok(None);
    }
    amounts(price, with(output)).map(Some)
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
