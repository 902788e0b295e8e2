//! The budget of an agent run: an amount for one or more meters, carved out of what a key may spend.
//!
//! A budget is never empty, never zero in a meter and never counts concurrency: what a valid one looks
//! like is decided here, once, also for what comes over the wire. The ids of the caps that an open
//! run brings with it have one form, which is this module's too.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    amount::AMOUNT_MAX,
    cap::{CapSpec, THRESHOLDS_DEFAULT},
    ids::{CapId, RunId},
    meter::{Amounts, Meter},
    scope::Scope,
    window::Window,
};

/// A budget that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidBudget {
    /// It has no amount.
    #[error("the budget is empty: give an amount for at least one meter")]
    Empty,
    /// Concurrency is not spent, so none of it can be set aside.
    #[error("a budget cannot be in concurrency: set a cap on the run instead")]
    Concurrency,
    /// An amount is out of bounds.
    #[error(
        "the budget of {found} {meter} is not valid: use 1 to {AMOUNT_MAX}, or leave {meter} out"
    )]
    Amount {
        /// In which meter.
        meter: Meter,
        /// What was given.
        found: u64,
    },
}

/// What one run may spend, by meter; no limit of its own in a meter that is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Budget {
    #[serde(skip_serializing_if = "Option::is_none")]
    requests: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_tokens: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_tokens: Option<NonZeroU64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<NonZeroU64>,
}

/// A budget as it is read, before it is checked.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    requests: Option<u64>,
    #[serde(default)]
    tokens: Option<u64>,
    #[serde(default)]
    input_tokens: Option<u64>,
    #[serde(default)]
    output_tokens: Option<u64>,
    #[serde(default)]
    cost: Option<u64>,
}

impl TryFrom<Fields> for Budget {
    type Error = InvalidBudget;

    fn try_from(fields: Fields) -> Result<Self, InvalidBudget> {
        let all = [
            (Meter::Requests, fields.requests),
            (Meter::Tokens, fields.tokens),
            (Meter::InputTokens, fields.input_tokens),
            (Meter::OutputTokens, fields.output_tokens),
            (Meter::Cost, fields.cost),
        ];
        Self::new(
            all.into_iter()
                .filter_map(|(meter, amount)| Some((meter, amount?))),
        )
    }
}

impl Budget {
    /// The meters that a budget may have.
    pub const METERS: [Meter; 5] = [
        Meter::Requests,
        Meter::Tokens,
        Meter::InputTokens,
        Meter::OutputTokens,
        Meter::Cost,
    ];

    /// Checks amounts and takes them as a budget; of a meter given twice the last counts.
    pub fn new(amounts: impl IntoIterator<Item = (Meter, u64)>) -> Result<Self, InvalidBudget> {
        let mut budget = Self {
            requests: None,
            tokens: None,
            input_tokens: None,
            output_tokens: None,
            cost: None,
        };
        for (meter, found) in amounts {
            let amount = NonZeroU64::new(found)
                .filter(|amount| amount.get() <= AMOUNT_MAX)
                .ok_or(InvalidBudget::Amount { meter, found })?;
            *budget.slot(meter).ok_or(InvalidBudget::Concurrency)? = Some(amount);
        }
        match budget.iter().next() {
            Some(_) => Ok(budget),
            None => Err(InvalidBudget::Empty),
        }
    }

    fn slot(&mut self, meter: Meter) -> Option<&mut Option<NonZeroU64>> {
        match meter {
            Meter::Requests => Some(&mut self.requests),
            Meter::Tokens => Some(&mut self.tokens),
            Meter::InputTokens => Some(&mut self.input_tokens),
            Meter::OutputTokens => Some(&mut self.output_tokens),
            Meter::Cost => Some(&mut self.cost),
            Meter::Concurrency => None,
        }
    }

    /// The amount in `meter`; `None` where the budget says nothing of it.
    pub fn amount(&self, meter: Meter) -> Option<u64> {
        let amount = match meter {
            Meter::Requests => self.requests,
            Meter::Tokens => self.tokens,
            Meter::InputTokens => self.input_tokens,
            Meter::OutputTokens => self.output_tokens,
            Meter::Cost => self.cost,
            Meter::Concurrency => None,
        };
        amount.map(NonZeroU64::get)
    }

