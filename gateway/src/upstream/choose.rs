//! Which neuron takes a request: the least loaded of those that serve its model, say that they are ready, and hold it.
//!
//! The load is what a neuron last said of itself, and what this gateway has there. Which of several
//! gateways sent the rest is not known, nor needed: what they sent is in what the neuron says next. One that took no
//! call lately is passed over for a while (`standing`), and one whose address is none is never asked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
};

use reqwest::Url;
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::{
        NeuronModel, NeuronRecord, PATH_CHAT, PATH_COMPLETIONS, PATH_LIMIT, PATH_TOKENIZE,
        url_mistake,
    },
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::standing::{Fault, Standing};

/// Where a neuron embeds texts.
pub(super) const PATH_EMBEDDINGS: &str = "/v1/embeddings";
/// Most neurons whose standing is kept before those with nothing there are forgotten.
const KNOWN_MAX: usize = 4096;

/// A neuron that was chosen for a request. Counts as busy while this lives.
#[derive(Debug)]
pub(crate) struct ChosenNeuron {
    pub(crate) neuron: NeuronId,
    pub(crate) chat_url: Url,
    pub(crate) completions_url: Url,
    pub(crate) embeddings_url: Url,
    pub(crate) tokenize_url: Url,
    pub(crate) limit_url: Url,
    pub(crate) model: NeuronModel,
    /// As registered.
    url: String,
    /// Ends when nothing is to be heard from there any more.
    pub(crate) lost: CancellationToken,
    standing: Arc<Standing>,
}

impl ChosenNeuron {
    /// It took a call, whatever it answered.
    pub(crate) fn took_a_call(&self) {
        if self.standing.took_a_call() {
            tracing::info!(neuron = %self.neuron, "the neuron takes calls again");
        }
    }

    /// It took none.
    pub(crate) fn failed(&self, fault: Fault, detail: &str) {
        let now = Instant::now();
        if self.standing.failed(&self.url, fault, detail, now) {
            let told = self.standing.told(&self.neuron, &self.url);
            tracing::warn!("{}; others are asked first", told.unwrap_or_default());
        }
    }
}

impl Drop for ChosenNeuron {
    fn drop(&mut self) {
        self.standing.busy.fetch_sub(1, Relaxed);
    }
}

/// Where a neuron's routes begin, if its address is one.
pub(super) fn base_of(record: &NeuronRecord) -> Option<Url> {
    if url_mistake(&record.url).is_some() {
        return None;
    }
    let base = record.url.trim_end_matches('/');
    let base = Url::parse(&format!("{base}/")).ok();
    base.filter(Url::has_host)
}

/// A route below such a beginning.
pub(super) fn below(base: &Url, path: &str) -> Option<Url> {
    base.join(path.trim_start_matches('/')).ok()
}

/// How this gateway stands with each neuron.
#[derive(Default)]
pub(super) struct Loads(Mutex<HashMap<NeuronId, Arc<Standing>>>);

impl Loads {
    /// The least loaded neuron that serves `model` as it is wanted, apart from those in `apart_from`.
    pub(super) fn least(
        &self,
        records: &[NeuronRecord],
        model: &ModelId,
        apart_from: &[NeuronId],
        fits: impl Fn(&NeuronModel) -> bool,
    ) -> Option<ChosenNeuron> {
        let now = Instant::now();
        let (record, served, base) = serving(records, model)
            .filter(|(record, served)| !apart_from.contains(&record.neuron) && fits(served))
            .filter_map(|(record, served)| Some((record, served, base_of(record)?)))
            .min_by_key(|(record, served, _)| self.rank(record, served, now))?;
        self.choose(record, served, &base, now)
    }

    /// Those passed over last, then by requests waiting and running per slot, in thousandths: what the neuron last
    /// said, and what this gateway has there, which its next word may or may not include. A model that is not in memory
    /// counts as if all its slots were taken: it is worth loading where the others have no slot either.
    fn rank(&self, record: &NeuronRecord, served: &NeuronModel, now: Instant) -> (bool, u64) {
        let standing = self.of(&record.neuron);
        let said = u64::from(record.active) + u64::from(record.queued);
        let load = (said + standing.load()) * 1000 / u64::from(served.slots.max(1));
        let load = load + if served.loaded { 0 } else { 1000 };
        (standing.is_passed_over(&record.url, now), load)
    }

    /// Those with requests that are not registered any more, and where they were.
    pub(super) fn left_behind(&self, records: &[NeuronRecord]) -> Vec<(Arc<Standing>, Url)> {
        let known = self.0.lock().expect("no holder of the lock panics");
        let is_there = |neuron: &NeuronId| records.iter().any(|record| record.neuron == *neuron);
        let left = known.iter();
        let left = left.filter(|(neuron, standing)| standing.load() > 0 && !is_there(neuron));
        left.filter_map(|(_, standing)| Some((Arc::clone(standing), standing.called_at()?)))
            .collect()
    }

