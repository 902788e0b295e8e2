//! Which models are served, by whom, and where a request for one goes now.
//!
//! Foreign upstreams are fixed by configuration and come first; neurons come and go. A model that a
//! neuron once served is known for good, so that its absence is told apart from a wrong name.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use reqwest::Url;
use seatbelt_ledger::api::Neurons;
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::{NeuronModel, NeuronRecord},
};
use seatbelt_tokens::TokenizerError;
use thiserror::Error;
use tokio::time::Instant;

use super::{
    Candidate, Upstream,
    choose::{ChosenNeuron, Loads, serving},
    deployments::Deployments,
    model::Model,
    standing::Standing,
};
use crate::{config::UpstreamConfig, error::ApiError};

mod fleet;

/// Most models of neurons that are remembered.
const REMEMBERED_MAX: usize = 4096;

/// What is known of a model, for listing.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) id: ModelId,
    pub(crate) owner: String,
    pub(crate) context: u64,
    pub(crate) output: u64,
}

/// What a request takes of a neuron's context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) input_tokens: u64,
    /// The output that was asked for; what is left of the context where none was.
    pub(crate) output_tokens: Option<u64>,
}

impl Size {
    /// Most output of such a request there.
    fn room(self, served: &NeuronModel) -> u64 {
        let left = served.context.saturating_sub(self.input_tokens);
        left.min(served.output)
    }

    fn fits(self, served: &NeuronModel) -> bool {
        self.room(served) >= self.output_tokens.unwrap_or(1).max(1)
    }
}

/// A tokenizer that the configuration names cannot be read.
#[derive(Debug, Error)]
#[error("the tokenizer of model {model} cannot be used")]
pub struct UnreadTokenizer {
    model: ModelId,
    #[source]
    source: TokenizerError,
}

pub(crate) struct Catalog {
    foreign: HashMap<ModelId, (Deployments, Arc<Model>)>,
    /// In the order of the configuration, for listing.
    order: Vec<ModelId>,
    neurons: Neurons,
    remembered: Mutex<HashSet<ModelId>>,
    loads: Loads,
}

impl Catalog {
    /// The configuration was checked before: every base URL is one. Reads the tokenizers that it names.
    pub(crate) fn new(
        upstreams: &[UpstreamConfig],
        expected: &[ModelId],
        neurons: Neurons,
    ) -> Result<Self, UnreadTokenizer> {
        let mut catalog = Self {
            foreign: HashMap::new(),
            order: Vec::new(),
            neurons,
            remembered: Mutex::new(expected.iter().cloned().collect()),
            loads: Loads::default(),
        };
        for config in upstreams {
            let places = config
                .places()
                .filter_map(|place| Upstream::new(config, &place));
            let places: Vec<_> = places.map(Arc::new).collect();
            if places.is_empty() {
                continue;
            }
            for told in &config.models {
                let model = Model::read(told, config).map_err(|source| UnreadTokenizer {
                    model: told.id.clone(),
                    source,
                })?;
                let served = (Deployments::new(&places), Arc::new(model));
                catalog.foreign.insert(told.id.clone(), served);
                catalog.order.push(told.id.clone());
            }
        }
        Ok(catalog)
    }

    /// Where a request for `model` goes now; to none of the neurons in `apart_from`.
    pub(crate) fn candidate(
        &self,
        model: &ModelId,
        apart_from: &[NeuronId],
    ) -> Result<Candidate, ApiError> {
        if let Some((places, model)) = self.foreign.get(model) {
            let chosen = places.choose(&[], Instant::now());
            return Ok(Candidate::Foreign(chosen, Arc::clone(model)));
        }
        if let Some(chosen) = self.neuron(model, apart_from) {
            return Ok(Candidate::Neuron(chosen));
        }
        let remembered = self.remembered.lock();
        if remembered
            .expect("no holder of the lock panics")
            .contains(model)
        {
            let log = "no neuron that serves the model is registered and ready";
            return Err(ApiError::no_upstream(model, log));
        }
        Err(ApiError::model_not_found(model.as_str()))
    }

    /// The deployments of a foreign model.
    pub(crate) fn deployments(&self, model: &ModelId) -> Option<&Deployments> {
        self.foreign.get(model).map(|(places, _)| places)
    }

    /// Deployments that are left alone for a while, each with its model and for how much longer.
    pub(crate) fn out(&self, now: Instant) -> impl Iterator<Item = (&ModelId, &str, Duration)> {
        let served = self
            .order
            .iter()
            .filter_map(|id| self.foreign.get_key_value(id));
        served.flat_map(move |(id, (places, _))| {
            places
                .out(now)
                .map(move |(name, out_for)| (id, name, out_for))
        })
    }

    /// The neuron that takes a request for `model` now.
    pub(crate) fn neuron(&self, model: &ModelId, apart_from: &[NeuronId]) -> Option<ChosenNeuron> {
        let records = self.neurons.borrow();
        let serves = |record: &NeuronRecord| record.models.iter().any(|served| served.id == *model);
        if records.iter().any(serves) {
            self.remember(model);
        }
        self.loads.least(&records, model, apart_from, |_| true)
    }

