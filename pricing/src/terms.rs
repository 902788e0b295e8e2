//! What a list says that a model costs: rates as far as they are stated, tiers, and what each request costs.

use seatbelt_schemas::{
    amount::{FEE_MAX, PRICE_MAX, TOKENS_PER_REQUEST_MAX},
    ids::ModelId,
    price::{LongContext, Price, Rates, TIERS_MAX},
};

/// Pico-USD per token, as far as they are stated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatedRates {
    /// Input read afresh.
    pub input: u64,
    /// Input read from the provider's cache.
    pub cached_input: Option<u64>,
    /// Input written to the provider's cache.
    pub cache_write: Option<u64>,
    /// Input written to it to stay an hour or longer.
    pub cache_write_long: Option<u64>,
    pub output: u64,
    /// Output spent on reasoning.
    pub reasoning: Option<u64>,
}

impl StatedRates {
    /// All rates: what is not stated costs what its kind costs. Where writes to the cache cost more than input,
    /// as Anthropic's do, one that is not stated is twice the input's, which is the dearest known, and so is a
    /// long write at least.
    pub fn complete(&self, writes_cost_more: bool) -> Rates {
        let flat = Rates::flat(self.input, self.output);
        let twice = flat.input.saturating_mul(2);
        let unstated = if writes_cost_more {
            twice
        } else {
            flat.cache_write
        };
        let written = self.cache_write.unwrap_or(unstated);
        let long = (writes_cost_more && written < twice).then_some(twice);
        Rates {
            cached_input: self.cached_input.unwrap_or(flat.cached_input),
            cache_write: written,
            cache_write_long: self.cache_write_long.or(long),
            reasoning: self.reasoning.unwrap_or(flat.reasoning),
            ..flat
        }
    }

    /// Where a write costs more than input and a long one is not stated: twice the write, which is the dearest known
    /// (Anthropic asks for 1.6 times, OpenAI for twice). A list that leaves it out would have a long write charged as
    /// a short one.
    pub(crate) fn with_long_writes(self) -> Self {
        match (self.cache_write, self.cache_write_long) {
            (Some(written), None) if written > self.input => Self {
                cache_write_long: Some(written.saturating_mul(2)),
                ..self
            },
            _ => self,
        }
    }

    fn all(&self) -> [u64; 6] {
        let rates = self.complete(false);
        let long = rates.long_write();
        [
            rates.input,
            rates.cached_input,
            rates.cache_write,
            long,
            rates.output,
            rates.reasoning,
        ]
    }

    /// The dearer of both, rate by rate. What neither states stays unstated.
    pub(crate) fn dearer(&self, other: &Self) -> Self {
        let (one, two) = (self.complete(false), other.complete(false));
        let either = |one: Option<u64>, two: Option<u64>, most: u64| one.or(two).map(|_| most);
        let long = one.long_write().max(two.long_write());
        Self {
            input: one.input.max(two.input),
            cached_input: either(
                self.cached_input,
                other.cached_input,
                one.cached_input.max(two.cached_input),
            ),
            cache_write: either(
                self.cache_write,
                other.cache_write,
                one.cache_write.max(two.cache_write),
            ),
            cache_write_long: either(self.cache_write_long, other.cache_write_long, long),
            output: one.output.max(two.output),
            reasoning: either(
                self.reasoning,
                other.reasoning,
                one.reasoning.max(two.reasoning),
            ),
        }
    }

    /// Each rate by `read`.
    pub(crate) fn each(&self, read: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        let may = |rate: Option<u64>| match rate {
            None => Some(None),
            Some(rate) => read(rate).map(Some),
        };
        Some(Self {
            input: read(self.input)?,
            cached_input: may(self.cached_input)?,
            cache_write: may(self.cache_write)?,
            cache_write_long: may(self.cache_write_long)?,
            output: read(self.output)?,
            reasoning: may(self.reasoning)?,
        })
    }
}

/// What a model costs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ListedTerms {
    pub rates: StatedRates,
    /// Other rates for a whole request whose input has more tokens than this, ascending.
    pub tiers: Vec<(u64, StatedRates)>,
    /// What each request costs besides, nano-USD.
    pub per_request: u64,
}

impl ListedTerms {
    /// Why a price cannot be this; none where it can.
    pub(crate) fn problem(&self, has_no_output: bool) -> Option<String> {
        let rates =
            || std::iter::once(&self.rates).chain(self.tiers.iter().map(|(_, rates)| rates));
        let mut below = 0;
        for (above, _) in &self.tiers {
            if *above <= below || *above > TOKENS_PER_REQUEST_MAX {
                return Some(format!("a tier above {above} input tokens is none"));
            }
            below = *above;
        }
        if self.tiers.len() > TIERS_MAX {
            return Some(format!(
                "has {} tiers, and a price at most {TIERS_MAX}",
                self.tiers.len()
            ));
        }
        if rates().any(|rates| rates.all().iter().any(|rate| *rate > PRICE_MAX)) {
            return Some("costs more than one USD a token".to_owned());
        }
        if self.per_request > FEE_MAX {
            return Some("costs more than 1000 USD a request".to_owned());
        }
        // lists write 0 for what they do not know; a model that is free is for the operator to say
        if rates().any(|rates| rates.input == 0 || rates.output == 0 && !has_no_output) {
            return Some("costs nothing by the list, which may mean that it is not known: write its price yourself".to_owned());
        }
        None
    }

