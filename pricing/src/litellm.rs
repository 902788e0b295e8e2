//! The format of LiteLLM's price file: one flat object, USD per token, with a grammar of suffixes.
//!
//! `input_cost_per_token_above_200k_tokens_priority` is a kind of price, a tier and a class. Every field with a
//! number must be known: as a price, or as something that is none. An off-peak price is the cheaper one and is
//! left aside unless it is not.

use std::collections::{BTreeMap, BTreeSet};

use seatbelt_schemas::amount::{PRICE_MAX, TOKENS_PER_REQUEST_MAX};

use crate::{
    Limits, Listed, ListedClass, ListedName, ListedTerms, NotImported, StatedRates,
    decimal::Decimal,
    json::Json,
    list::{Entry, without_searching},
};

/// Kinds of models that are priced by the token.
const MODES: [&str; 4] = ["chat", "responses", "completion", "embedding"];
/// Endings that name a class, and what a request says to be in it; without that, it cannot ask for it here.
const CLASSES: [(&str, Option<&str>); 6] = [
    ("_priority", Some("priority")),
    ("_flex", Some("flex")),
    ("_batches", None),
    ("_ultrafast", None),
    ("_decisions", None),
    ("_balanced", None),
];
/// Numbers and objects that are no prices.
const NO_PRICES: [&str; 14] = [
    "max_input_tokens",
    "max_output_tokens",
    "max_tokens",
    "rpm",
    "tpm",
    "output_vector_size",
    "prompt_cache_min_tokens",
    "metadata",
    "search_free_requests",
    "token_count_model",
    "token_count_framing",
    "token_count_tool_framing",
    "token_count_responses_framing",
    "token_count_responses_tool_framing",
];
/// Fees of tools that the provider runs: of one tool each, and by the thousand, where a price has one for all.
const TOOL_FEES: [&str; 8] = [
    "search_context_cost_per_query",
    "google_maps_grounding_cost_per_query",
    "code_interpreter_cost_per_session",
    "file_search_cost_per_1k_calls",
    "file_search_cost_per_gb_per_day",
    "vector_store_cost_per_gb_per_day",
    "computer_use_input_cost_per_1k_tokens",
    "computer_use_output_cost_per_1k_tokens",
];
/// Inputs that are let through under no cap.
const OTHER_INPUTS: [&str; 6] = [
    "input_cost_per_audio_token",
    "cache_read_input_audio_token_cost",
    "cache_creation_input_audio_token_cost",
    "input_cost_per_audio_per_second",
    "input_cost_per_video_token",
    "input_cost_per_video_per_second",
];
/// Prices of other tokens that may stand among those of text: importable where they cost no more.
const LIKE_INPUT: [&str; 2] = [
    "input_cost_per_image_token",
    "cache_read_input_image_token_cost",
];
const LIKE_OUTPUT: [&str; 3] = [
    "output_cost_per_image_token",
    "output_cost_per_audio_token",
    "output_cost_per_video_token",
];
/// Words of fields that say what something costs, in whatever kind of value.
const MONEY: [&str; 10] = [
    "cost",
    "pric",
    "fee",
    "charge",
    "multipl",
    "uplift",
    "discount",
    "markup",
    "premium",
    "provider_specific_entry",
];
/// What a provider asks for on top in some regions: an operator there writes `multiplier`.
const UPLIFTS: [&str; 4] = [
    "regional_processing_uplift_multiplier_eu",
    "regional_processing_uplift_multiplier_us",
    "regional_endpoint_uplift_multiplier",
    "fedramp_uplift_multiplier",
];

/// A kind of price per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Input,
    Cached,
    Write,
    WriteLong,
    Output,
    Reasoning,
}

const KINDS: [(&str, Kind); 8] = [
    ("input_cost_per_token", Kind::Input),
    ("output_cost_per_token", Kind::Output),
    ("output_cost_per_reasoning_token", Kind::Reasoning),
    ("cache_read_input_token_cost", Kind::Cached),
    ("input_cost_per_token_cache_hit", Kind::Cached),
    ("cache_creation_input_token_cost", Kind::Write),
    ("cache_creation_input_token_cost_above_1hr", Kind::WriteLong),
    (
        "cache_creation_input_token_cost_above_12hr",
        Kind::WriteLong,
    ),
];

/// Prices of one class: by tier (0 is none), by kind, pico-USD per token.
type Sheet = BTreeMap<u64, BTreeMap<Kind, u64>>;

