//! What a gateway is told at start, each setting with its bounds and its default.
//!
//! Plain values: reading files and environment is the caller's. Here they are only checked, all
//! mistakes at once. Secrets are hashed or redacted before they come to rest here. Not here: keys and
//! prices, which come and go while it serves.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, time::Duration};

pub use seatbelt_dialects::{
    Aspect, AudioLimit, Class, Dialect, ImageLimit, ImageRule, MaxField, MediaLimits, Provided,
    allow::Profile,
};
use seatbelt_schemas::{
    amount::{AMOUNT_MAX, TOKENS_PER_REQUEST_MAX},
    cap::CAPS_OF_RUNS_MAX,
    ids::ModelId,
    price::{Price, Rates},
    setting::Setting,
};
use seatbelt_tokens::Encoding;
use secrecy::SecretString;

mod bodies;
mod deployments;
mod keys;
mod limits;
mod times;

pub(crate) use bodies::*;
pub use bodies::{BODIES_BYTES, BODY_BYTES};
pub use deployments::{
    ATTEMPTS, DEPLOYMENTS_MAX, DeploymentConfig, FALLBACKS_MAX, PRIORITY, WEIGHT,
};
pub use keys::{KeyEntry, KeySecret, KeyTable, Within};
pub(crate) use limits::{FIRST_SLICE, Limits, SLICE_MAX};
pub(crate) use times::*;
pub use times::{
    BUDGET_WAIT_MS, CLIENT_STALL_MS, CONNECT_TIMEOUT, DRAIN_MS, HEADER_TIMEOUT_MS, HOLD_GRACE,
    LEDGER_TIMEOUT_MS, PING_DEFAULT, POOL_IDLE_MS, REQUEST_TIMEOUT_MS, UPSTREAM_IDLE_MS,
};

/// Most upstreams of one gateway.
pub const UPSTREAMS_MAX: usize = 256;
/// Most models of one upstream.
pub const MODELS_MAX: usize = 1000;
/// Most classes of service of one model.
pub const CLASSES_MAX: usize = 16;
/// Most fields, or names, in one list of an upstream or a model.
pub const FIELDS_MAX: usize = 256;
/// Requests in progress at once.
pub const REQUESTS: Setting = Setting::new(1, 1_000_000, 4096);
/// Connections of clients at once. The default is twice the requests, for those between two.
pub const CONNECTIONS: Setting = Setting::new(1, 1_000_000, 2 * REQUESTS.default());
/// How long a run lives whose opener does not say it, and may at most, seconds: like every reservation.
pub const RUN_TTL_S: Setting = Setting::new(1, 86_400, 3600);
/// The ledger takes no deadline beyond a day by its own clock, which may be a minute behind.
pub(crate) const RUN_LIFE_MS_MAX: u64 = 86_400_000 - 60_000;
/// Longest label of a run: with what makes it unique it is an id.
pub const RUN_LABEL_MAX: usize = 32;
/// Most of one meter that a run may be given: all the runs that an account may have open stay countable together.
pub(crate) const RUN_AMOUNT_MAX: u64 = AMOUNT_MAX / CAPS_OF_RUNS_MAX as u64;
/// How much of what all share one account may take, in percent.
pub const ACCOUNT_SHARE_PERCENT: Setting = Setting::new(1, 100, 50);
/// Tokens that framing adds to what a request says.
pub const ALLOWANCE_TOKENS_BOUNDS: (u64, u64) = (0, TOKENS_PER_REQUEST_MAX);
/// Tokens that a message's framing adds to its bytes (role, separators), where not configured.
pub const MESSAGE_ALLOWANCE_DEFAULT: u64 = 8;
/// Tokens that a request's framing adds at OpenAI and at Anthropic, where not configured.
pub const REQUEST_ALLOWANCE_DEFAULT: u64 = 8;
/// The same for an unknown server, whose template may add a system prompt of its own: "hi" is 30 tokens for Qwen 2.5,
/// 36 for Llama 3.1 and 68 for gpt-oss.
pub const REQUEST_ALLOWANCE_GENERIC: u64 = 64;
/// Tokens of the instructions that come with tools, where not configured: of Anthropic 346 at most are
/// documented, published templates add up to some 400.
pub const TOOLS_ALLOWANCE_DEFAULT: u64 = 512;

