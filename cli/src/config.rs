//! The configuration: one TOML file, overridden by the environment, checked as a whole.
//!
//! Every mistake is reported at once with its place and line; secrets are never quoted, a bad key
//! is named by its index. Paths are relative to the file's folder. Nothing is opened or resolved
//! here besides the file itself and the price books that it includes.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use seatbelt_gateway::{GatewayConfig, UpstreamConfig};
use seatbelt_ledger::settings::LedgerSettings;
use seatbelt_neuron::NeuronConfig;
use seatbelt_schemas::{ids::ModelId, meter::Meter, price::Price, scope::Scopes};
use thiserror::Error;

mod cuda;
mod entitlements;
mod gateway;
mod include;
mod ledger;
mod media;
mod nats;
mod neuron;
mod price;
mod provided;
mod reader;
mod tree;
mod upstreams;
mod users;

pub use entitlements::{AccountTerms, DeclaredKey, Entitlements, Policy, RetiredKey};
pub(crate) use include::PRICES_MAX;
pub use nats::NatsConfig;
pub use reader::Mistake;
use reader::{Mistakes, Section};
pub use users::{LoginSource, Users};

/// Everything that one file configures.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: Option<PathBuf>,
    /// Where events are kept.
    pub nats: NatsConfig,
    /// The ledger's writers.
    pub ledger: LedgerSettings,
    /// The gateway, but for what it serves.
    pub gateway: GatewayConfig,
    pub keys: Vec<DeclaredKey>,
    /// Accounts that pay by a multiplier.
    pub accounts: Vec<AccountTerms>,
    /// Keys that were declared and are revoked.
    pub retired_keys: Vec<RetiredKey>,
    /// Foreign upstreams.
    pub upstreams: Vec<UpstreamConfig>,
    /// The neuron role, where configured.
    pub neuron: Option<NeuronConfig>,
    /// What the neuron's models cost, those that are priced. The neuron does not know.
    pub neuron_prices: Vec<Price>,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {} (--config names another file)", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It was read, and these are its mistakes.
    #[error("configuration has {}:{}", count(mistakes), lines(mistakes))]
    Mistakes {
        /// All of them.
        mistakes: Vec<Mistake>,
    },
}

fn count(mistakes: &[Mistake]) -> String {
    match mistakes.len() {
        1 => "1 mistake".to_owned(),
        many => format!("{many} mistakes"),
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    let lines = mistakes.iter().map(|mistake| format!("\n  {mistake}"));
    lines.collect()
}

/// What sections need to know besides their own fields.
struct Context<'a> {
    /// The file's folder.
    folder: &'a Path,
    /// The environment, for variables named in the file.
    environment: &'a BTreeMap<String, String>,
    /// Whether secrets named in the file must be there.
    with_secrets: bool,
    /// Models that anything in the file serves, where all of it is read.
    served: Option<&'a BTreeSet<String>>,
}

impl Context<'_> {
    /// A path as the file means it.
    fn path(&self, text: &str) -> PathBuf {
        self.folder.join(text)
    }
}