/// What the fields of one model say.
#[derive(Default)]
struct Fields {
    own: Sheet,
    classes: BTreeMap<&'static str, Sheet>,
    multiplied: Vec<(&'static str, String, u64)>,
    /// Prices of other tokens: the field, its rate, whether it is output.
    like_text: Vec<(String, u64, bool)>,
    /// Classes in which something may cost more than text.
    unpriced: BTreeSet<&'static str>,
    off_peak: Sheet,
    per_request: u64,
    notes: Vec<String>,
}

pub(crate) fn read(models: &[(String, Json)]) -> Vec<Entry> {
    let listed = models.iter().filter(|(key, _)| key != "sample_spec");
    listed.map(|(key, model)| read_model(key, model)).collect()
}

fn read_model(key: &str, model: &Json) -> Entry {
    let provider = model
        .get("litellm_provider")
        .and_then(Json::text)
        .unwrap_or("(no provider)");
    let own = key
        .strip_prefix(provider)
        .and_then(|rest| rest.strip_prefix('/'));
    let name = ListedName {
        provider: provider.to_owned(),
        model: own.unwrap_or(key).to_owned(),
    };
    let read = read_prices(name.clone(), model).map_err(|reason| NotImported { name, reason });
    read.and_then(without_searching)
}

fn read_prices(name: ListedName, model: &Json) -> Result<Listed, String> {
    let mode = model.get("mode").and_then(Json::text).unwrap_or("(none)");
    if !MODES.contains(&mode) {
        return Err(format!(
            "is of the mode {mode}, which is not priced by the token here"
        ));
    }
    let has_no_output = mode == "embedding";
    let mut fields = Fields::default();
    for (field, value) in model.members() {
        fields.read(field, value)?;
    }
    let mut terms = terms(&fields.own, has_no_output)?;
    if !fields.off_peak.is_empty() {
        terms = off_peak(&mut fields, terms);
    }
    terms.per_request = fields.per_request;
    if let Some(problem) = terms.problem(has_no_output) {
        return Err(problem);
    }
    for (field, rate, is_output) in &fields.like_text {
        let text = std::iter::once(&terms.rates).chain(terms.tiers.iter().map(|(_, rates)| rates));
        let least = text
            .map(|rates| {
                if *is_output {
                    rates.output
                } else {
                    rates.input
                }
            })
            .min();
        if Some(*rate) > least {
            return Err(format!(
                "{field} costs more than text, and a price has no rate for it"
            ));
        }
    }
    let classes = classes(&mut fields, &terms);
    Ok(Listed {
        name,
        limits: limits(model, has_no_output),
        terms,
        classes,
        notes: fields.notes,
    })
}

/// The input maximum is told apart from the output's, and for some models includes it: their sum is never too low.
fn limits(model: &Json, has_no_output: bool) -> Limits {
    let tokens = |name| {
        let number = model
            .get(name)
            .and_then(Json::number)
            .and_then(Decimal::parse);
        number
            .and_then(Decimal::whole)
            .filter(|tokens| (1..=TOKENS_PER_REQUEST_MAX / 2).contains(tokens))
    };
    let output = tokens("max_output_tokens").or(has_no_output.then_some(1));
    let context = tokens("max_input_tokens")
        .zip(output)
        .map(|(input, output)| input + output);
    Limits {
        context,
        output: output.filter(|_| context.is_some()),
    }
}

impl Fields {
    fn read(&mut self, field: &str, value: &Json) -> Result<(), String> {
        let is_plain = |item: &Json| matches!(item, Json::Text(_) | Json::Bool(_));
        let may_be_price = MONEY.iter().any(|word| field.contains(word));
        match value {
            Json::Null => Ok(()),
            Json::Bool(_) if !may_be_price => Ok(()),
            Json::List(items) if items.iter().all(is_plain) && !may_be_price => Ok(()),
            // some numbers are written as text
            Json::Text(text) if Decimal::parse(text).is_none() && !may_be_price => Ok(()),
            _ if NO_PRICES.contains(&field) => Ok(()),
            _ if TOOL_FEES.contains(&field) => {
                let note = format!("{field}: a fee of tools that the provider runs, not imported");
                self.notes.push(note);
                Ok(())
            }
            _ if field == "off_peak_pricing" => self.read_off_peak(value),
            _ if field == "provider_specific_entry" => self.read_multipliers(value),
            _ => {
                let number = value.number().and_then(Decimal::parse);
                let number = number.ok_or(format!("{field} is not understood"))?;
                self.read_number(field, number, value.number().unwrap_or_default())
            }
        }
    }

