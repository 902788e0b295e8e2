//! Who can serve a request, and what goes out to it.
//!
//! Headers are made afresh: the operator's key, a neuron's bounds. Of the client's headers only those
//! pass that choose an API version. Not here: what is in the body, and what comes back.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use bytes::Bytes;
use reqwest::Url;
use seatbelt_dialects::{Api, Dialect, MaxField, Priced, Provided, allow::Profile};
use seatbelt_schemas::neuron::{PATH_CHAT, PATH_COMPLETIONS};
use secrecy::{ExposeSecret, SecretString};

use crate::config::{DeploymentConfig, PricedClass, UpstreamConfig};

pub(crate) mod answer;
pub(crate) mod catalog;
pub(crate) mod choose;
pub(crate) mod client;
pub(crate) mod count;
pub(crate) mod deployments;
pub(crate) mod handed;
pub(crate) mod health;
pub(crate) mod limit;
pub(crate) mod model;
pub(crate) mod neuron;
mod pauses;
pub(crate) mod recipes;
pub(crate) mod silent;
pub(crate) mod standing;

use choose::ChosenNeuron;
use deployments::Chosen;
use model::Model;
use neuron::Pass;

/// The version of the Anthropic API that is asked for where the client names none.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// One that can serve a request.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives for each request, and is moved twice"
)]
pub(crate) enum Candidate {
    Foreign(Chosen, Arc<Model>),
    Neuron(ChosenNeuron),
}

/// A foreign upstream at one of its addresses, ready to be called.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) name: String,
    pub(crate) kind: Dialect,
    pub(crate) profile: Profile,
    pub(crate) allow_fields: Vec<String>,
    pub(crate) errors_are_free: bool,
    pub(crate) responses: bool,
    pub(crate) threads: bool,
    /// Its base with a slash at its end.
    base: Url,
    pub(crate) api_key: Option<SecretString>,
    pub(crate) weight: u32,
    pub(crate) priority: u8,
    /// How often a request is sent at most.
    pub(crate) attempts: u8,
    /// One of which is not known what it did is sent once more.
    pub(crate) retry_unknown: bool,
}

impl Upstream {
    fn new(config: &UpstreamConfig, at: &DeploymentConfig) -> Option<Self> {
        let base = at.base_url.trim_end_matches('/');
        Some(Self {
            name: at.name.clone(),
            kind: config.kind,
            profile: config.profile(),
            allow_fields: config.allow_fields.clone(),
            errors_are_free: config.errors_are_free,
            responses: config.responses,
            threads: config.threads,
            base: Url::parse(&format!("{base}/"))
                .ok()
                .filter(|base| !base.cannot_be_a_base())?,
            api_key: at.api_key.clone(),
            weight: at.weight,
            priority: at.priority,
            attempts: config.attempts(),
            retry_unknown: config.retry_unknown,
        })
    }

    /// Where it serves an API.
    fn url(&self, api: Api) -> Url {
        let url = self.base.join(api.path());
        url.expect("the path of an API is one below any base")
    }
}

impl Candidate {
    /// As settlements show it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Foreign(upstream, _) => upstream.name.clone(),
            Self::Neuron(neuron) => neuron.neuron.to_string(),
        }
    }

    /// The classes of service that may be asked of it.
    pub(crate) fn classes(&self) -> &[PricedClass] {
        match self {
            Self::Foreign(_, model) => &model.told.classes,
            Self::Neuron(_) => &[],
        }
    }

    /// Tools that it runs itself and that are priced.
    pub(crate) fn tools(&self) -> &[Provided] {
        match self {
            Self::Foreign(_, model) => &model.told.tools,
            Self::Neuron(_) => &[],
        }
    }

    /// What it is asked in by a client of `client`: the same where it speaks that too.
    pub(crate) fn api(&self, client: Api) -> Api {
        let speaks = match self {
            Self::Foreign(upstream, _) if client == Api::Responses => upstream.responses,
            Self::Foreign(upstream, _) => upstream.kind == client.dialect(),
            Self::Neuron(_) => client == Api::Completions,
        };
        match self {
            // One that writes nothing embeds.
            Self::Neuron(neuron) if neuron.model.output == 0 => Api::Embeddings,
            _ if speaks => client,
            Self::Foreign(upstream, _) => Api::of(upstream.kind),
            Self::Neuron(_) => Api::Chat,
        }
    }

    /// Which field carries the output maximum when the client sent none.
    pub(crate) fn max_field(&self) -> MaxField {
        match self {
            Self::Foreign(_, model) => model.told.max_field,
            Self::Neuron(_) => MaxField::MaxTokens,
        }
    }

    /// An error that comes after work is charged, unless its operator knows better. Those of neurons
    /// are told apart by what they answer.
    pub(crate) fn charges_errors(&self) -> bool {
        matches!(self, Self::Foreign(upstream, _) if !upstream.errors_are_free)
    }

    /// How a request is priced; nothing where what an answer says of that is not compared.
    /// `class` is the one that was asked for.
    pub(crate) fn priced<'a>(&'a self, class: Option<&'a PricedClass>) -> Option<Priced<'a>> {
        match self {
            Self::Foreign(upstream, model) => Some(Priced {
                profile: upstream.profile,
                model: model.told.id.as_str(),
                answers_as: &model.told.answers_as,
                accepted: [&upstream.allow_fields, &model.told.allow_fields],
                class: class.map(|priced| &priced.class),
                tools: &model.told.tools,
            }),
            Self::Neuron(_) => None,
        }
    }

    /// All output that it charges for is text in the answer.
    pub(crate) fn output_is_visible(&self) -> bool {
        matches!(self, Self::Foreign(_, model) if model.told.output_is_visible)
    }
}