    /// How this gateway stands with one.
    pub(super) fn of(&self, neuron: &NeuronId) -> Arc<Standing> {
        let mut known = self.0.lock().expect("no holder of the lock panics");
        if known.len() > KNOWN_MAX {
            known.retain(|_, standing| standing.load() > 0);
        }
        Arc::clone(known.entry(neuron.clone()).or_default())
    }

    fn choose(
        &self,
        record: &NeuronRecord,
        served: &NeuronModel,
        base: &Url,
        now: Instant,
    ) -> Option<ChosenNeuron> {
        let (chat_url, completions_url) = (below(base, PATH_CHAT)?, below(base, PATH_COMPLETIONS)?);
        let embeddings_url = below(base, PATH_EMBEDDINGS)?;
        let tokenize_url = below(base, PATH_TOKENIZE)?;
        let limit_url = below(base, PATH_LIMIT)?;
        let standing = self.of(&record.neuron);
        standing.is_called(&record.url, base, now);
        standing.busy.fetch_add(1, Relaxed);
        Some(ChosenNeuron {
            neuron: record.neuron.clone(),
            chat_url,
            completions_url,
            embeddings_url,
            tokenize_url,
            limit_url,
            model: served.clone(),
            url: record.url.clone(),
            lost: standing.lost(),
            standing,
        })
    }
}

/// The neurons that serve a model and say that they are ready.
pub(super) fn serving<'a>(
    records: &'a [NeuronRecord],
    model: &'a ModelId,
) -> impl Iterator<Item = (&'a NeuronRecord, &'a NeuronModel)> {
    records.iter().filter_map(move |record| {
        let served = record.models.iter().find(|served| served.id == *model)?;
        served.ready.then_some((record, served))
    })
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
                loaded: true,
                grows: false,
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
        loads.least(records, &id("tiny"), &apart_from, |_| true)
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
    fn one_in_memory_is_chosen_until_its_slots_are_taken() {
        let mut out = record("a", 0, 2, "tiny");
        out.models[0].loaded = false;
        let records = [out.clone(), record("b", 0, 2, "tiny")];
        let loads = Loads::default();
        let chosen = || least(&loads, &records, &[]).unwrap();
        let names = [chosen(), chosen(), chosen(), chosen()];
        let names = names.each_ref().map(|chosen| chosen.neuron.as_str());
        assert_eq!(names[..2], ["b", "b"]);
        assert!(names[2..].contains(&"a"), "{names:?}");
        assert!(
            least(&loads, &[out], &[]).is_some(),
            "it is loaded for whoever asks"
        );
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
    fn an_address_that_is_none_is_not_called_and_hides_no_other() {
        let busy = record("b", 9, 1, "tiny");
        for url in ["nonsense", "gpu-box:9100", "http://u@h:1", "http://h:1?a=b"] {
            let mut odd = record("a", 0, 1, "tiny");
            odd.url = url.to_owned();
            let loads = Loads::default();
            assert!(least(&loads, &[odd.clone()], &[]).is_none(), "{url}");
            let chosen = least(&loads, &[odd, busy.clone()], &[]);
            assert_eq!(chosen.unwrap().neuron.as_str(), "b", "{url}");
        }
    }

    #[test]
    fn an_address_may_have_a_path_in_front() {
        let mut behind = record("a", 0, 1, "tiny");
        behind.url = "https://gpu.example/one".to_owned();
        let chosen = least(&Loads::default(), &[behind], &[]).unwrap();
        let expected = "https://gpu.example/one/v1/chat/completions";
        assert_eq!(chosen.chat_url.as_str(), expected);
    }

    #[test]
    fn one_that_took_no_call_is_passed_over_unless_all_did() {
        let records = [record("a", 0, 1, "tiny"), record("b", 9, 1, "tiny")];
        let loads = Loads::default();
        let chosen = |of: &[NeuronRecord]| least(&loads, of, &[]).unwrap();
        let first = chosen(&records);
        assert_eq!(first.neuron.as_str(), "a");
        first.failed(Fault::Unreachable, "refused");
        let second = chosen(&records);
        assert_eq!(second.neuron.as_str(), "b");
        second.failed(Fault::TurnsUsAway, "401");
        assert_eq!(chosen(&records).neuron.as_str(), "a", "nobody is refused");
        let mut moved = records.clone();
        moved[1].url = "http://elsewhere:9".to_owned();
        assert_eq!(chosen(&moved).neuron.as_str(), "b", "it came back");
        first.took_a_call();
        assert_eq!(chosen(&records).neuron.as_str(), "a");
    }
}
