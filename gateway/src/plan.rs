//! What will be done with a request, decided before anything is reserved: where it goes, in which
//! dialect, and within which bounds.
//!
//! A metered request that has no bound is refused here. Nothing is dispatched; only a neuron may be
//! asked to count.

use std::sync::Arc;

use axum::http::HeaderMap;
use seatbelt_dialects::{
    Api, Ask, Calls, Dialect, Exact, Face, Fields, MediaLimits,
    allow::{Allowed, Profile, refuse_state},
    translate::{
        Echo, Name, Translation, between, without_our_thoughts, without_thoughts_of_others,
    },
};
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, event::OnShort, ids::ModelId};
use seatbelt_tokens::{ChatCounter, CountError, MessagesError, PromptError};
use serde_json::Value;
use tokio::time::Instant;

use crate::{
    bound::{Bound, by_bytes, by_tokens, exactly, with_calls},
    config::{FIRST_SLICE, Limits, PricedClass, REQUEST_ALLOWANCE_GENERIC},
    error::ApiError,
    gate::{Gate, Want},
    metrics::{Metrics, Stage},
    receive::{Caller, Received, aside::Aside, shares::Share},
    threads::{Binding, Followed, ThreadStore},
    upstream::{
        Candidate,
        catalog::{Catalog, Size},
        choose::ChosenNeuron,
        count::{Counter, count},
        model::Model,
        recipes::Recipes,
    },
};

mod instead;
mod tokens;

pub(crate) use instead::Instead;

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
    /// What it has of a conversation that the upstream keeps.
    pub(crate) followed: Option<Followed>,
    /// Binds its response, where that is to be kept.
    pub(crate) binding: Option<Binding>,
    /// Most calls of tools that the provider runs.
    pub(crate) calls: Calls,
    /// The class of service that it asks for, where that has a price of its own.
    pub(crate) class: Option<PricedClass>,
    pub(crate) candidate: Candidate,
    pub(crate) face: Face,
    /// The client's.
    pub(crate) headers: HeaderMap,
    pub(crate) place: Share,
    pub(crate) room: Share,
    /// What it takes to ask another model.
    pub(crate) instead: Option<Instead>,
}

/// A body in its upstream's API, and what it asks for.
struct Read {
    body: Fields,
    ask: Ask,
    /// What it takes of memory, for as long as anybody works on it.
    room: Share,
    /// Where that is done.
    aside: Aside,
}

impl Read {
    /// Its parts, as they go out: a stream is to tell what it used.
    fn asking_for_usage(self, api: Api) -> (Fields, Ask, Share) {
        let Self {
            mut body,
            ask,
            room,
            ..
        } = self;
        if ask.stream {
            api.want_usage(&mut body);
        }
        (body, ask, room)
    }
}

