//! The format of genai-prices, version 2: providers with their models, USD per million tokens.
//!
//! A price is a number or tiers that apply to the whole request; prices may begin at a day or hold for a time of
//! the day, the last that holds wins; `price_variants` change some prices for requests that ask for a class. The
//! list's `context_window` is rounded for some models, and a cap would hold too little by it: it is only told.

use seatbelt_schemas::amount::PRICE_MAX;

use crate::{
    Day, Limits, Listed, ListedClass, ListedName, ListedTerms, NotImported, StatedRates,
    decimal::Decimal,
    json::Json,
    list::{Entry, without_searching},
};

/// Fees of tools that the provider runs: of one tool each, and by the thousand, where a price has one for all.
const TOOL_FEES: [&str; 2] = ["web_searches_kcount", "storage_searches_kcount"];
/// Inputs that are let through under no cap.
const OTHER_INPUTS: [&str; 5] = [
    "input_audio_mtok",
    "cache_audio_read_mtok",
    "cache_audio_write_mtok",
    "input_video_mtok",
    "cache_video_read_mtok",
];
/// Inputs that may be in a request like text: importable where they cost no more than that.
const LIKE_INPUT: [&str; 4] = [
    "input_image_mtok",
    "input_text_mtok",
    "cache_image_read_mtok",
    "cache_text_read_mtok",
];
/// Outputs that may be in an answer like text.
const LIKE_OUTPUT: [&str; 5] = [
    "output_image_mtok",
    "output_audio_mtok",
    "output_video_mtok",
    "output_text_mtok",
    "output_citation_mtok",
];
/// Stands for the id of what has none.
const WITHOUT_ID: &str = "(without id)";
/// Fields that ask for a class of service.
const CLASS_FIELDS: [&str; 3] = ["service_tier", "speed", "inference_geo"];

pub(crate) fn read(providers: &[Json], day: Day) -> Vec<Entry> {
    let mut entries = Vec::new();
    for provider in providers {
        let id = provider.get("id").and_then(Json::text);
        let provider_name = id.unwrap_or(WITHOUT_ID).to_owned();
        let models = provider.get("models").and_then(Json::list);
        let (Some(_), Some(models)) = (id, models) else {
            let what = if id.is_none() {
                "an id"
            } else {
                "a list of models"
            };
            entries.push(Err(NotImported {
                name: ListedName {
                    provider: provider_name,
                    model: "(all)".to_owned(),
                },
                reason: format!("the provider has not {what}"),
            }));
            continue;
        };
        for model in models {
            let id = model.get("id").and_then(Json::text);
            let name = ListedName {
                provider: provider_name.clone(),
                model: id.unwrap_or(WITHOUT_ID).to_owned(),
            };
            let read = match id {
                Some(_) => read_model(model, name.clone(), day),
                None => Err("has no id".to_owned()),
            };
            let read = read.map_err(|reason| NotImported { name, reason });
            entries.push(read.and_then(without_searching));
        }
    }
    entries
}

fn read_model(model: &Json, name: ListedName, day: Day) -> Result<Listed, String> {
    let prices = model.get("prices").ok_or("has no prices")?;
    let variants = list_of(model, "price_variants")?;
    let mut notes = Vec::new();
    let days = days(prices, variants, day)?;
    let mut standard = Vec::new();
    for day in &days {
        standard.extend(standard_on(prices, *day)?);
    }
    let terms = dearest(&standard, &mut notes)?;
    let mut classes = Vec::new();
    for (field, value) in asked(variants, &mut notes) {
        match class(prices, variants, &days, (field, &value)) {
            Err(problem) => notes.push(format!("{field} = {value}: {problem}")),
            Ok(class) if class == terms => {}
            Ok(class) if class.is_never_cheaper(&terms) => classes.push(ListedClass {
                field,
                value,
                terms: class,
            }),
            // it may be served at the model's own price all the same
            _ => notes.push(format!(
                "{field} = {value}: costs less in some way, and may be served as the model"
            )),
        }
    }
    if let Some(context) = model.get("context_window").and_then(Json::number) {
        notes.push(format!("the list tells a context window of {context}"));
    }
    notes.dedup();
    Ok(Listed {
        name,
        limits: Limits::default(),
        terms,
        classes,
        notes,
    })
}

