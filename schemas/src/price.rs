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
    pub output: u64,
    /// Output spent on reasoning.
    pub reasoning: u64,
    /// Input written to the provider's cache to stay for an hour or longer; where not given it costs as
    /// [`Rates::cache_write`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_write_long: Option<u64>,
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
            cache_write_long: None,
        }
    }

    /// What a long write to the cache costs.
    pub fn long_write(&self) -> u64 {
        self.cache_write_long.unwrap_or(self.cache_write)
    }

    fn dearest_input(&self) -> u64 {
        self.input
            .max(self.cached_input)
            .max(self.cache_write)
            .max(self.long_write())
    }

    fn dearest_output(&self) -> u64 {
        self.output.max(self.reasoning)
    }
}

/// Most tiers of a price.
pub const TIERS_MAX: usize = 16;
/// A multiplier of 1, in millionths.
pub const MULTIPLIER_ONE_PPM: u64 = 1_000_000;
/// The same, to reckon with.
const ONE: u128 = MULTIPLIER_ONE_PPM as u128;

/// Other rates that apply to a whole request whose input is longer than a threshold: a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LongContext {
    /// The rates apply when the input has more tokens than this.
    pub above_input_tokens: u64,
    pub rates: Rates,
}

/// One version of a model's price.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Price {
    pub model: ModelId,
    /// Grows by one with each change of this model's price.
    pub version: u32,
    pub rates: Rates,
    /// Other rates for long inputs: the first tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long_context: Option<LongContext>,
    /// Further tiers, each above the one before. Which applies is decided by the highest threshold that the
    /// input is above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<LongContext>,
    /// What all rates are multiplied by, in millionths: 1,100,000 for an account that pays a tenth more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier_ppm: Option<u64>,
    /// What each request costs besides its tokens, nano-USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_per_request: Option<u64>,
    /// What each call of a tool that the provider runs costs besides its tokens, nano-USD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fee_per_tool_call: Option<u64>,
}

impl Price {
    /// A price that is only its rates; the ledger gives it its version.
    pub fn of(model: ModelId, rates: Rates) -> Self {
        Self {
            model,
            version: 0,
            rates,
            long_context: None,
            tiers: Vec::new(),
            multiplier_ppm: None,
            fee_per_request: None,
            fee_per_tool_call: None,
        }
    }

    /// Whether everything costs the same as with the other one, whatever their versions.
    pub fn same_terms(&self, other: &Self) -> bool {
        let version = self.version;
        *self
            == Self {
                version,
                ..other.clone()
            }
    }

    /// Whether it says more than version 1 of this format could: rates and one tier.
    pub fn says_more(&self) -> bool {
        !self.tiers.is_empty()
            || self.multiplier_ppm.is_some()
            || self.fee_per_request.is_some()
            || self.fee_per_tool_call.is_some()
    }

    /// All tiers, from the lowest threshold up.
    pub fn tiers(&self) -> impl Iterator<Item = &LongContext> {
        self.long_context.iter().chain(&self.tiers)
    }

    /// Most that a request of an account without a multiplier can cost within these bounds.
    pub fn bound(&self, input_tokens: u64, output_tokens: u64, tool_calls: u64) -> Option<u64> {
        Terms::of(self, None).bound(input_tokens, output_tokens, tool_calls)
    }

    /// What this usage costs an account without a multiplier.
    pub fn cost(&self, usage: &Usage) -> Option<u64> {
        Terms::of(self, None).cost(usage)
    }
}

/// A price for one account.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    pub price: &'a Price,
    /// What all costs of the account are multiplied by, in millionths; 1 where absent.
    pub account_ppm: Option<u64>,
}

impl<'a> Terms<'a> {
    /// A price for an account with this multiplier.
    pub fn of(price: &'a Price, account_ppm: Option<u64>) -> Self {
        Self { price, account_ppm }
    }

