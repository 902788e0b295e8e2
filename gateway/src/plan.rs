//! What will be done with a request, decided before anything is reserved: where it goes, in which
//! dialect, and within which bounds.
//!
//! A metered request that has no bound is refused here. Nothing is dispatched; only a neuron may be
//! asked to count.

use std::sync::Arc;

use axum::http::HeaderMap;
use seatbelt_dialects::{
    Api, Ask, Dialect, Exact, Face, Fields,
    allow::{Allowed, Profile, refuse_state},
    translate::{Name, Translation, between},
};
use seatbelt_schemas::{
    amount::TOKENS_PER_REQUEST_MAX, event::OnShort, ids::ModelId, neuron::NeuronModel,
};
use seatbelt_tokens::{ChatCounter, CountError, MessagesError};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    bound::{Bound, by_bytes, by_tokens, exactly},
    config::{PricedClass, REQUEST_ALLOWANCE_GENERIC, UpstreamModel},
    error::ApiError,
    gate::{Gate, Want},
    metrics::{Metrics, Stage},
    receive::{Caller, Received, aside::Aside, shares::Share},
    upstream::{
        Candidate,
        catalog::Catalog,
        choose::ChosenNeuron,
        count::{Counter, count},
        recipes::Recipes,
    },
};

mod tokens;

/// What will be done, once the hold is granted.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) dialect: Dialect,
    /// What the upstream is asked in.
    pub(crate) api: Api,
    pub(crate) caller: Caller,
    pub(crate) model: ModelId,
    /// As it will be forwarded, but for the output maximum.
    pub(crate) body: Fields,
    /// Of its numbers that no machine word holds.
    pub(crate) exact: Option<Exact>,
    pub(crate) ask: Ask,
    pub(crate) bound: Bound,
    /// The class of service that it asks for, where that has a price of its own.
    pub(crate) class: Option<PricedClass>,
    pub(crate) candidate: Candidate,
    pub(crate) face: Face,
    /// The client's.
    pub(crate) headers: HeaderMap,
    pub(crate) place: Share,
    pub(crate) room: Share,
}

/// A body in its upstream's API, and what it asks for.
struct Read {
    body: Fields,
    ask: Ask,
    /// What it takes of memory, for as long as anybody works on it.
    room: Share,
}

/// Plans requests.
pub(crate) struct Planner {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) gate: Arc<Gate>,
    /// The tokenizers of neurons.
    pub(crate) recipes: Arc<Recipes>,
    /// For counts by neurons that hand out none.
    pub(crate) counter: Counter,
    pub(crate) metrics: Arc<Metrics>,
}

impl Planner {
    /// Plans a request; a metered one is refused where it has no bound.
    pub(crate) async fn plan(&self, client: Api, received: Received) -> Result<Plan, ApiError> {
        let began = Instant::now();
        let Received {
            id,
            caller,
            headers,
            body,
            exact,
            place,
            aside,
            room,
        } = received;
        let model = model_id(&body)?;
        let candidate = self.catalog.candidate(&model, &[])?;
        let api = candidate.api(client);
        let way = between(client, api)?;
        let reading = move || Ok((read(way, api, body)?, room));
        let ((mut body, ask), room) = aside.work(reading).await?;
        let class = class_of(&candidate, &body)?;
        let allowed = allowed(&candidate, api, class.as_ref());
        self.screen(&caller, &headers, allowed, &mut body).await?;
        let read = Read { body, ask, room };
        let (candidate, bound, read) = self.bound(&caller, &model, api, candidate, read).await?;
        let Read {
            mut body,
            ask,
            room,
        } = read;
        if ask.stream {
            api.want_usage(&mut body);
        }
        let face = match way {
            None => Face::same(api, &ask),
            Some(way) => {
                let name = Name {
                    id,
                    model: model.to_string(),
                    created_s: (self.counter.clock)() / 1000,
                    input_tokens: known_input(&candidate, &bound),
                };
                way.face(name, &ask, &body)
            }
        };
        self.metrics.stage(Stage::Bound, began.elapsed());
        Ok(Plan {
            dialect: client.dialect(),
            api,
            caller,
            model,
            body,
            exact,
            ask,
            bound,
            class,
            candidate,
            face,
            headers,
            place,
            room,
        })
    }