impl Config {
    /// Reads a file, with this process's environment laid over it.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = File::read(path)?;
        let read = Self::from_text(&file.text, &environment(), file.folder())?;
        Ok(Self {
            file: Some(file.path),
            ..read
        })
    }

    /// Reads `[nats]` of a file alone: who audits a ledger or repairs it needs no secret of a provider,
    /// and is not stopped by a mistake elsewhere.
    pub fn load_nats(path: &Path) -> Result<NatsConfig, ConfigError> {
        let file = File::read(path)?;
        Self::nats_from_text(&file.text, &environment(), file.folder())
    }

    fn nats_from_text(
        text: &str,
        environment: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Result<NatsConfig, ConfigError> {
        let of_nats = environment
            .iter()
            .filter(|(name, _)| name.starts_with("SEATBELT__NATS__"))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let context = Context {
            folder,
            environment,
            with_secrets: true,
            served: None,
        };
        read(text, &of_nats, None, |mut root| {
            NatsConfig::read(root.section("nats"), &context)
        })
    }

    /// Reads `[[upstreams]]` of a file alone, without their secrets: who compares prices needs none.
    pub fn load_upstreams(path: &Path) -> Result<Vec<UpstreamConfig>, ConfigError> {
        let file = File::read(path)?;
        let environment = environment();
        let context = Context {
            folder: file.folder(),
            environment: &environment,
            with_secrets: false,
            served: None,
        };
        read(
            &file.text,
            &environment,
            Some(context.folder),
            |mut root| upstreams::read(&mut root, &context),
        )
    }

    /// Which entry of a price book each model of a file's upstreams takes its price from, by the model's id:
    /// provider and model there. Mistakes are for whoever reads the upstreams.
    pub fn load_references(path: &Path) -> Result<BTreeMap<String, (String, String)>, ConfigError> {
        let file = File::read(path)?;
        let (mut root, _) = tree::parse(&file.text);
        let _ = tree::override_from(&mut root, &environment());
        Ok(include::references(&mut root))
    }

    /// Reads text, with `environment` laid over it; paths are relative to `folder`.
    pub fn from_text(
        text: &str,
        environment: &BTreeMap<String, String>,
        folder: &Path,
    ) -> Result<Self, ConfigError> {
        let context = Context {
            folder,
            environment,
            with_secrets: true,
            served: None,
        };
        read(text, environment, Some(folder), |root| {
            Self::read(root, &context)
        })
    }

    fn read(mut root: Section, context: &Context<'_>) -> Self {
        let has_neuron = root.has("neuron");
        let nats = NatsConfig::read(root.section("nats"), context);
        let ledger = ledger::read(root.section("ledger"));
        let gateway = gateway::read(root.section("gateway"));
        let Entitlements {
            keys,
            accounts,
            retired_keys,
        } = entitlements::read(root.section("entitlements"));
        let served = root.texts_at(&["upstreams", "models", "id"]);
        let served = served.chain(root.texts_at(&["neuron", "models", "id"]));
        let served: BTreeSet<String> = served.collect();
        let context = &Context {
            served: Some(&served),
            ..*context
        };
        let upstreams = upstreams::read(&mut root, context);
        let neuron = root.section("neuron");
        let neuron = has_neuron.then(|| neuron::read(neuron, context, &nats));
        let (neuron, neuron_prices) = neuron.unzip();
        let neuron_prices = neuron_prices.unwrap_or_default();
        prices_agree(&root, &upstreams, &neuron_prices);
        served_once(&root, &upstreams, neuron.as_ref());
        root.knows("include");
        root.finish();
        Self {
            file: None,
            nats,
            ledger,
            gateway,
            keys,
            accounts,
            retired_keys,
            upstreams,
            neuron,
            neuron_prices,
        }
    }

    /// The declared keys that nothing declared here limits: their requests are not metered.
    pub fn unlimited(&self) -> Vec<&DeclaredKey> {
        let limited = |key: &DeclaredKey| {
            let scopes = Scopes {
                key: key.key.clone(),
                team: key.team.clone(),
                model: None,
                run: None,
                end_user: None,
            };
            let same = self
                .keys
                .iter()
                .filter(|other| other.account == key.account);
            same.flat_map(|other| &other.caps)
                .any(|cap| cap.hard && scopes.matches(&cap.scope))
        };
        self.keys.iter().filter(|key| !limited(key)).collect()
    }

    /// Models that are asked in the place of a priced one and have no price themselves, where a cap counts money: none of
    /// them is ever asked for a key under that cap. Each with the one that names it.
    pub fn unpriced_fallbacks(&self) -> Vec<(&ModelId, &ModelId)> {
        let mut caps = self.keys.iter().flat_map(|key| &key.caps);
        if !caps.any(|cap| cap.hard && cap.meter == Meter::Cost) {
            return Vec::new();
        }
        let prices = self.prices();
        let has_price = |id: &ModelId| prices.iter().any(|price| price.model == *id);
        let models = self.upstreams.iter().flat_map(|upstream| &upstream.models);
        models
            .flat_map(|model| model.fallback.iter().map(move |other| (&model.id, other)))
            .filter(|(id, other)| has_price(id) && !has_price(other))
            .collect()
    }

    /// Every declared price, once per model.
    pub fn prices(&self) -> Vec<Price> {
        let mut prices = BTreeMap::new();
        for price in declared_prices(&self.upstreams, &self.neuron_prices) {
            prices.entry(price.model.clone()).or_insert(price);
        }
        prices.into_values().cloned().collect()
    }
}

/// A configuration file as it is on the disk.
struct File {
    /// Where it is, absolute.
    path: PathBuf,
    text: String,
}

impl File {
    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        Ok(Self {
            text: std::fs::read_to_string(path).map_err(unreadable)?,
            path: std::path::absolute(path).map_err(unreadable)?,
        })
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

/// This process's environment, as far as it is text.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Reads text with `environment` laid over it by `reader`, and tells all mistakes together. What it includes
/// is looked for in `folder`; without one nothing is.
fn read<T>(
    text: &str,
    environment: &BTreeMap<String, String>,
    folder: Option<&Path>,
    reader: impl FnOnce(Section) -> T,
) -> Result<T, ConfigError> {
    let mistakes = Mistakes::default();
    let (mut root, mut errors) = tree::parse(text);
    errors.extend(tree::override_from(&mut root, environment));
    for error in errors {
        mistakes.add(Mistake::new(error.place, &error.origin, error.problem));
    }
    if let Some(folder) = folder {
        include::apply(&mut root, folder, &mistakes);
    }
    let read = reader(Section::root(root, &mistakes));
    match mistakes.take() {
        none if none.is_empty() => Ok(read),
        mistakes => Err(ConfigError::Mistakes { mistakes }),
    }
}

/// A model has one place where it is served: its requests went outside in silence where it had two.
fn served_once(root: &Section, upstreams: &[UpstreamConfig], neuron: Option<&NeuronConfig>) {
    let own: BTreeSet<_> = neuron
        .into_iter()
        .flat_map(|neuron| &neuron.models)
        .map(|model| &model.id)
        .collect();
    let outside = upstreams.iter().flat_map(|upstream| &upstream.models);
    for model in outside.filter(|model| own.contains(&model.id)) {
        let id = model.id.as_str();
        let problem = format!("list {id:?}, which neuron.models lists too: name each model once");
        root.mistake("upstreams", problem);
    }
}

fn declared_prices<'a>(
    upstreams: &'a [UpstreamConfig],
    own: &'a [Price],
) -> impl Iterator<Item = &'a Price> {
    let foreign = upstreams.iter().flat_map(|upstream| &upstream.models);
    let foreign = foreign.flat_map(|model| {
        let classes = model.classes.iter().map(|class| &class.price);
        model.price.iter().chain(classes)
    });
    foreign.chain(own)
}

/// A model has one price, whoever serves it: the ledger charges by model.
fn prices_agree(root: &Section, upstreams: &[UpstreamConfig], own: &[Price]) {
    let mut seen = BTreeMap::new();
    for price in declared_prices(upstreams, own) {
        if *seen.entry(&price.model).or_insert(price) != price {
            let model = &price.model;
            root.mistake(
                "upstreams",
                format!("model {model} has two different prices: give it one"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
