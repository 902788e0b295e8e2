//! How the neurons stand, for operators: what keeps some of them from serving, and which models nobody serves.

use std::fmt::{self, Write};

use seatbelt_schemas::{ids::ModelId, neuron::url_mistake};
use tokio::time::Instant;

use super::Catalog;

/// Most warnings told at once; their number is in the metrics.
const WARNINGS_MAX: usize = 16;

/// A look at all neurons.
#[derive(Debug, Default)]
pub(crate) struct FleetLook {
    registered: usize,
    passed_over: usize,
    unusable: usize,
    /// Models of neurons, configured or seen, that no neuron is ready to serve.
    unserved: Vec<ModelId>,
    /// For people, with the remedy.
    pub(crate) warnings: Vec<String>,
}

impl Catalog {
    /// How the neurons stand now.
    pub(crate) fn fleet(&self) -> FleetLook {
        let (records, now) = (self.neurons.borrow(), Instant::now());
        let mut look = FleetLook {
            registered: records.len(),
            ..FleetLook::default()
        };
        for record in records.iter() {
            let (neuron, url) = (&record.neuron, &record.url);
            if let Some(mistake) = url_mistake(url) {
                look.unusable += 1;
                look.warn(|| format!("neuron {neuron} registers the url {url:?}, which {mistake}: it is not asked until its neuron.url is right"));
                continue;
            }
            let standing = self.loads.of(neuron);
            look.passed_over += usize::from(standing.is_passed_over(url, now));
            if let Some(told) = standing.told(neuron, url) {
                look.warn(|| told);
            }
        }
        let served = |model: &ModelId| {
            let mut models = records.iter().flat_map(|record| &record.models);
            models.any(|served| served.ready && served.id == *model)
        };
        look.unserved = self.remembered();
        look.unserved.retain(|model| !served(model));
        look.unserved.sort();
        for model in look.unserved.clone() {
            look.warn(|| format!("no neuron that serves model {model} is registered and ready: requests for it are answered 503 until one is"));
        }
        look
    }
}

impl FleetLook {
    fn warn(&mut self, text: impl FnOnce() -> String) {
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(text());
        }
    }

    /// As Prometheus text.
    pub(crate) fn write_metrics(&self, out: &mut String) -> fmt::Result {
        for (what, help, count) in [
            ("neurons", "Neurons that are registered.", self.registered),
            (
                "neurons_passed_over",
                "Neurons that are not asked for now, since they could not be reached or turned calls away.",
                self.passed_over,
            ),
            (
                "neurons_unusable",
                "Neurons that register an address which is none.",
                self.unusable,
            ),
            (
                "models_unserved",
                "Models of neurons, configured or seen, that no neuron is ready to serve.",
                self.unserved.len(),
            ),
        ] {
            let name = format!("seatbelt_gateway_{what}");
            writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {count}"
            )?;
        }
        Ok(())
    }
}