/// A model of an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamModel {
    /// The name clients use and the upstream knows.
    pub id: ModelId,
    /// Most tokens of input and output together.
    pub context: u64,
    /// Most output tokens of one choice.
    pub output: u64,
    /// Tokens added to the input bound for each message ([`ALLOWANCE_TOKENS_BOUNDS`], [`MESSAGE_ALLOWANCE_DEFAULT`]).
    /// Raise it for templates that frame more.
    pub message_allowance: Option<u64>,
    /// Tokens added to the input bound for the request ([`UpstreamConfig::request_allowance`] where not given). Raise
    /// it by the length of a system prompt that the upstream's template adds by itself.
    pub request_allowance: Option<u64>,
    /// Tokens added to the input bound of a request with tools, for the instructions that come with them
    /// ([`TOOLS_ALLOWANCE_DEFAULT`]).
    pub tools_allowance: Option<u64>,
    /// Its tokenizer, where that is known. Then the input bound is what it counts, and the allowances.
    pub tokenizer: Option<TokenizerName>,
    /// The output maximum that is written where the client sends none; [`Self::output`] where not given.
    pub output_default: Option<u64>,
    /// Which field carries the output maximum when the client sent none.
    pub max_field: MaxField,
    /// All output the upstream charges for is text in the answer. Then an answer without usage is
    /// settled at its counted bytes, else at the hold. Wrong for models that reason unseen.
    pub output_is_visible: bool,
    /// Fields that metered requests may use besides those of the upstream.
    pub allow_fields: Vec<String>,
    /// Names under which it answers besides its own, which cost the same.
    pub answers_as: Vec<String>,
    /// What it costs; none where unpriced. The ledger decides by it once it is declared there, the gateway by none.
    pub price: Option<Price>,
    /// Classes of service that may be asked for, at prices of their own.
    pub classes: Vec<PricedClass>,
    /// Tools that the provider runs and that may be asked for.
    pub tools: Vec<Provided>,
    /// What its images and sounds cost at most; a metered request may have only those that are told here.
    pub media: MediaLimits,
    /// Models of upstreams that are asked in its place, in order, where nothing was done for a request: at most
    /// [`FALLBACKS_MAX`]. Each at its own price and with its own bound.
    pub fallback: Vec<ModelId>,
}

/// How a model's tokens are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerName {
    /// One of OpenAI's encodings.
    Encoding(Encoding),
    /// A `tokenizer.json`; a chat template may lie beside it.
    File(PathBuf),
}

/// A class of service of a model. None of them may cost less than the model itself, since a provider may
/// serve that instead.
#[derive(Debug, Clone)]
pub struct PricedClass {
    /// How it is asked for and told.
    pub class: Class,
    /// What it costs, under a model id of its own, by which the ledger holds and settles it.
    pub price: Price,
}

impl UpstreamModel {
    /// A model with defaults for all but what has none, of a provider that adds no prompt of its own.
    pub fn new(id: ModelId, context: u64, output: u64) -> Self {
        Self {
            id,
            context,
            output,
            message_allowance: None,
            request_allowance: Some(REQUEST_ALLOWANCE_DEFAULT),
            tools_allowance: None,
            tokenizer: None,
            output_default: None,
            max_field: MaxField::default(),
            output_is_visible: false,
            allow_fields: Vec::new(),
            answers_as: Vec::new(),
            price: None,
            classes: Vec::new(),
            tools: Vec::new(),
            media: MediaLimits::default(),
            fallback: Vec::new(),
        }
    }
}

