//! What a gateway is told at start, with its defaults and bounds.
//!
//! Plain values: reading files and environment is the caller's. Here they are only checked, all
//! mistakes at once. Secrets are hashed or redacted before they come to rest here.

use std::{collections::HashMap, fmt, time::Duration};

pub use seatbelt_dialects::{Aspect, Class, Dialect, MaxField, allow::Profile};
use seatbelt_schemas::{
    event::{OnShort, OnUnknown},
    ids::{AccountId, KeyId, ModelId},
    price::Rates,
};
use seatbelt_tokens::Counter;
use sha2::{Digest, Sha256};

mod bodies;
mod times;

pub(crate) use bodies::*;
pub use bodies::{BODIES_BYTES_DEFAULT, BODY_BYTES_DEFAULT};
pub(crate) use times::*;
pub use times::{
    BUDGET_WAIT_DEFAULT, CLIENT_STALL_DEFAULT, CONNECT_TIMEOUT, DRAIN_DEFAULT,
    HEADER_TIMEOUT_DEFAULT, HOLD_GRACE, LEDGER_TIMEOUT_DEFAULT, POOL_IDLE_DEFAULT,
    REQUEST_TIMEOUT_DEFAULT,
};

/// Most requests in progress, where not configured.
pub const REQUESTS_DEFAULT: usize = 4096;
/// Most connections of clients, where not configured: twice the requests, for those between two.
pub const CONNECTIONS_DEFAULT: usize = 2 * REQUESTS_DEFAULT;
/// How much of what all share one account may take, in percent, where not configured.
pub const ACCOUNT_SHARE_PERCENT_DEFAULT: u8 = 50;
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

/// A client's secret, hashed: what is kept and compared instead of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeySecret([u8; 32]);

impl KeySecret {
    /// Hashes a secret with SHA-256.
    pub fn hash(secret: &str) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Takes a hash made elsewhere.
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(hash)
    }
}

impl fmt::Debug for KeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeySecret(..)")
    }
}

/// A secret that has to be sent on (an upstream's API key). Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes the secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A client's key: whose it is and how its requests are decided.
#[derive(Debug, Clone)]
pub struct KeyEntry {
    /// The hashed secret.
    pub secret: KeySecret,
    /// The account that pays.
    pub account: AccountId,
    /// The key's public id.
    pub key: KeyId,
    /// What to do with a request that does not fit whole; a request may say otherwise.
    pub on_short: OnShort,
    /// How a reservation ends whose usage nobody reported.
    pub on_unknown: OnUnknown,
}

impl KeyEntry {
    /// A key with the default policies.
    pub fn new(secret: KeySecret, account: AccountId, key: KeyId) -> Self {
        Self {
            secret,
            account,
            key,
            on_short: OnShort::default(),
            on_unknown: OnUnknown::default(),
        }
    }
}

/// A model of an upstream.
#[derive(Debug, Clone)]
pub struct UpstreamModel {
    /// The name clients use and the upstream knows.
    pub id: ModelId,
    /// Most tokens of input and output together.
    pub context: u64,
    /// Most output tokens of one choice.
    pub output: u64,
    /// Tokens added to the input bound for each message. Raise it for templates that frame more.
    pub message_allowance: u64,
    /// Tokens added to the input bound for the request. Raise it by the length of a system prompt
    /// that the upstream's template adds by itself.
    pub request_allowance: u64,
    /// Tokens added to the input bound of a request with tools, for the instructions that come with them.
    pub tools_allowance: u64,
    /// Its tokenizer, where that is known. Then the input bound is what it counts, and the allowances.
    pub tokenizer: Option<Counter>,
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
    /// Classes of service that may be asked for, at prices of their own.
    pub classes: Vec<PricedClass>,
}

/// A class of service of a model. None of them may cost less than the model itself, since a provider may
/// serve that instead.
#[derive(Debug, Clone)]
pub struct PricedClass {
    /// How it is asked for and told.
    pub class: Class,
    /// The model by whose price the ledger holds and settles it.
    pub priced_as: ModelId,
}