    /// Most that a request can cost within these bounds, nano-USD rounded up; `None` above u64.
    ///
    /// A higher tier may be cheaper, and the input may turn out shorter: the dearest of all tiers that the
    /// bound reaches counts.
    pub fn bound(&self, input_tokens: u64, output_tokens: u64, tool_calls: u64) -> Option<u64> {
        let mut input = self.price.rates.dearest_input();
        let mut output = self.price.rates.dearest_output();
        for tier in self
            .price
            .tiers()
            .filter(|tier| input_tokens > tier.above_input_tokens)
        {
            input = input.max(tier.rates.dearest_input());
            output = output.max(tier.rates.dearest_output());
        }
        let tokens = times(input_tokens, input)?.checked_add(times(output_tokens, output)?)?;
        self.nano(tokens, tool_calls)
    }

    /// What this usage costs, nano-USD rounded up once; `None` above u64.
    pub fn cost(&self, usage: &Usage) -> Option<u64> {
        let reached = |tier: &&LongContext| usage.input_tokens > tier.above_input_tokens;
        let rates = self
            .price
            .tiers()
            .filter(reached)
            .last()
            .map_or(self.price.rates, |tier| tier.rates);
        let cached = usage.cached_input_tokens.min(usage.input_tokens);
        let written = usage.cache_write_tokens.min(usage.input_tokens - cached);
        let long = usage.cache_write_long_tokens.min(written);
        let reasoning = usage.reasoning_tokens.min(usage.output_tokens);
        let parts = [
            times(usage.input_tokens - cached - written, rates.input)?,
            times(cached, rates.cached_input)?,
            times(written - long, rates.cache_write)?,
            times(long, rates.long_write())?,
            times(usage.output_tokens - reasoning, rates.output)?,
            times(reasoning, rates.reasoning)?,
        ];
        let tokens = parts
            .iter()
            .try_fold(0u128, |sum, part| sum.checked_add(*part))?;
        self.nano(tokens, usage.tool_calls)
    }

    /// The one rounding, up, with what a request and its calls cost besides.
    fn nano(&self, pico: u128, tool_calls: u64) -> Option<u64> {
        let price = self.price;
        let calls = price
            .fee_per_tool_call
            .unwrap_or(0)
            .checked_mul(tool_calls)?;
        let fees = price.fee_per_request.unwrap_or(0).checked_add(calls)?;
        let own = u128::from(price.multiplier_ppm.unwrap_or(MULTIPLIER_ONE_PPM));
        let tokens = pico.checked_mul(own)?;
        let fees = u128::from(fees).checked_mul(1000 * ONE)?;
        let all = tokens.checked_add(fees)?;
        let nano = match self.account_ppm {
            None => all.div_ceil(1000 * ONE),
            Some(ppm) => all.checked_mul(ppm.into())?.div_ceil(1000 * ONE * ONE),
        };
        u64::try_from(nano).ok()
    }
}

