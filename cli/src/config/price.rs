//! What a model costs, as it is written: USD per million tokens, and what comes on top.

use seatbelt_pricing::StatedRates;
use seatbelt_schemas::{
    amount::{
        FEE_MAX, MULTIPLIER_PPM_MAX, TOKENS_PER_REQUEST_MAX, parse_usd, parse_usd_per_million,
    },
    ids::ModelId,
    price::{LongContext, Price, Rates, TIERS_MAX},
};

use super::reader::Section;

/// A multiplier of 1.
const MULTIPLIER_ONE_PPM: u64 = 1_000_000;

/// `price = { input = "0.15", output = "0.60", ... }`.
///
/// A cache price that is not given is the input's. Where writes to the cache cost more than that, as Anthropic's do,
/// one that is not given is twice the input's, which is the dearest known, and so is a long write at least.
pub(super) fn read_price(
    section: &mut Section,
    model: Option<&ModelId>,
    writes_cost_more: bool,
) -> Option<Price> {
    if !section.has("price") {
        section.section("price");
        return None;
    }
    let mut part = section.section("price");
    let rates = read_rates(&mut part, writes_cost_more);
    let mut tiers = read_tiers(&mut part, writes_cost_more).into_iter();
    let multiplier_ppm = part.text_with("multiplier", multiplier);
    let fee_per_request = part.text_with("per_request", fee);
    part.finish();
    Some(Price {
        long_context: tiers.next(),
        tiers: tiers.collect(),
        multiplier_ppm,
        fee_per_request,
        ..Price::of(model?.clone(), rates?)
    })
}

/// Whether nothing costs less by one price than by another.
pub(super) fn is_never_cheaper(price: &Price, than: &Price) -> bool {
    let above = |price: &Price| {
        price
            .tiers()
            .map(|tier| tier.above_input_tokens)
            .collect::<Vec<_>>()
    };
    let mut thresholds = [above(price), above(than), vec![0]].concat();
    thresholds.sort_unstable();
    let part = |price: &Price, at: u64| {
        let reached = price
            .tiers()
            .filter(|tier| tier.above_input_tokens <= at)
            .last();
        let rates = reached.map_or(price.rates, |tier| tier.rates);
        let times = u128::from(price.multiplier_ppm.unwrap_or(MULTIPLIER_ONE_PPM));
        let each = [
            rates.input,
            rates.cached_input,
            rates.cache_write,
            rates.long_write(),
            rates.output,
            rates.reasoning,
        ];
        each.map(|rate| u128::from(rate) * times)
    };
    let is_no_less = |at: &u64| {
        let (one, other) = (part(price, *at), part(than, *at));
        one.iter().zip(other).all(|(one, other)| *one >= other)
    };
    thresholds.iter().all(is_no_less)
        && price.fee_per_request.unwrap_or(0) >= than.fee_per_request.unwrap_or(0)
        && price.fee_per_tool_call.unwrap_or(0) >= than.fee_per_tool_call.unwrap_or(0)
}

/// A price with all its rates multiplied once more; `None` where that is beyond what a price may have.
pub(super) fn multiplied(price: &Price, model: ModelId, ppm: u64) -> Option<Price> {
    let all = u128::from(price.multiplier_ppm.unwrap_or(MULTIPLIER_ONE_PPM)) * u128::from(ppm);
    let all = u64::try_from(all.div_ceil(u128::from(MULTIPLIER_ONE_PPM))).ok()?;
    (all <= MULTIPLIER_PPM_MAX).then(|| Price {
        model,
        multiplier_ppm: Some(all),
        ..price.clone()
    })
}

/// `tiers = [{ above_input_tokens = 200000, input = "...", output = "..." }, ...]`.
fn read_tiers(part: &mut Section, writes_cost_more: bool) -> Vec<LongContext> {
    let mut tiers: Vec<LongContext> = Vec::new();
    for mut section in part.sections("tiers", TIERS_MAX) {
        let name = "above_input_tokens";
        let above = section.required(name, |section| {
            section.number(name, 1, TOKENS_PER_REQUEST_MAX)
        });
        let rates = read_rates(&mut section, writes_cost_more);
        let (Some(above_input_tokens), Some(rates)) = (above, rates) else {
            section.finish();
            continue;
        };
        if tiers
            .last()
            .is_some_and(|last| last.above_input_tokens >= above_input_tokens)
        {
            section.mistake(name, "is not above that of the tier before it");
        }
        section.finish();
        tiers.push(LongContext {
            above_input_tokens,
            rates,
        });
    }
    tiers
}

fn read_rates(part: &mut Section, writes_cost_more: bool) -> Option<Rates> {
    let rate = |part: &mut Section, name| {
        part.text_with(name, |text| {
            parse_usd_per_million(text).map_err(|error| error.to_string())
        })
    };
    let input = part.required("input", |part| rate(part, "input"));
    let output = part.required("output", |part| rate(part, "output"));
    let cached_input = rate(part, "cached_input");
    let cache_write = rate(part, "cache_write");
    let cache_write_long = rate(part, "cache_write_long");
    let reasoning = rate(part, "reasoning");
    let stated = StatedRates {
        input: input?,
        cached_input,
        cache_write,
        cache_write_long,
        output: output?,
        reasoning,
    };
    Some(stated.complete(writes_cost_more))
}

/// USD for one of something to nano-USD.
pub(super) fn fee(text: &str) -> Result<u64, String> {
    match parse_usd(text) {
        Ok(nano) if nano <= FEE_MAX => Ok(nano),
        Ok(_) => Err("is above 1000 USD".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// `"1.1"` to millionths.
pub(super) fn multiplier(text: &str) -> Result<u64, String> {
    match parse_usd_per_million(text) {
        Ok(ppm) if (1..=MULTIPLIER_PPM_MAX).contains(&ppm) => Ok(ppm),
        Ok(_) => Err("must be above 0 and at most 100".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