    /// The rates for an input of more than `above` tokens, and not of more than the next tier's.
    pub(crate) fn at(&self, above: u64) -> &StatedRates {
        let reached = self.tiers.iter().rfind(|(from, _)| *from <= above);
        reached.map_or(&self.rates, |(_, rates)| rates)
    }

    /// Where either has a tier.
    pub(crate) fn thresholds(&self, other: &Self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .tiers
            .iter()
            .chain(&other.tiers)
            .map(|(above, _)| *above)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// What costs at least as much as each of both, whatever is used.
    pub(crate) fn dearer(&self, other: &Self) -> Self {
        let tier = |above| (above, self.at(above).dearer(other.at(above)));
        Self {
            rates: self.rates.dearer(&other.rates),
            tiers: self.thresholds(other).into_iter().map(tier).collect(),
            per_request: self.per_request.max(other.per_request),
        }
    }

    /// Whether nothing costs less than by the other.
    pub(crate) fn is_never_cheaper(&self, than: &Self) -> bool {
        let no_less = |one: &StatedRates, two: &StatedRates| {
            one.all()
                .iter()
                .zip(two.all())
                .all(|(one, two)| *one >= two)
        };
        let thresholds = self.thresholds(than);
        no_less(&self.rates, &than.rates)
            && thresholds
                .into_iter()
                .all(|above| no_less(self.at(above), than.at(above)))
            && self.per_request >= than.per_request
    }

    /// As a price of the ledger, still without its version.
    pub fn price(&self, model: ModelId, writes_cost_more: bool) -> Price {
        let tier = |(above, rates): &(u64, StatedRates)| LongContext {
            above_input_tokens: *above,
            rates: rates.complete(writes_cost_more),
        };
        let mut tiers = self.tiers.iter().map(tier);
        Price {
            long_context: tiers.next(),
            tiers: tiers.collect(),
            fee_per_request: (self.per_request > 0).then_some(self.per_request),
            ..Price::of(model, self.rates.complete(writes_cost_more))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use seatbelt_schemas::usage::Usage;

    use super::*;

    fn rates() -> impl Strategy<Value = StatedRates> {
        let rate = 1..10_000u64;
        let may = || proptest::option::of(1..10_000u64);
        (rate.clone(), may(), may(), may(), rate, may()).prop_map(
            |(input, cached_input, cache_write, cache_write_long, output, reasoning)| StatedRates {
                input,
                cached_input,
                cache_write,
                cache_write_long,
                output,
                reasoning,
            },
        )
    }

    fn terms() -> impl Strategy<Value = ListedTerms> {
        let tiers = proptest::collection::btree_map(1..1_000u64, rates(), 0..4);
        (rates(), tiers, 0..100u64).prop_map(|(rates, tiers, per_request)| ListedTerms {
            rates,
            tiers: tiers.into_iter().collect(),
            per_request,
        })
    }

    proptest! {
        #[test]
        fn the_dearer_of_two_never_charges_less_than_either(
            one in terms(), two in terms(), used in proptest::array::uniform6(0..2_000u64), writes_cost_more: bool,
        ) {
            let model = || ModelId::new("m").unwrap();
            let usage = Usage {
                input_tokens: used[0],
                cached_input_tokens: used[1].min(used[0]),
                cache_write_tokens: used[2].min(used[0]),
                cache_write_long_tokens: used[3].min(used[2]).min(used[0]),
                output_tokens: used[4],
                reasoning_tokens: used[5].min(used[4]),
                ..Usage::default()
            };
            let dearer = one.dearer(&two);
            prop_assert!(dearer.is_never_cheaper(&one) && dearer.is_never_cheaper(&two));
            let cost = |terms: &ListedTerms| terms.price(model(), writes_cost_more).cost(&usage).unwrap();
            if writes_cost_more {
                // where neither states what a write costs, the operator's kind of upstream decides for all alike
                prop_assume!([&one, &two, &dearer].iter().all(|terms| {
                    terms.rates.cache_write.is_some() && terms.tiers.iter().all(|(_, rates)| rates.cache_write.is_some())
                        && terms.rates.cache_write_long.is_some()
                        && terms.tiers.iter().all(|(_, rates)| rates.cache_write_long.is_some())
                }));
            }
            prop_assert!(cost(&dearer) >= cost(&one).max(cost(&two)));
        }
    }
}