    fn read_number(&mut self, field: &str, number: Decimal, text: &str) -> Result<(), String> {
        let (name, above, class) = parts(field);
        let rate = || pico(number).ok_or(format!("{field} is no price"));
        if let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == name) {
            let added = self.add(*kind, above, class, rate()?);
            return added.map_err(|()| format!("{field} says otherwise than another field"));
        }
        let is_output = LIKE_OUTPUT.contains(&name);
        match class {
            _ if number.is_zero() => {}
            None if OTHER_INPUTS.contains(&name) => {
                self.notes.push(format!(
                    "{field}: for audio or video, which no cap lets through"
                ));
            }
            None if is_output || LIKE_INPUT.contains(&name) => {
                self.like_text.push((field.to_owned(), rate()?, is_output));
            }
            None if UPLIFTS.contains(&field) => {
                self.notes.push(format!(
                    "{field} = {text}: write it as multiplier where it is yours"
                ));
            }
            None if field == "input_cost_per_request" => {
                self.per_request = number
                    .times_ten_to(9)
                    .ok_or(format!("{field} is no price"))?;
            }
            Some(_) if OTHER_INPUTS.contains(&name) => {}
            Some((_, class)) if is_output || LIKE_INPUT.contains(&name) => {
                // what may stand among text has a price of its own in this class
                self.unpriced.extend(class);
            }
            _ => return Err(format!("{field} is not understood")),
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: Kind,
        above: u64,
        class: Option<(&'static str, Option<&'static str>)>,
        rate: u64,
    ) -> Result<(), ()> {
        let sheet = match class {
            None => &mut self.own,
            Some((_, Some(class))) => self.classes.entry(class).or_default(),
            Some((ending, None)) => {
                let note = format!(
                    "priced apart, and not imported: {}",
                    ending.trim_start_matches('_')
                );
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                return Ok(());
            }
        };
        let known = sheet.entry(above).or_default().entry(kind).or_insert(rate);
        match kind {
            // one field for an hour, one for longer
            Kind::WriteLong => *known = rate.max(*known),
            _ if *known != rate => return Err(()),
            _ => {}
        }
        Ok(())
    }

    fn read_off_peak(&mut self, value: &Json) -> Result<(), String> {
        if !matches!(value, Json::Object(_)) {
            return Err("off_peak_pricing is not understood".to_owned());
        }
        for (field, value) in value
            .members()
            .iter()
            .filter(|(field, _)| field != "windows")
        {
            let kind = KINDS
                .iter()
                .find(|(name, _)| name == field)
                .map(|(_, kind)| *kind);
            let rate = value.number().and_then(Decimal::parse).and_then(pico);
            let (kind, rate) = kind
                .zip(rate)
                .ok_or(format!("off_peak_pricing.{field} is not understood"))?;
            self.off_peak.entry(0).or_default().insert(kind, rate);
        }
        Ok(())
    }