/// A list that may be missing; what is in its place instead is not understood.
fn list_of<'a>(of: &'a Json, name: &str) -> Result<&'a [Json], String> {
    match of.get(name) {
        None => Ok(&[]),
        Some(list) => list.list().ok_or(format!("{name} is no list")),
    }
}

/// The days from which on something else applies: `day`, and each later one that is named.
fn days(prices: &Json, variants: &[Json], day: Day) -> Result<Vec<Day>, String> {
    let mut days = vec![day];
    for part in prices.list().unwrap_or(&[]).iter().chain(variants) {
        if let When::From(from) = when(part)? {
            days.extend((from > day).then_some(from));
        }
    }
    days.sort_unstable();
    days.dedup();
    Ok(days)
}

/// When a part of a price holds.
enum When {
    Always,
    From(Day),
    SomeHours,
}

fn when(part: &Json) -> Result<When, String> {
    let Some(constraint) = part.get("constraint") else {
        return Ok(When::Always);
    };
    let mut names: Vec<_> = constraint
        .members()
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    match names[..] {
        ["start_date"] => {
            let day = constraint.get("start_date").and_then(Json::text);
            let day = day.and_then(|text| text.parse().ok());
            day.map(When::From)
                .ok_or("a price begins at what is no day".to_owned())
        }
        ["end_time", "start_time"] => Ok(When::SomeHours),
        _ => Err("a price holds under a condition that is not understood".to_owned()),
    }
}

/// All that may apply at some hour of that day: the last that holds wins, and those of some hours may hold or not.
fn standard_on(prices: &Json, day: Day) -> Result<Vec<&Json>, String> {
    let Some(parts) = prices.list() else {
        return Ok(vec![prices]);
    };
    let mut found = Vec::new();
    for part in parts.iter().rev() {
        match when(part)? {
            When::From(from) if from > day => continue,
            When::SomeHours => found.push(prices_of(part)?),
            When::Always | When::From(_) => {
                found.push(prices_of(part)?);
                return Ok(found);
            }
        }
    }
    // where none holds, the first does
    found.push(prices_of(parts.first().ok_or("has no prices")?)?);
    Ok(found)
}

fn prices_of(part: &Json) -> Result<&Json, String> {
    part.get("prices")
        .ok_or("has a price without prices".to_owned())
}

fn dearest(standard: &[&Json], notes: &mut Vec<String>) -> Result<ListedTerms, String> {
    let mut all = Vec::new();
    for prices in standard {
        let flat: Vec<_> = prices
            .members()
            .iter()
            .map(|(key, price)| (key.as_str(), price))
            .collect();
        all.push(terms(&flat, notes)?);
    }
    let (first, others) = all.split_first().ok_or("has no prices")?;
    if others.iter().any(|other| other != first) {
        notes.push("several prices apply, by the hour or from a day to come: each rate is the dearest of them".to_owned());
    }
    let terms = others
        .iter()
        .fold(first.clone(), |dearest, other| dearest.dearer(other));
    terms.problem(false).map_or(Ok(terms), Err)
}

/// Classes that variants are for, each once; others are told.
fn asked(variants: &[Json], notes: &mut Vec<String>) -> Vec<(&'static str, String)> {
    let mut asked: Vec<(&'static str, String)> = Vec::new();
    for variant in variants {
        let when = variant.get("when").map_or(&[][..], Json::members);
        let field = |name: &str| CLASS_FIELDS.into_iter().find(|field| *field == name);
        match when {
            [(name, Json::Text(value))] if field(name).is_some() && is_class_word(value) => {
                let class = (field(name).unwrap_or(CLASS_FIELDS[0]), value.clone());
                if !asked.contains(&class) {
                    asked.push(class);
                }
            }
            // the class that a price is for, said once more
            [_] if variant
                .get("prices")
                .is_some_and(|own| *own == Json::Object(Vec::new())) => {}
            other => {
                let names = other
                    .iter()
                    .map(|(name, value)| format!("{name} = {}", value.text().unwrap_or("?")));
                notes.push(format!(
                    "priced apart, and not imported: {}",
                    names.collect::<Vec<_>>().join(", ")
                ));
            }
        }
    }
    asked
}

/// Whether a request can ask for it, and be told apart from one that asks for nothing.
fn is_class_word(value: &str) -> bool {
    const PINNED: [&str; 4] = ["default", "standard", "standard_only", "global"];
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=32).contains(&value.len()) && value.bytes().all(plain) && !PINNED.contains(&value)
}