    /// Every meter of the budget with its amount.
    pub fn iter(&self) -> impl Iterator<Item = (Meter, u64)> + '_ {
        let amount = |meter| Some((meter, self.amount(meter)?));
        Self::METERS.into_iter().filter_map(amount)
    }

    /// The budget as a hold: zero in the meters that it says nothing of.
    pub fn hold(&self) -> Amounts {
        let amount = |meter| self.amount(meter).unwrap_or(0);
        Amounts {
            requests: amount(Meter::Requests),
            tokens: amount(Meter::Tokens),
            input_tokens: amount(Meter::InputTokens),
            output_tokens: amount(Meter::OutputTokens),
            cost: self.amount(Meter::Cost),
        }
    }

    /// The caps that a run with this budget brings with it: one per meter.
    pub fn caps<'a>(&'a self, run: &'a RunId) -> impl Iterator<Item = CapSpec> + 'a {
        self.iter().map(|(meter, limit)| CapSpec {
            cap: run_cap_id(run, meter),
            scope: Scope::Run(run.clone()),
            meter,
            window: Window::Balance,
            limit,
            hard: true,
            thresholds: THRESHOLDS_DEFAULT.to_vec(),
        })
    }
}

/// The id of the cap that holds a run to its budget in one meter: `run:<run>:<meter>`.
pub fn run_cap_id(run: &RunId, meter: Meter) -> CapId {
    CapId::new(format!("run:{run}:{meter}")).expect("a run id and a meter make a short name")
}

/// Whether a cap's id is the one of this run and meter.
pub fn is_run_cap_id(cap: &CapId, run: &RunId, meter: Meter) -> bool {
    run_and_meter(cap) == Some((run.as_str(), meter.as_str()))
}

/// Whether a cap's id has the form that is kept for runs with a budget.
pub fn is_kept_for_runs(cap: &CapId) -> bool {
    run_and_meter(cap).is_some_and(|(run, meter)| {
        RunId::new(run).is_ok() && Budget::METERS.iter().any(|known| known.as_str() == meter)
    })
}

fn run_and_meter(cap: &CapId) -> Option<(&str, &str)> {
    cap.as_str().strip_prefix("run:")?.split_once(':')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<Budget, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_budget_is_a_map_of_the_meters_that_it_has() {
        let budget = Budget::new([(Meter::Cost, 7), (Meter::Requests, 3)]).unwrap();
        let json = serde_json::json!({ "requests": 3, "cost": 7 });
        assert_eq!(serde_json::to_value(budget).unwrap(), json);
        assert_eq!(read(json), Ok(budget));
        assert_eq!(
            (budget.amount(Meter::Cost), budget.amount(Meter::Tokens)),
            (Some(7), None)
        );
    }

    #[test]
    fn an_empty_a_zero_and_an_absurd_budget_are_refused_with_the_remedy() {
        for (json, remedy) in [
            (serde_json::json!({}), "at least one meter"),
            (
                serde_json::json!({ "concurrency": 3 }),
                "at least one meter",
            ),
            (serde_json::json!({ "tokens": 0 }), "leave tokens out"),
            (
                serde_json::json!({ "cost": AMOUNT_MAX + 1 }),
                "use 1 to 4611686018427387904",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(remedy), "{error}");
        }
        assert_eq!(
            Budget::new([(Meter::Concurrency, 1)]),
            Err(InvalidBudget::Concurrency)
        );
    }

    #[test]
    fn the_longest_run_id_still_makes_a_cap_id_and_is_known_again() {
        let run = RunId::new("r".repeat(64)).unwrap();
        for meter in Budget::METERS {
            let cap = run_cap_id(&run, meter);
            assert!(is_run_cap_id(&cap, &run, meter) && is_kept_for_runs(&cap));
            assert!(!is_run_cap_id(&cap, &RunId::new("r").unwrap(), meter));
        }
        for other in [
            "run:r:concurrency",
            "run:r",
            "run::tokens",
            "run:a b:tokens",
            "runs:r:tokens",
        ] {
            assert!(!is_kept_for_runs(&CapId::new(other).unwrap()), "{other}");
        }
    }
}