fn times(tokens: u64, pico: u64) -> Option<u128> {
    u128::from(tokens).checked_mul(u128::from(pico))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(rates: Rates, long_context: Option<LongContext>) -> Price {
        Price {
            long_context,
            ..Price::of(ModelId::new("m").unwrap(), rates)
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

    #[test]
    fn the_highest_tier_that_the_input_is_above_decides() {
        let tier = |above_input_tokens, rate| LongContext {
            above_input_tokens,
            rates: Rates::flat(rate, rate),
        };
        let price = Price {
            tiers: vec![tier(200, 1000), tier(300, 9000)],
            ..price(Rates::flat(1000, 1000), Some(tier(100, 5000)))
        };
        let cost = |input_tokens| {
            price.cost(&Usage {
                input_tokens,
                ..Usage::default()
            })
        };
        assert_eq!(cost(100), Some(100));
        assert_eq!(cost(101), Some(505));
        assert_eq!(cost(201), Some(201), "a higher tier may be cheaper");
        assert_eq!(cost(301), Some(2709));
        assert_eq!(
            price.bound(250, 0, 0),
            Some(1250),
            "and the input shorter than its bound"
        );
    }

    #[test]
    fn a_long_write_a_multiplier_and_a_fee_are_charged_and_bounded() {
        let rates = Rates {
            cache_write: 1250,
            cache_write_long: Some(2000),
            ..Rates::flat(1000, 0)
        };
        let plain = price(rates, None);
        let written = |cache_write_long_tokens| Usage {
            input_tokens: 100,
            cache_write_tokens: 100,
            cache_write_long_tokens,
            ..Usage::default()
        };
        assert_eq!(plain.cost(&written(0)), Some(125));
        assert_eq!(plain.cost(&written(100)), Some(200));
        assert_eq!(plain.bound(100, 0, 9), Some(200));
        let dearer = Price {
            multiplier_ppm: Some(1_100_000),
            fee_per_request: Some(7),
            ..plain
        };
        assert_eq!(dearer.cost(&written(100)), Some(227));
        assert_eq!(dearer.bound(100, 0, 9), Some(227));
        assert_eq!(dearer.cost(&Usage::default()), Some(7));
        let with_tools = Price {
            fee_per_tool_call: Some(1_000),
            ..dearer
        };
        let called = Usage {
            tool_calls: 3,
            ..written(100)
        };
        assert_eq!(with_tools.cost(&called), Some(3_227));
        assert_eq!(with_tools.bound(100, 0, 3), Some(3_227));
        assert_eq!(with_tools.bound(0, 0, u64::MAX), None);
    }

    #[test]
    fn an_accounts_multiplier_takes_fees_too_and_is_rounded_once() {
        let price = Price {
            multiplier_ppm: Some(1_100_000),
            fee_per_request: Some(7),
            fee_per_tool_call: Some(10),
            ..price(Rates::flat(1, 1), None)
        };
        let used = Usage {
            input_tokens: 1001,
            tool_calls: 2,
            ..Usage::default()
        };
        assert_eq!(price.cost(&used), Some(2 + 27));
        let cost = |ppm| Terms::of(&price, Some(ppm)).cost(&used);
        assert_eq!(cost(MULTIPLIER_ONE_PPM), price.cost(&used));
        assert_eq!(cost(3_000_000), Some(85), "3 x 28.1011, and not 3 x 29");
        let bound = Terms::of(&price, Some(3_000_000)).bound(1001, 0, 2);
        assert_eq!(bound, Some(85));
    }

    fn rates() -> impl Strategy<Value = Rates> {
        let rate = 0..10_000_000u64;
        let long = proptest::option::of(rate.clone());
        let others = (rate.clone(), rate.clone(), rate.clone(), rate.clone(), rate);
        (others, long).prop_map(
            |((input, cached_input, cache_write, output, reasoning), cache_write_long)| Rates {
                input,
                cached_input,
                cache_write,
                output,
                reasoning,
                cache_write_long,
            },
        )
    }

    proptest! {
        #[test]
        fn no_usage_within_the_bounds_costs_more_than_the_bound(
            rates in rates(),
            tiers in proptest::collection::btree_map(0..3_000u64, self::rates(), 0..4),
            multiplier_ppm in proptest::option::of(0..3_000_000u64),
            fee_per_request in proptest::option::of(0..1_000_000u64),
            fee_per_tool_call in proptest::option::of(0..1_000_000u64),
            account_ppm in proptest::option::of(1..3_000_000u64),
            (calls, called) in (0..9u64).prop_flat_map(|calls| (Just(calls), 0..=calls)),
            input in 0..4_000u64, output in 0..4_000u64,
            used in proptest::array::uniform6(0.0..=1.0f64),
        ) {
            let mut tiers = tiers
                .into_iter()
                .map(|(above_input_tokens, rates)| LongContext { above_input_tokens, rates });
            let long_context = tiers.next();
            let price = Price {
                tiers: tiers.collect(),
                multiplier_ppm,
                fee_per_request,
                fee_per_tool_call,
                ..price(rates, long_context)
            };
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
                cache_write_long_tokens: part(input, used[5]),
                tool_calls: called,
            };
            let terms = Terms::of(&price, account_ppm);
            prop_assert!(terms.cost(&usage) <= terms.bound(input, output, calls));
        }
    }
}
