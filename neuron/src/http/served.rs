//! A model that writes, and what is told of it.

use std::sync::{Arc, OnceLock};

use seatbelt_schemas::{ids::ModelId, neuron::NeuronModel};
use serde_json::{Value, json};

use crate::{
    config::{Device, ModelConfig},
    engine::Engine,
    load::Found,
    model::Model,
    seat::{Resident, Seat},
};

/// A model that writes.
pub(crate) struct Served {
    pub(crate) id: ModelId,
    pub(crate) device: Device,
    pub(crate) model: Arc<Model>,
    /// What it has, once it was loaded.
    pub(crate) found: Arc<OnceLock<Found>>,
    pub(crate) seat: Arc<Seat<Engine>>,
    pub(crate) wanted: ModelConfig,
}

impl Served {
    /// Most tokens of input and output together; there may turn out to be memory for fewer.
    pub(crate) fn context(&self) -> usize {
        let found = self.found.get().map(|found| found.context);
        found.map_or(self.model.context, |found| found.min(self.model.context))
    }

    /// Most output tokens of one request.
    pub(crate) fn output(&self) -> usize {
        self.model.output.min(self.context().saturating_sub(1))
    }

    /// Requests that run at once.
    pub(crate) fn slots(&self) -> usize {
        let found = self.found.get().map(|found| found.slots);
        found.or(self.wanted.slots).unwrap_or(1)
    }

    /// Why it takes no request now, if so.
    pub(super) fn closed(&self) -> Option<&'static str> {
        self.seat.status().closed()
    }

    /// What gateways are told of it.
    pub(super) fn record(&self, closed: Option<&str>) -> NeuronModel {
        NeuronModel {
            id: self.id.clone(),
            context: self.context() as u64,
            output: self.output() as u64,
            slots: u32::try_from(self.slots()).unwrap_or(u32::MAX),
            recipe: Some(self.model.recipe.name.clone()),
            ready: closed.is_none(),
            loaded: self.seat.up().is_some(),
            grows: true,
        }
    }

    pub(super) fn json(&self, since_s: u64) -> Value {
        let mut told = json!({
            "id": self.id,
            "object": "model",
            "created": since_s,
            "owned_by": "seatbelt",
            "context_length": self.context(),
            "max_output_tokens": self.output(),
            "device": self.device.as_str(),
            "slots": self.slots(),
        });
        tell(&mut told, &*self.seat);
        told
    }
}

/// Says how a model stands and why, and what it takes of the memory.
pub(super) fn tell(told: &mut Value, resident: &dyn Resident) {
    let (status, takes) = (resident.status(), resident.takes());
    told["state"] = json!(status.word());
    if let Some(reason) = status.reason() {
        told["reason"] = json!(reason);
    }
    if takes.bytes > 0 {
        told["memory_bytes"] = json!(takes.bytes);
    }
}
