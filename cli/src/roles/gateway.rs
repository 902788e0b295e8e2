//! The gateway role: its configuration in its own words, its listeners, its start.

use std::{collections::HashMap, net::SocketAddr};

use seatbelt_gateway::{
    Aspect, Class, Dialect, GatewayConfig, KeyEntry, KeySecret, MaxField, OnDisconnect,
    PricedClass, Profile, Secret, UpstreamConfig, UpstreamModel,
};
use seatbelt_tokens::{Counter, Framing, template_beside};
use tokio::net::TcpListener;
use tracing::warn;

use super::RoleError;
use crate::config::{self, Config, Durability};

/// What the gateway is told. Reads the tokenizers that the configuration names.
pub(super) fn config(config: &Config) -> Result<GatewayConfig, RoleError> {
    let from = &config.gateway;
    let own = config.neuron.iter().flat_map(|neuron| &neuron.models);
    let prices = config.prices().into_iter();
    Ok(GatewayConfig {
        keys: config.keys.iter().map(key).collect(),
        upstreams: config
            .upstreams
            .iter()
            .map(upstream)
            .collect::<Result<_, _>>()?,
        neuron_models: own.map(|model| model.id.clone()).collect(),
        prices: prices
            .map(|price| (price.model, price.rates))
            .collect::<HashMap<_, _>>(),
        require_auth: from.require_auth,
        budget_wait: from.budget_wait,
        ledger_timeout: from.ledger_timeout,
        request_timeout: from.request_timeout,
        drain: from.drain,
        body_bytes: from.body_bytes,
        bodies_bytes: from.bodies_bytes,
        requests: from.requests,
        connections: from.connections,
        header_timeout: from.header_timeout,
        client_stall: from.client_stall,
        account_share_percent: from.account_share_percent,
        on_disconnect: match from.on_disconnect {
            config::OnDisconnect::Drain => OnDisconnect::Drain,
            config::OnDisconnect::Cancel => OnDisconnect::Cancel,
        },
        pool_idle: from.pool_idle,
        durability: match config.nats.durability {
            Durability::Fsync => "fsync",
            Durability::Relaxed => "relaxed",
        }
        .to_owned(),
    })
}

fn key(key: &config::Key) -> KeyEntry {
    KeyEntry {
        on_short: key.policy.on_short,
        on_unknown: key.policy.on_unknown,
        ..KeyEntry::new(
            KeySecret::hash(key.secret.expose()),
            key.account.clone(),
            key.key.clone(),
        )
    }
}

fn upstream(upstream: &config::Upstream) -> Result<UpstreamConfig, RoleError> {
    let config = UpstreamConfig {
        name: upstream.name.clone(),
        kind: match upstream.kind {
            config::UpstreamKind::OpenAi => Dialect::OpenAi,
            config::UpstreamKind::Anthropic => Dialect::Anthropic,
        },
        profile: upstream.profile.map(|profile| match profile {
            config::Profile::OpenAi => Profile::OpenAi,
            config::Profile::Anthropic => Profile::Anthropic,
            config::Profile::Generic => Profile::Generic,
        }),
        base_url: upstream.base_url.clone(),
        allow_fields: upstream.allow_fields.clone(),
        errors_are_free: upstream.errors_are_free,
        responses: upstream.responses,
        api_key: upstream
            .api_key
            .as_ref()
            .map(|key| Secret::new(key.expose())),
        models: Vec::new(),
    };
    let models = upstream.models.iter();
    Ok(UpstreamConfig {
        models: models
            .map(|served| model(served, &config))
            .collect::<Result<_, _>>()?,
        ..config
    })
}

/// Where a chat template is known, what it was seen to write around texts is allowed at least.
fn model(model: &config::UpstreamModel, of: &UpstreamConfig) -> Result<UpstreamModel, RoleError> {
    let default = UpstreamModel::new(model.id.clone(), model.context, model.output);
    let (tokenizer, seen) = tokenizer(model)?;
    let allowed = |own: Option<u64>, default: u64, seen| own.unwrap_or(default.max(seen));
    let request = of.request_allowance();
    Ok(UpstreamModel {
        message_allowance: allowed(
            model.message_allowance,
            default.message_allowance,
            seen.message,
        ),
        request_allowance: allowed(model.request_allowance, request, seen.request),
        tools_allowance: allowed(model.tools_allowance, default.tools_allowance, seen.tools),
        tokenizer,
        output_default: model.output_default,
        max_field: match model.max_field {
            config::MaxField::MaxTokens => MaxField::MaxTokens,
            config::MaxField::MaxCompletionTokens => MaxField::MaxCompletionTokens,
        },
        output_is_visible: model.output_is_visible,
        allow_fields: model.allow_fields.clone(),
        answers_as: model.answers_as.clone(),
        classes: model.classes.iter().map(class).collect(),
        ..default
    })
}

/// Reads a model's tokenizer, and asks the template beside it for what it writes around texts.
fn tokenizer(model: &config::UpstreamModel) -> Result<(Option<Counter>, Framing), RoleError> {
    let unreadable = |source| RoleError::Tokenizer {
        model: model.id.clone(),
        source,
    };
    match &model.tokenizer {
        None => Ok((None, Framing::default())),
        Some(config::Tokenizer::Encoding(encoding)) => {
            Ok((Some(Counter::encoding(*encoding)), Framing::default()))
        }
        Some(config::Tokenizer::File(path)) => {
            let counter = Counter::file(path).map_err(unreadable)?;
            let template = template_beside(path).map_err(unreadable)?;
            let seen = template.map(|template| Framing::of(&template, &counter));
            Ok((Some(counter), seen.unwrap_or_default()))
        }
    }
}

fn class(class: &config::PriceClass) -> PricedClass {
    PricedClass {
        class: Class {
            aspect: match class.field {
                config::ClassField::ServiceTier => Aspect::ServiceTier,
                config::ClassField::Speed => Aspect::Speed,
                config::ClassField::Geography => Aspect::Geography,
            },
            value: class.value.clone(),
            answers_as: class.answers_as.clone(),
        },
        priced_as: class.price.model.clone(),
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

/// A listener's address as a URL.
pub(super) fn url(listener: &TcpListener) -> String {
    let address = listener.local_addr();
    address.map_or_else(|_| String::new(), |address| format!("http://{address}"))
}