/// A foreign upstream.
#[derive(Debug, Clone)]
pub struct UpstreamConfig {
    /// Its name, as settlements show it.
    pub name: String,
    /// The API it speaks.
    pub kind: Dialect,
    /// Whose fields it takes; by its kind and address where none is given.
    pub profile: Option<Profile>,
    /// As the SDKs write it: OpenAI with `/v1`, Anthropic without.
    pub base_url: String,
    /// Fields that metered requests may use besides those of the profile, as an error names them but
    /// without places: `chat_template_kwargs`, `messages[].prefix`, `anthropic-beta=NAME`.
    pub allow_fields: Vec<String>,
    /// No error of it is charged, not even one that can come after work (408, 499, 500, 502, 504, 52x).
    pub errors_are_free: bool,
    /// It speaks `/v1/responses` too.
    pub responses: bool,
    /// It keeps responses, and each is bound to its account.
    pub threads: bool,
    pub api_key: Option<SecretString>,
    /// Other places where it serves the same, at the same prices: at most [`DEPLOYMENTS_MAX`].
    pub deployments: Vec<DeploymentConfig>,
    /// How much of the requests it takes itself, beside its deployments ([`WEIGHT`]).
    pub weight: u32,
    /// When it is asked itself ([`PRIORITY`]).
    pub priority: u8,
    /// How often a request is sent at most, where it is known each time that nothing was done for it
    /// ([`ATTEMPTS`]); twice where it has deployments, else once, where not given.
    pub attempts: Option<u8>,
    /// A request of which is not known what it did is sent once more, with a hold besides what the first was charged.
    pub retry_unknown: bool,
    /// What it serves.
    pub models: Vec<UpstreamModel>,
}

impl UpstreamConfig {
    /// One without key, deployments and models.
    pub fn new(name: String, kind: Dialect, base_url: String) -> Self {
        Self {
            name,
            kind,
            profile: None,
            base_url,
            allow_fields: Vec::new(),
            errors_are_free: false,
            responses: false,
            threads: false,
            api_key: None,
            deployments: Vec::new(),
            weight: 1,
            priority: 0,
            attempts: None,
            retry_unknown: false,
            models: Vec::new(),
        }
    }

    /// Whose fields it takes.
    pub fn profile(&self) -> Profile {
        let url = reqwest::Url::parse(&self.base_url).ok();
        let host = url.as_ref().and_then(reqwest::Url::host_str);
        self.profile.unwrap_or_else(|| Profile::of(self.kind, host))
    }

    /// Tokens that framing adds to a request where none are configured.
    pub fn request_allowance(&self) -> u64 {
        match self.profile() {
            Profile::OpenAi | Profile::Anthropic => REQUEST_ALLOWANCE_DEFAULT,
            Profile::Generic => REQUEST_ALLOWANCE_GENERIC,
        }
    }
}

/// What happens upstream when a client leaves before the end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OnDisconnect {
    /// The answer is read to its end and settled with its true usage.
    #[default]
    Drain,
    /// The request is cancelled and charged at its hold.
    Cancel,
}

/// Rates to show in `/v1/models`. The ledger has its own: these decide nothing.
pub type Prices = HashMap<ModelId, Rates>;

