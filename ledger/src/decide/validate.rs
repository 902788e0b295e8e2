//! Bounds that a command must keep to be looked at at all: numbers that stay countable, texts that
//! stay small, times near now.

use seatbelt_schemas::{
    amount::{
        AMOUNT_MAX, FEE_MAX, MULTIPLIER_PPM_MAX, PRICE_MAX, TOKENS_PER_REQUEST_MAX, TOOL_CALLS_MAX,
    },
    budget::{Budget, is_kept_for_runs},
    cap::{CAPS_OF_RUNS_MAX, CAPS_PER_ACCOUNT_MAX, CAPS_WITH_RUNS_MAX, CapSpec, THRESHOLDS_MAX},
    command::{Admin, Change, CommandError, Exchange, Release, Reserve, Resize, Settle},
    event::{KeyIssued, Report},
    ids::{CommandId, RunId},
    meter::{Amounts, Meter},
    price::{Price, Rates, TIERS_MAX},
    scope::{Scope, Scopes},
};

use crate::account::Account;

/// How far ahead of the writer's clock the time in a command id may be: 1 minute. Ids of the future
/// would push ids of the present out of what stays hot.
pub const CLOCK_SKEW_MS_MAX: u64 = 60_000;
/// How old a command may be that is carried out: 1 hour. An older one is answered if the journal has
/// it, and turned away if not, so that the journal need not be searched further than that. What ends
/// a reservation is not bound by it: no reservation ends twice.
pub const COMMAND_AGE_MS_MAX: u64 = 3_600_000;
/// Longest life of a reservation: 24 hours.
pub const DEADLINE_MS_MAX: u64 = 24 * 3_600_000;
/// Most open reservations of one account: what its snapshot holds, and a takeover reads, is bounded by it.
/// Reserves that wait already when it is reached are still let in.
pub const OPEN_PER_ACCOUNT_MAX: usize = 50_000;
/// Most keys one account may have; revoked ones count, for nothing takes them out.
pub const KEYS_PER_ACCOUNT_MAX: usize = 50_000;
/// Longest free text in a command.
pub const TEXT_LEN_MAX: usize = 512;

// what requests hold in tokens stays countable beside all runs, those included that are let in although as many
// as may be are open; of costs see `holdable`
const _: () = {
    let requests = 2 * OPEN_PER_ACCOUNT_MAX as u128;
    let tokens = 2 * TOKENS_PER_REQUEST_MAX as u128;
    assert!(requests * tokens + AMOUNT_MAX as u128 <= u64::MAX as u128);
};

/// A command that is not looked at: what is wrong with it shows without any state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Malformed {
    detail: String,
}

impl Malformed {
    fn because(detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { detail }
    }
}

impl From<Malformed> for CommandError {
    fn from(Malformed { detail }: Malformed) -> Self {
        Self::invalid(detail)
    }
}

/// Checks a reserve's bounds at `now_ms`.
pub fn reserve(command: &Reserve, now_ms: u64) -> Result<(), Malformed> {
    recent(command.id, now_ms)?;
    if command.account.is_system() {
        return Err(Malformed::because(
            "account \"_\" is the partition's own and reserves nothing",
        ));
    }
    tokens("input_tokens", command.input_tokens)?;
    tokens("output_tokens", command.output_tokens)?;
    within("tool_calls", command.tool_calls, TOOL_CALLS_MAX)?;
    alive(command, now_ms)?;
    if command.deadline_ms > now_ms + DEADLINE_MS_MAX {
        return Err(Malformed::because(format!(
            "deadline_ms is more than {DEADLINE_MS_MAX} ms ahead"
        )));
    }
    Ok(())
}

/// Checks an exchange's bounds.
pub fn exchange(command: &Exchange, now_ms: u64) -> Result<(), Malformed> {
    if command.reserve.budget.is_some() {
        return Err(Malformed::because(
            "a run's budget takes no other hold's place: reserve it",
        ));
    }
    if command.release == command.reserve.id.into() {
        return Err(Malformed::because(
            "a reservation does not take its own place: give the new one its own id",
        ));
    }
    reserve(&command.reserve, now_ms)
}