/// Plans requests.
pub(crate) struct Planner {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) gate: Arc<Gate>,
    /// The tokenizers of neurons.
    pub(crate) recipes: Arc<Recipes>,
    /// For counts by neurons that hand out none.
    pub(crate) counter: Counter,
    /// Whose the responses are that upstreams keep.
    pub(crate) threads: Option<Arc<dyn ThreadStore>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Planner {
    /// Plans a request; a metered one is refused where it has no bound.
    pub(crate) async fn plan(&self, client: Api, received: Received) -> Result<Plan, ApiError> {
        let began = Instant::now();
        let model = model_id(&received.body)?;
        let candidate = self.catalog.candidate(&model, &[])?;
        let instead = Instead::of(&candidate, client, &received);
        let Received {
            id,
            caller,
            headers,
            mut body,
            exact,
            place,
            aside,
            room,
        } = received;
        let api = candidate.api(client);
        let followed = self.followed(&caller, &candidate, api, &mut body);
        let (followed, binding) = followed.await?;
        let way = between(client, api)?;
        let reading = move || Ok((read(way, api, body)?, room));
        let ((mut body, mut ask, echo), room) = aside.clone().work(reading).await?;
        ask.before = followed.as_ref().map_or(0, Followed::tokens);
        let class = class_of(&candidate, &body)?;
        let allowed = allowed(&candidate, api, class.as_ref());
        // what is wrong is named as the client wrote it
        let named = |error: ApiError| match way {
            Some(way) => error.naming(|param| way.named(param)),
            None => error,
        };
        let screened = self.screen(&caller, &headers, allowed, &mut body).await;
        let calls = screened.map_err(named)?;
        let read = Read {
            body,
            ask,
            room,
            aside,
        };
        let bounding = self.bound(&caller, &model, api, candidate, read);
        let (candidate, bound, read) = bounding.await.map_err(named)?;
        let bound = with_calls_of(&candidate, bound, calls)?;
        let (body, ask, room) = read.asking_for_usage(api);
        let input_tokens = known_input(&candidate, &bound);
        let name = || self.name(id, &model, input_tokens);
        let face = match way {
            None => Face::same(api, &ask),
            Some(way) => way.face(name(), &ask, &body, echo),
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
            followed,
            binding,
            calls,
            class,
            candidate,
            face,
            headers,
            place,
            room,
            instead,
        })
    }

    /// What a request has of a conversation that its upstream keeps, and what binds its response.
    async fn followed(
        &self,
        caller: &Caller,
        candidate: &Candidate,
        api: Api,
        body: &mut Fields,
    ) -> Result<(Option<Followed>, Option<Binding>), ApiError> {
        let threads = self.threads.as_ref();
        let followed = Followed::take(threads, caller, candidate, api, body).await?;
        let binding = Binding::of(threads, followed.as_ref(), caller, candidate);
        Ok((followed, binding))
    }

    /// By what an answer in another API is named.
    fn name(&self, id: String, model: &ModelId, input_tokens: u64) -> Name {
        Name {
            id,
            model: model.to_string(),
            created_s: (self.counter.clock)() / 1000,
            input_tokens,
        }
    }

    /// Refuses what has no bound where a cap needs one, and pins the class of the price and the calls of tools.
    async fn screen(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        allowed: Allowed<'_>,
        body: &mut Fields,
    ) -> Result<Calls, ApiError> {
        let betas = headers.get_all("anthropic-beta").iter();
        let betas = betas.map(|value| value.to_str().unwrap_or("?"));
        let versions = headers.get_all("anthropic-version").iter();
        let versions = versions.map(|value| value.to_str().unwrap_or("?"));
        let checked = allowed
            .check(body)
            .and_then(|()| allowed.check_betas(betas))
            .and_then(|()| allowed.check_versions(versions));
        let mut calls = Calls::default();
        if let Some(key) = &caller.key {
            match checked {
                Ok(()) => {
                    allowed.pin(body);
                    calls = allowed.pin_calls(body)?;
                }
                Err(error) if caller.run.is_some() || self.gate.bounds(key).await? => {
                    // what the provider keeps is no matter of cost alone
                    refuse_state(body, allowed.accepted)?;
                    return Err(error.into());
                }
                Err(_) => {}
            }
        }
        refuse_state(body, allowed.accepted)?;
        Ok(calls)
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
            Candidate::Foreign(_, ref model) => {
                let (bound, read) = foreign_bound(api, Arc::clone(model), read).await?;
                return Ok((candidate, bound, read));
            }
            Candidate::Neuron(neuron) => neuron,
        };
        match self.recipe(&neuron, api, &read.body).await {
            Some(counter) => {
                let most = self.catalog.context_max(&neuron.model);
                let (input_tokens, read) = counted(api, counter, most, read).await?;
                let (neuron, bound) = self.fitting(neuron, input_tokens, &read.ask)?;
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
            let mut limits = Limits::new(context, output);
            limits.framing.request = REQUEST_ALLOWANCE_GENERIC;
            let bound = by_bytes(&read.ask, &limits)?;
            return Ok((Candidate::Neuron(neuron), bound, read));
        }
        let (neuron, input_tokens) = count(&self.counter, model, neuron, &read.body).await?;
        let (neuron, bound) = self.fitting(neuron, input_tokens, &read.ask)?;
        Ok((Candidate::Neuron(neuron), bound, read))
    }

    /// The neuron that holds a request of so many tokens, and the bound that its limits give.
    fn fitting(
        &self,
        neuron: ChosenNeuron,
        input_tokens: u64,
        ask: &Ask,
    ) -> Result<(ChosenNeuron, Bound), ApiError> {
        let size = Size {
            input_tokens,
            output_tokens: ask.max,
        };
        let neuron = self.catalog.fitting(neuron, size);
        let (context, output) = (neuron.model.context, neuron.model.output);
        let bound = exactly(ask, input_tokens, context, output)?;
        Ok((neuron, bound))
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
            return Err(ApiError::invalid_field(self.choices_field(), problem));
        }
        Ok(Some(Want {
            account: key.account.clone(),
            key: key.key.clone(),
            team: self.caller.team.clone(),
            model: match &self.class {
                Some(class) => class.price.model.clone(),
                None => self.model.clone(),
            },
            run: self.caller.run.clone(),
            within: key.within.as_ref().map(|within| within.run.clone()),
            end_user: (self.caller.end_user.clone()).or_else(|| self.ask.end_user.clone()),
            input_tokens: self.bound.input_tokens,
            output_tokens,
            slice: self.in_slices().then_some(FIRST_SLICE),
            tool_calls: self.calls.charged,
            on_short: match self.caller.on_short {
                _ if self.in_slices() => OnShort::Clamp,
                Some(on_short) if !self.ask.keeps_max => on_short,
                _ => OnShort::Refuse,
            },
            on_unknown: key.on_unknown,
            wait: self.caller.wait,
        }))
    }
}

