//! A price list as a whole: which format it is in, the models whose price is known, and those left out.

use std::{collections::BTreeMap, fmt};

use seatbelt_schemas::ids::ModelId;
use thiserror::Error;

use crate::{Day, ListedTerms, genai, json::Json, litellm};

/// Largest list that is read; the largest known has 3.5 MB.
pub(crate) const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Most classes of a model that a configuration takes.
const CLASSES_MAX: usize = 16;

/// A format of price lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `data.json` of genai-prices, version 2.
    GenaiPrices,
    /// LiteLLM's `model_prices_and_context_window.json`.
    LiteLlm,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GenaiPrices => "genai-prices",
            Self::LiteLlm => "litellm",
        })
    }
}

/// A model of a provider: the same name may cost something else at another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListedName {
    /// As the list names it.
    pub provider: String,
    /// As the provider's API names it.
    pub model: String,
}

impl fmt::Display for ListedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.provider, self.model)
    }
}

/// How many tokens a model takes and gives, as far as a list tells so that a cap can rely on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Input and output together.
    pub context: Option<u64>,
    pub output: Option<u64>,
}

/// A class of service that a request may ask for, and what it costs then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedClass {
    /// `service_tier`, `speed` or `inference_geo`.
    pub field: &'static str,
    /// What the field says.
    pub value: String,
    /// What it costs then: never less than the model.
    pub terms: ListedTerms,
}

/// A model with its price.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: ListedName,
    pub limits: Limits,
    /// What it costs.
    pub terms: ListedTerms,
    /// Its dearer classes.
    pub classes: Vec<ListedClass>,
    /// What else the list says of its price, that this price does not.
    pub notes: Vec<String>,
}

/// A model that is not imported, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotImported {
    pub name: ListedName,
    /// What was not understood, or is missing.
    pub reason: String,
}

/// What a list says.
#[derive(Debug, Clone)]
pub struct List {
    /// The format it is in.
    pub format: Format,
    /// The models, by provider and name, each once.
    pub models: Vec<Listed>,
    /// The others.
    pub left_out: Vec<NotImported>,
}

/// Why a list cannot be read at all.
#[derive(Debug, Error)]
pub enum ListError {
    /// It is longer than any price list.
    #[error("the price list has {0} bytes, and {LIST_BYTES_MAX} are read at most")]
    TooLong(usize),
    /// It is no text.
    #[error("the price list is not UTF-8: give the JSON file itself")]
    NotText,
    /// It is no JSON, or names a thing twice.
    #[error("the price list is no sound JSON")]
    NotJson(#[source] serde_json::Error),
    /// It is JSON of another kind.
    #[error(
        "the price list is not in the format {0}: its top is another kind of value, or lists nothing"
    )]
    OtherFormat(Format),
}