    /// Anthropic's two ways to pay more: a place, and speed.
    fn read_multipliers(&mut self, value: &Json) -> Result<(), String> {
        if !matches!(value, Json::Object(_)) {
            return Err("provider_specific_entry is not understood".to_owned());
        }
        for (name, value) in value.members() {
            let field = match name.as_str() {
                "us" => "inference_geo",
                "fast" => "speed",
                _ => return Err(format!("provider_specific_entry.{name} is not understood")),
            };
            let ppm = value
                .number()
                .and_then(Decimal::parse)
                .and_then(|by| by.times_ten_to(6));
            let ppm = ppm.ok_or(format!("provider_specific_entry.{name} is no multiplier"))?;
            self.multiplied.push((field, name.clone(), ppm));
        }
        Ok(())
    }
}

fn pico(usd_per_token: Decimal) -> Option<u64> {
    usd_per_token
        .times_ten_to(12)
        .filter(|pico| *pico <= PRICE_MAX)
}

/// A field's kind of price, its tier (0 where none), and its class.
fn parts(field: &str) -> (&str, u64, Option<(&'static str, Option<&'static str>)>) {
    let class = CLASSES
        .into_iter()
        .find(|(ending, _)| field.ends_with(ending));
    let rest = class.map_or(field, |(ending, _)| &field[..field.len() - ending.len()]);
    let tier = rest.rsplit_once("_above_").and_then(|(kind, tier)| {
        let thousands = tier.strip_suffix("k_tokens")?.parse::<u64>().ok()?;
        Some((
            kind,
            thousands.checked_mul(1000).filter(|above| *above > 0)?,
        ))
    });
    let (kind, above) = tier.unwrap_or((rest, 0));
    (kind, above, class)
}

fn terms(sheet: &Sheet, has_no_output: bool) -> Result<ListedTerms, String> {
    let base = sheet.get(&0).cloned().unwrap_or_default();
    let rates = |prices: &BTreeMap<Kind, u64>| -> Result<StatedRates, String> {
        let get = |kind| prices.get(&kind).copied();
        // a cache that costs nothing is one whose price is not known
        let stated = |kind| get(kind).filter(|rate| *rate > 0);
        Ok(StatedRates {
            input: get(Kind::Input).ok_or("has no price of input")?,
            cached_input: stated(Kind::Cached),
            cache_write: stated(Kind::Write),
            cache_write_long: stated(Kind::WriteLong),
            output: get(Kind::Output)
                .or(has_no_output.then_some(0))
                .ok_or("has no price of output")?,
            reasoning: stated(Kind::Reasoning),
        }
        .with_long_writes())
    };
    let mut tiers = Vec::new();
    for (above, prices) in sheet.iter().filter(|(above, _)| **above > 0) {
        // a tier that says nothing of a price which the base has may mean the base's, or its own
        if let Some(kind) = base
            .keys()
            .find(|kind| !prices.contains_key(kind) && base[kind] > 0)
        {
            return Err(
                format!("has no price of {kind:?} above {above} input tokens").to_lowercase(),
            );
        }
        tiers.push((*above, rates(prices)?));
    }
    Ok(ListedTerms {
        rates: rates(&base)?,
        tiers,
        per_request: 0,
    })
}

fn off_peak(fields: &mut Fields, terms: ListedTerms) -> ListedTerms {
    let own = fields.own.get(&0).cloned().unwrap_or_default();
    let off_peak = fields.off_peak.get(&0).cloned().unwrap_or_default();
    fields
        .notes
        .push("costs less at some hours: each rate is the dearest".to_owned());
    let sheet = Sheet::from([(0, own.into_iter().chain(off_peak).collect())]);
    match self::terms(&sheet, false) {
        Ok(other) => terms.dearer(&other),
        Err(_) => terms,
    }
}

fn classes(fields: &mut Fields, of: &ListedTerms) -> Vec<ListedClass> {
    let mut classes = Vec::new();
    let mut add = |field,
                   value: String,
                   terms: Result<ListedTerms, String>,
                   notes: &mut Vec<String>| match terms {
        Ok(terms) => match terms.problem(false) {
            None if terms.is_never_cheaper(of) => classes.push(ListedClass {
                field,
                value,
                terms,
            }),
            None => notes.push(format!(
                "{field} = {value}: costs less in some way, and may be served as the model"
            )),
            Some(problem) => notes.push(format!("{field} = {value}: {problem}")),
        },
        Err(problem) => notes.push(format!("{field} = {value}: {problem}")),
    };
    for (class, sheet) in std::mem::take(&mut fields.classes) {
        if fields.unpriced.contains(class) {
            fields.notes.push(format!(
                "service_tier = {class}: images or audio have a price of their own"
            ));
            continue;
        }
        add(
            "service_tier",
            class.to_owned(),
            class_terms(&sheet, of),
            &mut fields.notes,
        );
    }
    for (field, value, ppm) in std::mem::take(&mut fields.multiplied) {
        let terms = times(of, ppm).ok_or("is no multiplier that can be".to_owned());
        add(field, value, terms, &mut fields.notes);
    }
    classes
}

/// What a class costs. Where it says nothing of a tier that its model has, it may be served at either.
fn class_terms(sheet: &Sheet, of: &ListedTerms) -> Result<ListedTerms, String> {
    let terms = terms(sheet, false)?;
    let silent = |above: &u64| !terms.tiers.iter().any(|(known, _)| known == above);
    let tiers = terms
        .thresholds(of)
        .into_iter()
        .map(|above| match silent(&above) {
            true => (above, terms.at(above).dearer(of.at(above))),
            false => (above, *terms.at(above)),
        });
    let tiers = tiers.collect();
    Ok(ListedTerms {
        tiers,
        per_request: of.per_request,
        ..terms
    })
}

fn times(of: &ListedTerms, ppm: u64) -> Option<ListedTerms> {
    let rate = |rate: u64| {
        let rate = u128::from(rate)
            .checked_mul(ppm.into())?
            .div_ceil(1_000_000);
        u64::try_from(rate).ok()
    };
    let tiers = of
        .tiers
        .iter()
        .map(|(above, rates)| Some((*above, rates.each(rate)?)));
    Some(ListedTerms {
        rates: of.rates.each(rate)?,
        tiers: tiers.collect::<Option<_>>()?,
        per_request: rate(of.per_request)?,
    })
}