/// Everything a gateway is told: `[gateway]`, and what it serves.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Address for clients; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Address for metrics; port 0 picks a free one.
    pub metrics_listen: SocketAddr,
    /// Token of the admin routes; none closes them.
    pub admin_token: Option<SecretString>,
    /// Accounts and keys are labels of metrics: yes, where not given.
    pub metrics_by_key: bool,
    /// Foreign upstreams: at most [`UPSTREAMS_MAX`].
    pub upstreams: Vec<UpstreamConfig>,
    /// Models that neurons are expected to serve: answered with 503 and not 404 while none does.
    pub neuron_models: Vec<ModelId>,
    /// Refuse requests without a key: yes, where not given. Without it, such requests are forwarded and not metered.
    pub require_auth: bool,
    /// How long a request waits for open holds to resolve ([`BUDGET_WAIT_MS`]).
    pub budget_wait: Duration,
    /// How long the ledger may take to answer, waiting for budget not counted ([`LEDGER_TIMEOUT_MS`]).
    pub ledger_timeout: Duration,
    /// How long a request may take from reserve to last byte ([`REQUEST_TIMEOUT_MS`]).
    pub request_timeout: Duration,
    /// How long an upstream may send nothing once its answer has begun.
    pub upstream_idle: Duration,
    /// How long requests in progress may go on after shutdown was asked for ([`DRAIN_MS`]).
    pub drain: Duration,
    /// Largest request body ([`BODY_BYTES`]).
    pub body_bytes: usize,
    /// Memory for the bodies of all requests; more are answered 503 ([`BODIES_BYTES`]).
    pub bodies_bytes: usize,
    /// Most requests in progress; more are answered 503 ([`REQUESTS`]).
    pub requests: usize,
    /// Most connections of clients; more are accepted only once one ends ([`CONNECTIONS`]).
    pub connections: usize,
    /// How long the head of a request may be on its way ([`HEADER_TIMEOUT_MS`]).
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is written to it ([`CLIENT_STALL_MS`]); then it is cut, and its
    /// request ends as that of a client who left.
    pub client_stall: Duration,
    /// How long a stream may be silent before its client is told that it goes on.
    pub ping: Duration,
    /// Origins of pages that may call this gateway; `*` for all.
    pub cors_origins: Vec<String>,
    /// How much of what all share one account may take, in percent ([`ACCOUNT_SHARE_PERCENT`]); more are answered
    /// 503. Of the memory for bodies it is room for one body in any case.
    pub account_share_percent: u8,
    /// What happens upstream when a client leaves.
    pub on_disconnect: OnDisconnect,
    /// How long a pooled connection to an upstream may lie idle ([`POOL_IDLE_MS`]).
    pub pool_idle: Duration,
    /// What the ledger's durability is, shown in `/health/ready`: `fsync`, `relaxed`.
    pub durability: String,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            admin_token: None,
            metrics_by_key: true,
            upstreams: Vec::new(),
            neuron_models: Vec::new(),
            require_auth: true,
            budget_wait: BUDGET_WAIT_MS.default_ms(),
            ledger_timeout: LEDGER_TIMEOUT_MS.default_ms(),
            request_timeout: REQUEST_TIMEOUT_MS.default_ms(),
            upstream_idle: UPSTREAM_IDLE_MS.default_ms(),
            drain: DRAIN_MS.default_ms(),
            body_bytes: BODY_BYTES.default_count(),
            bodies_bytes: BODIES_BYTES.default_count(),
            requests: REQUESTS.default_count(),
            connections: CONNECTIONS.default_count(),
            header_timeout: HEADER_TIMEOUT_MS.default_ms(),
            client_stall: CLIENT_STALL_MS.default_ms(),
            ping: PING_DEFAULT,
            cors_origins: Vec::new(),
            account_share_percent: 50,
            on_disconnect: OnDisconnect::default(),
            pool_idle: POOL_IDLE_MS.default_ms(),
            durability: "fsync".to_owned(),
        }
    }
}

