//! Which models are served, by whom, and where a request for one goes now.
//!
//! Foreign upstreams are fixed by configuration and come first; neurons come and go. A model that a
//! neuron once served is known for good, so that its absence is told apart from a wrong name.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use reqwest::Url;
use seatbelt_ledger::api::Neurons;
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::{NeuronModel, NeuronRecord},
};

use crate::{
    config::{Profile, Secret, UpstreamConfig, UpstreamKind, UpstreamModel},
    error::ApiError,
};

/// Most models of neurons that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// A foreign upstream, ready to be called.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) kind: UpstreamKind,
    pub(crate) profile: Profile,
    pub(crate) allow_fields: Vec<String>,
    pub(crate) errors_are_free: bool,
    pub(crate) url: Url,
    pub(crate) api_key: Option<Secret>,
}

/// A neuron that was chosen for a request. Counts as busy while this lives.
#[derive(Debug)]
pub(crate) struct ChosenNeuron {
    pub(crate) neuron: NeuronId,
    pub(crate) chat_url: Url,
    pub(crate) tokenize_url: Url,
    pub(crate) model: NeuronModel,
    busy: Arc<AtomicU64>,
}

impl Drop for ChosenNeuron {
    fn drop(&mut self) {
        self.busy.fetch_sub(1, Relaxed);
    }
}

/// Where a request for a model goes.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives for each request, and is moved twice"
)]
pub(crate) enum Route {
    Foreign(Arc<Upstream>, Arc<UpstreamModel>),
    Neuron(ChosenNeuron),
}

/// What is known of a model, for listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) id: ModelId,
    pub(crate) owner: String,
    pub(crate) context: u64,
    pub(crate) output: u64,
}

pub(crate) struct Catalog {
    foreign: HashMap<ModelId, (Arc<Upstream>, Arc<UpstreamModel>)>,
    /// In the order of the configuration, for listing.
    order: Vec<ModelId>,
    neurons: Neurons,
    remembered: Mutex<HashSet<ModelId>>,
    busy: Mutex<HashMap<NeuronId, Arc<AtomicU64>>>,
}

impl Catalog {
    /// The configuration was checked before: every base URL is one.
    pub(crate) fn new(
        upstreams: &[UpstreamConfig],
        expected: &[ModelId],
        neurons: Neurons,
    ) -> Self {
        let mut catalog = Self {
            foreign: HashMap::new(),
            order: Vec::new(),
            neurons,
            remembered: Mutex::new(expected.iter().cloned().collect()),
            busy: Mutex::default(),
        };
        for config in upstreams {
            let Some(upstream) = Upstream::new(config).map(Arc::new) else {
                continue;
            };
            for model in &config.models {
                let served = (Arc::clone(&upstream), Arc::new(model.clone()));
                catalog.foreign.insert(model.id.clone(), served);
                catalog.order.push(model.id.clone());
            }
        }
        catalog
    }

    /// Where a request for `model` goes now; to none of the neurons in `apart_from`.
    pub(crate) fn route(
        &self,
        model: &ModelId,
        apart_from: &[NeuronId],
    ) -> Result<Route, ApiError> {
        if let Some((upstream, model)) = self.foreign.get(model) {
            return Ok(Route::Foreign(Arc::clone(upstream), Arc::clone(model)));
        }
        if let Some(chosen) = self.least_loaded(model, apart_from) {
            self.remember(model);
            return Ok(Route::Neuron(chosen));
        }
        let remembered = self.remembered.lock();
        if remembered
            .expect("no holder of the lock panics")
            .contains(model)
        {
            let log = "no neuron that serves the model is registered";
            return Err(ApiError::no_upstream(model, log));
        }
        Err(ApiError::model_not_found(model.as_str()))
    }

    fn least_loaded(&self, model: &ModelId, apart_from: &[NeuronId]) -> Option<ChosenNeuron> {
        let records = self.neurons.borrow();
        let serving = records.iter().filter_map(|record| {
            let served = record.models.iter().find(|served| served.id == *model)?;
            Some((record, served))
        });
        let (record, served) = serving
            .filter(|(record, _)| !apart_from.contains(&record.neuron))
            .min_by_key(|(record, served)| self.load(record, served))?;
        self.choose(record, served)
    }

    /// Requests waiting and running per slot, in thousandths: what the neuron last said, and what this
    /// gateway has there, which its next word may or may not include.
    fn load(&self, record: &NeuronRecord, served: &NeuronModel) -> u64 {
        let said = u64::from(record.active) + u64::from(record.queued);
        let sent = self.busy(&record.neuron).load(Relaxed);
        (said + sent) * 1000 / u64::from(served.slots.max(1))
    }

    fn busy(&self, neuron: &NeuronId) -> Arc<AtomicU64> {
        let mut busy = self.busy.lock().expect("no holder of the lock panics");
        if busy.len() > REMEMBERED_MAX {
            busy.retain(|_, count| count.load(Relaxed) > 0);
        }
        Arc::clone(busy.entry(neuron.clone()).or_default())
    }