impl Plan {
    /// Whether what does not fit whole may be held slice by slice while it runs: the maximum is not the client's own, and
    /// its neuron can be told another one.
    pub(crate) fn in_slices(&self) -> bool {
        let grows = match &self.candidate {
            Candidate::Neuron(neuron) => neuron.model.grows,
            Candidate::Foreign(..) => false,
        };
        let is_one = self.ask.choices == 1 && !self.ask.keeps_max;
        let may = self.caller.on_short != Some(OnShort::Refuse);
        grows && is_one && may && self.ask.max.is_none()
    }

    /// Which field asks for that many choices.
    fn choices_field(&self) -> &'static str {
        let of = |name: &str| self.body.get(name).and_then(Value::as_u64).unwrap_or(0);
        match (self.api, of("best_of") > of("n")) {
            (Api::Completions, true) => "best_of",
            (Api::Completions, false) if of("n") < 2 => "prompt",
            _ => "n",
        }
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

/// A bound with what calls of tools add that the provider runs: a neuron runs none.
fn with_calls_of(candidate: &Candidate, bound: Bound, calls: Calls) -> Result<Bound, ApiError> {
    match candidate {
        Candidate::Foreign(_, model) => with_calls(bound, calls, model.limits.context),
        Candidate::Neuron(_) => Ok(bound),
    }
}

/// By the model's tokenizer where it is known, else by bytes.
async fn foreign_bound(api: Api, model: Arc<Model>, read: Read) -> Result<(Bound, Read), ApiError> {
    let limits = model.limits;
    let Some(counter) = model.counter.clone() else {
        return Ok((by_bytes(&read.ask, &limits)?, read));
    };
    let aside = read.aside.to_count(read.ask.text);
    let counting = move || {
        let bound = by_tokens(api, &read.ask, &read.body, &limits, &counter)?;
        Ok((bound, read))
    };
    aside.work(counting).await
}

/// The tokens of a prompt, by the tokenizer and the template of the neuron's model, exactly.
async fn counted(
    api: Api,
    counter: Arc<ChatCounter>,
    context: u64,
    read: Read,
) -> Result<(u64, Read), ApiError> {
    let aside = read.aside.to_count(read.ask.text);
    let counting = move || {
        let (field, counted) = match read.body.get("prompt") {
            Some(Value::String(text)) if api == Api::Completions => {
                ("prompt", counter.count_text(text, context))
            }
            _ if api == Api::Completions => {
                ("prompt", counter.count(|name| read.body.get(name), context))
            }
            _ => (
                "messages",
                counter.count(|name| read.body.get(name), context),
            ),
        };
        let tokens = counted.map_err(|error| not_counted(&error, field, context))?;
        Ok((tokens, read))
    };
    aside.work(counting).await
}

/// As the neuron would refuse it.
fn not_counted(error: &CountError, prompt: &str, context: u64) -> ApiError {
    match error {
        CountError::TooLong(least) => ApiError::context_exceeded(*least, context),
        CountError::Messages(MessagesError::Invalid(wanted)) => {
            ApiError::invalid_field(prompt, &format!("must be {wanted}"))
        }
        CountError::Messages(MessagesError::Tools(wanted)) => {
            ApiError::invalid_field("tools", &format!("must be {wanted}"))
        }
        CountError::Messages(MessagesError::Unsupported(problem)) => {
            ApiError::invalid_field(prompt, &format!("cannot be served: {problem}"))
        }
        CountError::Prompt(PromptError::NoTools) => {
            ApiError::invalid_field("tools", "are not taken by the model's chat template")
        }
        CountError::Prompt(error) => {
            ApiError::invalid_field(prompt, &format!("make no prompt: {error}"))
        }
    }
}

fn allowed<'a>(candidate: &'a Candidate, api: Api, class: Option<&'a PricedClass>) -> Allowed<'a> {
    let class = class.map(|priced| &priced.class);
    match candidate {
        Candidate::Foreign(upstream, model) => Allowed {
            api,
            profile: upstream.profile,
            accepted: [&upstream.allow_fields, &model.told.allow_fields],
            output_max: model.limits.output,
            class,
            tools: &model.told.tools,
            media: model.limits.media,
        },
        Candidate::Neuron(neuron) => Allowed {
            api,
            profile: Profile::Generic,
            accepted: [&[], &[]],
            output_max: neuron.model.output,
            class,
            tools: &[],
            media: MediaLimits::default(),
        },
    }
}

/// The body in the upstream's API, what it asks for, and what a translated answer says again of it.
fn read(way: Option<Translation>, api: Api, body: Fields) -> Result<(Fields, Ask, Echo), ApiError> {
    match way {
        Some(way) => Ok(way.request(&body)?),
        None => {
            let mut body = body;
            match api {
                Api::Messages => without_our_thoughts(&mut body),
                Api::Responses => without_thoughts_of_others(&mut body),
                Api::Chat | Api::Completions | Api::Embeddings => {}
            }
            let ask = api.ask(&body)?;
            Ok((body, ask, Echo::default()))
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
mod tests;