/// What a class costs: of each price the first variant that has it, else the model's.
fn class(
    prices: &Json,
    variants: &[Json],
    days: &[Day],
    asked: (&str, &str),
) -> Result<ListedTerms, String> {
    let mut dearest: Option<ListedTerms> = None;
    let is_asked = |variant: &&Json| {
        let when = variant.get("when").map_or(&[][..], Json::members);
        matches!(when, [(name, Json::Text(value))] if (name.as_str(), value.as_str()) == asked)
    };
    for day in days {
        for standard in standard_on(prices, *day)? {
            let mut all: Vec<(&str, &Json)> = Vec::new();
            for variant in variants.iter().filter(is_asked) {
                match when(variant)? {
                    When::From(from) if from > *day => continue,
                    When::SomeHours => {
                        return Err(format!("{} = {} has prices by the hour", asked.0, asked.1));
                    }
                    When::Always | When::From(_) => {}
                }
                for (key, price) in variant.get("prices").map_or(&[][..], Json::members) {
                    add(&mut all, key, price);
                }
            }
            for (key, price) in standard.members() {
                add(&mut all, key, price);
            }
            let terms = terms(&all, &mut Vec::new())?;
            dearest = Some(dearest.map_or(terms.clone(), |known| known.dearer(&terms)));
        }
    }
    let terms = dearest.ok_or("has no prices")?;
    terms.problem(false).map_or(Ok(terms), Err)
}

fn add<'a>(all: &mut Vec<(&'a str, &'a Json)>, key: &'a str, price: &'a Json) {
    if *price != Json::Null && !all.iter().any(|(known, _)| *known == key) {
        all.push((key, price));
    }
}

/// One kind of price, with its tiers.
struct Tiered {
    base: u64,
    tiers: Vec<(u64, u64)>,
}

impl Tiered {
    fn read(price: &Json, key: &str) -> Result<Self, String> {
        let rate = |price: Option<&Json>| {
            let rate = price.and_then(Json::number).and_then(Decimal::parse);
            let pico = rate
                .and_then(|rate| rate.times_ten_to(6))
                .filter(|pico| *pico <= PRICE_MAX);
            pico.ok_or(format!("{key} is no price"))
        };
        let Json::Object(parts) = price else {
            return Ok(Self {
                base: rate(Some(price))?,
                tiers: Vec::new(),
            });
        };
        if parts
            .iter()
            .any(|(name, _)| name != "base" && name != "tiers")
        {
            return Err(format!("{key} has parts that are not understood"));
        }
        let mut tiers = Vec::new();
        for tier in list_of(price, "tiers").map_err(|problem| format!("{key}: {problem}"))? {
            let start = tier
                .get("start")
                .and_then(Json::number)
                .and_then(Decimal::parse);
            let start = start
                .and_then(Decimal::whole)
                .filter(|_| tier.members().len() == 2);
            tiers.push((
                start.ok_or(format!("{key} has a tier without start"))?,
                rate(tier.get("price"))?,
            ));
        }
        tiers.sort_by_key(|(start, _)| *start);
        if tiers.windows(2).any(|two| two[0].0 == two[1].0) {
            return Err(format!("{key} has two tiers with one start"));
        }
        Ok(Self {
            base: rate(price.get("base"))?,
            tiers,
        })
    }

    fn at(&self, above: u64) -> u64 {
        let reached = self.tiers.iter().rfind(|(start, _)| *start <= above);
        reached.map_or(self.base, |(_, rate)| *rate)
    }