    fn choose(&self, record: &NeuronRecord, served: &NeuronModel) -> Option<ChosenNeuron> {
        let base = Url::parse(&record.url).ok().filter(Url::has_host)?;
        let chat_url = base.join("/v1/chat/completions").ok()?;
        let tokenize_url = base.join("/tokenize").ok()?;
        let busy = self.busy(&record.neuron);
        busy.fetch_add(1, Relaxed);
        Some(ChosenNeuron {
            neuron: record.neuron.clone(),
            chat_url,
            tokenize_url,
            model: served.clone(),
            busy,
        })
    }

    fn remember(&self, id: &ModelId) {
        let mut remembered = self
            .remembered
            .lock()
            .expect("no holder of the lock panics");
        if remembered.len() < REMEMBERED_MAX && !remembered.contains(id) {
            remembered.insert(id.clone());
        }
    }

    /// Every model served now, each once.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let mut listed: Vec<Listed> = self
            .order
            .iter()
            .filter_map(|id| self.listed_foreign(id))
            .collect();
        for record in self.neurons.borrow().iter() {
            for served in &record.models {
                if !listed.iter().any(|known| known.id == served.id) {
                    listed.push(listed_neuron(served));
                }
            }
        }
        listed
    }

    /// One model as it is served now.
    pub(crate) fn listed(&self, model: &str) -> Option<Listed> {
        self.list()
            .into_iter()
            .find(|listed| listed.id.as_str() == model)
    }

    fn listed_foreign(&self, id: &ModelId) -> Option<Listed> {
        let (upstream, model) = self.foreign.get(id)?;
        Some(Listed {
            id: id.clone(),
            owner: upstream.name.clone(),
            context: model.context,
            output: model.output,
        })
    }
}

fn listed_neuron(served: &NeuronModel) -> Listed {
    Listed {
        id: served.id.clone(),
        owner: "neuron".to_owned(),
        context: served.context,
        output: served.output,
    }
}

impl Upstream {
    fn new(config: &UpstreamConfig) -> Option<Self> {
        let path = match config.kind {
            UpstreamKind::OpenAi => "chat/completions",
            UpstreamKind::Anthropic => "v1/messages",
        };
        let base = config.base_url.trim_end_matches('/');
        Some(Self {
            name: config.name.clone(),
            kind: config.kind,
            profile: config
                .profile
                .unwrap_or_else(|| Profile::of(config.kind, &config.base_url)),
            allow_fields: config.allow_fields.clone(),
            errors_are_free: config.errors_are_free,
            url: Url::parse(&format!("{base}/{path}")).ok()?,
            api_key: config.api_key.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    fn id(model: &str) -> ModelId {
        ModelId::new(model).unwrap()
    }

    fn record(neuron: &str, active: u32, model: &str) -> NeuronRecord {
        NeuronRecord {
            v: 1,
            neuron: NeuronId::new(neuron).unwrap(),
            url: format!("http://{neuron}:9"),
            device: "cpu".to_owned(),
            models: vec![NeuronModel {
                id: id(model),
                context: 64,
                output: 32,
                slots: 1,
            }],
            active,
            queued: 0,
            at_ms: 1,
        }
    }

    fn chosen(catalog: &Catalog) -> ChosenNeuron {
        match catalog.route(&id("tiny"), &[]).unwrap() {
            Route::Neuron(chosen) => chosen,
            Route::Foreign(..) => panic!("not a neuron"),
        }
    }

    #[test]
    fn the_least_loaded_neuron_is_chosen_by_what_it_said_and_what_it_was_sent() {
        let (_tx, neurons) = watch::channel(vec![
            record("a", 1, "tiny"),
            record("b", 0, "tiny"),
            record("c", 0, "other"),
        ]);
        let catalog = Catalog::new(&[], &[], neurons);
        let first = chosen(&catalog);
        assert_eq!(first.neuron.as_str(), "b");
        let second = chosen(&catalog);
        let third = chosen(&catalog);
        assert_ne!(second.neuron, third.neuron);
        drop((first, second, third));
        assert_eq!(chosen(&catalog).neuron.as_str(), "b");
    }

    #[test]
    fn a_model_whose_neuron_left_is_away_and_one_never_seen_is_unknown() {
        let (tx, neurons) = watch::channel(vec![record("a", 0, "tiny")]);
        let expected = [ModelId::new("later").unwrap()];
        let catalog = Catalog::new(&[], &expected, neurons);
        drop(chosen(&catalog));
        tx.send(Vec::new()).unwrap();
        let code = |model: &str| catalog.route(&id(model), &[]).unwrap_err().code();
        assert_eq!(code("tiny"), "service_unavailable");
        assert_eq!(code("later"), "service_unavailable");
        assert_eq!(code("never"), "model_not_found");
    }
}
