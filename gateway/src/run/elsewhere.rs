//! A second neuron for a request of which the first did nothing: it could not be reached, or said so with its
//! refusal. The reservation stays as it is. Of what was or may have been begun nothing is sent again.

use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use seatbelt_schemas::{
    ids::{ModelId, NeuronId},
    neuron::{HEADER_UNUSED, signature::NeuronSecret},
};

use super::{Job, attempts::Stop, pass};
use crate::upstream::{Attempt, Candidate, catalog::Catalog, choose::ChosenNeuron};

/// What it takes to ask another neuron.
pub(super) struct Elsewhere {
    pub(super) catalog: Arc<Catalog>,
    pub(super) secret: NeuronSecret,
    pub(super) body: Bytes,
    /// Unix ms, for a request that is not metered.
    pub(super) deadline_ms: u64,
}

impl Job {
    /// Turns to another neuron if `first` is no answer to stay with. False if it is, or there is none.
    pub(super) fn turns_elsewhere(&mut self, first: &Result<reqwest::Response, Stop>) -> bool {
        let Some(elsewhere) = self.elsewhere.take().filter(|_| is_unused(first)) else {
            self.room.shrink_to(0);
            return false;
        };
        let Some(other) = elsewhere.other(&self.candidate) else {
            return false;
        };
        tracing::warn!(
            neuron = %self.upstream, instead = %other.neuron,
            "a neuron did nothing for a request: another one is asked"
        );
        self.candidate = Candidate::Neuron(other);
        self.upstream = self.candidate.name();
        let pass = pass(
            &elsewhere.secret,
            self.reservation.as_ref(),
            elsewhere.deadline_ms,
        );
        let body = elsewhere.body.to_vec();
        let headers = axum::http::HeaderMap::new();
        self.attempt = Some(Attempt::new(
            &self.candidate,
            self.api,
            &pass,
            &headers,
            body,
        ));
        true
    }
}

impl Elsewhere {
    /// Another neuron that reads and holds the request as the first would.
    fn other(&self, first: &Candidate) -> Option<ChosenNeuron> {
        let Candidate::Neuron(first) = first else {
            return None;
        };
        let (model, apart_from): (&ModelId, [NeuronId; 1]) =
            (&first.model.id, [first.neuron.clone()]);
        let other = self.catalog.neuron(model, &apart_from)?;
        (other.model.recipe == first.model.recipe && other.model.context >= first.model.context)
            .then_some(other)
    }
}

/// Whether nothing was done for the request, for certain.
fn is_unused(first: &Result<reqwest::Response, Stop>) -> bool {
    match first {
        Ok(answer) => {
            answer.status() == StatusCode::SERVICE_UNAVAILABLE
                && answer.headers().contains_key(HEADER_UNUSED)
        }
        Err(stop) => matches!(stop, Stop::Unreachable(_)),
    }
}