/// Checks that a reserve's deadline is still ahead: a hold would end as it begins.
pub fn alive(command: &Reserve, now_ms: u64) -> Result<(), Malformed> {
    if command.deadline_ms <= now_ms {
        return Err(Malformed::because(
            "deadline_ms has passed: give a time in the future",
        ));
    }
    Ok(())
}

/// Checks that an account has room for another open reservation; what to wait for where it has not.
pub fn room_for_reserve(account: &Account) -> Result<(), String> {
    if account.open().len() >= OPEN_PER_ACCOUNT_MAX {
        return Err(format!(
            "the account has {OPEN_PER_ACCOUNT_MAX} open reservations already: let some end first"
        ));
    }
    Ok(())
}

/// Checks what opens a run against the runs that are open: the account keeps caps for its operators, and a
/// run takes nothing from those around it that the one it is taken out of does not limit.
pub fn opening(account: &Account, command: &Reserve) -> Result<(), CommandError> {
    let Some(budget) = &command.budget else {
        return Ok(());
    };
    if let Some(run) = &command.run {
        unentered(account, run)?;
    }
    match &command.within {
        Some(within) => limited_around(account, command, budget, within)?,
        None => countable(account, budget)?,
    }
    room_for_run(account, budget)
}

/// What the account's runs and requests hold must stay countable, also where no hard cap bounds it: a sum that
/// stops at the last number that there is gives back more than it took.
fn countable(account: &Account, budget: &Budget) -> Result<(), CommandError> {
    let held = |meter| account.held_in(&Scope::Account, meter);
    let mut asked = budget.iter();
    match asked.find(|(meter, amount)| held(*meter).saturating_add(*amount) > AMOUNT_MAX) {
        None => Ok(()),
        Some((meter, amount)) => Err(CommandError::invalid(format!(
            "{amount} {meter} and what the account holds already are more than {AMOUNT_MAX}: give a smaller budget"
        ))),
    }
}

/// The same for a request that takes `hold` in the place of `before`. Costs alone are looked at: no
/// number of tokens comes near the end of their range. Where its run holds the cost already, that was looked at
/// when the run was opened.
pub fn holdable(
    account: &Account,
    scopes: &Scopes,
    (before, hold): (&Amounts, &Amounts),
) -> Result<(), CommandError> {
    let by_run = account.run_of(scopes);
    if by_run.is_some_and(|run| run.budget.amount(Meter::Cost).is_some()) {
        return Ok(());
    }
    let (before, cost) = (before.cost.unwrap_or(0), hold.cost.unwrap_or(0));
    let others = account.held_in(&Scope::Account, Meter::Cost);
    let others = others.saturating_sub(before);
    if cost <= before || others.saturating_add(cost) <= AMOUNT_MAX {
        return Ok(());
    }
    Err(CommandError::invalid(format!(
        "a cost of {cost} nano-USD and what the account holds already are more than {AMOUNT_MAX}: ask for less at once"
    )))
}

/// Runs inside one that ended are inside no other that takes its name, and give that nothing back.
fn unentered(account: &Account, run: &RunId) -> Result<(), CommandError> {
    let is_open = account.runs().contains_key(run);
    let mut runs = account.runs().values();
    if !is_open && runs.any(|inner| inner.within.contains(run)) {
        return Err(CommandError::invalid(format!(
            "run {run} has runs inside from before: let them end first, or open another run"
        )));
    }
    Ok(())
}

fn limited_around(
    account: &Account,
    command: &Reserve,
    budget: &Budget,
    within: &RunId,
) -> Result<(), CommandError> {
    let outer = account.runs().get(within);
    let Some(outer) = outer.filter(|outer| outer.payer.key == command.key) else {
        return Ok(()); // what that is, the decision says
    };
    let mut asked = budget.iter().map(|(meter, _)| meter);
    match asked.find(|meter| outer.budget.amount(*meter).is_none()) {
        None => Ok(()),
        Some(meter) => Err(CommandError::invalid(format!(
            "run {within} has no budget in {meter}: leave {meter} out, or have a run opened that has one"
        ))),
    }
}