    /// Refuses what has no bound where a cap needs one, and pins the class of the price.
    async fn screen(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        allowed: Allowed<'_>,
        body: &mut Fields,
    ) -> Result<(), ApiError> {
        let betas = headers.get_all("anthropic-beta").iter();
        let betas = betas.map(|value| value.to_str().unwrap_or("?"));
        let versions = headers.get_all("anthropic-version").iter();
        let versions = versions.map(|value| value.to_str().unwrap_or("?"));
        let checked = allowed
            .check(body)
            .and_then(|()| allowed.check_betas(betas))
            .and_then(|()| allowed.check_versions(versions));
        if let Some(key) = &caller.key {
            match checked {
                Ok(()) => allowed.pin(body),
                Err(error) if caller.run.is_some() || self.gate.bounds(key).await? => {
                    return Err(error.into());
                }
                Err(_) => {}
            }
        }
        Ok(refuse_state(body, allowed.accepted)?)
    }

    /// The bound, and who will serve within it.
    async fn bound(
        &self,
        caller: &Caller,
        model: &ModelId,
        api: Api,
        candidate: Candidate,
        read: Read,
    ) -> Result<(Candidate, Bound, Read), ApiError> {
        let neuron = match candidate {
            Candidate::Foreign(_, ref limits) => {
                let (bound, read) = foreign_bound(api, Arc::clone(limits), read).await?;
                return Ok((candidate, bound, read));
            }
            Candidate::Neuron(neuron) => neuron,
        };
        match self.recipe(&neuron, api, &read.body).await {
            Some(counter) => {
                let limits = neuron.model.clone();
                let (bound, read) = neuron_bound(api, counter, limits, read).await?;
                Ok((Candidate::Neuron(neuron), bound, read))
            }
            None => self.asked_bound(caller, model, neuron, read).await,
        }
    }

    /// With what a neuron's prompt is counted here. Lists of texts or of tokens are rare: their neuron counts them.
    async fn recipe(
        &self,
        neuron: &ChosenNeuron,
        api: Api,
        body: &Fields,
    ) -> Option<Arc<ChatCounter>> {
        let is_text = || body.get("prompt").is_some_and(Value::is_string);
        match &neuron.model.recipe {
            Some(name) if api == Api::Chat || is_text() => self.recipes.get(name).await,
            _ => None,
        }
    }

    /// The bound by a neuron's own count: one that cannot count makes way for another. None is asked for a key
    /// that has nothing left: what its caps refuse is to cost no neuron anything.
    async fn asked_bound(
        &self,
        caller: &Caller,
        model: &ModelId,
        neuron: ChosenNeuron,
        read: Read,
    ) -> Result<(Candidate, Bound, Read), ApiError> {
        let spent = match &caller.key {
            Some(key) if caller.run.is_none() => self.gate.is_spent(key).await?,
            _ => false,
        };
        let (context, output) = (neuron.model.context, neuron.model.output);
        if spent {
            // a soft cap refuses nothing, so this is a bound all the same
            let limits = UpstreamModel {
                request_allowance: REQUEST_ALLOWANCE_GENERIC,
                ..UpstreamModel::new(model.clone(), context, output)
            };
            let bound = by_bytes(&read.ask, &limits)?;
            return Ok((Candidate::Neuron(neuron), bound, read));
        }
        let (neuron, input_tokens) = count(&self.counter, model, neuron, &read.body).await?;
        let bound = exactly(&read.ask, input_tokens, context, output)?;
        Ok((Candidate::Neuron(neuron), bound, read))
    }
}

impl Plan {
    /// What to reserve for it; nothing for a request that is not metered.
    pub(crate) fn want(&self) -> Result<Option<Want>, ApiError> {
        let Some(key) = &self.caller.key else {
            return Ok(None);
        };
        let output_tokens = self.bound.output_tokens.saturating_mul(self.ask.choices);
        if output_tokens > TOKENS_PER_REQUEST_MAX {
            let problem = "asks for more output than one request may have";
            return Err(ApiError::invalid_field("n", problem));
        }
        Ok(Some(Want {
            account: key.account.clone(),
            key: key.key.clone(),
            model: match &self.class {
                Some(class) => class.priced_as.clone(),
                None => self.model.clone(),
            },
            run: self.caller.run.clone(),
            end_user: self.ask.end_user.clone(),
            input_tokens: self.bound.input_tokens,
            output_tokens,
            on_short: if self.ask.keeps_max {
                OnShort::Refuse
            } else {
                self.caller.on_short
            },
            on_unknown: key.on_unknown,
            wait: self.caller.wait,
        }))
    }
}

