//! Where an upstream serves its models: its own address, and others that serve the same at the same prices.

use seatbelt_dialects::allow::Profile;
use seatbelt_schemas::{ids::ModelId, setting::Setting};
use secrecy::SecretString;

use super::{GatewayConfig, UpstreamConfig};

/// Most deployments of one upstream besides its own address.
pub const DEPLOYMENTS_MAX: usize = 32;
/// How much of the requests a deployment takes, beside the others of its priority.
pub const WEIGHT: Setting = Setting::new(1, 1000, 1);
/// When a deployment is asked: those of the least number first.
pub const PRIORITY: Setting = Setting::new(0, 9, 0);
/// How often a request is sent at most, where each time nothing was done for it.
pub const ATTEMPTS: Setting = Setting::new(1, 5, 2);

/// Most models that are asked in the place of one.
pub const FALLBACKS_MAX: usize = 4;

/// Another place where an upstream serves its models, at the same prices.
#[derive(Debug, Clone)]
pub struct DeploymentConfig {
    /// Its name, as settlements show it.
    pub name: String,
    /// As the SDKs write it: OpenAI with `/v1`, Anthropic without.
    pub base_url: String,
    /// Its API key.
    pub api_key: Option<SecretString>,
    /// How much of the requests it takes ([`WEIGHT`]).
    pub weight: u32,
    /// Those of the least number are asked first; others only while these are out ([`PRIORITY`]).
    pub priority: u8,
}

impl UpstreamConfig {
    /// All places where it serves, its own first.
    pub(crate) fn places(&self) -> impl Iterator<Item = DeploymentConfig> {
        let own = DeploymentConfig {
            name: self.name.clone(),
            base_url: self.base_url.clone(),
            api_key: self.api_key.clone(),
            weight: self.weight,
            priority: self.priority,
        };
        std::iter::once(own).chain(self.deployments.iter().cloned())
    }

    /// How often a request is sent at most.
    pub(crate) fn attempts(&self) -> u8 {
        let default = if self.deployments.is_empty() { 1 } else { 2 };
        self.attempts.unwrap_or(default)
    }

    /// What is wrong with its addresses and with how often it is asked.
    pub(super) fn place_mistakes(&self, found: &mut Vec<String>) {
        for DeploymentConfig {
            name,
            base_url,
            weight,
            ..
        } in self.places()
        {
            match reqwest::Url::parse(&base_url) {
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
                _ => found.push(format!(
                    "upstream {name}: base_url {base_url:?} is not a URL: write it as http://host:port/v1"
                )),
            }
            if weight == 0 {
                found.push(format!("upstream {name}: weight is 0: give it at least 1"));
            }
            let host = reqwest::Url::parse(&base_url).ok();
            let host = host.as_ref().and_then(reqwest::Url::host_str);
            if self.profile.is_none() && Profile::of(self.kind, host) != self.profile() {
                found.push(format!(
                    "upstream {name}: what fields are taken there is not told by its address: give the upstream a profile"
                ));
            }
        }
        if self.attempts == Some(0) {
            found.push(format!(
                "upstream {}: attempts is 0: give it at least 1",
                self.name
            ));
        }
    }
}

impl GatewayConfig {
    /// What is wrong with the models that are named in the place of others.
    pub(super) fn fallback_mistakes(&self, found: &mut Vec<String>) {
        let models = || self.upstreams.iter().flat_map(|upstream| &upstream.models);
        let is_served =
            |id: &ModelId| models().any(|model| model.id == *id) || self.neuron_models.contains(id);
        for model in models() {
            let id = &model.id;
            if model.fallback.len() > FALLBACKS_MAX {
                found.push(format!(
                    "model {id} has {} models as its fallback: name at most {FALLBACKS_MAX}",
                    model.fallback.len()
                ));
            }
            for other in &model.fallback {
                if other == id || !is_served(other) {
                    found.push(format!(
                        "model {id}: fallback {other} is no other model that is configured: name one that is"
                    ));
                }
            }
        }
    }
}