impl UpstreamModel {
    /// A model with the default allowances of a provider that adds no prompt of its own.
    pub fn new(id: ModelId, context: u64, output: u64) -> Self {
        Self {
            id,
            context,
            output,
            message_allowance: MESSAGE_ALLOWANCE_DEFAULT,
            request_allowance: REQUEST_ALLOWANCE_DEFAULT,
            tools_allowance: TOOLS_ALLOWANCE_DEFAULT,
            tokenizer: None,
            output_default: None,
            max_field: MaxField::default(),
            output_is_visible: false,
            allow_fields: Vec::new(),
            answers_as: Vec::new(),
            classes: Vec::new(),
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
    /// Its API key.
    pub api_key: Option<Secret>,
    /// What it serves.
    pub models: Vec<UpstreamModel>,
}

impl UpstreamConfig {
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

/// Everything a gateway is told.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// The keys it knows.
    pub keys: Vec<KeyEntry>,
    /// Foreign upstreams.
    pub upstreams: Vec<UpstreamConfig>,
    /// Models that neurons are expected to serve: answered with 503 and not 404 while none does.
    pub neuron_models: Vec<ModelId>,
    /// Prices to show in `/v1/models`. The ledger has its own: these decide nothing.
    pub prices: HashMap<ModelId, Rates>,
    /// Refuse requests without a key. Without it, such requests are forwarded and not metered.
    pub require_auth: bool,
    /// How long a request waits for open holds to resolve.
    pub budget_wait: Duration,
    /// How long the ledger may take to answer, waiting for budget not counted.
    pub ledger_timeout: Duration,
    /// How long a request may take from reserve to last byte.
    pub request_timeout: Duration,
    /// How long requests in progress may go on after shutdown was asked for.
    pub drain: Duration,
    /// Largest request body.
    pub body_bytes: usize,
    /// Memory for the bodies of all requests; more are answered 503.
    pub bodies_bytes: usize,
    /// Most requests in progress; more are answered 503.
    pub requests: usize,
    /// Most connections of clients; more are accepted only once one ends.
    pub connections: usize,
    /// How long the head of a request may be on its way.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is written to it; then it is cut, and its request
    /// ends as that of a client who left.
    pub client_stall: Duration,
    /// How much of what all share one account may take, in percent; more are answered 503. Of the
    /// memory for bodies it is room for one body in any case.
    pub account_share_percent: u8,
    /// What happens upstream when a client leaves.
    pub on_disconnect: OnDisconnect,
    /// How long a pooled connection to an upstream may lie idle.
    pub pool_idle: Duration,
    /// What the ledger's durability is, shown in `/health/ready`: `fsync`, `relaxed`.
    pub durability: String,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            upstreams: Vec::new(),
            neuron_models: Vec::new(),
            prices: HashMap::new(),
            require_auth: true,
            budget_wait: BUDGET_WAIT_DEFAULT,
            ledger_timeout: LEDGER_TIMEOUT_DEFAULT,
            request_timeout: REQUEST_TIMEOUT_DEFAULT,
            drain: DRAIN_DEFAULT,
            body_bytes: BODY_BYTES_DEFAULT,
            bodies_bytes: BODIES_BYTES_DEFAULT,
            requests: REQUESTS_DEFAULT,
            connections: CONNECTIONS_DEFAULT,
            header_timeout: HEADER_TIMEOUT_DEFAULT,
            client_stall: CLIENT_STALL_DEFAULT,
            account_share_percent: ACCOUNT_SHARE_PERCENT_DEFAULT,
            on_disconnect: OnDisconnect::default(),
            pool_idle: POOL_IDLE_DEFAULT,
            durability: "fsync".to_owned(),
        }
    }
}

impl GatewayConfig {
    /// Every mistake in it, in words.
    pub fn mistakes(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.key_mistakes(&mut found);
        for (n, upstream) in self.upstreams.iter().enumerate() {
            let earlier = &self.upstreams[..n];
            if earlier.iter().any(|other| other.name == upstream.name) {
                found.push(format!("upstream {} is configured twice", upstream.name));
            }
            upstream.mistakes(earlier, &mut found);
        }
        for (name, zero) in [
            ("request_timeout", self.request_timeout.is_zero()),
            ("ledger_timeout", self.ledger_timeout.is_zero()),
            ("body_bytes", self.body_bytes == 0),
            ("requests", self.requests == 0),
            ("connections", self.connections == 0),
            ("client_stall", self.client_stall.is_zero()),
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

    fn key_mistakes(&self, found: &mut Vec<String>) {
        let mut secrets = HashMap::new();
        for entry in &self.keys {
            if entry.account.is_system() {
                found.push(format!(
                    "key {} belongs to account _, which is reserved: use another account id",
                    entry.key
                ));
            }
            if let Some(other) = secrets.insert(entry.secret, &entry.key) {
                found.push(format!(
                    "keys {other} and {} have the same secret: give each its own",
                    entry.key
                ));
            }
        }
    }
}

impl UpstreamConfig {
    fn mistakes(&self, earlier: &[Self], found: &mut Vec<String>) {
        let name = &self.name;
        match reqwest::Url::parse(&self.base_url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {}
            _ => found.push(format!(
                "upstream {name}: base_url {:?} is not a URL: write it as http://host:port/v1",
                self.base_url
            )),
        }
        if let Some(profile) = self.profile
            && !profile.fits(self.kind)
        {
            found.push(format!(
                "upstream {name}: profile {profile:?} does not speak the API of its kind: use the kind's own, or generic"
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
            api_key: Some(Secret::new("sk-upstream")),
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
            keys: vec![key("k1"), key("k2")],
            upstreams: vec![upstream("u", "nonsense"), upstream("u", "http://h/v1")],
            body_bytes: 0,
            ..GatewayConfig::default()
        };
        let mistakes = config.mistakes();
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