/// The class of service that a body asks for, of those that have a price.
fn class_of(candidate: &Candidate, body: &Fields) -> Result<Option<PricedClass>, ApiError> {
    let classes = candidate.classes().iter();
    let mut asked = classes.filter(|priced| priced.class.is_asked(body));
    let class = asked.next();
    match asked.next() {
        None => Ok(class.cloned()),
        Some(another) => {
            let why = "together with another class of service it has no price: ask for one of them";
            Err(ApiError::unbounded(another.class.aspect.as_str(), why))
        }
    }
}

/// By the model's tokenizer where it is known, else by bytes.
async fn foreign_bound(
    api: Api,
    limits: Arc<UpstreamModel>,
    read: Read,
) -> Result<(Bound, Read), ApiError> {
    let Some(counter) = limits.tokenizer.clone() else {
        return Ok((by_bytes(&read.ask, &limits)?, read));
    };
    let aside = Aside::to_count(read.ask.text);
    let counting = move || {
        let bound = by_tokens(api, &read.ask, &read.body, &limits, &counter)?;
        Ok((bound, read))
    };
    aside.work(counting).await
}

/// By the tokenizer and the template of the neuron's model, exactly.
async fn neuron_bound(
    api: Api,
    counter: Arc<ChatCounter>,
    limits: NeuronModel,
    read: Read,
) -> Result<(Bound, Read), ApiError> {
    let aside = Aside::to_count(read.ask.text);
    let counting = move || {
        let counted = match read.body.get("prompt") {
            Some(Value::String(text)) if api == Api::Completions => {
                counter.count_text(text, limits.context)
            }
            _ => counter.count(read.body.get("messages"), limits.context),
        };
        let input_tokens = counted.map_err(|error| not_counted(&error, limits.context))?;
        let bound = exactly(&read.ask, input_tokens, limits.context, limits.output)?;
        Ok((bound, read))
    };
    aside.work(counting).await
}

/// As the neuron would refuse it.
fn not_counted(error: &CountError, context: u64) -> ApiError {
    match error {
        CountError::TooLong(least) => ApiError::context_exceeded(*least, context),
        CountError::Messages(MessagesError::Invalid(wanted)) => {
            ApiError::invalid_field("messages", &format!("must be {wanted}"))
        }
        CountError::Messages(MessagesError::Unsupported(problem)) => {
            ApiError::invalid_field("messages", &format!("cannot be served: {problem}"))
        }
        CountError::Prompt(error) => {
            ApiError::invalid_field("messages", &format!("make no prompt: {error}"))
        }
    }
}

fn allowed<'a>(candidate: &'a Candidate, api: Api, class: Option<&'a PricedClass>) -> Allowed<'a> {
    let class = class.map(|priced| &priced.class);
    match candidate {
        Candidate::Foreign(upstream, model) => Allowed {
            api,
            profile: upstream.profile,
            accepted: [&upstream.allow_fields, &model.allow_fields],
            output_max: model.output,
            class,
        },
        Candidate::Neuron(neuron) => Allowed {
            api,
            profile: Profile::Generic,
            accepted: [&[], &[]],
            output_max: neuron.model.output,
            class,
        },
    }
}

/// The body in the upstream's API, and what it asks for.
fn read(way: Option<Translation>, api: Api, body: Fields) -> Result<(Fields, Ask), ApiError> {
    match way {
        Some(way) => Ok(way.request(&body)?),
        None => {
            let ask = api.ask(&body)?;
            Ok((body, ask))
        }
    }
}

/// The input tokens, where they are known before the end: elsewhere there is only a bound.
fn known_input(candidate: &Candidate, bound: &Bound) -> u64 {
    match candidate {
        Candidate::Neuron(_) => bound.input_tokens,
        Candidate::Foreign(..) => 0,
    }
}

fn model_id(body: &Fields) -> Result<ModelId, ApiError> {
    match body.get("model") {
        None | Some(Value::Null) => Err(ApiError::missing_model()),
        Some(Value::String(model)) if model.is_empty() => Err(ApiError::missing_model()),
        Some(Value::String(model)) => {
            ModelId::new(model).map_err(|_| ApiError::model_not_found(model))
        }
        Some(_) => Err(ApiError::invalid_field("model", "must be a string")),
    }
}