    /// Another neuron that reads a request as `like` would, and holds it.
    pub(crate) fn other_neuron(
        &self,
        like: &NeuronModel,
        apart_from: &[NeuronId],
        size: Size,
    ) -> Option<ChosenNeuron> {
        let fits = |served: &NeuronModel| served.recipe == like.recipe && size.fits(served);
        let records = self.neurons.borrow();
        self.loads.least(&records, &like.id, apart_from, fits)
    }

    /// Who takes a request of this size, once that is known: `first` where it holds it, else the least loaded one
    /// that does, else the one with the most room.
    pub(crate) fn fitting(&self, first: ChosenNeuron, size: Size) -> ChosenNeuron {
        if size.fits(&first.model) {
            return first;
        }
        if let Some(other) = self.other_neuron(&first.model, &[], size) {
            return other;
        }
        let (like, records) = (first.model.clone(), self.neurons.borrow());
        let room = |served: &NeuronModel| (served.recipe == like.recipe).then(|| size.room(served));
        let most = serving(&records, &like.id).filter_map(|(_, served)| room(served));
        let most = most.max().filter(|most| *most > size.room(&first.model));
        let roomiest = |served: &NeuronModel| most.is_some() && room(served) == most;
        let other = self.loads.least(&records, &like.id, &[], roomiest);
        other.unwrap_or(first)
    }

    /// Neurons with requests that are not registered any more.
    pub(super) fn left_behind(&self) -> Vec<(Arc<Standing>, Url)> {
        self.loads.left_behind(&self.neurons.borrow())
    }

    /// The widest context of those that read a request as `like` would.
    pub(crate) fn context_max(&self, like: &NeuronModel) -> u64 {
        let records = self.neurons.borrow();
        let alike = serving(&records, &like.id).filter(|(_, served)| served.recipe == like.recipe);
        let widest = alike.map(|(_, served)| served.context).max();
        widest.unwrap_or(0).max(like.context)
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

    /// Those that neurons serve, or should.
    fn remembered(&self) -> Vec<ModelId> {
        let remembered = self.remembered.lock();
        let remembered = remembered.expect("no holder of the lock panics");
        remembered.iter().cloned().collect()
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
        let (places, model) = self.foreign.get(id)?;
        Some(Listed {
            id: id.clone(),
            owner: places.first().name.clone(),
            context: model.limits.context,
            output: model.limits.output,
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
                recipe: None,
                ready: true,
                loaded: true,
                grows: false,
            }],
            active,
            queued: 0,
            at_ms: 1,
        }
    }

    fn chosen(catalog: &Catalog) -> ChosenNeuron {
        match catalog.candidate(&id("tiny"), &[]).unwrap() {
            Candidate::Neuron(chosen) => chosen,
            Candidate::Foreign(..) => panic!("not a neuron"),
        }
    }

    /// Which of `a` (context 100), `b` (1000, busy) and `c` (500, busier) takes it.
    fn fits(input_tokens: u64, output_tokens: Option<u64>) -> String {
        let with_context = |neuron: &str, active: u32, context: u64| {
            let mut record = record(neuron, active, "tiny");
            (record.models[0].context, record.models[0].output) = (context, context - 1);
            record
        };
        let records = vec![
            with_context("a", 0, 100),
            with_context("b", 5, 1000),
            with_context("c", 9, 500),
        ];
        let (_sender, neurons) = watch::channel(records);
        let catalog = Catalog::new(&[], &[], neurons).unwrap();
        let size = Size {
            input_tokens,
            output_tokens,
        };
        let first = chosen(&catalog);
        assert_eq!(catalog.context_max(&first.model), 1000);
        catalog.fitting(first, size).neuron.to_string()
    }

    #[test]
    fn who_holds_a_request_takes_it_before_who_has_less_to_do() {
        assert_eq!(fits(50, Some(50)), "a");
        assert_eq!(fits(50, None), "a", "what is left is what it gets");
        assert_eq!(fits(50, Some(51)), "b");
        assert_eq!(fits(100, None), "b");
        assert_eq!(fits(400, Some(100)), "b");
        assert_eq!(fits(900, Some(900)), "b", "nobody holds it all");
        assert_eq!(fits(2000, None), "a", "nobody holds any of it");
    }

    #[test]
    fn a_model_whose_neuron_left_is_away_and_one_never_seen_is_unknown() {
        let (tx, neurons) = watch::channel(vec![record("a", 0, "tiny")]);
        let expected = [ModelId::new("later").unwrap()];
        let catalog = Catalog::new(&[], &expected, neurons).unwrap();
        drop(chosen(&catalog));
        tx.send(Vec::new()).unwrap();
        let code = |model: &str| catalog.candidate(&id(model), &[]).unwrap_err().code();
        assert_eq!(code("tiny"), "service_unavailable");
        assert_eq!(code("later"), "service_unavailable");
        assert_eq!(code("never"), "model_not_found");
    }
}