    /// Whether it costs no more than the other, at any length of input.
    fn is_within(&self, other: &Self) -> bool {
        let mut starts = self
            .tiers
            .iter()
            .chain(&other.tiers)
            .map(|(start, _)| *start);
        self.base <= other.base && starts.all(|start| self.at(start) <= other.at(start))
    }
}

fn terms(prices: &[(&str, &Json)], notes: &mut Vec<String>) -> Result<ListedTerms, String> {
    let get = |key: &str| {
        let found = prices
            .iter()
            .find(|(known, price)| *known == key && **price != Json::Null);
        found.map(|(_, price)| Tiered::read(price, key)).transpose()
    };
    let input = get("input_mtok")?.ok_or("has no price of input")?;
    let output = get("output_mtok")?.ok_or("has no price of output")?;
    others(prices, (&input, &output), notes)?;
    // a write that stays five minutes is the plain one, where both are given the dearer
    let parts = [
        get("cache_read_mtok")?,
        get("cache_write_mtok")?,
        get("cache_write_5m_mtok")?,
        get("cache_write_1h_mtok")?,
        get("output_reasoning_mtok")?,
    ];
    let stated = |part: &Option<Tiered>, above: Option<u64>| {
        let rate = part
            .as_ref()
            .map(|part| above.map_or(part.base, |above| part.at(above)));
        rate.filter(|rate| *rate > 0)
    };
    let rates = |above: Option<u64>| StatedRates {
        input: above.map_or(input.base, |above| input.at(above)),
        cached_input: stated(&parts[0], above),
        cache_write: stated(&parts[1], above).max(stated(&parts[2], above)),
        cache_write_long: stated(&parts[3], above),
        output: above.map_or(output.base, |above| output.at(above)),
        reasoning: stated(&parts[4], above),
    };
    let known = [&input, &output].into_iter().chain(parts.iter().flatten());
    let mut above: Vec<u64> = known
        .flat_map(|part| &part.tiers)
        .map(|(start, _)| *start)
        .collect();
    above.sort_unstable();
    above.dedup();
    Ok(ListedTerms {
        rates: rates(None).with_long_writes(),
        tiers: above
            .into_iter()
            .map(|above| (above, rates(Some(above)).with_long_writes()))
            .collect(),
        per_request: fee(prices)?,
    })
}

/// USD for a thousand requests, as nano-USD for one.
fn fee(prices: &[(&str, &Json)]) -> Result<u64, String> {
    let Some((key, price)) = prices.iter().find(|(key, _)| *key == "requests_kcount") else {
        return Ok(0);
    };
    let fee = price
        .number()
        .and_then(Decimal::parse)
        .and_then(|fee| fee.times_ten_to(6));
    fee.ok_or(format!("{key} is no price"))
}

/// Every other kind of price is known to cost nothing here, or the model is not understood.
fn others(
    prices: &[(&str, &Json)],
    (input, output): (&Tiered, &Tiered),
    notes: &mut Vec<String>,
) -> Result<(), String> {
    const OWN: [&str; 8] = [
        "input_mtok",
        "output_mtok",
        "cache_read_mtok",
        "cache_write_mtok",
        "cache_write_5m_mtok",
        "cache_write_1h_mtok",
        "output_reasoning_mtok",
        "requests_kcount",
    ];
    for (key, price) in prices
        .iter()
        .filter(|(key, price)| !OWN.contains(key) && **price != Json::Null)
    {
        let shown = price.number().unwrap_or("in tiers");
        if TOOL_FEES.contains(key) {
            notes.push(format!(
                "{key} = {shown}: a fee of tools that the provider runs, not imported"
            ));
        } else if OTHER_INPUTS.contains(key) {
            notes.push(format!(
                "{key} = {shown}: for audio or video, which no cap lets through"
            ));
        } else if LIKE_INPUT.contains(key) || LIKE_OUTPUT.contains(key) {
            let text = if LIKE_INPUT.contains(key) {
                input
            } else {
                output
            };
            if !Tiered::read(price, key)?.is_within(text) {
                return Err(format!(
                    "{key} = {shown} costs more than text, and a price has no rate for it"
                ));
            }
        } else {
            return Err(format!("{key} = {shown} is a price that is not understood"));
        }
    }
    Ok(())
}
