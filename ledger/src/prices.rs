//! The price book of one partition: every version of every model's price.
//!
//! Old versions stay: a reservation is charged at the version it was taken under.

use std::collections::BTreeMap;

use seatbelt_schemas::{ids::ModelId, price::Price};
use serde::{Deserialize, Serialize};

/// All versions by model, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriceBook(BTreeMap<ModelId, Vec<Price>>);

impl PriceBook {
    /// The price in force.
    pub fn current(&self, model: &ModelId) -> Option<&Price> {
        self.0.get(model)?.last()
    }

    /// One version of a price.
    pub fn version(&self, model: &ModelId, version: u32) -> Option<&Price> {
        self.0
            .get(model)?
            .iter()
            .rev()
            .find(|price| price.version == version)
    }

    /// Puts a new version in force.
    pub fn set(&mut self, price: Price) {
        self.0.entry(price.model.clone()).or_default().push(price);
    }

    /// Prices in force, by model.
    pub fn iter(&self) -> impl Iterator<Item = &Price> {
        self.0.values().filter_map(|versions| versions.last())
    }
}