impl GatewayConfig {
    /// Every mistake in it, in words.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (n, upstream) in self.upstreams.iter().enumerate() {
            let earlier = &self.upstreams[..n];
            let others = earlier.iter().flat_map(UpstreamConfig::places);
            let mut names: Vec<String> = others.map(|place| place.name).collect();
            for place in upstream.places() {
                if names.contains(&place.name) {
                    found.push(format!("upstream {} is configured twice", place.name));
                }
                names.push(place.name);
            }
            upstream.mistakes(earlier, &mut found);
        }
        self.fallback_mistakes(&mut found);
        for (name, zero) in [
            ("request_timeout", self.request_timeout.is_zero()),
            ("upstream_idle", self.upstream_idle.is_zero()),
            ("ledger_timeout", self.ledger_timeout.is_zero()),
            ("body_bytes", self.body_bytes == 0),
            ("requests", self.requests == 0),
            ("connections", self.connections == 0),
            ("client_stall", self.client_stall.is_zero()),
            ("ping", self.ping.is_zero()),
            ("header_timeout", self.header_timeout.is_zero()),
        ] {
            if zero {
                found.push(format!("{name} is 0: give it at least 1"));
            }
        }
        if !(1..=100).contains(&self.account_share_percent) {
            found.push(format!(
                "account_share_percent is {}: give it 1 to 100",
                self.account_share_percent
            ));
        }
        let least = body_memory_max(self.body_bytes);
        if self.bodies_bytes < least {
            found.push(format!(
                "bodies_bytes is {}: one body takes up to {least}, give it as much",
                self.bodies_bytes
            ));
        }
        found
    }

    /// How much one account may take of a whole.
    pub(crate) fn share(&self, whole: usize) -> usize {
        whole.saturating_mul(self.account_share_percent.into()) / 100
    }
}

impl UpstreamConfig {
    fn mistakes(&self, earlier: &[Self], found: &mut Vec<String>) {
        let name = &self.name;
        self.place_mistakes(found);
        if let Some(profile) = self.profile
            && !profile.fits(self.kind)
        {
            found.push(format!(
                "upstream {name}: profile {profile:?} does not speak the API of its kind: use the kind's own, or generic"
            ));
        }
        if self.threads && !(self.responses && self.deployments.is_empty()) {
            found.push(format!(
                "upstream {name}: threads are kept where one address speaks /v1/responses: set responses = true, without deployments"
            ));
        }
        for (n, model) in self.models.iter().enumerate() {
            let id = &model.id;
            if model.tokenizer.is_some() && self.profile() == Profile::Anthropic {
                found.push(format!(
                    "upstream {name}: model {id} has a tokenizer, but Anthropic publishes none: leave it out"
                ));
            }
            if model.output == 0 || model.output > model.context {
                found.push(format!(
                    "upstream {name}: model {id}: output is {} and context {}: output must lie from 1 to the context",
                    model.output, model.context
                ));
            }
            let elsewhere = earlier.iter().flat_map(|other| &other.models);
            if self.models[..n]
                .iter()
                .chain(elsewhere)
                .any(|other| other.id == *id)
            {
                found.push(format!(
                    "upstream {name}: model {id} is configured twice: name each model once"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::ids::{AccountId, KeyId};

    use super::*;

    fn upstream(name: &str, base_url: &str) -> UpstreamConfig {
        UpstreamConfig {
            name: name.to_owned(),
            kind: Dialect::OpenAi,
            profile: None,
            base_url: base_url.to_owned(),
            allow_fields: Vec::new(),
            errors_are_free: false,
            responses: false,
            threads: false,
            api_key: Some(SecretString::from("sk-upstream")),
            deployments: Vec::new(),
            weight: 1,
            priority: 0,
            attempts: None,
            retry_unknown: false,
            models: vec![UpstreamModel::new(ModelId::new("m").unwrap(), 100, 200)],
        }
    }

    #[test]
    fn all_mistakes_are_named_at_once() {
        let key = |id: &str| {
            KeyEntry::new(
                KeySecret::hash("same"),
                AccountId::new("a").unwrap(),
                KeyId::new(id).unwrap(),
            )
        };
        let config = GatewayConfig {
            upstreams: vec![upstream("u", "nonsense"), upstream("u", "http://h/v1")],
            body_bytes: 0,
            ..GatewayConfig::default()
        };
        let mut mistakes = config.mistakes();
        mistakes.extend(KeyTable::new(vec![key("k1"), key("k2")]).unwrap_err());
        assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
        assert!(GatewayConfig::default().mistakes().is_empty());
    }

    #[test]
    fn secrets_are_not_printed() {
        let shown = format!(
            "{:?} {:?}",
            upstream("u", "http://h"),
            KeySecret::hash("sk-client")
        );
        assert!(!shown.contains("sk-"), "{shown}");
    }
}
