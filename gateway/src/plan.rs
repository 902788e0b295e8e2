//! What will be done with a request, decided before anything is reserved: where it goes, in which
//! dialect, and within which bounds.
//!
//! A metered request that has no bound is refused here. Nothing is dispatched; only a neuron may be
//! asked to count.

use std::sync::Arc;

use axum::http::HeaderMap;
use seatbelt_dialects::{
    Api, Ask, Dialect, Face, Fields,
    allow::{Allowed, Profile, refuse_state},
    translate::{Translation, between},
};
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, event::OnShort, ids::ModelId};
use serde_json::Value;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    bound::{Bound, by_bytes, exactly},
    error::ApiError,
    gate::{Gate, Want},
    metrics::{Metrics, Stage},
    receive::{Caller, Received},
    upstream::{Candidate, catalog::Catalog, count::count},
};

/// What will be done, once the hold is granted.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) dialect: Dialect,
    pub(crate) caller: Caller,
    pub(crate) model: ModelId,
    /// As it will be forwarded, but for the output maximum.
    pub(crate) body: Fields,
    pub(crate) ask: Ask,
    pub(crate) bound: Bound,
    pub(crate) candidate: Candidate,
    pub(crate) face: Face,
    /// The client's.
    pub(crate) headers: HeaderMap,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// Plans requests.
pub(crate) struct Planner {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) gate: Arc<Gate>,
    /// For counts by a neuron's tokenizer.
    pub(crate) client: reqwest::Client,
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
            permit,
        } = received;
        let model = model_id(&body)?;
        let candidate = self.catalog.candidate(&model, &[])?;
        let api = candidate.api();
        let way = between(client, api)?;
        let (mut body, ask) = read(way, api, body)?;
        self.screen(&caller, &headers, allowed(&candidate), &mut body)
            .await?;
        let (candidate, bound) = self.bound(&model, candidate, &ask, &body).await?;
        if ask.stream {
            api.want_usage(&mut body);
        }
        let face = match way {
            None => Face::same(api, &ask),
            Some(way) => way.face(
                format!("msg_{id}"),
                model.to_string(),
                known_input(&candidate, &bound),
            ),
        };
        self.metrics.stage(Stage::Bound, began.elapsed());
        Ok(Plan {
            dialect: client.dialect(),
            caller,
            model,
            body,
            ask,
            bound,
            candidate,
            face,
            headers,
            permit,
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
        let checked = allowed
            .check(body)
            .and_then(|()| allowed.check_betas(betas));
        if let Some(key) = &caller.key {
            match checked {
                Ok(()) => allowed.pin(body),
                Err(error) if caller.run.is_some() || self.gate.bounds(key).await? => {
                    return Err(error.into());
                }
                Err(_) => {}
            }
        }
        Ok(refuse_state(body)?)
    }

    /// The bound, and who will serve within it: a neuron that cannot count makes way for another.
    async fn bound(
        &self,
        model: &ModelId,
        candidate: Candidate,
        ask: &Ask,
        body: &Fields,
    ) -> Result<(Candidate, Bound), ApiError> {
        let neuron = match candidate {
            Candidate::Foreign(_, ref limits) => {
                let bound = by_bytes(ask, limits)?;
                return Ok((candidate, bound));
            }
            Candidate::Neuron(neuron) => neuron,
        };
        let (neuron, input_tokens) =
            count(&self.client, &self.catalog, model, neuron, body).await?;
        let bound = exactly(ask, input_tokens, neuron.model.context, neuron.model.output)?;
        Ok((Candidate::Neuron(neuron), bound))
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
            model: self.model.clone(),
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
        }))
    }
}

fn allowed(candidate: &Candidate) -> Allowed<'_> {
    let api = candidate.api();
    match candidate {
        Candidate::Foreign(upstream, model) => Allowed {
            api,
            profile: upstream.profile,
            accepted: [&upstream.allow_fields, &model.allow_fields],
            output_max: model.output,
        },
        Candidate::Neuron(neuron) => Allowed {
            api,
            profile: Profile::Generic,
            accepted: [&[], &[]],
            output_max: neuron.model.output,
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