fn room_for_run(account: &Account, budget: &Budget) -> Result<(), CommandError> {
    let (all, more) = (account.caps().len(), budget.iter().count());
    if all + more <= CAPS_OF_RUNS_MAX {
        return Ok(()); // whosever they are
    }
    if caps_of_runs(account) + more <= CAPS_OF_RUNS_MAX && all + more <= CAPS_WITH_RUNS_MAX {
        return Ok(());
    }
    Err(CommandError::TooManyRuns {
        open: account.runs().len() as u64,
    })
}

fn caps_of_runs(account: &Account) -> usize {
    let runs = account.runs().values();
    runs.map(|run| run.budget.iter().count()).sum()
}

/// Checks that an account has room for another cap of its operators, whatever its runs have. Releases before
/// this one let runs have more than their part: the whole is bounded all the same.
pub fn room_for_cap(account: &Account) -> Result<(), Malformed> {
    let all = account.caps().len();
    if all < CAPS_PER_ACCOUNT_MAX {
        return Ok(()); // whosever they are
    }
    let of_operators = all.saturating_sub(caps_of_runs(account));
    if of_operators < CAPS_PER_ACCOUNT_MAX && all < CAPS_WITH_RUNS_MAX {
        return Ok(());
    }
    Err(Malformed::because(format!(
        "the account has {CAPS_PER_ACCOUNT_MAX} caps already, or {CAPS_WITH_RUNS_MAX} with those of its runs: remove one first"
    )))
}

/// Checks that an account has room for what an operator's change brings.
pub fn room_for_change(account: &Account, change: &Change) -> Result<(), Malformed> {
    let Change::IssueKey(KeyIssued { key, .. }) = change else {
        return Ok(());
    };
    if account.keys().len() >= KEYS_PER_ACCOUNT_MAX && account.key(key).is_none() {
        return Err(Malformed::because(format!(
            "the account has {KEYS_PER_ACCOUNT_MAX} keys already, revoked ones included: issue this one in another account"
        )));
    }
    Ok(())
}

/// Checks a resize's bounds.
pub fn resize(command: &Resize, now_ms: u64) -> Result<(), Malformed> {
    recent(command.id, now_ms)?;
    tokens("input_tokens", command.input_tokens)?;
    tokens("output_tokens", command.output_tokens)
}

/// Checks a settle's bounds.
pub fn settle(command: &Settle, now_ms: u64) -> Result<(), Malformed> {
    id(command.id, now_ms)?;
    let Report {
        usage,
        upstream,
        finish,
        ..
    } = &command.report;
    tokens("input_tokens", usage.input_tokens)?;
    tokens("output_tokens", usage.output_tokens)?;
    within("tool_calls", usage.tool_calls, TOOL_CALLS_MAX)?;
    let cached = usage
        .cached_input_tokens
        .checked_add(usage.cache_write_tokens);
    if cached.is_none_or(|cached| cached > usage.input_tokens)
        || usage.cache_write_long_tokens > usage.cache_write_tokens
        || usage.reasoning_tokens > usage.output_tokens
    {
        return Err(Malformed::because(
            "cached, written and reasoning tokens are parts of input and output, not more",
        ));
    }
    text("upstream", upstream)?;
    text("finish", finish.as_deref().unwrap_or(""))
}

/// Checks a release's bounds.
pub fn release(command: &Release, now_ms: u64) -> Result<(), Malformed> {
    id(command.id, now_ms)?;
    text("reason", &command.reason)
}

/// Checks an operator's command.
pub fn admin(command: &Admin, now_ms: u64) -> Result<(), Malformed> {
    recent(command.id, now_ms)?;
    if command.account.is_system() != matches!(command.change, Change::SetPrice(_)) {
        return Err(Malformed::because(
            "account \"_\" takes prices and nothing else does",
        ));
    }
    match &command.change {
        Change::OpenAccount | Change::RemoveCap { .. } => Ok(()),
        Change::SetMultiplier { ppm: 0 } => Err(Malformed::because(
            "a multiplier is above 0: take the caps away to charge nothing",
        )),
        Change::SetMultiplier { ppm } => within("multiplier_ppm", *ppm, MULTIPLIER_PPM_MAX),
        Change::IssueKey(data) => {
            let hash = data.secret_sha256.as_deref();
            match hash {
                Some(hash) if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    Err(Malformed::because(
                        "secret_sha256 is not 64 hexadecimal digits",
                    ))
                }
                _ => Ok(()),
            }
        }
        Change::RevokeKey { reason, .. } => text("reason", reason.as_deref().unwrap_or("")),
        Change::SetCap(spec) if is_kept_for_runs(&spec.cap) => Err(Malformed::because(format!(
            "cap id {} has the form of a run's budget: give the cap another id",
            spec.cap
        ))),
        Change::SetCap(spec) => cap(spec),
        Change::Credit { amount, reason, .. } => {
            within("amount", *amount, AMOUNT_MAX)?;
            text("reason", reason.as_deref().unwrap_or(""))
        }
        Change::Adjust { delta, reason, .. } => {
            within("delta", delta.unsigned_abs(), AMOUNT_MAX)?;
            text("reason", reason)
        }
        Change::SetPrice(price) => self::price(price),
    }
}