/// Reads a list; without `format` its top tells: genai-prices is an array, LiteLLM's list an object.
pub fn read(bytes: &[u8], format: Option<Format>, day: Day) -> Result<List, ListError> {
    if bytes.len() > LIST_BYTES_MAX {
        return Err(ListError::TooLong(bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| ListError::NotText)?;
    let json = Json::parse(text.trim_start_matches('\u{feff}')).map_err(ListError::NotJson)?;
    let found = match json {
        Json::Object(_) => Format::LiteLlm,
        _ => Format::GenaiPrices,
    };
    let format = format.unwrap_or(found);
    let entries: Vec<Entry> = match (format, &json) {
        (Format::GenaiPrices, Json::List(providers)) => genai::read(providers, day),
        (Format::LiteLlm, Json::Object(models)) => litellm::read(models),
        _ => Vec::new(),
    };
    if entries.is_empty() {
        return Err(ListError::OtherFormat(format));
    }
    let entries = entries.into_iter().map(|entry| entry.and_then(with_names));
    Ok(once(format, entries.collect()))
}

/// Leaves a model out that no configuration could name: one such entry would keep all of a book from being read.
fn with_names(mut listed: Listed) -> Entry {
    let ListedName { provider, model } = &listed.name;
    let problem = match ModelId::new(model) {
        Err(error) => Some(format!("its name is none that a model can have: {error}")),
        Ok(_) if provider.is_empty() => Some("its provider has no name".to_owned()),
        Ok(_) if provider.contains('/') => {
            Some("its provider's name has a slash, which parts it from the model".to_owned())
        }
        Ok(_) => None,
    };
    if let Some(reason) = problem {
        return Err(NotImported {
            name: listed.name,
            reason,
        });
    }
    // a class is priced under a name of its own
    let is_named = |class: &ListedClass| {
        ModelId::new(format!("{model}+{}={}", class.field, class.value)).is_ok()
    };
    let mut classes = Vec::new();
    for class in listed.classes {
        if is_named(&class) && classes.len() < CLASSES_MAX {
            classes.push(class);
        } else {
            listed.notes.push(format!(
                "{} = {}: its name is too long, or its model has too many",
                class.field, class.value
            ));
        }
    }
    listed.classes = classes;
    Ok(listed)
}

/// One model of a list: read, or left out.
pub(crate) type Entry = Result<Listed, NotImported>;

/// Models that search with every request, by what is in their names.
const SEARCHING: [&str; 2] = ["search", "sonar"];

/// Leaves a model out that searches whether it is asked to or not, unless the list tells what each request costs:
/// its fee for a search is then no fee of a tool that could be refused.
pub(crate) fn without_searching(listed: Listed) -> Entry {
    let model = listed.name.model.to_lowercase();
    match SEARCHING.iter().any(|word| model.contains(word)) && listed.terms.per_request == 0 {
        true => Err(NotImported {
            name: listed.name,
            reason: "searches with every request, and the list does not tell what each costs"
                .to_owned(),
        }),
        false => Ok(listed),
    }
}

/// Each model once: one that is listed twice at different prices has none.
fn once(format: Format, entries: Vec<Entry>) -> List {
    let mut models: BTreeMap<ListedName, Listed> = BTreeMap::new();
    let mut left_out: BTreeMap<ListedName, String> = BTreeMap::new();
    for entry in entries {
        match entry {
            Ok(listed) => match models.get(&listed.name) {
                Some(known) if known.terms != listed.terms || known.classes != listed.classes => {
                    left_out.insert(
                        listed.name,
                        "is listed twice, at different prices".to_owned(),
                    );
                }
                Some(known) if known.limits != listed.limits => {
                    let unlimited = Listed {
                        limits: Limits::default(),
                        ..listed
                    };
                    models.insert(unlimited.name.clone(), unlimited);
                }
                _ => {
                    models.insert(listed.name.clone(), listed);
                }
            },
            Err(not) => {
                left_out.entry(not.name).or_insert(not.reason);
            }
        }
    }
    // what is not understood under a name may be the same model at another price
    models.retain(|name, _| !left_out.contains_key(name));
    let left_out = left_out
        .into_iter()
        .map(|(name, reason)| NotImported { name, reason });
    List {
        format,
        models: models.into_values().collect(),
        left_out: left_out.collect(),
    }
}

/// Which models of a list are asked for.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Of these providers; of all where empty.
    pub providers: Vec<String>,
    /// These models; all where empty.
    pub models: Vec<String>,
    /// Also those of which the list does not tell the most tokens.
    pub without_limits: bool,
}

impl Selection {
    fn wants(&self, name: &ListedName) -> bool {
        let among = |all: &[String], one: &String| all.is_empty() || all.contains(one);
        among(&self.providers, &name.provider) && among(&self.models, &name.model)
    }

    /// The list without all that was not asked for, and without what lacks its limits.
    pub fn of(&self, list: List) -> List {
        let mut left_out = list.left_out;
        let mut models = Vec::new();
        for listed in list.models {
            let limited = listed.limits.context.is_some() && listed.limits.output.is_some();
            match limited || self.without_limits {
                true => models.push(listed),
                false => left_out.push(NotImported {
                    name: listed.name,
                    reason: "the list does not tell the most tokens of context and output: ask for it without, and write them yourself".to_owned(),
                }),
            }
        }
        models.retain(|listed| self.wants(&listed.name));
        left_out.retain(|not| self.wants(&not.name));
        left_out.sort_by(|one, two| one.name.cmp(&two.name));
        List {
            models,
            left_out,
            ..list
        }
    }

    /// Models asked for by name of which the list, so selected, has no price.
    pub fn missing(&self, list: &List) -> Vec<&str> {
        let has = |model: &&String| {
            list.models
                .iter()
                .any(|listed| listed.name.model == **model)
        };
        let missing = self.models.iter().filter(|model| !has(model));
        missing.map(String::as_str).collect()
    }
}
