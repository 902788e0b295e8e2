//! Another neuron for a request of which one did nothing: it could not be reached, or said so with its refusal. The
//! reservation stays as it is. Of what was or may have been begun nothing is sent again.

use std::{
    sync::{Arc, LazyLock},
    time::Instant,
};

use bytes::Bytes;
use seatbelt_schemas::{ids::NeuronId, neuron::signature::NeuronSecret};

use super::{Job, attempts::Stop, pass};
use crate::{
    error::Seldom,
    upstream::{
        Attempt, Candidate,
        catalog::{Catalog, Size},
        choose::ChosenNeuron,
        neuron::Undone,
        standing::Fault,
    },
};

/// Neurons that are asked for one request, at most: each that cannot be reached may cost the time to connect.
const ASKED_MAX: usize = 3;

/// What it takes to ask another neuron.
pub(super) struct Elsewhere {
    pub(super) catalog: Arc<Catalog>,
    pub(super) secret: NeuronSecret,
    pub(super) body: Bytes,
    /// What the body may use.
    pub(super) size: Size,
    /// Unix ms, for a request that is not metered.
    pub(super) deadline_ms: u64,
    /// Those that were asked.
    pub(super) asked: Vec<NeuronId>,
}

impl Job {
    /// Turns to another neuron if what the last one answered is nothing to stay with. False if it is, or there is
    /// no other.
    pub(super) fn turns_elsewhere(&mut self, answered: &Result<reqwest::Response, Stop>) -> bool {
        let Candidate::Neuron(last) = &self.candidate else {
            return false;
        };
        let undone = undone(answered);
        match (undone, answered) {
            (Some(Undone::Fault(fault)), Err(Stop::Unreachable(detail))) => {
                last.failed(fault, detail);
            }
            (Some(Undone::Fault(fault)), Ok(answer)) => {
                last.failed(fault, answer.status().as_str());
            }
            (_, Ok(_)) => last.took_a_call(),
            // one that broke off is neither well nor known to be away
            (_, Err(_)) => {}
        }
        if let Some(undone) = undone {
            self.metrics.neuron_fault(undone.into());
        }
        let Some(mut elsewhere) = self.elsewhere.take().filter(|_| undone.is_some()) else {
            return false;
        };
        let (model, last) = (last.model.clone(), last.neuron.clone());
        elsewhere.asked.push(last);
        if elsewhere.asked.len() >= ASKED_MAX {
            return false;
        }
        let (asked, size) = (&elsewhere.asked, elsewhere.size);
        let other = elsewhere.catalog.other_neuron(&model, asked, size);
        // one that cannot be told of more would end at the first slice
        let serves = |other: &ChosenNeuron| self.slices.is_none() || other.model.grows;
        let Some(other) = other.filter(serves) else {
            return false;
        };
        self.note(undone, &other.neuron);
        self.limits.lost = other.lost.clone();
        self.candidate = Candidate::Neuron(other);
        self.upstream = self.candidate.name();
        self.attempt = Some(self.again(&elsewhere));
        self.elsewhere = Some(elsewhere);
        true
    }

    /// The same request, for the neuron that is chosen now.
    fn again(&self, elsewhere: &Elsewhere) -> Attempt {
        let (secret, deadline_ms) = (&elsewhere.secret, elsewhere.deadline_ms);
        let held = (self.reservation.as_ref(), self.slices.as_ref());
        let pass = pass(secret, held, deadline_ms);
        let body = elsewhere.body.to_vec();
        let headers = axum::http::HeaderMap::new();
        Attempt::new(&self.candidate, self.api, &pass, &headers, body)
    }

    fn note(&self, undone: Option<Undone>, instead: &NeuronId) {
        static TOLD: LazyLock<Seldom> = LazyLock::new(Seldom::default);
        let cause = format!("{} {undone:?}", self.upstream);
        if let Some(left_out) = TOLD.note(&cause, Instant::now()) {
            tracing::warn!(
                neuron = %self.upstream, why = ?undone, %instead, left_out,
                "a neuron did nothing for a request: another one is asked"
            );
        }
    }
}

/// How a neuron did nothing for a request, if that is certain.
fn undone(answered: &Result<reqwest::Response, Stop>) -> Option<Undone> {
    match answered {
        Ok(answer) => Undone::by(answer),
        Err(Stop::Unreachable(_)) => Some(Undone::Fault(Fault::Unreachable)),
        Err(_) => None,
    }
}
