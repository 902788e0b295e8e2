//! The price of a model: pico-USD per token by kind of token, versioned, with one rounding up per
//! request.

use serde::{Deserialize, Serialize};

use crate::{ids::ModelId, usage::Usage};

/// Pico-USD per token, by kind of token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rates {
    /// Input read afresh.
    pub input: u64,
    /// Input read from the provider's cache.
    pub cached_input: u64,
    /// Input written to the provider's cache.
    pub cache_write: u64,
    /// Output.
    pub output: u64,
    /// Output spent on reasoning.
    pub reasoning: u64,
}

impl Rates {
    /// Rates where every input costs the same and every output costs the same.
    pub fn flat(input: u64, output: u64) -> Self {
        Self {
            input,
            cached_input: input,
            cache_write: input,
            output,
            reasoning: output,
        }
    }

    fn dearest_input(&self) -> u64 {
        self.input.max(self.cached_input).max(self.cache_write)
    }

    fn dearest_output(&self) -> u64 {
        self.output.max(self.reasoning)
    }
}

/// Other rates that apply to a whole request whose input is longer than a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LongContext {
    /// The rates apply when the input has more tokens than this.
    pub above_input_tokens: u64,
    /// The rates.
    pub rates: Rates,
}

/// One version of a model's price.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Price {
    /// The model.
    pub model: ModelId,
    /// Grows by one with each change of this model's price.
    pub version: u32,
    /// The rates.
    pub rates: Rates,
    /// Other rates for long inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_context: Option<LongContext>,
}

impl Price {
    /// Most that a request can cost within these bounds, nano-USD rounded up; `None` above u64.
    pub fn bound(&self, input_tokens: u64, output_tokens: u64) -> Option<u64> {
        let mut input = self.rates.dearest_input();
        let mut output = self.rates.dearest_output();
        if let Some(long) = self
            .long_context
            .filter(|long| input_tokens > long.above_input_tokens)
        {
            input = input.max(long.rates.dearest_input());
            output = output.max(long.rates.dearest_output());
        }
        nano_rounded_up(times(input_tokens, input)?.checked_add(times(output_tokens, output)?)?)
    }

    /// What this usage costs, nano-USD rounded up once; `None` above u64.
    pub fn cost(&self, usage: &Usage) -> Option<u64> {
        let rates = match self.long_context {
            Some(long) if usage.input_tokens > long.above_input_tokens => long.rates,
            _ => self.rates,
        };
        let cached = usage.cached_input_tokens.min(usage.input_tokens);
        let written = usage.cache_write_tokens.min(usage.input_tokens - cached);
        let reasoning = usage.reasoning_tokens.min(usage.output_tokens);
        let parts = [
            times(usage.input_tokens - cached - written, rates.input)?,
            times(cached, rates.cached_input)?,
            times(written, rates.cache_write)?,
            times(usage.output_tokens - reasoning, rates.output)?,
            times(reasoning, rates.reasoning)?,
        ];
        nano_rounded_up(
            parts
                .iter()
                .try_fold(0u128, |sum, part| sum.checked_add(*part))?,
        )
    }
}

fn times(tokens: u64, pico: u64) -> Option<u128> {
    u128::from(tokens).checked_mul(u128::from(pico))
}

fn nano_rounded_up(pico: u128) -> Option<u64> {
    u64::try_from(pico.div_ceil(1000)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(rates: Rates, long_context: Option<LongContext>) -> Price {
        Price {
            model: ModelId::new("m").unwrap(),
            version: 1,
            rates,
            long_context,
        }
    }

    #[test]
    fn cost_is_rounded_up_once() {
        let one = price(Rates::flat(1, 1), None);
        assert_eq!(
            one.cost(&Usage {
                input_tokens: 1,
                output_tokens: 1,
                ..Usage::default()
            }),
            Some(1)
        );
        assert_eq!(
            one.cost(&Usage {
                input_tokens: 1000,
                output_tokens: 1,
                ..Usage::default()
            }),
            Some(2)
        );
    }

    fn rates() -> impl Strategy<Value = Rates> {
        let rate = 0..10_000_000u64;
        (rate.clone(), rate.clone(), rate.clone(), rate.clone(), rate).prop_map(
            |(input, cached_input, cache_write, output, reasoning)| Rates {
                input,
                cached_input,
                cache_write,
                output,
                reasoning,
            },
        )
    }

    proptest! {
        #[test]
        fn no_usage_within_the_bounds_costs_more_than_the_bound(
            rates in rates(),
            long in proptest::option::of((0..2_000u64, self::rates())),
            input in 0..4_000u64, output in 0..4_000u64,
            used in proptest::array::uniform5(0.0..=1.0f64),
        ) {
            let long = long.map(|(above_input_tokens, rates)| LongContext { above_input_tokens, rates });
            let price = price(rates, long);
            let part = |whole: u64, share: f64| {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                    reason = "small test numbers")]
                { (whole as f64 * share) as u64 }
            };
            let usage = Usage {
                input_tokens: part(input, used[0]),
                cached_input_tokens: part(input, used[1]),
                cache_write_tokens: part(input, used[2]),
                output_tokens: part(output, used[3]),
                reasoning_tokens: part(output, used[4]),
            };
            prop_assert!(price.cost(&usage) <= price.bound(input, output));
        }
    }
}
