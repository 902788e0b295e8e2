//! What will be done with a request, decided before anything is reserved: where it goes, in which
//! dialect, and within which bounds.

use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use seatbelt_schemas::{
    amount::TOKENS_PER_REQUEST_MAX,
    event::OnShort,
    ids::{ModelId, RunId},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::{
    allow::{Allowed, refuse_state},
    app::Shared,
    bound::{Asked, Bound, ask_for_usage},
    config::{KeyEntry, Profile, TOKENIZE_TIMEOUT, UpstreamKind},
    error::{ApiError, Dialect},
    face::Face,
    gate::Want,
    messages::{MessagesStream, to_chat},
    metrics::Stage,
    receive::body::Fields,
    upstream::catalog::{ChosenNeuron, Route},
    usage::Api,
};

/// Largest answer to a count.
const TOKENIZE_BYTES_MAX: usize = 64 * 1024;
/// Neurons that are asked to count, at most, when one after another cannot be reached.
const TOKENIZE_TRIES_MAX: usize = 3;

/// What will be done, once the hold is granted.
pub(crate) struct Plan {
    pub(crate) model: ModelId,
    /// As it will be forwarded, but for the output maximum.
    pub(crate) body: Fields,
    pub(crate) asked: Asked,
    pub(crate) bound: Bound,
    pub(crate) route: Route,
    /// What the upstream speaks.
    pub(crate) api: Api,
    pub(crate) face: Face,
    /// The id of an answer that is made here.
    pub(crate) answer_id: String,
}

impl Plan {
    /// Plans a request; `metered` ones are refused where they have no bound.
    pub(crate) async fn make(
        shared: &Shared,
        dialect: Dialect,
        body: Fields,
        id: &str,
        caller: Caller<'_>,
    ) -> Result<Self, ApiError> {
        let began = Instant::now();
        let model = model_id(&body)?;
        let route = shared.catalog.route(&model, &[])?;
        let api = match &route {
            Route::Foreign(upstream, _) if upstream.kind == UpstreamKind::Anthropic => {
                Api::Anthropic
            }
            _ => Api::OpenAi,
        };
        let (mut body, asked) = read(dialect, api, body)?;
        screen(shared, &caller, allowed(&route, api), &mut body).await?;
        let (route, bound) = bound(shared, &model, route, &asked, &body).await?;
        if asked.stream && api == Api::OpenAi {
            ask_for_usage(&mut body);
        }
        let answer_id = format!("msg_{id}");
        let face = face(dialect, api, &model, &asked, &answer_id, (&route, &bound));
        shared.metrics.stage(Stage::Bound, began.elapsed());
        Ok(Self {
            model,
            body,
            asked,
            bound,
            route,
            api,
            face,
            answer_id,
        })
    }

    /// What to reserve for it.
    pub(crate) fn want(
        &self,
        caller: &KeyEntry,
        on_short: OnShort,
        run: Option<RunId>,
    ) -> Result<Want, ApiError> {
        let output_tokens = self.bound.output_tokens.saturating_mul(self.asked.choices);
        if output_tokens > TOKENS_PER_REQUEST_MAX {
            let problem = "asks for more output than one request may have";
            return Err(ApiError::invalid_field("n", problem));
        }
        Ok(Want {
            account: caller.account.clone(),
            key: caller.key.clone(),
            model: self.model.clone(),
            run,
            end_user: self.asked.end_user.clone(),
            input_tokens: self.bound.input_tokens,
            output_tokens,
            // several choices share one maximum, which cannot be lowered fairly; and a maximum that was
            // lowered could fall to a thinking budget, which then is none
            on_short: if self.asked.choices > 1 || self.body.contains_key("thinking") {
                OnShort::Refuse
            } else {
                on_short
            },
            on_unknown: caller.on_unknown,
        })
    }
}

/// Who asks, as far as it decides what may be asked.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    /// None for a request that is not metered.
    pub(crate) key: Option<&'a KeyEntry>,
    pub(crate) run: Option<&'a RunId>,
    pub(crate) headers: &'a HeaderMap,
}

/// Refuses what has no bound where a cap needs one, and pins the class of the price.
async fn screen(
    shared: &Shared,
    caller: &Caller<'_>,
    allowed: Allowed<'_>,
    body: &mut Fields,
) -> Result<(), ApiError> {
    let betas = caller.headers.get_all("anthropic-beta").iter();
    let betas = betas.map(|value| value.to_str().unwrap_or("?"));
    let checked = allowed.check(body).and_then(|()| match allowed.api {
        Api::Anthropic => allowed.check_betas(betas),
        Api::OpenAi => Ok(()), // the header is not sent on
    });
    let Some(key) = caller.key else {
        return refuse_state(body);
    };
    match checked {
        Ok(()) => allowed.pin(body),
        Err(error) if caller.run.is_some() || shared.gate.bounds(key).await? => return Err(error),
        Err(_) => {}
    }
    refuse_state(body)
}

