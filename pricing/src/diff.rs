//! Compares a list with the prices that are in force.

use std::collections::BTreeSet;

use seatbelt_schemas::{
    amount::usd_text,
    ids::ModelId,
    price::{Price, Rates},
};

use crate::{List, Listed, NotImported, book::decimal};

/// A price in force.
#[derive(Debug, Clone)]
pub struct Running {
    /// Whose list it is looked up in; whoever lists the model where not known.
    pub provider: Option<String>,
    /// What the list calls the model, where that is not its own id.
    pub listed_as: Option<String>,
    /// The price, of a model or of one of its classes (`model+field=value`).
    pub price: Price,
    /// What is not stated of writes to the cache costs more than input.
    pub writes_cost_more: bool,
}

impl Running {
    /// What it is looked up by: the model's name in the list, and the class behind it.
    fn name_in_list(&self) -> String {
        let own = self.price.model.as_str();
        let class = own.rfind('+').filter(|at| own[*at..].contains('='));
        match &self.listed_as {
            Some(listed) => format!("{listed}{}", class.map_or("", |at| &own[at..])),
            None => own.to_owned(),
        }
    }
}

/// One thing that costs something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriceChange {
    /// Such as `input` or `output above 200000 input tokens`.
    pub what: String,
    /// What it costs now, USD (per million tokens, or per request).
    pub now: String,
    /// What it costs by the list.
    pub listed: String,
}

/// How a list differs from the prices in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// The list has a model that is not served, of a provider that is.
    New(String),
    /// The list asks for more, in some way at least: less would be charged than is paid.
    Dearer(ModelId, Vec<PriceChange>),
    /// The list asks for less.
    Cheaper(ModelId, Vec<PriceChange>),
    /// The list has no price of it, for this reason.
    Gone(ModelId, String),
}

/// All differences, those of prices in force first, in their order.
pub fn compare(running: &[Running], list: &List) -> Vec<Difference> {
    let mut differences = Vec::new();
    let mut providers = BTreeSet::new();
    for one in running {
        match find(one, list) {
            Ok((provider, listed)) => {
                providers.insert(provider);
                differences.extend(difference(&one.price, &listed));
            }
            Err(reason) => differences.push(Difference::Gone(one.price.model.clone(), reason)),
        }
    }
    let is_new = |listed: &&Listed| {
        let served = |one: &Running| one.name_in_list() == listed.name.model;
        providers.contains(listed.name.provider.as_str()) && !running.iter().any(served)
    };
    let new = list.models.iter().filter(is_new);
    differences.extend(new.map(|listed| Difference::New(listed.name.to_string())));
    differences
}

/// The listed price of a model or class, and whose list it is in.
fn find<'a>(running: &Running, list: &'a List) -> Result<(&'a str, Price), String> {
    let whole = running.name_in_list();
    let whole = whole.as_str();
    let is_asked = |provider: &str| {
        running
            .provider
            .as_deref()
            .is_none_or(|asked| asked == provider)
    };
    let of = |model: &'a Listed| is_asked(&model.name.provider);
    let named = |name: &str| {
        list.models
            .iter()
            .filter(|listed| listed.name.model == name && of(listed))
            .collect::<Vec<_>>()
    };
    let as_class = || {
        whole
            .rsplit_once('+')
            .and_then(|(model, class)| Some((model, class.split_once('=')?)))
    };
    let price = |terms: &crate::ListedTerms| {
        terms.price(running.price.model.clone(), running.writes_cost_more)
    };
    match (&named(whole)[..], as_class()) {
        ([listed], _) => Ok((&listed.name.provider, price(&listed.terms))),
        ([], Some((model, (field, value)))) => match &named(model)[..] {
            [listed] => {
                let class = listed
                    .classes
                    .iter()
                    .find(|class| class.field == field && class.value == value);
                let class =
                    class.ok_or(format!("{} has no such class in the list", listed.name))?;
                Ok((&listed.name.provider, price(&class.terms)))
            }
            several => Err(not_one(model, several, running, list)),
        },
        (several, _) => Err(not_one(whole, several, running, list)),
    }
}

fn not_one(model: &str, found: &[&Listed], running: &Running, list: &List) -> String {
    if found.len() > 1 {
        let providers: Vec<_> = found
            .iter()
            .map(|listed| listed.name.provider.as_str())
            .collect();
        return format!(
            "is listed by {}: name one with --provider",
            providers.join(", ")
        );
    }
    let is_it = |not: &&NotImported| {
        not.name.model == model
            && running
                .provider
                .as_deref()
                .is_none_or(|asked| asked == not.name.provider)
    };
    match list.left_out.iter().find(is_it) {
        Some(not) => format!("{}: {}", not.name, not.reason),
        None => "is not in the list".to_owned(),
    }
}

/// What costs something else by the list. A multiplier is the operator's own: rates are compared without it.
fn difference(now: &Price, listed: &Price) -> Option<Difference> {
    let mut changes = Vec::new();
    let mut is_dearer = false;
    let mut thresholds: Vec<u64> = now
        .tiers()
        .chain(listed.tiers())
        .map(|tier| tier.above_input_tokens)
        .collect();
    thresholds.push(0);
    thresholds.sort_unstable();
    thresholds.dedup();
    for above in thresholds {
        for ((what, now), (_, listed)) in rates(at(now, above))
            .into_iter()
            .zip(rates(at(listed, above)))
        {
            if now != listed {
                is_dearer |= listed > now;
                let what = if above == 0 {
                    what.to_owned()
                } else {
                    format!("{what} above {above} input tokens")
                };
                changes.push(PriceChange {
                    what,
                    now: decimal(now, 6),
                    listed: decimal(listed, 6),
                });
            }
        }
    }
    let fee = |price: &Price| price.fee_per_request.unwrap_or(0);
    if fee(now) != fee(listed) {
        is_dearer |= fee(listed) > fee(now);
        let (now, listed) = (usd_text(fee(now)), usd_text(fee(listed)));
        changes.push(PriceChange {
            what: "per_request".to_owned(),
            now,
            listed,
        });
    }
    let model = now.model.clone();
    match (changes.is_empty(), is_dearer) {
        (true, _) => None,
        (_, true) => Some(Difference::Dearer(model, changes)),
        (_, false) => Some(Difference::Cheaper(model, changes)),
    }
}

fn at(price: &Price, above: u64) -> &Rates {
    let reached = price
        .tiers()
        .filter(|tier| tier.above_input_tokens <= above)
        .last();
    reached.map_or(&price.rates, |tier| &tier.rates)
}

fn rates(rates: &Rates) -> [(&'static str, u64); 6] {
    [
        ("input", rates.input),
        ("cached_input", rates.cached_input),
        ("cache_write", rates.cache_write),
        ("cache_write_long", rates.long_write()),
        ("output", rates.output),
        ("reasoning", rates.reasoning),
    ]
}
