//! Which neuron takes a request: the least loaded of those that serve its model and say that they are ready.
//!
//! The load is what a neuron last said of itself, and what this gateway has there. Which of several
//! gateways sent the rest is not known, nor needed: what they sent is in what the neuron says next.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use reqwest::Url;
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::{NeuronModel, NeuronRecord, PATH_CHAT, PATH_COMPLETIONS, PATH_TOKENIZE},
};

/// Most neurons whose load is counted before those without one are forgotten.
const COUNTED_MAX: usize = 4096;

/// A neuron that was chosen for a request. Counts as busy while this lives.
#[derive(Debug)]
pub(crate) struct ChosenNeuron {
    pub(crate) neuron: NeuronId,
    pub(crate) chat_url: Url,
    pub(crate) completions_url: Url,
    pub(crate) tokenize_url: Url,
    pub(crate) model: NeuronModel,
    busy: Arc<AtomicU64>,
}

impl Drop for ChosenNeuron {
    fn drop(&mut self) {
        self.busy.fetch_sub(1, Relaxed);
    }
}

/// What this gateway has at each neuron.
#[derive(Default)]
pub(super) struct Loads(Mutex<HashMap<NeuronId, Arc<AtomicU64>>>);

impl Loads {
    /// The least loaded neuron that serves `model`, apart from those in `apart_from`.
    pub(super) fn least(
        &self,
        records: &[NeuronRecord],
        model: &ModelId,
        apart_from: &[NeuronId],
    ) -> Option<ChosenNeuron> {
        let serving = records.iter().filter_map(|record| {
            let served = record.models.iter().find(|served| served.id == *model)?;
            served.ready.then_some((record, served))
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
        let mut busy = self.0.lock().expect("no holder of the lock panics");
        if busy.len() > COUNTED_MAX {
            busy.retain(|_, count| count.load(Relaxed) > 0);
        }
        Arc::clone(busy.entry(neuron.clone()).or_default())
    }

    fn choose(&self, record: &NeuronRecord, served: &NeuronModel) -> Option<ChosenNeuron> {
        let base = Url::parse(&record.url).ok().filter(Url::has_host)?;
        let chat_url = base.join(PATH_CHAT).ok()?;
        let completions_url = base.join(PATH_COMPLETIONS).ok()?;
        let tokenize_url = base.join(PATH_TOKENIZE).ok()?;
        let busy = self.busy(&record.neuron);
        busy.fetch_add(1, Relaxed);
        Some(ChosenNeuron {
            neuron: record.neuron.clone(),
            chat_url,
            completions_url,
            tokenize_url,
            model: served.clone(),
            busy,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(model: &str) -> ModelId {
        ModelId::new(model).unwrap()
    }

    fn record(neuron: &str, active: u32, slots: u32, model: &str) -> NeuronRecord {
        NeuronRecord {
            v: 1,
            neuron: NeuronId::new(neuron).unwrap(),
            url: format!("http://{neuron}:9"),
            device: "cpu".to_owned(),
            models: vec![NeuronModel {
                id: id(model),
                context: 64,
                output: 32,
                slots,
                recipe: None,
                ready: true,
            }],
            active,
            queued: 0,
            at_ms: 1,
        }
    }

    fn least(loads: &Loads, records: &[NeuronRecord], apart_from: &[&str]) -> Option<ChosenNeuron> {
        let apart_from: Vec<NeuronId> = apart_from
            .iter()
            .map(|neuron| NeuronId::new(*neuron).unwrap())
            .collect();
        loads.least(records, &id("tiny"), &apart_from)
    }

    #[test]
    fn the_least_loaded_neuron_is_chosen_by_what_it_said_and_what_it_was_sent() {
        let records = [
            record("a", 1, 1, "tiny"),
            record("b", 0, 1, "tiny"),
            record("c", 0, 1, "other"),
        ];
        let loads = Loads::default();
        let chosen = || least(&loads, &records, &[]).unwrap();
        let first = chosen();
        assert_eq!(first.neuron.as_str(), "b");
        let second = chosen();
        let third = chosen();
        assert_ne!(second.neuron, third.neuron);
        drop((first, second, third));
        assert_eq!(chosen().neuron.as_str(), "b");
    }

    #[test]
    fn a_neuron_with_more_slots_takes_more() {
        let records = [record("a", 2, 4, "tiny"), record("b", 1, 1, "tiny")];
        let loads = Loads::default();
        let first = least(&loads, &records, &[]).unwrap();
        let second = least(&loads, &records, &[]).unwrap();
        assert_eq!((first.neuron.as_str(), second.neuron.as_str()), ("a", "a"));
    }

    #[test]
    fn one_that_is_not_ready_is_never_chosen() {
        let mut sick = record("a", 0, 8, "tiny");
        sick.models[0].ready = false;
        let well = record("b", 9, 1, "tiny");
        let loads = Loads::default();
        let chosen = least(&loads, &[sick.clone(), well], &[]).unwrap();
        assert_eq!(chosen.neuron.as_str(), "b");
        assert!(least(&loads, &[sick], &[]).is_none());
    }

    #[test]
    fn one_that_is_left_out_is_never_chosen() {
        let records = [record("a", 0, 1, "tiny"), record("b", 9, 1, "tiny")];
        let loads = Loads::default();
        let chosen = |apart_from: &[&str]| least(&loads, &records, apart_from);
        assert_eq!(chosen(&["a"]).unwrap().neuron.as_str(), "b");
        assert!(chosen(&["a", "b"]).is_none());
    }

    #[test]
    fn an_address_that_is_none_is_not_called() {
        let mut odd = record("a", 0, 1, "tiny");
        odd.url = "nonsense".to_owned();
        assert!(least(&Loads::default(), &[odd], &[]).is_none());
    }
}