fn allowed(route: &Route, api: Api) -> Allowed<'_> {
    match route {
        Route::Foreign(upstream, model) => Allowed {
            api,
            profile: upstream.profile,
            accepted: [&upstream.allow_fields, &model.allow_fields],
            output_max: model.output,
        },
        Route::Neuron(neuron) => Allowed {
            api,
            profile: Profile::Generic,
            accepted: [&[], &[]],
            output_max: neuron.model.output,
        },
    }
}

/// The body in the upstream's dialect, and what it asks for.
fn read(dialect: Dialect, api: Api, body: Fields) -> Result<(Fields, Asked), ApiError> {
    match (dialect, api) {
        (Dialect::OpenAi, Api::OpenAi) => {
            let asked = Asked::chat(&body)?;
            Ok((body, asked))
        }
        (Dialect::Anthropic, Api::Anthropic) => {
            let asked = Asked::messages(&body)?;
            Ok((body, asked))
        }
        (Dialect::Anthropic, Api::OpenAi) => {
            let mut body = to_chat(&body)?;
            let asked = Asked::chat(&body)?;
            body.shift_remove("max_tokens"); // written again under the name that the model knows
            Ok((body, asked))
        }
        (Dialect::OpenAi, Api::Anthropic) => Err(ApiError::invalid_field(
            "model",
            "is served in the Anthropic dialect alone: call POST /v1/messages",
        )),
    }
}

/// The bound, and the route: a neuron that cannot be reached makes way for another.
async fn bound(
    shared: &Shared,
    model: &ModelId,
    route: Route,
    asked: &Asked,
    body: &Fields,
) -> Result<(Route, Bound), ApiError> {
    let mut neuron = match route {
        Route::Foreign(_, ref limits) => {
            let bound = asked.by_bytes(limits)?;
            return Ok((route, bound));
        }
        Route::Neuron(neuron) => neuron,
    };
    let mut tried = Vec::new();
    let input_tokens = loop {
        match count(shared, &neuron, body).await {
            Ok(counted) => break counted,
            Err(NotCounted::Refused(error)) => return Err(error),
            Err(NotCounted::Away(detail)) => {
                let log = format!("neuron {} cannot count: {detail}", neuron.neuron);
                tried.push(neuron.neuron.clone());
                neuron = match shared.catalog.route(model, &tried) {
                    Ok(Route::Neuron(next)) if tried.len() < TOKENIZE_TRIES_MAX => next,
                    _ => return Err(ApiError::no_upstream(model, log)),
                };
            }
        }
    };
    let bound = asked.exactly(input_tokens, neuron.model.context, neuron.model.output)?;
    Ok((Route::Neuron(neuron), bound))
}

/// Why there is no count.
enum NotCounted {
    /// The request is at fault.
    Refused(ApiError),
    /// The neuron is.
    Away(String),
}

/// The exact number of input tokens, by the model's own tokenizer.
async fn count(shared: &Shared, neuron: &ChosenNeuron, body: &Fields) -> Result<u64, NotCounted> {
    #[derive(Deserialize)]
    struct Counted {
        input_tokens: u64,
    }
    let asked = timeout(TOKENIZE_TIMEOUT, ask_to_count(shared, neuron, body)).await;
    let (status, bytes) = asked
        .unwrap_or_else(|_| Err("no answer in time".to_owned()))
        .map_err(NotCounted::Away)?;
    if status.is_client_error() {
        return Err(NotCounted::Refused(ApiError::passed_on(status, &bytes)));
    }
    match serde_json::from_slice::<Counted>(&bytes) {
        Ok(counted) if status.is_success() && counted.input_tokens <= TOKENS_PER_REQUEST_MAX => {
            Ok(counted.input_tokens)
        }
        _ => Err(NotCounted::Away(format!("it answered {status}"))),
    }
}

async fn ask_to_count(
    shared: &Shared,
    neuron: &ChosenNeuron,
    body: &Fields,
) -> Result<(StatusCode, Bytes), String> {
    let text = |error: reqwest::Error| error.to_string();
    let body = serde_json::to_vec(body).map_err(|error| error.to_string())?;
    let call = shared
        .client
        .post(neuron.tokenize_url.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .body(body);
    let mut answer = call.send().await.map_err(text)?;
    let mut bytes = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.map_err(text)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > TOKENIZE_BYTES_MAX {
            return Err("its answer is too large".to_owned());
        }
    }
    Ok((answer.status(), bytes.freeze()))
}

fn face(
    dialect: Dialect,
    api: Api,
    model: &ModelId,
    asked: &Asked,
    answer_id: &str,
    (route, bound): (&Route, &Bound),
) -> Face {
    if (dialect, api) != (Dialect::Anthropic, Api::OpenAi) {
        let hide_usage = api == Api::OpenAi && asked.stream && !asked.include_usage;
        return Face::Same { hide_usage };
    }
    let input_tokens = match route {
        Route::Neuron(_) => bound.input_tokens,
        Route::Foreign(..) => 0, // only a bound is known before the end
    };
    let (id, model) = (answer_id.to_owned(), model.to_string());
    Face::Messages(MessagesStream::new(id, model, input_tokens))
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