/// A request as it goes out, once.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Attempt {
    /// What goes out to `candidate`; `pass` is for a neuron.
    pub(crate) fn new(
        candidate: &Candidate,
        api: Api,
        pass: &Pass<'_>,
        client: &HeaderMap,
        body: Vec<u8>,
    ) -> Self {
        let neuron = match candidate {
            Candidate::Foreign(upstream, _) => {
                return Self::to(upstream, api, client, Bytes::from(body));
            }
            Candidate::Neuron(neuron) => neuron,
        };
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let url = {
            let (path, url) = match api {
                Api::Completions => (PATH_COMPLETIONS, &neuron.completions_url),
                Api::Embeddings => (choose::PATH_EMBEDDINGS, &neuron.embeddings_url),
                _ => (PATH_CHAT, &neuron.chat_url),
            };
            pass.write(&neuron.neuron, path, &body, &mut headers);
            url.clone()
        };
        Self {
            url,
            headers,
            body: Bytes::from(body),
        }
    }
}

impl Attempt {
    /// What goes out to a foreign upstream.
    pub(crate) fn to(upstream: &Upstream, api: Api, client: &HeaderMap, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        upstream_headers(upstream, client, &mut headers);
        Self {
            url: upstream.url(api),
            headers,
            body,
        }
    }
}

