//! What will be done with a request, decided before anything is reserved: where it goes, in which
//! dialect, and within which bounds.
//!
//! A metered request that has no bound is refused here. Nothing is dispatched; only a neuron may be
//! asked to count.

use std::sync::Arc;

use axum::http::HeaderMap;
use seatbelt_schemas::{amount::TOKENS_PER_REQUEST_MAX, event::OnShort, ids::ModelId};
use serde_json::Value;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use crate::{
    allow::{Allowed, refuse_state},
    bound::{Asked, Bound, ask_for_usage},
    config::Profile,
    error::{ApiError, Dialect},
    face::Face,
    gate::{Gate, Want},
    messages::{MessagesStream, to_chat},
    metrics::{Metrics, Stage},
    receive::{Caller, Received, body::Fields},
    upstream::{Candidate, catalog::Catalog, count::count},
    usage::Api,
};

/// What will be done, once the hold is granted.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) dialect: Dialect,
    pub(crate) caller: Caller,
    pub(crate) model: ModelId,
    /// As it will be forwarded, but for the output maximum.
    pub(crate) body: Fields,
    pub(crate) asked: Asked,
    pub(crate) bound: Bound,
    pub(crate) candidate: Candidate,
    pub(crate) face: Face,
    /// The id of an answer that is made here.
    pub(crate) answer_id: String,
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
    pub(crate) async fn plan(
        &self,
        dialect: Dialect,
        received: Received,
    ) -> Result<Plan, ApiError> {
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
        let (mut body, asked) = read(dialect, api, body)?;
        self.screen(&caller, &headers, allowed(&candidate), &mut body)
            .await?;
        let (candidate, bound) = self.bound(&model, candidate, &asked, &body).await?;
        if asked.stream && api == Api::OpenAi {
            ask_for_usage(&mut body);
        }
        let answer_id = format!("msg_{id}");
        let face = face(dialect, &model, &asked, &answer_id, (&candidate, &bound));
        self.metrics.stage(Stage::Bound, began.elapsed());
        Ok(Plan {
            dialect,
            caller,
            model,
            body,
            asked,
            bound,
            candidate,
            face,
            answer_id,
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
        let checked = allowed.check(body).and_then(|()| match allowed.api {
            Api::Anthropic => allowed.check_betas(betas),
            Api::OpenAi => Ok(()), // the header is not sent on
        });
        let Some(key) = &caller.key else {
            return refuse_state(body);
        };
        match checked {
            Ok(()) => allowed.pin(body),
            Err(error) if caller.run.is_some() || self.gate.bounds(key).await? => {
                return Err(error);
            }
            Err(_) => {}
        }
        refuse_state(body)
    }

    /// The bound, and who will serve within it: a neuron that cannot count makes way for another.
    async fn bound(
        &self,
        model: &ModelId,
        candidate: Candidate,
        asked: &Asked,
        body: &Fields,
    ) -> Result<(Candidate, Bound), ApiError> {
        let neuron = match candidate {
            Candidate::Foreign(_, ref limits) => {
                let bound = asked.by_bytes(limits)?;
                return Ok((candidate, bound));
            }
            Candidate::Neuron(neuron) => neuron,
        };
        let (neuron, input_tokens) =
            count(&self.client, &self.catalog, model, neuron, body).await?;
        let bound = asked.exactly(input_tokens, neuron.model.context, neuron.model.output)?;
        Ok((Candidate::Neuron(neuron), bound))
    }
}

impl Plan {
    /// What to reserve for it; nothing for a request that is not metered.
    pub(crate) fn want(&self) -> Result<Option<Want>, ApiError> {
        let Some(key) = &self.caller.key else {
            return Ok(None);
        };
        let output_tokens = self.bound.output_tokens.saturating_mul(self.asked.choices);
        if output_tokens > TOKENS_PER_REQUEST_MAX {
            let problem = "asks for more output than one request may have";
            return Err(ApiError::invalid_field("n", problem));
        }
        Ok(Some(Want {
            account: key.account.clone(),
            key: key.key.clone(),
            model: self.model.clone(),
            run: self.caller.run.clone(),
            end_user: self.asked.end_user.clone(),
            input_tokens: self.bound.input_tokens,
            output_tokens,
            // several choices share one maximum, which cannot be lowered fairly; and a maximum that was
            // lowered could fall to a thinking budget, which then is none
            on_short: if self.asked.choices > 1 || self.body.contains_key("thinking") {
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

fn face(
    dialect: Dialect,
    model: &ModelId,
    asked: &Asked,
    answer_id: &str,
    (candidate, bound): (&Candidate, &Bound),
) -> Face {
    let api = candidate.api();
    if (dialect, api) != (Dialect::Anthropic, Api::OpenAi) {
        let hide_usage = api == Api::OpenAi && asked.stream && !asked.include_usage;
        return Face::Same { hide_usage };
    }
    let input_tokens = match candidate {
        Candidate::Neuron(_) => bound.input_tokens,
        Candidate::Foreign(..) => 0, // only a bound is known before the end
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