#[cfg(test)]
mod tests {
    use seatbelt_dialects::{Aspect, Class};
    use seatbelt_schemas::{event::OnUnknown, meter::Meter, neuron::signature::NeuronSecret};
    use serde_json::json;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        config::UpstreamConfig,
        gate::testing::{Asked, Stub, cap, gate, key},
        receive::shares::Shares,
        upstream::client::client,
    };

    fn upstream(name: &str, kind: Dialect) -> UpstreamConfig {
        let id = ModelId::new(format!("m-{name}")).unwrap();
        UpstreamConfig {
            name: name.to_owned(),
            kind,
            profile: None,
            base_url: "http://127.0.0.1:1/v1".to_owned(),
            allow_fields: Vec::new(),
            errors_are_free: false,
            responses: false,
            api_key: None,
            models: vec![UpstreamModel::new(id, 1000, 100)],
        }
    }

    fn planner(stub: &Arc<Stub>) -> Planner {
        let (_sender, neurons) = watch::channel(Vec::new());
        let upstreams = [
            upstream("openai", Dialect::OpenAi),
            upstream("anthropic", Dialect::Anthropic),
        ];
        let (gate, metrics, _) = gate(stub);
        let catalog = Arc::new(Catalog::new(&upstreams, &[], neurons));
        let client = client(std::time::Duration::from_secs(1)).unwrap();
        let secret = NeuronSecret::new([7; 32]);
        Planner {
            recipes: Recipes::new(client.clone(), secret, Arc::new(|| 1)),
            counter: Counter {
                client,
                catalog: Arc::clone(&catalog),
                secret: NeuronSecret::new([7; 32]),
                clock: Arc::new(|| 1),
            },
            catalog,
            gate,
            metrics,
        }
    }

    fn received(body: Value, is_metered: bool) -> Received {
        let free = || Shares::new("requests", 1, 1).take(None, 1).unwrap();
        let Value::Object(body) = body else {
            panic!("a body is an object")
        };
        Received {
            id: "1".to_owned(),
            caller: Caller {
                key: is_metered.then(|| Arc::new(key())),
                run: None,
                on_short: OnShort::Clamp,
                wait: None,
            },
            headers: HeaderMap::new(),
            body,
            exact: None,
            place: free(),
            aside: Aside::No,
            room: free(),
        }
    }

    fn hi(model: &str, extra: &Value) -> Value {
        let mut body = json!({"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
        let fields = body.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        body
    }

    async fn plan(stub: Stub, client: Api, body: Value) -> Result<Plan, &'static str> {
        let planner = planner(&Arc::new(stub));
        let plan = planner.plan(client, received(body, true)).await;
        plan.map_err(|error| error.code())
    }

    fn capped(meter: Meter) -> Stub {
        Stub {
            caps: vec![cap(meter)],
            ..Stub::default()
        }
    }

    #[tokio::test]
    async fn what_is_wanted_is_the_bound_of_all_choices() {
        let body = hi("m-openai", &json!({"n": 3, "user": "u"}));
        let plan = plan(Stub::default(), Api::Chat, body).await.unwrap();
        let want = plan.want().unwrap().unwrap();
        assert_eq!((want.input_tokens, want.output_tokens), (18, 27));
        assert_eq!(want.on_short, OnShort::Refuse, "three share one maximum");
        assert_eq!(want.end_user.unwrap().as_str(), "u");
        assert_eq!(want.on_unknown, OnUnknown::default());
    }

    #[tokio::test]
    async fn one_choice_may_be_lowered_unless_it_thinks() {
        let on_short = async |extra| {
            let body = hi("m-anthropic", &extra);
            let plan = plan(Stub::default(), Api::Messages, body).await.unwrap();
            plan.want().unwrap().unwrap().on_short
        };
        assert_eq!(on_short(json!({})).await, OnShort::Clamp);
        let thinks = json!({"thinking": {"type": "enabled", "budget_tokens": 5}});
        assert_eq!(on_short(thinks).await, OnShort::Refuse);
    }

    #[tokio::test]
    async fn what_has_no_bound_is_refused_where_a_cap_counts_it() {
        let body = || hi("m-openai", &json!({"n_predict": 5000}));
        for meter in [Meter::Tokens, Meter::Cost, Meter::OutputTokens] {
            let refused = plan(capped(meter), Api::Chat, body()).await;
            assert_eq!(refused.err(), Some("cost_unbounded"), "{meter}");
        }
        assert!(
            plan(capped(Meter::Requests), Api::Chat, body())
                .await
                .is_ok()
        );
        assert!(plan(Stub::default(), Api::Chat, body()).await.is_ok());
    }

    #[tokio::test]
    async fn the_ledger_is_asked_for_caps_only_where_a_request_has_no_bound() {
        let stub = Arc::new(Stub::default());
        let planner = planner(&stub);
        let bounded = received(hi("m-openai", &json!({})), true);
        planner.plan(Api::Chat, bounded).await.unwrap();
        assert_eq!(stub.asked(), []);
        let unbounded = received(hi("m-openai", &json!({"n_predict": 5000})), true);
        planner.plan(Api::Chat, unbounded).await.unwrap();
        assert_eq!(stub.asked(), [Asked::Read]);
    }

    #[tokio::test]
    async fn a_class_that_has_a_price_is_held_by_it_and_two_at_once_have_none() {
        let class = |aspect: Aspect, value: &str| PricedClass {
            class: Class {
                aspect,
                value: value.to_owned(),
                answers_as: Vec::new(),
            },
            priced_as: ModelId::new(format!("m-openai+{}={value}", aspect.as_str())).unwrap(),
        };
        let mut config = upstream("openai", Dialect::OpenAi);
        config.models[0].classes = vec![
            class(Aspect::ServiceTier, "priority"),
            class(Aspect::Speed, "fast"),
        ];
        let stub = Arc::new(capped(Meter::Cost));
        let planner = Planner {
            catalog: Arc::new(Catalog::new(&[config], &[], watch::channel(Vec::new()).1)),
            ..planner(&stub)
        };
        let plan = async |extra: Value| {
            let body = hi("m-openai", &extra);
            let planned = planner.plan(Api::Chat, received(body, true)).await;
            planned.map_err(|error| error.code())
        };
        let priority = plan(json!({"service_tier": "priority"})).await.unwrap();
        let want = priority.want().unwrap().unwrap();
        assert_eq!(want.model.as_str(), "m-openai+service_tier=priority");
        assert_eq!(priority.body["service_tier"], "priority");
        assert_eq!(priority.body["model"], "m-openai");
        let plain = plan(json!({})).await.unwrap();
        assert_eq!(plain.want().unwrap().unwrap().model.as_str(), "m-openai");
        let flex = plan(json!({"service_tier": "flex"})).await;
        assert_eq!(flex.err(), Some("cost_unbounded"));
        let both = plan(json!({"service_tier": "priority", "speed": "fast"})).await;
        assert_eq!(both.err(), Some("cost_unbounded"));
    }

    #[tokio::test]
    async fn a_request_that_is_not_metered_wants_nothing() {
        let stub = Arc::new(capped(Meter::Tokens));
        let body = hi("m-openai", &json!({"n_predict": 5000}));
        let plan = planner(&stub).plan(Api::Chat, received(body, false)).await;
        assert!(plan.unwrap().want().unwrap().is_none());
        let kept = hi("m-openai", &json!({"store": true}));
        let refused = planner(&stub).plan(Api::Chat, received(kept, false)).await;
        assert_eq!(refused.unwrap_err().code(), "invalid_body");
    }

    #[tokio::test]
    async fn a_stream_is_asked_for_its_usage_and_hides_what_the_client_did_not_ask_for() {
        let body = hi("m-openai", &json!({"stream": true}));
        let quiet = plan(Stub::default(), Api::Chat, body).await.unwrap();
        assert_eq!(quiet.body["stream_options"], json!({"include_usage": true}));
        assert!(matches!(
            quiet.face,
            Face::Same {
                hide_usage: true,
                ..
            }
        ));
        let asks = json!({"stream": true, "stream_options": {"include_usage": true}});
        let body = hi("m-openai", &asks);
        let open = plan(Stub::default(), Api::Chat, body).await.unwrap();
        assert!(matches!(
            open.face,
            Face::Same {
                hide_usage: false,
                ..
            }
        ));
        let body = hi("m-openai", &json!({"stream": true}));
        let other = plan(Stub::default(), Api::Messages, body).await.unwrap();
        assert!(matches!(other.face, Face::Messages(_)));
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_planned_is_told_why() {
        let code = async |api, body| plan(Stub::default(), api, body).await.err();
        assert_eq!(
            code(Api::Chat, json!({})).await,
            Some("missing_model_field")
        );
        let odd = hi("m-openai", &json!({"model": 5}));
        assert_eq!(code(Api::Chat, odd).await, Some("invalid_body"));
        let unknown = hi("m-none", &json!({}));
        assert_eq!(code(Api::Chat, unknown).await, Some("model_not_found"));
        let no_place = hi("m-anthropic", &json!({"seed": 5}));
        assert_eq!(code(Api::Chat, no_place).await, Some("invalid_body"));
        let long = "x".repeat(1000 * 128);
        let long = json!({"messages": [{"role": "user", "content": long}]});
        let long = hi("m-openai", &long);
        assert_eq!(code(Api::Chat, long).await, Some("context_length_exceeded"));
    }
}
