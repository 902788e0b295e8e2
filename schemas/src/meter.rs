//! What is counted, and an amount of it in every meter.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a cap counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    Requests,
    /// Input and output tokens together.
    Tokens,
    /// Input tokens, cached ones and cache writes included.
    InputTokens,
    /// Output tokens, reasoning included.
    OutputTokens,
    /// Money, in nano-USD.
    Cost,
    /// Open reservations. Never spent, only held.
    Concurrency,
}

impl Meter {
    /// The meter's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Cost => "cost",
            Self::Concurrency => "concurrency",
        }
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An amount in every meter: a hold, or what was charged. Concurrency is not written: an open hold
/// counts one, a charge none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Amounts {
    pub requests: u64,
    /// Input and output tokens: their sum, except in the budget of a run, which sets each by itself.
    pub tokens: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    /// Nano-USD; absent where the model has no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
}

impl Amounts {
    /// One request of so many tokens. Bounds are checked where commands enter.
    pub fn request(input_tokens: u64, output_tokens: u64, cost: Option<u64>) -> Self {
        let tokens = input_tokens.saturating_add(output_tokens);
        Self {
            requests: 1,
            tokens,
            input_tokens,
            output_tokens,
            cost,
        }
    }

    /// Nothing in every meter.
    pub fn zero() -> Self {
        Self::default()
    }

    /// The amount in `meter` while the hold is open; `None` where it is not known (no price).
    pub fn held_in(&self, meter: Meter) -> Option<u64> {
        match meter {
            Meter::Concurrency => Some(1),
            other => self.spent_in(other),
        }
    }

    /// The amount in `meter` once charged; `None` where it is not known (no price).
    pub fn spent_in(&self, meter: Meter) -> Option<u64> {
        match meter {
            Meter::Requests => Some(self.requests),
            Meter::Tokens => Some(self.tokens),
            Meter::InputTokens => Some(self.input_tokens),
            Meter::OutputTokens => Some(self.output_tokens),
            Meter::Cost => self.cost,
            Meter::Concurrency => Some(0),
        }
    }

    /// How far `self` lies above `hold`, meter by meter; zero where it does not.
    #[must_use]
    pub fn above(&self, hold: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(hold.requests),
            tokens: self.tokens.saturating_sub(hold.tokens),
            input_tokens: self.input_tokens.saturating_sub(hold.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(hold.output_tokens),
            cost: self
                .cost
                .map(|cost| cost.saturating_sub(hold.cost.unwrap_or(0))),
        }
    }

    /// Whether every meter is zero.
    pub fn is_zero(&self) -> bool {
        self.requests == 0
            && self.tokens == 0
            && self.input_tokens == 0
            && self.output_tokens == 0
            && self.cost.unwrap_or(0) == 0
    }
}