/// Checks a cap's numbers.
pub fn cap(spec: &CapSpec) -> Result<(), Malformed> {
    within("limit", spec.limit, AMOUNT_MAX)?;
    if !spec.window.is_valid() {
        return Err(Malformed::because(
            "a rolling window is 1 second to 366 days long",
        ));
    }
    let ascending = spec.thresholds.windows(2).all(|pair| pair[0] < pair[1]);
    if spec.thresholds.len() > THRESHOLDS_MAX || !ascending || spec.thresholds.first() == Some(&0) {
        return Err(Malformed::because(format!(
            "thresholds are at most {THRESHOLDS_MAX} per cents, ascending, from 1"
        )));
    }
    Ok(())
}

fn price(price: &Price) -> Result<(), Malformed> {
    let rates = |rates: &Rates| {
        let all = [
            rates.input,
            rates.cached_input,
            rates.cache_write,
            rates.output,
            rates.reasoning,
            rates.long_write(),
        ];
        all.into_iter()
            .try_for_each(|rate| within("price", rate, PRICE_MAX))
    };
    rates(&price.rates)?;
    price.tiers().try_for_each(|tier| rates(&tier.rates))?;
    let thresholds: Vec<u64> = price.tiers().map(|tier| tier.above_input_tokens).collect();
    let first_is_elsewhere = price.long_context.is_none() && !price.tiers.is_empty();
    if first_is_elsewhere || thresholds.len() > TIERS_MAX || !thresholds.is_sorted_by(|a, b| a < b)
    {
        return Err(Malformed::because(format!(
            "tiers are at most {TIERS_MAX}, each above the one before, the first in long_context"
        )));
    }
    within(
        "multiplier_ppm",
        price.multiplier_ppm.unwrap_or(0),
        MULTIPLIER_PPM_MAX,
    )?;
    within(
        "fee_per_request",
        price.fee_per_request.unwrap_or(0),
        FEE_MAX,
    )?;
    within(
        "fee_per_tool_call",
        price.fee_per_tool_call.unwrap_or(0),
        FEE_MAX,
    )
}

fn id(id: CommandId, now_ms: u64) -> Result<(), Malformed> {
    if id.at_ms() > now_ms + CLOCK_SKEW_MS_MAX {
        return Err(Malformed::because(
            "the time in the command id is in the future: check the caller's clock",
        ));
    }
    Ok(())
}

fn recent(command: CommandId, now_ms: u64) -> Result<(), Malformed> {
    if command.at_ms().saturating_add(COMMAND_AGE_MS_MAX) < now_ms {
        return Err(Malformed::because(format!(
            "command id {command} is over an hour old and was never carried out: use a new id"
        )));
    }
    id(command, now_ms)
}

fn tokens(name: &str, count: u64) -> Result<(), Malformed> {
    within(name, count, TOKENS_PER_REQUEST_MAX)
}

fn within(name: &str, amount: u64, max: u64) -> Result<(), Malformed> {
    if amount > max {
        return Err(Malformed::because(format!(
            "{name} {amount} is above {max}"
        )));
    }
    Ok(())
}

fn text(name: &str, text: &str) -> Result<(), Malformed> {
    if text.len() > TEXT_LEN_MAX {
        return Err(Malformed::because(format!(
            "{name} is longer than {TEXT_LEN_MAX} bytes"
        )));
    }
    Ok(())
}