/// The operator's key, never the client's; of the client's headers only what chooses an API version.
fn upstream_headers(upstream: &Upstream, client: &HeaderMap, headers: &mut HeaderMap) {
    let sensitive = |text: String| {
        let mut value = HeaderValue::try_from(text).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    let key = upstream.api_key.as_ref().map(|key| key.expose_secret());
    match upstream.kind {
        Dialect::OpenAi => {
            if let Some(value) = key.and_then(|key| sensitive(format!("Bearer {key}"))) {
                headers.insert(header::AUTHORIZATION, value);
            }
        }
        Dialect::Anthropic => {
            if let Some(value) = key.and_then(|key| sensitive(key.to_owned())) {
                headers.insert(HeaderName::from_static("x-api-key"), value);
            }
            let version = HeaderName::from_static("anthropic-version");
            let default = HeaderValue::from_static(ANTHROPIC_VERSION);
            headers.insert(
                version.clone(),
                client.get(&version).cloned().unwrap_or(default),
            );
            let beta = HeaderName::from_static("anthropic-beta");
            for value in client.get_all(&beta) {
                headers.append(beta.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_schemas::{ids::ModelId, neuron::signature::NeuronSecret};
    use serde_json::json;
    use tokio::time::Instant;

    use super::{deployments::Deployments, *};
    use crate::config::UpstreamModel;

    fn foreign(kind: Dialect, api_key: Option<&str>) -> Candidate {
        let config = UpstreamConfig {
            name: "u".to_owned(),
            kind,
            profile: None,
            base_url: "http://h:1/base/".to_owned(),
            allow_fields: Vec::new(),
            errors_are_free: false,
            responses: false,
            threads: false,
            api_key: api_key.map(SecretString::from),
            deployments: Vec::new(),
            weight: 1,
            priority: 0,
            attempts: None,
            retry_unknown: false,
            models: Vec::new(),
        };
        let model = UpstreamModel::new(ModelId::new("m").unwrap(), 100, 10);
        let model = Model::read(&model, &config).unwrap();
        let place = config.places().next().unwrap();
        let upstream = Arc::new(Upstream::new(&config, &place).unwrap());
        let chosen = Deployments::new(&[upstream]).choose(&[], Instant::now());
        Candidate::Foreign(chosen, Arc::new(model))
    }

    fn attempt(candidate: &Candidate, sent: &[(&'static str, &'static str)]) -> Attempt {
        let mut client = HeaderMap::new();
        for (name, value) in sent {
            client.append(*name, HeaderValue::from_static(value));
        }
        let body = json!({"b": 1, "a": 2}).to_string().into_bytes();
        let pass = Pass {
            secret: &NeuronSecret::new([7; 32]),
            held: None,
            deadline_ms: 1,
        };
        Attempt::new(candidate, candidate.api(Api::Chat), &pass, &client, body)
    }

    fn shown<'a>(attempt: &'a Attempt, name: &str) -> Vec<&'a str> {
        let values = attempt.headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn a_client_s_own_secrets_never_go_out() {
        let sent = [
            ("authorization", "Bearer sk-client"),
            ("x-api-key", "sk-client"),
            ("cookie", "a=b"),
            ("x-seatbelt-run", "r"),
        ];
        for kind in [Dialect::OpenAi, Dialect::Anthropic] {
            let with_key = attempt(&foreign(kind, Some("sk-upstream")), &sent);
            let without = attempt(&foreign(kind, None), &sent);
            for attempt in [with_key, without] {
                let all = format!("{:?}", attempt.headers);
                assert!(!all.contains("sk-client") && !all.contains("a=b"), "{all}");
                assert!(!all.contains("sk-upstream"), "a secret is printed: {all}");
                assert!(shown(&attempt, "x-seatbelt-run").is_empty());
            }
        }
    }

    #[test]
    fn each_kind_has_its_own_path_and_key() {
        let openai = attempt(&foreign(Dialect::OpenAi, Some("sk-u")), &[]);
        assert_eq!(openai.url.as_str(), "http://h:1/base/chat/completions");
        assert_eq!(shown(&openai, "authorization"), ["Bearer sk-u"]);
        let anthropic = attempt(&foreign(Dialect::Anthropic, Some("sk-u")), &[]);
        assert_eq!(anthropic.url.as_str(), "http://h:1/base/v1/messages");
        assert_eq!(shown(&anthropic, "x-api-key"), ["sk-u"]);
        assert_eq!(shown(&anthropic, "anthropic-version"), [ANTHROPIC_VERSION]);
    }

    #[test]
    fn an_upstream_is_asked_in_what_its_client_speaks_where_it_can_be() {
        let openai = foreign(Dialect::OpenAi, None);
        for api in [Api::Chat, Api::Completions, Api::Embeddings] {
            assert_eq!(openai.api(api), api);
        }
        assert_eq!(openai.api(Api::Messages), Api::Chat);
        assert_eq!(openai.api(Api::Responses), Api::Chat, "it was not said to");
        let anthropic = foreign(Dialect::Anthropic, None);
        for api in [Api::Chat, Api::Messages, Api::Completions, Api::Embeddings] {
            assert_eq!(anthropic.api(api), Api::Messages);
        }
        let Candidate::Foreign(upstream, _) = openai else {
            panic!("it is foreign")
        };
        let at = |api| upstream.url(api).to_string();
        assert_eq!(at(Api::Embeddings), "http://h:1/base/embeddings");
        assert_eq!(at(Api::Completions), "http://h:1/base/completions");
    }

    #[test]
    fn what_chooses_an_api_version_passes_to_the_kind_that_knows_it() {
        let sent = [
            ("anthropic-version", "2099-01-01"),
            ("anthropic-beta", "one"),
            ("anthropic-beta", "two"),
        ];
        let anthropic = attempt(&foreign(Dialect::Anthropic, None), &sent);
        assert_eq!(shown(&anthropic, "anthropic-version"), ["2099-01-01"]);
        assert_eq!(shown(&anthropic, "anthropic-beta"), ["one", "two"]);
        let openai = attempt(&foreign(Dialect::OpenAi, None), &sent);
        assert!(shown(&openai, "anthropic-version").is_empty());
        assert!(shown(&openai, "anthropic-beta").is_empty());
    }

    #[test]
    fn a_body_keeps_the_order_of_its_fields() {
        let attempt = attempt(&foreign(Dialect::OpenAi, None), &[]);
        assert_eq!(attempt.body, br#"{"b":1,"a":2}"#.as_slice());
    }
}
