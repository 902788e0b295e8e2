//! The gateway role: what it is told of the whole configuration, its listeners, its start.

use std::net::SocketAddr;

use seatbelt_gateway::{GatewayConfig, GatewayError, KeyEntry, KeySecret, KeyTable, Prices};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tracing::warn;

use super::RoleError;
use crate::config::{self, Config};

/// What the gateway is told at its start.
pub(super) fn told(config: &Config) -> GatewayConfig {
    let own = config.neuron.iter().flat_map(|neuron| &neuron.models);
    GatewayConfig {
        upstreams: config.upstreams.clone(),
        neuron_models: own.map(|model| model.id.clone()).collect(),
        durability: config.nats.durability.to_string(),
        ..config.gateway.clone()
    }
}

/// The declared keys.
pub(super) fn keys(config: &Config) -> Result<KeyTable, RoleError> {
    let keys = KeyTable::new(config.keys.iter().map(key).collect());
    keys.map_err(|mistakes| RoleError::Gateway(GatewayError::Config(mistakes)))
}

/// The declared prices.
pub(super) fn prices(config: &Config) -> Prices {
    let prices = config.prices().into_iter();
    prices.map(|price| (price.model, price.rates)).collect()
}

fn key(key: &config::DeclaredKey) -> KeyEntry {
    KeyEntry {
        on_short: key.policy.on_short,
        on_unknown: key.policy.on_unknown,
        teams: key.teams.clone(),
        ..KeyEntry::new(
            KeySecret::hash(key.secret.expose_secret()),
            key.account.clone(),
            key.key.clone(),
        )
    }
}

/// Both listeners, bound before anything is started that a taken port would leave behind.
pub(super) struct Listeners {
    pub(super) clients: TcpListener,
    pub(super) metrics: TcpListener,
}

impl Listeners {
    pub(super) async fn bind(config: &Config) -> Result<Self, RoleError> {
        let gateway = &config.gateway;
        Ok(Self {
            clients: bind("gateway.listen", gateway.listen).await?,
            metrics: bind("gateway.metrics_listen", gateway.metrics_listen).await?,
        })
    }
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, RoleError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| RoleError::Listen {
        setting,
        address,
        source,
    })
}

/// Most keys that a warning names.
const KEYS_NAMED_MAX: usize = 5;

/// Says which keys may spend without bound: a cap that was forgotten looks just like one that was not wanted.
pub(super) fn warn_of_unlimited(config: &Config) {
    if config.keys.is_empty() && config.gateway.require_auth {
        warn!("no key is declared, so every request is refused: add [[entitlements.keys]]");
    }
    let unlimited = config.unlimited();
    if unlimited.is_empty() {
        return;
    }
    let names = unlimited.iter().take(KEYS_NAMED_MAX);
    let names: Vec<String> = names
        .map(|key| format!("{}/{}", key.account, key.key))
        .collect();
    warn!(
        keys = unlimited.len(),
        some = names.join(", "),
        "these keys have no hard cap in the configuration: set hard_cap or caps where they are to have one"
    );
}

/// Says which models are never asked in the place of another, since a cap counts money and they have no price.
pub(super) fn warn_of_unpriced_fallbacks(config: &Config) {
    for (model, fallback) in config.unpriced_fallbacks() {
        warn!(
            %model, %fallback,
            "a fallback without a price is not asked for keys with a cap on cost: give it a price"
        );
    }
}

/// A listener's address as a URL.
pub(super) fn url(listener: &TcpListener) -> String {
    let address = listener.local_addr();
    address.map_or_else(|_| String::new(), |address| format!("http://{address}"))
}
